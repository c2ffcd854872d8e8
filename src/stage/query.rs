//! A question over the tables as they stand: what `sql` answers, and what the views of coverage are read with.
//!
//! The SELECT is parsed first, which names its tables; those of the lake are read where they lie, those that the ledger
//! feeds are written out for this one question and discarded after it. Then the session is confined to these tables and
//! locked, and only then the SELECT runs. Not here: how rows are shown, and which SQL a stage may use.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::sheet::{Sheet, SheetError};
use super::tables::Visible;
use super::{Hands, StageError, blocking, live};
use crate::clock::from_micros;
use crate::config::nearest;
use crate::config::settings::Settings;
use crate::domain::tables::{TABLES, table_spec};
use crate::domain::{Rows, Values};
use crate::engine::{EngineError, Param, Params, Session, TableSource, Written, quoted};

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

/// Where the rows of a question go. A [`io::ErrorKind::BrokenPipe`] ends the question: nobody reads on.
pub trait RowSink: Send + 'static {
    /// Called once, before the rows, also when there are none.
    fn begin(&mut self, columns: &[String]) -> io::Result<()>;
    fn rows(&mut self, rows: &Rows) -> io::Result<()>;
    fn end(&mut self) -> io::Result<()>;
}

/// Streams the rows of `sql` into `sink` and gives their number, holding only a batch at a time.
///
/// # Errors
///
/// [`QueryError`]; what the sink got before stays there.
pub async fn stream(
    hands: &Hands,
    sql: &str,
    stop: &CancellationToken,
    mut sink: impl RowSink,
) -> Result<u64, QueryError> {
    let text = sql.to_owned();
    ask(hands, sql, stop, move |session, params| {
        let mut rows_out = 0;
        let mut write = || {
            let columns = told_apart(session.bind(&text, params)?);
            // What fails before its first row leaves nothing behind, not even a header.
            let mut has_begun = false;
            session.stream::<QueryError>(&text, params, |rows| {
                if !std::mem::replace(&mut has_begun, true) {
                    sink.begin(&columns).map_err(QueryError::Sink)?;
                }
                rows_out += u64::try_from(rows.len()).unwrap_or(u64::MAX);
                sink.rows(&rows).map_err(QueryError::Sink).map(|()| true)
            })?;
            if !has_begun {
                sink.begin(&columns).map_err(QueryError::Sink)?;
            }
            sink.end().map_err(QueryError::Sink)
        };
        match write() {
            Err(QueryError::Sink(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(rows_out),
            result => result.map(|()| rows_out),
        }
    })
    .await
}

/// The names of the columns, a repeated one with a number after it (`openid`, `openid_1`).
fn told_apart(columns: Vec<(String, String)>) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(columns.len());
    for (name, _) in columns {
        let mut numbered = (1..).map(|number| format!("{name}_{number}"));
        let mut own = name.clone();
        while names.contains(&own) {
            own = numbered.next().unwrap_or_default();
        }
        names.push(own);
    }
    names
}

/// Writes the rows of `sql` to `target` (an absolute path) as Parquet, with the SELECT's own types.
///
/// # Errors
///
/// [`QueryError`]; what was written stays under the name of a part that is not whole.
pub async fn parquet(hands: &Hands, sql: &str, stop: &CancellationToken, target: &Path) -> Result<Written, QueryError> {
    let (text, path) = (sql.to_owned(), target.to_owned());
    ask_into(hands, (sql, Some(target)), stop, move |session, params| Ok(session.copy(&text, params, &path)?)).await
}

/// Writes the rows of `sql` to `target` as a workbook of one sheet.
///
/// # Errors
///
/// [`QueryError`]; `target` may be there and is not whole then.
pub async fn xlsx(hands: &Hands, sql: &str, stop: &CancellationToken, target: &Path) -> Result<u64, QueryError> {
    let (text, path) = (sql.to_owned(), target.to_owned());
    ask(hands, sql, stop, move |session, params| {
        let columns = told_apart(session.bind(&text, params)?);
        let failed = |error: SheetError| match error {
            SheetError::Write(source) => QueryError::Write { path: path.clone(), source },
            other => QueryError::Sheet(other),
        };
        let mut sheet = Sheet::begin(&columns).map_err(failed)?;
        session.stream::<QueryError>(&text, params, |rows| sheet.rows(&rows).map_err(failed).map(|()| true))?;
        sheet.save(&path).map_err(failed)
    })
    .await
}

/// All rows of a SELECT that is known to be small.
///
/// # Errors
///
/// [`QueryError`].
pub async fn rows(hands: &Hands, sql: &str) -> Result<Rows, QueryError> {
    let text = sql.to_owned();
    let stop = CancellationToken::new();
    ask(hands, sql, &stop, move |session, params| Ok(session.query(&text, params)?)).await
}

/// The same as records.
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
        Values::Timestamp(values) => values[row].map_or(Value::Null, |micros| {
            from_micros(micros).to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true).into()
        }),
        Values::Date(values) => {
            values[row].and_then(chrono::NaiveDate::from_epoch_days).map_or(Value::Null, |date| date.to_string().into())
        }
    }
}

/// Every table one may ask for: the declared ones, those that pipelines make, and those that have a snapshot.
pub fn known_tables(settings: &Settings, visible: &Visible) -> Vec<String> {
    let declared = TABLES.iter().map(|spec| spec.name);
    let made = visible.names().map(|name| name.as_str());
    let stages = settings.pipelines.values().flat_map(|pipeline| &pipeline.stages);
    let planned = stages.filter_map(|stage| stage.table.as_ref()).map(|table| table.as_str());
    let mut names: Vec<String> = Vec::new();
    for name in declared.chain(made).chain(planned) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Prepares a confined session with the tables that `sql` names and hands it to `work` on a blocking thread.
async fn ask<T: Send + 'static>(
    hands: &Hands,
    sql: &str,
    stop: &CancellationToken,
    work: impl FnOnce(&Session, &Params) -> Result<T, QueryError> + Send + 'static,
) -> Result<T, QueryError> {
    ask_into(hands, (sql, None), stop, work).await
}

/// As [`ask`], where the session may write one file.
async fn ask_into<T: Send + 'static>(
    hands: &Hands,
    (sql, target): (&str, Option<&Path>),
    stop: &CancellationToken,
    work: impl FnOnce(&Session, &Params) -> Result<T, QueryError> + Send + 'static,
) -> Result<T, QueryError> {
    refuse_other_statements(sql)?;
    let text = sql.to_owned();
    let facts = on_session(hands, stop, move |session| Ok(session.inspect(&text)?)).await.map_err(not_a_select)?;
    let mut visible = Visible::default();
    visible.add(hands.ledger.current_snapshots().await.map_err(StageError::from)?);
    let names = || facts.tables.iter().map(|table| table.name.as_str());
    // SQL names tables in any case.
    if names().any(|name| {
        let own = visible.names().find(|own| own.as_str().eq_ignore_ascii_case(name));
        visible.hears_events(own.map_or(&name.to_lowercase(), |own| own.as_str()))
    }) {
        let events = live::export_events(hands, &visible).await?;
        visible.lay_over(events);
    }
    let mut tables = Vec::new();
    let gathered = gather(hands, &visible, names(), &mut tables).await;
    let answer = match gathered {
        Err(error) => Err(error),
        Ok(()) => {
            let known = known_tables(&hands.settings, &visible);
            let unresolved = facts.tables.iter().filter(|table| !tables.iter().any(|own| own.name == table.name));
            let doubts: Vec<Doubt> =
                unresolved.map(|table| Doubt::about(&table.name, table.offset, &known, &hands.settings)).collect();
            let (text, sources, params) = (sql.to_owned(), tables.clone(), params(hands));
            let target = target.map(Path::to_owned);
            on_session(hands, stop, move |session| {
                for source in &sources {
                    session.add_table(source)?;
                }
                session.confine(target.as_deref().as_slice())?;
                bind(session, &text, &params, doubts)?;
                work(session, &params)
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

/// Gathers into `tables`, so that what was written out before an error is known.
async fn gather(
    hands: &Hands,
    visible: &Visible,
    names: impl Iterator<Item = &str>,
    tables: &mut Vec<TableSource>,
) -> Result<(), QueryError> {
    for name in names {
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

fn params(hands: &Hands) -> Params {
    let now = hands.clock.now();
    let today = now.with_timezone(&hands.settings.timezone).date_naive();
    Params::from([("today".to_owned(), Param::Date(today)), ("run_at".to_owned(), Param::Timestamp(now))])
}

/// A name that is none of ours: DuckDB may know it (`information_schema.tables`), else this is what to say.
struct Doubt {
    name: String,
    message: String,
    offset: usize,
    hint: String,
}

impl Doubt {
    fn about(name: &str, offset: usize, known: &[String], settings: &Settings) -> Self {
        let maker = settings.pipelines.values().find(|pipeline| {
            let mut made = pipeline.stages.iter().filter_map(|stage| stage.table.as_ref());
            made.any(|table| table.as_str().eq_ignore_ascii_case(name))
        });
        let message = match maker {
            Some(_) => format!("table `{name}` was not made yet"),
            None => format!("there is no table `{name}`"),
        };
        let hint = match (maker, nearest(name, known.iter().map(String::as_str))) {
            (Some(pipeline), _) => format!("it is made by `lianbo run {}`", pipeline.name),
            (None, Some(near)) => format!("did you mean `{near}`?"),
            (None, None) => "`lianbo tables` lists them".to_owned(),
        };
        Self { name: name.to_owned(), message, offset, hint }
    }
}

fn bind(session: &Session, sql: &str, params: &Params, doubts: Vec<Doubt>) -> Result<(), QueryError> {
    let Err(error) = session.bind(sql, params) else { return Ok(()) };
    for doubt in doubts {
        if session.bind(&format!("select * from {}", quoted(&doubt.name)), &Params::new()).is_err() {
            return Err(QueryError::Sql { message: doubt.message, offset: Some(doubt.offset), hint: Some(doubt.hint) });
        }
    }
    Err(error.into())
}

/// What some clients answer by themselves is a SELECT to DuckDB's parser, over tables that are not there yet.
fn refuse_other_statements(sql: &str) -> Result<(), QueryError> {
    let word = sql.trim_start().split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
    if ["describe", "desc", "show", "summarize"].iter().any(|other| word.eq_ignore_ascii_case(other)) {
        let hint = "`lianbo tables` lists the tables, `lianbo tables --describe TABLE` the columns of one".to_owned();
        return Err(QueryError::Sql { message: format!("`{word}` is no SELECT"), offset: None, hint: Some(hint) });
    }
    Ok(())
}

fn not_a_select(error: QueryError) -> QueryError {
    match error {
        QueryError::Sql { message, offset: None, hint: None } => {
            let hint = "give exactly one SELECT; `lianbo tables --describe TABLE` shows the columns of a table";
            let is_other = message.starts_with("Only SELECT");
            let message = if is_other { "this is not a SELECT; nothing else is run".to_owned() } else { message };
            QueryError::Sql { message, offset: None, hint: Some(hint.to_owned()) }
        }
        other => other,
    }
}

async fn on_session<T: Send + 'static>(
    hands: &Hands,
    stop: &CancellationToken,
    work: impl FnOnce(&Session) -> Result<T, QueryError> + Send + 'static,
) -> Result<T, QueryError> {
    let told = Arc::new(stop.clone());
    match blocking(&hands.engine, stop, move |session| Ok(work(session))).await? {
        Err(_) if told.is_cancelled() => Err(StageError::Interrupted.into()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_column_gets_a_number_that_nobody_has() {
        let columns = ["a", "a_1", "a", "b", "a"].map(|name| (name.to_owned(), String::new()));
        assert_eq!(told_apart(columns.to_vec()), ["a", "a_1", "a_2", "b", "a_3"]);
    }

    #[test]
    fn other_statements_are_refused_with_what_to_use() {
        assert!(refuse_other_statements(" Describe followers").is_err());
        assert!(refuse_other_statements("select 1").is_ok());
        assert!(refuse_other_statements("show_me").is_ok());
    }
}
