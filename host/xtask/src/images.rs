//! The images that tests and the demo use, made of a static busybox and a small server of ours: no registry is
//! asked. Must not decide who gets them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{apt, http::Client, place::Place, process, say};

/// A static busybox with every applet as a link.
pub(crate) const BUSYBOX: &str = "longshore.dev/busybox:1";
/// busybox, our gRPC health server and a page to serve: what `examples/manifests` runs.
pub(crate) const EXAMPLE: &str = "longshore.dev/example:1";

/// The label that tells what an image was made of.
const CONTENT: &str = "dev.longshore.content";

const LIMIT: Duration = Duration::from_secs(60);

/// The two images as tar files of their root file systems, made once.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    /// Of [`BUSYBOX`].
    pub busybox: PathBuf,
    /// Of [`EXAMPLE`].
    pub example: PathBuf,
}

/// Makes both tar files under the target folder.
///
/// # Errors
/// When there is no static busybox to be had, or our server cannot be compiled.
pub(crate) fn roots(place: &Place) -> Result<Roots> {
    let busybox = static_busybox(place)?;
    let server = example_server(place)?;
    let folder = place.work().join("images");
    fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    let roots = Roots { busybox: folder.join("busybox.tar"), example: folder.join("example.tar") };
    let server = fs::read(&server).with_context(|| format!("{}", server.display()))?;
    let [www, page] = Extra::page();
    let example = [Extra::file("bin/grpc-health", 0o755, server), www, page];
    fs::write(&roots.busybox, root(&busybox, &[])?)?;
    fs::write(&roots.example, root(&busybox, &example)?)?;
    Ok(roots)
}

/// What a root file system has beside busybox, or in place of ours.
#[derive(Debug)]
pub(crate) struct Extra {
    path: &'static str,
    mode: u32,
    /// `None` for a folder.
    content: Option<Vec<u8>>,
}

impl Extra {
    pub(crate) fn file(path: &'static str, mode: u32, content: Vec<u8>) -> Self {
        Self { path, mode, content: Some(content) }
    }

    pub(crate) fn folder(path: &'static str) -> Self {
        Self { path, mode: 0o755, content: None }
    }

    /// A page to serve, and its folder `/www`.
    pub(crate) fn page() -> [Self; 2] {
        let page = b"<h1>Served from a pod</h1>\n".to_vec();
        [Self::folder("www"), Self::file("www/index.html", 0o644, page)]
    }
}

/// A root file system with busybox and more, as tar.
///
/// # Errors
/// When there is no static busybox to be had.
pub(crate) fn root_with(place: &Place, more: &[Extra]) -> Result<Vec<u8>> {
    root(&static_busybox(place)?, more)
}

/// Imports `tar` as `image` into the daemon at `socket`, unless it has that very one.
///
/// # Errors
/// When the daemon refuses.
pub(crate) fn import(socket: &Path, tar: &Path, image: &str) -> Result<()> {
    let body = fs::read(tar).with_context(|| format!("{}", tar.display()))?;
    // PATH as Docker's own images have it, and a command, so that a bare container runs.
    import_as(socket, &body, image, &["ENV PATH=/bin", r#"CMD ["sh"]"#])
}

/// Imports the root file system `body` as `image`, with these instructions of a Dockerfile, unless the daemon has that very
/// one.
///
/// # Errors
/// When the daemon refuses.
pub(crate) fn import_as(socket: &Path, body: &[u8], image: &str, instructions: &[&str]) -> Result<()> {
    let (name, tag) = image.rsplit_once(':').context("an image without a tag")?;
    let content = content(body);
    let mut client = Client::new(socket, LIMIT);
    if let Ok(there) = client.get(&format!("/images/{image}/json"))
        && there["Config"]["Labels"][CONTENT] == content
    {
        return Ok(());
    }
    let mut path = format!("/images/create?fromSrc=-&repo={name}&tag={tag}");
    for instruction in instructions.iter().copied().chain([format!("LABEL {CONTENT}={content}").as_str()]) {
        path.push_str("&changes=");
        path.push_str(&in_query(instruction));
    }
    let answer = client.request("POST", &path, "application/x-tar", body)?;
    let text = String::from_utf8_lossy(&answer.body);
    if answer.status >= 400 || text.contains("\"errorDetail\"") {
        bail!("{image} cannot be imported: {} {}", answer.status, text.trim());
    }
    Ok(())
}

/// A name for what is in `body`: a new one is imported, an old one is not imported again (each import that takes a
/// tag away leaves an image without a name).
fn content(body: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// A value as a query has it.
fn in_query(value: &str) -> String {
    let encode = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    value.bytes().map(encode).collect()
}

/// Removes the images `longshore.dev/…` from the daemon at `socket`, those in use aside.
///
/// # Errors
/// When it does not answer.
pub(crate) fn remove_all(socket: &Path) -> Result<()> {
    let mut client = Client::new(socket, LIMIT);
    let list = client.get("/images/json")?;
    let names =
        list.as_array().into_iter().flatten().flat_map(|image| image["RepoTags"].as_array().into_iter().flatten());
    for name in names.filter_map(serde_json::Value::as_str).filter(|name| name.starts_with("longshore.dev/")) {
        let _ = client.request("DELETE", &format!("/images/{name}"), "", b"")?;
    }
    Ok(())
}

/// Imports both images.
///
/// # Errors
/// When the daemon refuses.
pub(crate) fn import_all(socket: &Path, roots: &Roots) -> Result<()> {
    import(socket, &roots.busybox, BUSYBOX)?;
    import(socket, &roots.example, EXAMPLE)
}

/// A busybox that needs no libraries and has what the examples run.
fn static_busybox(place: &Place) -> Result<PathBuf> {
    if let Some(found) = process::on_path("busybox")
        && is_suitable(&found)
    {
        return Ok(found);
    }
    let folder = apt::unpack(&place.cache, "busybox-static")
        .context("a static busybox is needed for the images: install one (busybox-static), with httpd and nc in it")?;
    for path in ["bin/busybox", "usr/bin/busybox"] {
        let path = folder.join(path);
        if is_suitable(&path) {
            return Ok(path);
        }
    }
    bail!("{} holds no usable busybox", folder.display())
}

fn is_suitable(busybox: &Path) -> bool {
    let Ok(bytes) = fs::read(busybox) else { return false };
    // A dynamic one names its loader.
    let loader = b"/ld-";
    if bytes.windows(loader.len()).take(64 << 10).any(|window| window == loader) {
        return false;
    }
    applets(busybox).is_ok_and(|list| ["httpd", "nc", "sh", "wget"].iter().all(|one| list.iter().any(|it| it == one)))
}

fn applets(busybox: &Path) -> Result<Vec<String>> {
    let list = process::output("busybox --list", Command::new(busybox).arg("--list"), Duration::from_secs(10))?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// Compiles `examples/servers`, static, so that it runs in an image without libraries.
fn example_server(place: &Place) -> Result<PathBuf> {
    let folder = place.root.join("examples/servers");
    let target = place.target.join("examples");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args(["build", "--quiet", "--release", "--locked"]);
    let log = place.fresh_log("examples-servers")?;
    if !process::logged("cargo build of examples/servers", &mut command, &log, Duration::from_secs(600))? {
        let text = fs::read_to_string(&log).unwrap_or_default();
        bail!(
            "examples/servers does not compile (it is linked statically, which needs Debian's libc6-dev, or Fedora's glibc-static):\n{}",
            say::tail(&text, 20)
        );
    }
    Ok(target.join("release/grpc-health"))
}

/// A root file system as tar: busybox and its links, and more.
fn root(busybox: &Path, more: &[Extra]) -> Result<Vec<u8>> {
    use tar::EntryType::{Directory, Regular, Symlink};
    let mut tar = tar::Builder::new(Vec::new());
    for (folder, mode) in
        [("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755), ("var/tmp", 0o1777)]
    {
        append(&mut tar, folder, Directory, mode, b"")?;
    }
    append(&mut tar, "bin/busybox", Regular, 0o755, &fs::read(busybox)?)?;
    let has = |path: &str| more.iter().any(|extra| extra.path == path);
    for link in applets(busybox)?.iter().map(|applet| format!("bin/{applet}")) {
        if link != "bin/busybox" && !has(&link) {
            tar.append_link(&mut header(Symlink, 0o777, 0), link, "busybox")?;
        }
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    for (path, text) in [("etc/passwd", users), ("etc/group", "root:x:0:\nnogroup:x:65534:\n")] {
        if !has(path) {
            append(&mut tar, path, Regular, 0o644, text.as_bytes())?;
        }
    }
    for extra in more {
        match &extra.content {
            Some(content) => append(&mut tar, extra.path, Regular, extra.mode, content)?,
            None => append(&mut tar, extra.path, Directory, extra.mode, b"")?,
        }
    }
    Ok(tar.into_inner()?)
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, body: &[u8]) -> Result<()> {
    let mut header = header(kind, mode, body.len());
    tar.append_data(&mut header, path, body).with_context(|| format!("tar entry {path}"))
}
