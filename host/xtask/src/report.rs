//! What was checked and how it went: a line for each step, the counts at the end. Must not run anything.

use std::{
    collections::BTreeSet,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{process, say};

/// How one step went.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Outcome {
    /// Tests or checks that passed.
    pub passed: usize,
    /// Those that failed.
    pub failed: usize,
    /// Those that were not run.
    pub skipped: usize,
    /// Why they were not run.
    pub reason: Option<String>,
    /// What to show of a failure.
    pub details: Option<String>,
    /// The names of tests that failed, where the program told them.
    pub failures: Vec<String>,
    /// Tests that failed beside others and passed when they were run again, alone.
    pub flaky: Vec<String>,
    /// Tests that left themselves out, and why.
    pub left_out: Vec<String>,
}

impl Outcome {
    /// One check that passed.
    pub(crate) const PASSED: Self = Self::passed(1);
    /// A step that counts for nothing.
    pub(crate) const NOTHING: Self = Self::passed(0);

    const fn passed(passed: usize) -> Self {
        Self {
            passed,
            failed: 0,
            skipped: 0,
            reason: None,
            details: None,
            failures: Vec::new(),
            flaky: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Of the tests that passed these did nothing but say why they cannot be run here.
    pub(crate) fn leave_out(&mut self, told: &str) {
        let tests: BTreeSet<String> = told.lines().map(str::to_owned).collect();
        self.passed = self.passed.saturating_sub(tests.len());
        self.skipped += tests.len();
        self.left_out.extend(tests);
    }

    /// One check that was not run.
    pub(crate) fn skipped(reason: &str) -> Self {
        Self { skipped: 1, reason: Some(reason.to_owned()), ..Self::NOTHING }
    }
}

/// The sums.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: usize,
    failed: usize,
    skipped: Vec<String>,
    failures: Vec<String>,
    flaky: Vec<String>,
}

impl Report {
    /// Runs one step and prints its line; false when it failed. Its own error is a failure of the step.
    ///
    /// # Errors
    /// Only when we were interrupted.
    pub(crate) fn step(&mut self, name: &str, step: impl FnOnce() -> Result<Outcome>) -> Result<bool> {
        if say::on_terminal() {
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "..          {name}\r");
            let _ = out.flush();
        }
        let started = Instant::now();
        let outcome = step().unwrap_or_else(|error| Outcome {
            failed: 1,
            details: Some(format!("{error:#}")),
            ..Outcome::NOTHING
        });
        process::check_interrupted()?;
        self.add(name, started.elapsed(), outcome)
    }

    /// A step that fetches or makes what others need. `None` when that failed: a contributor may have no network, and skips
    /// what needs it; a machine that decides over changes (`CI` is set) must not pass without.
    ///
    /// # Errors
    /// Only when we were interrupted.
    pub(crate) fn obtain<T>(&mut self, name: &str, obtain: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let mut obtained = None;
        self.step(name, || match obtain() {
            Ok(it) => {
                obtained = Some(it);
                Ok(Outcome::NOTHING)
            }
            Err(error) if std::env::var_os("CI").is_none() => Ok(Outcome::skipped(&format!("{error:#}"))),
            Err(error) => Err(error),
        })?;
        Ok(obtained)
    }

    fn add(&mut self, name: &str, took: Duration, outcome: Outcome) -> Result<bool> {
        self.passed += outcome.passed;
        self.failed += outcome.failed;
        let seconds = took.as_secs_f32();
        if outcome.failed > 0 {
            say!("FAIL {seconds:6.1} s  {name}");
            if let Some(details) = &outcome.details {
                say!("{}\n", indent(details));
            }
            self.failures.push(name.to_owned());
            return Ok(false);
        }
        if !outcome.flaky.is_empty() {
            say!("flaky {seconds:5.1} s  {name}: what failed passed when it was run again, alone");
            say!("{}\n", indent(outcome.details.as_deref().unwrap_or_default()));
            self.flaky.extend(outcome.flaky.iter().map(|test| format!("{name}: {test}")));
        }
        if let Some(reason) = &outcome.reason {
            say!("skip {seconds:6.1} s  {name}: {reason}");
            self.skipped.push(format!("{name}: {reason}"));
            return Ok(true);
        }
        self.skipped.extend(outcome.left_out.iter().map(|test| format!("{name}: {test}")));
        let count = if outcome.passed > 1 { format!(" ({} passed)", outcome.passed) } else { String::new() };
        let ignored = if outcome.skipped > 0 { format!(" ({} skipped)", outcome.skipped) } else { String::new() };
        let unnamed = outcome.skipped.saturating_sub(outcome.left_out.len());
        if unnamed > 0 {
            self.skipped.push(format!("{name}: {unnamed} tests ignored"));
        }
        say!("ok   {seconds:6.1} s  {name}{count}{ignored}");
        Ok(true)
    }

    /// Notes what is not run at all, and why.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        say!("skip           {name}: {reason}");
        self.skipped.push(format!("{name}: {reason}"));
    }

    /// Notes a failure outside of any step.
    pub(crate) fn note_failure(&mut self, what: &str) {
        say!("FAIL           {what}");
        self.failed += 1;
        self.failures.push(what.lines().next().unwrap_or_default().to_owned());
    }

    /// Whether nothing failed and something passed.
    pub(crate) fn is_green(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// Prints what failed, what was skipped and, as the last line of all, the counts.
    pub(crate) fn finish(&mut self) {
        say!("");
        if self.flaky.len() > FEW_IN_ALL {
            self.failed += self.flaky.len();
            self.failures.push(format!(
                "{} tests passed only when they were run again: too many to be chance",
                self.flaky.len()
            ));
        }
        for failure in &self.failures {
            say!("failed: {failure}");
        }
        if !self.flaky.is_empty() {
            say!("{} passed only when they were run again, alone:", self.flaky.len());
            for flaky in &self.flaky {
                say!("  {flaky}");
            }
        }
        if !self.skipped.is_empty() {
            say!("{} skipped:", self.skipped.len());
            for skipped in &self.skipped {
                say!("  {}", skipped.lines().next().unwrap_or_default());
            }
        }
        let again = match self.flaky.len() {
            0 => String::new(),
            count => format!(" ({count} only when they were run again)"),
        };
        say!("{} passed{again}, {} failed", self.passed, self.failed);
    }
}

/// So many tests of a step may fail by chance.
const FEW: usize = 3;
/// And so many of all together.
const FEW_IN_ALL: usize = 5;

/// Runs tests that share a machine, and a few that failed once more, alone. A test that passes then was in others' way; the report
/// names it, and shows how it failed. `run` gets the names of those that it is to run, none for all.
///
/// # Errors
/// Those of the first run.
pub(crate) fn once_more(run: &dyn Fn(&[String]) -> Result<Outcome>) -> Result<Outcome> {
    let mut first = run(&[])?;
    if first.failed == 0 || first.failures.len() != first.failed || first.failed > FEW {
        return Ok(first);
    }
    let told = match run(&first.failures) {
        Ok(second) if second.failed == 0 && second.passed == first.failed => {
            first.passed += second.passed;
            first.failed = 0;
            first.flaky = std::mem::take(&mut first.failures);
            return Ok(first);
        }
        Ok(second) => format!("run again, alone: {} of {} failed", second.failed, first.failed),
        Err(error) => format!("run again, alone: {error:#}"),
    };
    first.details = Some(format!("{}\n{told}", first.details.unwrap_or_default()));
    Ok(first)
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("     {line}")).collect::<Vec<_>>().join("\n")
}

/// Adds up the lines `test result: ok. 3 passed; 0 failed; 1 ignored; …` of test binaries, and the names below `failures:`
/// before each.
pub(crate) fn counts(text: &str) -> Outcome {
    let mut sum = Outcome::NOTHING;
    let mut listed = Vec::new();
    for line in text.lines() {
        if line == "failures:" {
            // The first such list has the tests' output.
            listed.clear();
        } else if let Some(name) = line.strip_prefix("    ") {
            listed.push(name.to_owned());
        }
        let Some(rest) = line.trim_start().strip_prefix("test result: ") else { continue };
        match rest.starts_with("FAILED") {
            true => sum.failures.append(&mut listed),
            false => listed.clear(),
        }
        for part in rest.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(word)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            match word {
                "passed" => sum.passed += number,
                "failed" => sum.failed += number,
                "ignored" => sum.skipped += number,
                _ => {}
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_itself_out_has_not_passed() {
        let mut outcome = counts("test result: ok. 3 passed; 0 failed; 1 ignored");
        outcome.leave_out("a: there is none\nb: nor of that\na: there is none\n");
        assert_eq!((outcome.passed, outcome.skipped), (1, 3));
        assert_eq!(outcome.left_out, ["a: there is none", "b: nor of that"]);
    }

    #[test]
    fn counts_are_added_up() {
        let text = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    x\ntest result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.25s\n";
        let sum = counts(text);
        assert_eq!((sum.passed, sum.failed, sum.skipped), (5, 4, 1));
        assert_eq!(counts("nothing"), Outcome::NOTHING);
    }

    fn failing(names: &[&str]) -> Outcome {
        let failures: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Outcome { passed: 9, failed: names.len(), failures, ..Outcome::NOTHING }
    }

    #[test]
    fn a_few_that_failed_are_run_again_and_pass_only_when_all_of_them_do() {
        let twice = |first: Outcome, second: &dyn Fn() -> Result<Outcome>| {
            once_more(&|names| if names.is_empty() { Ok(first.clone()) } else { second() }).expect("an outcome")
        };
        let passed = |passed| move || Ok(Outcome { passed, ..Outcome::NOTHING });
        let both = twice(failing(&["a", "b"]), &passed(2));
        assert_eq!(
            (both.passed, both.failed, both.flaky.as_slice()),
            (11, 0, ["a".to_owned(), "b".to_owned()].as_slice())
        );
        let never = || -> Result<Outcome> { panic!("not to be run again") };
        assert_eq!(twice(failing(&["a", "b", "c", "d"]), &never).failed, 4, "so many are not chance");
        assert_eq!(twice(Outcome { failed: 1, ..Outcome::NOTHING }, &never).failed, 1, "it ended without a word");
        for second in [&passed(1) as &dyn Fn() -> _, &|| Ok(failing(&["b"])), &|| anyhow::bail!("late")] {
            let outcome = twice(failing(&["a", "b"]), second);
            assert_eq!((outcome.failed, outcome.flaky.len()), (2, 0));
            assert!(outcome.details.is_some_and(|details| details.contains("run again, alone")));
        }
    }

    #[test]
    fn what_failed_is_named() {
        let text = "    of an earlier test\ntest result: ok. 1 passed; 0 failed; 0 ignored\n\nfailures:\n\n---- a::b stdout ----\n    \
                    told\n\n\nfailures:\n    a::b\n    c\n\ntest result: FAILED. 2 passed; 2 failed; 0 ignored\n";
        assert_eq!(counts(text).failures, ["a::b", "c"]);
    }
}
