//! The manifest URL: its pods come, change and go with what a server says; one that fails or is gone takes none away, not even over a
//! restart of the agent.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::bed::{
    Bed,
    pods::{container, id, is_ready, restarts, sleeper, uid, with},
    until,
};

/// What is said to a request's head: status, headers and body. `None` hangs up.
type Answer = Option<(u16, String, String)>;

/// A server of manifests. It ends with its test's process.
pub(crate) struct Server {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server { port, answer: Arc::default(), heard: Arc::default() };
        let (answer, heard) = (Arc::clone(&server.answer), Arc::clone(&server.heard));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let head = serve(stream, answer);
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(head);
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/pods", self.port)
    }

    fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    pub(crate) fn say(&self, body: &Value) {
        self.set(Some((200, String::new(), body.to_string())));
    }

    fn requests(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    /// Waits until what is said now was said twice: so it was heard.
    fn heard(&self) {
        let before = self.requests();
        until("the manifest URL is looked at", || (self.requests() >= before + 2).then_some(()));
    }
}

/// Answers one request; its head.
fn serve(mut stream: TcpStream, answer: Answer) -> String {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let mut head = String::new();
    let Ok(reading) = stream.try_clone() else { return head };
    let mut reader = BufReader::new(reading);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) && line.trim_end() != "" {
        head.push_str(&line);
        line.clear();
    }
    let Some((status, headers, body)) = answer else { return head };
    let length = body.len();
    let answer = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
    let _ = stream.write_all(answer.as_bytes());
    head
}

fn list(pods: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "PodList", "items": pods})
}

fn bed(server: &Server) -> Option<Bed> {
    let mut bed = Bed::new()?;
    bed.flags = vec![
        format!("--manifest-url={}", server.url()),
        "--manifest-url-header=X-Token: very-secret,X-Zone:z1".to_owned(),
        "--http-check-frequency=200ms".to_owned(),
    ];
    Some(bed)
}

#[test]
fn manifest_url_is_followed() {
    let server = Server::start();
    server.say(&sleeper("one"));
    let Some(mut bed) = bed(&server) else { return };
    bed.begin();
    let one = bed.wait_ready("one");
    assert_eq!(one["metadata"]["annotations"]["kubernetes.io/config.source"], "http");
    let head = server.heard.lock().unwrap()[0].clone();
    assert!(head.contains("X-Token: very-secret\r\n") && head.contains("X-Zone: z1\r\n"), "{head}");
    // One more, and one that is changed: a new pod after the old one.
    let changed = with(sleeper("one"), json!({"spec": {"containers": [container("app", "sleep 100000")]}}));
    server.say(&list(&[changed.clone(), sleeper("two")]));
    let two = bed.wait_ready("two");
    let new = bed.wait("one", "ready with another UID", |pod| is_ready(pod) && uid(pod) != uid(&one));
    // Failures of every kind take none of them away.
    let page = "<html>maintenance</html>".to_owned();
    for answer in [
        None,
        Some((503, String::new(), page.clone())),
        Some((200, String::new(), page)),
        Some((200, String::new(), String::new())),
    ] {
        server.set(answer);
        server.heard();
        assert_eq!((uid(&bed.wait_ready("one")), uid(&bed.wait_ready("two"))), (uid(&new), uid(&two)));
    }
    until("the problem is told", || {
        let told = bed.get("/v1/problems").to_string();
        (told.contains("zero-length data received") && told.contains(&server.url())).then_some(())
    });
    // A list that shrinks ends what is not in it, and an empty one all.
    server.say(&list(&[sleeper("two")]));
    bed.wait_gone("one");
    assert_eq!(uid(&bed.wait_ready("two")), uid(&two));
    server.say(&list(&[]));
    bed.wait_gone("two");
    let log = std::fs::read_to_string(bed.folder.join("log")).unwrap();
    assert!(!log.contains("very-secret"), "{log}");
    assert_eq!(log.matches("503 Service Unavailable").count(), 1, "said once, not with each poll:\n{log}");
}

#[test]
fn manifest_url_that_is_down_over_a_restart_keeps_its_pods() {
    let server = Server::start();
    server.say(&list(&[sleeper("kept"), sleeper("left")]));
    let Some(mut bed) = bed(&server) else { return };
    bed.apply(&sleeper("file"));
    bed.begin();
    let (kept, left, file) = (bed.wait_ready("kept"), bed.wait_ready("left"), bed.wait_ready("file"));
    bed.stop();
    server.set(None);
    bed.delete("file");
    bed.begin();
    server.heard();
    let again = bed.wait_ready("kept");
    assert_eq!((uid(&again), id(&again, "app"), restarts(&again, "app")), (uid(&kept), id(&kept, "app"), 0));
    // What ran is looked after, not only left alone: a container that ends is started again.
    let container = id(&left, "app");
    bed.docker.kill(container.trim_start_matches("docker://"), "KILL");
    bed.wait("left", "restarted", |pod| is_ready(pod) && restarts(pod, "app") == 1);
    // As in the kubelet: nothing is removed before every source has spoken once.
    assert_eq!(uid(&bed.wait_ready("file")), uid(&file));
    server.say(&list(&[sleeper("kept")]));
    bed.wait_gone("left");
    bed.wait_gone("file");
    let last = bed.wait_ready("kept");
    assert_eq!((uid(&last), restarts(&last, "app")), (uid(&kept), 0));
}
