//! Which stage comes after which: read off `needs`, the tables its keys name, and its SQL. The order in the file means
//! nothing, but where it is free it is kept.

use std::collections::BTreeMap;

use crate::config::Problems;
use crate::config::settings::{Checks, Pipeline, Settings, SqlText, Stage, StageKind};
use crate::domain::StageName;
use crate::domain::tables::{FOLLOWER_TAGS, MEMBERSHIPS};
use crate::engine::{Engine, SqlFacts};
use crate::stage::join_identities::users_tables;
use crate::stage::{StageError, measure_coverage};

/// What is read off a SQL text; `None` for SQL that is wrong.
pub type Inspect<'a> = dyn Fn(&str) -> Option<SqlFacts> + 'a;

/// The stages of a pipeline in an order in which they can run.
#[derive(Debug, Default)]
pub struct Ordered {
    /// Indices into `pipeline.stages`.
    pub order: Vec<usize>,
    /// Stage → the stages it comes after.
    pub before: BTreeMap<StageName, Vec<StageName>>,
    /// Stages that wait for each other, each for the next and the last for the first; empty in a sound pipeline. The
    /// first is the one that stands first in the file.
    pub circle: Vec<StageName>,
}

/// Orders a pipeline that was checked. Blocking: the engine reads the tables off the stages' SQL, where there is any.
///
/// # Errors
///
/// [`StageError::Rule`] naming the stages that wait for each other; [`StageError::Engine`].
pub fn ordered(settings: &Settings, pipeline: &Pipeline, engine: &Engine) -> Result<Ordered, StageError> {
    let has_sql = pipeline.stages.iter().any(|stage| !sql_of(stage).is_empty());
    let session = has_sql.then(|| engine.session()).transpose()?;
    let ordered = order(settings, pipeline, &|sql| {
        let facts = session.as_ref()?.inspect(sql).ok()?;
        engine.keep_facts(sql, &facts);
        Some(facts)
    });
    if ordered.circle.is_empty() {
        return Ok(ordered);
    }
    Err(StageError::Rule(circle_text(&ordered.circle)))
}

/// Orders a pipeline and reports a circle at its first stage. A circle of `needs` alone is seen by who reads the files.
pub fn check(settings: &Settings, pipeline: &Pipeline, inspect: &Inspect<'_>, problems: &mut Problems) {
    let ordered = order(settings, pipeline, inspect);
    let stage = |name: &StageName| pipeline.stages.iter().find(|stage| stage.name == *name);
    let followed = ordered.circle.iter().cycle().skip(1);
    let is_told =
        ordered.circle.iter().zip(followed).all(|(name, next)| stage(name).is_some_and(|own| own.needs.contains(next)));
    if let (Some(first), false) = (ordered.circle.first().and_then(stage), is_told) {
        problems
            .at(&first.place, circle_text(&ordered.circle))
            .hint("a stage runs after those whose tables it reads; take one of these reads or `needs` away");
    }
}

fn circle_text(circle: &[StageName]) -> String {
    let names: Vec<String> = circle.iter().map(|name| format!("`{name}`")).collect();
    format!("the stages {} wait for each other", names.join(", "))
}

fn order(settings: &Settings, pipeline: &Pipeline, inspect: &Inspect<'_>) -> Ordered {
    let makers = makers(pipeline);
    let mut before: BTreeMap<StageName, Vec<StageName>> = BTreeMap::new();
    for stage in &pipeline.stages {
        let mut own: Vec<StageName> = stage.needs.clone();
        for table in reads(settings, stage, inspect) {
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
            let circle = circle(pipeline, &left, &before);
            return Ordered { order, before, circle };
        };
        order.push(next);
        left.retain(|index| *index != next);
    }
    Ordered { order, before, circle: Vec::new() }
}

/// One circle among stages of which each waits for another of them: what merely waits behind it is left out.
fn circle(pipeline: &Pipeline, left: &[usize], before: &BTreeMap<StageName, Vec<StageName>>) -> Vec<StageName> {
    let is_left = |name: &&StageName| left.iter().any(|index| pipeline.stages[*index].name == **name);
    let mut way: Vec<&StageName> = Vec::new();
    let mut next = left.first().map(|index| &pipeline.stages[*index].name);
    while let Some(name) = next {
        if let Some(at) = way.iter().position(|visited| *visited == name) {
            way.drain(..at);
            break;
        }
        way.push(name);
        next = before[name].iter().find(is_left);
    }
    let place = |name: &StageName| pipeline.stages.iter().position(|stage| stage.name == *name);
    let first = (0..way.len()).min_by_key(|at| place(way[*at])).unwrap_or(0);
    way.rotate_left(first);
    way.into_iter().cloned().collect()
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
        StageKind::ExtractFollowers(_) => &["follower_changes", MEMBERSHIPS],
        StageKind::EnrichUnionids(_) => &["identity_changes", FOLLOWER_TAGS],
        StageKind::LoadUsers(_) => &["quarantine"],
        StageKind::JoinIdentities(_) => &["identity_conflicts"],
        StageKind::MeasureCoverage(_) => &measure_coverage::TABLES,
        StageKind::MaterializeRecipients(_) => &["recipients", "left_out"],
        StageKind::Sql(_) | StageKind::PushTemplate(_) | StageKind::Publish(_) => &[],
    };
    tables.extend(more.iter().map(|table| (*table).to_owned()));
    if matches!(stage.kind, StageKind::MeasureCoverage(_)) {
        tables.push(measure_coverage::EVIDENCE.to_owned());
    }
    tables
}

/// Every table a stage reads, as its keys and its SQL tell. SQL that cannot be read tells nothing here: checking says so.
pub fn reads(settings: &Settings, stage: &Stage, inspect: &Inspect<'_>) -> Vec<String> {
    let mut tables: Vec<String> = match &stage.kind {
        StageKind::EnrichUnionids(plan) => vec![plan.from.to_string()],
        StageKind::JoinIdentities(plan) => {
            let tables = measure_coverage::read_tables(settings);
            let users = users_tables(settings, plan);
            users
                .iter()
                .chain([&tables.followers, &tables.profiles])
                .chain(&plan.bindings)
                .map(ToString::to_string)
                .collect()
        }
        StageKind::MeasureCoverage(_) => {
            measure_coverage::read_tables(settings).all().map(ToString::to_string).collect()
        }
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
        if let Some(facts) = inspect(&sql.text) {
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
    own.into_iter().chain(stage.checks.iter().flat_map(Checks::selects)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CONFIG_FILE, Environment, load};
    use crate::engine::Engine;

    /// The order of a pipeline's stages by name.
    fn order_of(pipeline: &str, sql: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let config = "[accounts.main]\napp_id = \"a\"\napp_secret = \"s\"\n[miniprograms.mall]\napp_id = \"m\"\n";
        let stages = |path: &str| format!("pipelines/p/{path}.sql");
        let files = sql.iter().map(|(name, text)| (stages(name), *text));
        for (path, text) in files.chain([(CONFIG_FILE.to_owned(), config), ("pipelines/p.toml".to_owned(), pipeline)]) {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let loaded = load(folder.path(), &Environment::default());
        let settings = loaded.settings.unwrap_or_else(|| panic!("{}", loaded.problems));
        let engine = Engine::new("1GB", 1, folder.path().join("spill"), settings.timezone);
        let pipeline = &settings.pipelines["p"];
        let ordered = ordered(&settings, pipeline, &engine).unwrap();
        ordered.order.into_iter().map(|index| pipeline.stages[index].name.to_string()).collect()
    }

    fn stage(name: &str, kind: &str, more: &str) -> String {
        format!("[stages.{name}]\nkind = \"{kind}\"\n{more}\n")
    }

    #[test]
    fn a_stage_runs_after_those_whose_tables_its_keys_name() {
        let pipeline = stage("out", "publish", "tables = [\"coverage\"]")
            + &stage("coverage", "measure_coverage", "")
            + &stage("identities", "join_identities", "")
            + &stage("users", "load_users", "source.files = \"data/*.csv\"")
            + &stage("profiles", "enrich_unionids", "")
            + &stage("followers", "extract_followers", "");
        let order = order_of(&pipeline, &[]);
        assert_eq!(order, ["users", "followers", "profiles", "coverage", "out", "identities"]);
    }

    #[test]
    fn a_stage_runs_after_those_whose_tables_its_sql_reads() {
        let pipeline =
            stage("push", "push_template", "recipients = \"audience\"\ntemplate_id = \"t\"\ndata = { a = \"b\" }")
                + &stage("audience", "materialize_recipients", "")
                + &stage("late", "sql", "")
                + &stage("early", "sql", "checks = { sql = \"select 1 from users, early\" }")
                + &stage("changes", "sql", "")
                + &stage("followers", "extract_followers", "")
                + &stage("users", "load_users", "source.files = \"data/*.csv\"");
        let sql = [
            ("audience", "with late as (select 1) select openid from early"),
            ("late", "select 1 as a from quarantine, early"),
            ("early", "select 'o' as openid"),
            ("changes", "select openid from follower_changes where openid not in (select openid from late)"),
        ];
        let order = order_of(&pipeline, &sql);
        assert_eq!(order, ["followers", "users", "early", "audience", "push", "late", "changes"]);
    }

    #[test]
    fn where_the_order_is_free_that_of_the_file_is_kept() {
        let pipeline = stage("b", "sql", "needs = [\"c\"]")
            + &stage("d", "sql", "")
            + &stage("c", "sql", "")
            + &stage("a", "sql", "");
        let sql = ["a", "b", "c", "d"].map(|name| (name, "select 1 as one from deliveries, recipients"));
        assert_eq!(order_of(&pipeline, &sql), ["d", "c", "b", "a"]);
    }
}
