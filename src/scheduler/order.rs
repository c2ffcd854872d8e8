//! Which stage comes after which: read off `needs`, the tables its keys name, and its SQL. The order in the file means
//! nothing, but where it is free it is kept.

use std::collections::BTreeMap;

use crate::config::Problems;
use crate::config::settings::{Checks, Pipeline, Settings, SqlText, Stage, StageKind};
use crate::domain::StageName;
use crate::engine::Session;
use crate::stage::join_identities::users_tables;
use crate::stage::{StageError, measure_coverage};

/// The stages of a pipeline in an order in which they can run.
#[derive(Debug, Default)]
pub struct Ordered {
    /// Indices into `pipeline.stages`.
    pub order: Vec<usize>,
    /// Stage → the stages it comes after.
    pub before: BTreeMap<StageName, Vec<StageName>>,
    /// Stages that wait for each other; empty in a sound pipeline.
    pub circle: Vec<StageName>,
}

/// Orders a pipeline that was checked.
///
/// # Errors
///
/// [`StageError::Rule`] naming the stages that wait for each other.
pub fn ordered(settings: &Settings, pipeline: &Pipeline, session: &Session) -> Result<Ordered, StageError> {
    let ordered = order(settings, pipeline, session);
    if ordered.circle.is_empty() {
        return Ok(ordered);
    }
    Err(StageError::Rule(circle_text(&ordered.circle)))
}

/// Orders a pipeline and reports a circle at its first stage.
pub fn check(settings: &Settings, pipeline: &Pipeline, session: &Session, problems: &mut Problems) -> Ordered {
    let ordered = order(settings, pipeline, session);
    let first = ordered.circle.first().and_then(|name| pipeline.stages.iter().find(|stage| stage.name == *name));
    if let Some(first) = first {
        problems
            .at(&first.place, circle_text(&ordered.circle))
            .hint("a stage runs after those whose tables it reads; take one of these reads or `needs` away");
    }
    ordered
}

fn circle_text(circle: &[StageName]) -> String {
    let names: Vec<String> = circle.iter().map(|name| format!("`{name}`")).collect();
    format!("the stages {} wait for each other", names.join(", "))
}

fn order(settings: &Settings, pipeline: &Pipeline, session: &Session) -> Ordered {
    let makers = makers(pipeline);
    let mut before: BTreeMap<StageName, Vec<StageName>> = BTreeMap::new();
    for stage in &pipeline.stages {
        let mut own: Vec<StageName> = stage.needs.clone();
        for table in reads(settings, stage, session) {
            let maker = makers.get(&table).into_iter().flatten().filter(|maker| **maker != stage.name);
            own.extend(maker.cloned());
        }
        own.sort();
        own.dedup();
        before.insert(stage.name.clone(), own);
    }
    let mut order: Vec<usize> = Vec::new();
    let mut left: Vec<usize> = (0..pipeline.stages.len()).collect();
    while !left.is_empty() {
        let is_ready = |index: &usize| {
            let waits = &before[&pipeline.stages[*index].name];
            waits.iter().all(|name| !left.iter().any(|other| pipeline.stages[*other].name == *name))
        };
        let Some(next) = left.iter().copied().find(|index| is_ready(index)) else {
            let circle = left.iter().map(|index| pipeline.stages[*index].name.clone()).collect();
            return Ordered { order, before, circle };
        };
        order.push(next);
        left.retain(|index| *index != next);
    }
    Ordered { order, before, circle: Vec::new() }
}

/// Table → the stages that make it.
fn makers(pipeline: &Pipeline) -> BTreeMap<String, Vec<StageName>> {
    let mut makers: BTreeMap<String, Vec<StageName>> = BTreeMap::new();
    for stage in &pipeline.stages {
        for table in makes(stage) {
            makers.entry(table).or_default().push(stage.name.clone());
        }
    }
    makers
}

/// Every table a stage makes.
pub fn makes(stage: &Stage) -> Vec<String> {
    let mut tables: Vec<String> = stage.table.iter().map(ToString::to_string).collect();
    let more: &[&str] = match &stage.kind {
        StageKind::ExtractFollowers(_) => &["follower_changes"],
        StageKind::EnrichUnionids(_) => &["identity_changes"],
        StageKind::LoadUsers(_) => &["quarantine"],
        StageKind::JoinIdentities(_) => &["identity_conflicts"],
        StageKind::MeasureCoverage(_) => &measure_coverage::TABLES,
        StageKind::MaterializeRecipients(_) => &["recipients", "left_out"],
        StageKind::Sql(_) | StageKind::PushTemplate(_) | StageKind::Publish(_) => &[],
    };
    tables.extend(more.iter().map(|table| (*table).to_owned()));
    tables
}

/// Every table a stage reads, as its keys and its SQL tell. SQL that cannot be read tells nothing here: checking says so.
pub fn reads(settings: &Settings, stage: &Stage, session: &Session) -> Vec<String> {
    let people = || {
        let tables = measure_coverage::read_tables(settings);
        tables.all().map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut tables: Vec<String> = match &stage.kind {
        StageKind::EnrichUnionids(plan) => vec![plan.from.to_string()],
        StageKind::JoinIdentities(plan) => {
            let users = users_tables(settings, plan);
            people().into_iter().chain(users.iter().map(ToString::to_string)).collect()
        }
        StageKind::MeasureCoverage(_) => people(),
        // Whoever is sent to must be a follower as of the newest walk.
        StageKind::MaterializeRecipients(_) => {
            let tables = measure_coverage::read_tables(settings);
            vec![tables.followers.to_string(), tables.profiles.to_string()]
        }
        StageKind::PushTemplate(_) | StageKind::ExtractFollowers(_) | StageKind::LoadUsers(_) | StageKind::Sql(_) => {
            Vec::new()
        }
        StageKind::Publish(plan) => plan.tables.iter().map(ToString::to_string).collect(),
    };
    if let StageKind::PushTemplate(plan) = &stage.kind {
        let pipeline = settings.pipelines.values().find(|pipeline| pipeline.file == stage.place.file);
        let set = pipeline.and_then(|own| own.stages.iter().find(|other| other.name == plan.recipients));
        tables.extend(set.and_then(|set| set.table.as_ref()).map(ToString::to_string));
    }
    for sql in sql_of(stage) {
        if let Ok(facts) = session.inspect(&sql.text) {
            tables.extend(facts.tables.into_iter().map(|table| table.name));
        }
    }
    tables
}

/// Every SQL text of a stage.
pub fn sql_of(stage: &Stage) -> Vec<&SqlText> {
    let own = match &stage.kind {
        StageKind::Sql(plan) => Some(&plan.sql),
        StageKind::MaterializeRecipients(plan) => Some(&plan.sql),
        _ => None,
    };
    own.into_iter().chain(stage.checks.as_ref().and_then(|Checks { sql, .. }| sql.as_ref())).collect()
}
