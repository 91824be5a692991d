//! Compiled components on disk. It must not load what somebody else could have written: native code runs with our rights.
//!
//! The folder belongs to us alone (0700), as do the files (0600); a file's name holds what it was made of (the component's SHA-256
//! and wasmtime's compatibility hash) and its own SHA-256, so that a damaged one is found out and made again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{Hash as _, Hasher};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Files that are kept; the oldest go first.
const MAX_ENTRIES: usize = 64;

/// Bytes of a file that is looked at; a component of the greatest size that we take compiles to less.
const MAX_ENTRY: u64 = 512 << 20;

/// A folder of compiled components, or nothing when there is none that can be trusted.
pub(crate) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// Opens the folder, and makes it when it is not there. One that others could write to is not used.
    pub(crate) fn open(folder: &Path) -> Self {
        let made = match fs::symlink_metadata(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)
            }
            _ => Ok(()),
        };
        let trusted = made.and_then(|()| fs::symlink_metadata(folder)).and_then(|metadata| {
            if !metadata.is_dir() {
                return Err(io::Error::other("it is not a folder"));
            }
            private(&metadata)
        });
        match trusted {
            Ok(()) => Self { folder: Some(folder.to_owned()) },
            Err(error) => {
                tracing::warn!(
                    folder = %folder.display(), %error,
                    "compiled plugins are not cached: the folder must be ours alone (mode 0700); remove it to have it made anew"
                );
                Self { folder: None }
            }
        }
    }

    /// The component of these bytes: from the cache, else compiled, and then cached.
    pub(crate) fn component(&self, engine: &Engine, wasm: &[u8], sha256: [u8; 32]) -> wasmtime::Result<Component> {
        let key = format!("{}-{}", hex(&sha256), compatibility(engine));
        if let Some(component) = self.load(engine, &key) {
            return Ok(component);
        }
        let code = engine.precompile_component(wasm)?;
        if let Some(folder) = &self.folder {
            match store(folder, &key, &code) {
                Ok(path) => {
                    if let Some(component) = open(engine, &path) {
                        return Ok(component);
                    }
                }
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "a compiled plugin cannot be cached");
                }
            }
        }
        // SAFETY: these bytes came from this engine's own compiler, just now.
        #[allow(unsafe_code)]
        unsafe {
            Component::deserialize(engine, code)
        }
    }

    fn load(&self, engine: &Engine, key: &str) -> Option<Component> {
        let folder = self.folder.as_ref()?;
        let entries = fs::read_dir(folder).ok()?;
        for entry in entries.flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            if !name.starts_with(key) || name.ends_with(".partial") {
                continue;
            }
            let path = entry.path();
            match verify(&path, &name[key.len()..]) {
                Ok(()) => {
                    if let Some(component) = open(engine, &path) {
                        return Some(component);
                    }
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a cached plugin is not used, and compiled again");
                }
            }
            let _ = fs::remove_file(&path);
        }
        None
    }
}

/// Loads a file that was verified. It is mapped, so that what never runs is never read.
fn open(engine: &Engine, path: &Path) -> Option<Component> {
    // SAFETY: the file is ours alone, in a folder that is ours alone, and is what we once wrote: its digest was checked or it was
    // written just now; it is replaced by renaming only, never changed in place.
    #[allow(unsafe_code)]
    let loaded = unsafe { Component::deserialize_file(engine, path) };
    loaded
        .inspect_err(|error| tracing::warn!(path = %path.display(), error = %error.root_cause(), "a cached plugin does not load"))
        .ok()
}

/// Whether only we can have written this.
fn private(metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("it belongs to user {}", metadata.uid())));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("others have rights on it (mode {:o})", metadata.mode() & 0o7777)));
    }
    Ok(())
}

/// Whether a file is private and still what its name says.
fn verify(path: &Path, suffix: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() != 1 || metadata.len() > MAX_ENTRY {
        return Err(io::Error::other("it is not a plain file of its own"));
    }
    private(&metadata)?;
    if format!("-{}.cwasm", digest(&mut file)?) == suffix { Ok(()) } else { Err(io::Error::other("it is damaged")) }
}

fn digest(file: &mut File) -> io::Result<String> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&sha.finalize())),
            read => sha.update(&buffer[..read]),
        }
    }
}

fn store(folder: &Path, key: &str, code: &[u8]) -> io::Result<PathBuf> {
    prune(folder)?;
    let path = folder.join(format!("{key}-{}.cwasm", hex(&Sha256::digest(code))));
    static WRITTEN: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed));
    let partial = folder.join(format!("{key}.{process}.{number}.partial"));
    let _ = fs::remove_file(&partial);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    file.write_all(code)?;
    file.sync_all()?;
    fs::rename(&partial, &path)?;
    Ok(path)
}

fn prune(folder: &Path) -> io::Result<()> {
    let mut entries: Vec<(SystemTime, PathBuf)> = fs::read_dir(folder)?
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    entries.sort();
    for (_, path) in entries.iter().take((entries.len() + 1).saturating_sub(MAX_ENTRIES)) {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// A text that is equal for engines that can run each other's code.
fn compatibility(engine: &Engine) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn finish(&self) -> u64 {
            0
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut sha = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut sha);
    hex(&sha.0.finalize()[..8])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
