//! The folder of network configurations: which files it has, in which order they count. Blocks; decides nothing else.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::{NetworkList, Plugin};

/// A configuration is a few KiB.
const FILE_LIMIT: u64 = 1 << 20;
/// Files that are looked at.
const FILES: usize = 200;

/// How files end that networks are described in.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// The first file of a folder that may describe a network, whatever is in it. Blocks for a moment.
pub fn first_configuration(folder: &Path) -> Option<PathBuf> {
    files(folder, &ENDINGS).ok()?.into_iter().next()
}

/// All networks of a folder, in the order of their files' names, and what is wrong with the other files.
pub(crate) fn read(folder: &Path) -> (Vec<NetworkList>, Vec<String>) {
    let (mut lists, mut problems) = (Vec::new(), Vec::new());
    let files = match files(folder, &ENDINGS) {
        Ok(files) => files,
        Err(error) => return (lists, vec![format!("--cni-conf-dir: {error}")]),
    };
    if files.is_empty() {
        problems.push(format!("no networks found in {} (--cni-conf-dir)", folder.display()));
    }
    for file in files {
        match network(folder, &file) {
            Ok(list) => lists.push(list),
            Err(problem) => problems.push(format!("{}: {problem}", file.display())),
        }
    }
    (lists, problems)
}

fn network(folder: &Path, file: &Path) -> Result<NetworkList, String> {
    let text = text(file)?;
    if file.extension().is_none_or(|extension| extension != "conflist") {
        return NetworkList::parse_single(&text).map_err(|error| error.to_string());
    }
    let mut list = NetworkList::parse(&text).map_err(|error| error.to_string())?;
    if !list.only_inlined {
        for file in files(&folder.join(&list.name), &["conf"])? {
            let plugin = self::text(&file).and_then(|text| Plugin::parse(&text).map_err(|error| error.to_string()));
            list.plugins.push(plugin.map_err(|problem| format!("{}: {problem}", file.display()))?);
        }
    }
    if list.plugins.is_empty() { Err("it has no plugins".to_owned()) } else { Ok(list) }
}

/// Files with these endings, by name; none where there is no folder.
fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, String> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: {error}", folder.display())),
    };
    let wanted = |path: &PathBuf| {
        path.extension().is_some_and(|extension| endings.iter().any(|ending| extension == *ending)) && !path.is_dir()
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(wanted).collect();
    files.sort();
    files.truncate(FILES);
    Ok(files)
}

fn text(file: &Path) -> Result<String, String> {
    // A pipe would never end, nor would opening it.
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return Err("it is not a file".to_owned());
    }
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| error.to_string())?;
    opened.take(FILE_LIMIT).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_count_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let (lists, problems) = read(&folder.path().join("absent"));
        assert!(lists.is_empty() && problems[0].starts_with("no networks found"));
        write("00-bad.conflist", "{");
        write("10-b.conflist", r#"{"name": "b", "plugins": [{"type": "x"}]}"#);
        write("05-a.conf", r#"{"name": "a", "type": "x"}"#);
        write("20-c.json", r#"{"name": "c", "type": "x"}"#);
        write("01-other.txt", r#"{"name": "d", "type": "x"}"#);
        write("02-none.conflist", r#"{"name": "e"}"#);
        std::fs::create_dir(folder.path().join("03-folder.conf")).unwrap();
        let (lists, problems) = read(folder.path());
        let names: Vec<&str> = lists.iter().map(|list| list.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn plugins_in_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("n")).unwrap();
        std::fs::write(folder.path().join("n/20-last.conf"), r#"{"type": "last"}"#).unwrap();
        let list = |text: &str| {
            std::fs::write(folder.path().join("n.conflist"), text).unwrap();
            read(folder.path()).0.pop().map(|list| list.plugins.len())
        };
        assert_eq!(list(r#"{"name": "n"}"#), Some(1));
        assert_eq!(list(r#"{"name": "n", "plugins": [{"type": "first"}]}"#), Some(2));
        assert_eq!(list(r#"{"name": "n", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "first"}]}"#), Some(1));
    }
}
