//! Compiles `src/pause.rs` for the machine that longshore is built for. It must not need anything but `$RUSTC` and
//! its linker, because whoever builds longshore has these already.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/pause.rs");
    println!("cargo::rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo did not set {name}"));
    let out = PathBuf::from(var("OUT_DIR")).join("pause");
    let target = var("TARGET");
    let mut rustc = Command::new(var("RUSTC"));
    rustc
        .args(["--edition=2024", "--crate-name=pause", "--crate-type=bin", "src/pause.rs", "--target", &target])
        .args(["-Copt-level=z", "-Cpanic=abort", "-Clto=fat", "-Ccodegen-units=1", "-Cstrip=symbols"])
        // Neither libc nor its start code; a fixed address, so that nothing relocates before `_start`.
        .args(["-Crelocation-model=static", "-Ctarget-feature=+crt-static", "-Cdefault-linker-libraries=no"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static", "-Clink-arg=-no-pie"])
        .args(["-Clink-arg=-Wl,--build-id=none", "-Clink-arg=-Wl,-z,noseparate-code"])
        .arg("-o")
        .arg(&out);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let done = rustc.output().unwrap_or_else(|error| panic!("cannot start rustc for the pause program: {error}"));
    assert!(
        done.status.success(),
        "the pause program does not compile for {target}:\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
}
