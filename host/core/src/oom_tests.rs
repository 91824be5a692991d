//! Reports that kernels wrote, and texts that none would.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn kills(text: &str) -> Vec<Kill> {
    let mut follower = OutOfMemory::default();
    text.lines().filter_map(|line| follower.take(line)).collect()
}

fn kill(process: &str, id: u32, cgroup: Option<&str>) -> Kill {
    Kill { process: process.to_owned(), id, cgroup: cgroup.map(str::to_owned) }
}

/// Linux 5.0 and later.
const MACHINE: &str = "\
stress-ng-vm invoked oom-killer: gfp_mask=0x440dc0(GFP_KERNEL_ACCOUNT|__GFP_COMP|__GFP_ZERO), order=0, oom_score_adj=1000
CPU: 1 UID: 0 PID: 116 Comm: stress-ng-vm Not tainted 6.11.0 #15
Mem-Info:
[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name
oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/kubepods/besteffort/podu/c,task=stress-ng-vm,pid=3103923,uid=0
Out of memory: Killed process 3103923 (stress-ng-vm) total-vm:15791416kB, anon-rss:14369596kB, file-rss:4kB, shmem-rss:36kB, UID:0 pgtables:28184kB oom_score_adj:1000
oom_reaper: reaped process 3103923 (stress-ng-vm), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB
";
const CGROUP: &str = "\
oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=0f0a,mems_allowed=0-1,oom_memcg=/kubepods/podu,task_memcg=/kubepods/podu/c,task=go-oom-test,pid=238343,uid=0
Memory cgroup out of memory: Killed process 238343 (go-oom-test) total-vm:4950264kB, anon-rss:204516kB, file-rss:1256kB, shmem-rss:0kB, UID:0 pgtables:488kB oom_score_adj:-997
";
/// Before 5.0.
const OLD_MACHINE: &str = "\
badsysprogram invoked oom-killer: gfp_mask=0x280da, order=0, oom_score_adj=0
badsysprogram cpuset=/ mems_allowed=0
Out of memory: Kill process 1532 (badsysprogram) score 919 or sacrifice child
Killed process 1532 (badsysprogram) total-vm:645660kB, anon-rss:611968kB, file-rss:796kB
";
const OLD_CGROUP: &str = "\
memorymonster invoked oom-killer: gfp_mask=0xd0, order=0, oom_score_adj=0
Task in /mem2 killed as a result of limit of /mem3
Memory cgroup out of memory: Kill process 13536 (memorymonster) score 1003 or sacrifice child
Killed process 13536 (memorymonster) total-vm:1279856kB, anon-rss:1047396kB, file-rss:416kB
";

#[test]
fn the_machines_and_cgroups_kills_are_told_apart() {
    assert_eq!(kills(MACHINE), [kill("stress-ng-vm", 3_103_923, None)]);
    let started = format!("go-oom-test invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL)\n{CGROUP}");
    assert_eq!(kills(&started), [kill("go-oom-test", 238_343, Some("/kubepods/podu"))]);
    assert_eq!(kills(OLD_MACHINE), [kill("badsysprogram", 1532, None)]);
    assert_eq!(kills(OLD_CGROUP), [kill("memorymonster", 13_536, Some("/mem3"))]);
    let all = format!("{MACHINE}{started}{OLD_CGROUP}{MACHINE}");
    assert_eq!(kills(&all).iter().filter_map(Kill::event).count(), 2);
}

#[test]
fn a_kill_whose_report_the_kernel_left_out_is_seen() {
    let last = |text: &str| text.lines().find(|line| line.contains("Killed process")).unwrap().to_owned();
    assert_eq!(kills(&last(MACHINE)), [kill("stress-ng-vm", 3_103_923, None)]);
    assert_eq!(kills(&last(CGROUP)), [kill("go-oom-test", 238_343, Some(""))]);
    assert_eq!(kills(&last(OLD_MACHINE)), [], "of whom, it does not say");
}

#[test]
fn a_group_that_dies_together_is_no_oom_of_the_machine() {
    let group = format!(
        "a invoked oom-killer: x\n{CGROUP}Tasks in /kubepods/podu/c are going to be killed due to memory.oom.group set\n\
         Memory cgroup out of memory: Killed process 7 (sh) total-vm:1kB, anon-rss:0kB\n"
    );
    assert_eq!(kills(&group).iter().filter_map(Kill::event).count(), 0);
    assert_eq!(kills(&group).len(), 2);
}

#[test]
fn the_event_is_the_kubelets() {
    let event = kill("postgres", 1234, None).event();
    assert_eq!(event.as_deref(), Some("System OOM encountered, victim process: postgres, pid: 1234"));
    assert_eq!(kill("postgres", 1234, Some("/x")).event(), None);
}

fn lines() -> impl Strategy<Value = String> {
    let parts: Vec<String> =
        [MACHINE, CGROUP, OLD_MACHINE, OLD_CGROUP].iter().flat_map(|text| text.lines()).map(str::to_owned).collect();
    (prop::sample::select(parts), any::<prop::sample::Index>(), 0_usize..30, ".{0,8}").prop_map(
        |(line, at, length, new)| {
            let from = at.index(line.len());
            format!("{}{new}{}", &line[..from], line.get(from + length..).unwrap_or_default())
        },
    )
}

proptest! {
    #[test]
    fn no_line_upsets_it(lines in prop::collection::vec(prop_oneof![lines(), any::<String>()], 0..40)) {
        let mut follower = OutOfMemory::default();
        for line in &lines {
            if let Some(kill) = follower.take(line) {
                prop_assert!(line.contains("Killed process"));
                prop_assert!(!kill.process.is_empty());
            }
        }
    }

    #[test]
    fn any_name_survives(name in "[ -~]{1,15}", id in any::<u32>()) {
        let line = format!("Out of memory: Killed process {id} ({name}) total-vm:1kB, anon-rss:2kB, file-rss:3kB");
        prop_assert_eq!(kills(&line), [kill(&name, id, None)]);
    }
}
