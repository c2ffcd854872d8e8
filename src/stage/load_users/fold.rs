//! One pass over the staged files of an export: types, duplicates folded to the newest `updated_at` ([`times`]), the
//! quarantine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono_tz::Tz;

use super::contract::{Contract, shortened};
use super::exact::{id_of, is_rounded};
use super::stage_files::{KEY_COLUMN, Staged, StagedColumn};
use super::times::{self, Unread};
use crate::config::settings::LoadUsers;
use crate::domain::tables::table_spec;
use crate::engine::{EngineError, Param, Params, Session, TableSource, Written, files, quoted, text};
use crate::exports::LINE_COLUMN;
use crate::stage::StageError;

pub struct Job {
    pub stage: String,
    pub plan: LoadUsers,
    /// Our column name → the type that its values must be of; whoever has another stands in `quarantine`.
    pub types: BTreeMap<String, String>,
    /// Of times that name none.
    pub timezone: Tz,
    pub staged: Vec<Staged>,
    /// The parts of the table as it is now.
    pub before: Vec<PathBuf>,
    pub users_target: PathBuf,
    pub quarantine_target: PathBuf,
}

pub struct Folded {
    pub users: Written,
    pub quarantine: Written,
    pub columns: Vec<(String, String)>,
    pub unread_times: Option<Unread>,
}

/// The columns every users table begins with.
pub const STANDARD: [(&str, &str); 3] = [("openid", "VARCHAR"), ("unionid", "VARCHAR"), (UPDATED_AT, "TIMESTAMP")];
const UPDATED_AT: &str = "updated_at";
/// More than any file has.
const LINES: u64 = 1 << 40;
/// What is known of a row beside its values, by names that no export's columns have.
pub(super) const FILE: &str = "\"file of the row\"";
pub(super) const LINE: &str = "\"line of the row\"";
/// File and line in one number.
pub(super) const ROW: &str = "\"number of the row\"";
pub(super) const AT: &str = "\"time of the row\"";
/// Parquet's instants; in tables times are UTC and without a zone.
const WITH_ZONE: &str = "TIMESTAMP WITH TIME ZONE";

impl StagedColumn {
    /// Its values as texts: ids cleaned, as those of text files and databases were when they were read.
    fn text(&self, file: &Staged) -> String {
        let is_id = self.name == "openid" || self.name == "unionid";
        let sql = match self.natural_type.as_str() {
            WITH_ZONE => format!("cast({} as timestamp)", self.sql),
            _ => self.sql.clone(),
        };
        let text = format!("cast({sql} as varchar)");
        if is_id && file.is_parquet { id_of(&text) } else { text }
    }
}

fn is_timestamp(ty: &str) -> bool {
    ty.get(..9).is_some_and(|start| start.eq_ignore_ascii_case("timestamp"))
}

impl Job {
    /// Folds. Blocking.
    ///
    /// # Errors
    ///
    /// [`StageError::Sql`], [`StageError::Rule`] when a value is not of its declared type in more rows than `max_bad` allows.
    pub fn fold(&self, session: &Session) -> Result<Folded, StageError> {
        let contract = Contract { stage: &self.stage, plan: &self.plan, before: &self.before };
        contract.check(session, &self.staged)?;
        let columns = self.columns();
        times::define(session, self.timezone)?;
        session.run(&format!("create temp view staged_rows as {}", self.all_rows(&columns)))?;
        // Rows come as they are written; nobody reads a users table by its order.
        session.run("set preserve_insertion_order = false")?;
        let params = Params::from([("miniprogram".to_owned(), Param::Text(self.plan.miniprogram.to_string()))]);
        let in_stage = |source: EngineError| StageError::Sql { stage: self.stage.clone(), source };
        self.find_older_rows(session, &columns).map_err(in_stage)?;
        let users_sql = self.users_sql(&columns);
        let users = session.copy(&users_sql, &params, &self.users_target).map_err(in_stage)?;
        let columns_out = session.bind(&users_sql, &params).map_err(in_stage)?;
        let quarantine = self.quarantine(session, &columns)?;
        let unread_times = if self.has_undated(session)? { times::unread(session)? } else { None };
        Ok(Folded { users, quarantine, columns: columns_out, unread_times })
    }

    /// Whether any row has no time: few exports have one, and only they are looked through once more.
    fn has_undated(&self, session: &Session) -> Result<bool, EngineError> {
        let users = text(&self.users_target.to_string_lossy());
        let sql = format!(
            "select (select count(*) from older where {AT} is null)
                  + (select count(*) from read_parquet({users}) where updated_at is null)"
        );
        Ok(session.count(&sql, &Params::new())? > 0)
    }

    /// Name and type of every column, over all files.
    fn columns(&self) -> Vec<(String, String)> {
        let mut columns: Vec<(String, String)> =
            STANDARD.iter().map(|(name, ty)| ((*name).to_owned(), (*ty).to_owned())).collect();
        for column in self.staged.iter().flat_map(|file| &file.columns) {
            let is_id = column.name == "openid" || column.name == "unionid";
            let natural = match column.natural_type.as_str() {
                _ if is_id => "VARCHAR",
                WITH_ZONE => "TIMESTAMP",
                own => own,
            };
            match columns.iter_mut().find(|(name, _)| *name == column.name) {
                None => columns.push((column.name.clone(), natural.to_owned())),
                Some((name, _)) if *name == UPDATED_AT => {}
                Some((_, ty)) if *ty != natural => "VARCHAR".clone_into(ty),
                Some(_) => {}
            }
        }
        for (name, ty) in columns.iter_mut().filter(|(name, _)| *name != UPDATED_AT) {
            if let Some(declared) = self.types.get(name) {
                // Parquet has no such numbers, and the engine would write floating ones.
                let is_too_wide = declared.to_lowercase().ends_with("hugeint");
                if is_too_wide { "decimal(38,0)".clone_into(ty) } else { declared.clone_into(ty) }
            }
        }
        columns
    }

    fn all_rows(&self, columns: &[(String, String)]) -> String {
        let files = self.staged.iter().filter(|file| !file.parts.is_empty());
        let selects: Vec<String> = files.map(|file| self.rows_of(file, columns)).collect();
        if selects.is_empty() {
            let nulls: Vec<String> =
                columns.iter().map(|(name, _)| format!("cast(null as varchar) as {}", quoted(name))).collect();
            return format!(
                "select 0 as {FILE}, 0 as {LINE}, 0 as {ROW}, cast(null as timestamp) as {AT}, {} where false",
                nulls.join(", ")
            );
        }
        selects.join(" union all ")
    }

    fn rows_of(&self, file: &Staged, columns: &[(String, String)]) -> String {
        let stored = |name: &str| file.columns.iter().find(|column| column.name == name);
        let value = |(name, _): &(String, String)| {
            let is_read_as_time = self.is_declared_time(name);
            let text = |column: &StagedColumn| match column.natural_type.as_str() {
                // It is UTC already: a time that says no zone is read as the wall clock's.
                WITH_ZONE if is_read_as_time => format!("{} || 'Z'", column.text(file)),
                _ => column.text(file),
            };
            let value = stored(name).map_or_else(|| "cast(null as varchar)".to_owned(), text);
            format!("{value} as {}", quoted(name))
        };
        let key = match (&file.key, self.key()) {
            (_, None) => String::new(),
            (Some(_), Some(_)) => format!("{}, ", quoted(KEY_COLUMN)),
            (None, Some(_)) => format!("cast(null as varchar) as {}, ", quoted(KEY_COLUMN)),
        };
        let (line, option) = if file.is_parquet {
            ("file_row_number + 1".to_owned(), ", file_row_number = true")
        } else {
            (quoted(LINE_COLUMN), "")
        };
        let rows = format!("read_parquet({}, union_by_name = true{option})", files(&file.parts));
        let (at, rows) = match stored(UPDATED_AT) {
            None => ("cast(null as timestamp)".to_owned(), rows),
            Some(column) => times::utc(&column.sql, &column.natural_type, &rows),
        };
        format!(
            "select {0} as {FILE}, {line} as {LINE}, {0} * {LINES} + {line} as {ROW}, {key}{at} as {AT}, {1} from {rows}",
            file.number,
            columns.iter().map(value).collect::<Vec<_>>().join(", "),
        )
    }

    /// Makes the table of the rows whose openid has a newer one; a row later in the export wins a tie. Few openids come twice:
    /// they are looked for by hashes, and only rows of one that is there twice are put in order.
    fn find_older_rows(&self, session: &Session, columns: &[(String, String)]) -> Result<(), EngineError> {
        let taken = self.taken(columns);
        session.run(&format!(
            "create temp table doubled as
             select hash(openid) as _hash from staged_rows where {taken} group by 1 having count(*) > 1;
             create temp table older as select {ROW}, {AT} from (
                 select {ROW}, {AT}, row_number() over (partition by openid order by {AT} desc nulls last, {ROW} desc) as _newest
                 from staged_rows where {taken} and hash(openid) in (from doubled)
             ) as newest_first where _newest > 1;
             drop table doubled"
        ))
    }

    /// A condition that holds for the rows that become users.
    fn taken(&self, columns: &[(String, String)]) -> String {
        let typed = self.misfit(columns).map_or_else(String::new, |misfit| format!(" and not ({misfit})"));
        format!("openid is not null{typed}")
    }

    fn users_sql(&self, columns: &[(String, String)]) -> String {
        let items: Vec<String> = columns
            .iter()
            .map(|(name, ty)| match name.as_str() {
                UPDATED_AT => format!("{AT} as updated_at"),
                _ if ty == "VARCHAR" => quoted(name),
                _ => format!("{} as {}", self.typed(name, ty, "cast"), quoted(name)),
            })
            .collect();
        format!(
            "select $miniprogram as miniprogram, {} from staged_rows anti join older using ({ROW}) where {}",
            items.join(", "),
            self.taken(columns)
        )
    }

    /// A column's text as its type; times that the configuration declares are read as `updated_at` is.
    fn typed(&self, name: &str, ty: &str, cast: &str) -> String {
        if self.is_declared_time(name) {
            return format!("read_time({})", quoted(name));
        }
        let typed = format!("{cast}({} as {ty})", quoted(name));
        // The engine reads `infinity`, and nobody who reads tables would know what to do with it.
        let may_be_endless = cast == "try_cast" && (ty.eq_ignore_ascii_case("date") || is_timestamp(ty));
        if may_be_endless { format!("case when isfinite({typed}) then {typed} end") } else { typed }
    }

    /// Whether the configuration, or the database, says what type a column has; that of `updated_at` is always the same.
    fn is_declared(&self, column: &str) -> bool {
        column != UPDATED_AT && self.types.contains_key(column)
    }

    fn is_declared_time(&self, column: &str) -> bool {
        self.is_declared(column) && self.types[column].eq_ignore_ascii_case("timestamp")
    }

    /// A condition that holds for rows whose value of a column is not of its declared type.
    fn is_misfit(&self, name: &str, ty: &str) -> String {
        let (column, typed) = (quoted(name), self.typed(name, ty, "try_cast"));
        let rounded = match is_rounded(ty, &column, &typed) {
            Some(rounded) if !self.is_declared_time(name) => format!(" or {rounded}"),
            _ => String::new(),
        };
        format!("({column} is not null and ({typed} is null{rounded}))")
    }

    /// A condition that holds for rows with a value that is not of its declared type.
    fn misfit(&self, columns: &[(String, String)]) -> Option<String> {
        let conditions: Vec<String> = columns
            .iter()
            .filter(|(name, ty)| self.is_declared(name) && !ty.eq_ignore_ascii_case("varchar"))
            .map(|(name, ty)| self.is_misfit(name, ty))
            .collect();
        (!conditions.is_empty()).then(|| conditions.join(" or "))
    }

    fn quarantine(&self, session: &Session, columns: &[(String, String)]) -> Result<Written, StageError> {
        let spec = table_spec("quarantine").expect("quarantine is declared");
        let parts = self.staged.iter().flat_map(|file| file.quarantine.clone()).collect();
        session.add_table(&TableSource {
            name: "bad_rows".to_owned(),
            columns: spec.sql_columns(),
            parts,
            sql: None,
            are_alike: false,
        })?;
        let mut sql = "select source, file, line, reason, raw from bad_rows".to_owned();
        if let Some(misfit) = self.misfit(columns) {
            let files: Vec<String> =
                self.staged.iter().map(|file| format!("when {} then {}", file.number, text(&file.shown))).collect();
            let typed = self.reasons(columns);
            sql.push_str(&format!(
                " union all select {source} as source, case {FILE} {files} end as file, {LINE} as line, {typed} as reason,
                    left(cast(to_json(struct_pack({raw})) as varchar), 2000) as raw
                  from staged_rows where openid is not null and ({misfit})",
                raw = columns
                    .iter()
                    .map(|(name, _)| format!("{0} := {0}", quoted(name)))
                    .collect::<Vec<_>>()
                    .join(", "),
                source = text(&self.stage),
                files = files.join(" "),
            ));
            self.check_misfits(session, &misfit, columns)?;
        }
        Ok(session.copy(&sql, &Params::new(), &self.quarantine_target)?)
    }

    /// Which value of a row is not of its declared type, as SQL.
    fn reasons(&self, columns: &[(String, String)]) -> String {
        let declared = columns.iter().filter(|(name, _)| self.is_declared(name));
        let cases: Vec<String> = declared
            .map(|(name, ty)| {
                format!(
                    "when {2} then concat_ws('', {1}, ' is not a {ty}: ', {0})",
                    quoted(name),
                    text(name),
                    self.is_misfit(name, ty)
                )
            })
            .collect();
        let reason = format!("case {} end", cases.join(" "));
        match self.key() {
            Some(key) => {
                format!("concat_ws('', {reason}, {}, {}, ')')", text(&format!(" ({key} = ")), quoted(KEY_COLUMN))
            }
            None => reason,
        }
    }

    /// The column that a database is paged along.
    fn key(&self) -> Option<&str> {
        self.staged.iter().find_map(|file| file.key.as_deref())
    }

    /// `max_bad` counts rows with a value of the wrong type as well.
    fn check_misfits(&self, session: &Session, misfit: &str, columns: &[(String, String)]) -> Result<(), StageError> {
        let params = Params::from([("max_bad".to_owned(), Param::Float(self.plan.max_bad))]);
        let worst = session.query(
            &format!(
                "select {FILE}, count(*) as bad, min({LINE}) as line, arg_min({reason}, {LINE}) as reason
                 from staged_rows where {misfit} group by {FILE}
                 having count(*) > $max_bad * (select count(*) from staged_rows as others where others.{FILE} = staged_rows.{FILE})
                 order by {FILE} limit 1",
                reason = self.reasons(columns)
            ),
            &params,
        )?;
        let number = |at: usize| match worst.columns.get(at) {
            Some((_, crate::domain::Values::Integer(values))) => values.first().copied().flatten(),
            _ => None,
        };
        let (Some(file), Some(bad), Some(line)) = (number(0), number(1), number(2)) else { return Ok(()) };
        let shown =
            self.staged.iter().find(|staged| i64::from(staged.number) == file).map_or("", |staged| &staged.shown);
        let reason = match worst.columns.get(3) {
            Some((_, crate::domain::Values::Text(values))) => values.first().cloned().flatten().unwrap_or_default(),
            _ => String::new(),
        };
        let (what, value) = reason.split_once(": ").unwrap_or((&reason, ""));
        Err(StageError::Rule(format!(
            "{shown}: {bad} rows have a value that is not of its declared type, first on line {line}: {what}: `{}`; \
             mend `types`, the export, or raise max_bad",
            shortened(value)
        )))
    }
}
