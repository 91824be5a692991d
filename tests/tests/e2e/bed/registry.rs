//! Registries: the one of the test's world, and a door before it that asks for a password or never answers.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

use serde_json::json;

use super::{Bed, docker::image, http};

/// `host:port` of the registry, when there is one; else a line that says so.
pub(crate) fn address() -> Option<String> {
    let found = std::env::var("LONGSHORE_TEST_REGISTRY").ok().filter(|address| !address.is_empty());
    if found.is_none() {
        crate::bed::skip("LONGSHORE_TEST_REGISTRY is not set: no registry to pull from");
    }
    found
}

/// Pushes the test's image to the registry under a name, and removes it locally.
pub(crate) fn push(bed: &Bed, registry: &str, name: &str) {
    push_as(bed, &image(), registry, name);
}

/// The same with another image, which stays under its own name.
pub(crate) fn push_as(bed: &Bed, image: &str, registry: &str, name: &str) {
    let whole = format!("{registry}/{name}");
    let tag = format!("/images/{image}/tag?repo={whole}&tag=1");
    assert_eq!(bed.docker.call("POST", &tag, None).status, 201);
    let head = "X-Registry-Auth: e30=\r\n";
    let path = format!("/v1.41/images/{}/push?tag=1", http::encode(&whole));
    let (status, mut reader) = http::open(&bed.docker.socket, "POST", &path, head, b"").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(status == 200 && !text.contains("errorDetail"), "{text}");
    remove(bed, &format!("{whole}:1"));
}

/// Removes an image's name.
pub(crate) fn remove(bed: &Bed, image: &str) {
    bed.docker.call("DELETE", &format!("/images/{image}?force=1"), None);
}

/// A door before a registry that opens for one user only; ends with the test's process.
pub(crate) fn guarded(registry: &str, user: &str, password: &str) -> String {
    let wanted = format!("Basic {}", base64(format!("{user}:{password}").as_bytes()));
    let registry = registry.to_owned();
    listen(move |mut client| {
        let Some(head) = head(&client) else {
            // Some clients try TLS first, and go on without when the answer is HTTP's.
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
            return;
        };
        let shown = head.lines().find(|line| line.to_ascii_lowercase().starts_with("authorization:"));
        let shown = shown.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
        if shown != Some(wanted.as_str()) {
            let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}).to_string();
            let _ = write!(
                client,
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"door\"\r\nDocker-Distribution-Api-Version: \
                 registry/2.0\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            return;
        }
        let kept = head.lines().filter(|line| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !line.is_empty() && name != "connection" && name != "authorization"
        });
        let request: String = kept.map(|line| format!("{line}\r\n")).collect();
        let Ok(mut server) = TcpStream::connect(&registry) else { return };
        let _ = server.write_all(format!("{request}Connection: close\r\n\r\n").as_bytes());
        let _ = std::io::copy(&mut server, &mut client);
    })
}

/// A registry that takes connections and never says a word.
pub(crate) fn silent() -> String {
    listen(|client| {
        let mut buffer = [0; 1024];
        while (&client).read(&mut buffer).is_ok_and(|count| count > 0) {}
    })
}

fn listen(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(client));
        }
    });
    address
}

fn head(client: &TcpStream) -> Option<String> {
    let mut reader = BufReader::new(client);
    let mut text = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim_end().is_empty() {
            return Some(text.replace('\r', ""));
        }
        text.push_str(&line);
    }
}

fn base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let all = part.iter().fold(0_u32, |all, byte| all << 8 | u32::from(*byte)) << (8 * (3 - part.len()));
        for at in 0..4 {
            let sign = SIGNS[(all >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= part.len() { char::from(sign) } else { '=' });
        }
    }
    text
}
