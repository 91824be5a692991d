//! Network configurations: what a file says. Pure; as `libcni/conf.go`.

use serde_json::{Map, Value};

use crate::version::Version;

/// A network: plugins that are called one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkList {
    /// Its name.
    pub(crate) name: String,
    /// The version of its configuration.
    pub(crate) version: Version,
    /// The same as written; empty where it is not.
    pub(crate) version_text: String,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    /// Whether files of the folder that has the network's name hold no plugins of it.
    pub(crate) only_inlined: bool,
    /// The plugins, in order.
    pub(crate) plugins: Vec<Plugin>,
}

/// One plugin of a network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plugin {
    /// The name of its program.
    pub(crate) kind: String,
    /// What it wants to be told of a pod.
    pub(crate) capabilities: Vec<String>,
    /// All of its configuration.
    pub(crate) config: Map<String, Value>,
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("it is not JSON: {0}")]
    NotJson(String),
    #[error("{0}")]
    Wrong(String),
}

fn wrong<T>(message: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Wrong(message.into()))
}

impl NetworkList {
    /// A list (`.conflist`). Plugins may be missing: they can lie in files of their own.
    pub(crate) fn parse(text: &str) -> Result<NetworkList, ConfigError> {
        let list: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| ConfigError::NotJson(error.to_string()))?;
        let Some(name) = list.get("name").and_then(Value::as_str) else { return wrong("it has no name") };
        if !is_name(name) {
            return wrong(format!("{name:?} cannot be a network's name"));
        }
        let (version, version_text) = version_of(&list)?;
        let only_inlined = boolean(&list, "loadOnlyInlinedPlugins")?;
        let plugins = match list.get("plugins") {
            None if only_inlined => return wrong("loadOnlyInlinedPlugins is true, and it has no plugins"),
            None => Vec::new(),
            Some(Value::Array(plugins)) if plugins.is_empty() => return wrong("its list of plugins is empty"),
            Some(Value::Array(plugins)) => plugins.iter().map(Plugin::from_value).collect::<Result<_, _>>()?,
            Some(_) => return wrong("plugins is not a list"),
        };
        Ok(NetworkList {
            name: name.to_owned(),
            version,
            version_text,
            disable_check: boolean(&list, "disableCheck")?,
            disable_gc: boolean(&list, "disableGC")?,
            only_inlined,
            plugins,
        })
    }

    /// A single plugin (`.conf`, `.json`), which is a list of one.
    pub(crate) fn parse_single(text: &str) -> Result<NetworkList, ConfigError> {
        let plugin = Plugin::parse(text)?;
        let Some(name) = plugin.config.get("name").and_then(Value::as_str) else { return wrong("it has no name") };
        if !is_name(name) {
            return wrong(format!("{name:?} cannot be a network's name"));
        }
        let (version, version_text) = version_of(&plugin.config)?;
        Ok(NetworkList {
            name: name.to_owned(),
            version,
            version_text,
            disable_check: false,
            disable_gc: false,
            only_inlined: true,
            plugins: vec![plugin],
        })
    }

    /// The whole as one list, as it is kept.
    pub(crate) fn text(&self) -> String {
        let plugins: Vec<Value> = self.plugins.iter().map(|plugin| plugin.config.clone().into()).collect();
        let mut list = Map::new();
        list.insert("cniVersion".to_owned(), self.version_text.clone().into());
        list.insert("name".to_owned(), self.name.clone().into());
        for (key, value) in
            [("disableCheck", self.disable_check), ("disableGC", self.disable_gc), ("loadOnlyInlinedPlugins", true)]
        {
            if value {
                list.insert(key.to_owned(), true.into());
            }
        }
        list.insert("plugins".to_owned(), plugins.into());
        Value::from(list).to_string()
    }
}

impl Plugin {
    /// A plugin in a file of its own.
    pub(crate) fn parse(text: &str) -> Result<Plugin, ConfigError> {
        let value: Value = serde_json::from_str(text).map_err(|error| ConfigError::NotJson(error.to_string()))?;
        Plugin::from_value(&value)
    }

    fn from_value(value: &Value) -> Result<Plugin, ConfigError> {
        let Some(config) = value.as_object() else { return wrong("a plugin's configuration is not an object") };
        let kind = config.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind.is_empty() {
            return wrong("a plugin has no type (a list of plugins belongs in a .conflist)");
        }
        // It becomes part of a path.
        if kind.contains('/') || kind == "." || kind == ".." {
            return wrong(format!("{kind:?} cannot be a plugin's type"));
        }
        let capabilities = match config.get("capabilities") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(all)) => {
                all.iter().filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name.clone()).collect()
            }
            Some(_) => return wrong(format!("capabilities of plugin {kind:?} are not an object")),
        };
        Ok(Plugin { kind: kind.to_owned(), capabilities, config: config.clone() })
    }
}

/// `utils.ValidateNetworkName`; it becomes part of a path.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.len() <= 200
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// The version in force: the newest of `cniVersion` and `cniVersions` that is spoken here.
fn version_of(config: &Map<String, Value>) -> Result<(Version, String), ConfigError> {
    let text = match config.get("cniVersion") {
        None => "",
        Some(Value::String(text)) => text,
        Some(_) => return wrong("cniVersion is not a string"),
    };
    let parse =
        |text: &str| Version::parse(text).ok_or_else(|| ConfigError::Wrong(format!("{text:?} is not a CNI version")));
    let offered = match config.get("cniVersions") {
        None => Vec::new(),
        Some(Value::Array(list)) => list.iter().map(|one| one.as_str().unwrap_or("?")).collect(),
        Some(_) => return wrong("cniVersions is not a list"),
    };
    let mut best: Option<(Version, String)> = None;
    for one in offered {
        let version = parse(one)?;
        if version <= Version::CURRENT && best.as_ref().is_none_or(|(known, _)| *known < version) {
            best = Some((version, one.to_owned()));
        }
    }
    let own = parse(text)?;
    match best {
        Some(best) if own > Version::CURRENT || best.0 >= own => Ok(best),
        _ => Ok((own, text.to_owned())),
    }
}

/// A switch, which may be a text.
fn boolean(config: &Map<String, Value>, key: &str) -> Result<bool, ConfigError> {
    match config.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => wrong(format!("{key} is neither true nor false: {other}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list() {
        let list = NetworkList::parse(
            r#"{"cniVersion": "0.4.0", "name": "pods", "disableCheck": "True", "plugins": [
                {"type": "bridge", "ipam": {"type": "host-local"}},
                {"type": "portmap", "capabilities": {"portMappings": true, "other": false}}]}"#,
        )
        .unwrap();
        assert_eq!((list.name.as_str(), list.version, list.disable_check), ("pods", Version(0, 4, 0), true));
        assert_eq!(list.plugins[1].capabilities, ["portMappings"]);
        assert!(!list.disable_gc && !list.only_inlined);
        let again = NetworkList::parse(&list.text()).unwrap();
        assert_eq!(again, NetworkList { only_inlined: true, ..list });
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let list = NetworkList::parse_single(r#"{"name": "n", "type": "bridge", "cniVersion": "0.3.1"}"#).unwrap();
        assert_eq!((list.plugins.len(), list.version), (1, Version(0, 3, 1)));
        assert!(NetworkList::parse_single(r#"{"name": "n", "plugins": []}"#).is_err());
    }

    #[test]
    fn the_newest_version_that_both_speak() {
        let version = |text: &str| NetworkList::parse(&format!("{{\"name\": \"n\", {text}}}")).map(|list| list.version);
        assert_eq!(version(r#""cniVersions": ["0.4.0", "1.0.0", "9.0.0"]"#).unwrap(), Version(1, 0, 0));
        assert_eq!(version(r#""cniVersion": "1.1.0", "cniVersions": ["0.4.0"]"#).unwrap(), Version(1, 1, 0));
        assert_eq!(version(r#""cniVersion": "9.0.0", "cniVersions": ["0.4.0"]"#).unwrap(), Version(0, 4, 0));
        assert_eq!(version(r#""cniVersion": "9.0.0""#).unwrap(), Version(9, 0, 0));
        assert!(version(r#""cniVersions": [7]"#).is_err() && version(r#""cniVersion": 1"#).is_err());
    }

    #[test]
    fn what_is_wrong() {
        for (text, word) in [
            ("[", "JSON"),
            ("{}", "name"),
            (r#"{"name": "../etc"}"#, "name"),
            (r#"{"name": "n", "plugins": []}"#, "empty"),
            (r#"{"name": "n", "plugins": {}}"#, "not a list"),
            (r#"{"name": "n", "plugins": [{}]}"#, "type"),
            (r#"{"name": "n", "plugins": [{"type": "../sh"}]}"#, "type"),
            (r#"{"name": "n", "plugins": [{"type": "x", "capabilities": []}]}"#, "capabilities"),
            (r#"{"name": "n", "disableGC": 1}"#, "disableGC"),
            (r#"{"name": "n", "loadOnlyInlinedPlugins": true}"#, "no plugins"),
        ] {
            let error = NetworkList::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "[{}\\[\\]\":,a-z0-9. ]{0,60}") {
            let _ = NetworkList::parse(&text);
            let _ = NetworkList::parse_single(&text);
        }
    }
}
