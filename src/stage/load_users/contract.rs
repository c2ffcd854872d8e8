//! What a stage says of its source's columns, held against the files: columns that are new, that vanished, or whose values
//! have become something else. Each is told with the file, the column and a value to recognise it by.
//!
//! A column is known when `columns`, `types` or `keep` names it. That those of `columns` are there is seen when a file's
//! header is read; that values fit their `types` when rows are folded.

use std::path::PathBuf;

use super::fold::STANDARD;
use super::stage_files::{Staged, StagedColumn};
use crate::config::nearest;
use crate::config::settings::{LoadUsers, OnNewColumn};
use crate::domain::Values;
use crate::engine::{Params, Session, quoted, text};
use crate::exports::ExportError;
use crate::redact;
use crate::stage::StageError;

/// What the files of a load are held against.
pub struct Contract<'a> {
    pub stage: &'a str,
    pub plan: &'a LoadUsers,
    /// The parts of the table as it is now, for examples of what has vanished.
    pub before: &'a [PathBuf],
}

impl Contract<'_> {
    /// Holds all files of a load against what the stage says.
    ///
    /// # Errors
    ///
    /// [`StageError::Rule`].
    pub fn check(&self, session: &Session, staged: &[Staged]) -> Result<(), StageError> {
        for file in staged.iter().filter(|file| file.rows > 0) {
            check_own(file)?;
            self.check_vanished(session, file)?;
            self.check_new(session, file)?;
        }
        self.check_named(session, staged)
    }

    /// `keep` and `types` name columns that some file has: a slip of the pen would quietly lose a column, or its type.
    fn check_named(&self, session: &Session, staged: &[Staged]) -> Result<(), StageError> {
        let there: Vec<&str> =
            staged.iter().flat_map(|file| &file.columns).map(|column| column.name.as_str()).collect();
        let kept = self.plan.keep.iter().flatten().map(|name| ("keep", name));
        let named = self.typed().map(|name| ("types", name)).chain(kept);
        let has_rows = staged.iter().any(|file| file.rows > 0);
        for (key, name) in named {
            if has_rows && !is_standard(name) && !there.contains(&name.as_str()) {
                let hint = match nearest(name, there.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "an export's column goes by its own name unless `columns` gives it another".to_owned(),
                };
                return Err(StageError::Rule(format!(
                    "`{key}` of stage `{}` names `{name}`, which nothing of `{}` has{}; {hint}",
                    self.stage,
                    self.plan.shown_source(),
                    self.last_seen(session, name)
                )));
            }
        }
        Ok(())
    }

    fn check_new(&self, session: &Session, file: &Staged) -> Result<(), StageError> {
        if self.plan.on_new_column != OnNewColumn::Fail {
            return Ok(());
        }
        let is_known = |name: &str| {
            is_standard(name)
                || self.plan.columns.iter().any(|(ours, _)| ours == name)
                || self.plan.types.contains_key(name)
        };
        let Some(column) = file.columns.iter().find(|column| !is_known(&column.name)) else { return Ok(()) };
        let example = example(session, &file.parts, column)?;
        let example = example.map_or_else(|| " (without a value)".to_owned(), |value| format!(" (such as `{value}`)"));
        Err(StageError::Rule(format!(
            "{}: the column `{name}`{example} is new, and on_new_column of stage `{}` is \"fail\"; take it in with \
             `types = {{ {key} = \"varchar\" }}`, or have it left out of the export",
            file.shown,
            self.stage,
            name = column.name,
            key = key_of(&column.name),
        )))
    }

    /// A column with a type is in each file. JSON leaves out what has no value, so there one file may do without.
    fn check_vanished(&self, session: &Session, file: &Staged) -> Result<(), StageError> {
        if file.may_omit {
            return Ok(());
        }
        let has = |name: &String| file.columns.iter().any(|column| column.name == *name);
        let Some(name) = self.typed().find(|name| !is_standard(name) && !has(name)) else { return Ok(()) };
        let there: Vec<&str> = file.columns.iter().map(|column| column.name.as_str()).collect();
        let near =
            nearest(name, there.iter().copied()).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
        let theirs = |name: &&str| match self.plan.columns.iter().find(|(ours, _)| ours == name) {
            Some((ours, theirs)) if ours != theirs => format!("{theirs} (as {ours})"),
            _ => (*name).to_owned(),
        };
        Err(StageError::Rule(format!(
            "{}: the column `{name}` has vanished{}{near}; the file has {}. Have the export made as before, or take `{name}` \
             out of `types`",
            file.shown,
            self.last_seen(session, name),
            there.iter().map(theirs).collect::<Vec<_>>().join(", "),
        )))
    }

    /// What a column that is gone was like, if the table as it is now has it.
    fn last_seen(&self, session: &Session, name: &str) -> String {
        let column = StagedColumn { name: name.to_owned(), sql: quoted(name), natural_type: String::new() };
        // A table of an older make may lack the column: then there is nothing to tell.
        let seen = example(session, self.before, &column).ok().flatten();
        seen.map_or_else(String::new, |value| format!(" (in the table before it was such as `{value}`)"))
    }

    /// A column that `columns` asks for and a file lacks, with what it was like.
    pub fn explained(&self, session: &Session, error: StageError) -> StageError {
        let StageError::Export(ExportError::MissingColumn { ours, .. }) = &error else { return error };
        match self.last_seen(session, ours) {
            seen if seen.is_empty() => error,
            seen => StageError::Rule(format!("{error}{seen}")),
        }
    }

    /// Names with a type that come out; what `keep` leaves out has no column any more, and needs no type.
    fn typed(&self) -> impl Iterator<Item = &String> {
        let is_kept = |name: &&String| self.plan.keep.as_ref().is_none_or(|keep| keep.contains(*name));
        self.plan.types.keys().filter(is_kept)
    }
}

/// Every users table begins with the mini program that its people are of.
fn check_own(file: &Staged) -> Result<(), StageError> {
    const OWN: &str = "miniprogram";
    let Some(column) = file.columns.iter().find(|column| column.name.eq_ignore_ascii_case(OWN)) else { return Ok(()) };
    Err(StageError::Rule(format!(
        "{0}: the column `{1}` has the name of the column that says whose users these are; give it another one with \
         `columns = {{ other_name = \"{1}\" }}`, or leave it out with `keep`",
        file.shown, column.name
    )))
}

fn is_standard(name: &str) -> bool {
    STANDARD.iter().any(|(own, _)| *own == name)
}

/// A value of a column, cut short; of what may be somebody's id only its ends.
fn example(session: &Session, parts: &[PathBuf], column: &StagedColumn) -> Result<Option<String>, StageError> {
    if parts.is_empty() {
        return Ok(None);
    }
    let parts: Vec<String> = parts.iter().map(|part| text(&part.to_string_lossy())).collect();
    let found = session.query(
        &format!(
            "select cast({sql} as varchar) as value from read_parquet([{parts}], union_by_name = true)
             where {sql} is not null limit 1",
            sql = column.sql,
            parts = parts.join(", ")
        ),
        &Params::new(),
    )?;
    Ok(match found.columns.first() {
        Some((_, Values::Text(values))) => values.first().cloned().flatten().map(|value| shortened(&value)),
        _ => None,
    })
}

/// A value for a message.
pub fn shortened(value: &str) -> String {
    const LONG: usize = 20;
    if value.chars().count() > LONG { redact::shortened(value) } else { value.to_owned() }
}

/// A column's name as a key of TOML.
fn key_of(name: &str) -> String {
    let is_bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if is_bare { name.to_owned() } else { format!("{name:?}") }
}
