//! Whether what goes between the containers of one bridge passes the packet filter. A Service needs that: its rules
//! (kube-proxy's) give a packet another destination, and the answer must come back through them. From 27.3 on Docker turns it
//! on for some settings of its own only.

use std::io::ErrorKind;
use std::path::Path;

use super::{Failure, run};

/// Where the kernel keeps it, once the module is loaded or built in.
const SETTINGS: &str = "/proc/sys/net/bridge";
/// One for each family.
const NAMES: [&str; 2] = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"];
const MODULE: &str = "br_netfilter";

/// Turns it on where it is not.
pub(crate) async fn turn_on() -> Result<(), String> {
    turn_on_in(Path::new(SETTINGS), "modprobe").await
}

async fn turn_on_in(folder: &Path, modprobe: &str) -> Result<(), String> {
    if !folder.exists() {
        let loaded = run(modprobe, &[MODULE], "").await;
        if !folder.exists() {
            let why = match loaded {
                Ok(_) => format!("though {modprobe} {MODULE} found nothing wrong"),
                Err(Failure::Absent) => format!("and {modprobe} is not there to load the kernel's module {MODULE}"),
                Err(Failure::Busy(message) | Failure::Other(message)) => format!("and {message}"),
            };
            return Err(format!("{} does not exist, {why}", folder.display()));
        }
    }
    // One that fails keeps the other from nothing.
    NAMES.map(|name| set(&folder.join(name))).into_iter().collect()
}

/// A file that is not there is a family that the kernel does not have.
fn set(file: &Path) -> Result<(), String> {
    match std::fs::read_to_string(file) {
        Ok(found) if found.trim() == "1" => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    std::fs::write(file, "1").map_err(|error| format!("{} cannot be set to 1: {error}", file.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_families_are_turned_on_where_they_are_off() {
        let folder = tempfile::tempdir().unwrap();
        let [ipv4, ipv6] = NAMES.map(|name| folder.path().join(name));
        std::fs::write(&ipv4, "0\n").unwrap();
        assert_eq!(turn_on_in(folder.path(), "/absent/modprobe").await, Ok(()), "no module is missing");
        assert_eq!(std::fs::read_to_string(&ipv4).unwrap(), "1");
        assert!(!ipv6.exists(), "what the kernel does not have is not made");
        std::fs::write(&ipv4, "1\n").unwrap();
        std::fs::write(&ipv6, "0\n").unwrap();
        assert_eq!(turn_on_in(folder.path(), "/absent/modprobe").await, Ok(()));
        let values = [ipv4, ipv6].map(|file| std::fs::read_to_string(file).unwrap());
        assert_eq!(values, ["1\n", "1"], "what is on already is left alone");
    }

    #[tokio::test]
    async fn a_module_that_is_not_to_be_had_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("bridge");
        for (modprobe, why) in [("/absent/m", "is not there"), ("true", "nothing wrong"), ("false", "false br")] {
            let error = turn_on_in(&absent, modprobe).await.unwrap_err();
            assert!(error.contains("bridge does not exist") && error.contains(why), "{error}");
        }
        let unwritable = folder.path().join(NAMES[0]);
        std::fs::create_dir(&unwritable).unwrap();
        let error = turn_on_in(folder.path(), "true").await.unwrap_err();
        assert!(error.contains("cannot be set to 1"), "{error}");
    }
}
