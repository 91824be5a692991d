//! The exec credential providers that `--image-credential-provider-config` names: a file, or a folder of such files.
//!
//! Read once at start, as by the kubelet; a problem in them keeps the agent from starting.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use longshore_core::credentials::providers::{self, Provider};

use super::draft::Findings;

/// What problems are about.
const FLAG: &str = "--image-credential-provider-config";

/// The providers of a file or folder; their programs are looked for in `programs`.
pub(super) fn read(config: &Path, programs: &Path, findings: &mut Findings) -> Vec<Provider> {
    let files = match files(config) {
        Ok(files) => files,
        Err(message) => {
            findings.problem(FLAG, format!("{}: {message}", config.display()));
            return Vec::new();
        }
    };
    let read: Vec<Vec<Provider>> = files.iter().map(|file| read_file(file, findings)).collect();
    let all = findings.note(FLAG, providers::join(read)).unwrap_or_default();
    for provider in &all {
        let program = programs.join(&provider.name);
        let found = std::fs::metadata(&program);
        let message = match found {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => continue,
            Ok(_) => "is not an executable file".to_owned(),
            Err(error) => error.to_string(),
        };
        let message = format!("provider {:?}: its program {}: {message}", provider.name, program.display());
        findings.problem("--image-credential-provider-bin-dir", message);
    }
    all
}

/// One file's providers, with everything that is wrong in it.
pub(super) fn read_file(file: &Path, findings: &mut Findings) -> Vec<Provider> {
    let place = file.display().to_string();
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            findings.problem(&place, error.to_string());
            return Vec::new();
        }
    };
    providers::parse(&text).unwrap_or_else(|problems| {
        for problem in problems {
            findings.problem(&place, problem);
        }
        Vec::new()
    })
}

/// The file, or the folder's `*.json`, `*.yaml` and `*.yml`, by name.
fn files(config: &Path) -> Result<Vec<PathBuf>, String> {
    let told = |error: std::io::Error| error.to_string();
    if !std::fs::metadata(config).map_err(told)?.is_dir() {
        return Ok(vec![config.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(config).map_err(told)? {
        let path = entry.map_err(told)?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        if matches!(extension, Some("json" | "yaml" | "yml")) && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() { Err("no configuration files found in the folder".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_folders_and_programs() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let config = |name: &str| {
            format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: {name}\n  \
                 matchImages: [foo.io]\n  defaultCacheDuration: 1m\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n"
            )
        };
        let look = |config: &str| {
            let mut findings = Findings::default();
            let names: Vec<String> =
                read(&at(config), dir.path(), &mut findings).into_iter().map(|provider| provider.name).collect();
            (names, findings.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        };
        assert!(look("none").1.contains("No such file"));
        std::fs::create_dir(at("d")).unwrap();
        assert!(look("d").1.contains("no configuration files"));
        std::fs::write(at("d/b.yml"), config("b")).unwrap();
        std::fs::write(at("d/a.json"), config("a")).unwrap();
        std::fs::write(at("d/notes.txt"), "nothing").unwrap();
        let (names, problems) = look("d");
        assert_eq!(names, ["a", "b"]);
        assert_eq!(problems.matches("its program").count(), 2, "{problems}");
        for name in ["a", "b"] {
            std::fs::write(at(name), "").unwrap();
        }
        assert!(look("d").1.contains("is not an executable file"));
        for name in ["a", "b"] {
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        assert_eq!(look("d/b.yml"), (vec!["b".to_owned()], String::new()));
        std::fs::write(at("d/c.yaml"), config("a")).unwrap();
        assert!(look("d").1.contains("duplicate provider name \"a\""));
        std::fs::write(at("d/c.yaml"), "kind: Pod").unwrap();
        assert!(look("d").1.contains("c.yaml: kind: expected one of CredentialProviderConfig"));
    }
}
