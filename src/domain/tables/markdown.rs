//! Every table and column as the page of documentation that stands in `docs/tables.md`.

use super::{ColumnSpec, READ_OFF, TABLES, TableSpec, USERS};

const HEAD: &str = "<!-- Generated from src/domain/tables.rs by `make docs`; a test fails when it is stale. -->

# Tables

Every table and column, as `lianbo tables --describe` tells them. Times are timestamps in UTC without a zone; `local_time(ts)` and `local_date(ts)` give the
workspace's. Dates are days in the workspace's time zone. Ids are texts, and letters count; rates are between 0 and 1. How tables are read, also as of a
past day: [README](../README.md#asking). Worked examples: [notebooks](notebooks/).

*Kept* is how a table is stored: **snapshots** are Parquet files that runs replace as a whole, read by `lianbo sql`, by `data/catalog.duckdb` or by
anything that reads Parquet; **live** is fed by the ledger, in `lianbo sql` as it is at that moment, in the catalog as of the last run's end; **read off** is computed from
another table whenever somebody reads it.
";

/// The page.
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n| table | a row is | kept |\n| --- | --- | --- |\n");
    for table in TABLES {
        page.push_str(&format!("| [`{0}`](#{0}) | {1} | {2} |\n", table.name, table.row, kept(table)));
    }
    page.push_str("| [of users](#tables-of-users) | a mini-program user | snapshots |\n");
    for table in TABLES {
        page.push_str(&format!("\n## {}\n\nA row is {}. Kept: {}.\n\n", table.name, table.row, kept(table)));
        page.push_str(&columns(table.columns));
    }
    page.push_str(
        "\n## Tables of users\n\nEach `load_users` stage makes a table of its name, such as `mall_users`. A row is a mini-program user. Kept: snapshots. \
         It has these columns, and those of the export under the names that `columns` of the stage gives them.\n\n",
    );
    page.push_str(&columns(&USERS));
    page
}

fn kept(table: &TableSpec) -> String {
    // The ledger lists them, and the lake has a part for each push.
    if matches!(table.name, "recipients" | "left_out") {
        return "snapshots, one a push".to_owned();
    }
    let read_off = READ_OFF.iter().find(|(name, _)| *name == table.name);
    match (read_off, table.is_live) {
        (Some((_, from)), _) => format!("read off `{from}`"),
        (None, true) => "live".to_owned(),
        (None, false) => "snapshots".to_owned(),
    }
}

fn columns(columns: &[ColumnSpec]) -> String {
    let row = |column: &ColumnSpec| {
        let ty = column.column_type.sql().to_lowercase();
        format!("| `{}` | {ty} | {} |\n", column.name, column.meaning.replace('|', "\\|"))
    };
    let rows: String = columns.iter().map(row).collect();
    format!("| column | type | meaning and unit |\n| --- | --- | --- |\n{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ColumnType;

    #[test]
    fn every_column_has_a_meaning_and_where_it_is_a_measure_its_unit() {
        let of_users = ("users", USERS.as_slice());
        for (table, columns) in TABLES.iter().map(|table| (table.name, table.columns)).chain([of_users]) {
            for column in columns {
                let units: &[&str] = match column.column_type {
                    ColumnType::Timestamp => &["UTC"],
                    ColumnType::Date => &["day"],
                    ColumnType::Float => &["0 to 1", "seconds"],
                    _ => &[""],
                };
                let said = !column.meaning.is_empty() && units.iter().any(|unit| column.meaning.contains(unit));
                assert!(said, "{table}.{}: {:?}", column.name, column.meaning);
            }
        }
    }
}
