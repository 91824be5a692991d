//! A world of its own for end-to-end tests and benchmarks: network, process and mount namespaces with a private
//! Docker (and a registry) in them. When its first process dies, the kernel ends everything in it, so nothing
//! outlives a test, however it ends; and the machine's own Docker, bridges and firewall are never touched.
//! Must not know what is run inside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    apt, cni,
    docker::{self, Daemon, Flavor},
    images::{self, Roots},
    place::{self, Place},
    process::{self, Running},
    say,
};

/// Where the registry of a world listens.
const REGISTRY: &str = "127.0.0.1:5000";
/// The node's address in a world: of the block for documentation, on a device that leads nowhere.
const NODE_ADDRESS: &str = "192.0.2.10/24";

/// Sockets of a world, on a tmpfs that only the world sees.
const RUN: &str = "/run/longshore-test";

/// The hidden command that is the first process of a world.
#[derive(Args, Debug)]
pub(crate) struct Inside {
    /// The Docker's name.
    #[arg(long)]
    flavor: String,
    /// The folder of the Docker's programs; none for the system's.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Whether it uses nftables.
    #[arg(long)]
    nftables: bool,
    /// A folder for all of the world's state.
    #[arg(long)]
    folder: PathBuf,
    /// The images' root file systems.
    #[arg(long)]
    busybox: PathBuf,
    /// The same of the example image.
    #[arg(long)]
    example: PathBuf,
    /// The registry's program.
    #[arg(long)]
    registry: Option<PathBuf>,
    /// The folder of CNI plugins.
    #[arg(long)]
    cni: Option<PathBuf>,
    /// The folder of new CNI plugins.
    #[arg(long)]
    new_cni: Option<PathBuf>,
    /// Time limit for the command, seconds.
    #[arg(long)]
    limit: u64,
    /// What to run.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// `cargo xtask world`.
#[derive(Args, Debug)]
pub(crate) struct Open {
    /// Which Docker: `system`, `29` (built from Go modules once), or `29-nftables`.
    #[arg(long, default_value = "system")]
    docker: String,
    /// Time limit for the command, seconds.
    #[arg(long, default_value_t = 3600)]
    limit: u64,
    /// What to run there, with DOCKER_HOST set.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs a command in a world; true when it ended with 0.
///
/// # Errors
/// When the world cannot be made.
pub(crate) fn open(place: &Place, args: &Open) -> Result<bool> {
    let world = World::prepare(place, docker::named(place, &args.docker)?)?;
    let limit = Duration::from_secs(args.limit);
    let mut command = world.command(place, &args.command, limit);
    command.env("LONGSHORE_BIN", place.target.join("debug/longshore"));
    let name = format!("world with {}", world.flavor.name);
    Ok(Running::start(&name, &mut command)?.wait(limit + Duration::from_secs(120))?.success())
}

/// What a world is made of.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// Its Docker.
    pub flavor: Flavor,
    /// Its images.
    pub roots: Roots,
    /// Its registry's program; none when it could not be had.
    pub registry: Option<PathBuf>,
    /// The folder of its CNI plugins; none when they could not be had.
    pub cni: Option<PathBuf>,
    /// The folder of others, which speak the newest version; none when they could not be built.
    pub new_cni: Option<PathBuf>,
    /// A copy of this very program: cargo may replace the original meanwhile.
    pub program: PathBuf,
}

impl World {
    /// Gathers what a world with `flavor` needs.
    ///
    /// # Errors
    /// When this machine cannot have one: not root, no unshare; or images cannot be made.
    pub(crate) fn prepare(place: &Place, flavor: Flavor) -> Result<Self> {
        require()?;
        let program = place.work().join("xtask-copy");
        fs::create_dir_all(place.work())?;
        let partial = program.with_extension("partial");
        // By the kernel's own link: cargo may have replaced the file since we were started.
        fs::copy("/proc/self/exe", &partial).context("a copy of xtask itself")?;
        fs::rename(&partial, &program)?;
        remove_stale(&place.work());
        let or_none = |what: &str, found: Result<PathBuf>| match found {
            Ok(found) => Some(found),
            Err(error) => {
                say!("no {what}, tests of them are skipped: {error:#}");
                None
            }
        };
        let registry = or_none("registry for pulls", registry(place));
        let cni = or_none("CNI plugins", cni::installed(place));
        let new_cni = or_none("new CNI plugins", cni::new(place));
        Ok(Self { flavor, roots: images::roots(place)?, registry, cni, new_cni, program })
    }

    /// Starts `command` in a new world. It finds there, in its environment: `DOCKER_HOST`, `LONGSHORE_TEST_IMAGE`,
    /// `LONGSHORE_TEST_EXAMPLE_IMAGE`, `LONGSHORE_TEST_REGISTRY` (host:port, when there is one),
    /// `LONGSHORE_TEST_CNI` and `LONGSHORE_TEST_NEW_CNI` (folders of CNI plugins, when there are any), `LONGSHORE_TEST_TARS` (folder of busybox.tar and
    /// example.tar), `LONGSHORE_TEST_DOCKER` (its name),
    /// `LONGSHORE_TEST_DOCKER_PID`, `LONGSHORE_REQUIRE_DOCKER`; its PATH begins with this Docker's programs.
    pub(crate) fn command(&self, place: &Place, command: &[String], limit: Duration) -> Command {
        let mut outer = Command::new("unshare");
        outer
            .args(["--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "--"])
            // The first process of a pid namespace inherits orphans; a shell reaps them.
            .args(["sh", "-c", "\"$@\"; exit $?", "sh"])
            .arg(&self.program)
            .arg("inside")
            .arg("--flavor")
            .arg(&self.flavor.name)
            .arg("--folder")
            .arg(place.work().join(format!("world-{}", std::process::id())))
            .arg("--busybox")
            .arg(&self.roots.busybox)
            .arg("--example")
            .arg(&self.roots.example)
            .arg("--limit")
            .arg(limit.as_secs().to_string());
        if let Some(programs) = &self.flavor.programs {
            outer.arg("--programs").arg(programs);
        }
        if self.flavor.nftables {
            outer.arg("--nftables");
        }
        if let Some(registry) = &self.registry {
            outer.arg("--registry").arg(registry);
        }
        for (flag, folder) in [("--cni", &self.cni), ("--new-cni", &self.new_cni)] {
            if let Some(folder) = folder {
                outer.arg(flag).arg(folder);
            }
        }
        outer.arg("--").args(command);
        outer
    }
}

/// Whether a world can be made here; the error says what is missing and what to do.
///
/// # Errors
/// See above.
pub(crate) fn require() -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("end-to-end tests need Linux: use a virtual machine, or `cargo xtask test --fast`");
    }
    if !place::is_root() {
        bail!(
            "end-to-end tests start a private dockerd and need root: run `sudo -E env \"PATH=$PATH\" cargo xtask test`, \
             or `cargo xtask test --fast` for all that needs none"
        );
    }
    let programs = [
        ("unshare", "util-linux"),
        ("ip", "iproute2"),
        ("iptables", "iptables"),
        ("nft", "nftables"),
        ("mount", "mount"),
    ];
    let missing = programs.iter().filter(|(program, _)| process::on_path(program).is_none());
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if !packages.is_empty() {
        apt::install(&packages, "a network and processes apart from yours")?;
    }
    let probe = ["--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "true"];
    process::output("unshare", Command::new("unshare").args(probe), Duration::from_secs(10))
        .context("this machine allows no new namespaces (an unprivileged container?)")?;
    Ok(())
}

/// Removes the folders of worlds whose makers are gone (killed without a chance to clean up).
fn remove_stale(work: &Path) {
    for entry in fs::read_dir(work).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix("world-")).and_then(|pid| pid.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn registry(place: &Place) -> Result<PathBuf> {
    if let Some(found) = process::on_path("docker-registry") {
        return Ok(found);
    }
    // Unpacked, not installed: Debian's package would start a service on port 5000.
    Ok(apt::unpack(&place.cache, "docker-registry")?.join("usr/bin/docker-registry"))
}

/// Has `/sys` show the world's network devices: what there is of them is that of the network in which it was mounted.
const DEVICES: &str = "cd /run/longshore-test && mkdir sys && mount -t sysfs longshore-test sys || exit
    mount --bind sys/class/net /sys/class/net && mount --bind sys/devices/virtual/net /sys/devices/virtual/net
    code=$?
    umount sys
    exit $code";

/// The first process of a world: sets it up, runs the command, takes everything down; gives its exit code.
///
/// # Errors
/// When the world cannot be set up.
pub(crate) fn inside(args: &Inside) -> Result<i32> {
    if std::process::id() > 100 || network_is_shared()? {
        bail!("`inside` is for `cargo xtask test` itself: it would set up Docker over yours");
    }
    // Sockets need short paths and must not outlive us; containerd's shims put theirs at a fixed place.
    for folder in [RUN, "/run/containerd"] {
        fs::create_dir_all(folder).with_context(|| folder.to_owned())?;
    }
    for step in [
        &["mount", "--make-rshared", "/"][..],
        &["mount", "-t", "tmpfs", "-o", "mode=0700", "longshore-test", RUN],
        &["mount", "-t", "tmpfs", "-o", "mode=0711", "longshore-test", "/run/containerd"],
        &["ip", "link", "set", "lo", "up"],
        &["ip", "link", "add", "node0", "type", "veth", "peer", "name", "node1"],
        &["ip", "address", "add", NODE_ADDRESS, "dev", "node0"],
        &["ip", "link", "set", "node0", "up"],
        &["ip", "link", "set", "node1", "up"],
    ] {
        process::output(step[0], Command::new(step[0]).args(&step[1..]), Duration::from_secs(10))?;
    }
    // Not everywhere may one be mounted; few need it.
    if let Err(error) = process::output("sh", Command::new("sh").args(["-c", DEVICES]), Duration::from_secs(10)) {
        say!("/sys/class/net is not the world's, so tests that need its devices are skipped: {error:#}");
    }
    let flavor = Flavor { name: args.flavor.clone(), programs: args.programs.clone(), nftables: args.nftables };
    if flavor.nftables {
        // It refuses to start where it would have to turn that on itself.
        for file in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
            fs::write(file, "1").context(file)?;
        }
    }
    let folder = &args.folder;
    let log = |name: &str| folder.with_file_name(format!("logs/{}-{name}.log", args.flavor));
    for name in ["dockerd", "registry"] {
        let _ = fs::remove_file(log(name));
    }
    let daemon = Daemon::start(&flavor, folder, Path::new(RUN), &log("dockerd"))?;
    images::import(daemon.socket(), &args.busybox, images::BUSYBOX)?;
    images::import(daemon.socket(), &args.example, images::EXAMPLE)?;
    let registry =
        args.registry.as_deref().map(|program| start_registry(program, folder, &log("registry"))).transpose()?;

    let (program, rest) = args.command.split_first().context("nothing to run")?;
    let mut command = Command::new(program);
    command
        .args(rest)
        .env("PATH", flavor.path())
        .env("DOCKER_HOST", format!("unix://{}", daemon.socket().display()))
        .env("LONGSHORE_TEST_DOCKER", &flavor.name)
        .env("LONGSHORE_TEST_DOCKER_PID", daemon.pid().to_string())
        .env("LONGSHORE_REQUIRE_DOCKER", "1")
        .env("LONGSHORE_TEST_IMAGE", images::BUSYBOX)
        .env("LONGSHORE_TEST_EXAMPLE_IMAGE", images::EXAMPLE);
    if let Some(tars) = args.busybox.parent() {
        command.env("LONGSHORE_TEST_TARS", tars);
    }
    if registry.is_some() {
        command.env("LONGSHORE_TEST_REGISTRY", REGISTRY);
    }
    for (name, folder) in [("LONGSHORE_TEST_CNI", &args.cni), ("LONGSHORE_TEST_NEW_CNI", &args.new_cni)] {
        if let Some(folder) = folder {
            command.env(name, folder);
        }
    }
    let status = Running::start(program, &mut command)?.wait(Duration::from_secs(args.limit));
    drop(registry);
    drop(daemon);
    // Only what Docker kept: its log stays for whoever asks why.
    let _ = fs::remove_dir_all(folder);
    Ok(status?.code().unwrap_or(1))
}

/// Whether we see the devices of the machine: then something went wrong, and nothing must be touched.
fn network_is_shared() -> Result<bool> {
    let links = process::output("ip", Command::new("ip").args(["-brief", "link"]), Duration::from_secs(10))?;
    Ok(links.lines().any(|line| !line.starts_with("lo ")))
}

fn start_registry(program: &Path, folder: &Path, log: &Path) -> Result<Running> {
    let data = folder.join("registry");
    fs::create_dir_all(&data)?;
    let config = folder.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {REGISTRY}\n",
        data.display()
    );
    fs::write(&config, text)?;
    let (out, err) = process::log_pair(log)?;
    let mut command = Command::new(program);
    Running::start("docker-registry", command.arg("serve").arg(&config).stdout(out).stderr(err))
}
