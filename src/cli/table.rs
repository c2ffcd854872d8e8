//! Tables as a terminal shows them.

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

/// A table without borders but a line below its header; numbers to the right.
pub fn plain(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(header.iter().copied());
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    for column in 0..header.len() {
        let is_numeric = !rows.is_empty()
            && rows.iter().all(|row| row.get(column).is_none_or(|cell| cell.is_empty() || is_number(cell)));
        if is_numeric && let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.add_rows(rows);
    let lines: Vec<String> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

fn is_number(cell: &str) -> bool {
    cell.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | ' ' | '%' | '\u{2009}'))
}

/// 1234567 as `1 234 567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
