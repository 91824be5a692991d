//! Builds and lints the guests: the plugins of `plugins/` that are compiled into the binary, each as a component in
//! `target/guests/<name>.wasm`. Must not know what any of them does.
//!
//! The ordinary way is the toolchain's own `wasm32-unknown-unknown`. Where rustup cannot fetch that, Debian's
//! `rustc-web`, `cargo-web` and `rust-web-src` build the standard library along with the guests, and `rust-web-clippy` lints them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use wit_component::ComponentEncoder;

use crate::{apt, process, say};

const TARGET: &str = "wasm32-unknown-unknown";
const DEBIAN: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A guest builds in seconds; the standard library with it takes half a minute on two cores.
const LIMIT: Duration = Duration::from_secs(1200);
const RUSTUP_LIMIT: Duration = Duration::from_secs(300);

/// Builds every guest of `plugins/` as a component, unless all are newer than what they are made of.
///
/// # Errors
/// When no toolchain for WebAssembly can be had, or a guest does not build, or is no component.
pub(crate) fn build(root: &Path) -> Result<()> {
    let plugins = root.join("plugins");
    let out = out(root);
    let names = guests(&plugins)?;
    if up_to_date(root, &out, &names)? {
        return Ok(());
    }
    fs::create_dir_all(&out).with_context(|| format!("{}", out.display()))?;
    say!("plugins: building {}", names.join(", "));
    let build = out.join("build");
    let log = out.join("build.log");
    fs::write(&log, b"").with_context(|| format!("{}", log.display()))?;
    let mut cargo = cargo(root, "build")?;
    for name in &names {
        cargo.args(["-p", name]);
    }
    if !process::logged("plugins", &mut cargo, &log, LIMIT)? {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        bail!("the plugins do not build; the whole of it is in {}\n{tail}", log.display());
    }
    for name in &names {
        let module = build.join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_")));
        encode(&module, &out.join(format!("{name}.wasm"))).with_context(|| format!("plugin {name}"))?;
    }
    fs::write(out.join(".built"), names.join("\n")).context("the mark that the plugins are built")?;
    Ok(())
}

/// What lints the guests, and the library that they share, as they are built: for WebAssembly, warnings denied.
///
/// # Errors
/// When no toolchain for WebAssembly can be had, or none that lints.
pub(crate) fn clippy(root: &Path) -> Result<Command> {
    let mut cargo = cargo(root, "clippy")?;
    cargo.args(["--quiet", "--workspace", "--", "-D", "warnings"]);
    Ok(cargo)
}

/// Where what is made of the guests is.
fn out(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder)).join("guests")
}

/// A cargo that does this with the guests, for WebAssembly. All that it makes is shared by all that it does.
fn cargo(root: &Path, subcommand: &str) -> Result<Command> {
    let mut cargo = toolchain(subcommand)?;
    cargo
        .current_dir(root.join("plugins"))
        .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(out(root).join("build"))
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(cargo)
}

/// The members of `plugins/` that are guests, and not libraries of guests.
fn guests(plugins: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(plugins).with_context(|| format!("{}", plugins.display()))? {
        let entry = entry?;
        let manifest = fs::read_to_string(entry.path().join("Cargo.toml")).unwrap_or_default();
        if manifest.contains("\"cdylib\"") {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether the last build was of these guests, and nothing that they are made of has changed since.
fn up_to_date(root: &Path, out: &Path, names: &[String]) -> Result<bool> {
    let mark = out.join(".built");
    let same = fs::read_to_string(&mark).is_ok_and(|built| built == names.join("\n"));
    if !same || !names.iter().all(|name| out.join(format!("{name}.wasm")).is_file()) {
        return Ok(false);
    }
    let built = fs::metadata(&mark)?.modified()?;
    Ok(newest(&root.join("plugins"))?.max(newest(&root.join("wit"))?) < built)
}

/// The newest change of a file or folder below `folder`.
fn newest(folder: &Path) -> Result<SystemTime> {
    let mut newest = fs::metadata(folder)?.modified()?;
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let entry = entry?;
        if entry.file_name() == "target" {
            continue;
        }
        let metadata = entry.metadata()?;
        newest = newest.max(if metadata.is_dir() { self::newest(&entry.path())? } else { metadata.modified()? });
    }
    Ok(newest)
}

/// A cargo that can do this for WebAssembly, and what it needs to be told.
fn toolchain(subcommand: &str) -> Result<Command> {
    if has_target() {
        return Ok(own_cargo(subcommand));
    }
    if process::on_path("rustup").is_some() {
        say!("plugins: rustup target add {TARGET}");
        let mut rustup = Command::new("rustup");
        let added = process::output("rustup target add", rustup.args(["target", "add", TARGET]), RUSTUP_LIMIT);
        if added.is_ok() && has_target() {
            return Ok(own_cargo(subcommand));
        }
    }
    if !Path::new(DEBIAN_CARGO).exists() || !Path::new(DEBIAN_SOURCE).exists() {
        let why = format!("this toolchain has no {TARGET}, and rustup cannot fetch it; Debian's");
        apt::install(&DEBIAN, &why)?;
    }
    // Called by its own name, since a rustup's clippy may come first on the PATH, and lints with another compiler.
    let lints = subcommand == "clippy";
    if lints && !Path::new(DEBIAN_CLIPPY).exists() {
        apt::install(&["rust-web-clippy"], "linting the plugins for WebAssembly")?;
    }
    let linker = rust_lld()?;
    let mut cargo = Command::new(if lints { DEBIAN_CLIPPY } else { DEBIAN_CARGO });
    cargo
        .arg(subcommand)
        .env("RUSTC", DEBIAN_RUSTC)
        // -Zbuild-std is for nightly compilers, and Debian's has no standard library for this target.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
        .env("CARGO", DEBIAN_CARGO)
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_WRAPPER");
    Ok(cargo)
}

fn own_cargo(subcommand: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(subcommand);
    cargo
}

fn rustc(arguments: &[&str]) -> Result<PathBuf> {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let said = process::output("rustc --print", rustc.args(arguments), Duration::from_secs(60))?;
    Ok(PathBuf::from(said.trim()))
}

/// Whether the toolchain that runs us has the standard library for WebAssembly.
fn has_target() -> bool {
    rustc(&["--print", "target-libdir", "--target", TARGET])
        .ok()
        .and_then(|folder| fs::read_dir(folder).ok())
        .is_some_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")))
        })
}

/// The linker for WebAssembly: the toolchain's own, else one of the system's.
fn rust_lld() -> Result<PathBuf> {
    let sysroot = rustc(&["--print", "sysroot"])?;
    let hosts = fs::read_dir(sysroot.join("lib/rustlib")).context("the toolchain's folder")?;
    let bundled = hosts.flatten().map(|host| host.path().join("bin/rust-lld")).find(|linker| linker.is_file());
    match bundled.or_else(|| process::on_path("rust-lld")).or_else(|| process::on_path("wasm-ld")) {
        Some(linker) => Ok(linker),
        None => bail!("there is no rust-lld in {} and no wasm-ld on the PATH: install Debian's lld", sysroot.display()),
    }
}

/// Makes a component of a module. What it is equal to stays untouched, so that nothing is compiled again for it.
fn encode(module: &Path, component: &Path) -> Result<()> {
    let bytes = fs::read(module).with_context(|| format!("{}", module.display()))?;
    let made = ComponentEncoder::default().validate(true).module(&bytes)?.encode()?;
    if fs::read(component).is_ok_and(|there| there == made) {
        return Ok(());
    }
    let partial = component.with_extension("partial");
    fs::write(&partial, &made).with_context(|| format!("{}", partial.display()))?;
    fs::rename(&partial, component).with_context(|| format!("{}", component.display()))
}
