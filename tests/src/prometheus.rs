//! Prometheus' text format, read as strictly as it is written down, and as its clients write it: what every scraper takes.
//! Must not know which metrics there should be.

use std::collections::{BTreeMap, BTreeSet};

/// Labels by their names.
pub type Labels = BTreeMap<String, String>;

/// A line with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name, with `_bucket` and the like of a histogram's.
    pub name: String,
    /// Labels, without escapes.
    pub labels: Labels,
    /// Value.
    pub value: f64,
}

/// Samples that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// `counter`, `gauge` or `histogram`; others are refused.
    pub kind: String,
    /// At least one.
    pub samples: Vec<Sample>,
}

/// Families by their names.
pub type Page = BTreeMap<String, Family>;

/// Reads a page. Each family is in one piece: `# HELP`, `# TYPE`, then its samples, none of which is there twice.
///
/// # Errors
/// With the first line that is wrong, and why.
pub fn read(page: &str) -> Result<Page, String> {
    if !page.is_empty() && !page.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    let mut reader = Reader::default();
    for (number, line) in page.split_terminator('\n').enumerate() {
        reader.line(line).map_err(|why| format!("line {}: {why}: {line}", number + 1))?;
    }
    reader.end_family()?;
    Ok(reader.page)
}

#[derive(Default)]
struct Reader {
    page: Page,
    /// Whose `# HELP` has come, and no `# TYPE` yet.
    helped: Option<String>,
    /// Whose samples come now.
    open: Option<String>,
    seen: BTreeSet<(String, Labels)>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            self.end_family()?;
            let (name, text) = rest.split_once(' ').ok_or("a help without a text")?;
            if !is_name(name, true) || self.page.contains_key(name) {
                return Err("a family's name that is none, or was there before".to_owned());
            }
            unescape(text, false)?;
            self.helped = Some(name.to_owned());
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or("a type without a kind")?;
            if self.helped.take().as_deref() != Some(name) {
                return Err("a type without its help before it".to_owned());
            }
            if !matches!(kind, "counter" | "gauge" | "histogram") {
                return Err("a kind that is not known here".to_owned());
            }
            if (kind == "counter") != name.ends_with("_total") {
                return Err("counters end in _total, and nothing else does".to_owned());
            }
            self.page.insert(name.to_owned(), Family { kind: kind.to_owned(), samples: Vec::new() });
            self.open = Some(name.to_owned());
            return Ok(());
        }
        if line.starts_with('#') || self.helped.is_some() {
            return Err("a help or a type was expected".to_owned());
        }
        let sample = sample(line)?;
        let name = self.open.as_deref().ok_or("a sample without a type")?;
        let family = self.page.get_mut(name).ok_or("a sample without a type")?;
        let part = sample.name.strip_prefix(name).ok_or("a sample of another family")?;
        let parts: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        if !parts.contains(&part) {
            return Err("a sample of another family".to_owned());
        }
        if family.kind == "counter" && !(sample.value.is_finite() && sample.value >= 0.0) {
            return Err("a counter that counts no things".to_owned());
        }
        if !self.seen.insert((sample.name.clone(), sample.labels.clone())) {
            return Err("a series that was there before".to_owned());
        }
        family.samples.push(sample);
        Ok(())
    }

    fn end_family(&mut self) -> Result<(), String> {
        if let Some(name) = &self.helped {
            return Err(format!("{name} has no type"));
        }
        let Some(name) = self.open.take() else { return Ok(()) };
        let family = self.page.get(&name).filter(|family| !family.samples.is_empty());
        let family = family.ok_or_else(|| format!("{name} has no samples"))?;
        if family.kind == "histogram" { histogram(&name, &family.samples) } else { Ok(()) }
    }
}

/// Each has its buckets in order, none with less than the one before, the last without a bound and with all.
fn histogram(name: &str, samples: &[Sample]) -> Result<(), String> {
    let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    let mut sums = BTreeSet::new();
    for sample in samples {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le").map(|bound| number(&bound)).transpose()?;
        match (sample.name.strip_prefix(name), bound) {
            (Some("_bucket"), Some(bound)) => buckets.entry(labels).or_default().push((bound, sample.value)),
            (Some("_count"), None) => {
                counts.insert(labels, sample.value);
            }
            (Some("_sum"), None) => {
                sums.insert(labels);
            }
            _ => return Err(format!("{name}: {} with or without a bound", sample.name)),
        }
    }
    for (labels, buckets) in &buckets {
        let rising = buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1);
        let all = counts.get(labels).copied();
        let last = buckets.last().copied();
        if !rising || !sums.contains(labels) || all.is_none() || last != all.map(|all| (f64::INFINITY, all)) {
            return Err(format!("{name}{labels:?}: no histogram in {buckets:?} of {all:?}"));
        }
    }
    if buckets.len() != counts.len() || buckets.len() != sums.len() {
        return Err(format!("{name}: a histogram without buckets"));
    }
    Ok(())
}

fn is_name(text: &str, colons: bool) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (colons && byte == b':');
    text.bytes().all(good) && text.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn sample(line: &str) -> Result<Sample, String> {
    let (name, mut rest) = line.split_at(line.find(['{', ' ']).ok_or("a sample without a value")?);
    if !is_name(name, true) {
        return Err("a sample's name that is none".to_owned());
    }
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("a label without a value")?;
            if !is_name(label, false) || label.starts_with("__") {
                return Err("a label's name that is none".to_owned());
            }
            let (value, after) = unescape(after, true)?;
            if labels.insert(label.to_owned(), value).is_some() {
                return Err("a label that was there before".to_owned());
            }
            if let Some(after) = after.strip_prefix('}') {
                rest = after;
                break;
            }
            rest = after.strip_prefix(',').ok_or("labels without an end")?;
        }
    }
    let rest = rest.strip_prefix(' ').ok_or("a sample without a value")?;
    let (value, time) = rest.split_once(' ').map_or((rest, None), |(value, time)| (value, Some(time)));
    if time.is_some_and(|time| time.parse::<i64>().is_err()) {
        return Err("a time that is no whole number".to_owned());
    }
    Ok(Sample { name: name.to_owned(), labels, value: number(value)? })
}

/// A number as Go reads and writes it.
fn number(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => return Ok(f64::INFINITY),
        "-Inf" => return Ok(f64::NEG_INFINITY),
        "NaN" => return Ok(f64::NAN),
        _ => {}
    }
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    text.parse().ok().filter(|_| plain).ok_or_else(|| format!("{text:?} is no number"))
}

/// A text without its escapes, up to its quotation mark if it is `quoted`; and what follows.
fn unescape(text: &str, quoted: bool) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        match next {
            '"' if quoted => return Ok((value, chars.as_str())),
            '\\' => match chars.next() {
                Some('n') => value.push('\n'),
                Some('\\') => value.push('\\'),
                Some('"') if quoted => value.push('"'),
                _ => return Err("an escape that there is not".to_owned()),
            },
            other => value.push(other),
        }
    }
    if quoted { Err("a label's value without an end".to_owned()) } else { Ok((value, "")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HEAD: &str = "# HELP a_total h\n# TYPE a_total counter\n";
    const HISTOGRAM: &str = "# HELP h x\n# TYPE h histogram\n";

    #[test]
    fn what_is_well_written() {
        assert_eq!(read(""), Ok(Page::new()));
        let page = format!(
            "{HEAD}a_total{{x=\"\\\\ \\\" \\n {{,}}=\\\"\",y=\"\"}} 1e+06 -5\na_total 0\n\
             # HELP g \n# TYPE g gauge\ng NaN\n\
             {HISTOGRAM}h_bucket{{le=\"0.5\"}} 1\nh_bucket{{le=\"+Inf\"}} 2\nh_sum 3.5\nh_count 2\n"
        );
        let page = read(&page).unwrap();
        let first = &page["a_total"].samples[0];
        assert_eq!((first.labels["x"].as_str(), first.value), ("\\ \" \n {,}=\"", 1e6));
        assert_eq!(page["h"].samples.len(), 4);
    }

    #[test]
    fn what_is_not() {
        for (page, why) in [
            ("a_total 1".to_owned(), "the last line has no end"),
            ("a_total 1\n".to_owned(), "a sample without a type"),
            ("# TYPE a_total counter\na_total 1\n".to_owned(), "a type without its help"),
            ("# HELP a_total h\na_total 1\n".to_owned(), "a help or a type was expected"),
            (HEAD.to_owned(), "a_total has no samples"),
            (format!("{HEAD}{HEAD}"), "a_total has no samples"),
            (format!("{HEAD}a_total 1\n{HEAD}"), "was there before"),
            (format!("{HEAD}b_total 1\n"), "a sample of another family"),
            (format!("{HEAD}a_total 1\n\n"), "a sample without a value"),
            (format!("{HEAD}a_total 1\n# EOF\n"), "a help or a type was expected"),
            (format!("{HEAD}a_total 1\na_total 2\n"), "a series that was there before"),
            (format!("{HEAD}a_total{{x=\"1\",y=\"2\"}} 1\na_total{{y=\"2\",x=\"1\"}} 1\n"), "a series that was there"),
            (format!("{HEAD}a_total{{x=\"1\",x=\"2\"}} 1\n"), "a label that was there before"),
            (format!("{HEAD}a_total{{x=\"a\"b\"}} 1\n"), "labels without an end"),
            (format!("{HEAD}a_total{{x=\"\\t\"}} 1\n"), "an escape that there is not"),
            (format!("{HEAD}a_total{{__x=\"\"}} 1\n"), "a label's name"),
            (format!("{HEAD}a_total{{1=\"\"}} 1\n"), "a label's name"),
            (format!("{HEAD}a_total -1\n"), "a counter"),
            (format!("{HEAD}a_total NaN\n"), "a counter"),
            (format!("{HEAD}a_total inf\n"), "is no number"),
            (format!("{HEAD}a_total 1 1.5\n"), "a time"),
            (format!("{HEAD}a_total  1\n"), "is no number"),
            ("# HELP a h\n# TYPE a counter\na 1\n".to_owned(), "counters end in _total"),
            ("# HELP a_total h\n# TYPE a_total gauge\na_total 1\n".to_owned(), "counters end in _total"),
            ("# HELP a h\n# TYPE a summary\na 1\n".to_owned(), "a kind"),
            ("# HELP a \\t\n".to_owned(), "an escape"),
            (format!("{HISTOGRAM}h_bucket{{le=\"+Inf\"}} 2\nh_sum 1\nh_count 1\n"), "no histogram"),
            (format!("{HISTOGRAM}h_bucket{{le=\"1\"}} 2\nh_sum 1\nh_count 2\n"), "no histogram"),
            (format!("{HISTOGRAM}h_bucket{{le=\"+Inf\"}} 2\nh_count 2\n"), "no histogram"),
            (format!("{HISTOGRAM}h_sum 1\nh_count 2\n"), "without buckets"),
            (format!("{HISTOGRAM}h 2\n"), "a sample of another family"),
        ] {
            let said = read(&page).unwrap_err();
            assert!(said.contains(why), "{page}: {said}");
        }
    }
}
