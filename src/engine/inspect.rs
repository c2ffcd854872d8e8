//! What a SELECT says of itself before it runs: the tables it reads, its parameters, and functions that are not allowed.
//!
//! DuckDB's own parser gives the syntax tree as JSON; nothing is guessed from the text.

use serde_json::Value;

use super::{EngineError, Session, text};

/// A name in the SQL and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub name: String,
    /// Byte offset in the SQL.
    pub offset: usize,
}

/// What was read off one SELECT.
#[derive(Debug, Clone, Default)]
pub struct SqlFacts {
    /// Tables read, without the names of its own CTEs; each once, by first mention.
    pub tables: Vec<Reference>,
    /// `current_date`, `now()` and the like: their value would change between a run and its repetition.
    pub clock_calls: Vec<Reference>,
    /// Named parameters.
    pub parameters: Vec<String>,
    /// It ends in ORDER BY.
    pub is_ordered: bool,
    /// The first table function that does more than making rows.
    beyond: Option<Reference>,
}

impl Session {
    /// Reads the facts off `sql`, which must be exactly one SELECT.
    ///
    /// # Errors
    ///
    /// [`EngineError::Sql`] with the place for a syntax error, for no statement, for several, and for anything but a SELECT;
    /// [`EngineError::Outside`] for a table function that reaches beyond tables.
    pub fn inspect(&self, sql: &str) -> Result<SqlFacts, EngineError> {
        let tree: String = self
            .connection
            .query_row(&format!("select json_serialize_sql({})", text(sql)), [], |row| row.get(0))
            .map_err(|error| EngineError::in_sql(&error, sql, 0))?;
        SqlFacts::of_tree(&tree)
    }

    /// The same for many, in their order: asked for together, each costs a sixth of what it costs alone.
    pub fn inspect_all(&self, sqls: &[&str]) -> Vec<Result<SqlFacts, EngineError>> {
        match self.trees(sqls) {
            Ok(trees) if trees.len() == sqls.len() => trees.iter().map(|tree| SqlFacts::of_tree(tree)).collect(),
            // One that the parser chokes on must not be told of the others.
            _ => sqls.iter().map(|sql| self.inspect(sql)).collect(),
        }
    }

    fn trees(&self, sqls: &[&str]) -> Result<Vec<String>, duckdb::Error> {
        if sqls.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<String> = sqls.iter().enumerate().map(|(at, sql)| format!("({at}, {})", text(sql))).collect();
        let query = format!(
            "select json_serialize_sql(sql) from (values {}) as t(number, sql) order by number",
            rows.join(", ")
        );
        let mut statement = self.connection.prepare(&query)?;
        let trees = statement.query_map([], |row| row.get(0))?;
        trees.collect()
    }
}

impl SqlFacts {
    fn of_tree(tree: &str) -> Result<Self, EngineError> {
        let tree: Value = serde_json::from_str(tree)
            .map_err(|error| EngineError::Sql { message: error.to_string(), offset: None })?;
        if tree["error"].as_bool() == Some(true) {
            let message = tree["error_message"].as_str().unwrap_or("not a SELECT").to_owned();
            let offset = tree["position"].as_str().and_then(|position| position.parse().ok());
            return Err(EngineError::Sql { message, offset });
        }
        let statements = tree["statements"].as_array().map_or(0, Vec::len);
        if statements != 1 {
            let message = format!("found {statements} statements; exactly one SELECT is accepted");
            return Err(EngineError::Sql { message, offset: None });
        }
        let mut facts = Self::default();
        collect(&tree["statements"][0], &mut Vec::new(), &mut facts);
        if let Some(beyond) = facts.beyond {
            return Err(EngineError::Outside { what: format!("{}()", beyond.name), offset: Some(beyond.offset) });
        }
        let modifiers = tree["statements"][0]["node"]["modifiers"].as_array();
        facts.is_ordered = modifiers.is_some_and(|all| all.iter().any(|one| one["type"] == "ORDER_MODIFIER"));
        Ok(facts)
    }
}

fn collect(node: &Value, ctes: &mut Vec<String>, facts: &mut SqlFacts) {
    match node {
        Value::Array(items) => items.iter().for_each(|item| collect(item, ctes, facts)),
        Value::Object(fields) => {
            let known = ctes.len();
            if let Some(own) = fields.get("cte_map").and_then(|map| map["map"].as_array()) {
                ctes.extend(own.iter().filter_map(|entry| entry["key"].as_str()).map(str::to_lowercase));
            }
            note(node, ctes, facts);
            fields.values().for_each(|value| collect(value, ctes, facts));
            ctes.truncate(known);
        }
        _ => {}
    }
}

fn note(node: &Value, ctes: &[String], facts: &mut SqlFacts) {
    let offset = node["query_location"].as_u64().and_then(|at| usize::try_from(at).ok()).unwrap_or(usize::MAX);
    if node["type"] == "BASE_TABLE" {
        let name = node["table_name"].as_str().unwrap_or_default().to_owned();
        let is_own = ctes.contains(&name.to_lowercase());
        if !is_own && facts.tables.iter().all(|table| table.name != name) {
            facts.tables.push(Reference { name, offset });
        }
        return;
    }
    if node["type"] == "TABLE_FUNCTION" && facts.beyond.is_none() {
        let name = node["function"]["function_name"].as_str().unwrap_or_default().to_lowercase();
        if !MAKES_ROWS.contains(&name.as_str()) && !READS_FILES.contains(&name.as_str()) {
            facts.beyond = Some(Reference { name, offset });
        }
    }
    match node["class"].as_str() {
        Some("FUNCTION") => {
            let name = node["function_name"].as_str().unwrap_or_default().to_lowercase();
            if CLOCK_FUNCTIONS.contains(&name.as_str()) {
                facts.clock_calls.push(Reference { name, offset });
            }
        }
        Some("COLUMN_REF") => {
            if let Some([name]) = node["column_names"].as_array().map(Vec::as_slice) {
                let name = name.as_str().unwrap_or_default().to_lowercase();
                if CLOCK_WORDS.contains(&name.as_str()) {
                    facts.clock_calls.push(Reference { name, offset });
                }
            }
        }
        Some("PARAMETER") => {
            let name = node["identifier"].as_str().unwrap_or_default().to_owned();
            if !facts.parameters.contains(&name) {
                facts.parameters.push(name);
            }
        }
        _ => {}
    }
}

/// Table functions that make rows out of their arguments, or tell of the tables of their session. Others set something
/// (`enable_logging` opens files, whatever a session is confined to) or run text as SQL that nobody looked at.
const MAKES_ROWS: [&str; 19] = [
    "range",
    "generate_series",
    "unnest",
    "repeat",
    "repeat_row",
    "json_each",
    "json_tree",
    "histogram",
    "histogram_values",
    "duckdb_columns",
    "duckdb_functions",
    "duckdb_keywords",
    "duckdb_schemas",
    "duckdb_tables",
    "duckdb_types",
    "duckdb_views",
    "pragma_table_info",
    "pragma_version",
    "test_all_types",
];
/// A confined session keeps these from every file but the parts of its tables, and says which file it was.
const READS_FILES: [&str; 19] = [
    "glob",
    "parquet_bloom_probe",
    "parquet_file_metadata",
    "parquet_full_metadata",
    "parquet_kv_metadata",
    "parquet_metadata",
    "parquet_scan",
    "parquet_schema",
    "read_blob",
    "read_csv",
    "read_csv_auto",
    "read_json",
    "read_json_auto",
    "read_json_objects",
    "read_ndjson",
    "read_ndjson_auto",
    "read_parquet",
    "read_text",
    "sniff_csv",
];
const CLOCK_FUNCTIONS: [&str; 9] = [
    "now",
    "today",
    "current_date",
    "current_timestamp",
    "get_current_timestamp",
    "get_current_time",
    "transaction_timestamp",
    "current_localtimestamp",
    "current_localtime",
];
const CLOCK_WORDS: [&str; 5] = ["current_date", "current_timestamp", "current_time", "localtimestamp", "localtime"];

/// The file, folder or address that a confined session was kept from.
pub(super) fn kept_from(message: &str) -> Option<&str> {
    let rest = message.split_once("Permission Error: Cannot access ")?.1;
    rest.split('"').nth(1)
}

/// The byte offset in `sql` that DuckDB's `LINE n: …` and caret point to; `prefix_lines` lines stood before the SQL.
pub(super) fn caret_offset(message: &str, sql: &str, prefix_lines: usize) -> Option<usize> {
    let at = message.rfind("\nLINE ")?;
    let mut lines = message[at + 1..].lines();
    let (shown, caret) = (lines.next()?, lines.next()?);
    let (number, excerpt) = shown.strip_prefix("LINE ")?.split_once(": ")?;
    let line_index = number.parse::<usize>().ok()?.checked_sub(1 + prefix_lines)?;
    let lead = shown.len() - excerpt.len();
    let column = caret.find('^')?.checked_sub(lead)?;
    let line_start: usize = sql.split_inclusive('\n').take(line_index).map(str::len).sum();
    let line = sql[line_start..].lines().next()?;
    // A long line is shown as an excerpt between dots.
    let bare = excerpt.trim_start_matches("...");
    let cut = excerpt.len() - bare.len();
    let start = line.find(bare.trim_end_matches("..."))?;
    Some(line_start + start + column.saturating_sub(cut))
}

#[cfg(test)]
mod tests {
    use crate::engine::Engine;

    #[test]
    fn many_are_parsed_by_one_question_and_each_answers_for_itself() {
        let session = Engine::new("100MB", 1, "spill", chrono_tz::UTC).session().unwrap();
        let sqls = [
            "select a from one",
            "selec",
            "delete from two",
            "select 'it''s' from two order by 1",
            "select 1; select 2",
        ];
        assert_eq!(session.trees(&sqls).unwrap().len(), sqls.len());
        let facts = session.inspect_all(&sqls);
        let tables = |at: usize| facts[at].as_ref().unwrap().tables[0].name.as_str();
        assert_eq!((tables(0), tables(3)), ("one", "two"));
        assert!(facts[3].as_ref().unwrap().is_ordered && !facts[0].as_ref().unwrap().is_ordered);
        assert!([1, 2, 4].iter().all(|at| facts[*at].is_err()));
        assert!(session.inspect_all(&[]).is_empty());
    }

    #[test]
    fn table_functions_that_do_more_than_making_rows_are_refused_wherever_they_stand() {
        let session = Engine::new("100MB", 1, "spill", chrono_tz::UTC).session().unwrap();
        for sql in [
            "select * from enable_logging(storage = 'file', storage_path = '/tmp/leak')",
            "select 1 where exists (from enable_profiling())",
            "with a as (select * from query('select 1')) select * from a",
            "select * from json_execute_serialized_sql('{}')",
            "select * from query_table('followers')",
            "select * from force_checkpoint()",
            "select * from duckdb_secrets()",
        ] {
            let error = session.inspect(sql).unwrap_err().to_string();
            assert!(error.contains("SQL reads tables alone"), "{sql}: {error}");
        }
        for sql in ["select * from range(3)", "select unnest([1, 2])", "from information_schema.tables"] {
            session.inspect(sql).unwrap();
        }
    }
}
