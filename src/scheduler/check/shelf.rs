//! What every table of a workspace holds, as far as it can be known without running anything, and as views without rows for
//! those that some SQL reads.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Columns, KnownTables, has_column};
use crate::config::settings::{LoadUsers, Settings, StageKind};
use crate::domain::tables::{TABLES, table_spec};
use crate::engine::{EngineError, Params, Session, TableSource, text};
use crate::exports::{self, Format, Input};
use crate::scheduler::order::makes;
use crate::stage::load_users::{files_of, options_of, partitions};

/// How many of an export's files are looked at, the newest first.
const FILES: usize = 16;

/// Tables by name.
pub struct Shelf {
    tables: BTreeMap<String, Table>,
}

#[derive(Default)]
struct Table {
    /// `None`: it exists, and its columns are not known.
    columns: Option<Columns>,
    types_are_known: bool,
    /// Whether the session has a view of it.
    is_shown: bool,
}

impl Shelf {
    /// Everything but the results of `sql` stages, which are there as they were last time, or unknown.
    pub fn stock(settings: &Settings, session: Option<&Session>, known: &KnownTables) -> Self {
        let mut shelf = Self { tables: BTreeMap::new() };
        for spec in TABLES {
            shelf.put(spec.name, spec.sql_columns(), true);
        }
        for (table, columns) in &known.snapshots {
            if table_spec(table).is_none() {
                shelf.put(table, columns.clone(), true);
            }
        }
        for table in &known.unread {
            shelf.put_unknown(table.as_str());
        }
        for stage in settings.pipelines.values().flat_map(|pipeline| &pipeline.stages) {
            let Some(table) = stage.table.as_ref().map(|table| table.as_str()) else { continue };
            let standard = |name: &str| table_spec(name).map(|spec| spec.sql_columns());
            match &stage.kind {
                StageKind::ExtractFollowers(_) => shelf.put_if_some(table, standard("followers")),
                StageKind::EnrichUnionids(_) => shelf.put_if_some(table, standard("profiles")),
                StageKind::JoinIdentities(_) => shelf.put_if_some(table, standard("identities")),
                StageKind::MaterializeRecipients(_) => shelf.put_if_some(table, standard("recipients")),
                StageKind::LoadUsers(plan) => {
                    match session.and_then(|session| users_columns(settings, session, plan)) {
                        Some((columns, types_are_known)) => shelf.put(table, columns, types_are_known),
                        None if shelf.tables.contains_key(table) => {}
                        None => shelf.put_unknown(table),
                    }
                }
                StageKind::Sql(_) if !shelf.tables.contains_key(table) => shelf.put_unknown(table),
                _ => {}
            }
            debug_assert!(
                makes(stage).iter().all(|table| shelf.tables.contains_key(table)),
                "every table has its place"
            );
        }
        shelf
    }

    fn put_if_some(&mut self, table: &str, columns: Option<Columns>) {
        if let Some(columns) = columns {
            self.put(table, columns, true);
        }
    }

    /// Sets what a table holds.
    pub fn put(&mut self, table: &str, columns: Columns, types_are_known: bool) {
        let entry = Table { columns: Some(columns), types_are_known, is_shown: false };
        self.tables.insert(table.to_owned(), entry);
    }

    /// Makes a view of a table whose columns are known, for SQL to be bound against.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`] when the engine knows no such type.
    pub fn show(&mut self, session: &Session, table: &str) -> Result<(), EngineError> {
        let Some(entry) = self.tables.get_mut(table).filter(|entry| !entry.is_shown) else { return Ok(()) };
        let Some(columns) = &entry.columns else { return Ok(()) };
        session.add_table(&TableSource {
            name: table.to_owned(),
            columns: columns.clone(),
            parts: Vec::new(),
            sql: None,
            are_alike: false,
        })?;
        entry.is_shown = true;
        Ok(())
    }

    /// Says that a table exists, and no more.
    pub fn put_unknown(&mut self, table: &str) {
        self.tables.insert(table.to_owned(), Table::default());
    }

    pub fn contains(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.tables.keys().map(String::as_str)
    }

    /// The columns of a table that exists and whose columns are known.
    pub fn columns(&self, table: &str) -> Option<&Columns> {
        self.tables.get(table)?.columns.as_ref()
    }

    pub fn types_are_known(&self, table: &str) -> bool {
        self.tables.get(table).is_some_and(|table| table.types_are_known)
    }
}

/// The columns that loading would give, from the first lines of the newest files, and whether their types are known too;
/// `None` when there is no file, or none that can be read (which loading says, better than a look from here could).
fn users_columns(settings: &Settings, session: &Session, plan: &LoadUsers) -> Option<(Columns, bool)> {
    let mut columns: Columns = [("miniprogram", "VARCHAR"), ("openid", "VARCHAR"), ("unionid", "VARCHAR")]
        .into_iter()
        .chain([("updated_at", "TIMESTAMP")])
        .map(|(name, ty)| (name.to_owned(), ty.to_owned()))
        .collect();
    let mut types_are_known = true;
    let mut has_header = false;
    let files = newest_first(files_of(&settings.root, &plan.files));
    for input in files.iter().flat_map(|file| Input::all_of(file).unwrap_or_default()).take(FILES) {
        let Some((header, are_known)) = header(settings, &input, (session, plan)) else { continue };
        has_header = true;
        types_are_known &= are_known;
        for column in header {
            if !has_column(&columns, &column.0) {
                columns.push(column);
            }
        }
    }
    for (name, ty) in columns.iter_mut().filter(|(name, _)| name != "updated_at") {
        if let Some(declared) = plan.types.get(name) {
            declared.clone_into(ty);
        }
    }
    has_header.then_some((columns, types_are_known))
}

fn newest_first(mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    files.sort_by_cached_key(|file| Reverse(std::fs::metadata(file).and_then(|meta| meta.modified()).ok()));
    files
}

/// One file's columns under our names, and whether their types are known: JSON tells them only when it is read to its end.
fn header(settings: &Settings, input: &Input, of: (&Session, &LoadUsers)) -> Option<(Columns, bool)> {
    let (session, plan) = of;
    let (format, _) = input.format().ok()?;
    if format == Format::Parquet {
        let file = input.file_itself().ok()?;
        let select = format!("select * from read_parquet({})", text(&file.to_string_lossy()));
        let mut found = session.bind(&select, &Params::new()).ok()?;
        let shown = file.strip_prefix(&settings.root).unwrap_or(file);
        for (name, _) in partitions::of_path(shown) {
            found.retain(|(own, _)| !own.eq_ignore_ascii_case(&name));
            found.push((name, "VARCHAR".to_owned()));
        }
        return Some((under_our_names(plan, found), true));
    }
    let names = exports::header(input, &options_of(plan)).ok()?;
    let columns = names.into_iter().map(|name| (name, "VARCHAR".to_owned())).collect();
    Some((columns, matches!(format, Format::Csv { .. } | Format::Sheet)))
}

fn under_our_names(plan: &LoadUsers, found: Columns) -> Columns {
    let ours = |theirs: &str| {
        let mapped = plan.columns.iter().find(|(_, name)| name == theirs);
        mapped.map_or_else(|| theirs.to_owned(), |(ours, _)| ours.clone())
    };
    let is_kept = |name: &String| plan.keep.as_ref().is_none_or(|keep| keep.contains(name));
    found
        .into_iter()
        .map(|(theirs, ty)| (ours(&theirs), ty))
        .filter(|(name, _)| is_kept(name) || plan.columns.iter().any(|(ours, _)| ours == name))
        .collect()
}
