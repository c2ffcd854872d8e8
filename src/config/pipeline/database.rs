//! The keys of `source` that name a database: where it is, what is asked of it, and along which column it is paged.

use crate::config::file::{Field, Section};
use crate::config::resolve::defaults;
use crate::config::settings::{DatabaseSource, Place};
use crate::domain::DatabaseAddress;

/// A page is held by nobody as a whole, but a page is also what a crash repeats.
const MOST_PAGE_ROWS: u64 = 10_000_000;

/// The keys that mean something beside `database` alone.
const BESIDE: [&str; 4] = ["query", "key", "page_rows", "timeout"];

/// Takes the keys; `None` where there is no database. What comes with the place is `None` when a problem was found.
pub(super) fn take(section: &mut Section<'_>) -> Option<(Place, Option<DatabaseSource>)> {
    let database = section.take("database");
    let [query, key, page_rows, timeout] = BESIDE.map(|name| section.take(name));
    let Some(database) = database else {
        for field in [query, key, page_rows, timeout].into_iter().flatten() {
            let hint = "name it: source.database = \"mysql://user:${PASSWORD}@host/database\"";
            field.refuse_key(format!("`{}` means nothing without `source.database`", field.name), hint);
        }
        return None;
    };
    let place = database.place();
    let address = address(&database);
    let query = match &query {
        Some(field) => query_text(field),
        None => {
            let hint = "say what to read: source.query = \"select id, openid, unionid from users\"";
            database.refuse_key("`source.query` is missing", hint);
            None
        }
    };
    if let (Some(field), None) = (&page_rows, &key) {
        let hint = "name a column that is unique: source.key = \"id\"; without one the query is read as one stream";
        field.refuse_key("`page_rows` means nothing without `source.key`", hint);
    }
    let key = key.as_ref().map(Field::full_text);
    let page_rows = page_rows.map(|field| field.count("rows", 1..=MOST_PAGE_ROWS));
    let timeout = timeout.map(|field| field.positive_duration());
    let found = || {
        Some(DatabaseSource {
            address: address?,
            query: query?,
            key: key.map_or(Some(None), |key| key.map(Some))?,
            page_rows: page_rows.unwrap_or(Some(defaults::PAGE_ROWS))?,
            timeout: timeout.unwrap_or(Some(defaults::STATEMENT_TIMEOUT))?,
        })
    };
    Some((place, found()))
}

fn address(field: &Field<'_>) -> Option<DatabaseAddress> {
    let text = field.full_text()?;
    DatabaseAddress::parse(&text).map_err(|wrong| field.refuse(wrong.message, wrong.hint)).ok()
}

fn query_text(field: &Field<'_>) -> Option<String> {
    let text = field.full_text()?;
    let is_empty = text.trim().trim_end_matches(';').trim().is_empty();
    if is_empty {
        field.refuse("there is no query", "write one SELECT: \"select id, openid, unionid from users\"");
    }
    (!is_empty).then_some(text)
}

/// Keys about files that come late.
pub(super) fn refuse_lateness(fields: [Option<&Field<'_>>; 2]) {
    for field in fields.into_iter().flatten() {
        let hint = "leave it out; that its rows are fresh is a check: checks = { sql = \"select max(updated_at) from TABLE having \
                    max(updated_at) < $run_at - interval 36 hour\" }";
        field.refuse_key(format!("`{}` is about files; a database is read as it is now", field.name), hint);
    }
}
