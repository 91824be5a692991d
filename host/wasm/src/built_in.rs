//! The guests in this binary, by the names of their folders in `plugins/`. It must not load them.

/// A guest that was compiled into the binary.
pub(crate) struct BuiltIn {
    guest: &'static str,
    pub(crate) wasm: &'static [u8],
    pub(crate) sha256: [u8; 32],
}

static BUILT_IN: [BuiltIn; 5] = include!(concat!(env!("OUT_DIR"), "/built_in.rs"));

/// The guest of that name.
///
/// # Panics
/// When `build.rs` embedded none of that name.
pub(crate) fn guest(name: &str) -> &'static BuiltIn {
    BUILT_IN.iter().find(|built_in| built_in.guest == name).expect("build.rs embeds every guest that is asked for")
}
