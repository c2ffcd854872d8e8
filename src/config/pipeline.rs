//! `pipelines/NAME.toml` → a [`Pipeline`]: its own keys here, its stages in [`stage`].
//!
//! The kinds of stages are read by [`tables`] (those that only make a table), [`load_users`], [`recipients`] and [`push`].
//! Names of other stages, pipelines and tables are noted with their places and judged when all files are read.

mod bucket;
mod checks;
mod database;
mod load_users;
mod push;
mod recipients;
mod stage;
mod tables;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use toml::de::DeValue;

use super::file::{Field, Section};
use super::resolve::{COVERAGE_TABLES, House, Mentions, defaults};
use super::settings::{CatchUp, ParamValue, Pipeline, Retry, Stage, StageKind};
use super::units;
use crate::domain::{PipelineName, TableName};

/// Names that SQL and messages have by themselves.
const RESERVED_PARAMS: [&str; 4] = ["today", "run_at", "now", "pipeline"];

/// What a stage is read against.
#[derive(Clone, Copy)]
struct Surroundings<'a> {
    house: &'a House,
    pipeline: &'a PipelineName,
    mentions: &'a RefCell<Mentions>,
}

/// The name of a pipeline: that of its file.
pub(super) fn name_of(file: &Path) -> PipelineName {
    PipelineName::new(file.file_stem().unwrap_or_default().to_string_lossy())
}

/// Reads one file; stages that cannot be read are left out of it, and reported.
pub(super) fn read(mut file: Section<'_>, house: &House, mentions: &RefCell<Mentions>) -> Pipeline {
    let name = name_of(file.page.file);
    if !name.as_str().chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
        let message = format!("\"{name}\" cannot name a pipeline");
        file.page.problem(0..0, message, "name the file with letters, digits, `_` and `-`");
    }
    let description = file.take("description").and_then(|field| field.text()).unwrap_or_default();
    let schedule = file.take("schedule").and_then(|field| field.unit(|text| units::schedule(text, house.timezone)));
    let catch_up =
        file.take("catch_up").and_then(|field| field.choice(&[("latest", CatchUp::Latest), ("skip", CatchUp::Skip)]));
    let after = file.take("after").map(|field| after(&field, &name, mentions)).unwrap_or_default();
    let retry = retry(file.section("retry", "`retry`"));
    let params = params(&file.section("params", "`[params]`"));
    let stage_tables = file.section("stages", "`[stages]`");
    let surroundings = Surroundings { house, pipeline: &name, mentions };
    let mut stages = Vec::new();
    for field in stage_tables.fields() {
        stages.extend(stage::read(&field, surroundings));
    }
    if stage_tables.fields().is_empty() {
        file.page.problem(0..0, "this pipeline has no stages", "begin one with [stages.NAME] and its `kind`");
        mentions.borrow_mut().unread_pipelines.push(name.clone());
    }
    publish_all(&mut stages);
    let path = file.page.file.to_owned();
    file.finish();
    let catch_up = catch_up.unwrap_or(CatchUp::Latest);
    Pipeline { name, file: path, description, schedule, catch_up, after, retry, params, stages }
}

/// A `publish` that names no tables writes out what its pipeline makes; a recipient set is not for handing round.
fn publish_all(stages: &mut [Stage]) {
    let mut made: Vec<TableName> = Vec::new();
    for stage in stages.iter() {
        match &stage.kind {
            StageKind::MaterializeRecipients(_) => {}
            StageKind::MeasureCoverage(_) => made.extend(COVERAGE_TABLES.map(TableName::new)),
            _ => made.extend(stage.table.clone()),
        }
    }
    for stage in stages {
        if let StageKind::Publish(publish) = &mut stage.kind
            && publish.tables.is_empty()
        {
            publish.tables.clone_from(&made);
        }
    }
}

fn after(field: &Field<'_>, name: &PipelineName, mentions: &RefCell<Mentions>) -> Vec<PipelineName> {
    let mut names = Vec::new();
    for item in field.texts().unwrap_or_default() {
        let other = PipelineName::new(item.text);
        mentions.borrow_mut().after.push((name.clone(), other.clone(), field.page.place(item.span)));
        if !names.contains(&other) {
            names.push(other);
        }
    }
    names
}

/// `times = 0` is how to have none.
fn retry(mut section: Section<'_>) -> Option<Retry> {
    let times = section.take("times").and_then(|field| field.count("times", 0..=100));
    let wait = section.take("wait").and_then(|field| field.positive_duration());
    section.finish();
    let times = times.and_then(|times| u32::try_from(times).ok()).unwrap_or(defaults::RETRY.times);
    (times > 0).then_some(Retry { times, wait: wait.unwrap_or(defaults::RETRY.wait) })
}

fn params(section: &Section<'_>) -> BTreeMap<String, ParamValue> {
    let mut params = BTreeMap::new();
    for field in section.fields() {
        if !is_identifier(field.name) {
            field.refuse_key(
                format!("`{}` cannot name a parameter", field.name),
                "use lower-case letters, digits and `_`",
            );
        } else if RESERVED_PARAMS.contains(&field.name) {
            field.refuse_key(format!("`{}` is there by itself", field.name), "name the parameter otherwise");
        }
        let value = match field.value.get_ref() {
            DeValue::String(_) => field.text().map(ParamValue::Text),
            DeValue::Integer(_) => field.integer().map(ParamValue::Integer),
            DeValue::Float(_) => field.number().map(ParamValue::Float),
            DeValue::Boolean(value) => Some(ParamValue::Boolean(*value)),
            DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                field.refuse(
                    "a parameter is a text, a number, or true or false",
                    "write a date as a text, and cast it in SQL",
                );
                None
            }
        };
        if let Some(value) = value {
            params.insert(field.name.to_owned(), value);
        }
    }
    params
}

/// Lower snake case, not beginning with a digit: a name that SQL needs no quotes for.
fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}
