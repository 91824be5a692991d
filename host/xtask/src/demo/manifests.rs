//! The demo's copy of `examples/manifests`, which is its user's to edit: what was changed or removed there stays so. Must
//! not touch what it did not put there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::pods;

/// Where a demo has manifests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Folders<'a> {
    /// The examples.
    pub(super) examples: &'a Path,
    /// The copy that the agent follows.
    pub(super) copy: &'a Path,
    /// What was last put there, to tell what is the user's own.
    pub(super) shipped: &'a Path,
}

/// Brings the copy up to date; says which files of it are left as their user has them.
///
/// # Errors
/// When something cannot be read or written.
pub(super) fn refresh(folders: Folders<'_>) -> Result<Vec<String>> {
    let Folders { examples, copy, shipped } = folders;
    for folder in [copy, shipped] {
        fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    }
    // Taken away by us, not by the user.
    let emptied = copy.join(pods::EMPTY).exists();
    let mut kept = Vec::new();
    for entry in fs::read_dir(examples).with_context(|| format!("{}", examples.display()))? {
        let name = entry?.file_name();
        let example = fs::read(examples.join(&name)).with_context(|| format!("{}", examples.join(&name).display()))?;
        let (there, before) = (content(copy.join(&name))?, content(shipped.join(&name))?);
        match (there, before) {
            (Some(there), before) if there != example && before.as_ref() != Some(&there) => {
                kept.push(name.display().to_string());
                continue;
            }
            (None, Some(_)) if !emptied => {
                kept.push(format!("{} (removed)", name.display()));
                continue;
            }
            _ => {}
        }
        for folder in [copy, shipped] {
            // Written beside and renamed: an agent that runs must never see half a file.
            let partial = folder.join(format!(".{}", name.display()));
            fs::write(&partial, &example).with_context(|| format!("{}", partial.display()))?;
            fs::rename(&partial, folder.join(&name))?;
        }
    }
    // What is no example any more goes, unless it was made the user's own.
    for entry in fs::read_dir(shipped).with_context(|| format!("{}", shipped.display()))? {
        let name = entry?.file_name();
        if examples.join(&name).exists() {
            continue;
        }
        if content(copy.join(&name))? == content(shipped.join(&name))? {
            fs::remove_file(copy.join(&name)).with_context(|| format!("{}", copy.join(&name).display()))?;
        }
        fs::remove_file(shipped.join(&name)).with_context(|| format!("{}", shipped.join(&name).display()))?;
    }
    let _ = fs::remove_file(copy.join(pods::EMPTY));
    kept.sort();
    Ok(kept)
}

fn content(path: PathBuf) -> Result<Option<Vec<u8>>> {
    match fs::read(&path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_changed_stays_and_the_rest_is_refreshed() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let [examples, copy, shipped] = ["examples", "copy", "shipped"].map(|name| folder.path().join(name));
        fs::create_dir(&examples)?;
        let folders = Folders { examples: &examples, copy: &copy, shipped: &shipped };
        for name in ["edited", "removed", "untouched"] {
            fs::write(examples.join(name), "one")?;
        }
        let read = |name: &str| fs::read_to_string(copy.join(name)).ok();
        assert!(refresh(folders)?.is_empty());
        fs::write(copy.join("edited"), "mine")?;
        fs::write(copy.join("added"), "mine")?;
        fs::remove_file(copy.join("removed"))?;
        fs::write(examples.join("untouched"), "two")?;
        for _ in 0..2 {
            assert_eq!(refresh(folders)?, ["edited", "removed (removed)"]);
            let now = ["edited", "added", "removed", "untouched"].map(read);
            assert_eq!(now, [Some("mine"), Some("mine"), None, Some("two")].map(|text| text.map(str::to_owned)));
        }
        // One of a demo that did not note what it put there.
        fs::remove_file(shipped.join("untouched"))?;
        fs::write(examples.join("untouched"), "three")?;
        assert_eq!(refresh(folders)?, ["edited", "removed (removed)", "untouched"]);
        // All that was taken away with the pods comes back.
        for name in ["edited", "added", "untouched"] {
            fs::remove_file(copy.join(name))?;
        }
        fs::write(copy.join(pods::EMPTY), "")?;
        assert!(refresh(folders)?.is_empty());
        assert_eq!((read("removed").as_deref(), read(pods::EMPTY)), (Some("one"), None));
        // No example any more.
        for name in ["edited", "removed"] {
            fs::remove_file(examples.join(name))?;
        }
        fs::write(copy.join("edited"), "mine")?;
        assert!(refresh(folders)?.is_empty());
        assert_eq!((read("removed"), read("edited").as_deref()), (None, Some("mine")));
        Ok(())
    }
}
