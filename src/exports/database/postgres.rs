//! PostgreSQL: a session that only reads, with dates in ISO form and moments in UTC, and how a page of a key is asked for.

use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgRow, PgSslMode};
use sqlx::{AssertSqlSafe, Column, ConnectOptions, Executor, PgConnection, Row, SqlSafeStr, Statement, TypeInfo};

use super::value::ValueKind;
use super::{Found, Key};
use crate::domain::{DatabaseAddress, LineSecurity};

pub(super) async fn connect(address: &DatabaseAddress, limit: Duration) -> Result<PgConnection, sqlx::Error> {
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&address.host)
        .port(address.port)
        .username(&address.user)
        .password(address.password.as_ref().map_or("", |password| password.expose_secret()))
        .database(&address.database)
        .application_name("lianbo")
        .ssl_mode(match address.security {
            LineSecurity::Plain => PgSslMode::Disable,
            LineSecurity::IfOffered => PgSslMode::Prefer,
            LineSecurity::Encrypted => PgSslMode::Require,
            LineSecurity::TrustedAuthority => PgSslMode::VerifyCa,
            LineSecurity::Verified => PgSslMode::VerifyFull,
        })
        .disable_statement_logging();
    if let Some(socket) = &address.socket {
        options = options.socket(socket);
    }
    if let Some(authority) = &address.authority {
        options = options.ssl_root_cert(authority);
    }
    if let Some((certificate, key)) = &address.client {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    let mut line = options.connect().await?;
    let settings = format!(
        "set statement_timeout = {}; set default_transaction_read_only = on; set standard_conforming_strings = on;
         set datestyle = 'ISO, YMD'; set timezone = 'UTC'; set bytea_output = 'hex'; set client_encoding = 'UTF8';
         set extra_float_digits = 1",
        limit.as_millis()
    );
    sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut line).await?;
    Ok(line)
}

/// The columns of a statement. Only one statement can be prepared.
pub(super) async fn columns(line: &mut PgConnection, sql: String) -> Result<Vec<Found>, sqlx::Error> {
    let statement = line.prepare(AssertSqlSafe(sql).into_sql_str()).await?;
    let found = statement.columns().iter().map(|column| Found {
        name: column.name().to_owned(),
        kind: kind_of(column.type_info().name()),
        type_name: column.type_info().name().to_owned(),
    });
    Ok(found.collect())
}

fn kind_of(ty: &str) -> ValueKind {
    match ty {
        "BOOL" => ValueKind::Letter,
        "INT2" => ValueKind::Integer("SMALLINT"),
        "INT4" => ValueKind::Integer("INTEGER"),
        "INT8" => ValueKind::Integer("BIGINT"),
        "OID" => ValueKind::Integer("UINTEGER"),
        "FLOAT4" => ValueKind::Float("FLOAT"),
        "FLOAT8" => ValueKind::Float("DOUBLE"),
        "NUMERIC" => ValueKind::Decimal,
        "DATE" => ValueKind::Date,
        "TIMESTAMP" => ValueKind::WallClock,
        "TIMESTAMPTZ" => ValueKind::Moment,
        "BYTEA" => ValueKind::HexBytes,
        _ => ValueKind::Text,
    }
}

pub(super) fn bytes(row: &PgRow, field: usize) -> Option<&[u8]> {
    row.try_get_raw(field).ok()?.as_bytes().ok()
}

/// Whether some row has no key.
pub(super) async fn has_null(line: &mut PgConnection, key: &str, from: &str) -> Result<bool, sqlx::Error> {
    let sql = format!("select exists (select 1 {from} where {} is null)", quoted(key));
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(line).await
}

/// What follows after a value of the key, and in which order. A text in quotes takes the type of the column.
pub(super) fn key_sql(key: &Key, after: Option<&str>) -> (Option<String>, String) {
    let name = quoted(&key.name);
    let prefix = if key.kind == ValueKind::HexBytes { "\\x" } else { "" };
    (after.map(|value| format!("{name} > '{prefix}{}'", value.replace('\'', "''"))), name)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
