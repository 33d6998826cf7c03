//! Tables: columns that align, and that give way in an order of their own when the line is too short.

use super::style::Line;
use super::style::Tone;
use super::words;

/// Which edge the cells of a column share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A column.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// What stands above it.
    pub(crate) title: &'static str,
    /// Where its cells stand.
    pub(crate) align: Align,
    /// Spaces to its left.
    pub(crate) space: usize,
    /// Columns with the lowest number go first when the table is too wide; 255 never goes.
    pub(crate) rank: u8,
    /// Whether its cells are cut before any column goes.
    pub(crate) cuttable: bool,
}

impl Column {
    /// A column of numbers that never goes.
    pub(crate) const fn number(title: &'static str) -> Self {
        Self {
            title,
            align: Align::Right,
            space: 2,
            rank: u8::MAX,
            cuttable: false,
        }
    }

    /// A column of words that never goes.
    pub(crate) const fn words(title: &'static str) -> Self {
        Self {
            align: Align::Left,
            ..Self::number(title)
        }
    }

    /// The same, to be left out in the order of `rank` when space is short.
    pub(crate) const fn rank(mut self, rank: u8) -> Self {
        self.rank = rank;
        self
    }

    /// The same, with `space` columns to its left.
    pub(crate) const fn space(mut self, space: usize) -> Self {
        self.space = space;
        self
    }

    /// The same, with cells that may be cut.
    pub(crate) const fn cuttable(mut self) -> Self {
        self.cuttable = true;
        self
    }
}

/// One cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    tone: Tone,
    text: String,
    runs_on: bool,
}

impl Cell {
    /// A cell of this tone.
    pub(crate) fn of(tone: Tone, text: &str) -> Self {
        Self {
            tone,
            text: words::harmless(text),
            runs_on: false,
        }
    }

    /// An ordinary cell.
    pub(crate) fn plain(text: impl ToString) -> Self {
        Self::of(Tone::Plain, &text.to_string())
    }

    /// The last cell of a row, whose text runs on over the columns to its right.
    pub(crate) fn running_on(text: &str) -> Self {
        Self {
            runs_on: true,
            ..Self::plain(text)
        }
    }
}

/// Rows under a heading.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// No cell that may be cut gets narrower than this.
const NARROWEST_CUT: usize = 12;

impl Table {
    /// An empty table.
    pub(crate) fn new(columns: Vec<Column>) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells that are missing at its end are empty.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The heading and the rows, in at most `width` columns as far as the columns that may go or be cut allow.
    pub(crate) fn lines(&self, width: usize) -> Vec<Line> {
        let mut widths = self.natural_widths();
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        loop {
            let excess = self.total(&shown, &widths).saturating_sub(width);
            if excess == 0 {
                break;
            }
            if let Some(&index) = shown
                .iter()
                .find(|&&i| self.columns[i].cuttable && widths[i] > NARROWEST_CUT)
            {
                widths[index] = widths[index].saturating_sub(excess).max(NARROWEST_CUT);
            } else if let Some(&index) = shown
                .iter()
                .filter(|&&i| self.columns[i].rank < u8::MAX)
                .min_by_key(|&&i| self.columns[i].rank)
            {
                shown.retain(|&i| i != index);
            } else {
                break;
            }
        }
        std::iter::once(self.heading(&shown, &widths))
            .chain(self.rows.iter().map(|row| self.line(row, &shown, &widths)))
            .collect()
    }

    fn natural_widths(&self) -> Vec<usize> {
        self.columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(index))
                    .filter(|cell| !cell.runs_on)
                    .map(|cell| words::columns(&cell.text))
                    .chain([words::columns(column.title)])
                    .max()
                    .unwrap_or(0)
            })
            .collect()
    }

    fn total(&self, shown: &[usize], widths: &[usize]) -> usize {
        shown
            .iter()
            .map(|&i| self.columns[i].space + widths[i])
            .sum()
    }

    fn heading(&self, shown: &[usize], widths: &[usize]) -> Line {
        let titles: Vec<Cell> = self
            .columns
            .iter()
            .map(|column| Cell::of(Tone::Faint, column.title))
            .collect();
        self.line(&titles, shown, widths)
    }

    fn line(&self, row: &[Cell], shown: &[usize], widths: &[usize]) -> Line {
        let mut line = Line::default();
        let nothing = Cell::default();
        for &index in shown {
            let column = &self.columns[index];
            let cell = row.get(index).unwrap_or(&nothing);
            line.push(Tone::Plain, &" ".repeat(column.space));
            if cell.runs_on {
                line.push(cell.tone, &cell.text);
                break;
            }
            let text = words::cut(&cell.text, widths[index]);
            let padding = " ".repeat(widths[index] - words::columns(&text));
            match column.align {
                Align::Left => {
                    line.push(cell.tone, &text);
                    line.push(Tone::Plain, &padding);
                }
                Align::Right => {
                    line.push(Tone::Plain, &padding);
                    line.push(cell.tone, &text);
                }
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(vec![
            Column::words("name").space(0).cuttable(),
            Column::number("bytes"),
            Column::number("calls").rank(1),
        ]);
        table.row(vec![
            Cell::plain("a name that is rather long"),
            Cell::plain(5),
            Cell::plain(12_345),
        ]);
        table.row(vec![Cell::plain("b"), Cell::plain(12_345)]);
        table
    }

    fn shown(width: usize) -> Vec<String> {
        table()
            .lines(width)
            .iter()
            .map(|line| line.paint(false))
            .collect()
    }

    #[test]
    fn numbers_align_at_their_right() {
        assert_eq!(
            shown(80),
            [
                "name                        bytes  calls",
                "a name that is rather long      5  12345",
                "b                           12345",
            ]
        );
    }

    #[test]
    fn names_are_cut_before_columns_go() {
        assert_eq!(shown(30)[1], "a name that is …      5  12345");
        assert_eq!(shown(20)[1], "a name that…      5");
    }
}
