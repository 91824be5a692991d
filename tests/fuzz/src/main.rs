//! The fuzzer, where it is built with the feature `libfuzzer` (`cargo xtask fuzz` does); else it tries files on a target:
//! `cargo run -p longshore-fuzz -- TARGET FILE…`, to see again what a fuzzer found, or says their names (`--list`).
#![cfg_attr(feature = "libfuzzer", no_main)]
#![allow(clippy::print_stderr, clippy::print_stdout)]

#[cfg(feature = "libfuzzer")]
mod fuzzer {
    //! libFuzzer owns `main` and its arguments: which target it is, and where its seeds go, comes by the environment.

    use std::{env, fs, path::Path, sync::OnceLock};

    use libfuzzer_sys::fuzz_target;
    use longshore_fuzz::{Target, find};

    static TARGET: OnceLock<&'static Target> = OnceLock::new();

    fn begin() -> &'static Target {
        let name = env::var("LONGSHORE_FUZZ_TARGET").unwrap_or_default();
        let target = find(&name).unwrap_or_else(|| panic!("LONGSHORE_FUZZ_TARGET={name:?} is none of the targets"));
        if let Some(folder) = env::var_os("LONGSHORE_FUZZ_SEEDS") {
            for (number, seed) in (target.seeds)().into_iter().enumerate() {
                let file = Path::new(&folder).join(format!("seed-{number}"));
                fs::write(&file, seed).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            }
        }
        target
    }

    fuzz_target!(init: { TARGET.get_or_init(begin); }, |bytes: &[u8]| { (TARGET.get_or_init(begin).run)(bytes) });
}

#[cfg(not(feature = "libfuzzer"))]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    if name == "--list" {
        longshore_fuzz::TARGETS.iter().for_each(|target| println!("{}", target.name));
        return ExitCode::SUCCESS;
    }
    let Some(target) = longshore_fuzz::find(&name) else {
        let names: Vec<_> = longshore_fuzz::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("longshore-fuzz TARGET FILE…: there is no target {name:?}, only {}", names.join(", "));
        return ExitCode::FAILURE;
    };
    for file in arguments {
        match std::fs::read(&file) {
            Ok(bytes) => (target.run)(&bytes),
            Err(error) => {
                eprintln!("{file}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
