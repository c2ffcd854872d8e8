//! When a value says that something happened, and which values say neither that it did nor that it did not.

use serde::Deserialize;

use super::person::Found;
use crate::engine::{quoted, text};
use crate::ledger::Push;
use crate::redact::shortened;
use crate::stage::Hands;
use crate::stage::query::{QueryError, records};

const YES: [&str; 6] = ["true", "yes", "y", "t", "是", "有"];
const NO: [&str; 10] = ["", "false", "no", "n", "f", "否", "无", "null", "none", "\\n"];
/// Longer examples are shortened: they may be somebody's id.
const SHOWN: usize = 20;

/// Whether a value says that it happened: true, a number that is not 0, a time since the first send, or a word for yes.
///
/// Times in tables are UTC; what is text in an export is a wall clock's. A day without a time counts from the day of the send.
pub(super) fn happened(column: &str, push: &Push) -> String {
    let began = push.first_send_at.unwrap_or(push.frozen_at).format("%Y-%m-%d %H:%M:%S");
    let as_text = format!("cast({column} as varchar)");
    let time = time(&as_text);
    format!(
        "case when {column} is null then false
              when typeof({column}) = 'BOOLEAN' then {as_text} = 'true'
              when typeof({column}) like 'TIMESTAMP%' then {time} >= timestamp '{began}'
              when typeof({column}) = 'DATE' then {time} >= date_trunc('day', local_time(timestamp '{began}'))
              when try_cast({as_text} as double) is not null then try_cast({as_text} as double) <> 0
              when regexp_full_match(trim({as_text}), '[0-9]+[-/][0-9]+[-/][0-9]+')
                  then {time} >= date_trunc('day', local_time(timestamp '{began}'))
              when {time} is not null then {time} >= local_time(timestamp '{began}')
              else lower(trim({as_text})) in ({}) end",
        listed(&YES)
    )
}

/// Refuses a column of which somebody in the set has a value that says neither yes nor no: counted either way it would be
/// wrong.
///
/// # Errors
///
/// [`QueryError::Sql`] with the column and the value most of them have.
pub(super) async fn refuse_other_words(hands: &Hands, outcome: &Found<'_>, set: &str) -> Result<(), QueryError> {
    #[derive(Deserialize)]
    struct Other {
        value: String,
        people: u64,
    }
    if always_says(&outcome.column_type) {
        return Ok(());
    }
    let (table, column) = (&outcome.of.table, &outcome.of.column);
    let as_text = format!("cast(o.{} as varchar)", outcome.name());
    let sql = format!(
        "select {as_text} as value, count(*) as people from {} as o
         where o.{} is not null and not coalesce({}, false)
           and exists (select 1 from recipients as r where {set} and {})
         group by value order by people desc, value limit 1",
        quoted(table),
        outcome.name(),
        says(&as_text),
        outcome.is_of("o")
    );
    let others: Vec<Other> = records(hands, &sql).await?;
    let Some(Other { value, people }) = others.into_iter().next() else { return Ok(()) };
    let shown = if value.chars().count() > SHOWN { shortened(&value) } else { value.clone() };
    Err(QueryError::Sql {
        message: format!(
            "`{table}.{column}` says neither that it happened nor that it did not: `{shown}` stands in {people} rows of the set's people"
        ),
        offset: None,
        hint: Some(format!(
            "an outcome is a boolean, a number (0: no), a day or a time (2026-11-24, 2026-11-24 10:30:00; yes since the first send), or \
             one of the words {} and {}; make such a column with a sql stage: {column} = {} as happened",
            words(&YES),
            words(&NO[1..]),
            text(&shown)
        )),
    })
}

/// Whether every value of a type says yes or no.
fn always_says(column_type: &str) -> bool {
    let ty = column_type.to_ascii_uppercase();
    ["BOOLEAN", "DATE", "INTEGER", "UINTEGER", "FLOAT", "DOUBLE"].contains(&ty.as_str())
        || ty.ends_with("INT")
        || (ty.starts_with("DECIMAL(") && ty.ends_with(')'))
        || (ty.starts_with("TIMESTAMP") && !ty.ends_with(']'))
}

/// Whether a text says yes or no; NULL counts as not. Zero dates are how databases write that there was no time.
fn says(as_text: &str) -> String {
    format!(
        "lower(trim({as_text})) in ({}, {}) or isfinite(try_cast({as_text} as double)) or isfinite({}) or {as_text} like '0000-00-00%'",
        listed(&YES),
        listed(&NO),
        time(as_text)
    )
}

fn time(as_text: &str) -> String {
    format!("try_cast(replace({as_text}, '/', '-') as timestamp)")
}

fn listed(words: &[&str]) -> String {
    words.iter().map(|word| text(word)).collect::<Vec<_>>().join(", ")
}

fn words(words: &[&str]) -> String {
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Values;
    use crate::engine::{Engine, Params};

    #[test]
    fn words_numbers_and_times_say_it_and_nothing_else_does() {
        let session = Engine::new("100MB", 1, "spill", chrono_tz::Asia::Shanghai).session().unwrap();
        let told = |value: &str| {
            let sql = format!("select coalesce({}, false) as told from (select {} as v)", says("v"), text(value));
            match session.query(&sql, &Params::new()).unwrap().columns.remove(0).1 {
                Values::Boolean(values) => values[0].unwrap(),
                other => panic!("{other:?}"),
            }
        };
        for value in
            ["yes", " No ", "TRUE", "是", "无", "", "0", "3.5", "2026-11-24", "2026/11/24 10:30", "\\N", "0000-00-00"]
        {
            assert!(told(value), "{value}");
        }
        for value in ["shipped", "nan", "infinity", "12:30:00", "yes!", "24.11.2026"] {
            assert!(!told(value), "{value}");
        }
    }

    #[test]
    fn types_that_always_say_it_are_not_looked_at() {
        for own in ["BOOLEAN", "BIGINT", "UTINYINT", "DECIMAL(12,2)", "TIMESTAMP WITH TIME ZONE", "DATE", "DOUBLE"] {
            assert!(always_says(own), "{own}");
        }
        for other in ["VARCHAR", "INTEGER[]", "TIMESTAMP[]", "STRUCT(a INTEGER)", "BLOB", "TIME", "INTERVAL"] {
            assert!(!always_says(other), "{other}");
        }
    }
}
