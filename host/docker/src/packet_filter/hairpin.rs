//! Whether a bridge sends a packet back out of the port that it came in by. Once what is bridged passes the packet filter, a
//! pod needs that to reach itself through a Service of its own: the rules lead the packet back to where it came from.

use std::path::Path;

/// Where the kernel has network devices.
pub(crate) const DEVICES: &str = "/sys/class/net";

/// Turns it on at all ports of a bridge. Blocks for a moment. One that fails keeps the others from nothing. A bridge that is
/// not there is in another namespace, as a rootless Docker's, and not ours to set.
pub(crate) fn turn_on(devices: &Path, bridge: &str) -> Result<(), String> {
    if !devices.join(bridge).exists() {
        return Ok(());
    }
    let folder = devices.join(bridge).join("brif");
    let ports = std::fs::read_dir(&folder).map_err(|error| format!("{} cannot be read: {error}", folder.display()))?;
    ports.flatten().map(|port| set(&port.path().join("hairpin_mode"))).fold(Ok(()), Result::and)
}

fn set(file: &Path) -> Result<(), String> {
    if std::fs::read_to_string(file).is_ok_and(|found| found.trim() == "1") {
        return Ok(());
    }
    match std::fs::write(file, "1") {
        // A port whose pod ended meanwhile.
        Err(_) if !file.exists() => Ok(()),
        written => written.map_err(|error| format!("{} cannot be set to 1: {error}", file.display())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_ports_of_the_bridge_are_turned_on() {
        let devices = tempfile::tempdir().unwrap();
        let mode = |bridge: &str, port: &str| devices.path().join(format!("{bridge}/brif/{port}/hairpin_mode"));
        for (bridge, port) in [("br-1", "a"), ("br-1", "b"), ("br-1", "c"), ("br-2", "a")] {
            std::fs::create_dir_all(mode(bridge, port).parent().unwrap()).unwrap();
            std::fs::write(mode(bridge, port), if port == "c" { "1\n" } else { "0\n" }).unwrap();
        }
        assert_eq!(turn_on(devices.path(), "br-1"), Ok(()));
        let read = |bridge: &str, port: &str| std::fs::read_to_string(mode(bridge, port)).unwrap();
        assert_eq!([read("br-1", "a"), read("br-1", "b"), read("br-1", "c")], ["1", "1", "1\n"]);
        assert_eq!(read("br-2", "a"), "0\n", "another's is left alone");
        std::fs::remove_file(mode("br-1", "a")).unwrap();
        std::fs::create_dir(mode("br-1", "a")).unwrap();
        assert!(turn_on(devices.path(), "br-1").unwrap_err().contains("cannot be set to 1"));
        assert_eq!(turn_on(devices.path(), "absent"), Ok(()));
        std::fs::create_dir(devices.path().join("none")).unwrap();
        assert!(turn_on(devices.path(), "none").unwrap_err().contains("none/brif cannot be read"));
    }
}
