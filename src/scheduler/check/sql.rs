//! One SELECT: what it reads must exist, what it is given must be declared, and DuckDB must be able to bind it.

use std::ops::Range;

use super::place::{parameters, within, word_near};
use super::{Checker, Columns, hint};
use crate::config::nearest;
use crate::config::settings::SqlText;
use crate::engine::{EngineError, Params, SqlFacts};

/// A SELECT about to be judged.
pub struct Reading<'a> {
    pub sql: &'a SqlText,
    pub params: Params,
    /// What the engine's parser says of it.
    pub facts: &'a Result<SqlFacts, EngineError>,
}

/// What a SELECT gives.
#[derive(Default)]
pub struct Given {
    /// `None`: something is wrong with it, or it reads a table of which nothing is known.
    pub columns: Option<Columns>,
    pub types_are_known: bool,
}

impl Checker<'_> {
    /// Reports what is wrong with a SELECT, and tells the columns of a right one.
    pub fn judge(&mut self, reading: &Reading<'_>) -> Given {
        let Some(session) = self.session else { return Given::default() };
        let facts = match reading.facts {
            Ok(facts) => facts,
            Err(error) => {
                self.not_a_select(reading, error);
                return Given::default();
            }
        };
        self.clock_calls(reading, facts);
        let parameters_fit = self.parameters_fit(reading);
        let tables_exist = self.tables_exist(reading, facts);
        let tables_are_known = facts.tables.iter().all(|table| self.shelf.columns(&table.name).is_some());
        if !(parameters_fit && tables_exist && tables_are_known) {
            return Given::default();
        }
        let types_are_known = facts.tables.iter().all(|table| self.shelf.types_are_known(&table.name));
        // A type that the engine cannot name (of a result, or a snapshot of another version) is nobody's mistake.
        if facts.tables.iter().any(|table| self.shelf.show(session, &table.name).is_err()) {
            return Given::default();
        }
        match session.bind(&reading.sql.text, &reading.params) {
            Ok(columns) => Given { columns: Some(columns), types_are_known },
            Err(error) => {
                self.does_not_bind(reading, facts, &error, types_are_known);
                Given::default()
            }
        }
    }

    fn report(&mut self, sql: &SqlText, range: Range<usize>, message: String, hint: Option<String>) {
        let place = within(&self.settings.root, &sql.text, &sql.place, range);
        let problem = self.problems.at(&place, message);
        if let Some(hint) = hint {
            problem.hint(hint);
        }
    }

    fn not_a_select(&mut self, reading: &Reading<'_>, error: &EngineError) {
        let text = &reading.sql.text;
        if let EngineError::Outside { .. } = error {
            return self.reaches_outside(reading, error);
        }
        let (message, offset) = parts_of(error);
        let (message, hint) = if message.starts_with("Only SELECT") {
            ("this is not a SELECT".to_owned(), "a stage's SQL is exactly one SELECT")
        } else if message.starts_with("Mixing named and positional") {
            (lower_first(&message), "use `$name` for every parameter")
        } else {
            (message, "a stage's SQL is exactly one SELECT, as DuckDB reads it")
        };
        // What is missing at the end is missing behind the last word, not behind the empty lines.
        let at_end = message.contains("end of input").then_some(text.trim_end().len());
        let offset = at_end.or(offset).unwrap_or(0);
        self.report(reading.sql, offset..offset + 1, message, Some(hint.to_owned()));
    }

    fn clock_calls(&mut self, reading: &Reading<'_>, facts: &SqlFacts) {
        for call in &facts.clock_calls {
            let range = named_at(&reading.sql.text, &call.name, call.offset);
            let has_bracket = reading.sql.text.get(range.end..).is_some_and(|rest| rest.trim_start().starts_with('('));
            let shown = if has_bracket { format!("{}()", call.name) } else { call.name.clone() };
            let message = format!("`{shown}` gives another value when the run is repeated");
            self.report(reading.sql, range, message, Some("use $today or $run_at".to_owned()));
        }
    }

    /// Every parameter is declared and has a name.
    fn parameters_fit(&mut self, reading: &Reading<'_>) -> bool {
        let mut fit = true;
        let mut told: Vec<&str> = Vec::new();
        for (name, range) in parameters(&reading.sql.text) {
            if reading.params.contains_key(name) || told.contains(&name) {
                continue;
            }
            told.push(name);
            fit = false;
            if name == "?" || name.parse::<u64>().is_ok() {
                let shown = if name == "?" { "?".to_owned() } else { format!("${name}") };
                let message = format!("`{shown}` has no name");
                let hint = "use `$name`, with `name` declared under [params], or $today, or $run_at";
                self.report(reading.sql, range, message, Some(hint.to_owned()));
                continue;
            }
            let known = reading.params.keys().map(String::as_str);
            let hint = match nearest(name, known.clone()) {
                Some(near) => format!("did you mean `${near}`?"),
                None => {
                    let names: Vec<String> = known.map(|name| format!("`${name}`")).collect();
                    format!("declare it under [params]; known here: {}", names.join(", "))
                }
            };
            self.report(reading.sql, range, format!("`${name}` is no parameter of this pipeline"), Some(hint));
        }
        fit
    }

    fn tables_exist(&mut self, reading: &Reading<'_>, facts: &SqlFacts) -> bool {
        let mut exist = true;
        for table in facts.tables.iter().filter(|table| !self.shelf.contains(&table.name)).collect::<Vec<_>>() {
            exist = false;
            let hint = hint(&table.name, self.shelf.names(), "tables");
            let range = named_at(&reading.sql.text, &table.name, table.offset);
            self.report(reading.sql, range, format!("no stage makes a table `{}`", table.name), Some(hint));
        }
        exist
    }

    fn does_not_bind(&mut self, reading: &Reading<'_>, facts: &SqlFacts, error: &EngineError, types_are_known: bool) {
        if let EngineError::Outside { .. } = error {
            return self.reaches_outside(reading, error);
        }
        let (message, offset) = parts_of(error);
        let told = Told::of(&message);
        // With types that are only guessed at, nothing but a missing name is surely wrong.
        if !types_are_known && told.name.is_none() {
            return;
        }
        let hint = told.missing.map(|missing| self.name_hint(&told, missing, facts));
        let offset = offset.unwrap_or(0);
        let range = told.name.map_or(offset..offset + 1, |name| word_near(&reading.sql.text, name, offset));
        self.report(reading.sql, range, told.text, hint);
    }

    fn reaches_outside(&mut self, reading: &Reading<'_>, error: &EngineError) {
        let EngineError::Outside { what, offset } = error else { return };
        let start = reading.sql.text.find(what.trim_end_matches("()"));
        let range = start.map_or_else(|| offset.unwrap_or(0)..offset.unwrap_or(0) + 1, |at| at..at + what.len());
        let hint = "make a table of it with a load_users stage, or read one of `lianbo tables`";
        self.report(reading.sql, range, error.to_string(), Some(hint.to_owned()));
    }

    /// What DuckDB proposes comes first when it is near: it knows the names of subqueries as well.
    fn name_hint(&self, told: &Told<'_>, missing: Missing, facts: &SqlFacts) -> String {
        let name = told.name.unwrap_or_default();
        if let Some(near) = nearest(name, told.candidates.iter().copied()) {
            return format!("did you mean `{near}`?");
        }
        match missing {
            Missing::Column => {
                let tables = facts.tables.iter().filter_map(|table| self.shelf.columns(&table.name));
                hint(name, tables.flatten().map(|(name, _)| name.as_str()), "columns")
            }
            Missing::Table => hint(name, told.candidates.iter().copied(), "tables"),
            Missing::Function => match nearest(name, ["local_time", "local_date"].into_iter()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => told.candidates.first().map_or_else(
                    || "DuckDB's functions can be used, and local_time and local_date".to_owned(),
                    |candidate| format!("DuckDB proposes `{candidate}`"),
                ),
            },
        }
    }
}

/// Where `name` stands, given where the parser says it does: it may say the start of a qualified name, or nothing.
fn named_at(text: &str, name: &str, offset: usize) -> Range<usize> {
    word_near(text, name, if offset > text.len() { 0 } else { offset })
}

fn parts_of(error: &EngineError) -> (String, Option<usize>) {
    match error {
        EngineError::Sql { message, offset } => (message.clone(), *offset),
        other => (other.to_string(), None),
    }
}

#[derive(Clone, Copy)]
enum Missing {
    Column,
    Table,
    Function,
}

/// What an error of DuckDB's binder says.
struct Told<'a> {
    /// As we say it.
    text: String,
    /// The name at fault.
    name: Option<&'a str>,
    missing: Option<Missing>,
    /// Names that DuckDB proposes.
    candidates: Vec<&'a str>,
}

impl<'a> Told<'a> {
    fn of(message: &'a str) -> Self {
        let (head, tail) = split_candidates(message);
        let candidates = quoted_names(tail);
        let names = quoted_names(head);
        let told = |text: String, name: &'a str, missing: Missing| Self {
            text,
            name: Some(name),
            missing: Some(missing),
            candidates: candidates.clone(),
        };
        let is_column = head.contains("Referenced column") || head.contains("does not exist on");
        if let (true, Some(name)) = (is_column, names.first()) {
            return told(format!("there is no column `{name}` here"), name, Missing::Column);
        }
        if let (true, [table, name, ..]) = (head.contains("does not have a column named"), names.as_slice()) {
            return told(format!("`{table}` has no column `{name}`"), name, Missing::Column);
        }
        if let (true, [name, ..]) = (head.contains("Referenced table"), names.as_slice()) {
            return told(format!("there is no table `{name}` in this FROM"), name, Missing::Table);
        }
        if let Some(name) = function_name(head) {
            return told(format!("there is no function `{name}`"), name, Missing::Function);
        }
        let text = head.split_once("Error: ").map_or(head, |(_, text)| text).trim();
        Self { text: lower_first(text), name: None, missing: None, candidates }
    }
}

fn split_candidates(message: &str) -> (&str, &str) {
    let at = ["Candidate ", "Did you mean "].into_iter().filter_map(|word| message.find(word)).min();
    at.map_or((message, ""), |at| message.split_at(at))
}

fn quoted_names(text: &str) -> Vec<&str> {
    text.split('"').skip(1).step_by(2).collect()
}

/// `Scalar Function with name NAME does not exist!`
fn function_name(head: &str) -> Option<&str> {
    let rest = head.split_once("Function with name ")?.1;
    Some(rest.split_once(" does not exist")?.0.trim_matches('"'))
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}
