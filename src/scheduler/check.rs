//! Everything that can be known to be wrong before anything runs: SQL that does not bind, tables nobody makes, messages
//! that name what no recipient has, stages that wait for each other.
//!
//! The way: what each table holds is gathered on a [`shelf`] (declared columns, headers of exports, current snapshots) →
//! `sql` stages are bound in the order of what they read, over all pipelines, each result going onto the shelf → recipient
//! sets, checks and messages are judged against it ([`sql`], [`message`]). All in one session without any row, in
//! milliseconds. What cannot be known yet (an export that is not there) is not guessed at: SQL that reads it is let pass.
//!
//! Not here: the keys of the files (`config`), running anything, asking WeChat.

mod message;
mod place;
mod shelf;
mod sql;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use self::place::within;
use self::shelf::Shelf;
use self::sql::Reading;
use super::order;
use crate::config::settings::{
    JoinIdentities, MeasureCoverage, ParamValue, Pipeline, Rule, Settings, SqlStage, SqlText, Stage, StageKind,
};
use crate::config::{Problems, nearest};
use crate::domain::tables::{USERS, table_spec};
use crate::domain::{PipelineName, StageName, TableName};
use crate::engine::{Engine, EngineError, Param, Params, Session, SqlFacts};
use crate::ledger::SnapshotRecord;
use crate::stage::join_identities::users_tables;
use crate::stage::measure_coverage::{self, Segment};

/// Name and DuckDB type of each column of a table.
pub type Columns = Vec<(String, String)>;

/// What is known of tables beside the settings.
#[derive(Debug, Clone, Default)]
pub struct KnownTables {
    /// Columns of current snapshots, by table.
    pub snapshots: BTreeMap<String, Columns>,
    /// Tables of stages whose settings could not be read: they exist, and hold nobody knows what.
    pub unread: BTreeSet<TableName>,
}

impl KnownTables {
    /// The columns of the given snapshots, those of all slices of a table together.
    pub fn of_snapshots(snapshots: &[SnapshotRecord]) -> Self {
        let mut tables: BTreeMap<String, Columns> = BTreeMap::new();
        for snapshot in snapshots {
            let columns = tables.entry(snapshot.table.to_string()).or_default();
            for column in &snapshot.columns {
                if !has_column(columns, &column.0) {
                    columns.push(column.clone());
                }
            }
        }
        Self { snapshots: tables, unread: BTreeSet::new() }
    }
}

/// Puts everything that is wrong with SQL, tables, messages and the order of stages into `problems`. Blocking; reads the
/// first lines of exports, and writes nothing.
///
/// # Errors
///
/// [`EngineError::Open`] when DuckDB does not start.
pub fn check(
    settings: &Settings,
    engine: &Engine,
    known: &KnownTables,
    problems: &mut Problems,
) -> Result<(), EngineError> {
    let texts: BTreeSet<&str> =
        all_stages(settings).flat_map(|(_, stage)| order::sql_of(stage)).map(|sql| sql.text.as_str()).collect();
    let texts: Vec<&str> = texts.into_iter().collect();
    let reads_files = all_stages(settings).any(|(_, stage)| matches!(stage.kind, StageKind::LoadUsers(_)));
    // An engine takes its time to start: none where there is nothing to ask it.
    let session = (reads_files || !texts.is_empty()).then(|| engine.single_threaded().session()).transpose()?;
    let session = session.as_ref();
    let answers = session.map(|session| session.inspect_all(&texts)).unwrap_or_default();
    let facts: Facts<'_> = texts.iter().copied().zip(answers).collect();
    for pipeline in settings.pipelines.values() {
        order::check(settings, pipeline, &|sql| facts.get(sql)?.as_ref().ok().cloned(), problems);
    }
    let shelf = Shelf::stock(settings, session, known);
    // Binding a function that reads a file opens the file: from here on none is opened.
    session.map_or(Ok(()), |session| session.confine(&[]))?;
    let mut checker = Checker {
        settings,
        session,
        known,
        facts: &facts,
        shelf,
        problems,
        begun: BTreeSet::new(),
        set_columns: BTreeMap::new(),
    };
    for stage in all_stages(settings) {
        checker.table_of_sql(stage);
    }
    for stage in all_stages(settings) {
        checker.set(stage);
    }
    for stage in all_stages(settings) {
        checker.rest(stage);
    }
    Ok(())
}

/// What the engine's parser says of every SQL of the workspace.
type Facts<'a> = BTreeMap<&'a str, Result<SqlFacts, EngineError>>;

/// A stage with the pipeline it stands in.
type InPipeline<'a> = (&'a Pipeline, &'a Stage);

fn all_stages(settings: &Settings) -> impl Iterator<Item = InPipeline<'_>> {
    settings.pipelines.values().flat_map(|pipeline| pipeline.stages.iter().map(move |stage| (pipeline, stage)))
}

struct Checker<'a> {
    settings: &'a Settings,
    /// None where no stage has SQL or reads files.
    session: Option<&'a Session>,
    known: &'a KnownTables,
    facts: &'a Facts<'a>,
    shelf: Shelf,
    problems: &'a mut Problems,
    /// `sql` stages that were looked at, or are being.
    begun: BTreeSet<(PipelineName, StageName)>,
    /// What the SELECT of a recipient set gives, where that is known.
    set_columns: BTreeMap<(PipelineName, StageName), Columns>,
}

impl<'a> Checker<'a> {
    fn reading<'s>(&self, pipeline: &Pipeline, sql: &'s SqlText) -> Reading<'s>
    where
        'a: 's,
    {
        Reading { sql, params: params_of(pipeline), facts: &self.facts[sql.text.as_str()] }
    }

    /// Binds a `sql` stage after those whose tables it reads, wherever they stand.
    fn table_of_sql(&mut self, (pipeline, stage): InPipeline<'_>) {
        let StageKind::Sql(plan) = &stage.kind else { return };
        if !self.begun.insert((pipeline.name.clone(), stage.name.clone())) {
            return;
        }
        let settings = self.settings;
        for table in self.facts[plan.sql.text.as_str()].iter().flat_map(|facts| &facts.tables) {
            let maker = all_stages(settings).find(|(_, other)| {
                matches!(other.kind, StageKind::Sql(_))
                    && other.table.as_ref().is_some_and(|own| own.as_str() == table.name)
            });
            if let Some(maker) = maker {
                self.table_of_sql(maker);
            }
        }
        let given = self.judge(&self.reading(pipeline, &plan.sql));
        let Some(table) = &stage.table else { return };
        match given.columns {
            Some(columns) => {
                self.upsert_keys(stage, plan, &columns);
                let columns = self.with_columns_before(plan, table, columns);
                self.shelf.put(table.as_str(), columns, given.types_are_known);
            }
            None => self.shelf.put_unknown(table.as_str()),
        }
    }

    fn upsert_keys(&mut self, stage: &Stage, plan: &SqlStage, columns: &Columns) {
        for key in plan.upsert_by.iter().filter(|key| !has_column(columns, &key.name)) {
            let message = format!("the SELECT of `{}` gives no column `{}` to upsert by", stage.name, key.name);
            self.problems.at(&key.place, message).hint(column_hint(&key.name, columns));
        }
    }

    /// Rows that an upsert keeps bring their columns along.
    fn with_columns_before(&self, plan: &SqlStage, table: &TableName, mut columns: Columns) -> Columns {
        if let (false, Some(before)) = (plan.upsert_by.is_empty(), self.known.snapshots.get(table.as_str())) {
            let missing: Vec<_> = before.iter().filter(|(name, _)| !has_column(&columns, name)).cloned().collect();
            columns.extend(missing);
        }
        columns
    }

    /// Binds the SELECT of a recipient set.
    fn set(&mut self, (pipeline, stage): InPipeline<'_>) {
        let StageKind::MaterializeRecipients(plan) = &stage.kind else { return };
        let given = self.judge(&self.reading(pipeline, &plan.sql));
        let Some(columns) = given.columns else { return };
        if !columns.iter().any(|(name, _)| name == "openid") {
            let start = within(&self.settings.root, &plan.sql.text, &plan.sql.place, 0..1);
            self.problems
                .at(&start, "this SELECT gives no column `openid`")
                .hint("give the account's openid of each recipient: identities.oa_openid as openid");
        }
        self.set_columns.insert((pipeline.name.clone(), stage.name.clone()), columns);
    }

    /// What is judged when every table is known.
    fn rest(&mut self, (pipeline, stage): InPipeline<'_>) {
        self.checks(pipeline, stage);
        match &stage.kind {
            StageKind::MeasureCoverage(plan) => self.segments(stage, plan),
            StageKind::JoinIdentities(plan) => self.keys(stage, plan),
            StageKind::PushTemplate(plan) => self.messages(pipeline, stage, plan),
            _ => {}
        }
    }

    fn checks(&mut self, pipeline: &Pipeline, stage: &Stage) {
        let Some(checks) = &stage.checks else { return };
        if let Some(columns) = stage.table.as_ref().and_then(|table| self.shelf.columns(table.as_str())) {
            let named = checks.not_null.iter().map(|column| ("not_null", column));
            let of_rules = checks.rules.iter().filter_map(|rule| Some((rule.name.as_str(), rule.column.as_ref()?)));
            for (check, column) in named.chain(checks.unique.iter().map(|column| ("unique", column))).chain(of_rules) {
                let check = check.split(' ').next().unwrap_or_default();
                if !has_column(columns, &column.name) {
                    let message = format!("`{check}` names `{}`, which `{}` has no column of", column.name, stage.name);
                    self.problems.at(&column.place, message).hint(column_hint(&column.name, columns));
                }
            }
        }
        self.times(stage, &checks.rules);
        let lacks = |rule: &&Rule| {
            let columns = stage.table.as_ref().and_then(|table| self.shelf.columns(table.as_str()));
            columns.zip(rule.column.as_ref()).is_some_and(|(columns, own)| !has_column(columns, &own.name))
        };
        // A rule whose column is missing was told of already, at the column.
        let told: Vec<&str> = checks.rules.iter().filter(lacks).map(|rule| rule.name.as_str()).collect();
        for rule in checks.rules.iter().filter(|rule| !told.contains(&rule.name.as_str())) {
            if let Some(sql) = rule.select() {
                self.judge(&self.reading(pipeline, sql));
            }
        }
        if let Some(sql) = &checks.sql {
            self.judge(&self.reading(pipeline, sql));
        }
    }

    /// What is surely no time makes no table fresh. A text may be one: how it is read is seen when it is there.
    fn times(&mut self, stage: &Stage, rules: &[Rule]) {
        let Some(columns) = stage.table.as_ref().and_then(|table| self.shelf.columns(table.as_str())) else { return };
        let are_known = stage.table.as_ref().is_some_and(|table| self.shelf.types_are_known(table.as_str()));
        let type_of = |name: &str| columns.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, ty)| ty);
        let times = columns.iter().filter(|(_, ty)| is_time(ty)).map(|(name, _)| format!("`{name}`"));
        let times: Vec<String> = times.collect();
        for column in
            rules.iter().filter(|rule| rule.name.starts_with("freshness ")).filter_map(|rule| rule.column.as_ref())
        {
            let Some(ty) = type_of(&column.name) else { continue };
            let is_declared = is_declared(stage, &column.name);
            if is_time(ty) || !(are_known || is_declared) || (is_text(ty) && !is_ours(stage, &column.name)) {
                continue;
            }
            let hint = match times.as_slice() {
                [] => "name a column of times; a sql stage makes one of a text or a number: to_timestamp(seconds)"
                    .to_owned(),
                times => format!("name a column of times: {}", times.join(", ")),
            };
            let message = format!("`freshness` names `{}`, which is {} and no time", column.name, ty.to_lowercase());
            self.problems.at(&column.place, message).hint(hint);
        }
    }

    /// A segment is of columns of the profiles or of some users table.
    fn segments(&mut self, stage: &Stage, plan: &MeasureCoverage) {
        let tables = measure_coverage::read_tables(self.settings);
        let Some((users, profiles)) = self.both_sides(&tables.users, &tables.profiles) else { return };
        let place = plan.segments_place.as_ref().unwrap_or(&stage.place);
        for segment in &plan.segments {
            let read =
                Segment::read(segment, &|column| has_column(&users, column), &|column| has_column(&profiles, column));
            let Err(column) = read else { continue };
            let columns: Columns = users.iter().chain(&profiles).cloned().collect();
            let at = segment.find(&column).map_or(0..segment.len(), |at| at..at + column.len());
            let place = within(&self.settings.root, segment, place, at);
            let message = if column == *segment {
                format!("segment `{segment}` is a column of no users table and not of the profiles")
            } else {
                format!("segment `{segment}`: `{column}` is a column of no users table and not of the profiles")
            };
            self.problems.at(&place, message).hint(column_hint(&column, &columns));
        }
    }

    /// A further key stands on both sides: in some users table, and in `bindings` or the profiles.
    fn keys(&mut self, stage: &Stage, plan: &JoinIdentities) {
        let users = users_tables(self.settings, plan);
        let other = plan.bindings.clone().unwrap_or_else(|| measure_coverage::read_tables(self.settings).profiles);
        let Some((users, others)) = self.both_sides(&users, &other) else { return };
        let place = plan.keys_place.as_ref().unwrap_or(&stage.place);
        for key in &plan.further_keys {
            let (columns, whose) = match (has_column(&users, key), has_column(&others, key)) {
                (true, true) => continue,
                (false, _) => (&users, "no users table".to_owned()),
                (true, false) => (&others, format!("`{other}`, where followers are to have it")),
            };
            let place = within(&self.settings.root, key, place, 0..key.len());
            let of = if has_column(&users, key) { "not a column of" } else { "a column of" };
            self.problems.at(&place, format!("key `{key}` is {of} {whose}")).hint(column_hint(key, columns));
        }
    }

    /// The columns of users, and of what is on the other side; nothing while those of a table are not known.
    fn both_sides(&self, users: &[TableName], other: &TableName) -> Option<(Columns, Columns)> {
        let known: Vec<&Columns> = users.iter().filter_map(|table| self.shelf.columns(table.as_str())).collect();
        let other = self.shelf.columns(other.as_str())?.clone();
        (known.len() == users.len()).then(|| (known.into_iter().flatten().cloned().collect(), other))
    }
}

/// `$today`, `$run_at` and the pipeline's parameters, with values of their types.
fn params_of(pipeline: &Pipeline) -> Params {
    let declared = pipeline.params.iter().map(|(name, value)| {
        let value = match value {
            ParamValue::Text(text) => Param::Text(text.clone()),
            ParamValue::Integer(number) => Param::Integer(*number),
            ParamValue::Float(number) => Param::Float(*number),
            ParamValue::Boolean(value) => Param::Boolean(*value),
        };
        (name.clone(), value)
    });
    let epoch = crate::clock::Timestamp::UNIX_EPOCH;
    let own = [("today".to_owned(), Param::Date(epoch.date_naive())), ("run_at".to_owned(), Param::Timestamp(epoch))];
    declared.chain(own).collect()
}

fn is_time(ty: &str) -> bool {
    let ty = ty.to_ascii_uppercase();
    ty == "DATE" || ty.starts_with("TIMESTAMP")
}

fn is_text(ty: &str) -> bool {
    ["VARCHAR", "TEXT", "STRING", "JSON"].iter().any(|text| ty.eq_ignore_ascii_case(text))
}

/// Whether the stage says what type a column of its table has.
fn is_declared(stage: &Stage, column: &str) -> bool {
    matches!(&stage.kind, StageKind::LoadUsers(plan) if plan.types.contains_key(column))
}

/// Whether a column has its meaning from us: a text among these is no time in disguise.
fn is_ours(stage: &Stage, column: &str) -> bool {
    let spec = match stage.kind {
        StageKind::LoadUsers(_) => return USERS.iter().any(|own| own.name == column),
        StageKind::ExtractFollowers(_) => "followers",
        StageKind::EnrichUnionids(_) => "profiles",
        StageKind::JoinIdentities(_) => "identities",
        StageKind::MeasureCoverage(_) => "coverage",
        StageKind::MaterializeRecipients(_) => "recipients",
        StageKind::Sql(_) | StageKind::PushTemplate(_) | StageKind::Publish(_) => return false,
    };
    table_spec(spec).is_some_and(|spec| spec.columns.iter().any(|own| own.name == column))
}

/// As SQL compares names.
fn has_column(columns: &Columns, name: &str) -> bool {
    columns.iter().any(|(own, _)| own.to_lowercase() == name.to_lowercase())
}

fn column_hint(name: &str, columns: &Columns) -> String {
    hint(name, columns.iter().map(|(name, _)| name.as_str()), "columns")
}

/// The nearest of `known`, or where none is near the first of them.
fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone, noun: &str) -> String {
    const SHOWN: usize = 12;
    if let Some(near) = nearest(name, known.clone()) {
        return format!("did you mean `{near}`?");
    }
    let mut names: Vec<String> = Vec::new();
    for name in known.map(|name| format!("`{name}`")) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return format!("there are no {noun} here");
    }
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{noun} here: {}{more}", names.join(", "))
}
