//! Drop-in files of `--config-dir`: which there are, and in which order.
//!
//! As `mergeKubeletConfigurations` of the kubelet: all `*.conf` files below the folder, in lexical order of their paths.

use std::path::{Path, PathBuf};

/// The most files that are read; more are no configuration.
const LIMIT: usize = 1000;
/// How deep folders may lie in each other.
const DEPTH: usize = 16;

/// One drop-in file.
#[derive(Clone, Debug)]
pub(super) struct DropIn {
    /// Where it lies.
    pub(super) path: PathBuf,
    /// What it holds, or why it cannot be read.
    pub(super) text: Result<String, String>,
}

/// The files of a folder, the one that counts most last.
pub(super) fn read(folder: &Path) -> Vec<DropIn> {
    let mut found = Vec::new();
    walk(folder, DEPTH, &mut found);
    found
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<DropIn>) {
    let broken = |message: String| DropIn { path: folder.to_owned(), text: Err(message) };
    if depth == 0 {
        found.push(broken(format!("folders lie deeper than {DEPTH} in each other")));
        return;
    }
    let entries = match std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(error) => {
            found.push(broken(error.to_string()));
            return;
        }
    };
    let mut paths: Vec<(PathBuf, bool)> =
        // A link to a folder is no folder, which keeps ConfigMap volumes (`..data`) from being read twice.
        entries.iter().map(|entry| (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()))).collect();
    paths.sort();
    for (path, is_folder) in paths {
        if is_folder {
            walk(&path, depth - 1, found);
        } else if path.extension().is_some_and(|extension| extension == "conf") {
            if found.len() >= LIMIT {
                found.push(broken(format!("more than {LIMIT} files")));
                return;
            }
            let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
            found.push(DropIn { path, text });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn conf_files_in_the_order_of_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("15-more")).unwrap();
        for name in ["20-b.conf", "10-a.conf", "15-more/x.conf", "readme.md", "30.conf.bak"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let texts: Vec<String> = read(dir.path()).into_iter().map(|drop_in| drop_in.text.unwrap()).collect();
        assert_eq!(texts, ["10-a.conf", "15-more/x.conf", "20-b.conf"]);
        assert!(read(&dir.path().join("none"))[0].text.is_err());
    }
}
