//! The checks a person writes on what a stage made: they run before anybody sees it.

mod drop;

use self::drop::Compared;
use super::outputs::cell;
use super::{StageContext, StageError, blocking, live, load_users};
use crate::config::settings::{Checks, RuleKind, Severity, StageKind};
use crate::domain::{Rows, Values};
use crate::engine::{Params, Session, TableSource, quoted};
use crate::ledger::SnapshotRecord;
use crate::redact::shortened;

/// What a check came to.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub check: String,
    pub severity: Severity,
    /// What breaks it; nothing where it holds.
    pub found: Option<String>,
}

/// Runs the stage's checks on `made` (laid over what the run sees) and gives what each came to.
///
/// # Errors
///
/// [`StageError`] when a check cannot be run at all.
pub async fn run(cx: &StageContext<'_>, checks: &Checks, made: &[SnapshotRecord]) -> Result<Vec<Verdict>, StageError> {
    let Some(table) = cx.stage.table.as_ref() else { return Ok(Vec::new()) };
    let before = cx.visible.clone();
    let mut after = before.clone();
    after.add(made.iter().cloned());
    let lake = &cx.hands.lake;
    let Some(source) = after.source(lake, table.as_str()) else { return Ok(Vec::new()) };
    // Whoever left since by an event is part of the drop.
    let previous = before.bare_source(lake, table.as_str()).filter(|source| !source.parts.is_empty());
    let mut others: Vec<TableSource> = Vec::new();
    for sql in checks.selects() {
        others.extend(sql_sources(cx, &after, &sql.text, &others).await?);
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
pub fn emptied(cx: &StageContext<'_>, made: &[SnapshotRecord]) -> Option<Verdict> {
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
    Some(Verdict { check: EMPTIED.to_owned(), found: Some(found), severity: Severity::Fail })
}

/// Whether `--accept-drop` lets a check pass that is broken.
pub fn may_be_accepted(check: &str) -> bool {
    check == EMPTIED || ["max_drop", "row_count_change"].iter().any(|kind| check.starts_with(kind))
}

const PREVIOUS: &str = "_table_before";
/// An openid or unionid has 28 characters.
const SHORTEST_ID: usize = 20;

/// The tables that `sql` reads and that are not among those before.
async fn sql_sources(
    cx: &StageContext<'_>,
    after: &super::tables::Visible,
    sql: &str,
    before: &[TableSource],
) -> Result<Vec<TableSource>, StageError> {
    let text = sql.to_owned();
    let facts = blocking(&cx.hands.engine, cx.stop, move |session| Ok(session.inspect(&text)?)).await?;
    let mut sources = Vec::new();
    for table in facts.tables.into_iter().filter(|table| !before.iter().any(|own| own.name == table.name)) {
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
    fn run(&self, session: &Session) -> Result<Vec<Verdict>, StageError> {
        session.add_table(&self.source)?;
        for other in self.others.iter().chain(&self.previous) {
            session.add_table(other)?;
        }
        session.confine(&[])?;
        let mut verdicts = Vec::new();
        let name = quoted(&self.source.name);
        for column in self.checks.not_null.iter().map(|column| &column.name) {
            let nulls = self.count(session, &format!("{name} where {} is null", quoted(column)))?;
            let found = (nulls > 0).then(|| format!("{nulls} rows are NULL"));
            verdicts.push(self.verdict(format!("not_null {column}"), found));
        }
        for column in self.checks.unique.iter().map(|column| &column.name) {
            let column_name = quoted(column);
            let twice = self.count(
                session,
                &format!("(select {column_name} from {name} where {column_name} is not null group by {column_name} having count(*) > 1)"),
            )?;
            let found = (twice > 0).then(|| format!("{twice} values stand more than once"));
            verdicts.push(self.verdict(format!("unique {column}"), found));
        }
        if let Some(least) = self.checks.min_rows {
            let rows = self.count(session, &format!("{name}{}", self.compared.counted()))?;
            verdicts.push(self.verdict(format!("min_rows {least}"), (rows < least).then(|| format!("{rows} rows"))));
        }
        verdicts.extend(self.check_drop(session)?);
        for rule in &self.checks.rules {
            let found = match &rule.kind {
                RuleKind::NoRow(sql) if is_of_values(&rule.name) => {
                    let column = rule.column.as_ref().map_or("", |column| &column.name);
                    let show = if is_id(column) { shortened } else { str::to_owned };
                    match self.no_row(session, &sql.text, show)? {
                        Some(found) => Some(found + &self.example(session, &sql.text, column)?),
                        None => None,
                    }
                }
                RuleKind::NoRow(sql) => self.no_row(session, &sql.text, shortened)?,
                RuleKind::Change(most) => self.change(session, *most)?,
            };
            verdicts.push(Verdict { check: rule.name.clone(), severity: rule.severity, found });
        }
        if let Some(sql) = &self.checks.sql {
            let found = self.no_row(session, &sql.text, shortened)?;
            verdicts.push(self.verdict("sql".to_owned(), found));
        }
        Ok(verdicts)
    }

    /// What a SELECT returned that is to return no row.
    fn no_row(&self, session: &Session, sql: &str, show: fn(&str) -> String) -> Result<Option<String>, StageError> {
        let (mut number, mut shown) = (0, None);
        session.stream::<StageError>(sql, &self.params, |rows| {
            if shown.is_none() && !rows.is_empty() {
                shown = Some(first(&rows, show));
            }
            number += rows.len();
            Ok(true)
        })?;
        Ok(shown.map(|shown| format!("it returned {number} rows, first: {shown}")))
    }

    /// Whose row it is that has the first value which breaks a rule, where the table says so.
    fn example(&self, session: &Session, sql: &str, column: &str) -> Result<String, StageError> {
        let keys = self.source.columns.iter().map(|(name, _)| name.as_str());
        let keys: Vec<String> = keys.filter(|name| is_key(name) && *name != column).map(quoted).collect();
        if keys.is_empty() {
            return Ok(String::new());
        }
        let sql = format!(
            "select {keys} from {table} as own where own.{column} = (select {column} from ({sql}) limit 1) order by all limit 1",
            keys = keys.join(", "),
            table = quoted(&self.source.name),
            column = quoted(column),
        );
        let rows = session.query(&sql, &self.params)?;
        Ok(if rows.is_empty() { String::new() } else { format!("; of {}", first(&rows, shown_key)) })
    }

    /// How the number of rows changed against the last snapshot, where that is by more than a share of it.
    fn change(&self, session: &Session, most: f64) -> Result<Option<String>, StageError> {
        if self.previous.is_none() {
            return Ok(None);
        }
        let counted = self.compared.counted();
        let before = self.count(session, &format!("{}{counted}", quoted(PREVIOUS)))?;
        let now = self.count(session, &format!("{}{counted}", quoted(&self.source.name)))?;
        #[expect(clippy::cast_precision_loss, reason = "a share of rows needs no last digit")]
        let share = if before == 0 { 0.0 } else { now.abs_diff(before) as f64 / before as f64 };
        let percent = |share: f64| (share * 1_000.0).round() / 10.0;
        let word = if now > before { "more" } else { "fewer" };
        Ok((share > most).then(|| {
            format!(
                "{now} rows after {before}, {} % {word}; at most {} % may come or go",
                percent(share),
                percent(most)
            )
        }))
    }

    /// One text for all slices that lost too much: whoever accepts it accepts what it names.
    fn check_drop(&self, session: &Session) -> Result<Option<Verdict>, StageError> {
        let (Some(max_drop), Some(_)) = (self.checks.max_drop, &self.previous) else { return Ok(None) };
        let fallen = self.compared.fallen(session, &self.source.name, max_drop)?;
        let name = format!("max_drop {max_drop}");
        if fallen.is_empty() {
            return Ok(Some(self.verdict(name, None)));
        }
        let percent = (max_drop * 10_000.0).round() / 100.0;
        let mut found = format!("`{}`, {}; at most {percent} % may go", self.source.name, fallen.join("; "));
        if self.checks.severity == Severity::Fail {
            let order = format!(
                ". Nothing of this run is published; lianbo run {0} looks once more; where it is meant to be so, \
                 lianbo run {0} --accept-drop \"why\"",
                self.pipeline
            );
            found.push_str(&order);
        }
        Ok(Some(self.verdict(name, Some(found))))
    }

    fn count(&self, session: &Session, from: &str) -> Result<u64, StageError> {
        Ok(session.count(&format!("select count(*) from {from}"), &Params::new())?)
    }

    fn verdict(&self, check: String, found: Option<String>) -> Verdict {
        Verdict { check, found, severity: self.checks.severity }
    }
}

/// A rule that gives each value which breaks it, and what that is is what somebody has to know.
fn is_of_values(rule: &str) -> bool {
    ["accepted_values ", "relationships "].iter().any(|kind| rule.starts_with(kind))
}

fn is_id(column: &str) -> bool {
    let column = column.to_lowercase();
    column.contains("openid") || column.contains("unionid")
}

/// Whether a column says whose row it is.
fn is_key(column: &str) -> bool {
    is_id(column) || ["account", "miniprogram"].contains(&column)
}

/// Names of the configuration are short, ids are long.
fn shown_key(value: &str) -> String {
    if value.len() < SHORTEST_ID { value.to_owned() } else { shortened(value) }
}

fn first(rows: &Rows, show: fn(&str) -> String) -> String {
    let told = |values: &Values| match values {
        Values::Text(values) => values[0].as_deref().map(show),
        other => Some(cell(other, 0)).filter(|text| !text.is_empty()),
    };
    let cells = rows.columns.iter();
    let cells: Vec<String> =
        cells.map(|(name, values)| format!("{name} = {}", told(values).unwrap_or_else(|| "NULL".to_owned()))).collect();
    cells.join(", ")
}
