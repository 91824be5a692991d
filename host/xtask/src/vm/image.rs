//! The machine's disk, kernel and key: made once with debootstrap, kept in the cache. Must not start anything.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt,
    place::{self, Place},
    process, say,
};

/// Part of the image's name: to be raised when what goes into it changes.
const REVISION: u32 = 1;
const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
const KERNEL: &str = "linux-image-cloud-amd64";
const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,initramfs-tools,iproute2,iptables,ca-certificates,docker.io,\
                        apparmor,openssh-server,procps";
const LIMIT: Duration = Duration::from_secs(900);

/// A machine that can be booted.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Where all of it is.
    pub folder: PathBuf,
}

impl Image {
    pub(super) fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }
    pub(super) fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }
    pub(super) fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }
    pub(super) fn key(&self) -> PathBuf {
        self.folder.join("key")
    }
}

/// The image from the cache, made there first when it is missing (about two minutes).
///
/// # Errors
/// When this is no Debian or Ubuntu on x86-64, we are not root, or a step fails.
pub(crate) fn ensure(place: &Place) -> Result<Image> {
    let folder = place.cache.join(format!("vm-{SUITE}-{REVISION}"));
    let image = Image { folder: folder.clone() };
    if folder.is_dir() {
        programs()?;
        return Ok(image);
    }
    if !cfg!(target_arch = "x86_64") {
        bail!("the emulated machine is x86-64, made from this machine's own packages");
    }
    if !place::is_root() || !place::has_apt() {
        bail!("making the disk image needs root and apt (Debian, Ubuntu)");
    }
    programs()?;
    say!("making the virtual machine's disk in {} (two or three minutes, once)", folder.display());
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    let root = partial.join("root");
    let log = place.fresh_log("vm-image")?;
    let run = |name: &str, command: &mut Command| {
        if process::logged(name, command, &log, LIMIT)? {
            return Ok(());
        }
        bail!("{name} failed; {} ends:\n{}", log.display(), say::tail(&fs::read_to_string(&log)?, 15))
    };
    run(
        "debootstrap",
        Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE])
            .arg(&root)
            .arg(MIRROR),
    )?;
    kernel(&partial, &root, &run)?;
    configure(&partial, &root, &run)?;
    run(
        "mke2fs",
        Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(partial.join("disk.img")).arg("8G"),
    )?;
    fs::remove_dir_all(&root)?;
    fs::rename(&partial, &folder).with_context(|| format!("{}", folder.display()))?;
    Ok(image)
}

fn programs() -> Result<()> {
    let needed = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("debootstrap", "debootstrap"),
        ("mke2fs", "e2fsprogs"),
        ("ssh", "openssh-client"),
        ("strip", "binutils"),
    ];
    let missing: Vec<&str> =
        needed.iter().filter(|(program, _)| process::on_path(program).is_none()).map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { apt::install(&missing, "the virtual machine") }
}

/// Unpacks Debian's cloud kernel into the root, and takes the kernel and a small initrd out of it.
fn kernel(partial: &Path, root: &Path, run: &impl Fn(&str, &mut Command) -> Result<()>) -> Result<()> {
    let depends =
        process::output("apt-cache", Command::new("apt-cache").args(["depends", KERNEL]), Duration::from_secs(30))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: ").filter(|it| it.starts_with("linux-image-")));
    let package = package.with_context(|| format!("apt knows no kernel behind {KERNEL}: is this Debian {SUITE}?"))?;
    let packages = partial.join("packages");
    fs::create_dir_all(&packages)?;
    apt::download(&packages, &[package])?;
    for deb in apt::debs(&packages)? {
        run("dpkg -x", Command::new("dpkg").arg("-x").arg(deb).arg(partial.join("kernel")))?;
    }
    let version = fs::read_dir(partial.join("kernel/lib/modules"))?
        .next()
        .context("a kernel package without modules")??
        .file_name()
        .to_string_lossy()
        .into_owned();
    fs::create_dir_all(root.join("lib/modules"))?;
    run(
        "cp",
        Command::new("cp")
            .arg("-a")
            .arg(partial.join("kernel/lib/modules").join(&version))
            .arg(root.join("lib/modules")),
    )?;
    fs::copy(partial.join(format!("kernel/boot/config-{version}")), root.join(format!("boot/config-{version}")))?;
    run("depmod", Command::new("chroot").arg(root).args(["depmod", "-a", &version]))?;
    // Only what the root disk needs: an initrd with every driver takes long to unpack under emulation.
    fs::write(root.join("etc/initramfs-tools/modules"), "virtio_pci\nvirtio_blk\nvirtio_net\next4\ncrc32c_generic\n")?;
    fs::write(root.join("etc/initramfs-tools/conf.d/small"), "MODULES=list\nCOMPRESS=gzip\n")?;
    run("mkinitramfs", Command::new("chroot").arg(root).args(["mkinitramfs", "-o", "/boot/initrd", &version]))?;
    fs::rename(root.join("boot/initrd"), partial.join("initrd"))?;
    fs::copy(partial.join(format!("kernel/boot/vmlinuz-{version}")), partial.join("vmlinuz"))?;
    fs::remove_dir_all(partial.join("kernel"))?;
    fs::remove_dir_all(packages)?;
    Ok(())
}

fn configure(partial: &Path, root: &Path, run: &impl Fn(&str, &mut Command) -> Result<()>) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let key = partial.join("key");
    run("ssh-keygen", Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
    let ssh = root.join("root/.ssh");
    fs::create_dir_all(&ssh)?;
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o700))?;
    fs::copy(key.with_extension("pub"), ssh.join("authorized_keys"))?;
    fs::set_permissions(ssh.join("authorized_keys"), fs::Permissions::from_mode(0o600))?;
    fs::write(root.join("etc/fstab"), "/dev/vda / ext4 defaults,noatime 0 1\n/dev/vdb /payload ext4 ro,nofail 0 0\n")?;
    fs::create_dir_all(root.join("payload"))?;
    fs::write(root.join("etc/hostname"), "longshore-vm\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 longshore-vm\n")?;
    fs::write(root.join("etc/systemd/network/10-all.network"), "[Match]\nName=e*\n[Network]\nDHCP=ipv4\n")?;
    let enable = ["enable", "systemd-networkd", "ssh", "docker", "apparmor"];
    run("systemctl enable", Command::new("systemctl").arg("--root").arg(root).args(enable))?;
    for unit in
        ["apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer", "dpkg-db-backup.timer"]
    {
        let _ = symlink("/dev/null", root.join("etc/systemd/system").join(unit));
    }
    Ok(())
}

/// Copies a program without its debug information, which is most of it.
pub(super) fn copy_stripped(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("strip");
    command.arg("--strip-debug").arg("-o").arg(to).arg(from);
    process::output("strip", &mut command, Duration::from_secs(120)).map(drop)
}
