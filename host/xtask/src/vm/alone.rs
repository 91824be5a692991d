//! The emulated machine boots without its API server: its pods come back with what they need, and those whose secrets
//! nothing may keep say so.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    joined::{Joined, LONG, STATE_KEY, object, pod, running},
    machine::SHORT,
};
use crate::report::Outcome;

/// What stands in the Secret, and nowhere else.
const SECRET: &str = "a-word-that-is-hidden";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Two pods: `needy`, which has a Secret, a ConfigMap and a token, and `plain`, which needs nothing.
fn create(joined: &Joined<'_>) -> Result<()> {
    let needy = json!({
        "env": [{"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "words", "key": "word"}}}],
        "volumeMounts": [{"name": "s", "mountPath": "/s"}],
    });
    let volumes = json!({"volumes": [{"name": "s", "secret": {"secretName": "hidden"}}]});
    joined.apply(&[
        object("ConfigMap", "words", "data", "word", "map"),
        object("Secret", "hidden", "stringData", "key", SECRET),
        pod("needy", needy, volumes),
        pod("plain", json!({}), json!({"automountServiceAccountToken": false})),
    ])
}

/// With a key all comes back, and nothing has changed when the API server does.
pub(super) fn with_a_key(joined: &mut Joined<'_>) -> Result<Outcome> {
    create(joined)?;
    joined.wait_pod("plain")?;
    let needy = joined.wait_pod("needy")?;
    let token = joined.exec(&needy, &format!("cat {TOKEN}"))?;
    // Volumes of Secrets are in memory, and what is kept is sealed.
    let open = format!("find /var/lib/longshore -xdev -type f -exec grep -l {SECRET} {{}} + || true");
    let open = joined.machine.run(&open, SHORT)?;
    ensure!(open.is_empty(), "the Secret lies on the disk, in {open}");

    joined.shut();
    joined.machine.reboot()?;
    let ready = "longshore get pods -n default > /tmp/table; \
                 for name in needy plain; do grep -E \"^$name .* *1/1 \" /tmp/table || exit 1; done";
    joined.machine.until(ready, LONG)?;
    let ids = ["needy", "plain"].map(|name| joined.machine.run(&running(name), SHORT));
    let [needy, plain] = ids.map(|id| id.map(|id| id.trim().to_owned()));
    let (needy, plain) = (needy?, plain?);
    let found = joined.exec(&needy, &format!("sh -c 'cat /s/key; echo; echo $WORD; cat {TOKEN}'"))?;
    ensure!(found == format!("{SECRET}\nmap\n{token}"), "after the boot needy has {found}");

    joined.open()?;
    joined.wait_ready()?;
    for (name, before) in [("needy", &needy), ("plain", &plain)] {
        joined.wait("pod", name, "told", |pod| {
            let status = &pod["status"]["containerStatuses"][0];
            status["containerID"].as_str().is_some_and(|id| id.ends_with(before.as_str())) && status["ready"] == true
        })?;
    }
    Ok(Outcome { passed: 2, ..Outcome::PASSED })
}

/// Without one, what needs no secret comes back, and the rest with the API server.
pub(super) fn without_a_key(joined: &mut Joined<'_>, flags: &[&str]) -> Result<Outcome> {
    create(joined)?;
    joined.run_with(flags)?;
    joined.wait_ready()?;
    joined.wait_pod("plain")?;
    let before = joined.wait_pod("needy")?;
    joined.shut();
    joined.machine.reboot()?;
    joined.machine.until("longshore get pods -n default | grep -E '^plain .* *1/1 '", LONG)?;
    joined.machine.until(&format!("longshore why -n default needy 2>&1 | grep -e '{}'", flag_of(STATE_KEY)), LONG)?;
    let runs = joined.machine.run(&running("needy"), SHORT)?;
    ensure!(runs.trim().is_empty(), "needy runs without its Secret");
    joined.open()?;
    joined.wait_ready()?;
    joined.wait("pod", "needy", "back", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["ready"] == true && status["containerID"].as_str().is_some_and(|id| !id.ends_with(before.as_str()))
    })?;
    for name in ["needy", "plain"] {
        joined.delete(name)?;
    }
    Ok(Outcome { passed: 2, ..Outcome::PASSED })
}

/// A flag's name.
fn flag_of(flag: &str) -> &str {
    flag.split_once('=').map_or(flag, |(name, _)| name)
}
