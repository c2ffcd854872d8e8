//! `checks` of a stage: keys that say what must hold of its table. Those in the manner of dbt become SELECTs that must return
//! no row, so that what they name is judged, ordered and bound like any other SQL.

use super::stage::named_columns;
use crate::config::file::{Field, Section};
use crate::config::settings::{Checks, NamedColumn, Rule, RuleKind, Severity, SqlText};
use crate::domain::TableName;
use crate::domain::quoting::{quoted, text};

/// Reads the section of a stage that makes `table`.
pub(super) fn read(mut section: Section<'_>, table: &TableName) -> Checks {
    let columns = |field: Option<Field<'_>>| field.and_then(|field| named_columns(&field)).unwrap_or_default();
    let own = severity(&mut section);
    let mut rules = Vec::new();
    let table = quoted(table.as_str());
    for one in sections(&mut section, "accepted_values") {
        rules.extend(accepted_values(one, &table, own));
    }
    for one in sections(&mut section, "relationships") {
        rules.extend(relationship(one, &table, own));
    }
    for one in sections(&mut section, "freshness") {
        rules.extend(freshness(one, &table, own));
    }
    for one in sections(&mut section, "row_count_change") {
        rules.extend(row_count_change(one, own));
    }
    for one in sections(&mut section, "expression") {
        rules.extend(expression(one, &table, own));
    }
    let checks = Checks {
        not_null: columns(section.take("not_null")),
        unique: columns(section.take("unique")),
        min_rows: section.take("min_rows").and_then(|field| field.count("rows", 1..=u64::MAX)),
        max_drop: section.take("max_drop").and_then(|field| field.share()),
        sql: section.take("sql").and_then(|field| field.full_text().map(|text| SqlText { text, place: field.place() })),
        rules,
        severity: own.unwrap_or_default(),
    };
    section.finish();
    checks
}

/// A check's tables: `{ … }`, or a list of them.
fn sections<'a>(section: &mut Section<'a>, key: &'static str) -> Vec<Section<'a>> {
    section.take(key).and_then(|field| field.sections(&format!("`{key}`"))).unwrap_or_default()
}

fn severity(section: &mut Section<'_>) -> Option<Severity> {
    section.take("severity").and_then(|field| field.choice(&[("fail", Severity::Fail), ("warn", Severity::Warn)]))
}

/// The column that a rule is about.
fn column(section: &mut Section<'_>) -> Option<NamedColumn> {
    let field = section.require("column", "name a column of the stage's table")?;
    Some(NamedColumn { name: field.full_text()?, place: field.place() })
}

/// What a rule comes to, once everything in its table was read.
fn rule(
    mut section: Section<'_>,
    own: Option<Severity>,
    of: Option<(String, Option<NamedColumn>, RuleKind)>,
) -> Option<Rule> {
    let severity = severity(&mut section).or(own).unwrap_or_default();
    section.finish();
    of.map(|(name, column, kind)| Rule { name, column, kind, severity })
}

fn rows(section: &Section<'_>, sql: String) -> RuleKind {
    RuleKind::NoRow(SqlText { text: sql, place: section.place() })
}

fn accepted_values(mut section: Section<'_>, table: &str, own: Option<Severity>) -> Option<Rule> {
    let column = column(&mut section);
    let values = section.require("values", "list the texts that may stand there: [\"a\", \"b\"]").and_then(|field| {
        let values = field.texts()?;
        if values.is_empty() {
            field.refuse("this list accepts no value", "name at least one");
            return None;
        }
        Some(values)
    });
    let of = column.zip(values).map(|(column, values)| {
        let name = quoted(&column.name);
        let accepted: Vec<String> = values.iter().map(|value| text(&value.text)).collect();
        let sql = format!(
            "select {name}, count(*) as rows from {table} where {name} is not null
             and cast({name} as varchar) not in ({}) group by {name} order by rows desc, {name}",
            accepted.join(", ")
        );
        (format!("accepted_values {}", column.name), Some(column), rows(&section, sql))
    });
    rule(section, own, of)
}

fn relationship(mut section: Section<'_>, table: &str, own: Option<Severity>) -> Option<Rule> {
    let column = column(&mut section);
    let to = section.require("to", "write TABLE.COLUMN where each value must stand").and_then(|field| {
        let to = field.full_text()?;
        let parts = to.split_once('.').filter(|(table, column)| !table.is_empty() && !column.is_empty());
        if parts.is_none() {
            field.refuse(
                format!("\"{to}\" names no column of a table"),
                "write it as TABLE.COLUMN: \"mall_users.openid\"",
            );
        }
        parts.map(|(table, column)| (table.to_owned(), column.to_owned()))
    });
    let of = column.zip(to).map(|(column, (to_table, to_column))| {
        let name = quoted(&column.name);
        // The other table by itself first: within a subquery a column that it lacks is looked for outside, and the engine then
        // says that the table is missing.
        let sql = format!(
            "with _others as (select {} as value from {})
             select own.{name}, count(*) as rows from {table} as own where own.{name} is not null
             and not exists (select 1 from _others where _others.value = own.{name}) group by own.{name} order by own.{name}",
            quoted(&to_column),
            quoted(&to_table)
        );
        let told = format!("relationships {} → {to_table}.{to_column}", column.name);
        (told, Some(column), rows(&section, sql))
    });
    rule(section, own, of)
}

fn freshness(mut section: Section<'_>, table: &str, own: Option<Severity>) -> Option<Rule> {
    let column = column(&mut section);
    let hint = "say how old the newest value may be: \"36h\"";
    let max_age = section.require("max_age", hint).and_then(|field| Some((field.positive_duration()?, field.text()?)));
    let of = column.zip(max_age).map(|(column, (max_age, told))| {
        // What is no time makes nothing fresh: the check is broken, and the stage goes on by its severity.
        let newest = format!("max(try_cast({} as timestamp))", quoted(&column.name));
        let sql = format!(
            "select {newest} as newest from {table}
             having coalesce({newest} < $run_at - to_seconds({}), true)",
            max_age.as_secs()
        );
        (format!("freshness {} {told}", column.name), Some(column), rows(&section, sql))
    });
    rule(section, own, of)
}

fn row_count_change(mut section: Section<'_>, own: Option<Severity>) -> Option<Rule> {
    let hint = "say which share of the rows may come or go: 0.2";
    let max = section.require("max", hint).and_then(|field| field.share());
    let of = max.map(|max| (format!("row_count_change {max}"), None, RuleKind::Change(max)));
    rule(section, own, of)
}

fn expression(mut section: Section<'_>, table: &str, own: Option<Severity>) -> Option<Rule> {
    let field = section.require("sql", "write what must be true of each row: \"price >= 0\"");
    let of = field.and_then(|field| {
        let condition = field.full_text()?;
        let sql = format!("select * from {table} where not (\n{condition}\n)");
        let kind = RuleKind::NoRow(SqlText { text: sql, place: field.place() });
        Some((format!("expression {condition}"), None, kind))
    });
    rule(section, own, of)
}
