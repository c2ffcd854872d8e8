//! MySQL and MariaDB: a session that only reads, in UTC and UTF-8, and how a page of a key is asked for.

use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::mysql::{MySqlConnectOptions, MySqlRow, MySqlSslMode, MySqlTypeInfo};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Decode, Executor, MySql, MySqlConnection, Row, SqlSafeStr, Statement, Type,
    TypeInfo,
};

use super::value::ValueKind;
use super::{Found, Key, KeyOrder};
use crate::domain::{DatabaseAddress, LineSecurity};

pub(super) async fn connect(address: &DatabaseAddress, limit: Duration) -> Result<MySqlConnection, sqlx::Error> {
    let mut options = MySqlConnectOptions::new()
        .host(&address.host)
        .port(address.port)
        .username(&address.user)
        .database(&address.database)
        // The query means what it means to its author's own client.
        .pipes_as_concat(false)
        .no_engine_substitution(false)
        .ssl_mode(match address.security {
            LineSecurity::Plain => MySqlSslMode::Disabled,
            LineSecurity::IfOffered => MySqlSslMode::Preferred,
            LineSecurity::Encrypted => MySqlSslMode::Required,
            LineSecurity::TrustedAuthority => MySqlSslMode::VerifyCa,
            LineSecurity::Verified => MySqlSslMode::VerifyIdentity,
        })
        .disable_statement_logging();
    if let Some(password) = &address.password {
        options = options.password(password.expose_secret());
    }
    if let Some(socket) = &address.socket {
        options = options.socket(socket);
    }
    if let Some(authority) = &address.authority {
        options = options.ssl_ca(authority);
    }
    if let Some((certificate, key)) = &address.client {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    let mut line = options.connect().await?;
    let version: String = sqlx::query_scalar("select version()").fetch_one(&mut line).await?;
    let timeout = if version.contains("MariaDB") {
        format!("set session max_statement_time = {}", limit.as_secs_f64())
    } else {
        format!("set session max_execution_time = {}", limit.as_millis())
    };
    sqlx::raw_sql(AssertSqlSafe(timeout)).execute(&mut line).await?;
    sqlx::raw_sql("set session transaction read only").execute(&mut line).await?;
    Ok(line)
}

/// The columns of a statement. Only one statement can be prepared.
pub(super) async fn columns(line: &mut MySqlConnection, sql: String) -> Result<Vec<Found>, sqlx::Error> {
    let statement = line.prepare(AssertSqlSafe(sql).into_sql_str()).await?;
    let found = statement.columns().iter().map(|column| Found {
        name: column.name().to_owned(),
        kind: kind_of(column.type_info()),
        type_name: column.type_info().name().to_owned(),
    });
    Ok(found.collect())
}

fn kind_of(ty: &MySqlTypeInfo) -> ValueKind {
    match ty.name() {
        "BOOLEAN" => ValueKind::Tiny,
        "TINYINT" => ValueKind::Integer("TINYINT"),
        "SMALLINT" | "YEAR" => ValueKind::Integer("SMALLINT"),
        "MEDIUMINT" | "INT" => ValueKind::Integer("INTEGER"),
        "BIGINT" => ValueKind::Integer("BIGINT"),
        "TINYINT UNSIGNED" => ValueKind::Integer("UTINYINT"),
        "SMALLINT UNSIGNED" => ValueKind::Integer("USMALLINT"),
        "MEDIUMINT UNSIGNED" | "INT UNSIGNED" => ValueKind::Integer("UINTEGER"),
        "BIGINT UNSIGNED" => ValueKind::Integer("UBIGINT"),
        "FLOAT" => ValueKind::Float("FLOAT"),
        "DOUBLE" => ValueKind::Float("DOUBLE"),
        "DECIMAL" => ValueKind::Decimal,
        "DATE" => ValueKind::Date,
        "DATETIME" => ValueKind::WallClock,
        "TIMESTAMP" => ValueKind::SilentUtc,
        "BIT" => ValueKind::Bits,
        "GEOMETRY" => ValueKind::Bytes,
        // Texts whose letters are told apart are called binary as well: only their collation tells.
        "BINARY" | "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB"
            if !<str as Type<MySql>>::compatible(ty) =>
        {
            ValueKind::Bytes
        }
        _ => ValueKind::Text,
    }
}

pub(super) fn bytes(row: &MySqlRow, field: usize) -> Option<&[u8]> {
    let value = row.try_get_raw(field).ok()?;
    <&[u8] as Decode<MySql>>::decode(value).ok()
}

/// How the texts of a key are compared.
pub(super) async fn key_order(line: &mut MySqlConnection, key: &str, from: &str) -> Result<KeyOrder, sqlx::Error> {
    let sql = format!("select collation({}) {from} limit 1", quoted(key));
    let collation: Option<Option<String>> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_optional(line).await?;
    let is_word = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    Ok(match collation.flatten().filter(is_word) {
        Some(name) if name.ends_with("_bin") => KeyOrder::Collation(name),
        _ => KeyOrder::Bytes,
    })
}

/// What follows after a value of the key, and in which order.
pub(super) fn key_sql(key: &Key, after: Option<&str>) -> (Option<String>, String) {
    let name = quoted(&key.name);
    if let ValueKind::Integer(_) = key.kind {
        return (after.map(|value| format!("{name} > {}", number(value))), name);
    }
    let as_text = |value: &str| {
        let digits: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("_utf8mb4 x'{digits}'")
    };
    match &key.order {
        KeyOrder::Own => {
            let digits = |value: &str| value.chars().filter(char::is_ascii_hexdigit).collect::<String>();
            (after.map(|value| format!("{name} > x'{}'", digits(value))), name)
        }
        KeyOrder::Collation(collation) => {
            let charset = collation.split('_').next().unwrap_or("utf8mb4");
            let value = |value| format!("{name} > convert({} using {charset}) collate {collation}", as_text(value));
            (after.map(value), name)
        }
        KeyOrder::Bytes => {
            let column = format!("cast(convert({name} using utf8mb4) as binary)");
            (after.map(|value| format!("{column} > cast({} as binary)", as_text(value))), column)
        }
    }
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// The digits of a whole number that came from the database.
fn number(value: &str) -> String {
    value.chars().filter(|c| c.is_ascii_digit() || *c == '-').collect()
}
