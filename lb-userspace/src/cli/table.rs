//! Tables for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A column: its title, and whether it holds numbers.
pub type Column = (&'static str, bool);

/// Rows under titles, aligned, without lines and without spaces at the ends; indented by `indent` spaces. Nothing is
/// wrapped, so that a row stays a line for grep and awk.
pub fn render(columns: &[Column], rows: Vec<Vec<String>>, indent: usize) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(columns.iter().map(|(title, _)| *title))
        .add_rows(rows);
    for (index, (_, number)) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if *number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let margin = " ".repeat(indent);
    let lines = table
        .lines()
        .map(|line| format!("{margin}{}", line.trim_end()));
    let lines: Vec<String> = lines.collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_lines() {
        let columns = [("NAME", false), ("N", true), ("LAST", false)];
        let rows = vec![
            vec!["a".to_owned(), "1".to_owned(), "x".to_owned()],
            vec!["longer".to_owned(), "100".to_owned(), "y z".to_owned()],
        ];
        assert_eq!(
            render(&columns, rows, 2),
            "  NAME      N  LAST\n  a         1  x\n  longer  100  y z"
        );
    }
}
