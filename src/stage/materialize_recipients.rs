//! `materialize_recipients`: the SELECT's people become a set: deduplicated, filtered, numbered, frozen, hashed.
//!
//! The way: the SELECT is read once into a table → each row gets the first reason to leave it out, or none → the set is
//! written as a file whose hash is the set's, and everyone left out with the reason. Once written the set never changes;
//! a continued run takes it as it is.

mod blacklist;
mod filter;
mod forecast;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;
use sha2::{Digest, Sha256};

use self::filter::Filter;
pub use self::forecast::{Forecast, forecast};
use super::{Hands, NewSnapshot, StageContext, StageError, StageOutcome, StageReport, blocking, live, moved, sql};
use crate::config::settings::{MaterializeRecipients, StageKind};
use crate::domain::tables::{MOVED_OPENIDS, table_spec};
use crate::domain::{AccountName, TableName};
use crate::engine::{Param, Params, TableSource};
use crate::lake::{Lake, LakeError};

/// Materializes the set.
///
/// # Errors
///
/// [`StageError::Sql`] for the SELECT, [`StageError::Rule`] for data that is too old or a set of people who follow nobody.
pub async fn run(cx: &StageContext<'_>, plan: &MaterializeRecipients) -> Result<StageOutcome, StageError> {
    moved::refuse(cx, &plan.account).await?;
    let sources = sql::sources(cx, &plan.sql.text).await?;
    check_staleness(cx, plan, &sources)?;
    blacklist::pull(cx, &plan.account).await?;
    let as_of = sql::as_of(cx, &sources);
    let id = cx.new_snapshot_id();
    let table = cx.stage.table.clone().expect("a materialize stage has a table");
    let set_path = Lake::part_path(&TableName::new("recipients"), &slice(cx), &id, 1);
    let left_path = Lake::part_path(&TableName::new("left_out"), &slice(cx), &id, 1);
    let targets = (cx.hands.lake.absolute(&set_path), cx.hands.lake.absolute(&left_path));
    let people = sources.iter().map(|source| cx.visible.rows(&source.name)).max().unwrap_or_default();
    let filter = filter(cx, plan, sources, targets).await?;
    let set = blocking(&cx.hands.joining_engine(people), cx.stop, move |session| filter.write(session)).await?;
    let set_hash = hash_file(cx.hands, &set_path).await?;
    let columns = table_spec("recipients").expect("recipients is declared").sql_columns();
    let snapshot = |table: TableName, slice: String, id: String, own: bool| NewSnapshot {
        table,
        slice,
        id,
        as_of,
        rows: if own { set.set.rows } else { set.left.rows },
        bytes: if own { set.set.bytes } else { set.left.bytes },
        parts: vec![if own { set_path.clone() } else { left_path.clone() }],
        columns: if own {
            columns.clone()
        } else {
            table_spec("left_out").expect("left_out is declared").sql_columns()
        },
    };
    let snapshots = vec![
        snapshot(TableName::new("recipients"), slice(cx), id.clone(), true).record(cx),
        snapshot(TableName::new("left_out"), slice(cx), format!("{id}-left"), false).record(cx),
        snapshot(table, String::new(), format!("{id}-own"), true).record(cx),
    ];
    let left: BTreeMap<&String, u64> = set.judged.reasons.iter().map(|(reason, people)| (reason, *people)).collect();
    Ok(StageOutcome::Done(StageReport {
        rows_in: set.judged.given,
        rows_out: set.judged.send,
        snapshots,
        detail: json!({
            "given": set.judged.given, "recipients": set.judged.send, "holdout": set.judged.holdout, "left_out": left,
            "set_hash": set_hash, "set_path": set_path, "as_of": as_of.to_rfc3339(),
        }),
        ..StageReport::default()
    }))
}

/// Everything the set is made from, as this run sees it.
async fn filter(
    cx: &StageContext<'_>,
    plan: &MaterializeRecipients,
    sources: Vec<TableSource>,
    (set_target, left_target): (PathBuf, PathBuf),
) -> Result<Filter, StageError> {
    let followers =
        super::join_identities::tables_of(&cx.hands.settings, |kind| matches!(kind, StageKind::ExtractFollowers(_)));
    let followers = followers.first().map_or("followers", TableName::as_str);
    // What events said before the last walk is in the walk.
    let marks_since = cx
        .visible
        .slice(followers, plan.account.as_str())
        .map_or(crate::clock::Timestamp::UNIX_EPOCH, |snapshot| snapshot.as_of);
    let has_history = plan.frequency_cap.is_some() || plan.not_again.is_some();
    Ok(Filter {
        stage: cx.stage.name.to_string(),
        plan: plan.clone(),
        sources,
        followers: cx.visible.slice(followers, plan.account.as_str()).map(|_| {
            let columns = table_spec("followers").expect("followers is declared").sql_columns();
            cx.visible.slice_source(&cx.hands.lake, (followers, plan.account.as_str()), "_followers", columns)
        }),
        profiles: profiles(cx, plan),
        marks: live::export_marks(cx.hands, &plan.account, marks_since).await?,
        suppressions: renamed(live::export(cx.hands, "suppressions").await?, "_suppressions"),
        forgotten: live::export_forgotten(cx.hands).await?,
        deliveries: if has_history {
            Some(renamed(live::export(cx.hands, "deliveries").await?, "_deliveries"))
        } else {
            None
        },
        moved: moved_source(cx, &plan.account),
        templates: templates_sent(cx),
        only: test_openids(cx)?,
        is_ordered: sql::is_ordered(cx, &plan.sql.text).await?,
        set_target,
        left_target,
        params: parameters(cx, plan),
        user_params: cx.params.clone(),
    })
}

/// What openids have become whose account was moved: whom a message went to before is the same person now.
fn moved_source(cx: &StageContext<'_>, account: &AccountName) -> Option<TableSource> {
    let columns = table_spec(MOVED_OPENIDS).expect("moved_openids is declared").sql_columns();
    cx.visible.slice(MOVED_OPENIDS, account.as_str())?;
    Some(cx.visible.bare_slice(&cx.hands.lake, (MOVED_OPENIDS, account.as_str()), "_moved", columns))
}

/// Each set is a slice of its own of `recipients` and `left_out`: no set ever replaces another.
fn slice(cx: &StageContext<'_>) -> String {
    format!("{}.{}", cx.run.run_id, cx.stage.name)
}

fn renamed(source: TableSource, name: &str) -> TableSource {
    TableSource { name: name.to_owned(), ..source }
}

fn profiles(cx: &StageContext<'_>, plan: &MaterializeRecipients) -> TableSource {
    let tables =
        super::join_identities::tables_of(&cx.hands.settings, |kind| matches!(kind, StageKind::EnrichUnionids(_)));
    let table = tables.first().map_or("profiles", TableName::as_str);
    let columns = table_spec("profiles").expect("profiles is declared").sql_columns();
    cx.visible.slice_source(&cx.hands.lake, (table, plan.account.as_str()), "_profiles", columns)
}

/// In a test run, the only people who may be in the set.
fn test_openids(cx: &StageContext<'_>) -> Result<Option<Vec<String>>, StageError> {
    if !cx.run.is_test {
        return Ok(None);
    }
    let pipeline = &cx.hands.settings.pipelines[&cx.run.pipeline];
    let openids: Vec<String> = pipeline
        .stages
        .iter()
        .filter_map(|stage| match &stage.kind {
            StageKind::PushTemplate(push) if push.recipients == cx.stage.name => Some(&push.test_openids),
            _ => None,
        })
        .flatten()
        .map(|openid| openid.as_str().to_owned())
        .collect();
    if openids.is_empty() {
        return Err(StageError::Rule(
            "`--test` sends to the push's test_openids alone, and there are none; name some, the SELECT must give them"
                .to_owned(),
        ));
    }
    Ok(Some(openids))
}

/// The templates that pushes of this pipeline send to this set: who refuses one of them is left out.
fn templates_sent(cx: &StageContext<'_>) -> Vec<String> {
    let pipeline = &cx.hands.settings.pipelines[&cx.run.pipeline];
    let pushes = pipeline.stages.iter().filter_map(|stage| match &stage.kind {
        StageKind::PushTemplate(push) if push.recipients == cx.stage.name => Some(push),
        _ => None,
    });
    pushes.map(|push| push.template_id.as_str().to_owned()).collect()
}

fn parameters(cx: &StageContext<'_>, plan: &MaterializeRecipients) -> Params {
    let now = cx.hands.clock.now();
    let before = |duration: std::time::Duration| {
        chrono::TimeDelta::from_std(duration).ok().and_then(|delta| now.checked_sub_signed(delta)).unwrap_or(now)
    };
    let cap_days = plan.frequency_cap.map_or(0, |cap| u64::from(cap.days));
    let holdout = filter::holdout_bound(plan.holdout);
    Params::from([
        ("_run_id".to_owned(), Param::Text(cx.run.run_id.to_string())),
        ("_pipeline".to_owned(), Param::Text(cx.run.pipeline.to_string())),
        ("_stage".to_owned(), Param::Text(cx.stage.name.to_string())),
        ("_account".to_owned(), Param::Text(plan.account.to_string())),
        ("_now".to_owned(), Param::Timestamp(now)),
        ("_cap".to_owned(), Param::Integer(plan.frequency_cap.map_or(0, |cap| i64::from(cap.messages)))),
        (
            "_cap_since".to_owned(),
            Param::Timestamp(before(std::time::Duration::from_secs(cap_days.saturating_mul(86_400)))),
        ),
        ("_not_again_since".to_owned(), Param::Timestamp(before(plan.not_again.unwrap_or_default()))),
        ("_holdout".to_owned(), Param::Text(holdout)),
        ("_max".to_owned(), Param::Integer(plan.max.map_or(i64::MAX, |max| i64::try_from(max).unwrap_or(i64::MAX)))),
    ])
}

/// `max_staleness` holds for each account and mini program that was read.
fn check_staleness(
    cx: &StageContext<'_>,
    plan: &MaterializeRecipients,
    sources: &[TableSource],
) -> Result<(), StageError> {
    let Some(most) = plan.max_staleness else { return Ok(()) };
    for source in sources {
        for snapshot in cx.visible.behind(&source.name) {
            let age = (cx.hands.clock.now() - snapshot.as_of).to_std().unwrap_or_default();
            if age > most {
                let slice = if snapshot.slice.is_empty() { String::new() } else { format!(" of `{}`", snapshot.slice) };
                return Err(StageError::Rule(format!(
                    "table `{}`{slice} is as of {}, older than max_staleness allows; run the sync first",
                    source.name,
                    snapshot.as_of.format("%Y-%m-%d %H:%M UTC")
                )));
            }
        }
    }
    Ok(())
}

/// The set's hash is that of its file: what was frozen, byte for byte.
pub async fn hash_file(hands: &Hands, path: &str) -> Result<String, StageError> {
    let path = hands.lake.absolute(path);
    tokio::task::spawn_blocking(move || {
        let read_error = |source| LakeError::Read { path: path.clone(), source };
        let file = std::fs::File::open(&path).map_err(read_error)?;
        let mut file = std::io::BufReader::with_capacity(1 << 20, file);
        let mut hash = Sha256::new();
        std::io::copy(&mut file, &mut hash).map_err(read_error)?;
        Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    })
    .await?
}
