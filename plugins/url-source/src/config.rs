//! The source's configuration, which the host makes of `--manifest-url` and its headers. Messages never hold a header's value: it may be
//! a secret.

use serde_json::Value;

use crate::url::Url;

/// Headers that Go's transport writes itself, whatever was asked for.
const NOT_SENT: [&str; 5] = ["host", "content-length", "transfer-encoding", "trailer", "connection"];

/// Where the manifest is, and what is sent to get it.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) url: Url,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) user_agent: String,
}

impl Config {
    /// Whether a header of that name is among the custom ones.
    pub(crate) fn has(&self, wanted: &str) -> bool {
        self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted))
    }
}

/// Reads `{"url": …, "headers": [[name, value], …], "userAgent": …}`.
pub(crate) fn read(config: &str) -> Result<Config, String> {
    let value: Value = serde_json::from_str(config).map_err(|_| "expected an object of JSON".to_owned())?;
    let Value::Object(fields) = &value else { return Err("expected an object with \"url\"".to_owned()) };
    if let Some(unknown) = fields.keys().find(|key| !["url", "headers", "userAgent"].contains(&key.as_str())) {
        return Err(format!("{unknown}: unknown field; there are \"url\", \"headers\", \"userAgent\""));
    }
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("{name}: expected a text")),
    };
    let url = text("url")?.ok_or("url: required")?;
    let url = Url::parse(url).map_err(|why| format!("url: {why}"))?;
    let mut headers = Vec::new();
    let listed = match fields.get("headers") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(listed)) => listed,
        Some(_) => return Err("headers: expected a list of pairs".to_owned()),
    };
    for (index, pair) in listed.iter().enumerate() {
        let pair = pair.as_array().map(|pair| pair.iter().map(Value::as_str).collect::<Vec<_>>());
        let Some([Some(name), Some(value)]) = pair.as_deref() else {
            return Err(format!("headers[{index}]: expected a name and a value"));
        };
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(format!("headers[{index}]: {name:?} is not an HTTP header name (like X-Header-Name)"));
        }
        if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(format!(
                "headers[{index}]: the value of {name} has control characters, which no header may have"
            ));
        }
        if !NOT_SENT.iter().any(|other| name.eq_ignore_ascii_case(other)) {
            headers.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    let user_agent = text("userAgent")?.unwrap_or("longshore").to_owned();
    Ok(Config { url, headers, user_agent })
}

/// A byte of an HTTP header's name (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
