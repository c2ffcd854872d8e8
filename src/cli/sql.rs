//! `lianbo sql "SELECT …"`: a read-only question over the tables as they stand, also while a run goes on.
//!
//! The rows stream from the engine through one of the [`shapes`] to stdout or a file; the file appears under its name only
//! when it is whole.

mod shapes;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use self::shapes::{Csv, Json, Plain};
use super::context::{Context, stop_on_signals};
use super::exit::{Exit, Failure};
use super::table::grouped;
use crate::domain::Rows;
use crate::stage::query::{self, QueryError, RowSink};
use crate::stage::{Hands, StageError};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One SELECT over the tables of `lianbo tables`; $today, $run_at, local_time(ts) and local_date(ts) are there
    #[arg(value_name = "SELECT")]
    sql: String,
    /// How rows are written; left out: by the ending of FILE, else a table
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write to FILE instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Table,
    /// With a header; times as YYYY-MM-DD HH:MM:SS in UTC, NULL empty
    Csv,
    /// {"columns": […], "rows": [{…}]}; times in UTC RFC 3339, 64-bit ids as text
    Json,
    /// With the SELECT's own types; needs -o
    Parquet,
}

/// What was written to a file.
#[derive(Debug, Serialize)]
struct Written<'a> {
    path: &'a Path,
    format: Format,
    rows: u64,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let format = format(context, &args)?;
    let app = context.existing_app().await?;
    let (hands, stop) = (app.hands(), stop_on_signals());
    let question = Question { sql: &args.sql, format, stop: &stop };
    let done = match &args.output {
        None => question.to(hands, Box::new(io::stdout())).await,
        Some(path) => question.to_file(hands, path, &context.clock.random_id(6)).await,
    };
    hands.ledger.close().await;
    let rows = match done {
        Err(QueryError::Stage(StageError::Interrupted)) => return Ok(Exit::Waiting),
        done => done.map_err(|error| failure(error, &args.sql))?,
    };
    let counted = format!("{} {}", grouped(rows), if rows == 1 { "row" } else { "rows" });
    match &args.output {
        Some(path) if context.is_json => context.print(&Written { path, format, rows }, |_| String::new()),
        Some(path) if !context.is_quiet => eprintln!("{counted} in {}", path.display()),
        None if format == Format::Table && !context.is_quiet => eprintln!("{counted}"),
        _ => {}
    }
    Ok(Exit::Done)
}

fn format(context: &Context, args: &Args) -> Result<Format, Failure> {
    let ending = args.output.as_deref().and_then(Path::extension).and_then(|ending| ending.to_str());
    let format = match (args.format, ending) {
        (Some(format), _) => format,
        (None, Some("csv")) => Format::Csv,
        (None, Some("json")) => Format::Json,
        (None, Some("parquet")) => Format::Parquet,
        (None, _) if context.is_json => Format::Json,
        (None, _) => Format::Table,
    };
    match (format, &args.output) {
        (Format::Parquet, None) => Err(Failure::Usage("--format parquet needs a file: add -o FILE".to_owned())),
        (Format::Table | Format::Csv, None) if context.is_json => {
            Err(Failure::Usage("--json prints one JSON document: leave --format out, or add -o FILE".to_owned()))
        }
        _ => Ok(format),
    }
}

struct Question<'a> {
    sql: &'a str,
    format: Format,
    stop: &'a CancellationToken,
}

impl Question<'_> {
    /// Streams the rows in the chosen format, which is not Parquet.
    async fn to(&self, hands: &Hands, out: Box<dyn Write + Send>) -> Result<u64, QueryError> {
        let out = BufWriter::with_capacity(1 << 16, out);
        let sink: Box<dyn RowSink> = match self.format {
            Format::Csv => Box::new(Csv::new(out)),
            Format::Json => Box::new(Json::new(out)),
            Format::Table | Format::Parquet => Box::new(Plain::new(out)),
        };
        query::stream(hands, self.sql, self.stop, Shape(sink)).await
    }

    async fn to_file(&self, hands: &Hands, path: &Path, id: &str) -> Result<u64, QueryError> {
        if self.format == Format::Parquet {
            return Ok(query::parquet(hands, self.sql, self.stop, path).await?.rows);
        }
        let failed = |source| QueryError::Write { path: path.to_owned(), source };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{id}.tmp"));
        let aside = path.with_file_name(name);
        let file = File::create(&aside).map_err(failed)?;
        let durable = file.try_clone().map_err(failed)?;
        let rows = self.to(hands, Box::new(file)).await;
        let placed = match &rows {
            Ok(_) => durable.sync_all().and_then(|()| std::fs::rename(&aside, path)).map_err(failed),
            Err(_) => Ok(()),
        };
        if rows.is_err() || placed.is_err() {
            // The error that is told is the first one.
            let _ = std::fs::remove_file(&aside);
        }
        placed.and(rows)
    }
}

/// One of the shapes, chosen while running.
struct Shape(Box<dyn RowSink>);

impl RowSink for Shape {
    fn begin(&mut self, columns: &[String]) -> io::Result<()> {
        self.0.begin(columns)
    }

    fn rows(&mut self, rows: &Rows) -> io::Result<()> {
        self.0.rows(rows)
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.end()
    }
}

fn failure(error: QueryError, sql: &str) -> Failure {
    match error {
        QueryError::Sql { message, offset, hint } => {
            let mut text = message;
            if let Some(shown) = offset.and_then(|offset| line_with_caret(sql, offset)) {
                text.push('\n');
                text.push_str(&shown);
            }
            if let Some(hint) = hint {
                text.push('\n');
                text.push_str(&hint);
            }
            Failure::Usage(text)
        }
        other => Failure::Other(other.into()),
    }
}

/// The line of `offset` (bytes) with its number, and a caret below.
fn line_with_caret(sql: &str, offset: usize) -> Option<String> {
    let before = sql.get(..offset)?;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = sql[start..].lines().next().unwrap_or_default();
    let number = before.matches('\n').count() + 1;
    let lead = format!("line {number}: ");
    let is_wide = |c: char| c >= '\u{1100}';
    let width: usize = before[start..].chars().map(|c| if is_wide(c) { 2 } else { 1 }).sum();
    Some(format!("{lead}{line}\n{}^", " ".repeat(lead.len() + width)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_below_the_place_in_its_line() {
        let sql = "select a,\n  名, b\nfrom t";
        let shown = line_with_caret(sql, sql.find('b').unwrap()).unwrap();
        assert_eq!(shown, "line 2:   名, b\n              ^");
        assert!(line_with_caret(sql, 999).is_none());
    }
}
