//! The programs of Kubernetes: those of `KUBEBUILDER_ASSETS`, or built from Go modules into the cache; and etcd.
//! Must not start any.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{apt, go, place::Place, process, say};

/// The newest patch of each minor version that a node is tried with.
const VERSIONS: &[&str] = &["1.33.13", "1.34.4", "1.35.4", "1.36.3", "1.37.2"];

/// What a control plane is made of, and the client.
const PROGRAMS: &[&str] = &["kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler"];

/// The tests of nodes, what runs them, and what they run in pods.
const PROGRAMS_OF_TESTS: &[&str] = &["agnhost", "nonewprivs", "ginkgo", TESTS];
/// A test binary, not a program.
const TESTS: &str = "e2e.test";
/// What agnhost serves https with; copied beside the programs.
pub(crate) const CERTIFICATE: [&str; 2] = ["localhost.crt", "localhost.key"];

/// A cold build of all takes six minutes on two cores.
const LIMIT: Duration = Duration::from_secs(2400);

/// The programs of one version.
#[derive(Clone, Debug)]
pub(crate) struct Kubernetes {
    /// `1.36.3`.
    pub version: String,
    /// Where each of them is, in the order of [`PROGRAMS`].
    programs: Vec<PathBuf>,
    /// etcd's program.
    pub etcd: PathBuf,
}

impl Kubernetes {
    /// Finds or builds the programs of the version that a flag names: `1.36`, or `1.36.3`.
    ///
    /// # Errors
    /// When the version is none, or the programs cannot be had: no Go, no network.
    pub(crate) fn find(place: &Place, version: &str) -> Result<Self> {
        let version = whole(version)?;
        let folder = place.cache.join(format!("kubernetes-{version}"));
        let assets = assets(&version);
        let at = |program: &str| {
            let given = assets.as_ref().map(|assets| assets.join(program)).filter(|path| path.is_file());
            given.unwrap_or_else(|| folder.join(program))
        };
        let missing: Vec<&str> = PROGRAMS.iter().copied().filter(|program| !at(program).is_file()).collect();
        if !missing.is_empty() {
            build(place, &version, &folder, &missing)?;
        }
        let etcd = etcd(place, assets.as_deref())?;
        Ok(Self { version, programs: PROGRAMS.iter().map(|program| at(program)).collect(), etcd })
    }

    /// The folder of the programs of Kubernetes' own end-to-end tests in that version, built when they are not there.
    ///
    /// # Errors
    /// As [`Kubernetes::find`].
    pub(crate) fn tests(place: &Place, version: &str) -> Result<PathBuf> {
        let version = whole(version)?;
        let folder = place.cache.join(format!("kubernetes-{version}-tests"));
        let missing = PROGRAMS_OF_TESTS.iter().copied().filter(|program| !folder.join(program).is_file());
        let missing: Vec<&str> = missing.collect();
        if !missing.is_empty() {
            build(place, &version, &folder, &missing)?;
        }
        Ok(folder)
    }

    /// The minor version's number.
    pub(crate) fn minor(&self) -> u32 {
        minor(&self.version)
    }

    /// Where a program of this version is.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let place = PROGRAMS.iter().position(|program| *program == name);
        place.map_or_else(|| name.into(), |place| self.programs[place].clone())
    }
}

fn minor(version: &str) -> u32 {
    version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or_default()
}

/// The whole version of `1.36` or `1.36.3`, with or without a `v`.
fn whole(version: &str) -> Result<String> {
    let version = version.trim_start_matches('v');
    let numbers = version.split('.').all(|part| part.parse::<u32>().is_ok());
    match version.split('.').count() {
        3 if numbers => Ok(version.to_owned()),
        2 if numbers => {
            let known = VERSIONS.iter().find(|known| known.starts_with(&format!("{version}.")));
            Ok((*known.with_context(|| format!("--kubernetes {version}: known are {}", VERSIONS.join(", ")))?)
                .to_owned())
        }
        _ => bail!("--kubernetes {version}: say a minor version as 1.36, or a whole one as 1.36.3"),
    }
}

/// The folder of `KUBEBUILDER_ASSETS`, if its API server is of the same minor version.
fn assets(version: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS").filter(|folder| !folder.is_empty())?);
    let mut command = Command::new(folder.join("kube-apiserver"));
    let said = process::output("kube-apiserver --version", command.arg("--version"), Duration::from_secs(20));
    // "Kubernetes v1.36.3"
    let wanted = format!("v1.{}.", minor(version));
    match said {
        Ok(said) if said.contains(&wanted) => Some(folder),
        Ok(said) => {
            say!("KUBEBUILDER_ASSETS holds {}, not {version}: not used", said.trim());
            None
        }
        Err(error) => {
            say!("KUBEBUILDER_ASSETS is not used: {error:#}");
            None
        }
    }
}

fn build(place: &Place, version: &str, folder: &Path, programs: &[&str]) -> Result<()> {
    let go = go::program("Kubernetes").context("Kubernetes is needed: set KUBEBUILDER_ASSETS, or have Go")?;
    say!("building {} {version} into {} (some minutes, once)", programs.join(", "), folder.display());
    let partial = folder.with_extension("partial");
    go::fresh(&partial)?;
    let log = place.fresh_log(&format!("kubernetes-{version}-build"))?;
    let module = go::Module::open(go, folder.with_extension("source"), log, LIMIT)?;
    let mut download = module.command(false);
    download.args(["mod", "download", "-json", &format!("k8s.io/kubernetes@v{version}")]);
    let told = process::output("go mod download k8s.io/kubernetes", &mut download, Duration::from_secs(300))?;
    let told: Value = serde_json::from_str(&told).context("go mod download -json")?;
    let original = told["GoMod"].as_str().context("go mod download names no go.mod")?;
    let original = fs::read_to_string(original).with_context(|| original.to_owned())?;
    let packages: Vec<String> = programs.iter().map(|program| package(program)).collect();
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    module.write(&go_mod(&original, version), &packages)?;
    // The programs' test-only imports need not all be there.
    module.run("go mod tidy", module.command(false).args(["mod", "tidy", "-e"]))?;
    let flags = ["-trimpath", "-ldflags", &linker_flags(version), "-o"];
    let (tests, packages): (Vec<&str>, Vec<&str>) = packages.into_iter().partition(|it| *it == package(TESTS));
    if !packages.is_empty() {
        let mut command = module.command(false);
        module.run("go build", command.arg("build").args(flags).arg(&partial).args(packages))?;
    }
    if !tests.is_empty() {
        let mut command = module.command(false);
        module.run("go test -c", command.args(["test", "-c"]).args(flags).arg(partial.join(TESTS)).args(tests))?;
        let mut command = module.command(false);
        command.args(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]);
        let sources = process::output("go list -m", &mut command, Duration::from_secs(60))?;
        fs::create_dir_all(folder)?;
        for name in CERTIFICATE {
            let file = Path::new(sources.trim()).join("test/images/agnhost/porter").join(name);
            fs::copy(&file, folder.join(name)).with_context(|| format!("{}", file.display()))?;
        }
    }
    fs::create_dir_all(folder)?;
    for program in programs {
        fs::rename(partial.join(program), folder.join(program)).with_context(|| format!("{program} was not built"))?;
    }
    module.close();
    let _ = fs::remove_dir_all(&partial);
    Ok(())
}

/// The Go package that a program is made of.
fn package(program: &str) -> String {
    match program {
        "ginkgo" => "github.com/onsi/ginkgo/v2/ginkgo".to_owned(),
        "agnhost" | "nonewprivs" => format!("k8s.io/kubernetes/test/images/{program}"),
        TESTS => "k8s.io/kubernetes/test/e2e".to_owned(),
        _ => format!("k8s.io/kubernetes/cmd/{program}"),
    }
}

/// A go.mod that requires Kubernetes, whose own points at folders that its module does not hold: the same modules
/// are published on their own, as 0.36.3 for 1.36.3.
fn go_mod(original: &str, version: &str) -> String {
    let mut text = String::from("module longshore.dev/kubernetes\n\n");
    for line in original.lines().filter(|line| line.starts_with("go ") || line.starts_with("godebug ")) {
        text.push_str(&format!("{line}\n"));
    }
    text.push_str(&format!("\nrequire k8s.io/kubernetes v{version}\n\nreplace (\n"));
    let published = version.replacen('1', "0", 1);
    let staged = original.lines().filter_map(|line| line.split_once(" => ./staging/"));
    for (module, _) in staged {
        let module = module.trim().trim_start_matches("replace ");
        text.push_str(&format!("\t{module} => {module} v{published}\n"));
    }
    text + ")\n"
}

/// Without these the programs call themselves v0.0.0, and clients compare versions.
fn linker_flags(version: &str) -> String {
    let mut flags = String::from("-s -w");
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        flags.push_str(&format!(
            " -X {package}.gitVersion=v{version} -X {package}.gitMajor=1 -X {package}.gitMinor={} -X \
             {package}.gitTreeState=clean",
            minor(version)
        ));
    }
    flags
}

fn etcd(place: &Place, assets: Option<&Path>) -> Result<PathBuf> {
    let given = assets.map(|assets| assets.join("etcd")).filter(|path| path.is_file());
    if let Some(found) = given.or_else(|| process::on_path("etcd")) {
        return Ok(found);
    }
    // Unpacked, not installed: Debian's package would start a service.
    let folder =
        apt::unpack(&place.cache, "etcd-server").context("etcd is needed: install it, or set KUBEBUILDER_ASSETS")?;
    Ok(folder.join("usr/bin/etcd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_version_becomes_a_whole_one() {
        assert_eq!(whole("1.36").ok().as_deref(), Some("1.36.3"));
        assert_eq!(whole("v1.34.1").ok().as_deref(), Some("1.34.1"));
        assert!(whole("1.20").is_err() && whole("latest").is_err() && whole("1").is_err());
    }

    #[test]
    fn staged_modules_are_replaced_by_the_published_ones() {
        let original = "module k8s.io/kubernetes\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire (\n\tk8s.io/api v0.0.0\n)\n\n\
                        replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let text = go_mod(original, "1.36.3");
        assert!(text.contains("\nrequire k8s.io/kubernetes v1.36.3\n"), "{text}");
        assert!(text.contains("\tk8s.io/api => k8s.io/api v0.36.3\n"), "{text}");
        assert!(text.contains("go 1.26.0\ngodebug default=go1.26\n"), "{text}");
    }
}
