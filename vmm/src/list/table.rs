//! Columns of text that fit a terminal.
//!
//! No library for this: the best-kept ones wrap cells over lines or draw boxes, and what is needed is to leave out what is empty, then
//! what matters least, and to cut the last column where the terminal ends.

/// A column.
pub(super) struct Column {
    /// Its heading.
    pub(super) title: &'static str,
    /// Those with the highest go first where there is no room; with 0 it stays.
    pub(super) dispensable: u8,
}

/// Rows below headings, in sections that share the widths of their columns.
pub(super) struct Table<'a, const N: usize> {
    /// The columns; the last one takes what is left of the width.
    pub(super) columns: [Column; N],
    /// Each with what it is about, which may be nothing, and its rows.
    pub(super) sections: &'a [(String, Vec<[String; N]>)],
}

/// Between columns.
const GAP: usize = 2;
/// What the last column has at least.
const LAST: usize = 20;
/// In a cell that says nothing.
pub(super) const NOTHING: &str = "-";

impl<const N: usize> Table<'_, N> {
    /// The lines, no longer than `width` if there is one, and the titles of what was left out for that.
    pub(super) fn lines(&self, width: Option<usize>) -> (Vec<String>, Vec<&'static str>) {
        let widths = self.widths();
        let mut shown: Vec<usize> = (0..N)
            .filter(|&column| self.says_something(column))
            .collect();
        let mut gone = Vec::new();
        while width.is_some_and(|width| self.needs(&shown, &widths) > width) {
            let most = shown
                .iter()
                .copied()
                .max_by_key(|&at| self.columns[at].dispensable);
            let Some(least) = most.filter(|&at| self.columns[at].dispensable > 0) else {
                break;
            };
            shown.retain(|&at| at != least);
            gone.push(self.columns[least].title);
        }
        let titles = self.columns.each_ref().map(|column| column.title);
        let line = |cells: [&str; N]| line(&cells, &shown, &widths, width);
        let mut lines = vec![line(titles)];
        for (about, rows) in self.sections {
            if !about.is_empty() {
                lines.push(about.clone());
            }
            lines.extend(
                rows.iter()
                    .map(|row| line(row.each_ref().map(String::as_str))),
            );
        }
        (lines, gone)
    }

    fn rows(&self) -> impl Iterator<Item = &[String; N]> {
        self.sections.iter().flat_map(|(_, rows)| rows)
    }

    fn says_something(&self, column: usize) -> bool {
        self.columns[column].dispensable == 0 || self.rows().any(|row| row[column] != NOTHING)
    }

    fn widths(&self) -> [usize; N] {
        std::array::from_fn(|at| {
            let cells = self.rows().map(|row| row[at].chars().count());
            cells
                .chain([self.columns[at].title.len()])
                .max()
                .unwrap_or(0)
        })
    }

    /// The width that these columns need at least.
    fn needs(&self, shown: &[usize], widths: &[usize; N]) -> usize {
        let width = |&at: &usize| match at + 1 == N {
            true => widths[at].min(LAST),
            false => widths[at] + GAP,
        };
        shown.iter().map(width).sum()
    }
}

fn line(cells: &[&str], shown: &[usize], widths: &[usize], limit: Option<usize>) -> String {
    let cell = |&at: &usize| format!("{:<width$}", cells[at], width = widths[at] + GAP);
    let whole: String = shown.iter().map(cell).collect();
    let whole = whole.trim_end();
    match limit {
        Some(limit) if whole.chars().count() > limit => {
            let mut cut: String = whole.chars().take(limit.saturating_sub(1)).collect();
            cut.push('…');
            cut
        }
        _ => whole.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn column(title: &'static str, dispensable: u8) -> Column {
        Column { title, dispensable }
    }

    fn lines(width: Option<usize>) -> (Vec<String>, Vec<&'static str>) {
        let row = |cells: [&str; 4]| cells.map(str::to_owned);
        let sections = [(
            String::new(),
            vec![
                row(["03:10.3", "0", "-", "a rather long name of a device"]),
                row(["03:10.31", "1", "-", "b"]),
            ],
        )];
        let columns = [
            column("ADDRESS", 0),
            column("NODE", 2),
            column("X", 1),
            column("NAME", 0),
        ];
        let table = Table {
            columns,
            sections: &sections,
        };
        table.lines(width)
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them_and_empty_ones_are_left_out() {
        let (lines, gone) = lines(None);
        assert_eq!(lines[0], "ADDRESS   NODE  NAME");
        assert_eq!(lines[1], "03:10.3   0     a rather long name of a device");
        assert_eq!(gone, [""; 0]);
    }

    #[test]
    fn no_line_is_longer_than_the_terminal_is_wide() {
        for width in 30..60 {
            let (lines, gone) = lines(Some(width));
            assert!(
                lines.iter().all(|line| line.chars().count() <= width),
                "{lines:?}"
            );
            assert_eq!(gone.is_empty(), width >= 36, "{width}");
        }
        assert_eq!(lines(Some(36)).0[1], "03:10.3   0     a rather long name …");
        assert_eq!(
            lines(Some(30)),
            (
                vec![
                    "ADDRESS   NAME".to_owned(),
                    "03:10.3   a rather long name …".to_owned(),
                    "03:10.31  b".to_owned(),
                ],
                vec!["NODE"]
            )
        );
    }
}
