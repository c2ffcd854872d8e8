//! One pass over the staged files of an export: types, duplicates folded to the newest `updated_at` ([`times`]), the
//! quarantine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono_tz::Tz;

use super::contract::{Contract, shortened};
use super::stage_files::{KEY_COLUMN, Staged};
use super::times::{self, Unread};
use crate::config::settings::LoadUsers;
use crate::domain::tables::table_spec;
use crate::engine::{EngineError, Param, Params, Session, TableSource, Written, quoted, text};
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
/// Parquet's instants; in tables times are UTC and without a zone.
const WITH_ZONE: &str = "TIMESTAMP WITH TIME ZONE";

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
        let params = Params::from([("miniprogram".to_owned(), Param::Text(self.plan.miniprogram.to_string()))]);
        let in_stage = |source: EngineError| StageError::Sql { stage: self.stage.clone(), source };
        let users_sql = self.users_sql(&columns);
        let users = session.copy(&users_sql, &params, &self.users_target).map_err(in_stage)?;
        let columns_out = session.bind(&users_sql, &params).map_err(in_stage)?;
        let quarantine = self.quarantine(session, &columns)?;
        let unread_times = times::unread(session)?;
        Ok(Folded { users, quarantine, columns: columns_out, unread_times })
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
                declared.clone_into(ty);
            }
        }
        columns
    }

    fn all_rows(&self, columns: &[(String, String)]) -> String {
        let selects: Vec<String> = self
            .staged
            .iter()
            .filter(|file| !file.parts.is_empty())
            .map(|file| {
                let items: Vec<String> = columns
                    .iter()
                    .map(|(name, _)| {
                        let stored = file.columns.iter().find(|column| column.name == *name);
                        let value = stored.map_or_else(
                            || "cast(null as varchar)".to_owned(),
                            |column| match column.natural_type.as_str() {
                                WITH_ZONE => format!("cast(cast({} as timestamp) as varchar)", column.sql),
                                _ => format!("cast({} as varchar)", column.sql),
                            },
                        );
                        format!("{value} as {}", quoted(name))
                    })
                    .collect();
                let at = file.columns.iter().find(|column| column.name == UPDATED_AT).map_or_else(
                    || "cast(null as timestamp)".to_owned(),
                    |column| times::utc(&column.sql, &column.natural_type),
                );
                let files: Vec<String> = file.parts.iter().map(|part| text(&part.to_string_lossy())).collect();
                let key = match (&file.key, self.key()) {
                    (_, None) => String::new(),
                    (Some(_), Some(_)) => format!("{KEY_COLUMN}, "),
                    (None, Some(_)) => format!("cast(null as varchar) as {KEY_COLUMN}, "),
                };
                let (line, option) =
                    if file.is_parquet { ("file_row_number + 1", ", file_row_number = true") } else { ("_line", "") };
                format!(
                    "select {} as _file, {line} as _line, {key}{at} as _at, {} from read_parquet([{}], union_by_name = true{option})",
                    file.number,
                    items.join(", "),
                    files.join(", ")
                )
            })
            .collect();
        if selects.is_empty() {
            let nulls: Vec<String> =
                columns.iter().map(|(name, _)| format!("cast(null as varchar) as {}", quoted(name))).collect();
            return format!(
                "select 0 as _file, 0 as _line, cast(null as timestamp) as _at, {} where false",
                nulls.join(", ")
            );
        }
        selects.join(" union all ")
    }

    fn users_sql(&self, columns: &[(String, String)]) -> String {
        let items: Vec<String> = columns
            .iter()
            .map(|(name, ty)| match name.as_str() {
                "openid" => "trim(openid) as openid".to_owned(),
                "unionid" => "nullif(trim(unionid), '') as unionid".to_owned(),
                UPDATED_AT => "_at as updated_at".to_owned(),
                _ if ty == "VARCHAR" => quoted(name),
                _ => format!("{} as {}", self.typed(name, ty, "cast"), quoted(name)),
            })
            .collect();
        // A row later in the export wins a tie.
        format!(
            "select $miniprogram as miniprogram, {items}
             from (
                 select *, row_number() over (
                     partition by trim(openid)
                     order by _at desc nulls last, _file desc, _line desc) as _newest
                 from staged_rows
                 where trim(coalesce(openid, '')) <> '' {typed}
             ) as newest_first
             where _newest = 1",
            items = items.join(", "),
            typed = self.misfit(columns).map_or_else(String::new, |misfit| format!("and not ({misfit})")),
        )
    }

    /// A column's text as its type; times that the configuration declares are read as `updated_at` is.
    fn typed(&self, name: &str, ty: &str, cast: &str) -> String {
        if self.is_declared(name) && ty.eq_ignore_ascii_case("timestamp") {
            return format!("read_time({})", quoted(name));
        }
        format!("{cast}({} as {ty})", quoted(name))
    }

    /// Whether the configuration, or the database, says what type a column has; that of `updated_at` is always the same.
    fn is_declared(&self, column: &str) -> bool {
        column != UPDATED_AT && self.types.contains_key(column)
    }

    /// A condition that holds for rows with a value that is not of its declared type.
    fn misfit(&self, columns: &[(String, String)]) -> Option<String> {
        let conditions: Vec<String> = columns
            .iter()
            .filter(|(name, ty)| self.is_declared(name) && !ty.eq_ignore_ascii_case("varchar"))
            .map(|(name, ty)| {
                format!("({} is not null and {} is null)", quoted(name), self.typed(name, ty, "try_cast"))
            })
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
                " union all select {source} as source, case _file {files} end as file, _line as line, {typed} as reason,
                    left(cast(to_json(struct_pack({raw})) as varchar), 2000) as raw
                  from staged_rows where trim(coalesce(openid, '')) <> '' and ({misfit})",
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
                    "when {0} is not null and {2} is null then concat_ws('', {1}, ' is not a {ty}: ', {0})",
                    quoted(name),
                    text(name),
                    self.typed(name, ty, "try_cast")
                )
            })
            .collect();
        let reason = format!("case {} end", cases.join(" "));
        match self.key() {
            Some(key) => format!("concat_ws('', {reason}, {}, {KEY_COLUMN}, ')')", text(&format!(" ({key} = "))),
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
                "select _file, count(*) as bad, min(_line) as line, arg_min({reason}, _line) as reason
                 from staged_rows where {misfit} group by _file
                 having count(*) > $max_bad * (select count(*) from staged_rows as others where others._file = staged_rows._file)
                 order by _file limit 1",
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
