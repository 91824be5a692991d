//! Figures: a table for people, JSON for whoever compares. Must not take any.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::say;

/// One figure.
#[derive(Clone, Debug)]
pub(super) struct Row {
    what: String,
    ours: f64,
    baseline: Option<f64>,
    /// The ratio, or the figure where there is no baseline, that is to be reached.
    goal: Option<f64>,
}

impl Row {
    /// A figure and what the bare thing took in the same run; the goal is their ratio.
    pub(super) fn ratio(what: String, ours: f64, baseline: f64, goal: f64) -> Self {
        Self { what, ours, baseline: Some(baseline), goal: Some(goal) }
    }

    /// A figure that stands for itself; the goal is the most that it should be.
    pub(super) fn absolute(what: String, ours: f64, goal: f64) -> Self {
        Self { what, ours, baseline: None, goal: Some(goal) }
    }

    /// A figure without a goal.
    pub(super) fn plain(what: String, ours: f64, baseline: Option<f64>) -> Self {
        Self { what, ours, baseline, goal: None }
    }

    fn measured(&self) -> f64 {
        self.baseline.map_or(self.ours, |baseline| self.ours / baseline)
    }

    fn verdict(&self) -> &'static str {
        match self.goal {
            Some(goal) if self.measured() <= goal => "reached",
            Some(_) => "MISSED",
            None => "",
        }
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "ours": self.ours,
            "baseline": self.baseline,
            "ratio": self.baseline.map(|_| self.measured()),
            "goal": self.goal,
            "reached": self.goal.map(|goal| self.measured() <= goal),
        })
    }
}

/// Prints `rows`, and saves them with `about` (machine, Docker, noise) in `file`.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn publish(rows: &[Row], about: &Value, file: &Path) -> Result<()> {
    let width = rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
    say!("{:<width$}  {:>10}  {:>10}  {:>7}  {:>6}", "", "ours", "baseline", "ratio", "goal");
    for row in rows {
        let baseline = row.baseline.map(figure).unwrap_or_default();
        let ratio = row.baseline.map(|_| format!("{:.2}×", row.measured())).unwrap_or_default();
        let goal = row.goal.map(|goal| if row.baseline.is_some() { format!("{goal:.2}×") } else { figure(goal) });
        let goal = goal.unwrap_or_default();
        say!(
            "{:<width$}  {:>10}  {baseline:>10}  {ratio:>7}  {goal:>6}  {}",
            row.what,
            figure(row.ours),
            row.verdict()
        );
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let rows: Vec<Value> = rows.iter().map(Row::json).collect();
    let text = serde_json::to_string_pretty(&json!({ "about": about, "rows": rows }))?;
    fs::write(file, text + "\n").with_context(|| format!("{}", file.display()))?;
    say!("saved as {}", file.display());
    say!("");
    Ok(())
}

/// Three significant digits.
fn figure(number: f64) -> String {
    let digits = if number == 0.0 || !number.is_finite() { 0 } else { number.abs().log10().floor() as i32 };
    let places = usize::try_from(2 - digits).unwrap_or(0).min(5);
    format!("{number:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_verdict() {
        assert_eq!(figure(0.012_34), "0.0123");
        assert_eq!(figure(1.0), "1.00");
        assert_eq!(figure(123.4), "123");
        assert_eq!(figure(0.0), "0.00");
        assert_eq!(Row::ratio(String::new(), 1.0, 1.0, 1.1).verdict(), "reached");
        assert_eq!(Row::ratio(String::new(), 2.4, 2.0, 1.1).verdict(), "MISSED");
        assert_eq!(Row::absolute(String::new(), 0.0, 0.0).verdict(), "reached");
        assert_eq!(Row::plain(String::new(), 1.0, None).verdict(), "");
    }
}
