//! Queries and paths of requests, undone of their percent-encoding. It must not know what they mean.

/// A query: `a=1&a=2&b`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

/// Most parameters of a query, as Go has them (`urlmaxqueryparams`).
pub(crate) const LIMIT: usize = 10_000;

impl Query {
    /// `None` with more parameters than [`LIMIT`]: without some of its words a command is another.
    pub(crate) fn parse(text: &str) -> Option<Query> {
        let pairs = || text.split('&').filter(|pair| !pair.is_empty());
        if pairs().nth(LIMIT).is_some() {
            return None;
        }
        let decoded = pairs().map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        });
        Some(Query(decoded.collect()))
    }

    /// The first value; `None` also when it is empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next().filter(|value| !value.is_empty())
    }

    pub(crate) fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        let found: Vec<&'a str> =
            self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str()).collect();
        found.into_iter()
    }

    /// As Go's API machinery reads booleans: set, and neither `false` nor `0`.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.all(key).next().is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// As the kubelet reads the streams of an exec: `1` or `true`.
    pub(crate) fn is_one(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| matches!(value, "1" | "true" | "t" | "T" | "TRUE" | "True"))
    }
}

/// Undoes percent-encoding; what is not properly encoded stays as it is.
pub(crate) fn decode(text: &str, plus: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let hex = hex.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) if plus => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse("command=a%20b&command=%2B+c&tty=1&follow=false&x=%+1&tail").unwrap();
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["a b", "+ c"]);
        assert!(query.is_one("tty") && !query.is_set("follow") && query.is_set("tail"));
        assert_eq!(query.get("x"), Some("% 1"));
        assert_eq!(query.get("tail"), None);
    }
}
