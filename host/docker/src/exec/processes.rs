//! Killing what an exec started. Docker has no call for it: the processes are sought in `/proc`.
//!
//! An exec's processes are those of its command's session, those that carry its mark in their environment (it is inherited), those
//! that write to the pipes which it got for its output, and all that descends from these. Children that made a session of their own
//! are found so, also when their parents are gone and the container's PID 1 has adopted them. A process that the container's own
//! command started is none of these, and never touched; nor is one that is older than the exec. What has left the session, cleared
//! its environment, lost its parent and let go of the output before the time was over is told by nothing from the container's own,
//! and lives on. So does one that kept the output, when nothing else of the exec lives by then: Docker does not tell which pipes
//! it made for an exec, and all that its shim reads from and nothing older holds may as well be those of another exec, whose
//! daemon is not to be killed. Docker drops an exec from its container's list two seconds after the command ended, so that does
//! not tell either; and a look at each command as it begins would come too late for one that ends at once.
//!
//! All are stopped before the first is killed: a parent that ran on could fork what nothing but its own life tells.
//!
//! A process is killed through a pidfd, after its cgroup and its start were read while that pidfd held its number, so
//! that no stranger who got the number meanwhile is hit. The cgroup has to be the container's: a path with the
//! container's ID in it, which both versions and both drivers have. It must not talk to the daemon.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};

/// Rounds of looking and killing: a process may fork between the two.
const ROUNDS: usize = 100;

/// The variable that holds the mark.
const VARIABLE: &str = "LONGSHORE_EXEC";

/// Rounds of looking and stopping; what is forked by a process that is not known yet wants one more.
const STOPS: usize = 20;

/// How long a process that was told to stop is waited for, in all rounds of a kill together: one that waits for a disk comes later.
const STOPPING: Duration = Duration::from_millis(200);

/// Descriptors of a process that are looked at.
const MAX_DESCRIPTORS: usize = 4096;

/// Bytes of an environment that are looked through. The kernel allows a quarter of the stack's limit, which is 8 MiB as a rule.
const MAX_ENVIRONMENT: u64 = 8 << 20;

/// An environment variable that no other exec has.
fn mark() -> String {
    static EXECS: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{VARIABLE}={}.{since}.{}", std::process::id(), EXECS.fetch_add(1, Ordering::Relaxed))
}

/// What is to be killed.
#[derive(Clone, Debug)]
pub(super) struct Prey {
    /// The command's process ID, which is its session's as well; absent where Docker told none.
    pub(super) session: Option<i32>,
    /// The variable that the command got.
    pub(super) mark: String,
    /// ID of the container.
    pub(super) container: String,
    /// When the exec was made, at the latest, in the kernel's ticks since boot. What is older is not looked at.
    since: u64,
}

/// What was found of an exec so far.
#[derive(Debug, Default)]
struct Known {
    /// Its processes, and sessions that it made, also when they are gone.
    pids: HashSet<i32>,
    /// The pipes that its processes write to, as links in `/proc` name them.
    outputs: HashSet<PathBuf>,
}

/// What is looked at of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pid: i32,
    parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// The group in the foreground of its terminal.
    pub(crate) foreground: i32,
    /// When it started, in the kernel's ticks.
    start: u64,
    /// More than a zombie, which only waits for its parent.
    alive: bool,
}

impl Prey {
    /// Of an exec that is about to be made in a container.
    pub(super) fn of(container: &str) -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
        let ticks = clock_ticks_per_second();
        let since = seconds.unwrap_or_default() * ticks + nanoseconds.unwrap_or_default() * ticks / 1_000_000_000;
        // The kernel rounds down, as this does; one tick for whoever does not.
        Self { session: None, mark: mark(), container: container.to_owned(), since: since.saturating_sub(1) }
    }

    /// Kills all of its processes with SIGKILL, again until none is left. Returns how many were left in the end. Zombies do not
    /// count.
    pub(super) fn kill(&self) -> usize {
        let mut known = Known { pids: HashSet::from_iter(self.session), ..Known::default() };
        let (mut left, mut quiet) = (0, 0);
        let patience = Instant::now() + STOPPING;
        for round in 0..ROUNDS {
            let found = self.hold(&mut known, patience);
            left = found.iter().filter(|process| self.signal(process, Signal::KILL)).count();
            // A process that was forked while `/proc` was read may have been missed, and one that becomes another program has no
            // environment for a moment: two quiet rounds are wanted, some time apart.
            quiet = if left == 0 { quiet + 1 } else { 0 };
            if quiet == 2 {
                return 0;
            }
            if round > 0 || left == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        left
    }

    /// Finds its processes and stops them, until there are no more that run.
    fn hold(&self, known: &mut Known, patience: Instant) -> Vec<Process> {
        let mut told = HashSet::new();
        for _ in 0..STOPS {
            let found = self.find(known);
            let new: Vec<&Process> = found.iter().filter(|process| told.insert((process.pid, process.start))).collect();
            if new.is_empty() {
                return found;
            }
            for process in &new {
                self.signal(process, Signal::STOP);
            }
            while new.iter().any(|process| runs(process.pid)) && Instant::now() < patience {
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.find(known)
    }

    fn find(&self, known: &mut Known) -> Vec<Process> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let (new, old): (Vec<Process>, Vec<Process>) = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(read)
            .filter(|process| process.alive)
            .partition(|process| process.start >= self.since);
        let new: Vec<Process> = new.into_iter().filter(|process| is_of(process.pid, &self.container)).collect();
        for process in &new {
            if self.session != Some(process.session) && is_marked(process.pid, &self.mark) {
                known.pids.insert(process.pid);
            }
        }
        let found = descend(&new, &mut known.pids);
        known.outputs.extend(found.iter().flat_map(|process| outputs(process.pid)));
        let is_known = |output: &PathBuf| known.outputs.contains(output);
        let mut sharing: Vec<i32> = new.iter().map(|process| process.pid).collect();
        sharing.retain(|pid| !known.pids.contains(pid) && outputs(*pid).any(|output| is_known(&output)));
        if sharing.is_empty() {
            return found;
        }
        // A command may have turned to an output of the container's own (`>/proc/1/fd/1`): whoever is older than the exec has that too.
        for process in old.iter().filter(|process| is_of(process.pid, &self.container)) {
            for held in descriptors(process.pid) {
                known.outputs.remove(&held);
            }
        }
        let outputs_left = &known.outputs;
        sharing.retain(|pid| outputs(*pid).any(|output| outputs_left.contains(&output)));
        known.pids.extend(sharing);
        descend(&new, &mut known.pids)
    }

    /// Whether it was alive, and the one that was found.
    fn signal(&self, process: &Process, signal: Signal) -> bool {
        tell(process.pid, &self.container, &[signal], |now| now.alive && now.start == process.start)
    }
}

/// Sends signals to a process of a container; whether it was still the one that is meant.
pub(crate) fn tell(pid: i32, container: &str, signals: &[Signal], is_meant: impl Fn(&Process) -> bool) -> bool {
    let Some(number) = Pid::from_raw(pid) else { return false };
    let Ok(handle) = pidfd_open(number, PidfdFlags::empty()) else { return false };
    // From here on the number is not given to anybody else while the handle is good.
    if !read(pid).is_some_and(|now| is_meant(&now)) || !is_of(pid, container) {
        return false;
    }
    signals.iter().all(|signal| pidfd_send_signal(&handle, *signal).is_ok())
}

/// Those that are known, that are in a session which one of these leads, or that descend from such. `known` keeps what is found,
/// since a leader that is gone still names its session: its number is not given to another while the session has a member.
fn descend(processes: &[Process], known: &mut HashSet<i32>) -> Vec<Process> {
    let mut rest: HashMap<i32, Process> = processes.iter().map(|process| (process.pid, *process)).collect();
    let mut found = Vec::new();
    loop {
        let next: Vec<Process> = rest
            .values()
            .filter(|process| [process.pid, process.parent, process.session].iter().any(|pid| known.contains(pid)))
            .copied()
            .collect();
        if next.is_empty() {
            return found;
        }
        for process in next {
            rest.remove(&process.pid);
            known.insert(process.pid);
            found.push(process);
        }
    }
}

/// Looks at a process.
pub(crate) fn read(pid: i32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse(pid, &String::from_utf8_lossy(&stat))
}

/// Reads a line of `/proc/PID/stat`.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    // The second field is the command's name in parentheses, which may hold anything.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    let foreground = fields.nth(1)?.parse().ok()?;
    // The 22nd of all.
    let start = fields.nth(13)?.parse().ok()?;
    Some(Process { pid, parent, group, session, foreground, start, alive: !matches!(state, "Z" | "X" | "x") })
}

/// Whether any thread of a process may still fork.
fn runs(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let states = threads.flatten().filter_map(|thread| fs::read(thread.path().join("stat")).ok());
    states.map(|stat| String::from_utf8_lossy(&stat).into_owned()).any(|stat| {
        let state = stat.rfind(')').and_then(|end| stat[end + 1..].split_ascii_whitespace().next());
        !matches!(state, Some("T" | "t" | "Z" | "X" | "x"))
    })
}

/// The pipes that a process has for its output.
fn outputs(pid: i32) -> impl Iterator<Item = PathBuf> {
    let links = [1, 2].into_iter().filter_map(move |number| fs::read_link(format!("/proc/{pid}/fd/{number}")).ok());
    links.filter(|link| link.as_os_str().as_encoded_bytes().starts_with(b"pipe:"))
}

/// Whatever a process has open.
fn descriptors(pid: i32) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.take(MAX_DESCRIPTORS).filter_map(|entry| fs::read_link(entry.path()).ok())
}

fn is_of(pid: i32, container: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| is_in_container(&text, container))
}

fn is_marked(pid: i32, mark: &str) -> bool {
    let mut environment = Vec::new();
    File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(MAX_ENVIRONMENT).read_to_end(&mut environment))
        .is_ok_and(|_| environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()))
}

/// Whether a `/proc/PID/cgroup` is of a container: `…/<id>…` with cgroupfs, `…/docker-<id>.scope…` with systemd.
pub(crate) fn is_in_container(cgroups: &str, id: &str) -> bool {
    id.len() >= 12
        && cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| {
            path.split('/').any(|part| {
                let part = part.strip_suffix(".scope").unwrap_or(part);
                part == id || part.rsplit_once('-').is_some_and(|(_, rest)| rest == id)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, session: i32) -> Process {
        Process { pid, parent, group: pid, session, foreground: -1, start: 0, alive: true }
    }

    #[test]
    fn lines_of_stat() {
        let rest = "34816 15 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 9";
        let read = parse(12, &format!("12 (a) b) S 3 12 7 {rest}"));
        let seen = Process { pid: 12, parent: 3, group: 12, session: 7, foreground: 15, start: 4711, alive: true };
        assert_eq!(read, Some(seen));
        assert!(parse(12, &format!("12 (a) Z 3 12 7 {rest}")).is_some_and(|process| !process.alive));
        assert_eq!(parse(12, "12 (a) S 1 12 7"), None);
        assert_eq!(parse(12, ""), None);
    }

    #[test]
    fn descent() {
        // 1 is the container's own and has children in sessions of their own; 10 is the exec's command.
        let processes = [
            process(1, 0, 1),
            process(2, 1, 1),
            process(3, 1, 3),
            process(10, 0, 10),
            process(11, 10, 10),
            process(12, 1, 10),
            process(20, 11, 20),
            process(21, 20, 20),
            process(30, 1, 30),
            process(31, 1, 30),
        ];
        let found = |known: &[i32], processes: &[Process]| {
            let mut known = HashSet::from_iter(known.iter().copied());
            let mut pids: Vec<i32> = descend(processes, &mut known).iter().map(|process| process.pid).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(found(&[10], &processes), [10, 11, 12, 20, 21]);
        // With a mark on an orphan, and with a leader that is gone.
        assert_eq!(found(&[30], &processes), [30, 31]);
        assert_eq!(found(&[30], &processes[9..]), [31]);
        assert_eq!(found(&[], &processes), Vec::<i32>::new());
        assert_eq!(found(&[99], &processes), Vec::<i32>::new());
    }

    #[test]
    fn marks_are_inherited_and_unlike() {
        let (one, other) = (mark(), mark());
        assert_ne!(one, other);
        let (name, value) = one.split_once('=').expect("a variable");
        let mut child = std::process::Command::new("sleep").arg("100").env(name, value).spawn().expect("sleep");
        let pid = i32::try_from(child.id()).expect("a process ID");
        // It is there a moment before its environment is.
        let end = Instant::now() + Duration::from_secs(10);
        while !is_marked(pid, &one) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        let seen = (is_marked(pid, &one), is_marked(pid, &other));
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
        assert_eq!(seen, (true, false));
    }

    #[test]
    fn what_is_stopped_does_not_run_and_writes_where_it_did() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("sleep");
        let pid = i32::try_from(child.id()).expect("a process ID");
        let (began, written) = (runs(pid), outputs(pid).collect::<Vec<_>>());
        let ours: HashSet<PathBuf> = descriptors(i32::try_from(std::process::id()).expect("an ID")).collect();
        let handle = pidfd_open(Pid::from_raw(pid).expect("an ID"), PidfdFlags::empty()).expect("a child of ours");
        pidfd_send_signal(&handle, Signal::STOP).expect("a child of ours");
        let end = Instant::now() + Duration::from_secs(10);
        while runs(pid) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        let ended = runs(pid);
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
        assert!(began && !ended && !runs(pid), "{began} {ended}");
        assert!(written.len() == 1 && ours.contains(&written[0]), "{written:?}");
    }

    #[test]
    fn what_is_older_than_the_exec_is_told_by_the_kernels_clock() {
        let started = |child: &std::process::Child| read(i32::try_from(child.id()).expect("an ID")).map(|it| it.start);
        let sleep = || std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
        let prey = Prey::of("0123456789abcdef");
        let mut child = sleep();
        let start = started(&child);
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
        // The same clock, and the same ticks: hardly a moment later.
        assert!(
            start.is_some_and(|start| (prey.since..prey.since + 6000).contains(&start)),
            "{start:?} {}",
            prey.since
        );
        assert!(read(1).is_none_or(|first| first.start < prey.since));
    }

    #[test]
    fn cgroups_of_both_versions_and_drivers() {
        let id = "0123456789abcdef";
        for of_it in [
            "12:pids:/docker/0123456789abcdef\n0::/docker/0123456789abcdef\n",
            "0::/system.slice/docker-0123456789abcdef.scope\n",
            "0::/kubepods.slice/kubepods-burstable.slice/docker-0123456789abcdef.scope/init\n",
            "1:name=systemd:/kubepods/podu/0123456789abcdef",
            "0::/../0123456789abcdef",
        ] {
            assert!(is_in_container(of_it, id), "{of_it}");
        }
        for other in ["0::/\n", "0::/docker/0123456789abcdeff\n", "0::/x0123456789abcdef", ""] {
            assert!(!is_in_container(other, id), "{other}");
        }
        assert!(!is_in_container("0::/", ""));
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn our_own_session_is_spared() {
        // Read as the code reads it: `getsid` is 0 where the session's leader is outside of this pid namespace.
        let own = read(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.alive);
        let prey = Prey { session: Some(own.session), since: 0, ..Prey::of(&"f".repeat(64)) };
        assert_eq!(prey.kill(), 0);
    }
}
