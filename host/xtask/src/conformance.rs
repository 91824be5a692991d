//! `cargo xtask conformance`: Kubernetes' own end-to-end tests of nodes, built from its Go modules, against a node of ours
//! in a cluster of that version; on images that are made here, since no registry is asked. Must not hold a test itself.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    apt,
    cluster::{self, CERTIFICATE, Kubernetes},
    images::{self, Extra},
    place::Place,
    process, say,
};

/// `cargo xtask conformance`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Conformance {
    /// Which Kubernetes: a minor version from 1.33 to 1.37, or a whole one.
    #[arg(long, default_value = cluster::KUBERNETES)]
    kubernetes: String,
    /// Which Docker: `system`, `29` or `29-nftables`.
    #[arg(long, default_value = "29")]
    docker: String,
    /// Tests whose names match this regular expression.
    #[arg(long, default_value = r"\[NodeConformance\]")]
    focus: String,
    /// But for those that match this one.
    #[arg(long, default_value = r"\[Serial\]|\[Slow\]|\[Disruptive\]")]
    skip: String,
    /// How many run at a time.
    #[arg(long, default_value_t = 4)]
    procs: u32,
    /// Time limit, seconds.
    #[arg(long, default_value_t = 5400)]
    limit: u64,
    /// In the cluster already; where the programs are.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// Builds what is missing, and runs the tests in a cluster that is made for them; success when all passed.
///
/// # Errors
/// When something cannot be built or started.
pub(crate) fn run(place: &Place, args: &Conformance) -> Result<ExitCode> {
    if let Some(programs) = &args.inside {
        return inside(place, args, programs);
    }
    let programs = Kubernetes::tests(place, &args.kubernetes)?;
    // Where the tests run there is no network but theirs.
    bash(place)?;
    let us = env::current_exe().context("our own program")?;
    let mut command = vec![us.display().to_string(), "conformance".to_owned()];
    command.push(format!("--inside={}", programs.display()));
    command.extend(env::args().skip(2));
    cluster::run(place, &cluster::Cluster::for_command(&args.kubernetes, &args.docker, args.limit + 300, command))
}

/// Where `KUBECONFIG` and `DOCKER_HOST` are of a cluster with a node.
fn inside(place: &Place, args: &Conformance, programs: &Path) -> Result<ExitCode> {
    let docker = env::var("DOCKER_HOST").context("DOCKER_HOST")?;
    let docker = Path::new(docker.strip_prefix("unix://").context("DOCKER_HOST is not a Unix socket")?);
    let tests = programs.join("e2e.test");
    make_images(place, docker, programs, &tests)?;
    let results = place.work().join("conformance");
    let _ = fs::remove_dir_all(&results);
    fs::create_dir_all(&results).with_context(|| format!("{}", results.display()))?;
    let log = place.fresh_log("conformance")?;
    say!("running; {} tells how far it is", log.display());
    let mut command = Command::new(programs.join("ginkgo"));
    command.current_dir(&results).env("PATH", path_with_kubectl()?);
    command.args([&format!("-procs={}", args.procs), "--no-color", "--output-interceptor-mode=none"]);
    command.args(["--focus", &args.focus, "--skip", &skipped(&args.skip), &format!("--timeout={}s", args.limit)]);
    command.arg(&tests).args(["--", "--provider=skeleton", "--num-nodes=1", "--disable-log-dump=true"]);
    command.arg(format!("--kubeconfig={}", env::var("KUBECONFIG").context("KUBECONFIG")?));
    command.arg(format!("--report-dir={}", results.display()));
    let passed = process::logged("ginkgo", &mut command, &log, Duration::from_secs(args.limit + 120))?;
    let text = fs::read_to_string(&log)?;
    // "Summarizing 2 Failures:", a line for each, and "Ran 236 of 7579 Specs in …" with their numbers.
    let summary = text.find("Summarizing ").or_else(|| text.rfind("Ran "));
    match summary {
        Some(at) if !text.contains("\nRan 0 of ") => say!("{}", text[at..].trim()),
        _ => bail!("no test was run; {} ends:\n{}", log.display(), say::tail(&text, 20)),
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where programs are found, the cluster's own kubectl first.
fn path_with_kubectl() -> Result<OsString> {
    let kubectl = PathBuf::from(env::var_os("LONGSHORE_TEST_KUBECTL").context("LONGSHORE_TEST_KUBECTL")?);
    let usual = env::var_os("PATH").unwrap_or_default();
    let folders = kubectl.parent().map(Path::to_owned).into_iter().chain(env::split_paths(&usual));
    env::join_paths(folders).context("PATH")
}

/// What is left out: what was asked for, and what this kernel cannot do.
fn skipped(asked: &str) -> String {
    let ip_link =
        |arguments: &[&str]| process::output("ip link", Command::new("ip").arg("link").args(arguments), LIMIT).is_ok();
    if ip_link(&["add", "longshore-try", "type", "dummy"]) && ip_link(&["delete", "longshore-try"]) {
        return asked.to_owned();
    }
    say!("this kernel has no dummy interfaces: PrivilegedPod, which makes one, is left out");
    format!("{asked}|PrivilegedPod")
}

/// The images that tests of nodes use, under the names that these tests have for them. Others are wanted by tests of
/// drivers and of other architectures alone.
fn make_images(place: &Place, docker: &Path, programs: &Path, tests: &Path) -> Result<()> {
    let copied = |name: &str, path: &'static str, mode: u32| -> Result<Extra> {
        let file = programs.join(name);
        Ok(Extra::file(path, mode, fs::read(&file).with_context(|| format!("{}", file.display()))?))
    };
    let folders = ["dev", "proc", "sys", "home", "uploads", "usr", "usr/local", "usr/local/bin"];
    let mut base: Vec<Extra> = folders.into_iter().map(Extra::folder).collect();
    // Its own shell passes on no variables with a hyphen in their names.
    let bash = bash(place)?;
    let bash = fs::read(&bash).with_context(|| format!("{}", bash.display()))?;
    base.push(Extra::file("bin/bash", 0o755, bash.clone()));
    base.push(Extra::file("bin/sh", 0o755, bash));
    base.push(Extra::file("bin/curl", 0o755, CURL.into()));
    base.push(Extra::file("bin/nc", 0o755, NC.into()));
    base.extend(Extra::page());
    let busybox = images::root_with(place, &base)?;
    base.push(copied("nonewprivs", "usr/local/bin/nnp", 0o6755)?);
    let nonewprivs = images::root_with(place, &base)?;
    base.pop();
    base.push(copied("agnhost", "agnhost", 0o755)?);
    base.push(copied("agnhost", "agnhost-2", 0o755)?);
    for name in CERTIFICATE {
        base.push(copied(name, name, 0o644)?);
    }
    base.push(Extra::file("etc/passwd", 0o644, USERS.into()));
    base.push(Extra::file("etc/group", 0o644, GROUPS.into()));
    let agnhost = images::root_with(place, &base)?;
    let list = process::output("e2e.test --list-images", Command::new(tests).arg("--list-images"), LIMIT)?;
    for image in list.lines().map(str::trim) {
        let name = image.split(':').next().unwrap_or_default();
        let (root, changes): (_, &[&str]) = match name.strip_prefix("registry.k8s.io/").unwrap_or_default() {
            "e2e-test-images/busybox" | "e2e-test-images/glibc-dns-testing" => (&busybox, &[r#"CMD ["sh"]"#]),
            "e2e-test-images/nonroot" => (&busybox, &[r#"CMD ["sh"]"#, "USER 1234"]),
            "e2e-test-images/nginx" => (&busybox, &[r#"CMD ["httpd", "-f", "-h", "/www"]"#, "EXPOSE 80"]),
            "e2e-test-images/nonewprivs" => (&nonewprivs, &[r#"CMD ["nnp"]"#]),
            "e2e-test-images/agnhost" => (&agnhost, &[r#"ENTRYPOINT ["/agnhost"]"#, r#"CMD ["pause"]"#]),
            "pause" => (&agnhost, &[r#"ENTRYPOINT ["/agnhost", "pause"]"#]),
            _ => continue,
        };
        let changes = [&["ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], changes].concat();
        images::import_as(docker, root, image, &changes)?;
    }
    Ok(())
}

/// A bash that needs no libraries.
fn bash(place: &Place) -> Result<PathBuf> {
    let folder = apt::unpack(&place.cache, "bash-static").context("the images need a static bash")?;
    Ok(folder.join("bin/bash-static"))
}

const LIMIT: Duration = Duration::from_secs(60);

/// As much of curl as the tests use, by busybox' wget (whose own time limit crashes in Debian's static one).
const CURL: &str = "#!/bin/sh
while [ $# -gt 0 ]; do
    case \"$1\" in
        --connect-timeout | --max-time | -m | -o | -w | -X | -H) shift ;;
        -*) ;;
        *) url=$1 ;;
    esac
    shift
done
exec timeout 5 wget -q -O - \"$url\"
";

/// As much of netcat: Debian's busybox has no UDP.
const NC: &str = "#!/bin/bash
case \" $* \" in
    *' -u '*) exec 3<> \"/dev/udp/${*: -2:1}/${*: -1}\" && cat >&3 && exec timeout 1 cat <&3 ;;
    *) exec busybox nc \"$@\" ;;
esac
";

/// Those that the image has users and groups for (test/images/agnhost/Dockerfile).
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n\
    user-defined-in-image:x:1000:1000::/home:/bin/sh\n";
const GROUPS: &str = "root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\n\
    group-defined-in-image:x:50000:user-defined-in-image\n";
