//! Who a container's first process runs as, from the kernel: Docker knows only what an image or a pod asked for.

use longshore_core::observed::User;

use crate::exec::is_in_container;

/// `None` when the process is not to be seen from here, or is not the container's: process IDs are used again, and an
/// agent in a container of its own sees others.
pub(crate) fn of(pid: u32, id: &str) -> Option<User> {
    let status = std::fs::read(format!("/proc/{pid}/status")).ok()?;
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    if is_in_container(&cgroups, id) { parse(&status) } else { None }
}

/// What `/proc/<pid>/status` says. The process' name, in its first line, is any bytes.
fn parse(status: &[u8]) -> Option<User> {
    let status = String::from_utf8_lossy(status);
    let numbers = |field: &str| -> Option<Vec<i64>> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_whitespace().map(|number| number.parse().ok()).collect()
    };
    Some(User {
        uid: *numbers("Uid:")?.first()?,
        gid: *numbers("Gid:")?.first()?,
        groups: numbers("Groups:").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_kernel_writes_it() {
        let status = b"Name:\t\xff\nUid:\t1000\t1000\t1000\t1000\nGid:\t7\t7\t7\t7\nGroups:\t7 50000 \n";
        assert_eq!(parse(status), Some(User { uid: 1000, gid: 7, groups: vec![7, 50000] }));
        assert_eq!(parse(b"Uid:\tx\n"), None);
        assert_eq!(of(std::process::id(), "0123456789abcdef"), None, "this process is no container's");
    }
}
