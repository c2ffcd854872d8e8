//! A column of a table that knows people: by their unionid, or by the account and the openid they follow it with.

use crate::config::nearest;
use crate::engine::quoted;
use crate::stage::Hands;
use crate::stage::query::{self, QueryError};

/// A column as it is written: `TABLE.COLUMN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonColumn {
    pub table: String,
    pub column: String,
}

impl PersonColumn {
    /// Reads `TABLE.COLUMN`; nothing where there is no table.
    pub fn read(written: &str) -> Option<Self> {
        let (table, column) = written.split_once('.')?;
        let is_whole = !table.is_empty() && !column.is_empty();
        is_whole.then(|| Self { table: table.to_owned(), column: column.to_owned() })
    }
}

/// By what a table knows people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Unionid,
    Follower,
}

/// A column that is there.
#[derive(Debug)]
pub struct Found<'a> {
    pub of: &'a PersonColumn,
    /// DuckDB's name of its type.
    pub column_type: String,
    key: Key,
}

impl<'a> Found<'a> {
    /// Looks it up.
    ///
    /// # Errors
    ///
    /// [`QueryError::Sql`] when the table or the column is not there, or the table does not know people.
    pub async fn find(hands: &Hands, of: &'a PersonColumn) -> Result<Self, QueryError> {
        let columns = query::columns(hands, &format!("select * from {}", quoted(&of.table))).await?;
        let has = |name: &str| columns.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
        let wrong = |message: String, hint: String| Err(QueryError::Sql { message, offset: None, hint: Some(hint) });
        let key = match (has("unionid"), has("account") && has("openid")) {
            (true, _) => Key::Unionid,
            (false, true) => Key::Follower,
            (false, false) => {
                return wrong(
                    format!("table `{}` does not say of whom its rows are", of.table),
                    "a column is taken of tables with `unionid`, or with `account` and `openid`: make such a table with a sql stage"
                        .to_owned(),
                );
            }
        };
        match columns.iter().find(|(own, _)| own.eq_ignore_ascii_case(&of.column)) {
            Some((_, column_type)) => Ok(Self { of, column_type: column_type.clone(), key }),
            None => {
                let known = columns.iter().map(|(name, _)| name.as_str());
                let hint = match nearest(&of.column, known.clone()) {
                    Some(near) => format!("did you mean `{}.{near}`?", of.table),
                    None => format!("it has: {}", known.collect::<Vec<_>>().join(", ")),
                };
                wrong(format!("table `{}` has no column `{}`", of.table, of.column), hint)
            }
        }
    }

    /// The column, as SQL quotes it.
    pub fn name(&self) -> String {
        quoted(&self.of.column)
    }

    /// Joins `r`, the set, with a value a person: several rows of one person are one person.
    pub fn join(&self, alias: &str, value: &str) -> String {
        let columns = match self.key {
            Key::Unionid => "unionid",
            Key::Follower => "account, openid",
        };
        format!(
            "\nleft join (select {columns}, {value} as value from {} where {} group by {columns}) as {alias}
  on {}",
            quoted(&self.of.table),
            match self.key {
                Key::Unionid => "unionid is not null",
                Key::Follower => "openid is not null",
            },
            self.is_of(alias)
        )
    }

    /// The condition that a row of `alias` is of the person in `r`.
    pub fn is_of(&self, alias: &str) -> String {
        match self.key {
            Key::Unionid => format!("{alias}.unionid = r.unionid"),
            Key::Follower => format!("{alias}.account = r.account and {alias}.openid = r.openid"),
        }
    }
}
