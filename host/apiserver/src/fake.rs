//! An API server for tests: answers each request with what a script says, and remembers what was asked.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// One answer.
pub(crate) struct Answer {
    /// What the request's path and query must hold, else the next answer is looked at.
    pub(crate) on: &'static str,
    pub(crate) code: u16,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) body: UnboundedReceiver<String>,
}

#[derive(Clone)]
pub(crate) struct Fake {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: watch::Sender<Vec<String>>,
    pub(crate) client: kube::Client,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let mut config = kube::Config::new(uri);
        config.default_retry = false;
        let client = kube::Client::try_from(config).unwrap();
        let fake = Self { answers: Arc::default(), asked: watch::Sender::new(Vec::new()), client };
        let served = fake.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let fake = served.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = fake.answer(&request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    drop(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(socket), service)
                            .await,
                    );
                });
            }
        });
        fake
    }

    fn answer(
        &self,
        request: &http::Request<hyper::body::Incoming>,
    ) -> http::Response<StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + use<>>> {
        let asked = format!("{} {}", request.method(), request.uri());
        let mut answers = self.answers.lock().unwrap();
        let at = answers.iter().position(|answer| asked.contains(answer.on));
        let answer = at.and_then(|at| answers.remove(at)).unwrap_or_else(|| Answer {
            on: "",
            code: 500,
            headers: Vec::new(),
            body: unbounded().1,
        });
        self.asked.send_modify(|all| all.push(asked));
        let mut response = http::Response::builder().status(answer.code);
        for (name, value) in answer.headers {
            response = response.header(name, value);
        }
        response.body(StreamBody::new(answer.body.map(|text| Ok(Frame::data(Bytes::from(text)))))).unwrap()
    }

    /// The next request that holds `on` is answered so; the body stays open until the sender is dropped.
    pub(crate) fn open(&self, on: &'static str, code: u16) -> UnboundedSender<String> {
        let (sender, body) = unbounded();
        self.answers.lock().unwrap().push_back(Answer { on, code, headers: Vec::new(), body });
        sender
    }

    /// The next request that holds `on` is answered so, whole.
    pub(crate) fn whole(&self, on: &'static str, code: u16, body: &str) {
        self.open(on, code).unbounded_send(body.to_owned()).unwrap();
    }

    /// A refusal that says when to come back.
    pub(crate) fn busy(&self, on: &'static str, seconds: &'static str) {
        let answer = Answer { on, code: 429, headers: vec![("retry-after", seconds)], body: unbounded().1 };
        self.answers.lock().unwrap().push_back(answer);
    }

    /// Waits until that many requests that hold `what` have come.
    pub(crate) async fn asked(&self, what: &str, times: usize) -> Vec<String> {
        let found =
            |all: &Vec<String>| -> Vec<String> { all.iter().filter(|one| one.contains(what)).cloned().collect() };
        let mut asked = self.asked.subscribe();
        found(&asked.wait_for(|all| found(all).len() >= times).await.unwrap())
    }
}
