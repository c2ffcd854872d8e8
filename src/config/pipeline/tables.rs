//! The kinds that make or give away tables by few keys: extract, enrich, join, coverage, sql, publish.

use std::time::Duration;

use super::stage::{StageReader, named_columns};
use crate::config::file::Field;
use crate::config::resolve::{TableMention, Wanted, defaults};
use crate::config::settings::{
    EnrichUnionids, ExtractFollowers, FOLLOWERS, JoinIdentities, MeasureCoverage, Place, Publish, PublishFormat,
    SqlStage, StageKind,
};
use crate::domain::TableName;

pub(super) fn extract_followers(stage: &mut StageReader<'_>) -> Option<StageKind> {
    let accounts = stage.accounts();
    let reuse_within = stage.section.take("reuse_within").and_then(|field| field.duration()).unwrap_or(Duration::ZERO);
    Some(StageKind::ExtractFollowers(ExtractFollowers { accounts: accounts?, reuse_within }))
}

pub(super) fn enrich_unionids(stage: &mut StageReader<'_>) -> Option<StageKind> {
    let accounts = stage.accounts();
    let from = stage.section.take("from");
    let place = from.as_ref().map_or_else(|| stage.section.place(), Field::place);
    let from = TableName::new(from.and_then(|field| field.full_text()).unwrap_or_else(|| FOLLOWERS.to_owned()));
    mention(stage, &from, place, Wanted::Followers);
    let refresh_after = stage.section.take("refresh_after").and_then(|field| field.positive_duration());
    let budget = stage.section.take("budget").and_then(|field| field.count("calls", 1..=u64::MAX));
    Some(StageKind::EnrichUnionids(EnrichUnionids {
        accounts: accounts?,
        from,
        refresh_after: refresh_after.unwrap_or(defaults::REFRESH_AFTER),
        budget,
    }))
}

pub(super) fn join_identities(stage: &mut StageReader<'_>) -> Option<StageKind> {
    let users = match stage.section.take("users") {
        Some(field) => tables(stage, &field, Wanted::Users),
        None => Some(Vec::new()),
    };
    let keys = stage.section.take("keys");
    let mut further_keys = Vec::new();
    if let Some(field) = &keys {
        let named = field.words()?;
        if named.first().map(String::as_str) != Some(UNIONID) {
            field.refuse(
                "the first key is not the unionid",
                "begin with \"unionid\": keys = [\"unionid\", \"phone_hash\"]",
            );
            return None;
        }
        further_keys.extend(named.into_iter().skip(1));
        let is_twice = |key: &String| key == UNIONID || further_keys.iter().filter(|other| *other == key).count() > 1;
        if let Some(key) = further_keys.iter().find(|key| is_twice(key)) {
            field.refuse(format!("the key `{key}` stands twice"), "name each key once");
            return None;
        }
    }
    let bindings = stage.section.take("bindings").and_then(|field| {
        let table = TableName::new(field.full_text()?);
        mention(stage, &table, field.place(), Wanted::Any);
        Some(table)
    });
    let keys_place = keys.map(|field| field.place());
    Some(StageKind::JoinIdentities(JoinIdentities { users: users?, further_keys, keys_place, bindings }))
}

pub(super) fn measure_coverage(stage: &mut StageReader<'_>) -> StageKind {
    let field = stage.section.take("segments");
    let segments = field.as_ref().and_then(|field| field.words()).unwrap_or_default();
    if let Some(field) = &field {
        let like = |name: &str| name.to_lowercase().split_whitespace().collect::<String>();
        let mut met = std::collections::BTreeSet::new();
        if let Some(twice) = segments.iter().find(|segment| !met.insert(like(segment))) {
            field.refuse(format!("the segment \"{twice}\" stands here twice"), "name each segment once");
        }
    }
    let segments_place = field.map(|field| field.place());
    let lately = stage.section.take("lately").and_then(|field| field.positive_duration()).unwrap_or(defaults::LATELY);
    StageKind::MeasureCoverage(MeasureCoverage { segments, segments_place, lately })
}

pub(super) fn sql(stage: &mut StageReader<'_>) -> Option<StageKind> {
    let sql = stage.sql_file();
    let upsert_by = stage.section.take("upsert_by").and_then(|field| {
        let columns = named_columns(&field)?;
        if columns.is_empty() {
            field.refuse(
                "no column to tell rows apart by",
                "name the key columns, or leave `upsert_by` out to replace the table",
            );
        }
        Some(columns)
    });
    Some(StageKind::Sql(SqlStage { sql: sql?, upsert_by: upsert_by.unwrap_or_default() }))
}

/// `tables` left out stays empty here, until all stages of the pipeline are known.
pub(super) fn publish(stage: &mut StageReader<'_>) -> Option<StageKind> {
    let field = stage.section.take("tables");
    let to = stage.section.take("to").and_then(|field| field.full_text());
    let format = stage.section.take("format").and_then(|field| {
        field.choice(&[("parquet", PublishFormat::Parquet), ("csv", PublishFormat::Csv), ("xlsx", PublishFormat::Xlsx)])
    });
    let raw = stage.section.take("raw").and_then(|field| field.boolean());
    let tables_place = field.as_ref().map_or_else(|| stage.section.place(), Field::place);
    let tables = match field {
        Some(field) => tables(stage, &field, Wanted::Any)?,
        None => Vec::new(),
    };
    let to = stage.around.house.root.join(to.as_deref().unwrap_or(defaults::PUBLISH_TO));
    let format = format.unwrap_or(PublishFormat::Parquet);
    Some(StageKind::Publish(Publish { tables, tables_place, to, format, is_raw: raw.unwrap_or(false) }))
}

const UNIONID: &str = "unionid";

fn tables(stage: &StageReader<'_>, field: &Field<'_>, wanted: Wanted) -> Option<Vec<TableName>> {
    let items = field.texts()?;
    if items.is_empty() {
        field.refuse("this list names no table", "name at least one");
    }
    let mut tables = Vec::new();
    for item in items {
        let table = TableName::new(item.text);
        mention(stage, &table, field.page.place(item.span), wanted);
        tables.push(table);
    }
    Some(tables)
}

fn mention(stage: &StageReader<'_>, table: &TableName, place: Place, wanted: Wanted) {
    stage.around.mentions.borrow_mut().read_tables.push(TableMention { table: table.clone(), place, wanted });
}
