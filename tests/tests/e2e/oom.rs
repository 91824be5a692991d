//! What the kernel kills for want of memory: containers say so, and the node does when it was the machine's own.

use serde_json::{Value, json};

use crate::bed::{
    Bed,
    pods::{container, pod, status, with},
    until,
};

/// Takes more memory than the container may, in one process: others that asked for memory while that one dies would be killed as well.
const GREEDY: &str = "x=0123456789; while :; do x=$x$x; done";

fn limited(script: &str) -> Value {
    with(container("app", script), json!({"resources": {"limits": {"memory": "24Mi"}}}))
}

/// The node's events of that reason whose message is as `good` has it.
fn told(bed: &Bed, good: impl Fn(&str) -> bool) -> Vec<Value> {
    let all = bed.events_of_node("SystemOOM").into_iter();
    all.filter(|event| event["message"].as_str().is_some_and(&good)).collect()
}

#[test]
fn oom_of_a_container_is_its_reason_and_no_event_of_the_node() {
    let Some(bed) = Bed::start() else { return };
    let once = json!({"restartPolicy": "Never"});
    bed.apply(&pod("main", json!([limited(&format!("{GREEDY}; echo never"))]), once.clone()));
    // The kernel takes the largest process, which is not the container's first: its end is the container's own affair, but where
    // all of the container ends with it. It comes later than Docker's word for the kill, which an old one drops after the end.
    bed.apply(&pod("child", json!([limited(&format!("sh -c '{GREEDY}'; sleep 3; exit 3"))]), once));
    let ended = |name: &str| {
        let pod = bed.wait(name, "ended", |pod| status(pod, "app")["state"]["terminated"].is_object());
        status(&pod, "app")["state"]["terminated"].clone()
    };
    let main = ended("main");
    assert_eq!((&main["reason"], &main["exitCode"]), (&json!("OOMKilled"), &json!(137)));
    let child = ended("child");
    let code = if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 137 } else { 3 };
    assert_eq!((&child["reason"], &child["exitCode"]), (&json!("OOMKilled"), &json!(code)));
    assert_eq!(told(&bed, |message| !message.contains("process: nobody,")), Vec::<Value>::new());
}

#[test]
fn oom_of_the_machine_is_an_event_of_the_node() {
    let Some(bed) = Bed::start() else { return };
    // As the kernel would say it; the number is nobody's.
    let id = 4_200_000_000_u32 + std::process::id();
    let said = [
        "nobody invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0, oom_score_adj=0"
            .to_owned(),
        format!(
            "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
             task_memcg=/,task=nobody,pid={id},uid=0"
        ),
        format!("Out of memory: Killed process {id} (nobody) total-vm:1kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB"),
    ];
    for line in said {
        if let Err(error) = std::fs::write("/dev/kmsg", format!("<7>{line}\n")) {
            assert_ne!(error.kind(), std::io::ErrorKind::InvalidInput, "{line}");
            crate::bed::skip(&format!("/dev/kmsg cannot be written ({error}): the kernel's part cannot be played"));
            return;
        }
    }
    let event = until("the node's event", || told(&bed, |message| message.ends_with(&format!(" {id}"))).pop());
    assert_eq!(event["message"], format!("System OOM encountered, victim process: nobody, pid: {id}"));
    assert_eq!((&event["kind"], &event["count"]), (&json!("Warning"), &json!(1)));
}
