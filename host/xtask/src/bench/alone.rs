//! Docker alone: the same sandboxes and containers as the agent makes, by the bare API, as fast as it goes.
//! Must not do less for Docker than the agent asks of it.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::machine;
use crate::http::Client;

const LIMIT: Duration = Duration::from_secs(120);

/// How to make a pod's two containers: bodies of `POST /containers/create`.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    sandbox: Value,
    container: Value,
    /// The id of the sandbox that was inspected: replaced by the new one's in `container`.
    inspected: String,
}

/// Wall and machine's CPU for a number of pods, seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// Pods in flight.
    pub in_flight: usize,
    /// From the first request to the last answer.
    pub wall: f64,
    /// Of the whole machine, for all pods.
    pub cpu: f64,
}

impl Pair {
    /// Reads how the agent made the containers of pod `name` from Docker's inspect.
    ///
    /// # Errors
    /// When the pod has no two containers there.
    pub(super) fn inspect(socket: &Path, name: &str) -> Result<Self> {
        let mut client = Client::new(socket, LIMIT);
        let list = client.get("/containers/json?all=1")?;
        let (mut sandbox, mut container) = (None, None);
        for one in list.as_array().into_iter().flatten() {
            let labels = &one["Labels"];
            if labels["io.kubernetes.pod.name"] != name {
                continue;
            }
            let inspect = client.get(&format!("/containers/{}/json", one["Id"].as_str().unwrap_or_default()))?;
            match labels["io.kubernetes.docker.type"].as_str() {
                Some("podsandbox") => sandbox = Some(inspect),
                _ => container = Some(inspect),
            }
        }
        let sandbox = sandbox.with_context(|| format!("pod {name} has no sandbox in Docker"))?;
        let container = container.with_context(|| format!("pod {name} has no container in Docker"))?;
        Ok(Self {
            inspected: sandbox["Id"].as_str().unwrap_or_default().to_owned(),
            sandbox: body(&sandbox),
            container: joined(body(&container)),
        })
    }

    /// Creates and starts one pod; both ids.
    fn create(&self, first: &mut Client, second: &mut Client, name: &str) -> Result<(String, String)> {
        let sandbox = create(first, &format!("{name}-sandbox"), &self.sandbox)?;
        let body = self.container.to_string().replace(&self.inspected, &sandbox);
        let body: Value = serde_json::from_str(&body)?;
        // Docker accepts a container that joins a sandbox which does not run yet.
        let container = thread::scope(|scope| {
            let made = scope.spawn(|| create(second, &format!("{name}-app"), &body));
            let started = start(first, &sandbox);
            let made = made.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
            started.and(made)
        })?;
        start(first, &container)?;
        Ok((sandbox, container))
    }
}

/// The body of a create that makes what was inspected, under a root id that is nobody's.
fn body(inspect: &Value) -> Value {
    let mut body = inspect["Config"].clone();
    body["HostConfig"] = inspect["HostConfig"].clone();
    if let Some(labels) = body["Labels"].as_object_mut()
        && labels.contains_key("dev.longshore.root")
    {
        labels.insert("dev.longshore.root".to_owned(), json!("00000000-bench"));
    }
    body
}

/// A container that joins another's network may not name what the other one owns.
fn joined(mut body: Value) -> Value {
    let joins = body["HostConfig"]["NetworkMode"].as_str().is_some_and(|mode| mode.starts_with("container:"));
    if joins && let Some(fields) = body.as_object_mut() {
        for field in ["Hostname", "Domainname", "ExposedPorts", "MacAddress"] {
            fields.remove(field);
        }
    }
    body
}

fn create(client: &mut Client, name: &str, body: &Value) -> Result<String> {
    let made = client.expect("POST", &format!("/containers/create?name={name}"), Some(body))?;
    Ok(made["Id"].as_str().context("a container without an id")?.to_owned())
}

fn start(client: &mut Client, id: &str) -> Result<()> {
    client.expect("POST", &format!("/containers/{id}/start"), None).map(drop)
}

/// Creates and starts `count` pods, `in_flight` at a time, and calls `told` with the number of each; then stops and removes
/// them likewise. Gives the cost of both.
///
/// # Errors
/// When Docker refuses.
pub(super) fn round(
    socket: &Path,
    pair: &Pair,
    count: usize,
    in_flight: usize,
    told: impl Fn(usize) -> Result<()> + Sync,
) -> Result<(Cost, Cost)> {
    let made = Mutex::new(Vec::new());
    let up = measure(in_flight, || {
        each(socket, count, in_flight, |first, second, at| {
            let ids = pair.create(first, second, &format!("bench-{count}-{in_flight}-{at}"))?;
            lock(&made).push(ids);
            told(at)
        })
    })?;
    let made = made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let down = measure(in_flight, || {
        each(socket, made.len(), in_flight, |client, _, at| {
            let (sandbox, container) = &made[at];
            client.expect("POST", &format!("/containers/{container}/stop?t=30"), None)?;
            client.expect("POST", &format!("/containers/{sandbox}/stop?t=30"), None)?;
            client.expect("DELETE", &format!("/containers/{container}?force=1&v=1"), None)?;
            client.expect("DELETE", &format!("/containers/{sandbox}?force=1&v=1"), None)?;
            Ok(())
        })
    })?;
    Ok((up, down))
}

fn measure(in_flight: usize, work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (started, before) = (Instant::now(), machine::busy()?);
    work()?;
    let wall = started.elapsed().as_secs_f64();
    Ok(Cost { in_flight, wall, cpu: machine::busy()? - before })
}

/// Calls `work` for 0..count from `in_flight` threads, each with two connections of its own.
fn each(
    socket: &Path,
    count: usize,
    in_flight: usize,
    work: impl Fn(&mut Client, &mut Client, usize) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..in_flight.min(count) {
            scope.spawn(|| {
                let (mut first, mut second) = (Client::new(socket, LIMIT), Client::new(socket, LIMIT));
                loop {
                    let at = next.fetch_add(1, Ordering::SeqCst);
                    if at >= count || crate::process::interrupted() {
                        break;
                    }
                    if let Err(error) = work(&mut first, &mut second, at) {
                        lock(&failures).push(format!("{error:#}"));
                        break;
                    }
                }
            });
        }
    });
    crate::process::check_interrupted()?;
    match lock(&failures).first() {
        Some(failure) => bail!("Docker alone: {failure}"),
        None => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_nobodys_and_may_join_a_network() {
        let inspect = json!({
            "Config": {"Hostname": "web", "Image": "x", "Labels": {"dev.longshore.root": "mine", "app": "web"}},
            "HostConfig": {"NetworkMode": "container:abc", "Binds": ["/a:/b"]},
        });
        let body = joined(body(&inspect));
        assert_eq!(body["Labels"], json!({"dev.longshore.root": "00000000-bench", "app": "web"}));
        assert_eq!(body["HostConfig"]["Binds"], json!(["/a:/b"]));
        assert!(body.get("Hostname").is_none());
    }
}
