//! Finds the built-in guests, which `cargo xtask plugins` makes, and writes what the crate needs to embed them.

use std::path::{Path, PathBuf};
use std::{env, fmt::Write as _, fs};

use sha2::{Digest, Sha256};

/// Each with the file that its component is in.
const BUILT_IN: [&str; 5] = ["exec-probe", "tcp-probe", "http-probe", "grpc-probe", "url-source"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    let var = |name: &str| env::var_os(name).unwrap_or_else(|| panic!("cargo did not set {name}"));
    let root = Path::new(&var("CARGO_MANIFEST_DIR")).join("../..");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder));
    let mut code = String::new();
    for name in BUILT_IN {
        let guest = target.join("guests").join(format!("{name}.wasm"));
        println!("cargo::rerun-if-changed={}", guest.display());
        let bytes = fs::read(&guest).unwrap_or_else(|error| {
            panic!("{}: {error}. Run `cargo xtask plugins` first: it builds the built-in plugins", guest.display())
        });
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        writeln!(code, "BuiltIn {{ guest: {name:?}, wasm: include_bytes!({guest:?}), sha256: {digest:?} }},")
            .expect("a String takes everything");
    }
    let out = PathBuf::from(var("OUT_DIR")).join("built_in.rs");
    fs::write(&out, format!("[{code}]")).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
}
