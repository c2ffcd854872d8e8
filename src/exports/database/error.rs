//! What can be wrong with a database, its query, or the key of it. An address is named without its password.

use std::time::Duration;

/// Why a database could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("cannot open {database}: is it reachable from here, and are user, password, database and sslmode right?")]
    Connect { database: String, source: sqlx::Error },

    #[error(
        "{database} gave no answer for {seconds} s: look at the server and the line to it, or raise source.timeout"
    )]
    Silent { database: String, seconds: u64 },

    #[error(
        "the query of {database} took longer than {} s: page it by source.key, have the key indexed, lower source.page_rows, \
         or raise source.timeout", limit.as_secs()
    )]
    TooSlow { database: String, limit: Duration, source: sqlx::Error },

    #[error("{database} does not take source.query")]
    Query { database: String, source: sqlx::Error },

    #[error("the line to {database} broke")]
    Line { database: String, source: sqlx::Error },

    #[error(
        "source.key names {key:?}, which source.query of {database} does not give; it gives {}: select the column as well",
        columns.join(", ")
    )]
    NoKey { database: String, key: String, columns: Vec<String> },

    #[error(
        "source.key {key:?} of {database} is of type {type_name}, along which cannot be paged: take a column of whole numbers \
         or texts that is unique, such as the primary key"
    )]
    OddKey { database: String, key: String, type_name: String },

    #[error(
        "source.key {key:?} of {database} is NULL in a row, which would be on no page: take a column that is never NULL, such \
         as the primary key"
    )]
    KeyIsNull { database: String, key: String },

    #[error(
        "two rows of {database} have the same source.key {key:?} ({value}), and one of them could be lost between two pages: \
         take a column that is unique, such as the primary key"
    )]
    KeyTwice { database: String, key: String, value: String },
}

/// Canceled by the server's own clock: PostgreSQL, MariaDB, MySQL.
const TOO_SLOW: [&str; 3] = ["57014", "70100", "HY000/3024"];

impl DatabaseError {
    pub(super) fn connect(database: &str, source: sqlx::Error) -> Self {
        Self::Connect { database: database.to_owned(), source }
    }

    pub(super) fn of_query(database: &str, limit: Duration, source: sqlx::Error) -> Self {
        let database = database.to_owned();
        match &source {
            sqlx::Error::Database(_) if code(&source).is_some_and(|code| TOO_SLOW.contains(&code.as_str())) => {
                Self::TooSlow { database, limit, source }
            }
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => Self::Line { database, source },
            sqlx::Error::Database(_) if is_going(&source) => Self::Line { database, source },
            _ => Self::Query { database, source },
        }
    }

    /// Whether the same may succeed later without anyone changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::Line { .. } | Self::TooSlow { .. } => true,
            Self::Connect { source, .. } => matches!(source, sqlx::Error::Io(_)) || is_going(source),
            _ => false,
        }
    }
}

/// The server is starting, stopping, or full.
fn is_going(source: &sqlx::Error) -> bool {
    // PostgreSQL's classes 57P and 53, MySQL's connection errors.
    code(source).is_some_and(|code| {
        code.starts_with("57P") || code.starts_with("53") || code.starts_with("08") || code == "40001"
    })
}

/// The state that a server gives with an error; of MySQL with its number where the state says nothing.
fn code(source: &sqlx::Error) -> Option<String> {
    let sqlx::Error::Database(error) = source else { return None };
    let state = error.code()?.into_owned();
    let number = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>().map(|error| error.number());
    match number {
        Some(number) if state == "HY000" => Some(format!("{state}/{number}")),
        _ => Some(state),
    }
}
