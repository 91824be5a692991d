//! What the plugins of a network are told, one after the other: pure, but for the calls themselves.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use longshore_core::ports::network::PluginError;
use serde_json::{Map, Value, json};

use crate::cache::{DEVICE, Entry};
use crate::config::{NetworkList, Plugin};
use crate::invoke::{self, Call};
use crate::result;
use crate::version::Version;

/// How long each plugin may take for ADD and DEL: dockershim's limit for a whole network.
const ATTACH: Duration = Duration::from_secs(220);
/// How long each may take for anything else.
pub(crate) const ASK: Duration = Duration::from_secs(30);

/// Where plugins are.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) folders: Vec<PathBuf>,
}

impl Caller {
    /// Calls every plugin for a sandbox that is being attached; the last one's result, and the addresses in it: at least
    /// one.
    pub(crate) async fn add(
        &self,
        list: &NetworkList,
        entry: &Entry,
    ) -> Result<(Map<String, Value>, Vec<IpAddr>), PluginError> {
        let mut previous: Option<Map<String, Value>> = None;
        for plugin in &list.plugins {
            let input = input(list, plugin, previous.as_ref(), Some(&entry.capability_args));
            let output = self.call("ADD", plugin, input, &for_entry(entry, &entry.netns), ATTACH).await?;
            let parsed = result::parse(&output, list);
            previous = Some(parsed.map_err(|message| failed(plugin, "ADD", message))?);
        }
        let given = previous.unwrap_or_default();
        let addresses = result::addresses(&given);
        match list.plugins.last() {
            Some(plugin) if addresses.is_empty() => Err(failed(plugin, "ADD", "it gave no address".to_owned())),
            _ => Ok((given, addresses)),
        }
    }

    /// Calls every plugin in reverse for one that is taken off. `netns` is empty when it is gone.
    pub(crate) async fn del(&self, list: &NetworkList, entry: &Entry, netns: &str) -> Result<(), PluginError> {
        let previous = entry.result.as_ref().filter(|_| list.version >= Version::WITH_CHECK);
        for plugin in list.plugins.iter().rev() {
            let input = input(list, plugin, previous, Some(&entry.capability_args));
            self.call("DEL", plugin, input, &for_entry(entry, netns), ATTACH).await?;
        }
        Ok(())
    }

    /// Asks every plugin whether a sandbox is attached as it was.
    pub(crate) async fn check(&self, list: &NetworkList, entry: &Entry, netns: &str) -> Result<(), PluginError> {
        for plugin in &list.plugins {
            let input = input(list, plugin, entry.result.as_ref(), Some(&entry.capability_args));
            self.call("CHECK", plugin, input, &for_entry(entry, netns), ASK).await?;
        }
        Ok(())
    }

    /// Asks every plugin whether it can attach sandboxes.
    pub(crate) async fn status(&self, list: &NetworkList) -> Result<(), PluginError> {
        for plugin in &list.plugins {
            self.call("STATUS", plugin, input(list, plugin, None, None), &[], ASK).await?;
        }
        Ok(())
    }

    /// Tells every plugin which sandboxes are attached, so that it drops what is of others. All are told, whether or not
    /// one fails; the first failure is given.
    pub(crate) async fn collect(&self, list: &NetworkList, attached: &[(String, String)]) -> Result<(), PluginError> {
        let attached: Vec<Value> =
            attached.iter().map(|(id, device)| json!({"containerID": id, "ifname": device})).collect();
        let mut outcome = Ok(());
        for plugin in &list.plugins {
            let mut input = input(list, plugin, None, None);
            // The specification's word, and the one that it had first.
            for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                input.insert(key.to_owned(), attached.clone().into());
            }
            let called = self.call("GC", plugin, input, &[], ASK).await;
            outcome = outcome.and(called.map(|_| ()));
        }
        outcome
    }

    /// Calls one plugin.
    async fn call(
        &self,
        command: &'static str,
        plugin: &Plugin,
        input: Map<String, Value>,
        of_sandbox: &[(&'static str, OsString)],
        limit: Duration,
    ) -> Result<Vec<u8>, PluginError> {
        let called = self.ask(command, &plugin.kind, &input, of_sandbox, limit).await;
        called.map_err(|error| failed(plugin, command, error))
    }

    /// The same by the name of its program.
    pub(crate) async fn ask(
        &self,
        command: &'static str,
        kind: &str,
        input: &Map<String, Value>,
        of_sandbox: &[(&'static str, OsString)],
        limit: Duration,
    ) -> Result<Vec<u8>, String> {
        let input = serde_json::to_vec(input).map_err(|error| error.to_string())?;
        let program = invoke::find(kind, &self.folders)?;
        let mut environment: Vec<(&'static str, OsString)> = vec![("CNI_COMMAND", command.into())];
        let folders = std::env::join_paths(&self.folders).unwrap_or_default();
        environment.push(("CNI_PATH", folders));
        let given = |name: &str| of_sandbox.iter().any(|(key, _)| *key == name);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
            if !given(name) {
                environment.push((name, OsString::new()));
            }
        }
        environment.extend(of_sandbox.iter().cloned());
        invoke::run(&Call { program, environment, input, limit }).await
    }
}

fn failed(plugin: &Plugin, command: &'static str, message: String) -> PluginError {
    PluginError::Failed { plugin: plugin.kind.clone(), command, message }
}

/// What is said of the sandbox.
fn for_entry(entry: &Entry, netns: &str) -> Vec<(&'static str, OsString)> {
    let arguments: Vec<String> = entry.cni_args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    vec![
        ("CNI_CONTAINERID", entry.container_id.clone().into()),
        ("CNI_NETNS", netns.into()),
        ("CNI_IFNAME", DEVICE.into()),
        ("CNI_ARGS", arguments.join(";").into()),
    ]
}

/// A plugin's configuration, with the network's name and version, what the plugin before it gave, and what it declares to
/// want to know of the pod.
fn input(
    list: &NetworkList,
    plugin: &Plugin,
    previous: Option<&Map<String, Value>>,
    capabilities: Option<&Map<String, Value>>,
) -> Map<String, Value> {
    let mut input = plugin.config.clone();
    input.insert("name".to_owned(), list.name.clone().into());
    input.insert("cniVersion".to_owned(), list.version_text.clone().into());
    if let Some(previous) = previous {
        input.insert("prevResult".to_owned(), previous.clone().into());
    }
    let known = plugin.capabilities.iter().filter_map(|name| Some((name.clone(), capabilities?.get(name)?.clone())));
    let known: Map<String, Value> = known.collect();
    if !known.is_empty() {
        input.insert("runtimeConfig".to_owned(), known.into());
    }
    input
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_told_what_it_wants_to_know() {
        let list = NetworkList::parse(
            r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [
                {"type": "x", "name": "other", "key": 1, "capabilities": {"portMappings": true, "bandwidth": false, "dns": true}}]}"#,
        )
        .unwrap();
        let capabilities =
            serde_json::from_value(json!({"portMappings": [], "bandwidth": {}, "ipRanges": []})).unwrap();
        let previous = serde_json::from_value(json!({"ips": []})).unwrap();
        let told = Value::from(input(&list, &list.plugins[0], Some(&previous), Some(&capabilities)));
        assert_eq!((&told["name"], &told["cniVersion"], &told["key"]), (&json!("n"), &json!("1.0.0"), &json!(1)));
        assert_eq!(told["runtimeConfig"], json!({"portMappings": []}));
        assert_eq!(told["prevResult"], json!({"ips": []}));
        let told = Value::from(input(&list, &list.plugins[0], None, None));
        assert!(told.get("runtimeConfig").is_none() && told.get("prevResult").is_none());
    }
}
