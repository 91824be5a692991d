//! Columns as kubectl lays them out (Go's tabwriter: at least 6 wide, 3 apart, the last one not padded).

/// The widths of columns so far: rows that are printed later (`-w`) fall under the earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Table {
    widths: Vec<usize>,
}

impl Table {
    /// The rows as lines, each ended.
    pub(crate) fn lines(&mut self, rows: &[Vec<String>]) -> String {
        for row in rows {
            if self.widths.len() < row.len() {
                self.widths.resize(row.len(), 0);
            }
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max((cell.chars().count() + 3).max(6));
            }
        }
        let mut text = String::new();
        for row in rows {
            for (index, (cell, width)) in row.iter().zip(&self.widths).enumerate() {
                text.push_str(cell);
                if index + 1 < row.len() {
                    text.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// A row of text cells.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_tabwriter_does() {
        let mut table = Table::default();
        let first = table.lines(&[row(["NAME", "READY", "AGE"]), row(["web", "1/1", "5s"])]);
        assert_eq!(first, "NAME   READY   AGE\nweb    1/1     5s\n");
        assert_eq!(table.lines(&[row(["x", "0/1", "6s"])]), "x      0/1     6s\n");
        assert_eq!(table.lines(&[row(["much-longer", "0/1", "6s"])]), "much-longer   0/1     6s\n");
    }
}
