//! The house rules that a machine can check: walls between rooms, names, sizes, openings, what must not be left
//! lying about. Reads the tree and `cargo metadata`; must not build or run anything of ours.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Which of our own packages a room may name. A room that is not here may name none.
const OURS: &[(&str, &[&str])] = &[
    (
        "agent",
        &[
            "core",
            "reconcile",
            "docker",
            "apiserver",
            "cni",
            "filesystem",
            "wasm",
            "stats",
            "server",
            "streaming",
            "logind",
        ],
    ),
    ("apiserver", &["core"]),
    ("cni", &["core"]),
    ("core", &[]),
    ("docker", &["core", "pause"]),
    ("filesystem", &["core"]),
    ("logind", &["core"]),
    ("pause", &[]),
    ("reconcile", &["core"]),
    ("runner", &[]),
    ("server", &["core", "streaming"]),
    ("stats", &["core"]),
    ("streaming", &[]),
    ("wasm", &["core"]),
    ("xtask", &[]),
];

/// Libraries that are an outside system, and the one room that may name each.
const WALLS: &[(&str, &str)] = &[
    ("bollard", "docker"),
    ("wasmtime", "wasm"),
    ("wasmtime-wasi", "wasm"),
    ("wasmtime-wasi-http", "wasm"),
    ("kube", "apiserver"),
    ("kube-client", "apiserver"),
    ("axum", "server"),
    ("zbus", "logind"),
];

/// What core must stay free of: clocks, I/O, executors (as a dependency, that is: its tests may use one).
const NOT_IN_CORE: &[&str] = &["tokio", "rustix", "hyper", "notify", "libc", "nix", "reqwest"];

/// The top level, dotfiles aside.
const TOP: &[&str] =
    &["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "examples", "host", "plugins", "target", "tests", "wit"];

const LINES: usize = 500;

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("tests/ lies in the root").to_owned()
}

/// `cargo metadata --no-deps` of a manifest: its packages.
fn packages(manifest: &Path) -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"])
        .arg(manifest)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    metadata["packages"].as_array().cloned().unwrap_or_default()
}

/// The packages under `host/`, by room.
fn rooms() -> BTreeMap<String, Value> {
    let host = root().join("host");
    let mut rooms = BTreeMap::new();
    for package in packages(&root().join("Cargo.toml")) {
        let folder = Path::new(text(&package["manifest_path"])).parent().map(Path::to_owned).unwrap_or_default();
        if let Ok(room) = folder.strip_prefix(&host) {
            rooms.insert(room.display().to_string(), package);
        }
    }
    assert!(rooms.len() >= 8, "cargo metadata shows only {:?} under host/", rooms.keys());
    rooms
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Names of a package's dependencies; those for tests only if `with_dev`.
fn dependencies(package: &Value, with_dev: bool) -> Vec<String> {
    let list = package["dependencies"].as_array().cloned().unwrap_or_default();
    list.iter().filter(|one| with_dev || one["kind"] != "dev").map(|one| text(&one["name"]).to_owned()).collect()
}

/// Every file below `folder` that has one of the `endings`; what is built or hidden is left out.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.starts_with('.') || name == "target" || name == "node_modules" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| endings.iter().any(|one| ending == *one)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Fails with all the problems, not with the first.
fn none(rule: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{rule}:\n  {}\n", problems.join("\n  "));
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn only_one_room_names_each_outside_system() {
    let mut problems = Vec::new();
    for (room, package) in rooms() {
        // A test, too, would build on what it names: there is the end-to-end binary for that.
        for name in dependencies(&package, true) {
            if let Some((wall, owner)) = WALLS.iter().find(|(wall, _)| *wall == name)
                && *owner != room
            {
                problems.push(format!("host/{room} depends on {wall}: only host/{owner} may"));
            }
        }
    }
    none("each outside system has one room", &problems);
}

#[test]
fn rooms_depend_in_the_direction_of_the_design() {
    let mut problems = Vec::new();
    for (room, package) in rooms() {
        let Some((_, allowed)) = OURS.iter().find(|(name, _)| *name == room) else {
            problems.push(format!("host/{room} is not a room of the design: add it to OURS in tests/tests/tidy.rs"));
            continue;
        };
        for name in dependencies(&package, false) {
            if let Some(other) = name.strip_prefix("longshore-")
                && !allowed.contains(&other)
            {
                problems.push(format!("host/{room} depends on {name}; it may on {allowed:?}"));
            }
        }
    }
    none("agent -> {reconcile, adapters} -> core", &problems);
}

/// A source up to its tests, where these are in the same file: `mod tests;` at its top ends nothing.
fn without_tests(source: &str) -> &str {
    let marker = "#[cfg(test)]";
    let mut tests = source.match_indices(marker).filter(|(at, _)| {
        let rest =
            source[at + marker.len()..].lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        rest.is_some_and(|item| item.ends_with('{'))
    });
    tests.next().map_or(source, |(at, _)| &source[..at])
}

#[test]
fn only_tests_are_without() {
    let source = "#[cfg(test)]\nmod model;\nfn decided() {}\n#[cfg(test)]\n#[allow(clippy::unwrap_used)]\nmod tests {\nfn tried() {}\n}\n";
    assert!(without_tests(source).contains("decided") && !without_tests(source).contains("tried"));
}

#[test]
fn core_stays_pure() {
    let core = &rooms()["core"];
    let impure: Vec<_> =
        dependencies(core, false).into_iter().filter(|name| NOT_IN_CORE.contains(&name.as_str())).collect();
    none("host/core has no clock, I/O or executor", &impure);

    let banned = [
        "std::fs",
        "TcpStream",
        "UdpSocket",
        "std::process",
        "std::thread",
        "SystemTime::now",
        "Instant::now",
        "Timestamp::now",
    ];
    let mut problems = Vec::new();
    for path in files(&root().join("host/core/src"), &["rs"]) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let in_tests = path.components().any(|part| part.as_os_str() == "tests");
        if in_tests || name == "testing.rs" || name.ends_with("tests.rs") {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap_or_default();
        for (number, line) in without_tests(&source).lines().enumerate() {
            if !line.trim_start().starts_with("//") && banned.iter().any(|word| line.contains(word)) {
                problems.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    none("host/core takes time and randomness as arguments, and does no I/O", &problems);
}

#[test]
fn packages_are_named_for_their_rooms_and_licensed() {
    let mut problems = Vec::new();
    for (room, package) in rooms() {
        if text(&package["name"]) != format!("longshore-{room}") {
            problems.push(format!("host/{room} is called {}: longshore-{room}", package["name"]));
        }
    }
    let mut manifests = vec![root().join("Cargo.toml")];
    for folder in ["plugins", "examples"] {
        for path in files(&root().join(folder), &["toml"]) {
            if path.ends_with("Cargo.toml") {
                manifests.push(path);
            }
        }
    }
    for manifest in manifests {
        for package in packages(&manifest) {
            if text(&package["license"]) != "Apache-2.0" {
                problems.push(format!("{}: license is {}, not Apache-2.0", text(&package["name"]), package["license"]));
            }
            if package["publish"] != Value::Array(Vec::new()) {
                problems.push(format!("{}: publish = false is missing", text(&package["name"])));
            }
        }
    }
    problems.sort();
    problems.dedup();
    none("names, licences", &problems);
}

#[test]
fn guests_depend_on_nothing_of_the_host() {
    let mut problems = Vec::new();
    for manifest in files(&root().join("plugins"), &["toml"]) {
        if !manifest.ends_with("Cargo.toml") {
            continue;
        }
        for package in packages(&manifest) {
            for one in package["dependencies"].as_array().into_iter().flatten() {
                if text(&one["path"]).contains("/host/") {
                    problems.push(format!("{}: {}", shown(&manifest), text(&one["path"])));
                }
            }
        }
    }
    none("plugins depend on wit/ and each other alone", &problems);
}

#[test]
fn every_source_file_says_what_it_owns_and_fits_a_reader() {
    let mut problems = Vec::new();
    for folder in ["host", "plugins", "tests", "examples"] {
        for path in files(&root().join(folder), &["rs"]) {
            let source = fs::read_to_string(&path).unwrap_or_default();
            if !source.starts_with("//! ") {
                problems.push(format!("{}: the first line is not `//! ` and what the file owns", shown(&path)));
            }
        }
    }
    for folder in ["host", "plugins", "tests", "examples", "wit"] {
        for path in files(&root().join(folder), &["rs", "wit", "md", "py", "sh"]) {
            let lines = fs::read_to_string(&path).unwrap_or_default().lines().count();
            if lines > LINES {
                problems.push(format!("{}: {lines} lines, at most {LINES}: split it by noun", shown(&path)));
            }
        }
    }
    none("openings and sizes", &problems);
}

#[test]
fn nothing_unfinished_lies_about() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let calls = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!(")];
    let mut problems = Vec::new();
    for path in files(&root(), &["rs", "toml", "wit", "md", "sh", "yaml", "yml", "json"]) {
        let source = fs::read_to_string(&path).unwrap_or_default();
        for (number, line) in source.lines().enumerate() {
            let word = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| words.contains(&word));
            if word || calls.iter().any(|call| line.contains(call)) {
                problems.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    none("finished work only", &problems);
}

#[test]
fn the_top_level_holds_what_the_design_lists() {
    let mut strangers = Vec::new();
    for entry in fs::read_dir(root()).expect("the root can be read").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP.contains(&name.as_str()) {
            strangers.push(name);
        }
    }
    none("the top level (tool settings are dotfiles)", &strangers);
}

#[test]
fn the_readme_maps_every_room() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap_or_default();
    let mut places = vec!["wit/".to_owned(), "examples/".to_owned(), "tests/".to_owned()];
    places.extend(rooms().keys().map(|room| format!("host/{room}")));
    for entry in fs::read_dir(root().join("plugins")).into_iter().flatten().flatten() {
        if entry.path().join("Cargo.toml").is_file() {
            places.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let missing: Vec<_> = places.into_iter().filter(|place| !readme.contains(place.as_str())).collect();
    none("README.md names every room", &missing);
}

#[test]
fn cargo_deny_knows_the_same_walls() {
    let deny = fs::read_to_string(root().join(".deny.toml")).expect(".deny.toml is there");
    let missing: Vec<_> = WALLS
        .iter()
        .filter(|(wall, owner)| {
            let owner = format!("\"longshore-{owner}\"");
            !deny.lines().any(|line| line.contains(&format!("\"{wall}\"")) && line.contains(&owner))
        })
        .map(|(wall, owner)| format!("{wall}: only longshore-{owner}"))
        .collect();
    none(".deny.toml has a line with `wrappers` for each wall", &missing);
}
