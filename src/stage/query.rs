//! A question over the tables as they stand, or stood at the end of a day: what `sql` answers, and what the views of coverage
//! are read with.
//!
//! The SELECT is parsed first, which names its tables; those of the lake are read where they lie, those that the ledger
//! feeds are written out for this one question and discarded after it. Then the session is confined to these tables and
//! locked, and only then the SELECT runs, within its limits. Not here: how rows are shown, what files they become, and which
//! SQL a stage may use.

mod limits;
mod names;
mod past;

use std::io;
use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use self::limits::Limits;
pub use self::names::known_tables;
use self::names::{Doubt, not_a_select, refuse_other_statements};
pub use super::outputs::RowSink;
use super::outputs::{Bound, OutputError, SheetError, day, moment, told_apart};
use super::tables::Visible;
use super::{Hands, StageError, live, watched};
use crate::config::settings::PublishFormat;
use crate::domain::tables::table_spec;
use crate::domain::{Rows, Values};
use crate::engine::{EngineError, Param, Params, Session, SqlFacts, TableSource, quoted};
use crate::ledger::SnapshotRecord;

/// Whole numbers beyond this are not exact in most readers of JSON.
const EXACT_IN_JSON: u64 = 1 << 53;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The SQL is wrong.
    #[error("{message}")]
    Sql {
        message: String,
        /// Byte offset in the SQL, where it is known.
        offset: Option<usize>,
        /// What to do about it.
        hint: Option<String>,
    },
    #[error("writing the rows")]
    Sink(#[source] io::Error),
    #[error(transparent)]
    Sheet(SheetError),
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It went past a limit; says which, and what gives it more.
    #[error("{0}")]
    Limit(String),
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl From<EngineError> for QueryError {
    fn from(error: EngineError) -> Self {
        let wrong =
            |message: String, offset, hint: Option<&str>| Self::Sql { message, offset, hint: hint.map(str::to_owned) };
        match error {
            EngineError::Sql { message, offset } => wrong(message, offset, None),
            EngineError::Outside { offset, .. } => {
                wrong(error.to_string(), offset, Some("`lianbo tables` lists the tables"))
            }
            EngineError::UnknownParameter { .. } => {
                wrong(error.to_string(), None, Some("there are $today and $run_at"))
            }
            EngineError::Positional { .. } => wrong(error.to_string(), None, Some("there are $today and $run_at")),
            other => Self::Stage(other.into()),
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Question {
    pub sql: String,
    /// The day at whose end; left out, now.
    pub at: Option<NaiveDate>,
    pub limits: Limits,
}

/// Streams the rows of a question into `sink` and gives their number, holding only a batch at a time.
///
/// # Errors
///
/// [`QueryError`]; what the sink got before stays there.
pub async fn stream(
    hands: &Hands,
    question: &Question,
    stop: &CancellationToken,
    mut sink: impl RowSink + 'static,
) -> Result<u64, QueryError> {
    let most_rows = question.limits.rows;
    question
        .ask(hands, None, stop, move |session, asked| {
            asked.bound(most_rows).pour(session, &mut sink).map_err(of_output)
        })
        .await
}

/// Writes the rows of a question to `target` (an absolute path) in a format of files. `is_raw` leaves texts as they are that
/// a spreadsheet would take for formulas.
///
/// # Errors
///
/// [`QueryError`]; `target` may be there and is not whole then, and something beside it under the name of a part that is not.
pub async fn write(
    hands: &Hands,
    question: &Question,
    stop: &CancellationToken,
    (target, format, is_raw): (&Path, PublishFormat, bool),
) -> Result<u64, QueryError> {
    let (path, most_rows) = (target.to_owned(), question.limits.rows);
    let written_by_engine = (format == PublishFormat::Parquet).then_some(target);
    question
        .ask(hands, written_by_engine, stop, move |session, asked| {
            let bound = asked.bound(most_rows);
            let done = match format {
                PublishFormat::Parquet => bound.parquet(session, &path),
                PublishFormat::Csv => bound.csv(session, &path, is_raw),
                PublishFormat::Xlsx => bound.xlsx(session, &path, is_raw),
            };
            done.map_err(|error| match error {
                OutputError::Write(source) => QueryError::Write { path: path.clone(), source },
                other => of_output(other),
            })
        })
        .await
}

/// All rows of a SELECT that is known to be small.
///
/// # Errors
///
/// [`QueryError`].
pub async fn rows(hands: &Hands, sql: &str) -> Result<Rows, QueryError> {
    let question = Question { sql: sql.to_owned(), ..Question::default() };
    let stop = CancellationToken::new();
    question.ask(hands, None, &stop, |session, asked| Ok(session.query(&asked.sql, &asked.params)?)).await
}

/// The columns of a SELECT with DuckDB's names of their types, without running it.
///
/// # Errors
///
/// [`QueryError`].
pub async fn columns(hands: &Hands, sql: &str) -> Result<Vec<(String, String)>, QueryError> {
    let question = Question { sql: sql.to_owned(), ..Question::default() };
    let stop = CancellationToken::new();
    question.ask(hands, None, &stop, |_, asked| Ok(asked.columns.clone())).await
}

/// The rows of a SELECT as records.
///
/// # Errors
///
/// [`QueryError`].
///
/// # Panics
///
/// When the columns are not those of `T`: both are written here, side by side.
pub async fn records<T: DeserializeOwned>(hands: &Hands, sql: &str) -> Result<Vec<T>, QueryError> {
    let rows = rows(hands, sql).await?;
    let record = |row| {
        let fields = rows.columns.iter().map(|(name, values)| (name.clone(), json(name, values, row))).collect();
        serde_json::from_value(Value::Object(fields)).expect("the SELECT gives the fields of the record")
    };
    Ok((0..rows.len()).map(record).collect())
}

/// One value as JSON: whole numbers that JSON readers would round, and every msgid, as text; times as UTC RFC 3339.
pub fn json(name: &str, values: &Values, row: usize) -> Value {
    match values {
        Values::Text(values) => values[row].as_deref().map_or(Value::Null, Value::from),
        Values::Integer(values) => match values[row] {
            Some(number) if name == "msgid" || number.unsigned_abs() > EXACT_IN_JSON => number.to_string().into(),
            number => number.into(),
        },
        Values::Float(values) => match values[row] {
            Some(number) if !number.is_finite() => number.to_string().into(),
            number => number.into(),
        },
        Values::Boolean(values) => values[row].into(),
        Values::Timestamp(values) => values[row].map_or(Value::Null, |micros| match moment(micros) {
            Ok(moment) => moment.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true).into(),
            Err(endless) => endless.into(),
        }),
        Values::Date(values) => values[row].map_or(Value::Null, |days| day(days).into()),
    }
}

/// A question whose SELECT is bound in its session.
struct Asked {
    sql: String,
    params: Params,
    columns: Vec<(String, String)>,
}

impl Asked {
    fn bound(&self, most_rows: Option<u64>) -> Bound<'_> {
        Bound { sql: &self.sql, params: &self.params, columns: &self.columns, most_rows }
    }
}

impl Question {
    /// Prepares a confined session with the tables that the SELECT names, which may write `target`, and hands it to `work` on
    /// a blocking thread.
    async fn ask<T: Send + 'static>(
        &self,
        hands: &Hands,
        target: Option<&Path>,
        stop: &CancellationToken,
        work: impl FnOnce(&Session, &Asked) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, QueryError> {
        refuse_other_statements(&self.sql)?;
        let answer =
            self.limits.in_time(hands, stop, |stop| async move { self.answer(hands, target, &stop, work).await }).await;
        match answer {
            Err(QueryError::Stage(StageError::Engine(EngineError::Memory { .. }))) => {
                Err(self.limits.out_of_memory(&hands.settings))
            }
            answer => answer,
        }
    }

    async fn answer<T: Send + 'static>(
        &self,
        hands: &Hands,
        target: Option<&Path>,
        stop: &CancellationToken,
        work: impl FnOnce(&Session, &Asked) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, QueryError> {
        let (engine, sql) = (self.limits.engine(hands), self.sql.clone());
        let parse = move |session: Session| match session.inspect(&sql) {
            Ok(facts) => (Ok(Ok((session, facts))), None),
            Err(error) => (Ok(Err(error)), Some(session)),
        };
        // The engine takes its time to start; meanwhile the ledger tells what is current.
        let (parsed, current) = tokio::join!(watched(stop, move || Ok(engine.session()?), parse), async {
            hands.ledger.current_snapshots().await.map_err(StageError::from)
        });
        let (session, facts) = parsed?.map_err(|error| not_a_select(error.into()))?;
        let visible = self.visible(hands, &facts, current?).await?;
        let mut tables = Vec::new();
        let gathered = gather(hands, &visible, &facts, &mut tables).await;
        let answer = match gathered {
            Err(error) => Err(error),
            Ok(()) => {
                let ready = self.ready(hands, &visible, (&facts, &tables));
                let target = target.map(Path::to_owned);
                on_session(session, stop, move |session| {
                    let asked = ready.enter(session, target.as_deref())?;
                    work(session, &asked)
                })
                .await
            }
        };
        for table in &tables {
            live::discard(hands, table)?;
        }
        visible.drop_events(&hands.lake.scratch()).map_err(StageError::from)?;
        answer
    }

    /// The snapshots that are read: those of the day, or the current ones with what events told since.
    async fn visible(
        &self,
        hands: &Hands,
        facts: &SqlFacts,
        current: Vec<SnapshotRecord>,
    ) -> Result<Visible, QueryError> {
        let names = || facts.tables.iter().map(|table| table.name.as_str());
        if let Some(day) = self.at {
            return past::visible_at(hands, day, names()).await;
        }
        let mut visible = Visible::default();
        visible.add(current);
        // SQL names tables in any case.
        let hears = names().any(|name| {
            let own = visible.names().find(|own| own.as_str().eq_ignore_ascii_case(name));
            visible.hears_events(own.map_or(&name.to_lowercase(), |own| own.as_str()))
        });
        if hears {
            let events = live::export_events(hands, &visible).await?;
            visible.lay_over(events);
        }
        Ok(visible)
    }

    fn ready(&self, hands: &Hands, visible: &Visible, (facts, tables): (&SqlFacts, &[TableSource])) -> Ready {
        let known = known_tables(&hands.settings, visible);
        let unresolved = facts.tables.iter().filter(|table| !tables.iter().any(|own| own.name == table.name));
        Ready {
            sql: self.sql.clone(),
            params: self.params(hands),
            tables: tables.to_vec(),
            doubts: unresolved.map(|table| Doubt::about(&table.name, table.offset, &known, &hands.settings)).collect(),
        }
    }

    fn params(&self, hands: &Hands) -> Params {
        let now = self.at.map_or_else(|| hands.clock.now(), |day| past::moment(hands, day));
        let today = self.at.unwrap_or_else(|| now.with_timezone(&hands.settings.timezone).date_naive());
        Params::from([("today".to_owned(), Param::Date(today)), ("run_at".to_owned(), Param::Timestamp(now))])
    }
}

/// What a session is given before it is confined.
struct Ready {
    sql: String,
    params: Params,
    tables: Vec<TableSource>,
    doubts: Vec<Doubt>,
}

impl Ready {
    fn enter(self, session: &Session, target: Option<&Path>) -> Result<Asked, QueryError> {
        for source in &self.tables {
            session.add_table(source)?;
        }
        session.confine(target.as_slice())?;
        let columns = told_apart(bind(session, &self.sql, &self.params, self.doubts)?);
        Ok(Asked { sql: self.sql, params: self.params, columns })
    }
}

/// Gathers into `tables`, so that what was written out before an error is known.
async fn gather(
    hands: &Hands,
    visible: &Visible,
    facts: &SqlFacts,
    tables: &mut Vec<TableSource>,
) -> Result<(), QueryError> {
    for name in facts.tables.iter().map(|table| table.name.as_str()) {
        // SQL names tables in any case; views are made under the name as it was written.
        let lower = name.to_lowercase();
        let source = if live::is_live(&lower) && table_spec(&lower).is_some() {
            Some(live::export(hands, &lower).await?)
        } else {
            let own = visible.names().find(|own| own.as_str().eq_ignore_ascii_case(name));
            visible.source(&hands.lake, own.map_or(lower.as_str(), |own| own.as_str()))
        };
        tables.extend(source.map(|source| TableSource { name: name.to_owned(), ..source }));
    }
    Ok(())
}

fn bind(
    session: &Session,
    sql: &str,
    params: &Params,
    doubts: Vec<Doubt>,
) -> Result<Vec<(String, String)>, QueryError> {
    let error = match session.bind(sql, params) {
        Ok(columns) => return Ok(columns),
        Err(error) => error,
    };
    for doubt in doubts {
        if session.bind(&format!("select * from {}", quoted(&doubt.name)), &Params::new()).is_err() {
            return Err(QueryError::Sql { message: doubt.message, offset: Some(doubt.offset), hint: Some(doubt.hint) });
        }
    }
    Err(error.into())
}

fn of_output(error: OutputError) -> QueryError {
    match error {
        OutputError::Engine(error) => error.into(),
        OutputError::Sheet(error) => QueryError::Sheet(error),
        OutputError::Write(error) => QueryError::Sink(error),
        OutputError::TooManyRows(most) => limits::too_many_rows(most),
    }
}

async fn on_session<T: Send + 'static>(
    session: Session,
    stop: &CancellationToken,
    work: impl FnOnce(&Session) -> Result<T, QueryError> + Send + 'static,
) -> Result<T, QueryError> {
    match watched(stop, move || Ok(session), move |session| (Ok(work(&session)), Some(session))).await? {
        Err(_) if stop.is_cancelled() => Err(StageError::Interrupted.into()),
        done => done,
    }
}
