//! The checks a person writes on what a stage made: they run before anybody sees it.

mod drop;

use self::drop::Compared;
use super::{StageContext, StageError, blocking, live, load_users};
use crate::config::settings::{Checks, Severity, StageKind};
use crate::domain::Values;
use crate::engine::{Params, Session, TableSource, quoted};
use crate::ledger::SnapshotRecord;

/// What a failed check says.
#[derive(Debug, Clone)]
pub struct Broken {
    pub check: String,
    pub found: String,
    pub severity: Severity,
}

/// Runs the stage's checks on `made` (laid over what the run sees) and gives those that are broken.
///
/// # Errors
///
/// [`StageError`] when a check cannot be run at all.
pub async fn run(cx: &StageContext<'_>, checks: &Checks, made: &[SnapshotRecord]) -> Result<Vec<Broken>, StageError> {
    let Some(table) = cx.stage.table.as_ref() else { return Ok(Vec::new()) };
    let before = cx.visible.clone();
    let mut after = before.clone();
    after.add(made.iter().cloned());
    let lake = &cx.hands.lake;
    let Some(source) = after.source(lake, table.as_str()) else { return Ok(Vec::new()) };
    // Whoever left since by an event is part of the drop.
    let previous = before.bare_source(lake, table.as_str()).filter(|source| !source.parts.is_empty());
    let mut others = Vec::new();
    if let Some(sql) = &checks.sql {
        others = sql_sources(cx, &after, &sql.text).await?;
    }
    let job = Job {
        checks: checks.clone(),
        source,
        previous: previous.map(|source| TableSource { name: PREVIOUS.to_owned(), ..source }),
        others,
        compared: Compared::of(&cx.stage.kind, cx.run.today),
        pipeline: cx.run.pipeline.to_string(),
        params: cx.params.clone(),
    };
    blocking(&cx.hands.engine, cx.stop, move |session| job.run(session)).await
}

/// The check that nobody has to ask for.
pub const EMPTIED: &str = "not_emptied";

/// An export without a row where there were people before: a header alone is what a broken export leaves behind. Whoever
/// says with `max_drop` how much may go has said it.
pub fn emptied(cx: &StageContext<'_>, made: &[SnapshotRecord]) -> Option<Broken> {
    let StageKind::LoadUsers(plan) = &cx.stage.kind else { return None };
    let table = cx.stage.table.as_ref()?;
    let now = made.iter().find(|snapshot| snapshot.table == *table)?;
    let before = cx.visible.slice(table.as_str(), &now.slice).map_or(0, |before| before.rows);
    let is_asked_for = cx.stage.checks.as_ref().is_some_and(|checks| checks.max_drop.is_some());
    if now.rows > 0 || before == 0 || is_asked_for {
        return None;
    }
    let found = format!(
        "no row can be loaded from {}, and `{table}` has {before}: it stays as it is. Have the export made anew; where \
         everybody is meant to go, lianbo run {} --accept-drop \"why\"",
        load_users::shown_source(&cx.hands.settings.root, plan),
        cx.run.pipeline
    );
    Some(Broken { check: EMPTIED.to_owned(), found, severity: Severity::Fail })
}

const PREVIOUS: &str = "_table_before";

async fn sql_sources(
    cx: &StageContext<'_>,
    after: &super::tables::Visible,
    sql: &str,
) -> Result<Vec<TableSource>, StageError> {
    let text = sql.to_owned();
    let facts = blocking(&cx.hands.engine, cx.stop, move |session| Ok(session.inspect(&text)?)).await?;
    let mut sources = Vec::new();
    for table in facts.tables {
        if live::is_live(&table.name) {
            sources.push(live::export(cx.hands, &table.name).await?);
        } else if let Some(source) = after.source(&cx.hands.lake, &table.name) {
            sources.push(source);
        }
    }
    Ok(sources)
}

struct Job {
    checks: Checks,
    source: TableSource,
    previous: Option<TableSource>,
    others: Vec<TableSource>,
    compared: Compared,
    pipeline: String,
    params: Params,
}

impl Job {
    fn run(&self, session: &Session) -> Result<Vec<Broken>, StageError> {
        session.add_table(&self.source)?;
        for other in self.others.iter().chain(&self.previous) {
            session.add_table(other)?;
        }
        session.confine(&[])?;
        let mut broken = Vec::new();
        let name = quoted(&self.source.name);
        for column in self.checks.not_null.iter().map(|column| &column.name) {
            let nulls = self.count(session, &format!("{name} where {} is null", quoted(column)))?;
            if nulls > 0 {
                broken.push(self.broken(format!("not_null {column}"), format!("{nulls} rows are NULL")));
            }
        }
        for column in self.checks.unique.iter().map(|column| &column.name) {
            let column_name = quoted(column);
            let twice = self.count(
                session,
                &format!("(select {column_name} from {name} where {column_name} is not null group by {column_name} having count(*) > 1)"),
            )?;
            if twice > 0 {
                broken.push(self.broken(format!("unique {column}"), format!("{twice} values stand more than once")));
            }
        }
        if let Some(least) = self.checks.min_rows {
            let rows = self.count(session, &format!("{name}{}", self.compared.counted()))?;
            if rows < least {
                broken.push(self.broken(format!("min_rows {least}"), format!("{rows} rows")));
            }
        }
        broken.extend(self.check_drop(session)?);
        if let Some(sql) = &self.checks.sql {
            let rows = session.query(&sql.text, &self.params)?;
            if !rows.is_empty() {
                broken.push(
                    self.broken("sql".to_owned(), format!("it returned {} rows, first: {}", rows.len(), first(&rows))),
                );
            }
        }
        Ok(broken)
    }

    /// One text for all slices that lost too much: whoever accepts it accepts what it names.
    fn check_drop(&self, session: &Session) -> Result<Option<Broken>, StageError> {
        let (Some(max_drop), Some(_)) = (self.checks.max_drop, &self.previous) else { return Ok(None) };
        let fallen = self.compared.fallen(session, &self.source.name, max_drop)?;
        if fallen.is_empty() {
            return Ok(None);
        }
        let percent = (max_drop * 10_000.0).round() / 100.0;
        let mut found = format!("`{}`, {}; at most {percent} % may go", self.source.name, fallen.join("; "));
        if self.checks.severity == Severity::Fail {
            let order = format!(
                ". Nothing of this run is published; where it is meant to be so, lianbo run {} --accept-drop \"why\"",
                self.pipeline
            );
            found.push_str(&order);
        }
        Ok(Some(self.broken(format!("max_drop {max_drop}"), found)))
    }

    fn count(&self, session: &Session, from: &str) -> Result<u64, StageError> {
        Ok(session.count(&format!("select count(*) from {from}"), &Params::new())?)
    }

    fn broken(&self, check: String, found: String) -> Broken {
        Broken { check, found, severity: self.checks.severity }
    }
}

fn first(rows: &crate::domain::Rows) -> String {
    let cells: Vec<String> = rows
        .columns
        .iter()
        .map(|(name, values)| {
            let value = match values {
                Values::Text(values) => values[0].clone().map(|text| crate::redact::shortened(&text)),
                Values::Integer(values) | Values::Timestamp(values) => values[0].map(|number| number.to_string()),
                Values::Float(values) => values[0].map(|number| number.to_string()),
                Values::Boolean(values) => values[0].map(|value| value.to_string()),
                Values::Date(values) => values[0].map(|days| days.to_string()),
            };
            format!("{name} = {}", value.unwrap_or_else(|| "NULL".to_owned()))
        })
        .collect();
    cells.join(", ")
}
