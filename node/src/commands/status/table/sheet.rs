//! A table that fits its terminal, and text beside it.

use comfy_table::{Cell, ContentArrangement, Table, TableComponent, presets};

use super::Look;

/// Between two columns.
const GAP: usize = 3;

/// At both ends of a line.
const EDGES: usize = 2;

/// What is said of a row below it is set in by so much.
const INDENT: &str = "      ";

/// Where nobody counts the columns of a terminal, rows that belong together are kept to so many.
const WIDTH_USUAL: u16 = 80;

/// A table with what may be done where it is wider than the terminal.
pub(super) struct Sheet {
    look: Look,
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    /// Columns that may be left out, in this order.
    spare: Vec<&'static str>,
    /// Is the last column of sentences, which may go below their rows?
    wordy: bool,
}

impl Sheet {
    pub(super) fn new(look: Look, header: &[&'static str]) -> Self {
        Self { look, header: header.to_vec(), rows: Vec::new(), spare: Vec::new(), wordy: false }
    }

    /// With columns that may be left out, the first of these first.
    pub(super) fn spare(self, columns: &[&'static str]) -> Self {
        Self { spare: columns.to_vec(), ..self }
    }

    /// With a last column of sentences.
    pub(super) fn wordy(self) -> Self {
        Self { wordy: true, ..self }
    }

    pub(super) fn add_row(&mut self, mut row: Vec<Cell>) {
        row.resize_with(self.header.len(), || Cell::new(""));
        self.rows.push(row);
    }

    /// The table as text. Where it is too wide, sentences go below their rows, then names that are too long above them; then columns are left out,
    /// and it is said which.
    pub(super) fn text(mut self) -> String {
        let width = match self.look.width {
            Some(width) => width,
            None if self.wordy => WIDTH_USUAL,
            None => return self.table(ContentArrangement::Disabled),
        };
        let width = usize::from(width);
        if self.width() <= width {
            return self.table(ContentArrangement::Disabled);
        }
        let mut below = vec![String::new(); self.rows.len()];
        if self.wordy {
            self.header.pop();
            let sentences = self.rows.iter_mut().map(|row| row.pop().map(|cell| cell.content()).unwrap_or_default());
            below = sentences.map(|text| if text == "-" { String::new() } else { text }).collect();
        }
        // Nothing is kept from whoever reads it elsewhere than on a terminal.
        let width = self.look.width.map_or(usize::MAX, usize::from);
        let mut left_out = Vec::new();
        let mut spare = self.spare.clone().into_iter();
        while self.width_of_name(width).is_none() {
            let Some(column) = spare.next() else { return self.table(ContentArrangement::Dynamic) };
            let Some(at) = self.header.iter().position(|known| *known == column) else { continue };
            self.header.remove(at);
            self.rows.iter_mut().for_each(|row| drop(row.remove(at)));
            left_out.push(column);
        }
        let room = self.width_of_name(width).unwrap_or_default();
        let above: Vec<Option<String>> = self.rows.iter_mut().map(|row| name_above(row, room)).collect();
        let table = self.table(ContentArrangement::Disabled);
        let mut lines = table.lines();
        let mut text: Vec<String> = lines.by_ref().take(2).map(str::to_owned).collect();
        for ((line, above), below) in lines.zip(above).zip(below) {
            text.extend(above.map(|name| format!(" {name}")));
            text.push(line.to_owned());
            if !below.is_empty() {
                text.push(wrapped(&below, self.look, INDENT));
            }
        }
        if !left_out.is_empty() {
            text.push(format!(" (no room for {}: --json has all)", left_out.join(", ")));
        }
        text.join("\n")
    }

    /// Columns that the table takes as it is.
    fn width(&self) -> usize {
        EDGES + (0..self.header.len()).map(|column| self.width_of(column) + GAP).sum::<usize>() - GAP
    }

    fn width_of(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].content().chars().count());
        cells.max().unwrap_or(0).max(self.header[column].chars().count())
    }

    /// The room for names in the first column where the others have theirs, if that is enough for its header.
    fn width_of_name(&self, width: usize) -> Option<usize> {
        let others: usize = (1..self.header.len()).map(|column| self.width_of(column) + GAP).sum();
        width.checked_sub(others + EDGES).filter(|room| *room >= self.header[0].chars().count())
    }

    fn table(&self, arrangement: ContentArrangement) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(self.header.clone());
        table.set_style(TableComponent::HeaderLines, '─').set_style(TableComponent::MiddleHeaderIntersections, '─');
        table.set_content_arrangement(arrangement);
        if let Some(width) = self.look.width {
            table.set_width(width);
        }
        if self.look.colour {
            table.enforce_styling()
        } else {
            table.force_no_tty()
        };
        table.add_rows(self.rows.clone());
        table.trim_fmt()
    }
}

/// Takes a name out of its row that has no room in it.
fn name_above(row: &mut [Cell], room: usize) -> Option<String> {
    let name = row[0].content();
    if name.chars().count() <= room {
        return None;
    }
    row[0] = Cell::new("");
    Some(name)
}

/// Text in lines that fit the terminal, each set in by `indent`. A word that is longer than a line stays whole: it may be a path that is copied.
pub(super) fn wrapped(text: &str, look: Look, indent: &str) -> String {
    let width = look.width.map_or(usize::MAX, usize::from);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{indent}{word}")),
        }
    }
    lines.join("\n")
}

/// A paragraph: its further lines are set in.
pub(super) fn paragraph(text: &str, look: Look) -> String {
    wrapped(text, look, "  ").trim_start().to_owned()
}
