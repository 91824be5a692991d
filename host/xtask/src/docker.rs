//! Dockers to test against: the system's (Debian's when there is none) and 29, built from Go modules into the
//! cache; and a private daemon of either. Must not touch a daemon that it did not start.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt, go,
    http::Client,
    place::Place,
    process::{self, Running},
    say,
};

/// moby v2.0.0-beta.24 speaks API 1.56 and calls itself Docker 29; Debian's runc is too old for it.
const DOCKERD_29: &str = "v2.0.0-beta.24";
const DOCKERD_29_VERSION: &str = "29.0.0-beta.24";
const CONTAINERD_29: &str = "v2.3.5";
const RUNC_29: &str = "v1.4.3";

/// A Docker that can be started: where its programs are, and its name in our output.
#[derive(Clone, Debug)]
pub(crate) struct Flavor {
    /// `docker-20.10.24`, for instance.
    pub name: String,
    /// The folder that goes first on the daemon's PATH; none for the system's own.
    pub programs: Option<PathBuf>,
    /// Whether it makes its rules for packets with nftables in place of iptables.
    pub nftables: bool,
}

impl Flavor {
    /// The PATH for this Docker's daemon.
    pub(crate) fn path(&self) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{path}:/usr/local/sbin:/usr/sbin:/sbin");
        match &self.programs {
            Some(programs) => format!("{}:{path}", programs.display()),
            None => path,
        }
    }
}

/// The system's Docker, whatever its version; Debian's is installed when there is none.
///
/// # Errors
/// When there is none and it cannot be installed.
pub(crate) fn system() -> Result<Flavor> {
    if process::on_path("dockerd").is_none() {
        apt::install(&["docker.io"], "Docker")?;
    }
    let dockerd = process::on_path("dockerd").context("apt-get installed docker.io, but dockerd is not on the PATH")?;
    let version =
        process::output("dockerd --version", Command::new(dockerd).arg("--version"), Duration::from_secs(20))?;
    // "Docker version 20.10.24+dfsg1, build 5d6db84"
    let version = version.split([' ', ',', '+']).nth(2).unwrap_or("unknown").to_owned();
    Ok(Flavor { name: format!("docker-{version}"), programs: None, nftables: false })
}

/// That Docker, of 29 or later, with its other kind of rules.
pub(crate) fn with_nftables(flavor: Flavor) -> Flavor {
    Flavor { name: format!("{}-nftables", flavor.name), nftables: true, ..flavor }
}

/// The Docker that a flag names: `system`, `29` or `29-nftables`.
///
/// # Errors
/// When it is another word, or that Docker cannot be had.
pub(crate) fn named(place: &Place, name: &str) -> Result<Flavor> {
    match name {
        "system" => system(),
        "29" => twenty_nine(place),
        "29-nftables" => Ok(with_nftables(twenty_nine(place)?)),
        other => {
            bail!("--docker {other}: use `system`, `29` or `29-nftables`; `cargo xtask cluster` also takes `running`")
        }
    }
}

/// Docker 29 from the cache, built there first when it is missing (some minutes).
///
/// # Errors
/// When it cannot be built: no Go, no network, no libseccomp.
pub(crate) fn twenty_nine(place: &Place) -> Result<Flavor> {
    let name = format!("docker-{DOCKERD_29_VERSION}");
    let folder = place.cache.join(format!("{name}_containerd-{CONTAINERD_29}_runc-{RUNC_29}"));
    if !folder.is_dir() {
        build(place, &folder)?;
    }
    Ok(Flavor { name, programs: Some(folder), nftables: false })
}

fn build(place: &Place, folder: &Path) -> Result<()> {
    let go = go::program("Docker 29")?;
    let compilers = ["gcc", "pkg-config"];
    if compilers.iter().any(|program| process::on_path(program).is_none()) || !has_libseccomp() {
        apt::install(&["libseccomp-dev", "pkg-config", "gcc", "libc6-dev"], "building runc for Docker 29")?;
    }
    say!("building Docker {DOCKERD_29_VERSION} into {} (some minutes, once)", folder.display());
    let partial = folder.with_extension("partial");
    go::fresh(&partial)?;
    let log = place.fresh_log("docker-29-build")?;
    let module = go::Module::open(go, folder.with_extension("source"), log, Duration::from_secs(1500))?;
    let go_mod = format!(
        "module longshore.dev/docker\n\ngo 1.26\n\nrequire (\n\tgithub.com/containerd/containerd/v2 {CONTAINERD_29}\n\
         \tgithub.com/moby/moby/v2 {DOCKERD_29}\n\tgithub.com/opencontainers/runc {RUNC_29}\n)\n"
    );
    module.write(&go_mod, &PROGRAMS.iter().map(|program| program.0).collect::<Vec<_>>())?;
    module.run("go mod tidy", module.command(false).args(["mod", "tidy"]))?;
    let version = format!("-s -w -X github.com/moby/moby/v2/dockerversion.Version={DOCKERD_29_VERSION}");
    for (package, cgo, tags) in PROGRAMS {
        let mut command = module.command(*cgo);
        command.args(["build", "-trimpath", "-tags", tags, "-ldflags", &version, "-o"]).arg(&partial).arg(package);
        module.run(&format!("go build {package}"), &mut command)?;
    }
    module.close();
    fs::rename(&partial, folder).with_context(|| format!("{}", folder.display()))
}

/// Package, whether it needs cgo, build tags.
const PROGRAMS: &[(&str, bool, &str)] = &[
    ("github.com/moby/moby/v2/cmd/dockerd", false, ""),
    ("github.com/moby/moby/v2/cmd/docker-proxy", false, ""),
    ("github.com/containerd/containerd/v2/cmd/containerd", false, ""),
    ("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", false, ""),
    ("github.com/opencontainers/runc", true, "seccomp"),
];

fn has_libseccomp() -> bool {
    process::output("pkg-config", Command::new("pkg-config").args(["--exists", "libseccomp"]), Duration::from_secs(10))
        .is_ok()
}

/// A private daemon, stopped (with every container) when this is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    running: Running,
    socket: PathBuf,
}

impl Daemon {
    /// Starts `flavor` with its data in `folder`, which is emptied first, and its sockets in `run`. It takes the
    /// default bridge, so it is to be called in a network namespace of our own (`world.rs`).
    ///
    /// # Errors
    /// When it does not answer within a minute; its log's end is in the message.
    pub(crate) fn start(flavor: &Flavor, folder: &Path, run: &Path, log: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        let socket = run.join("docker.sock");
        let (out, err) = process::log_pair(log)?;
        let program = match &flavor.programs {
            Some(programs) => programs.join("dockerd"),
            None => process::on_path("dockerd").context("dockerd is not on the PATH")?,
        };
        let settings: &[u8] = if flavor.nftables { br#"{"firewall-backend": "nftables"}"# } else { b"{}" };
        fs::write(folder.join("daemon.json"), settings)?;
        let mut command = Command::new(program);
        command
            .env("PATH", flavor.path())
            .env("TMPDIR", folder)
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(run.join("exec"))
            .arg("--pidfile")
            .arg(run.join("docker.pid"))
            // The user's daemon.json is for the user's daemon.
            .arg("--config-file")
            .arg(folder.join("daemon.json"))
            // systemd would resolve our process ids in its own namespace and move strangers.
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .arg("-H")
            .arg(format!("unix://{}", socket.display()));
        let mut running = Running::start("dockerd", command.stdout(out).stderr(err))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut client = Client::new(&socket, Duration::from_secs(10));
        loop {
            if client.request("GET", "/_ping", "", b"").is_ok_and(|answer| answer.status == 200) {
                return Ok(Self { running, socket });
            }
            let ended = running.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let text = fs::read_to_string(log).unwrap_or_default();
                bail!("{} does not come up; {} ends:\n{}", flavor.name, log.display(), crate::say::tail(&text, 15));
            }
            process::check_interrupted()?;
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // First the containers by force: a daemon that ends gives each of them its whole grace.
        if let Err(error) = remove_containers(&self.socket, "") {
            say!("the containers of {} were not all removed: {error:#}", self.socket.display());
        }
        self.running.stop(Duration::from_secs(20));
    }
}

/// Removes by force every container of the daemon at `socket` whose listing matches `filters` (JSON, URL-encoded
/// by the caller; empty for all). Only for daemons, or labels, that are ours.
///
/// # Errors
/// When the daemon cannot be reached, or refuses.
pub(crate) fn remove_containers(socket: &Path, filters: &str) -> Result<usize> {
    let mut client = Client::new(socket, Duration::from_secs(60));
    let list = client.get(&format!("/containers/json?all=1&filters={filters}"))?;
    let ids: Vec<String> =
        list.as_array().into_iter().flatten().filter_map(|one| one["Id"].as_str()).map(str::to_owned).collect();
    thread::scope(|scope| {
        for chunk in ids.chunks(ids.len().div_ceil(4).max(1)) {
            scope.spawn(move || {
                let mut client = Client::new(socket, Duration::from_secs(60));
                for id in chunk {
                    let _ = client.request("DELETE", &format!("/containers/{id}?force=1&v=1"), "", b"");
                }
            });
        }
    });
    Ok(ids.len())
}
