//! The node's exec credential providers: programs of an administrator that are asked for an image's credentials, as
//! `pkg/credentialprovider/plugin`. What is said to them and kept of them is core's; here they are run.
//!
//! A provider that is missing, fails, hangs or talks nonsense is logged and has no credentials: others are tried, and
//! the pull goes on. At most a few run at a time, one for the same question.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use longshore_core::credentials::access::{OwnedCredentials, Owner};
use longshore_core::credentials::exec::{Account, Cache, Logins, choose, read_answer, request};
use longshore_core::credentials::parse_image;
use longshore_core::credentials::providers::Provider;
use longshore_core::pod::PodId;
use longshore_core::ports::objects::{ObjectStore, TokenQuery};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

/// The kubelet's limit.
const LIMIT: Duration = Duration::from_secs(60);
/// Programs that run at a time.
const RUNNING: usize = 8;
/// An answer is a few names and tokens.
const ANSWER: usize = 1 << 20;
/// What is kept of stderr.
const ERRORS: usize = 4096;
/// Life of the token that a provider gets: what the API server gives where nothing is asked for.
const TOKEN_SECONDS: i64 = 3600;

type Outcome = Result<Arc<Logins>, String>;
type Flight = Shared<BoxFuture<'static, Outcome>>;

/// The node's providers. Clones share everything.
#[derive(Clone)]
pub struct ExecProviders {
    inner: Arc<Inner>,
}

struct Inner {
    providers: Vec<Provider>,
    folder: PathBuf,
    objects: Arc<dyn ObjectStore>,
    limit: Duration,
    turns: Semaphore,
    cache: Mutex<Cache>,
    /// What is being asked, by question.
    flights: Mutex<HashMap<String, Flight>>,
}

/// A flight's place among those that are under way. It goes when the flight ends, whoever still waits for that.
struct Place {
    inner: Arc<Inner>,
    key: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.inner.flights).remove(&self.key);
    }
}

impl ExecProviders {
    /// The providers, in the configuration's order, whose programs are in `folder`. `objects` has the ServiceAccounts
    /// and tokens that some of them ask for.
    pub fn new(providers: Vec<Provider>, folder: PathBuf, objects: Arc<dyn ObjectStore>) -> ExecProviders {
        ExecProviders::with_limit(providers, folder, objects, LIMIT)
    }

    fn with_limit(
        providers: Vec<Provider>,
        folder: PathBuf,
        objects: Arc<dyn ObjectStore>,
        limit: Duration,
    ) -> ExecProviders {
        let inner = Inner {
            providers,
            folder,
            objects,
            limit,
            turns: Semaphore::new(RUNNING),
            cache: Mutex::default(),
            flights: Mutex::default(),
        };
        ExecProviders { inner: Arc::new(inner) }
    }

    /// The credentials that providers have for an image, in the order in which they are to be tried. `account` is the
    /// pod's `spec.serviceAccountName`, empty for none. Takes a minute at most, and what waiting for others takes.
    pub async fn credentials(&self, image: &str, pod: &PodId, account: &str) -> Vec<OwnedCredentials> {
        let Ok(name) = parse_image(image) else { return Vec::new() };
        let place = name.place();
        let asked = (0..self.inner.providers.len()).filter(|at| self.inner.providers[*at].is_for(&place));
        let answers = join_all(asked.map(|at| {
            let place = &place;
            async move {
                match self.ask(at, place, pod, account).await {
                    Ok(logins) => logins,
                    Err(error) => {
                        let provider = self.inner.providers[at].name.as_str();
                        tracing::warn!(provider, image = place, %pod, error, "a credential provider failed");
                        None
                    }
                }
            }
        }));
        choose(image, &answers.await.into_iter().flatten().collect::<Vec<_>>())
    }

    /// One provider's credentials, and for whom it gave them; `None` when it is not to be asked for this pod.
    async fn ask(
        &self,
        at: usize,
        place: &str,
        pod: &PodId,
        account: &str,
    ) -> Result<Option<(Owner, Arc<Logins>)>, String> {
        let inner = &self.inner;
        let provider = &inner.providers[at];
        let account = match &provider.token {
            None => None,
            Some(token) if account.is_empty() && token.required => return Ok(None),
            Some(_) if account.is_empty() => None,
            Some(_) => match inner.account(provider, pod, account).await? {
                Some(account) => Some(account),
                None => return Ok(None),
            },
        };
        let owner = account.as_ref().map_or(Owner::Node, Account::owner);
        let kept = lock(&inner.cache).find(provider, place, account.as_ref(), Instant::now());
        if let Some(kept) = kept {
            return Ok(Some((owner, kept)));
        }
        let question = request(provider, place, account.as_ref());
        let key = format!("{at} {question}");
        let begin = || {
            let (inner, image) = (Arc::clone(inner), place.to_owned());
            let taken = Place { inner: Arc::clone(&inner), key: key.clone() };
            let task = tokio::spawn(async move {
                let _taken = taken;
                inner.run(at, &image, account, question).await
            });
            async move { task.await.unwrap_or_else(|error| Err(error.to_string())) }.boxed().shared()
        };
        let flight = lock(&inner.flights).entry(key.clone()).or_insert_with(begin).clone();
        flight.await.map(|logins| Some((owner, logins)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// The pod's ServiceAccount with a token; `None` when it lacks an annotation by which accounts opt in.
    async fn account(&self, provider: &Provider, pod: &PodId, name: &str) -> Result<Option<Account>, String> {
        let Some(wanted) = &provider.token else { return Ok(None) };
        let found = self.objects.service_account(&pod.namespace, name).await;
        let found = found
            .map_err(|error| format!("failed to get service account: {error}"))?
            .ok_or_else(|| format!("failed to get service account: serviceaccount {name:?} not found"))?;
        let had = found.metadata.annotations.unwrap_or_default();
        let mut annotations = BTreeMap::new();
        for key in &wanted.required_annotations {
            let Some(value) = had.get(key) else {
                tracing::debug!(provider = provider.name, %pod, "required annotation {key} not found");
                return Ok(None);
            };
            annotations.insert(key.clone(), value.clone());
        }
        let optional = wanted.optional_annotations.iter();
        annotations.extend(optional.filter_map(|key| Some((key.clone(), had.get(key)?.clone()))));
        let query = TokenQuery {
            service_account: name.to_owned(),
            audience: wanted.audience.clone(),
            expiration_seconds: TOKEN_SECONDS,
            kept: false,
        };
        let token = self.objects.token(pod, &query).await;
        let token = token.map_err(|error| format!("failed to get service account token: {}", error.message))?;
        Ok(Some(Account {
            namespace: pod.namespace.clone(),
            name: name.to_owned(),
            uid: found.metadata.uid.unwrap_or_default(),
            annotations,
            token: token.token,
        }))
    }

    async fn run(&self, at: usize, place: &str, account: Option<Account>, question: String) -> Outcome {
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        let provider = &self.providers[at];
        let bytes = run(&self.folder, provider, question.as_bytes(), self.limit).await?;
        let answer = read_answer(provider, &bytes, account.as_ref())?;
        lock(&self.cache).keep(provider, place, account.as_ref(), &answer, Instant::now());
        Ok(answer.logins)
    }
}

/// Runs a provider's program: the question on stdin, the answer from stdout. It and what it started are killed at the
/// limit.
async fn run(folder: &Path, provider: &Provider, question: &[u8], limit: Duration) -> Result<Vec<u8>, String> {
    let program = folder.join(&provider.name);
    let failed = |error: String| format!("error execing credential provider plugin {}: {error}", program.display());
    let mut child = Command::new(&program)
        .args(&provider.args)
        .envs(provider.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let Some(((mut stdin, stdout), stderr)) = child.stdin.take().zip(child.stdout.take()).zip(child.stderr.take())
    else {
        return Err(failed("it has no stdin, stdout or stderr".to_owned()));
    };
    let mut errors = Vec::new();
    let talk = async {
        let write = async {
            // One that does not read what it is asked will say so by its answer.
            let _ = stdin.write_all(question).await;
            drop(stdin);
            Ok(())
        };
        let ((), answer, ()) = tokio::try_join!(write, whole(stdout), last_words(stderr, &mut errors))?;
        Ok((answer, child.wait().await.map_err(|error| error.to_string())?))
    };
    let ended = tokio::time::timeout(limit, talk).await;
    let ended = ended.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs_f64())));
    let said = String::from_utf8_lossy(&errors).trim().to_owned();
    let said = if said.is_empty() { said } else { format!(": {}", crate::fault::shorten(&said)) };
    match ended {
        Ok((answer, status)) if status.success() => Ok(answer),
        Ok((_, status)) => Err(failed(format!("{status}{said}"))),
        Err(error) => {
            kill(&mut child).await;
            Err(failed(format!("{error}{said}")))
        }
    }
}

async fn whole(stdout: impl AsyncRead + Unpin) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = stdout.take(ANSWER as u64 + 1).read_to_end(&mut bytes).await;
    match read.map_err(|error| error.to_string())? {
        length if length > ANSWER => Err(format!("its answer is longer than {ANSWER} bytes")),
        _ => Ok(bytes),
    }
}

/// Reads all, so that the program never waits, and keeps the beginning.
async fn last_words(mut stderr: impl AsyncRead + Unpin, kept: &mut Vec<u8>) -> Result<(), String> {
    let mut buffer = [0; 1024];
    while let Ok(length) = stderr.read(&mut buffer).await {
        if length == 0 {
            break;
        }
        let room = ERRORS.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..length.min(room)]);
    }
    Ok(())
}

/// Kills the program with all that it started and left in its group.
async fn kill(child: &mut Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in this moment; then there is nothing left to kill.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.kill().await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "providers_tests.rs"]
mod tests;
