//! Running a SELECT over named tables: DuckDB, in memory, spilling past its limit, over Parquet parts it does not own.
//!
//! [`Engine::session`] opens a connection of its own (no file is locked, nobody waits); tables are views over the parts
//! that the caller names. A session is blocking: async callers run it on a blocking thread. What is *not* here: which
//! snapshot of a table is current (the ledger knows), where parts lie (the lake knows), and the network.

mod inspect;
#[cfg(all(not(feature = "bundled"), target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
mod library;
mod local_time;
mod read;
mod session;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;

use chrono_tz::Tz;

pub use crate::domain::quoting::{quoted, text};
pub use inspect::{Reference, SqlFacts};
use local_time::local_time_macros;
pub use local_time::utc_time_macro;
pub use session::{Param, Params, Session, TableSource, Written, files, for_parquet};

/// Made when they are first wanted: a zone's changes of 130 years are some milliseconds' work.
type Macros = LazyLock<String, Box<dyn FnOnce() -> String + Send>>;

/// Makes DuckDB ready beside other work, where it is not linked in: its library takes 20 ms to open. Blocking.
pub fn make_ready() {
    #[cfg(all(not(feature = "bundled"), target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
    library::open();
}

/// Opens sessions with one set of limits.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) memory_limit: String,
    pub(crate) threads: usize,
    pub(crate) spill: PathBuf,
    /// In bytes; left out, what DuckDB takes of the disk.
    pub(crate) most_spilled: Option<u64>,
    macros: Arc<Macros>,
    facts: Arc<Mutex<HashMap<String, SqlFacts>>>,
    ahead: Arc<Mutex<Option<Ahead>>>,
}

/// A session on its way that nobody has asked for yet.
#[derive(Debug)]
struct Ahead {
    limits: Limits,
    session: JoinHandle<Result<Session, EngineError>>,
}

/// Memory, threads and bytes on the disk.
type Limits = (String, usize, Option<u64>);

impl Engine {
    /// An engine with `memory_limit` as DuckDB reads it, `threads` (0: all), and a folder to spill into.
    pub fn new(memory_limit: impl Into<String>, threads: usize, spill: impl Into<PathBuf>, timezone: Tz) -> Self {
        Self {
            memory_limit: memory_limit.into(),
            threads,
            spill: spill.into(),
            most_spilled: None,
            macros: Arc::new(LazyLock::new(Box::new(move || local_time_macros(timezone)))),
            facts: Arc::default(),
            ahead: Arc::default(),
        }
    }

    /// The facts of a SELECT that was looked at before: what it says of itself never changes.
    pub fn known_facts(&self, sql: &str) -> Option<SqlFacts> {
        self.facts.lock().expect("nobody panics with it").get(sql).cloned()
    }

    /// Keeps what a SELECT said of itself, for whoever asks again.
    pub fn keep_facts(&self, sql: &str, facts: &SqlFacts) {
        self.facts.lock().expect("nobody panics with it").insert(sql.to_owned(), facts.clone());
    }

    /// The statements that create `local_time(ts)` and `local_date(ts)`.
    pub fn local_time_macros(&self) -> &str {
        &self.macros
    }

    /// The same engine with at most so many bytes and threads. Each thread has buffers of its own, so that few bytes want
    /// few threads.
    pub fn within(&self, bytes: u64, most_threads: usize) -> Self {
        let threads = if self.threads == 0 { most_threads } else { self.threads.min(most_threads) };
        Self { memory_limit: format!("{}KB", bytes / 1_000), threads, ..self.clone() }
    }

    /// The same engine with another memory limit, as DuckDB reads it, and at most so many bytes on the disk past it.
    pub fn with_limits(&self, memory: impl Into<String>, spilled_bytes: u64) -> Self {
        Self { memory_limit: memory.into(), most_spilled: Some(spilled_bytes), ..self.clone() }
    }

    /// Opens a session beside other work, for whoever asks this engine, or one with the same limits, for the next: DuckDB takes
    /// 25 ms to start, and its library 20 to be found. One at a time.
    pub fn open_ahead(&self) {
        let mut ahead = self.ahead.lock().expect("nobody panics with it");
        if ahead.is_none() {
            let engine = self.clone();
            let opening = std::thread::Builder::new().name("engine".to_owned()).spawn(move || engine.open());
            // Where no thread is to be had, it is opened when it is asked for.
            *ahead = opening.ok().map(|session| Ahead { limits: self.limits(), session });
        }
    }

    fn limits(&self) -> Limits {
        (self.memory_limit.clone(), self.threads, self.most_spilled)
    }

    fn opened_ahead(&self) -> Option<Result<Session, EngineError>> {
        let limits = self.limits();
        let ahead = self.ahead.lock().expect("nobody panics with it").take_if(|ahead| ahead.limits == limits)?;
        ahead.session.join().ok()
    }

    /// The same engine with one thread: for reading in order beside other work.
    pub fn single_threaded(&self) -> Self {
        Self { threads: 1, ..self.clone() }
    }
}

/// What went wrong in the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("cannot open DuckDB")]
    Open {
        #[source]
        source: duckdb::Error,
    },
    /// The SQL itself: syntax, an unknown column, a value that cannot be cast.
    #[error("{message}")]
    Sql {
        message: String,
        /// Byte offset in the SQL, where DuckDB says it.
        offset: Option<usize>,
    },
    /// SQL of a confined session that names a file, a folder or an address.
    #[error("this reaches for `{what}`, and SQL reads tables alone")]
    Outside {
        what: String,
        /// Byte offset in the SQL, where DuckDB says it.
        offset: Option<usize>,
    },
    /// It needs more memory than the session has, or more room to spill into.
    #[error("{message}")]
    Memory { message: String },
    /// Somebody stopped it by its [handle](Session::interrupt_handle).
    #[error("interrupted")]
    Interrupted,
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the SQL asks for `${name}`, which is not among the parameters")]
    UnknownParameter { name: String },
    #[error("`${name}` has the position {position}; use a name")]
    Positional { name: String, position: usize },
    #[error("a column of the result has the type {found}, which is not read here")]
    ColumnType { found: String },
}

impl EngineError {
    /// An error of DuckDB while running `sql`, with the place it names.
    pub(crate) fn in_sql(error: &duckdb::Error, sql: &str, prefix_lines: usize) -> Self {
        let text = match error {
            duckdb::Error::DuckDBFailure(_, Some(message)) => message.clone(),
            other => other.to_string(),
        };
        let offset = inspect::caret_offset(&text, sql, prefix_lines);
        if let Some(what) = inspect::kept_from(&text) {
            return Self::Outside { what: what.to_owned(), offset };
        }
        let message = text.split("\n\nLINE ").next().unwrap_or(&text).trim().replace('\n', " ");
        // DuckDB's C interface has no codes: what kind of error it is begins its text.
        if message.starts_with("Out of Memory Error") {
            return Self::Memory { message };
        }
        if message.starts_with("INTERRUPT Error") {
            return Self::Interrupted;
        }
        Self::Sql { message, offset }
    }
}
