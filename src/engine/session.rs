//! One connection of DuckDB with its tables: bind, copy into a part, query.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use duckdb::types::{TimeUnit, Value};

use super::{Engine, EngineError};
use crate::clock::{Timestamp, to_micros};
use crate::crash::{self, CrashPoint};
use crate::domain::quoting::{quoted, text};

/// A value bound to `$name`.
#[derive(Debug, Clone, PartialEq)]
pub enum Param {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Date(NaiveDate),
    Timestamp(Timestamp),
}

impl Param {
    pub(super) fn value(&self) -> Value {
        match self {
            Self::Text(text) => Value::Text(text.clone()),
            Self::Integer(number) => Value::BigInt(*number),
            Self::Float(number) => Value::Double(*number),
            Self::Boolean(value) => Value::Boolean(*value),
            Self::Date(date) => Value::Date32(date.to_epoch_days()),
            Self::Timestamp(at) => Value::Timestamp(TimeUnit::Microsecond, to_micros(*at)),
        }
    }
}

/// Named parameters; what the SQL does not mention is left alone.
pub type Params = std::collections::BTreeMap<String, Param>;

/// A table as a session sees it: parts to read, or just its columns when it has none yet.
#[derive(Debug, Clone)]
pub struct TableSource {
    pub name: String,
    /// Name and DuckDB type.
    pub columns: Vec<(String, String)>,
    /// Absolute paths of Parquet files.
    pub parts: Vec<PathBuf>,
    /// What reads it, where it is more than its columns over its parts; all it reads are `parts`.
    pub sql: Option<String>,
    /// Whether every part is known to have all the columns.
    pub are_alike: bool,
}

impl TableSource {
    /// A table of so many rows, each as the values of a SELECT.
    #[cfg(test)]
    pub fn of_rows(name: &str, columns: &[(&str, &str)], rows: &[String]) -> Self {
        let columns: Vec<(String, String)> =
            columns.iter().map(|(name, ty)| ((*name).to_owned(), (*ty).to_owned())).collect();
        let empty = Self { name: name.to_owned(), columns, parts: Vec::new(), sql: None, are_alike: false };
        let sql = rows.iter().fold(empty.select(), |sql, row| format!("{sql} union all select {row}"));
        Self { sql: Some(sql), ..empty }
    }

    /// The SELECT that reads it: its columns over its parts, or no row when it has none.
    pub fn select(&self) -> String {
        if let Some(sql) = &self.sql {
            return sql.clone();
        }
        if self.parts.is_empty() {
            let nulls: Vec<String> =
                self.columns.iter().map(|(name, ty)| format!("cast(null as {ty}) as {}", quoted(name))).collect();
            return format!(
                "select {} where false",
                if nulls.is_empty() { "1 as empty".to_owned() } else { nulls.join(", ") }
            );
        }
        // Whoever asks for columns by name has every part opened before the first row: of thousands that is hundreds of megabytes
        // that no limit counts. The parts of one folder were written by one hand: the first says what is in all of them.
        let is_by_name = !self.are_alike && !self.is_of_one_folder();
        self.select_over_parts(if is_by_name { ", union_by_name = true" } else { "" })
    }

    fn select_over_parts(&self, options: &str) -> String {
        let columns: Vec<String> = self.columns.iter().map(|(name, _)| quoted(name)).collect();
        let columns = if columns.is_empty() { "*".to_owned() } else { columns.join(", ") };
        format!("select {columns} from read_parquet({}{options})", files(&self.parts))
    }

    fn is_of_one_folder(&self) -> bool {
        self.parts.windows(2).all(|pair| pair[0].parent() == pair[1].parent())
    }
}

/// Files as the list that `read_parquet` takes. Of many it is one text that the engine splits: each text of a list costs six
/// kilobytes while it is read, and a table may have thousands of files.
pub fn files<P: AsRef<Path>>(paths: &[P]) -> String {
    const FEW: usize = 8;
    let names: Vec<_> = paths.iter().map(|path| path.as_ref().to_string_lossy()).collect();
    if names.len() <= FEW || names.iter().any(|name| name.contains('\n')) {
        return format!("[{}]", names.iter().map(|name| text(name)).collect::<Vec<_>>().join(", "));
    }
    format!("string_split({}, chr(10))", text(&names.join("\n")))
}

/// `sql`, which gives `columns`, as Parquet can hold it, and what it then gives: it knows no whole numbers beyond 64 bits, which
/// the engine makes of each sum and would write as floating ones. One that does not fit is an error when it comes.
pub fn for_parquet(sql: &str, columns: Vec<(String, String)>) -> (String, Vec<(String, String)>) {
    let is_too_wide = |ty: &str| matches!(ty, "HUGEINT" | "UHUGEINT");
    if columns.iter().all(|(_, ty)| !is_too_wide(ty)) {
        return (sql.to_owned(), columns);
    }
    let inner: Vec<String> = (1..=columns.len()).map(|place| format!("_{place}")).collect();
    let columns: Vec<(String, String)> = columns
        .into_iter()
        .map(|(name, ty)| if is_too_wide(&ty) { (name, "BIGINT".to_owned()) } else { (name, ty) })
        .collect();
    let items: Vec<String> = columns
        .iter()
        .zip(&inner)
        .map(|((name, ty), inner)| match ty.as_str() {
            "BIGINT" => format!("cast({inner} as bigint) as {}", quoted(name)),
            _ => format!("{inner} as {}", quoted(name)),
        })
        .collect();
    let select = sql.trim_end().trim_end_matches(';');
    (format!("select {} from (\n{select}\n) as _rows({})", items.join(", "), inner.join(", ")), columns)
}

/// What a copy left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub rows: u64,
    pub bytes: u64,
}

/// A connection with its tables. Blocking.
pub struct Session {
    pub(super) connection: duckdb::Connection,
    /// The parts of its tables.
    parts: RefCell<Vec<PathBuf>>,
}

impl Engine {
    /// Opens a session without any table.
    ///
    /// # Errors
    ///
    /// [`EngineError::Open`] when DuckDB does not start with these limits.
    pub fn session(&self) -> Result<Session, EngineError> {
        self.opened_ahead().unwrap_or_else(|| self.open())
    }

    pub(super) fn open(&self) -> Result<Session, EngineError> {
        let open = |source| EngineError::Open { source };
        let mut config = duckdb::Config::default()
            .enable_autoload_extension(false)
            .and_then(|config| config.max_memory(&self.memory_limit))
            .and_then(|config| config.with("temp_directory", self.spill.to_string_lossy()))
            .map_err(open)?;
        if let Some(bytes) = self.most_spilled {
            config = config.with("max_temp_directory_size", format!("{}KB", bytes.div_ceil(1_000))).map_err(open)?;
        }
        if self.threads > 0 {
            config = config.threads(i64::try_from(self.threads).unwrap_or(i64::MAX)).map_err(open)?;
        }
        let connection = duckdb::Connection::open_in_memory_with_flags(config).map_err(open)?;
        connection
            .execute_batch("set timezone = 'UTC'")
            .or_else(|_| connection.execute_batch("select 1"))
            .map_err(open)?;
        connection.execute_batch(self.local_time_macros()).map_err(open)?;
        Ok(Session { connection, parts: RefCell::default() })
    }
}

impl Session {
    /// Makes `source` readable by its name: a view over its parts, or an empty table of its columns.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`] when a part cannot be read.
    pub fn add_table(&self, source: &TableSource) -> Result<(), EngineError> {
        self.run(&format!("create or replace view {} as {}", quoted(&source.name), source.select()))?;
        self.parts.borrow_mut().extend_from_slice(&source.parts);
        Ok(())
    }

    /// Keeps the footers of the parts that are read: for whoever asks the same `parts` more than once. Those of thousands are
    /// more than memory should hold, and are read again.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`].
    pub fn keep_footers(&self, parts: usize) -> Result<(), EngineError> {
        const MOST_PARTS: usize = 512;
        if parts > MOST_PARTS {
            return Ok(());
        }
        self.run("set parquet_metadata_cache = true")
    }

    /// Runs statements that give no rows.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`].
    pub fn run(&self, sql: &str) -> Result<(), EngineError> {
        self.connection.execute_batch(sql).map_err(|error| EngineError::in_sql(&error, sql, 0))
    }

    /// The columns that `sql` would give, without running it over rows that exist only as views.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`] with the place; [`EngineError::UnknownParameter`].
    pub fn bind(&self, sql: &str, params: &Params) -> Result<Vec<(String, String)>, EngineError> {
        let describe = format!("describe\n{}", sql.trim_end().trim_end_matches(';'));
        let mut statement = self.prepare(&describe, sql, 1, params)?;
        statement.raw_execute().map_err(|error| EngineError::in_sql(&error, sql, 1))?;
        let mut rows = statement.raw_query();
        let mut columns = Vec::new();
        while let Some(row) = rows.next().map_err(|error| EngineError::in_sql(&error, sql, 1))? {
            let read = |index| row.get::<_, String>(index).map_err(|error| EngineError::in_sql(&error, sql, 1));
            columns.push((read(0)?, read(1)?));
        }
        Ok(columns)
    }

    /// Writes the rows of `sql` to `target` as Parquet, in the order the SELECT gives them. Most of what is written are ids,
    /// which no effort makes much smaller: the first level of compression leaves no larger a file than the third.
    ///
    /// The file appears under its name only when it is whole and on disk. After an error there may be leftovers under
    /// a name ending in `.tmp`, which nobody reads.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`], [`EngineError::Write`], [`EngineError::UnknownParameter`].
    pub fn copy(&self, sql: &str, params: &Params, target: &Path) -> Result<Written, EngineError> {
        self.copy_at_most(sql, params, (target, None))
    }

    /// The same for the first rows alone, where there are more of them.
    ///
    /// # Errors
    ///
    /// As [`copy`](Self::copy).
    pub fn copy_at_most(
        &self,
        sql: &str,
        params: &Params,
        (target, most_rows): (&Path, Option<u64>),
    ) -> Result<Written, EngineError> {
        let unfinished = unfinished(target);
        let write_error = |source| EngineError::Write { path: target.to_owned(), source };
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(write_error)?;
        }
        let select = sql.trim_end().trim_end_matches(';');
        let (before, after) =
            most_rows.map_or_else(Default::default, |most| ("select * from (", format!(") limit {most}")));
        let copy = format!(
            "copy ({before}\n{select}\n{after}) to {} (format parquet, compression zstd, compression_level 1, row_group_size 65536, \
             use_tmp_file false)",
            text(&unfinished.to_string_lossy())
        );
        let rows = self.changed_rows(&copy, sql, params)?;
        let file = std::fs::File::open(&unfinished).map_err(write_error)?;
        file.sync_all().map_err(write_error)?;
        let bytes = file.metadata().map_err(write_error)?.len();
        crash::pass(CrashPoint::BeforeCopyRename);
        std::fs::rename(&unfinished, target).map_err(write_error)?;
        crash::pass(CrashPoint::AfterCopyRename);
        Ok(Written { rows, bytes })
    }

    /// Runs one statement with parameters and gives the number of rows it wrote.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`], [`EngineError::UnknownParameter`].
    pub fn execute(&self, sql: &str, params: &Params) -> Result<u64, EngineError> {
        self.changed_rows(sql, sql, params)
    }

    fn changed_rows(&self, statement: &str, sql: &str, params: &Params) -> Result<u64, EngineError> {
        let prefix = usize::from(!std::ptr::eq(statement, sql));
        let mut prepared = self.prepare(statement, sql, prefix, params)?;
        let rows = prepared.raw_execute().map_err(|error| EngineError::in_sql(&error, sql, prefix))?;
        Ok(u64::try_from(rows).unwrap_or(u64::MAX))
    }

    /// One number from a SELECT of one row and one column; NULL is 0.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`].
    pub fn count(&self, sql: &str, params: &Params) -> Result<u64, EngineError> {
        let mut statement = self.prepare(sql, sql, 0, params)?;
        statement.raw_execute().map_err(|error| EngineError::in_sql(&error, sql, 0))?;
        let mut rows = statement.raw_query();
        let row = rows.next().map_err(|error| EngineError::in_sql(&error, sql, 0))?;
        let number = row.and_then(|row| row.get::<_, Option<i64>>(0).ok().flatten()).unwrap_or(0);
        Ok(u64::try_from(number).unwrap_or(0))
    }

    /// Confines the session to what it was given so far, before SQL that somebody else wrote is run: it reads the parts of
    /// its tables, writes what is to be copied to `targets`, spills, and reaches no other file, no network and no setting.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`]; the SQL must not be run then.
    pub fn confine(&self, targets: &[&Path]) -> Result<(), EngineError> {
        let parts = self.parts.borrow();
        let unfinished: Vec<PathBuf> = targets.iter().map(|target| unfinished(target)).collect();
        let allowed: Vec<&PathBuf> = parts.iter().chain(&unfinished).collect();
        self.run(&format!("set allowed_paths = {}", files(&allowed)))?;
        self.run("set enable_external_access = false")?;
        self.run("set lock_configuration = true")
    }

    /// A handle that stops the running statement from another thread.
    pub fn interrupt_handle(&self) -> std::sync::Arc<duckdb::InterruptHandle> {
        self.connection.interrupt_handle()
    }

    pub(super) fn prepare(
        &self,
        statement: &str,
        sql: &str,
        prefix: usize,
        params: &Params,
    ) -> Result<duckdb::Statement<'_>, EngineError> {
        let in_sql = |error| EngineError::in_sql(&error, sql, prefix);
        let mut prepared = self.connection.prepare(statement).map_err(in_sql)?;
        for index in 1..=prepared.parameter_count() {
            let name = prepared.parameter_name(index).map_err(in_sql)?;
            if name.parse::<usize>().is_ok() {
                return Err(EngineError::Positional { name, position: index });
            }
            let param = params.get(&name).ok_or(EngineError::UnknownParameter { name })?;
            prepared.raw_bind_parameter(index, param.value()).map_err(in_sql)?;
        }
        Ok(prepared)
    }
}

/// Where a part is written before it is whole.
fn unfinished(target: &Path) -> PathBuf {
    target.with_extension("parquet.tmp")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(folder: &Path) -> Session {
        Engine::new("100MB", 2, folder.join("spill"), chrono_tz::UTC).session().unwrap()
    }

    fn table(folder: &Path, name: &str, sql: &str) -> TableSource {
        let part = folder.join(format!("{name}.parquet"));
        session(folder).copy(sql, &Params::new(), &part).unwrap();
        TableSource { name: name.to_owned(), columns: Vec::new(), parts: vec![part], sql: None, are_alike: false }
    }

    #[test]
    fn a_confined_session_reads_its_tables_writes_its_target_and_spills() {
        let folder = tempfile::tempdir().unwrap();
        let own = table(folder.path(), "own", "select i, md5(cast(i as varchar)) as hash from range(3000000) as t(i)");
        let session = session(folder.path());
        session.add_table(&own).unwrap();
        let target = folder.path().join("made/part.parquet");
        session.confine(&[&target]).unwrap();
        let sql = "select * from own order by hash, i";
        assert_eq!(session.copy(sql, &Params::new(), &target).unwrap().rows, 3_000_000);
        // A process that was killed may have left something under the unfinished name.
        std::fs::write(unfinished(&target), "half").unwrap();
        assert_eq!(session.copy("select 1 as a", &Params::new(), &target).unwrap().rows, 1);
    }

    #[test]
    fn a_session_that_was_opened_ahead_goes_to_whoever_has_its_limits() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new("100MB", 2, folder.path(), chrono_tz::UTC);
        let limit = |session: &Session| {
            let sql = "select current_setting('memory_limit') || ' ' || current_setting('threads') as found";
            match session.query(sql, &Params::new()).unwrap().columns.as_slice() {
                [(_, crate::domain::Values::Text(found))] => found[0].clone().unwrap(),
                other => panic!("{other:?}"),
            }
        };
        let small = engine.within(50_000_000, 1);
        small.open_ahead();
        engine.open_ahead();
        assert_eq!(limit(&engine.session().unwrap()), "95.3 MiB 2");
        assert!(small.ahead.lock().unwrap().is_some(), "the other one's is still there");
        assert_eq!(limit(&small.session().unwrap()), "47.6 MiB 1");
        assert!(small.ahead.lock().unwrap().is_none());
        assert_eq!(limit(&small.session().unwrap()), "47.6 MiB 1");
    }

    #[test]
    fn parts_that_are_alike_are_read_by_the_names_of_their_columns_from_whatever_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let mut all = table(&one, "p", "select 'a' as id, 1 as n, true as more");
        all.parts.extend(table(&other, "p", "select 2 as n, 'b' as id").parts);
        all.columns = [("id", "VARCHAR"), ("n", "INTEGER")].map(|(name, ty)| (name.to_owned(), ty.to_owned())).to_vec();
        all.are_alike = true;
        assert!(!all.select().contains("union_by_name"), "{}", all.select());
        let session = session(folder.path());
        session.add_table(&all).unwrap();
        let right = "select count(*) from p where (id, n) in (('a', 1), ('b', 2))";
        assert_eq!(session.count(right, &Params::new()).unwrap(), 2);
    }

    #[test]
    fn a_confined_session_reaches_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let own = table(folder.path(), "own", "select 1 as a");
        let other = table(folder.path(), "other", "select 1 as a");
        let other = other.parts[0].to_string_lossy().into_owned();
        let note = folder.path().join("note.csv");
        std::fs::write(&note, "a,b\n1,2\n").unwrap();
        let session = session(folder.path());
        session.add_table(&own).unwrap();
        session.confine(&[]).unwrap();
        let note = note.to_string_lossy().into_owned();
        for sql in [
            format!("select * from read_csv('{note}')"),
            format!("select * from read_text('{note}')"),
            format!("select * from '{note}'"),
            format!("select * from glob('{}/*')", folder.path().to_string_lossy()),
            format!("select * from read_parquet('{other}')"),
            format!("select * from parquet_schema('{other}')"),
            format!("select * from sniff_csv('{note}')"),
            format!("copy (select 1) to '{note}'"),
            format!("attach '{note}.db' as elsewhere"),
            "install httpfs".to_owned(),
            "load httpfs".to_owned(),
            "set threads = 4".to_owned(),
            "reset lock_configuration".to_owned(),
            "set enable_external_access = true".to_owned(),
            "select * from read_csv('http://127.0.0.1:1/a.csv')".to_owned(),
        ] {
            assert!(session.run(&sql).is_err(), "{sql}");
        }
        assert_eq!(std::fs::read_to_string(note).unwrap(), "a,b\n1,2\n");
        assert_eq!(session.count("select count(*) from own", &Params::new()).unwrap(), 1);
    }
}
