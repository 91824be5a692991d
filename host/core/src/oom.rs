//! Processes that the kernel killed for want of memory, from its own messages.
//!
//! As `utils/oomparser` of cAdvisor, which the kubelet's OOM watcher reads; but by the last line of a report alone where
//! that says enough, since the kernel leaves the others out when many processes are killed at once.

/// Lines after the first in which a report must end: the kernel lists every process of the machine in between.
const LONGEST: u32 = 100_000;

/// A process that was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Its name, at most 15 bytes, as the kernel has it.
    pub process: String,
    /// Its ID in the machine's own namespace.
    pub id: u32,
    /// The cgroup whose limit was met; `None` when the machine itself had no memory left.
    pub cgroup: Option<String>,
}

impl Kill {
    /// The kubelet's event `SystemOOM` of the node (`pkg/kubelet/oom/oom_watcher_linux.go`); there is none when only a
    /// cgroup's limit was met.
    pub fn event(&self) -> Option<String> {
        let Kill { process, id, cgroup } = self;
        cgroup.is_none().then(|| format!("System OOM encountered, victim process: {process}, pid: {id}"))
    }
}

/// Follows the kernel's messages.
#[derive(Clone, Debug, Default)]
pub struct OutOfMemory {
    report: Option<Report>,
}

#[derive(Clone, Debug, Default)]
struct Report {
    cgroup: Option<String>,
    lines: u32,
}

impl OutOfMemory {
    /// Takes the next message: its first line, without priority and time.
    pub fn take(&mut self, message: &str) -> Option<Kill> {
        if message.contains("invoked oom-killer:") {
            self.report = Some(Report::default());
            return None;
        }
        if let Some(report) = &mut self.report {
            report.lines += 1;
            if let Some(cgroup) = limit(message) {
                report.cgroup = Some(cgroup.to_owned());
            }
            if report.lines > LONGEST {
                self.report = None;
            }
        }
        let (before, process, id) = killed(message)?;
        let report = self.report.take();
        let cgroup = if before.starts_with("Out of memory") {
            None
        } else if before.starts_with("Memory cgroup out of memory") {
            Some(report.and_then(|report| report.cgroup).unwrap_or_default())
        } else {
            // Before Linux 5.0 the last line says nothing of whose memory it was.
            report?.cgroup
        };
        Some(Kill { process: process.to_owned(), id, cgroup })
    }
}

/// The cgroup whose limit was met: `oom-kill:…,oom_memcg=/a,task_memcg=/b,…`, or before 5.0 `Task in /b killed as a
/// result of limit of /a`.
fn limit(message: &str) -> Option<&str> {
    if let Some((_, rest)) = message.split_once("killed as a result of limit of ") {
        return Some(rest.trim_end());
    }
    let rest = message.strip_prefix("oom-kill:")?;
    let (_, rest) = rest.split_once(",oom_memcg=")?;
    rest.split_once(",task_memcg=").map(|(cgroup, _)| cgroup)
}

/// `…Killed process 123 (name)…`: what stands before it, name and ID. A name may hold brackets itself.
fn killed(message: &str) -> Option<(&str, &str, u32)> {
    let (before, rest) = message.split_once("Killed process ")?;
    let (id, rest) = rest.split_once(" (")?;
    let end = rest.rfind(") total-vm:").or_else(|| rest.rfind("), ")).or_else(|| rest.rfind(')'))?;
    let name = rest.get(..end).filter(|name| !name.is_empty())?;
    Some((before, name, id.parse().ok()?))
}

#[cfg(test)]
#[path = "oom_tests.rs"]
mod tests;
