//! The pause image: our own program as an archive that `docker load` takes. It must not decide when it is loaded.

use std::io;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

/// Name of the image that [`archive`] holds. It has the program's digest in it, so that another version of longshore
/// brings its own.
pub(crate) static NAME: LazyLock<String> =
    LazyLock::new(|| format!("longshore.dev/pause:{}", &digest(longshore_pause::PROGRAM)[..12]));

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The image as `docker save` writes one: a configuration, one layer, and a manifest. The same bytes every time.
pub(crate) fn archive() -> io::Result<Vec<u8>> {
    let layer = tarball(&[("pause", 0o755, longshore_pause::PROGRAM)])?;
    let config = serde_json::json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/pause"], "Env": ["PATH=/"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "longshore"}],
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let manifest =
        serde_json::json!([{"Config": config_name, "RepoTags": [*NAME], "Layers": ["layer.tar"]}]).to_string();
    tarball(&[
        (&config_name, 0o644, config.as_bytes()),
        ("layer.tar", 0o644, &layer),
        ("manifest.json", 0o644, manifest.as_bytes()),
    ])
}

fn tarball(files: &[(&str, u32, &[u8])]) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, mode, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        builder.append_data(&mut header, name, *bytes)?;
    }
    builder.into_inner()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_always_the_same() {
        assert_eq!(archive().unwrap(), archive().unwrap());
        assert!(NAME.starts_with("longshore.dev/pause:"));
    }
}
