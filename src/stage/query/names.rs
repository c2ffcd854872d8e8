//! The names of a question: which tables there are, and what is said of one that is none of them, or of no SELECT at all.

use super::QueryError;
use crate::config::nearest;
use crate::config::settings::Settings;
use crate::domain::tables::TABLES;
use crate::stage::tables::Visible;

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

/// A name that is none of ours: DuckDB may know it (`information_schema.tables`), else this is what to say.
pub(super) struct Doubt {
    pub name: String,
    pub message: String,
    pub offset: usize,
    pub hint: String,
}

impl Doubt {
    pub fn about(name: &str, offset: usize, known: &[String], settings: &Settings) -> Self {
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

/// What some clients answer by themselves is a SELECT to DuckDB's parser, over tables that are not there yet.
pub(super) fn refuse_other_statements(sql: &str) -> Result<(), QueryError> {
    let word = sql.trim_start().split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
    if ["describe", "desc", "show", "summarize"].iter().any(|other| word.eq_ignore_ascii_case(other)) {
        let hint = "`lianbo tables` lists the tables, `lianbo tables --describe TABLE` the columns of one".to_owned();
        return Err(QueryError::Sql { message: format!("`{word}` is no SELECT"), offset: None, hint: Some(hint) });
    }
    Ok(())
}

pub(super) fn not_a_select(error: QueryError) -> QueryError {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_statements_are_refused_with_what_to_use() {
        assert!(refuse_other_statements(" Describe followers").is_err());
        assert!(refuse_other_statements("select 1").is_ok());
        assert!(refuse_other_statements("show_me").is_ok());
    }
}
