//! Mounts: which there are below a folder, those of volumes, and taking them away again.
//!
//! Owns reading `/proc/self/mountinfo` and every call of mount(2) and umount(2) but the sub-paths' bind mounts. It must
//! not decide what a mount is for.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use longshore_core::ports::files::FilesError;
use rustix::fs::{AtFlags, CWD, StatVfsMountFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::layout::{At, refuse};

const MOUNTINFO: &str = "/proc/self/mountinfo";
/// How often, and how long apart, a busy mount is tried again before it is detached.
const BUSY_TRIES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// What unmounting what lies on another machine may take, and then letting it go.
const REMOTE: Duration = Duration::from_secs(10);

/// A line of mountinfo, as far as anyone here asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// Type of the file system.
    pub(crate) kind: String,
    /// Options of the file system, comma-separated.
    pub(crate) options: String,
}

/// All mounts in the order in which they were made: later ones lie on top.
pub(crate) fn all() -> Result<Vec<Mount>, FilesError> {
    let text = std::fs::read(MOUNTINFO).at(Path::new(MOUNTINFO))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// Fields 5 (mount point), and type and options after the lone dash (proc_pid_mountinfo(5)).
fn parse(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |n: usize| fields.get(n).map(|field| String::from_utf8_lossy(field).into_owned());
    Some(Mount { point: unescape(fields.get(4)?), kind: text(dash + 1)?, options: text(dash + 3)? })
}

/// Space, tab, newline and backslash are written as octal.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| *byte == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match digits {
            Some(digits) => {
                out.push(digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &tail[3..];
            }
            None => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Whether something is mounted on that very path. Not through mountinfo where the kernel knows it (5.8): with a hundred
/// pods that is long, and reading it stops others from mounting.
pub(crate) fn is_mount(path: &Path) -> Result<bool, FilesError> {
    // What is mounted is not asked: its server may never answer.
    const FLAGS: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT).union(AtFlags::STATX_DONT_SYNC);
    let asked = rustix::fs::statx(CWD, path, FLAGS, StatxFlags::empty());
    match asked {
        Ok(stat) if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        Err(Errno::NOENT) => Ok(false),
        _ => Ok(all()?.iter().any(|mount| mount.point == path)),
    }
}

/// A tmpfs for a memory volume; `group` owns it and what is made in it. As `pkg/volume/emptydir`, with the mode of a
/// tmpfs by default (1777, which is why people see `drwxrwxrwt` there). One that is there already is left alone.
pub(crate) fn tmpfs(path: &Path, size: Option<u64>, group: Option<u32>) -> Result<(), FilesError> {
    if is_mount(path)? {
        return Ok(());
    }
    let mut options = match group {
        Some(gid) => format!("mode=3777,gid={gid}"),
        None => "mode=1777".to_owned(),
    };
    if let Some(size) = size {
        // 0 means "no limit" to tmpfs, which is the opposite of what was asked.
        options.push_str(&format!(",size={}", size.max(1)));
    }
    let mount = |options: &str| {
        let data = CString::new(options).map_err(|_| rustix::io::Errno::INVAL)?;
        rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::empty(), data.as_c_str())
    };
    // From Linux 6.3 on it can be kept out of swap, as secrets should be.
    static KEPT: AtomicBool = AtomicBool::new(true);
    let mounted = match KEPT.load(Ordering::Relaxed) {
        true => mount(&format!("{options},noswap")).or_else(|_| {
            let mounted = mount(&options);
            KEPT.store(mounted.is_err(), Ordering::Relaxed);
            mounted
        }),
        false => mount(&options),
    };
    mounted.map_err(|errno| {
        refuse(path, format!("cannot mount a tmpfs here: {errno}; longshore needs CAP_SYS_ADMIN for it"))
    })
}

/// A hugetlbfs for a volume of huge pages, to write in for everybody as a tmpfs is. One that is there already is left alone.
pub(crate) fn huge_pages(path: &Path, page: u64, group: Option<u32>) -> Result<(), FilesError> {
    if is_mount(path)? {
        return Ok(());
    }
    let group = group.map_or_else(String::new, |gid| format!(",gid={gid}"));
    let data = CString::new(format!("pagesize={page},mode=1777{group}"));
    let data = data.map_err(|_| refuse(path, "hugetlbfs options hold a NUL"))?;
    rustix::mount::mount("nodev", path, "hugetlbfs", MountFlags::empty(), data.as_c_str()).map_err(|errno| {
        let advice = "does the kernel know pages of that size, and has longshore CAP_SYS_ADMIN?";
        refuse(path, format!("cannot mount huge pages of {page} bytes here: {errno}; {advice}"))
    })
}

/// A folder of the node at a folder of the pod, with options of its own. One that is there already only has its options set
/// again: they may not have been when the agent was killed.
pub(crate) fn bind(source: &Path, path: &Path, options: &[String]) -> Result<(), FilesError> {
    let refused = |errno: Errno| {
        let options = options.join(",");
        refuse(path, format!("cannot mount {} here with the options {options}: {errno}", source.display()))
    };
    let flags = MountFlags::BIND | with_options(inherited(source).map_err(refused)?, options);
    if !is_mount(path)? {
        rustix::mount::mount_bind(source, path).map_err(refused)?;
    }
    rustix::mount::mount_remount(path, flags, c"").map_err(refused)
}

/// What a bind mount has of the mount that its folder is on.
fn inherited(source: &Path) -> Result<MountFlags, Errno> {
    let found = rustix::fs::statvfs(source)?.f_flag;
    let same = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ];
    Ok(same.into_iter().filter(|(flag, _)| found.contains(*flag)).map(|(_, flag)| flag).collect())
}

/// The flags with the options of mount(8) that a bind mount can have; the kernel heeds no others there.
fn with_options(mut flags: MountFlags, options: &[String]) -> MountFlags {
    for option in options {
        let (flag, on) = match option.as_str() {
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "noatime" => (MountFlags::NOATIME, true),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "relatime" => (MountFlags::RELATIME, true),
            "strictatime" => (MountFlags::STRICTATIME, true),
            "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
            _ => continue,
        };
        flags.set(flag, on);
    }
    flags
}

/// Unmounts all that is mounted at or below a folder, newest and deepest first. What stays busy is detached: the
/// processes that use it keep it, and nobody new finds it.
pub(crate) fn unmount_below(folder: &Path) -> Result<(), FilesError> {
    // Mounts can be stacked, and hidden ones appear only when those on top are gone.
    for _ in 0..8 {
        let mut mounts: Vec<(usize, Mount)> = all()?
            .into_iter()
            .filter(|mount| mount.point.starts_with(folder))
            .map(|mount| (mount.point.components().count(), mount))
            .collect();
        if mounts.is_empty() {
            return Ok(());
        }
        mounts.reverse();
        mounts.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
        for (_, mount) in mounts {
            match mount.kind.as_str() {
                "nfs" | "nfs4" => unmount_remote(&mount.point, REMOTE, unmount_of)?,
                _ => unmount(&mount.point)?,
            }
        }
    }
    Err(refuse(folder, "mounts below it come back as fast as they are unmounted; see /proc/self/mountinfo"))
}

/// Unmounts what lies on another machine, which may never answer again: then it is let go without it. A call that hangs keeps
/// its thread until the kernel lets it go.
fn unmount_remote(
    point: &Path,
    limit: Duration,
    unmount: fn(&Path, UnmountFlags) -> Result<(), Errno>,
) -> Result<(), FilesError> {
    for flags in [UnmountFlags::empty(), UnmountFlags::FORCE | UnmountFlags::DETACH] {
        let (sender, ended) = std::sync::mpsc::channel();
        let path = point.to_owned();
        std::thread::spawn(move || {
            let _ = sender.send(unmount(&path, flags | UnmountFlags::NOFOLLOW));
        });
        match ended.recv_timeout(limit) {
            Ok(Ok(()) | Err(Errno::INVAL | Errno::NOENT)) => return Ok(()),
            Ok(Err(errno)) => tracing::debug!(path = %point.display(), %errno, "a network mount is not unmounted"),
            Err(_) => {
                tracing::warn!(path = %point.display(), "a network mount does not go: its server does not answer");
            }
        }
    }
    Err(refuse(point, "the network mount cannot be unmounted: its server does not answer"))
}

fn unmount_of(point: &Path, flags: UnmountFlags) -> Result<(), Errno> {
    rustix::mount::unmount(point, flags)
}

/// Unmounts one mount. That there is none is no error.
pub(crate) fn unmount(point: &Path) -> Result<(), FilesError> {
    for attempt in 0..BUSY_TRIES {
        match rustix::mount::unmount(point, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if attempt + 1 < BUSY_TRIES => std::thread::sleep(BUSY_PAUSE),
            Err(Errno::BUSY) => break,
            Err(errno) => return Err(refuse(point, format!("cannot be unmounted: {errno}"))),
        }
    }
    tracing::warn!(path = %point.display(), "mount is still in use by a process of the node; detaching it");
    match rustix::mount::unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(refuse(point, format!("is busy and cannot be detached: {errno}"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_parsed_with_escapes_and_optional_fields() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime shared:3 master:1 - ext3 /dev/root rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!(mount.point, Path::new(r"/mnt 2\x"));
        assert_eq!((mount.kind.as_str(), mount.options.as_str()), ("ext3", "rw,errors=continue"));
        assert_eq!(parse(b""), None);
        assert!(all().unwrap().iter().any(|mount| mount.point == Path::new("/proc")));
    }

    #[test]
    fn huge_pages_are_mounted_once_where_the_kernel_knows_them() {
        if !Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        huge_pages(&path, 2 << 20, Some(4321)).unwrap();
        huge_pages(&path, 2 << 20, Some(4321)).unwrap();
        let found: Vec<Mount> = all().unwrap().into_iter().filter(|mount| mount.point == path).collect();
        let stat = std::fs::metadata(&path).unwrap();
        unmount_below(&path).unwrap();
        assert!(
            found.len() == 1 && found[0].kind == "hugetlbfs" && found[0].options.contains("pagesize=2M"),
            "{found:?}"
        );
        use std::os::unix::fs::MetadataExt;
        assert_eq!((stat.gid(), stat.mode() & 0o1777), (4321, 0o1777));
        assert!(huge_pages(&path, 3 << 20, None).is_err());
    }

    #[test]
    fn a_tmpfs_is_mounted_once_with_its_size_and_group() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("a b");
        std::fs::create_dir(&path).unwrap();
        tmpfs(&path, Some(1 << 20), Some(4321)).unwrap();
        std::fs::write(path.join("kept"), "x").unwrap();
        tmpfs(&path, Some(1 << 20), Some(4321)).unwrap();
        let count = all().unwrap().iter().filter(|mount| mount.point == path).count();
        let meta = std::fs::metadata(&path).unwrap();
        let full = std::fs::write(path.join("big"), vec![0; 2 << 20]);
        unmount_below(dir.path()).unwrap();
        assert_eq!(count, 1);
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), 4321);
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&meta) & 0o7777, 0o3777);
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        assert!(!is_mount(&path).unwrap());
    }

    #[test]
    fn a_server_that_does_not_answer_is_not_waited_for() {
        let limit = Duration::from_secs(1);
        // The first call hangs for longer than this test, as one to a dead server does.
        let hangs = |_: &Path, flags: UnmountFlags| {
            if !flags.contains(UnmountFlags::DETACH) {
                std::thread::sleep(Duration::from_secs(3600));
            }
            Ok(())
        };
        assert!(unmount_remote(Path::new("/x"), limit, hangs).is_ok());
        let stuck = |_: &Path, _: UnmountFlags| {
            std::thread::sleep(Duration::from_secs(3600));
            Ok(())
        };
        assert!(unmount_remote(Path::new("/x"), limit, stuck).unwrap_err().to_string().contains("does not answer"));
        assert!(unmount_remote(Path::new("/x"), limit, |_, _| Err(Errno::BUSY)).is_err());
        assert!(unmount_remote(Path::new("/x"), limit, |_, _| Err(Errno::INVAL)).is_ok(), "nothing is there");
    }

    #[test]
    fn stacked_busy_and_nested_mounts_all_go() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let outer = base.join("outer");
        std::fs::create_dir(&outer).unwrap();
        for _ in 0..3 {
            rustix::mount::mount("tmpfs", &outer, "tmpfs", MountFlags::empty(), c"size=64k").unwrap();
        }
        std::fs::create_dir(outer.join("in")).unwrap();
        rustix::mount::mount("tmpfs", outer.join("in"), "tmpfs", MountFlags::empty(), c"size=64k").unwrap();
        let _open = std::fs::File::create(outer.join("in/held")).unwrap();
        unmount_below(&base).unwrap();
        assert!(!is_mount(&outer).unwrap());
        assert!(!outer.join("in").exists());
    }
}
