//! What a query of the node's logs asks for, and what is wrong with it, in the kubelet's words. It must not look anywhere.

use jiff::Timestamp;

use crate::query::Query;

/// Services in one query.
const SERVICES: usize = 4;
/// Bytes of a service's name.
const NAME: usize = 256;
/// Lines of `tailLines`.
const LINES: i64 = 100_000;
/// Bytes of `pattern`.
const PATTERN: usize = 4096;

/// A query.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) services: Vec<String>,
    pub(super) files: Vec<String>,
    pub(super) since: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
    pub(super) tail: Option<i64>,
    pub(super) boot: Option<i64>,
    pub(super) pattern: String,
}

/// `field.Invalid` of a list.
pub(super) fn invalid(field: &str, value: &[String], detail: &str) -> String {
    format!("{field}: Invalid value: {}: {detail}", serde_json::json!(value))
}

fn bad(field: &str, value: &str, detail: &str) -> String {
    format!("{field}: Invalid value: {value:?}: {detail}")
}

fn aggregate(mut errors: Vec<String>) -> Result<(), String> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(format!("[{}]", errors.join(", "))),
    }
}

/// Reads a query; `None` where nothing is asked for.
pub(super) fn read(query: &Query) -> Result<Option<Wanted>, String> {
    let (mut wanted, mut errors) = (Wanted::default(), Vec::new());
    let asked: Vec<String> = query.all("query").map(str::to_owned).collect();
    for one in &asked {
        if one.contains(['/', '\\']) {
            wanted.files.push(one.clone());
        } else if !one.trim().is_empty() {
            wanted.services.push(one.clone());
        }
    }
    if !asked.is_empty() && wanted.files.is_empty() && wanted.services.is_empty() {
        errors.push(invalid("query", &asked, "may not be empty"));
    }
    let mut time = |field: &str| {
        let text = query.get(field)?;
        let time = text.parse().ok();
        if time.is_none() {
            errors.push(bad(field, text, "invalid time format"));
        }
        time
    };
    (wanted.since, wanted.until) = (time("sinceTime"), time("untilTime"));
    let mut number = |field: &str| {
        let text = query.get(field)?;
        let number = text.parse::<i64>().ok();
        if number.is_none() {
            errors.push(bad(field, text, &format!("strconv.Atoi: parsing {text:?}: invalid syntax")));
        }
        number
    };
    (wanted.boot, wanted.tail) = (number("boot"), number("tailLines"));
    wanted.pattern = query.get("pattern").unwrap_or_default().to_owned();
    aggregate(errors)?;
    Ok((wanted != Wanted::default()).then_some(wanted))
}

impl Wanted {
    /// Whether more is said than what to look at.
    pub(super) fn has_options(&self) -> bool {
        let plain = Wanted { services: self.services.clone(), files: self.files.clone(), ..Wanted::default() };
        *self != plain
    }

    /// Whether it can be answered.
    pub(super) fn validate(&self) -> Result<(), String> {
        let mut errors = Vec::new();
        for service in &self.services {
            let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
            if service.len() > NAME {
                errors.push(bad("query", service, &format!("length must be less than {NAME}")));
            } else if !service.bytes().all(safe) {
                errors.push(bad("query", service, "input contains unsupported characters"));
            }
        }
        if self.services.len() > SERVICES {
            let count = self.services.len();
            errors.push(format!("query: Too many: {count}: must have at most {SERVICES} items"));
        }
        match (self.files.as_slice(), self.services.as_slice()) {
            ([], []) => errors.push("query: Required value: cannot be empty with options".to_owned()),
            ([_, ..], [_, ..]) => {
                let (files, services) = (self.files.join(" "), self.services.join(" "));
                errors.push(bad("query", &format!("[{files}], [{services}]"), "cannot specify a file and service"));
            }
            ([_, _, ..], []) => errors.push(invalid("query", &self.files, "cannot specify more than one file")),
            ([_], []) if self.has_options() => {
                errors.push(invalid("query", &self.files, "cannot specify file with options"));
            }
            _ => {}
        }
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since > until
        {
            errors.push(bad("untilTime", &until.to_string(), "must be after `sinceTime`"));
        }
        if let Some(boot) = self.boot.filter(|boot| *boot > 0) {
            errors.push(format!("boot: Invalid value: {boot}: must be less than 1"));
        }
        if let Some(tail) = self.tail.filter(|tail| !(0..=LINES).contains(tail)) {
            errors.push(format!("tailLines: Invalid value: {tail}: must be between 0 and {LINES}, inclusive"));
        }
        if self.pattern.len() > PATTERN {
            errors.push(format!("pattern: Invalid value: it has more than {PATTERN} bytes"));
        }
        aggregate(errors)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_what_is_wrong_with_them() {
        assert_eq!(read(&Query::parse("a=b").unwrap()).unwrap(), None);
        let wanted = read(&Query::parse("query=a&query=b&tailLines=3&boot=-1&pattern=x").unwrap()).unwrap().unwrap();
        assert_eq!((wanted.services.len(), wanted.tail, wanted.boot), (2, Some(3), Some(-1)));
        wanted.validate().unwrap();
        assert!(read(&Query::parse("query=%2Fa.log").unwrap()).unwrap().unwrap().validate().is_ok());
        for (query, words) in [
            ("query=++", "query: Invalid value: [\"  \"]: may not be empty"),
            ("sinceTime=x", "sinceTime: Invalid value: \"x\": invalid time format"),
            ("boot=x", "boot: Invalid value: \"x\": strconv.Atoi: parsing \"x\": invalid syntax"),
            ("tailLines=5", "query: Required value: cannot be empty with options"),
            ("query=%3Bls", "query: Invalid value: \";ls\": input contains unsupported characters"),
            ("query=a&query=b&query=c&query=d&query=e", "query: Too many: 5: must have at most 4 items"),
            ("query=a&query=%2Fb", "query: Invalid value: \"[/b], [a]\": cannot specify a file and service"),
            ("query=%2Fa&query=%2Fb", "query: Invalid value: [\"/a\",\"/b\"]: cannot specify more than one file"),
            ("query=%2Fa&boot=0", "query: Invalid value: [\"/a\"]: cannot specify file with options"),
            ("query=a&boot=1", "boot: Invalid value: 1: must be less than 1"),
            (
                "query=a&boot=1&tailLines=-1",
                "[boot: Invalid value: 1: must be less than 1, tailLines: Invalid value: -1: must be between 0 and \
                 100000, inclusive]",
            ),
        ] {
            let said = read(&Query::parse(query).unwrap()).and_then(|wanted| wanted.unwrap().validate());
            assert_eq!(said.unwrap_err(), words, "{query}");
        }
    }
}
