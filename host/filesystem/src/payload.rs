//! Payload volumes: files that change together, as `pkg/volume/util/atomic_writer.go` lays them out.
//!
//! ```text
//! config.yaml     -> ..data/config.yaml         what containers open
//! ..data          -> ..2026_07_24_10_00_00.1f   replaced by rename: the one step in which everything changes
//! ..2026_….1f/    config.yaml                   one complete set, never changed once `..data` names it
//! ```
//!
//! Owns one volume's folder. It must not mount, and it must not know where the content comes from. One writer at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use longshore_core::ports::files::FilesError;
use longshore_core::volume::PayloadFile;
use rustix::fs::{Gid, OFlags};

use crate::layout::{At, refuse};
use crate::{ownership, remove, write};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";
/// Former sets stay this long: a reader that has just resolved `..data` still finds what it led to.
pub(crate) const FORMER_STAYS: Duration = Duration::from_secs(1);
/// And no more than so many of them, however fast new ones come.
const FORMER_MOST: usize = 8;

/// Brings a volume's folder to that content. What is there already is not written again; says whether anything was.
pub(crate) fn update(
    folder: &Path,
    files: &BTreeMap<String, PayloadFile>,
    group: Option<u32>,
) -> Result<bool, FilesError> {
    for path in files.keys() {
        check_path(folder, path)?;
    }
    let current = current(folder)?;
    let changed = match &current {
        Some(name) => !same(&folder.join(name), files, group),
        None => true,
    };
    if changed {
        write_set(folder, files, group)?;
    }
    // Also when nothing changed: a crash may have come between the rename and these.
    link_names(folder, files)?;
    sweep(folder, FORMER_MOST)?;
    Ok(changed)
}

/// Removes sets that nobody can be resolving any more, and all but the newest `most` others.
pub(crate) fn sweep(folder: &Path, most: usize) -> Result<(), FilesError> {
    let Some(current) = current(folder)? else { return Ok(()) };
    let mut former: Vec<PathBuf> = std::fs::read_dir(folder)
        .at(folder)?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("..") && name != current.as_str()
        })
        .map(|entry| entry.path())
        .collect();
    // Names begin with the time: the oldest come first.
    former.sort();
    let changed = std::fs::symlink_metadata(folder.join(DATA)).and_then(|link| link.modified()).at(folder)?;
    let age = SystemTime::now().duration_since(changed);
    // A clock that was set back gives no age; then they are old.
    let keep = if age.is_ok_and(|age| age < FORMER_STAYS) { most } else { 0 };
    for path in &former[..former.len().saturating_sub(keep)] {
        remove::tree(path)?;
    }
    Ok(())
}

/// Whether sets are left that a later [`sweep`] would remove.
pub(crate) fn has_former(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    let sets = entries.filter_map(Result::ok).filter(|entry| {
        entry.file_name().to_string_lossy().starts_with("..") && entry.file_type().is_ok_and(|kind| kind.is_dir())
    });
    sets.count() > 1
}

pub(crate) fn check_path(folder: &Path, path: &str) -> Result<(), FilesError> {
    let reason = if path.is_empty() {
        "is empty"
    } else if path.len() > 4096 {
        "is longer than 4096 bytes"
    } else if path.starts_with("..") {
        "starts with '..', which is the volume's own"
    } else if !Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) || path.contains('\0') {
        "is absolute or leads out of the volume"
    } else if path.split('/').any(|part| part.len() > 255) {
        "has a part longer than 255 bytes"
    } else {
        return Ok(());
    };
    Err(refuse(folder, format!("path {path:?} {reason}")))
}

/// The set that `..data` names, when it is one of ours and there.
fn current(folder: &Path) -> Result<Option<String>, FilesError> {
    match std::fs::read_link(folder.join(DATA)) {
        Ok(target) => {
            let name = target.to_string_lossy().into_owned();
            let ours = name.starts_with("..") && name != ".." && !name.contains('/') && folder.join(&name).is_dir();
            Ok(ours.then_some(name))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        // Something else of that name: the rename puts the link over it, or fails and says so.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error).at(&folder.join(DATA)),
    }
}

fn mode_of(file: &PayloadFile, group: Option<u32>) -> u32 {
    let mode = file.mode & 0o7777;
    if group.is_some() { mode | ownership::mask(false, true) } else { mode }
}

/// Whether a set holds just these files.
fn same(set: &Path, files: &BTreeMap<String, PayloadFile>, group: Option<u32>) -> bool {
    let mut found = 0;
    let mut folders = vec![set.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { return false };
        for entry in entries {
            let Ok(entry) = entry else { return false };
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
                continue;
            }
            let wanted = path.strip_prefix(set).ok().and_then(Path::to_str).and_then(|name| files.get(name));
            let Some(wanted) = wanted else { return false };
            let Ok(meta) = entry.metadata() else { return false };
            let fits = meta.is_file()
                && meta.len() == wanted.data.len() as u64
                && meta.mode() & 0o7777 == mode_of(wanted, group)
                && group.is_none_or(|gid| meta.gid() == gid)
                && wanted.user.is_none_or(|uid| meta.uid() == uid)
                && std::fs::read(&path).is_ok_and(|data| data == wanted.data);
            if !fits {
                return false;
            }
            found += 1;
        }
    }
    found == files.len()
}

fn write_set(folder: &Path, files: &BTreeMap<String, PayloadFile>, group: Option<u32>) -> Result<(), FilesError> {
    let set = new_set(folder)?;
    let filled = fill(&set, files, group).and_then(|()| {
        let next = folder.join(DATA_NEXT);
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).at(&next),
            _ => {}
        }
        let name = set.file_name().unwrap_or_default();
        std::os::unix::fs::symlink(name, &next).at(&next)?;
        std::fs::rename(&next, folder.join(DATA)).at(&folder.join(DATA))
    });
    if filled.is_err() {
        let _ = remove::tree(&set);
    }
    filled
}

/// A new folder named for the time, so that names sort by age.
fn new_set(folder: &Path) -> Result<PathBuf, FilesError> {
    for _ in 0..1000 {
        let now = jiff::Timestamp::now();
        let set = folder.join(format!("{}.{:09}", now.strftime("..%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond()));
        match std::fs::create_dir(&set) {
            Ok(()) => {
                std::fs::set_permissions(&set, Permissions::from_mode(0o755)).at(&set)?;
                return Ok(set);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).at(&set),
        }
    }
    Err(refuse(folder, "has no name left for a new set of files"))
}

fn fill(set: &Path, files: &BTreeMap<String, PayloadFile>, group: Option<u32>) -> Result<(), FilesError> {
    hand_folder(set, group)?;
    for (name, wanted) in files {
        let path = set.join(name);
        if let Some(parent) = Path::new(name).parent() {
            let mut folder = set.to_owned();
            for part in parent.components() {
                folder.push(part);
                write::folder(&folder, 0o755)?;
                hand_folder(&folder, group)?;
            }
        }
        write_file(&path, wanted, group).at(&path)?;
    }
    Ok(())
}

fn hand_folder(folder: &Path, group: Option<u32>) -> Result<(), FilesError> {
    let Some(gid) = group else { return Ok(()) };
    rustix::fs::chown(folder, None, Some(Gid::from_raw(gid))).at(folder)?;
    let mode = 0o755 | ownership::mask(true, true);
    std::fs::set_permissions(folder, Permissions::from_mode(mode)).at(folder)
}

fn write_file(path: &Path, wanted: &PayloadFile, group: Option<u32>) -> std::io::Result<()> {
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    file.write_all(&wanted.data)?;
    let (user, group_id) = (wanted.user.map(rustix::fs::Uid::from_raw), group.map(Gid::from_raw));
    if user.is_some() || group_id.is_some() {
        rustix::fs::fchown(&file, user, group_id)?;
    }
    // Also past the umask; and the mode last, for chown takes bits away.
    file.set_permissions(Permissions::from_mode(mode_of(wanted, group)))
}

/// Makes the links that containers open, after the set behind them is in place, and removes those that lead nowhere.
fn link_names(folder: &Path, files: &BTreeMap<String, PayloadFile>) -> Result<(), FilesError> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = folder.join(name);
        let target = Path::new(DATA).join(name);
        if std::fs::read_link(&link).is_ok_and(|found| found == target) {
            continue;
        }
        // Whatever else is there (a crash, or a container that may write here) gives way in one step.
        let next = folder.join("..link_tmp");
        let _ = std::fs::remove_file(&next);
        std::os::unix::fs::symlink(&target, &next).at(&next)?;
        std::fs::rename(&next, &link).at(&link)?;
    }
    for entry in std::fs::read_dir(folder).at(folder)? {
        let entry = entry.at(folder)?;
        let name = entry.file_name();
        let stale = !wanted.contains(&*name.to_string_lossy())
            && std::fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(DATA).join(&name));
        if stale {
            std::fs::remove_file(entry.path()).at(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;
