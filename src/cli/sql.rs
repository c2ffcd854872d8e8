//! `lianbo sql "SELECT …"`: a read-only question over the tables as they stand, or stood at the end of a day, also while a run
//! goes on.
//!
//! The rows stream from the engine to stdout or a file; the file appears under its name only when it is whole.

mod machine;
mod shapes;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::NaiveDate;
use clap::ValueEnum;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use self::shapes::{Json, Plain};
use super::context::{Context, stop_on_signals};
use super::exit::{Exit, Failure};
use super::measures::size;
use super::output::may_be_written;
use super::table::grouped;
use crate::config::settings::PublishFormat;
use crate::config::{read_duration, read_size};
use crate::domain::Rows;
use crate::engine;
use crate::stage::outputs::{Csv, RowSink};
use crate::stage::query::{self, Limits, QueryError, Question};
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
    /// Tables as they stood at the end of that day in the workspace's time zone; $today is that day
    #[arg(long, value_name = "YYYY-MM-DD")]
    at: Option<NaiveDate>,
    /// In csv and xlsx leave texts as they are that a spreadsheet would take for formulas
    #[arg(long)]
    raw: bool,
    /// An answer that takes longer is an error; "none" for no limit
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    timeout: Limit<Duration>,
    /// An answer of more rows is an error, never a part of it; "none" for no limit
    #[arg(long, value_name = "N", default_value = "10000000", value_parser = rows)]
    max_rows: Limit<u64>,
    /// Memory for it, such as 2GB, at most what the machine has, and ten times as much on the disk; left out: `memory_limit` of [engine]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<(String, u64)>,
}

/// A limit, or none.
#[derive(Debug, Clone, Copy)]
struct Limit<T>(Option<T>);

fn time(text: &str) -> Result<Limit<Duration>, String> {
    match text {
        "none" => Ok(Limit(None)),
        _ => match read_duration(text)? {
            Duration::ZERO => Err("no answer takes no time; write \"none\" for no limit".to_owned()),
            time => Ok(Limit(Some(time))),
        },
    }
}

fn rows(text: &str) -> Result<Limit<u64>, String> {
    match (text, text.parse()) {
        ("none", _) => Ok(Limit(None)),
        (_, Ok(rows)) if rows > 0 => Ok(Limit(Some(rows))),
        _ => Err("write a whole number of rows from 1 on, or \"none\" for no limit".to_owned()),
    }
}

/// DuckDB does not start with less.
const LEAST_MEMORY: u64 = 16_000_000;

fn memory(text: &str) -> Result<(String, u64), String> {
    let bytes = read_size(text)?;
    let all = machine::memory_bytes();
    match all.filter(|all| bytes > *all) {
        _ if bytes < LEAST_MEMORY => Err("write 16MB or more".to_owned()),
        Some(all) => Err(format!("there is {} of memory here: write 16MB to that, or leave it out", size(all))),
        None => Ok((text.to_owned(), bytes)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Table,
    /// With a header; times as YYYY-MM-DD HH:MM:SS in UTC, NULL empty, no text a formula
    Csv,
    /// {"columns": […], "rows": [{…}]}; times in UTC RFC 3339, 64-bit ids as text
    Json,
    /// With the SELECT's own types; needs -o
    Parquet,
    /// One sheet; dates as dates, times in UTC, numbers of more than 15 digits as text; needs -o
    Xlsx,
}

impl Format {
    const ENDINGS: [(&'static str, Self); 4] =
        [("csv", Self::Csv), ("json", Self::Json), ("parquet", Self::Parquet), ("xlsx", Self::Xlsx)];

    /// The format that a file's ending names.
    fn of_file(path: &Path) -> Result<Self, Failure> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        let named = Self::ENDINGS.iter().find(|(own, _)| ending.as_deref() == Some(own));
        named.map(|(_, format)| *format).ok_or_else(|| {
            let found = ending.map_or("has no ending".to_owned(), |ending| format!("ends in .{ending}"));
            Failure::Usage(format!(
                "{} {found}, which names no format; let it end in .csv, .json, .parquet or .xlsx, or add --format",
                path.display()
            ))
        })
    }
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
    // The engine's library takes its time to open, and so does the ledger.
    tokio::task::spawn_blocking(engine::make_ready);
    let app = context.app_to_ask().await?;
    let (hands, stop) = (app.hands(), stop_on_signals());
    args.output.as_deref().map_or(Ok(()), |path| may_be_written(path, &hands.settings))?;
    let limits = Limits { time: args.timeout.0, rows: args.max_rows.0, memory: args.memory.clone() };
    let question = Question { sql: args.sql.clone(), at: args.at, limits };
    let answer = Answer { question, format, is_raw: args.raw, stop: &stop };
    let done = match &args.output {
        None => answer.to(hands, Box::new(io::stdout())).await,
        Some(path) => answer.to_file(hands, path, &context.clock.random_id(6)).await,
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
    let format = match (args.format, &args.output) {
        (Some(format), _) => format,
        (None, Some(path)) => Format::of_file(path)?,
        (None, None) if context.is_json => Format::Json,
        (None, None) => Format::Table,
    };
    match (format, &args.output) {
        (Format::Parquet | Format::Xlsx, None) => {
            let name = if format == Format::Parquet { "parquet" } else { "xlsx" };
            Err(Failure::Usage(format!("--format {name} needs a file: add -o FILE")))
        }
        (Format::Table | Format::Csv, None) if context.is_json => {
            Err(Failure::Usage("--json prints one JSON document: leave --format out, or add -o FILE".to_owned()))
        }
        _ => Ok(format),
    }
}

struct Answer<'a> {
    question: Question,
    format: Format,
    is_raw: bool,
    stop: &'a CancellationToken,
}

impl Answer<'_> {
    /// Streams the rows in the chosen format, which is one of those that are written row by row.
    async fn to(&self, hands: &Hands, out: Box<dyn Write + Send>) -> Result<u64, QueryError> {
        let out = BufWriter::with_capacity(1 << 16, out);
        let sink: Box<dyn RowSink> = match self.format {
            Format::Csv => Box::new(Csv::new(out, self.is_raw)),
            Format::Json => Box::new(Json::new(out)),
            Format::Table | Format::Parquet | Format::Xlsx => Box::new(Plain::new(out)),
        };
        query::stream(hands, &self.question, self.stop, Shape(sink)).await
    }

    /// The file appears under its name when it is whole and on disk; before, and after an error, what was there stays.
    async fn to_file(&self, hands: &Hands, path: &Path, id: &str) -> Result<u64, QueryError> {
        let failed = |source| QueryError::Write { path: path.to_owned(), source };
        let beside = |ending: &str| {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{id}.{ending}"));
            std::path::absolute(path.with_file_name(name))
        };
        let (aside, unfinished) = (beside("tmp").map_err(failed)?, beside("parquet.tmp").map_err(failed)?);
        let rows = self.write(hands, &aside, path).await;
        let placed = if rows.is_ok() { std::fs::rename(&aside, path).map_err(failed) } else { Ok(()) };
        if rows.is_err() || placed.is_err() {
            // The error that is told is the first one.
            let _ = std::fs::remove_file(&aside);
            let _ = std::fs::remove_file(&unfinished);
        }
        placed.and(rows)
    }

    async fn write(&self, hands: &Hands, aside: &Path, path: &Path) -> Result<u64, QueryError> {
        let failed = |source| QueryError::Write { path: path.to_owned(), source };
        let file_format = match self.format {
            Format::Parquet => PublishFormat::Parquet,
            Format::Csv => PublishFormat::Csv,
            Format::Xlsx => PublishFormat::Xlsx,
            Format::Table | Format::Json => {
                let file = File::create(aside).map_err(failed)?;
                let durable = file.try_clone().map_err(failed)?;
                let rows = self.to(hands, Box::new(file)).await?;
                durable.sync_all().map_err(failed)?;
                return Ok(rows);
            }
        };
        let written = query::write(hands, &self.question, self.stop, (aside, file_format, self.is_raw)).await;
        written.map_err(|error| match error {
            QueryError::Write { source, .. } => failed(source),
            other => other,
        })
    }
}

/// One of the shapes, chosen while running.
struct Shape(Box<dyn RowSink>);

impl RowSink for Shape {
    fn begin(&mut self, columns: &[(String, String)]) -> io::Result<()> {
        self.0.begin(columns)
    }

    fn rows(&mut self, rows: &Rows) -> io::Result<()> {
        self.0.rows(rows)
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.end()
    }
}

/// What is wrong with a question, as its asker is told.
pub(super) fn failure(error: QueryError, sql: &str) -> Failure {
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
