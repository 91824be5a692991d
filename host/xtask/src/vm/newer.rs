//! The emulated machine with Docker 29 in the place of Debian's: on cgroup v2 with systemd's driver, which is what most users will
//! have. Must not leave it so.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::{
    checks,
    machine::{LONG, Machine, SHORT},
};

/// Where its programs are in the payload.
const FOLDER: &str = "docker-29";

/// Its service until the next boot. Its data is apart from that of Debian's, whose kind of store it would have to keep.
const UNIT: &str = "\
[Unit]
Description=Docker 29
After=network.target

[Service]
Type=notify
Environment=PATH=/payload/docker-29:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=/payload/docker-29/dockerd --data-root /var/lib/docker-29 --exec-opt native.cgroupdriver=systemd \
-H unix:///run/docker.sock
TimeoutStartSec=200
Delegate=yes
KillMode=process
OOMScoreAdjust=-500
LimitNOFILE=infinity
TasksMax=infinity
";

/// It would take a containerd that runs for its own, so Debian's goes, too.
const WITHOUT_DEBIANS: &str = "systemctl stop longshore; systemctl stop docker.socket docker containerd && \
                               rm -f /run/containerd/containerd.sock && ! pgrep -x dockerd";

/// Puts its programs into the payload.
///
/// # Errors
/// When one cannot be copied.
pub(super) fn pack(programs: &Path, payload: &Path) -> Result<()> {
    let folder = payload.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    for entry in fs::read_dir(programs).with_context(|| format!("{}", programs.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), folder.join(entry.file_name()))
            .with_context(|| format!("{}", entry.path().display()))?;
    }
    Ok(())
}

/// Does something with it; Debian's comes back with another boot.
///
/// # Errors
/// When it does not start, what was done failed, or the machine does not come back.
pub(super) fn with<T>(machine: &Machine, check: impl FnOnce() -> Result<T>) -> Result<T> {
    let checked = start(machine).and_then(|()| check());
    let back = machine.reboot().and_then(|()| machine.until(checks::ANSWERS, LONG));
    let checked = checked?;
    back.map(|_| checked)
}

fn start(machine: &Machine) -> Result<()> {
    machine.run(WITHOUT_DEBIANS, LONG)?;
    let script = format!(
        "cat > /run/systemd/system/docker-29.service <<'END'\n{UNIT}END\nsystemctl daemon-reload && \
         systemctl start docker-29 || {{ journalctl -u docker-29 -n 40 --no-pager -o cat >&2; exit 1; }}"
    );
    machine.run(&script, LONG)?;
    let said = machine.run("docker info --format '{{.ServerVersion}} {{.CgroupDriver}} {{.CgroupVersion}}'", SHORT)?;
    ensure!(
        said.starts_with("29.") && said.trim_end().ends_with(" systemd 2"),
        "this is not Docker 29 with systemd's driver on cgroup v2: {said}"
    );
    checks::import_images(machine)
}
