//! Reading a probe's configuration: v1's JSON, strictly. Each message names the field and what was expected, and the near name
//! of an unknown one. It must not know any one probe's fields.

use serde_json::{Map, Value};

use crate::Target;

/// A port as v1 has it (`IntOrString`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// A number.
    Number(u16),
    /// The name of one of the container's ports.
    Name(String),
}

impl Port {
    /// The number, as the kubelet finds it (`pkg/probe/util.go`, `ResolveContainerPort`).
    ///
    /// # Errors
    /// When the container has no port of that name, or its number is none.
    pub fn resolve(&self, target: &Target) -> Result<u16, String> {
        let number = match self {
            Self::Number(number) => *number,
            Self::Name(name) => match target.ports.iter().find(|port| port.name == *name) {
                Some(port) => port.number,
                None => {
                    name.parse().map_err(|_| format!("container {:?} has no port named {name:?}", target.container))?
                }
            },
        };
        if number == 0 { Err("invalid port number: 0".to_owned()) } else { Ok(number) }
    }
}

/// The fields of an object.
#[derive(Clone, Debug)]
pub struct Fields {
    /// Where the object is, with a dot at its end, or empty at the top.
    place: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a configuration whose fields are among `known`. A field that is `null` is absent, as in Kubernetes.
    ///
    /// # Errors
    /// When it is no JSON object, or has unknown fields.
    pub fn read(config: &str, known: &[&str]) -> Result<Self, String> {
        let value = if config.trim().is_empty() {
            Value::Object(Map::new())
        } else {
            serde_json::from_str(config).map_err(|error| format!("it is not JSON: {error}"))?
        };
        match value {
            Value::Null => Self::of(String::new(), Map::new(), known),
            Value::Object(map) => Self::of(String::new(), map, known),
            other => Err(format!("expected an object with {}, found {}", list(known), kind(&other))),
        }
    }

    fn of(place: String, map: Map<String, Value>, known: &[&str]) -> Result<Self, String> {
        if let Some(unknown) = map.keys().find(|key| !known.contains(&key.as_str())) {
            let hint = match near(unknown, known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("there are {}", list(known)),
            };
            return Err(format!("{place}{unknown}: unknown field; {hint}"));
        }
        let map = map.into_iter().filter(|(_, value)| !value.is_null()).collect();
        Ok(Self { place, map })
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> String {
        format!("{}{name}: expected {expected}, found {}", self.place, kind(found))
    }

    /// A text.
    ///
    /// # Errors
    /// When it is something else.
    pub fn text(&self, name: &str) -> Result<Option<&str>, String> {
        match self.map.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a text", other)),
        }
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// When it is absent or something else.
    pub fn required_text(&self, name: &str) -> Result<&str, String> {
        self.text(name)?.ok_or_else(|| format!("{}{name}: required", self.place))
    }

    /// A truth value; absent is false.
    ///
    /// # Errors
    /// When it is something else.
    pub fn flag(&self, name: &str) -> Result<bool, String> {
        match self.map.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(name, "true or false", other)),
        }
    }

    /// A list of texts; absent is empty.
    ///
    /// # Errors
    /// When it, or one of its items, is something else.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        let items = match self.map.get(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.wrong(name, "a list of texts", other)),
        };
        let text = |(index, item): (usize, &Value)| match item {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.wrong(&format!("{name}[{index}]"), "a text", other)),
        };
        items.iter().enumerate().map(text).collect()
    }

    /// A list of objects whose fields are among `known`; absent is empty.
    ///
    /// # Errors
    /// When it, or one of its items, is something else, or has unknown fields.
    pub fn objects(&self, name: &str, known: &[&str]) -> Result<Vec<Self>, String> {
        let items = match self.map.get(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.wrong(name, "a list of objects", other)),
        };
        let object = |(index, item): (usize, &Value)| match item {
            Value::Object(map) => Self::of(format!("{}{name}[{index}].", self.place), map.clone(), known),
            other => Err(self.wrong(&format!("{name}[{index}]"), "an object", other)),
        };
        items.iter().enumerate().map(object).collect()
    }

    /// A port's number or name. It must be there.
    ///
    /// # Errors
    /// When it is absent, out of range, or neither a number nor a port's name.
    pub fn port(&self, name: &str) -> Result<Port, String> {
        match self.map.get(name) {
            None => Err(format!("{}{name}: required", self.place)),
            Some(Value::String(text)) => match text.parse::<u64>() {
                Ok(number) => self.number(name, Some(number), text).map(Port::Number),
                Err(_) if is_port_name(text) => Ok(Port::Name(text.clone())),
                Err(_) => Err(format!(
                    "{}{name}: {text:?} is not a port name: at most 15 characters of a-z, 0-9 and single inner -, at least one letter",
                    self.place
                )),
            },
            Some(Value::Number(number)) => self.number(name, number.as_u64(), &number.to_string()).map(Port::Number),
            Some(other) => Err(self.wrong(name, "a port's number or name", other)),
        }
    }

    /// A port's number. It must be there.
    ///
    /// # Errors
    /// When it is absent, out of range or no number.
    pub fn port_number(&self, name: &str) -> Result<u16, String> {
        match self.map.get(name) {
            None => Err(format!("{}{name}: required", self.place)),
            Some(Value::Number(number)) => self.number(name, number.as_u64(), &number.to_string()),
            Some(other) => Err(self.wrong(name, "a port's number", other)),
        }
    }

    fn number(&self, name: &str, number: Option<u64>, text: &str) -> Result<u16, String> {
        number
            .and_then(|number| u16::try_from(number).ok())
            .filter(|number| *number != 0)
            .ok_or_else(|| format!("{}{name}: must be between 1 and 65535, inclusive, found {text}", self.place))
    }

    /// A message about one of the fields.
    #[must_use]
    pub fn complaint(&self, name: &str, text: &str) -> String {
        format!("{}{name}: {text}", self.place)
    }
}

/// What a value is, for messages.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() <= 40 => format!("the text {text:?}"),
        Value::String(_) => "a long text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// The one of `known` that was probably meant: at most a third of its letters are wrong.
#[must_use]
pub fn near<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (distance(&name.to_lowercase(), &candidate.to_lowercase()), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edits from one text to the other: letters put in, left out, replaced. Bounded, because names come from strangers.
fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().take(64).collect();
    let to: Vec<char> = to.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, left) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, right) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// Kubernetes' rule for port names (`IsValidPortName`).
fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Fields, Port, near};

    fn port(config: &str) -> Result<Port, String> {
        Fields::read(config, &["port", "host"])?.port("port")
    }

    #[test]
    fn ports() {
        assert_eq!(port(r#"{"port": 80}"#).unwrap(), Port::Number(80));
        assert_eq!(port(r#"{"port": "80"}"#).unwrap(), Port::Number(80));
        assert_eq!(port(r#"{"port": "web", "host": null}"#).unwrap(), Port::Name("web".to_owned()));
        let wrong = "port: must be between 1 and 65535, inclusive, found ";
        assert_eq!(port(r#"{"port": 0}"#).unwrap_err(), format!("{wrong}0"));
        assert_eq!(port(r#"{"port": 65536}"#).unwrap_err(), format!("{wrong}65536"));
        assert_eq!(port(r#"{"port": 1.5}"#).unwrap_err(), format!("{wrong}1.5"));
        assert_eq!(port("{}").unwrap_err(), "port: required");
        assert!(port(r#"{"port": "Web!"}"#).unwrap_err().contains("is not a port name"));
        assert_eq!(port(r#"{"port": []}"#).unwrap_err(), "port: expected a port's number or name, found a list");
    }

    #[test]
    fn unknown_fields_have_near_names() {
        assert_eq!(port(r#"{"prot": 80}"#).unwrap_err(), r#"prot: unknown field; did you mean "port"?"#);
        assert_eq!(port(r#"{"x": 80}"#).unwrap_err(), r#"x: unknown field; there are "port", "host""#);
        assert_eq!(near("httpheaders", &["path", "httpHeaders"]), Some("httpHeaders"));
        assert_eq!(near("zzz", &["path", "httpHeaders"]), None);
    }

    #[test]
    fn other_shapes() {
        assert_eq!(port("[]").unwrap_err(), r#"expected an object with "port", "host", found a list"#);
        assert!(port("{").unwrap_err().starts_with("it is not JSON: "));
        let fields = Fields::read(r#"{"command": ["a", 1]}"#, &["command"]).unwrap();
        assert_eq!(fields.texts("command").unwrap_err(), "command[1]: expected a text, found the number 1");
    }
}
