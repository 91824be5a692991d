//! The commands, as people and scripts use them.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::bed::{
    Bed, NODE, binary,
    pods::{SLEEP, container, id, job, phase, pod, sleeper, with},
    until,
};

fn words(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect()
}

#[test]
fn cli_get_shows_columns_and_formats() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&sleeper("web"));
    bed.apply(&with(sleeper("cart"), json!({"metadata": {"namespace": "shop"}})));
    bed.wait_ready("web");
    bed.wait_ready("cart");
    let table = bed.say(&["get", "pods"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(words(lines[0]), ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(words(lines[1])[..4], [&*format!("web-{NODE}"), "1/1", "Running", "0"]);
    assert_eq!(lines.len(), 2, "the default namespace only");
    let all = bed.say(&["get", "po", "-A"]);
    assert!(all.starts_with("NAMESPACE ") && all.contains("shop ") && all.contains("default "), "{all}");
    let wide = bed.say(&["get", "pods", "-o", "wide", "-n", "shop"]);
    assert_eq!(
        words(wide.lines().next().unwrap()),
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"]
    );
    assert!(wide.contains(&format!(" {NODE} ")), "{wide}");
    assert_eq!(bed.say(&["get", "pods", "-o", "name"]), format!("pod/web-{NODE}\n"));
    let list: Value = serde_json::from_str(&bed.say(&["get", "pods", "-A", "-o", "json"])).unwrap();
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("List"), 2));
    let one: Value = serde_json::from_str(&bed.say(&["get", "pod", "web", "-o", "json"])).unwrap();
    assert_eq!((&one["kind"], &one["status"]["phase"]), (&json!("Pod"), &json!("Running")));
    assert!(bed.say(&["get", "pod/web", "-o", "yaml"]).contains("phase: Running"));
    assert!(!bed.say(&["get", "pods", "--no-headers"]).contains("NAME"));
}

#[test]
fn cli_wrong_names_and_exit_codes() {
    let Some(mut bed) = Bed::start() else { return };
    bed.apply(&sleeper("web-server"));
    bed.wait_ready("web-server");
    let fails = |bed: &Bed, arguments: &[&str], parts: &[&str]| {
        let output = bed.cli(arguments);
        let all = [output.stdout.clone(), output.stderr.clone()].concat();
        let text = String::from_utf8_lossy(&all).into_owned();
        assert!(!output.status.success(), "{arguments:?} must fail");
        assert!(parts.iter().all(|part| text.contains(part)), "{arguments:?}: {text}");
        output.status.code().unwrap()
    };
    assert_eq!(fails(&bed, &["get", "pod", "web-sever"], &["not found", "did you mean", "web-server"]), 1);
    fails(&bed, &["describe", "pod", "web-serv"], &["not found", "did you mean"]);
    fails(&bed, &["logs", "web-sevrer"], &["not found", "did you mean"]);
    fails(&bed, &["why", "nobody-at-all"], &["not found"]);
    fails(&bed, &["logs", "web-server", "-c", "ap"], &["app"]);
    fails(&bed, &["get", "podz"], &["pods"]);
    assert_eq!(fails(&bed, &["get", "pods", "--nonsense"], &["--nonsense"]), 1);
    assert_eq!(fails(&bed, &["run", "--max-pods=many"], &["max-pods"]), 78);
    let file = bed.folder.join("kubelet.yaml");
    std::fs::write(
        &file,
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPodz: 3\nmaxPods: x\n",
    )
    .unwrap();
    assert_eq!(fails(&bed, &["config", "check", file.to_str().unwrap()], &["maxPodz", "maxPods"]), 78);
    bed.kill();
    fails(&bed, &["get", "pods"], &["cannot reach the agent", "longshore run"]);
}

#[test]
fn cli_describe_and_why() {
    let Some(bed) = Bed::start() else { return };
    let probe = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    bed.apply(&pod("a", json!([with(container("app", SLEEP), json!({"readinessProbe": probe}))]), json!({})));
    let volumes = json!([{"name": "v", "secret": {"secretName": "nothing-here"}}]);
    let app = with(container("app", SLEEP), json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    bed.apply(&pod("b", json!([app]), json!({"volumes": volumes})));
    bed.apply(&sleeper("c"));
    let hostile = json!({"exec": {"command": ["sh", "-c", "printf '\\033[2Jgone'; exit 1"]}, "periodSeconds": 1,
        "timeoutSeconds": 20});
    bed.apply(&pod("d", json!([with(container("app", SLEEP), json!({"readinessProbe": hostile}))]), json!({})));
    bed.wait_event("a", "Unhealthy", "Readiness");
    let text = bed.say(&["describe", "pod", "a"]);
    for part in [&*format!("a-{NODE}"), "Running", "Readiness", "http", "Events", "Unhealthy"] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    let text = bed.say(&["why", "a"]);
    assert!(text.contains("connection refused") || text.contains("refused"), "names the probe's message:\n{text}");
    bed.wait_event("b", "FailedMount", "nothing-here");
    let text = bed.say(&["why", "b"]);
    assert!(text.contains("volumes") && text.contains("nothing-here"), "{text}");
    bed.wait_ready("c");
    let text = bed.say(&["why", "c"]);
    assert!(text.contains("✓ ready"), "{text}");
    bed.apply(&job("e", "Never", "echo because > /dev/termination-log; exit 3"));
    bed.wait("e", "Failed", |pod| phase(pod) == "Failed");
    let text = bed.say(&["why", "e"]);
    assert!(text.contains("✗ ended") && text.contains("container app: exit code 3, Error: because"), "{text}");
    bed.wait_event("d", "Unhealthy", "gone");
    for command in ["describe", "why"] {
        let text = bed.say(&[command, "d"]);
        assert!(text.contains("^[[2Jgone") && !text.contains('\x1b'), "a container steers no terminal: {text:?}");
    }
}

#[test]
fn cli_plan_touches_nothing() {
    let Some(mut bed) = Bed::start() else { return };
    bed.apply(&sleeper("a"));
    bed.wait_ready("a");
    let plan = |bed: &Bed, more: &[&str]| {
        let folder = bed.manifests();
        let node = format!("--hostname-override={NODE}");
        let endpoint = format!("--docker-endpoint=unix://{}", bed.docker.socket.display());
        let mut arguments = vec!["plan", folder.to_str().unwrap(), &node, &endpoint];
        arguments.extend(more);
        bed.say(&arguments)
    };
    until("nothing to do", || plan(&bed, &[]).contains("nothing to do").then_some(()));
    bed.kill();
    let before = (bed.containers("a"), listing(&bed));
    assert!(plan(&bed, &[]).contains("nothing to do"), "{}", plan(&bed, &[]));
    bed.apply(&sleeper("new"));
    let text = plan(&bed, &[]);
    assert!(text.contains(&format!("new-{NODE}")) && text.contains("sandbox"), "{text}");
    bed.delete("a");
    let text = plan(&bed, &[]);
    assert!(text.contains(&format!("a-{NODE}")) && text.contains("stop"), "{text}");
    let ids = |all: &[Value]| all.iter().map(|one| (one["Id"].clone(), one["State"].clone())).collect::<Vec<_>>();
    assert_eq!(ids(&bed.containers("a")), ids(&before.0));
    assert!(bed.containers("new").is_empty());
    assert_eq!(listing(&bed), before.1);
}

/// Every file below the root folder.
fn listing(bed: &Bed) -> Vec<std::path::PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![bed.root()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[test]
fn cli_watch_and_follow() {
    let Some(bed) = Bed::start() else { return };
    let start = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--root-dir").arg(bed.root()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    };
    let (mut watcher, lines) = start(&["get", "pods", "-w"]);
    bed.apply(&pod("a", json!([container("app", &format!("echo one; sleep 1; echo two; {SLEEP}"))]), json!({})));
    bed.wait_ready("a");
    let mut seen = Vec::new();
    for line in lines.map_while(Result::ok) {
        seen.push(line.clone());
        if line.contains("Running") && line.contains("1/1") {
            break;
        }
    }
    assert!(seen[0].starts_with("NAME"), "{seen:?}");
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    let (mut follower, lines) = start(&["logs", "-f", "a"]);
    let two: Vec<String> = lines.map_while(Result::ok).take(2).collect();
    assert_eq!(two, ["one", "two"]);
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn cli_logs_of_the_last_moments() {
    let Some(bed) = Bed::start() else { return };
    bed.apply(&pod("a", json!([container("app", "while :; do echo line $((i+=1)); sleep 0.2; done")]), json!({})));
    bed.wait_ready("a");
    let first = |since: &[&str]| bed.say(&[&["logs", "a"], since].concat()).lines().next().map(str::to_owned);
    until("the first line is old", || first(&["--since=2s"]).filter(|line| line != "line 1"));
    for since in [&[][..], &["--since=1h"]] {
        assert_eq!(first(since).as_deref(), Some("line 1"), "{since:?}");
    }
    let output = bed.cli(&["logs", "a", "--since=lately"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--since: ") && said.contains("lately"), "{said}");
}

#[test]
fn cli_without_a_command_is_the_daemon() {
    let Some(mut bed) = Bed::new() else { return };
    bed.verb = None;
    bed.apply(&sleeper("a"));
    bed.begin();
    let before = bed.wait_ready("a");
    assert_eq!(bed.stop(), Some(0), "{}", bed.log());
    bed.verb = Some("run");
    bed.begin();
    assert_eq!(id(&bed.wait_ready("a"), "app"), id(&before, "app"), "it is one agent's pod");
}

#[test]
fn cli_plan_says_what_is_waited_for() {
    let Some(mut bed) = Bed::start() else { return };
    let endpoint = format!("--docker-endpoint=unix://{}", bed.docker.socket.display());
    let mine = bed.folder.file_name().unwrap().to_string_lossy().to_lowercase();
    let labels = json!({"io.kubernetes.docker.type": "container", "io.kubernetes.pod.name": mine, "io.kubernetes.pod.uid": mine,
        "io.kubernetes.pod.namespace": "default", "io.kubernetes.container.name": "app", "longshore-test": bed.folder});
    bed.docker.stranger(&format!("k8s_app_{mine}_default_{mine}_0"), &labels);
    bed.apply(&sleeper("good"));
    bed.apply(&with(sleeper("theirs"), json!({"metadata": {"uid": mine}})));
    let secret = json!({"volumes": [{"name": "v", "secret": {"secretName": "nothing-here"}}]});
    let mounting = with(container("app", SLEEP), json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    bed.apply(&pod("bare", json!([mounting.clone()]), secret));
    let claim = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
    bed.apply(&pod("claims", json!([mounting]), claim));
    let probe =
        json!({"metadata": {"annotations": {"probe.longshore.dev/app.readiness": "{plugin: nobody, config: {}}"}}});
    bed.apply(&with(sleeper("probed"), probe));
    let slow = "trap 'sleep 1000' TERM; while :; do sleep 0.1; done";
    let long = json!({"terminationGracePeriodSeconds": 600});
    bed.apply(&pod("slow", json!([container("app", slow)]), long.clone()));
    bed.wait_ready("good");
    bed.wait_ready("slow");
    bed.wait_event("theirs", "FailedCreatePodSandBox", "takeover");
    bed.wait_event("bare", "FailedMount", "nothing-here");
    bed.wait_event("claims", "FailedMount", "claims are not bound");
    bed.wait_event("probed", "FailedCreatePodSandBox", "nobody");
    // Another manifest of the name is another pod, which waits until the former one has ended.
    bed.apply(&pod("slow", json!([container("app", SLEEP)]), long));
    bed.wait_event("slow", "Killing", "app");
    let waits = [
        ("theirs", "runs already under another agent (dockershim or cri-dockerd)"),
        ("bare", "secret \"nothing-here\" not found"),
        ("claims", "claims are not bound on this node"),
        ("probed", "nobody"),
        ("slow", "the former pod of that name"),
    ];
    let said = |bed: &Bed| bed.say(&["plan", &endpoint]);
    let of = |text: &str, name: &str| -> Vec<String> {
        let title = format!("pod default/{name}-{NODE} (");
        let lines = text.lines().skip_while(|line| !line.starts_with(&title));
        let pods = lines.take_while(|line| line.starts_with(&title) || line.starts_with(' '));
        pods.map(str::to_owned).collect()
    };
    let wrong = |text: &str, of_slow: &str| -> Option<String> {
        let holds = |(name, part): &(&str, &str)| {
            let lines = of(text, name);
            lines.iter().any(|line| line.contains("wait") && line.contains(part))
                && !lines.iter().any(|line| line.contains("create container"))
        };
        let wrong = waits.iter().find(|wait| !holds(wait)).map(|(name, _)| (*name).to_owned());
        let wrong = wrong.or((!of(text, "good").is_empty()).then(|| "good".to_owned()));
        wrong.or((!of(text, "slow").join("\n").contains(of_slow)).then(|| of_slow.to_owned()))
    };
    // What an agent shows follows what it tells by a moment.
    until("what pods wait for is all in the plan", || {
        let text = said(&bed);
        let wrong = wrong(&text, "container app is being stopped, and killed at");
        if let Some(wrong) = &wrong {
            eprintln!("{wrong} is not as it should be in:\n{text}");
        }
        wrong.is_none().then_some(())
    });
    bed.kill();
    let text = said(&bed);
    assert_eq!(wrong(&text, "stop container app "), None, "{text}");
    // A file that is broken meanwhile keeps its pod, as it does under an agent.
    bed.write("good.json", "{\"kind\": ");
    let text = said(&bed);
    assert!(of(&text, "good").is_empty(), "{text}");
    // A node that drains takes nothing new; its pods end.
    std::fs::remove_file(bed.manifests().join("good.json")).unwrap();
    for (name, _) in waits {
        bed.delete(name);
    }
    bed.begin();
    bed.wait_gone("good");
    let drained = bed.cli(&["drain-node", "--local", "--timeout=5s"]);
    assert!(!drained.stdout.is_empty());
    bed.apply(&sleeper("late"));
    // Until the agent rejected it, it waits; then its folder goes.
    until("nothing is planned for the late one", || {
        let text = said(&bed);
        assert!(!text.contains("create sandbox"), "{text}");
        of(&text, "late").is_empty().then_some(())
    });
}

#[test]
fn cli_what_needs_no_agent() {
    let run = |arguments: &[&str]| {
        let output = Command::new(binary()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completion", shell]).contains("longshore"), "{shell}");
    }
    let help = run(&["--help"]);
    for word in ["run", "get", "describe", "logs", "plan", "why", "takeover", "--config", "--root-dir", "--max-pods"] {
        assert!(help.contains(word), "no {word} in --help");
    }
    let version = run(&["--version"]);
    assert!(version.starts_with("longshore "), "{version}");
}

#[test]
fn cli_takeover_says_what_it_would_do() {
    let Some(bed) = Bed::start() else { return };
    let own = format!("shim-{}", bed.folder.file_name().unwrap().to_string_lossy().to_lowercase());
    let name = format!("k8s_app_{own}_default_{own}_0");
    let stranger = bed.docker.stranger(
        &name,
        &json!({"io.kubernetes.docker.type": "container", "io.kubernetes.pod.name": own, "io.kubernetes.pod.namespace": "default",
            "io.kubernetes.pod.uid": own, "io.kubernetes.container.name": "app", "longshore-test": bed.folder}),
    );
    // The machine's other containers are none of our business: only said, never done.
    let endpoint = format!("--docker-endpoint=unix://{}", bed.docker.socket.display());
    let text = bed.say(&["takeover", "--dry-run", &endpoint]);
    assert!(text.contains(&format!("default/{own}")) && text.contains(&stranger[..12]), "{text}");
    assert_eq!(bed.docker.inspect(&stranger).unwrap()["State"]["Running"], true);
    // A pod of that UID waits and says why.
    let pod = with(sleeper("a"), json!({"metadata": {"uid": own}}));
    bed.apply(&pod);
    bed.wait_event("a", "FailedCreatePodSandBox", "takeover");
    assert_eq!(bed.containers("a").len(), 0);
    bed.docker.remove(&stranger);
    bed.wait_for(
        "a",
        "ready when the other one is gone",
        std::time::Duration::from_secs(90),
        crate::bed::pods::is_ready,
    );
}
