//! Configuration from the disk: what `--config` names, and the drop-in files of `--config-dir`.

use std::path::{Path, PathBuf};

use super::draft::{Draft, Findings, Problem};
use super::flags::{DEFAULT_ROOT, DaemonFlags};
use super::{Config, Whole, dropins, kubelet, providers};

/// What `--config` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ConfigPath {
    /// The flag is not given.
    #[default]
    None,
    /// A manifest folder.
    Folder(PathBuf),
    /// A file, with its text.
    File(PathBuf, String),
    /// Something that cannot be read; with why.
    Unreadable(PathBuf, String),
}

/// What is not in the flags, and read by the caller.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// `--root-dir`, which all commands share.
    pub(crate) root_dir: Option<PathBuf>,
    /// `$DOCKER_HOST`.
    pub(crate) docker_host: Option<String>,
    /// Warnings from before the flags were read.
    pub(crate) warnings: Vec<String>,
}

/// Reads what `--config` names, and builds the configuration. Fails with all problems.
pub(crate) fn load(flags: &DaemonFlags, around: Surroundings) -> Result<(Config, Vec<String>), Vec<Problem>> {
    let path = flags.config.as_deref().map_or(ConfigPath::None, look_at);
    let drop_ins = flags.config_dir.as_deref().map(dropins::read).unwrap_or_default();
    let (mut config, mut findings) = Config::build_with(flags, path, &drop_ins, &around);
    let joining = &config.joining;
    if let (Some(file), Some(programs)) = (&joining.credential_provider_config, &joining.credential_provider_bin_dir) {
        config.credential_providers = providers::read(file, programs, &mut findings);
    }
    if !findings.problems.is_empty() {
        return Err(findings.problems);
    }
    config.make_absolute();
    let mut warnings = around.warnings;
    warnings.append(&mut findings.warnings);
    Ok((config, warnings))
}

/// Checks one KubeletConfiguration or CredentialProviderConfig file, for `longshore config check`.
pub(crate) fn check_file(path: &Path) -> Findings {
    let mut findings = Findings::default();
    match look_at(path) {
        ConfigPath::File(file, text) if kubelet::kind_of(&text).as_deref() == Some("CredentialProviderConfig") => {
            providers::read_file(&file, &mut findings);
        }
        ConfigPath::File(file, text) => {
            let draft = read_file(&file, &text, &mut findings);
            Config::from_draft(draft, PathBuf::from(DEFAULT_ROOT), None, Whole::FileAlone, &mut findings);
        }
        ConfigPath::Unreadable(_, message) => findings.problem(&path.display().to_string(), message),
        ConfigPath::Folder(_) | ConfigPath::None => {
            findings.problem(&path.display().to_string(), "is not a file; expected a KubeletConfiguration file");
        }
    }
    findings
}

/// Whether a folder is one of drop-in files: it has a `.conf` file that is a KubeletConfiguration.
pub(crate) fn is_drop_in_folder(path: &Path) -> bool {
    let is_one = |drop_in: &dropins::DropIn| {
        let text = drop_in.text.as_deref().ok();
        text.and_then(kubelet::kind_of).is_some_and(|kind| kind == "KubeletConfiguration")
    };
    path.is_dir() && dropins::read(path).iter().any(is_one)
}

/// Checks a folder of drop-in files, each by itself and all together.
pub(crate) fn check_drop_ins(path: &Path) -> Findings {
    let mut findings = Findings::default();
    let draft = lay_over(Draft::default(), &dropins::read(path), &mut findings);
    Config::from_draft(draft, PathBuf::from(DEFAULT_ROOT), None, Whole::FileAlone, &mut findings);
    findings
}

/// Reads a KubeletConfiguration; relative paths in it start at the folder that it lies in, as the kubelet has it
/// (`resolveRelativePaths` in `pkg/kubelet/kubeletconfig/configfiles`).
fn read_file(file: &Path, text: &str, findings: &mut Findings) -> Draft {
    let mut draft = kubelet::read(&file.display().to_string(), text, findings);
    let folder = file.parent().unwrap_or(Path::new(""));
    let server = &mut draft.server;
    let paths = [
        &mut draft.manifests,
        &mut draft.resolv_conf,
        &mut draft.pod_logs_dir,
        &mut server.client_ca_file,
        &mut server.tls_cert_file,
        &mut server.tls_key_file,
    ];
    for path in paths.into_iter().flatten() {
        if !path.as_os_str().is_empty() {
            *path = folder.join(&*path);
        }
    }
    draft
}

fn lay_over(below: Draft, drop_ins: &[dropins::DropIn], findings: &mut Findings) -> Draft {
    drop_ins.iter().fold(below, |below, drop_in| match &drop_in.text {
        Ok(text) => read_file(&drop_in.path, text, findings).or(below),
        Err(message) => {
            findings.problem("--config-dir", format!("{}: {message}", drop_in.path.display()));
            below
        }
    })
}

/// Whether a file says that it is a configuration ([`kubelet::is_configuration`]).
pub(crate) fn is_configuration(path: &Path) -> bool {
    matches!(look_at(path), ConfigPath::File(_, text) if kubelet::is_configuration(&text))
}

fn look_at(path: &Path) -> ConfigPath {
    let owned = path.to_owned();
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => ConfigPath::Folder(owned),
        Ok(_) => match std::fs::read_to_string(path) {
            Ok(text) => ConfigPath::File(owned, text),
            Err(error) => ConfigPath::Unreadable(owned, error.to_string()),
        },
        // A folder may come later (a disk that is not mounted yet); a file with such a name would not.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.extension().is_none() => {
            ConfigPath::Folder(owned)
        }
        Err(error) => ConfigPath::Unreadable(owned, error.to_string()),
    }
}

impl Config {
    /// The configuration, and what was found on the way; it is of use only when there are no problems.
    #[cfg(test)]
    pub(crate) fn build(flags: &DaemonFlags, path: ConfigPath, around: &Surroundings) -> (Config, Findings) {
        Config::build_with(flags, path, &[], around)
    }

    /// As `build`, with drop-in files.
    pub(super) fn build_with(
        flags: &DaemonFlags,
        path: ConfigPath,
        drop_ins: &[dropins::DropIn],
        around: &Surroundings,
    ) -> (Config, Findings) {
        let mut findings = Findings::default();
        let mut said = Draft::from_flags(flags, &mut findings);
        let register_by_flag = said.register_node == Some(true);
        let mut files = Draft::default();
        match path {
            ConfigPath::None => {}
            ConfigPath::Folder(folder) => match &said.manifests {
                Some(other) if *other != folder => {
                    let message = format!("--pod-manifest-path names another manifest folder: {}", other.display());
                    findings.problem("--config", message);
                }
                _ => said.manifests = Some(folder),
            },
            ConfigPath::File(file, text) => match kubelet::kind_of(&text) {
                Some(kind) if matches!(kind.as_str(), "Pod" | "PodList" | "List") => {
                    let message = format!("{} is a {kind} manifest; name the folder that it lies in", file.display());
                    findings.problem("--config", message);
                }
                _ => files = read_file(&file, &text, &mut findings),
            },
            ConfigPath::Unreadable(path, message) => {
                findings.problem("--config", format!("{}: {message}", path.display()));
            }
        }
        let mut files = lay_over(files, drop_ins, &mut findings);
        files.joining.complete_files();
        let draft = said.or(files);
        let root = around.root_dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_ROOT));
        let docker_host = around.docker_host.clone();
        let mut config = Config::from_draft(draft, root, docker_host, Whole::Everything, &mut findings);
        if register_by_flag && !config.joining.in_cluster() {
            let message =
                "true needs an API server: name one with --kubeconfig, --bootstrap-kubeconfig or --api-servers";
            findings.problem("--register-node", message);
        }
        config.given_flags = flags.given();
        (config, findings)
    }
}
