//! The adapter against a logind at the other end of a connection, which answers as systemd's does; the emulated machine
//! has the real one.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use longshore_core::ports::shutdown::{EndWatch, MachineEnd, ShutdownError};
use longshore_logind::Logind;
use zbus::connection::Builder;
use zbus::message::{Message, Type};
use zbus::{Connection, Guid, MessageStream, Variant};

const LIMIT: Duration = Duration::from_secs(20);

/// What the other end is like.
#[derive(Default)]
struct State {
    longest_delay: u64,
    goes_down: bool,
    /// How often it was asked whether the machine goes down.
    looks: usize,
    /// Where it finds a drop-in when it is told to read its settings again; `None` where that changes nothing.
    drop_ins: Option<PathBuf>,
    /// Our ends of the inhibitors that it gave out.
    inhibitors: Vec<UnixStream>,
}

struct Fake {
    state: Arc<Mutex<State>>,
    connection: Connection,
    logind: Logind,
    folder: tempfile::TempDir,
}

impl Fake {
    async fn new(state: State) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = tokio::net::UnixStream::pair().unwrap();
        let (here, there) = (here.into_std().unwrap(), there.into_std().unwrap());
        let guid = Guid::generate();
        let server = Builder::unix_stream(there).server(guid).p2p().build();
        let client = Builder::unix_stream(here).p2p().build();
        let (server, client) = tokio::join!(server, client);
        let (server, client) = (server.unwrap(), client.unwrap());
        let state = Arc::new(Mutex::new(state));
        tokio::spawn(serve(server.clone(), state.clone()));
        Fake { state, connection: server, logind: Logind::over(client, folder.path().join("d")), folder }
    }

    fn drop_in(&self) -> PathBuf {
        self.folder.path().join("d/99-longshore.conf")
    }

    /// The machine is about to go down, or not any more; the signal says so.
    async fn turn(&self, goes_down: bool) {
        self.state.lock().unwrap().goes_down = goes_down;
        self.signal(goes_down).await;
    }

    async fn signal(&self, goes_down: bool) {
        let (path, interface) = ("/org/freedesktop/login1", "org.freedesktop.login1.Manager");
        let sent = self.connection.emit_signal(None::<&str>, path, interface, "PrepareForShutdown", &goes_down);
        sent.await.unwrap();
    }

    /// How many inhibitors are still held.
    fn held(&self) -> usize {
        let mut state = self.state.lock().unwrap();
        let held = state.inhibitors.iter_mut().filter_map(|end| {
            let mut byte = [0];
            matches!(end.read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock).then_some(())
        });
        held.count()
    }

    async fn until_held(&self, count: usize) {
        let held = async {
            while self.held() != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, held).await.unwrap();
    }
}

async fn serve(connection: Connection, state: Arc<Mutex<State>>) {
    let mut messages = MessageStream::from(&connection);
    while let Some(Ok(message)) = messages.next().await {
        if message.message_type() == Type::MethodCall {
            answer(&connection, &state, &message).await;
        }
    }
}

async fn answer(connection: &Connection, state: &Mutex<State>, message: &Message) {
    let header = message.header();
    match header.member().map(|member| member.to_string()).as_deref() {
        Some("Get") => {
            let body = message.body();
            let (_, name): (&str, &str) = body.deserialize().unwrap();
            let value = {
                let mut state = state.lock().unwrap();
                match name {
                    "InhibitDelayMaxUSec" => Variant::from(state.longest_delay),
                    "PreparingForShutdown" => {
                        state.looks += 1;
                        Variant::from(state.goes_down)
                    }
                    other => panic!("no property {other}"),
                }
            };
            connection.reply(&header, &value).await.unwrap();
        }
        Some("Inhibit") => {
            let body = message.body();
            let (what, who, _, mode): (&str, &str, &str, &str) = body.deserialize().unwrap();
            assert_eq!((what, who, mode), ("shutdown", "longshore", "delay"));
            if state.lock().unwrap().goes_down {
                let name = "org.freedesktop.login1.OperationInProgress";
                let text = "The operation inhibition has been requested for is already running";
                connection.reply_error(&header, name, &text).await.unwrap();
                return;
            }
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            state.lock().unwrap().inhibitors.push(ours);
            connection.reply(&header, &zbus::Fd::from(OwnedFd::from(theirs))).await.unwrap();
        }
        Some("KillUnit") => {
            let body = message.body();
            let (unit, who, signal): (&str, &str, i32) = body.deserialize().unwrap();
            assert_eq!((unit, who, signal), ("systemd-logind.service", "all", 1));
            connection.reply(&header, &()).await.unwrap();
            let folder = state.lock().unwrap().drop_ins.clone();
            if let Some(delay) = folder.and_then(|folder| set_delay(&folder)) {
                state.lock().unwrap().longest_delay = delay;
            }
        }
        other => panic!("no method {other:?}"),
    }
}

/// Microseconds, as the file sets them.
fn set_delay(folder: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(folder.join("99-longshore.conf")).ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("InhibitDelayMaxSec="))?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000)
}

async fn next(watch: &mut Box<dyn EndWatch>) -> Option<bool> {
    tokio::time::timeout(LIMIT, watch.next()).await.unwrap()
}

async fn follow(fake: &Fake, seconds: u64) -> Result<Box<dyn EndWatch>, ShutdownError> {
    fake.logind.follow(Duration::from_secs(seconds)).await
}

#[tokio::test]
async fn the_machine_waits_until_it_is_let_go_and_again_after_it_was_called_off() {
    let fake = Fake::new(State { longest_delay: 30_000_000, ..State::default() }).await;
    let mut watch = follow(&fake, 30).await.unwrap();
    assert_eq!(next(&mut watch).await, Some(false));
    fake.until_held(1).await;
    assert!(!fake.drop_in().exists(), "it waits for long enough as it is");
    fake.turn(true).await;
    assert_eq!(next(&mut watch).await, Some(true));
    assert_eq!(fake.held(), 1, "it waits for us");
    watch.let_go();
    fake.until_held(0).await;

    fake.turn(false).await;
    assert_eq!(next(&mut watch).await, Some(false));
    watch.hold().await.unwrap();
    fake.until_held(1).await;
    drop(watch);
    fake.until_held(0).await;
}

#[tokio::test]
async fn what_anybody_may_send_is_no_news() {
    let fake = Fake::new(State { longest_delay: 30_000_000, ..State::default() }).await;
    let mut watch = follow(&fake, 30).await.unwrap();
    assert_eq!(next(&mut watch).await, Some(false));
    fake.signal(true).await;
    let heard = tokio::time::timeout(Duration::from_millis(300), watch.next()).await;
    assert!(heard.is_err(), "the machine does not go down: {heard:?}");
    fake.turn(true).await;
    assert_eq!(next(&mut watch).await, Some(true));
}

#[tokio::test]
async fn signals_that_queue_are_one_reason_to_look() {
    let fake = Fake::new(State { longest_delay: 30_000_000, ..State::default() }).await;
    let mut watch = follow(&fake, 30).await.unwrap();
    assert_eq!(next(&mut watch).await, Some(false));
    for _ in 0..6 {
        fake.signal(true).await;
    }
    // Its answer comes after them: they are there.
    watch.hold().await.unwrap();
    fake.state.lock().unwrap().goes_down = true;
    assert_eq!(next(&mut watch).await, Some(true));
    fake.turn(false).await;
    assert_eq!(next(&mut watch).await, Some(false));
    assert_eq!(fake.state.lock().unwrap().looks, 3, "one at first, one for the six, one for the last");
}

#[tokio::test]
async fn a_flood_of_signals_holds_up_no_answer() {
    let fake = Fake::new(State { longest_delay: 30_000_000, ..State::default() }).await;
    let mut watch = follow(&fake, 30).await.unwrap();
    assert_eq!(next(&mut watch).await, Some(false));
    for _ in 0..100 {
        fake.signal(true).await;
    }
    watch.hold().await.unwrap();
    fake.turn(true).await;
    assert_eq!(next(&mut watch).await, Some(true));
}

#[tokio::test]
async fn one_that_goes_down_already_is_told_first() {
    let fake = Fake::new(State { longest_delay: 30_000_000, goes_down: true, ..State::default() }).await;
    let mut watch = follow(&fake, 30).await.unwrap();
    assert_eq!(next(&mut watch).await, Some(true));
    assert_eq!(fake.held(), 0);
    assert!(matches!(watch.hold().await, Err(ShutdownError::TooLate { .. })));
}

#[tokio::test]
async fn one_that_waits_too_short_is_made_to_wait() {
    let fake = Fake::new(State { longest_delay: 5_000_000, ..State::default() }).await;
    fake.state.lock().unwrap().drop_ins = Some(fake.folder.path().join("d"));
    let watch = fake.logind.follow(Duration::from_millis(44_500)).await.unwrap();
    let text = std::fs::read_to_string(fake.drop_in()).unwrap();
    assert!(text.ends_with("[Login]\nInhibitDelayMaxSec=45\n"), "{text}");
    fake.until_held(1).await;
    drop(watch);
}

#[tokio::test]
async fn one_that_cannot_be_made_to_wait_says_what_was_tried() {
    let fake = Fake::new(State { longest_delay: 5_000_000, ..State::default() }).await;
    let Err(error) = follow(&fake, 45).await else { panic!("it waits too short") };
    let text = error.to_string();
    assert!(text.contains("99-longshore.conf is written, but something else sets InhibitDelayMaxSec"), "{text}");
    assert!(text.contains("waits 5s at most") && text.contains("45s are needed"), "{text}");

    let other = Fake::new(State { longest_delay: 1, ..State::default() }).await;
    std::fs::write(other.folder.path().join("d"), "no folder").unwrap();
    let Err(error) = follow(&other, 45).await else { panic!("it waits too short") };
    assert!(error.to_string().contains("cannot be written"), "{error}");
    assert_eq!((fake.held(), other.held()), (0, 0));
}

#[tokio::test]
async fn a_lost_connection_ends_it() {
    let fake = Fake::new(State { longest_delay: 30_000_000, ..State::default() }).await;
    let mut watch = follow(&fake, 30).await.unwrap();
    assert_eq!(next(&mut watch).await, Some(false));
    fake.connection.clone().close().await.unwrap();
    assert_eq!(next(&mut watch).await, None);
    assert!(matches!(follow(&fake, 30).await, Err(ShutdownError::Unreachable { .. } | ShutdownError::Failed { .. })));
}
