//! Databases: the rows of one SELECT, page by page along a key that is unique, or as one stream where there is no key.
//!
//! The way of the data: a connection that is only allowed to read (`mysql`, `postgres`) → the query is prepared, which tells
//! its columns and refuses more than one statement → pages of it arrive as the database writes values out as text, so that
//! no digit is lost on the way (`value`) → batches of texts go to whoever keeps them (`page`). Memory holds a few batches,
//! whatever the size of a page.
//!
//! Each page is a short transaction of its own: no old snapshot is held on the other side, and between two pages rows may
//! change. Who is there all the time is read once, because the key orders people and does not move.
//!
//! Not here: where pages are kept, what is a bad row but for text that is none, and types beyond what the database says.

mod error;
mod mysql;
mod page;
mod postgres;
mod value;

use std::path::Path;
use std::time::Duration;

use futures::{Stream, StreamExt};
use sqlx::{AssertSqlSafe, MySqlConnection, PgConnection};
use tokio::sync::mpsc;

pub use error::DatabaseError;
pub use page::TextBatch;

use self::page::Page;
use self::value::ValueKind;
use super::layout::{Layout, cleaned_names};
use super::{ExportError, ReadOptions};
use crate::domain::{DatabaseAddress, DatabaseKind};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// What the server gets beyond the statement's own time before its silence counts.
const GRACE: Duration = Duration::from_secs(10);

/// Both kinds of servers take it so.
const BEGIN: &str = "start transaction read only";

/// What is asked of a database.
#[derive(Debug, Clone)]
pub struct Selection {
    /// One SELECT.
    pub query: String,
    /// A column of it whose values are unique and never NULL; `None`: all rows as one stream.
    pub key: Option<String>,
    /// Rows of a page.
    pub page_rows: u64,
    /// Longest time of one statement.
    pub timeout: Duration,
}

/// A column as it comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseColumn {
    /// Our name.
    pub name: String,
    /// DuckDB's type for what the database calls its own; of decimals `DECIMAL`, without the digits, which the values tell.
    pub natural_type: &'static str,
}

/// How a page ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageEnd {
    pub rows: u64,
    /// Whether there was more.
    pub has_more: bool,
}

/// A column of the query.
#[derive(Debug, Clone)]
struct Found {
    name: String,
    kind: ValueKind,
    /// As the database calls the type.
    type_name: String,
}

enum Line {
    MySql(MySqlConnection),
    Postgres(PgConnection),
}

/// A connection with a query that was prepared.
pub struct Database {
    line: Line,
    shown: String,
    selection: Selection,
    layout: Layout,
    found: Vec<Found>,
    key: Option<Key>,
}

/// The key of a query.
#[derive(Debug, Clone)]
struct Key {
    name: String,
    /// Its place in the query.
    field: usize,
    kind: ValueKind,
    /// How texts are compared, where the database would not tell all of them apart.
    order: KeyOrder,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum KeyOrder {
    /// As the column is, which lets its index serve.
    Own,
    /// As a MySQL text of this collation, which tells letters apart: its index serves as well.
    Collation(String),
    /// By bytes, because the column takes letters for one another that are not the same.
    Bytes,
}

/// The rows of a statement in a transaction that may only read; what fails after them is nobody's loss.
macro_rules! in_transaction {
    ($line:ident, $rows:ident, $sql:ident, $drained:block) => {
        match sqlx::raw_sql(BEGIN).execute(&mut *$line).await {
            Err(source) => Err(Broken::Sql(source)),
            Ok(_) => {
                let $rows = sqlx::raw_sql(AssertSqlSafe($sql)).fetch(&mut *$line);
                let drained = $drained;
                if drained.is_ok() {
                    let _ = sqlx::raw_sql("commit").execute(&mut *$line).await;
                }
                drained
            }
        }
    };
}

impl Database {
    /// Connects, only to read, and prepares the query.
    ///
    /// # Errors
    ///
    /// [`ExportError::Database`] for a database that cannot be reached, does not take the query, or has no such key;
    /// [`ExportError::MissingColumn`], [`ExportError::DuplicateColumn`] for columns that were asked for.
    pub async fn open(
        address: &DatabaseAddress,
        selection: &Selection,
        options: &ReadOptions<'_>,
    ) -> Result<Self, ExportError> {
        let shown = address.shown();
        let connect = async {
            Ok::<_, sqlx::Error>(match address.kind {
                DatabaseKind::MySql => Line::MySql(mysql::connect(address, selection.timeout).await?),
                DatabaseKind::Postgres => Line::Postgres(postgres::connect(address, selection.timeout).await?),
            })
        };
        let line = match tokio::time::timeout(CONNECT, connect).await {
            Ok(line) => line.map_err(|source| DatabaseError::connect(&shown, source))?,
            Err(_) => return Err(DatabaseError::Silent { database: shown, seconds: CONNECT.as_secs() }.into()),
        };
        let mut database =
            Self { line, shown, selection: selection.clone(), layout: Layout::default(), found: Vec::new(), key: None };
        database.prepare(options).await?;
        Ok(database)
    }

    /// What comes out, in its order.
    pub fn columns(&self) -> Vec<DatabaseColumn> {
        let columns = self.layout.columns.iter();
        columns
            .map(|column| DatabaseColumn {
                name: column.name.clone(),
                natural_type: if column.is_id { "VARCHAR" } else { self.found[column.field].kind.natural_type() },
            })
            .collect()
    }

    async fn prepare(&mut self, options: &ReadOptions<'_>) -> Result<(), ExportError> {
        let sql = self.select("");
        let asked = async {
            match &mut self.line {
                Line::MySql(line) => mysql::columns(line, sql).await,
                Line::Postgres(line) => postgres::columns(line, sql).await,
            }
        };
        self.found = match tokio::time::timeout(self.selection.timeout + GRACE, asked).await {
            Ok(found) => found.map_err(|source| self.failed(source))?,
            Err(_) => return Err(self.silent().into()),
        };
        let names = cleaned_names(self.found.iter().map(|found| found.name.as_str()));
        self.layout = Layout::of_header(Path::new(&self.shown), &names, options)?;
        if let Some(name) = self.selection.key.clone() {
            self.key = Some(self.prepare_key(name).await?);
        }
        Ok(())
    }

    async fn prepare_key(&mut self, name: String) -> Result<Key, ExportError> {
        let Some(field) = self.found.iter().position(|found| found.name == name) else {
            let columns = self.found.iter().map(|found| found.name.clone()).collect();
            return Err(DatabaseError::NoKey { database: self.shown.clone(), key: name, columns }.into());
        };
        let Found { kind, type_name, .. } = self.found[field].clone();
        if !kind.can_be_key() {
            return Err(DatabaseError::OddKey { database: self.shown.clone(), key: name, type_name }.into());
        }
        let from = self.source_sql();
        let asked = async {
            match &mut self.line {
                Line::MySql(line) if kind == ValueKind::Text => mysql::key_order(line, &name, &from).await.map(Ok),
                Line::MySql(_) => Ok(Ok(KeyOrder::Own)),
                // Without a key a row would be on no page. MySQL gives such rows first, where they are seen.
                Line::Postgres(line) => Ok(match postgres::has_null(line, &name, &from).await? {
                    true => Err(()),
                    false => Ok(KeyOrder::Own),
                }),
            }
        };
        let order = match tokio::time::timeout(self.selection.timeout + GRACE, asked).await {
            Ok(order) => order.map_err(|source: sqlx::Error| self.failed(source))?,
            Err(_) => return Err(self.silent().into()),
        };
        let order = order.map_err(|()| DatabaseError::KeyIsNull { database: self.shown.clone(), key: name.clone() })?;
        Ok(Key { name, field, kind, order })
    }

    fn source_sql(&self) -> String {
        let query = self.selection.query.trim().trim_end_matches(';');
        // The query may end in a comment.
        format!("from (\n{query}\n) as lianbo_source")
    }

    fn select(&self, rest: &str) -> String {
        format!("select * {}{rest}", self.source_sql())
    }

    /// Reads the page after a value of the key (`None`: the first), or without a key everything, and hands it over batch by
    /// batch. Whoever receives may be slow: the database waits.
    ///
    /// # Errors
    ///
    /// [`ExportError::Database`]. What was handed over of a page that failed is to be thrown away.
    pub async fn read_page(
        &mut self,
        after: Option<&str>,
        into: &mpsc::Sender<TextBatch>,
    ) -> Result<PageEnd, ExportError> {
        let rest = match &self.key {
            Some(key) => {
                let (condition, order) = match self.line {
                    Line::MySql(_) => mysql::key_sql(key, after),
                    Line::Postgres(_) => postgres::key_sql(key, after),
                };
                let condition = condition.map_or_else(String::new, |condition| format!(" where {condition}"));
                // One row more tells whether the page ends between two rows of one key, and whether there is another page.
                format!("{condition} order by {order} limit {}", self.selection.page_rows + 1)
            }
            None => String::new(),
        };
        let sql = self.select(&rest);
        let most = if self.key.is_some() { self.selection.page_rows } else { u64::MAX };
        let mut page = Page::new(&self.layout, &self.found, self.key.as_ref(), most);
        let limit = self.selection.timeout + GRACE;
        let drained = match &mut self.line {
            Line::MySql(line) => {
                in_transaction!(line, rows, sql, { drain(rows, (&mut page, mysql::bytes), (limit, into)).await })
            }
            Line::Postgres(line) => {
                in_transaction!(line, rows, sql, { drain(rows, (&mut page, postgres::bytes), (limit, into)).await })
            }
        };
        match drained {
            Ok(end) => Ok(end),
            Err(Broken::Sql(source)) => Err(self.failed(source).into()),
            Err(Broken::Silent) => Err(self.silent().into()),
            Err(Broken::Key(fault)) => {
                let (database, key) = (self.shown.clone(), self.selection.key.clone().unwrap_or_default());
                Err(match fault {
                    page::KeyFault::Null => DatabaseError::KeyIsNull { database, key },
                    page::KeyFault::Twice(value) => DatabaseError::KeyTwice { database, key, value },
                }
                .into())
            }
            Err(Broken::Receiver) => Err(ExportError::from_sink("nobody takes the rows")),
        }
    }

    /// Says goodbye to the server; what fails in it is nobody's loss.
    pub async fn close(self) {
        let _ = match self.line {
            Line::MySql(line) => sqlx::Connection::close(line).await,
            Line::Postgres(line) => sqlx::Connection::close(line).await,
        };
    }

    fn failed(&self, source: sqlx::Error) -> DatabaseError {
        DatabaseError::of_query(&self.shown, self.selection.timeout, source)
    }

    fn silent(&self) -> DatabaseError {
        let seconds = (self.selection.timeout + GRACE).as_secs();
        DatabaseError::Silent { database: self.shown.clone(), seconds }
    }
}

/// Why a page ended early.
enum Broken {
    Sql(sqlx::Error),
    Silent,
    Key(page::KeyFault),
    Receiver,
}

/// The bytes of a row's field; none of NULL.
type FieldOf<R> = fn(&R, usize) -> Option<&[u8]>;

/// Takes rows as long as there are some; `of_row` gives the bytes of a row's field.
async fn drain<R>(
    mut rows: impl Stream<Item = Result<R, sqlx::Error>> + Unpin,
    (page, of_row): (&mut Page<'_>, FieldOf<R>),
    (limit, into): (Duration, &mpsc::Sender<TextBatch>),
) -> Result<PageEnd, Broken> {
    loop {
        let next = tokio::time::timeout(limit, rows.next()).await.map_err(|_| Broken::Silent)?;
        let Some(row) = next else { break };
        let row = row.map_err(Broken::Sql)?;
        page.take(|field| of_row(&row, field)).map_err(Broken::Key)?;
        if page.is_full() {
            into.send(page.batch()).await.map_err(|_| Broken::Receiver)?;
        }
    }
    let last = page.batch();
    if last.rows > 0 {
        into.send(last).await.map_err(|_| Broken::Receiver)?;
    }
    Ok(page.end())
}
