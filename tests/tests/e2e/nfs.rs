//! NFS volumes, by a helper that stands in for `mount.nfs`: there is no server to be had here.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};

use crate::bed::{
    Bed,
    pods::{SLEEP, container, pod, sleeper, with},
    until,
};

fn mounting(name: &str, server: &str, read_only: bool) -> Value {
    let app = with(container("app", SLEEP), json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    let nfs = json!({"server": server, "path": "/data", "readOnly": read_only});
    pod(name, json!([app]), json!({"volumes": [{"name": "v", "nfs": nfs}]}))
}

/// An agent with a helper that mounts a tmpfs, fails, or hangs, as the server's name says; and the file of its calls.
fn with_helper() -> Option<(Bed, std::path::PathBuf)> {
    let mut bed = Bed::new()?;
    let (folder, calls) = (bed.folder.join("helpers"), bed.folder.join("calls"));
    fs::create_dir(&folder).unwrap();
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {}\ncase $1 in\nhangs:*) sleep 1000 & wait;;\nrefuses:*) echo access denied by server >&2; exit \
         32;;\nesac\nexec mount -t tmpfs none \"$2\"\n",
        calls.display()
    );
    fs::write(folder.join("mount.nfs"), script).unwrap();
    fs::set_permissions(folder.join("mount.nfs"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    bed.env.push(("PATH".to_owned(), path));
    bed.begin();
    Some((bed, calls))
}

#[test]
fn nfs_volumes_are_mounted_and_go_with_their_pod() {
    let Some((bed, calls)) = with_helper() else { return };
    bed.apply(&mounting("a", "files.example", false));
    bed.apply(&mounting("b", "fd00::1", true));
    let a = bed.wait_ready("a");
    bed.wait_ready("b");
    assert_eq!(bed.exec("a", "app", "echo x > /v/f; cat /v/f"), "x\n");
    let (code, output) = bed.try_exec("b", "app", "echo x > /v/f");
    assert!(code != 0 && output.contains("Read-only"), "{output}");
    let told = fs::read_to_string(&calls).unwrap();
    let place = bed.pod_folder(&a).join("volumes/kubernetes.io~nfs/v");
    assert!(told.contains(&format!("files.example:/data {}\n", place.display())), "{told}");
    assert!(told.contains("[fd00::1]:/data ") && told.contains("/v -o ro\n"), "{told}");
    for name in ["a", "b"] {
        bed.delete(name);
        bed.wait_gone(name);
    }
    until("nothing is mounted", || bed.mounts().is_empty().then_some(()));
    assert_eq!(fs::read_to_string(&calls).unwrap().lines().count(), 2, "mounted once each");
}

#[test]
fn nfs_servers_that_refuse_or_hang_hold_up_nobody_else() {
    let Some((bed, _)) = with_helper() else { return };
    bed.apply(&mounting("hangs", "hangs", false));
    bed.apply(&mounting("refused", "refuses", false));
    bed.wait_event("refused", "FailedMount", "access denied by server");
    bed.apply(&sleeper("good"));
    bed.wait_ready("good");
    assert!(bed.containers("hangs").is_empty() && bed.containers("refused").is_empty());
    bed.wait_event("hangs", "FailedMount", "has not ended within 30 s; is the server there");
    for name in ["hangs", "refused"] {
        bed.delete(name);
    }
    bed.wait_gone("refused");
}

#[test]
fn nfs_without_a_helper_says_what_to_install() {
    if ["/sbin/mount.nfs", "/usr/sbin/mount.nfs"].iter().any(|helper| Path::new(helper).exists()) {
        crate::bed::skip("this machine has mount.nfs");
        return;
    }
    let Some(bed) = Bed::start() else { return };
    bed.apply(&mounting("a", "files.example", false));
    bed.wait_event("a", "FailedMount", "mount.nfs is not installed on this node: install nfs-common");
    bed.delete("a");
    bed.wait_gone("a");
}
