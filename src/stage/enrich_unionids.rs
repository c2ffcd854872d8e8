//! `enrich_unionids`: asks for the profile, and so the unionid, of followers whose profile is missing or stale.
//!
//! The way: the pages of a first walk ([`ahead`]), else the engine, say who needs asking, and where there is no call for all
//! who is asked first ([`first`]) → batches of 100 go out
//! `concurrency` wide ([`ask`]), one in sixty looked at twice ([`spot`]); whom no call is left for though their batch could not be
//! believed goes first on the next night, in a small batch of their own ([`pieces`]) → answers gather in parts, each written while the
//! next gathers and recorded as soon as it is whole, so that a crash repeats at most 100 calls (or 32 more than
//! `concurrency`) → one pass merges them with the profiles before ([`merge`]). A unionid that moved or that two openids share is asked for once more, singly, before it
//! is believed.

mod ahead;
mod ask;
mod budget;
mod digest;
mod doubt;
mod first;
mod forecast;
mod merge;
mod narrow;
mod near;
mod need;
mod part;
mod pieces;
mod share;
mod spot;

use std::sync::Arc;

use chrono::TimeDelta;
use serde_json::json;
use tokio::sync::mpsc;

use self::ahead::AskedAhead;
pub use self::ahead::{Ahead, ask_ahead};
use self::ask::{Asking, Tally};
use self::budget::Budget;
use self::first::Scarce;
pub use self::forecast::needed;
use self::need::{NEEDED, REFUSED, Stale};
pub use self::share::batches_within_budget;
use self::share::{Known, Shares};
pub use self::spot::EVERY as SPOT_CHECK_EVERY;
use super::extract_followers::describe;
use super::turns::Turn;
use super::{FailedSlice, StageContext, StageError, StageOutcome, StageReport, moved};
use crate::clock::Timestamp;
use crate::config::settings::EnrichUnionids;
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, OpenId, TableName, Values};
use crate::engine::{Engine, Param, Params, Session, TableSource};
use crate::ledger::SnapshotRecord;
use crate::stage::news::Changed;
use crate::wechat::{Endpoint, WeChatError};

/// When the day's calls are used up, and it is so long at most until there are new ones, the run waits for them.
pub const WORTH_WAITING: TimeDelta = TimeDelta::minutes(30);
/// Refused openids that are asked for one by one; of more than that it is not the openids that are bad.
const MOST_SINGLY: u64 = 200;
/// The key of the stage's detail with the accounts of which the operator is to say whether they were bound anew.
pub const REBOUND: &str = "rebound";
/// Openids in one call (WeChat's own limit).
pub const BATCH: usize = 100;

/// Asks for what is missing in every account of the stage; one that fails keeps its old rows, and its answers for the next run.
///
/// # Errors
///
/// [`StageError`] when the ledger, the lake or the engine failed.
pub async fn run(cx: &StageContext<'_>, plan: &EnrichUnionids) -> Result<StageOutcome, StageError> {
    let mut report = StageReport::default();
    let mut waiting: Option<(Option<Timestamp>, String)> = None;
    let mut parts = Vec::new();
    let mut accounts = Vec::new();
    let mut rebound = Vec::new();
    let mut shares = Shares::of(cx, plan).await?;
    for account in &plan.accounts {
        if let Some(failed) = moved::failed(cx, account).await? {
            report.failed_slices.push(failed);
            continue;
        }
        let budget = shares.next(&cx.calls, known(cx, account).await?);
        match one_account(cx, plan, account, budget).await {
            Ok(done) => {
                report.rows_in += done.asked;
                report.rows_out += done.snapshot.rows;
                parts.extend(done.part_ids);
                accounts.push(json!({
                    "account": account.as_str(), "asked": done.asked, "with_unionid": done.with_unionid,
                    "not_asked": done.not_asked, "quarantined": done.quarantined, "unconfirmed": done.unconfirmed,
                    "quota_spent": done.spent.map(Endpoint::as_str), "discarded": done.discarded, "in_doubt": done.in_doubt,
                }));
                report.snapshots.push(done.snapshot);
                report.snapshots.extend(done.changes);
                report.accepted.extend(done.accepted);
            }
            Err(StageError::WeChat(WeChatError::QuotaSpent { until, endpoint, .. })) => {
                let reason = format!("the day's {} calls of account `{account}` are used up", endpoint.as_str());
                waiting = Some((Some(until), reason));
            }
            Err(StageError::Rebound { why, is_certain }) => {
                tracing::error!(account = %account, "{why}");
                if is_certain {
                    rebound.push(account.as_str());
                }
                report.failed_slices.push(FailedSlice { slice: account.to_string(), why, is_transient: false });
            }
            Err(StageError::WeChat(error)) => {
                report.failed_slices.push(FailedSlice::of_account(account, &error, describe(&error)));
            }
            Err(error) => return Err(error),
        }
    }
    report.detail = json!({ "accounts": accounts, "profile_parts": parts });
    if !rebound.is_empty() {
        report.detail[REBOUND] = json!(rebound);
    }
    match waiting {
        Some((until, reason)) => Ok(StageOutcome::Waiting { until, reason, report }),
        None => Ok(StageOutcome::Done(report)),
    }
}

struct Enriched {
    asked: u64,
    with_unionid: u64,
    not_asked: u64,
    quarantined: u64,
    unconfirmed: u64,
    spent: Option<Endpoint>,
    /// Batches whose answer was worth nothing, and people who are asked for in smaller ones on the next night.
    discarded: u64,
    in_doubt: u64,
    accepted: Option<String>,
    part_ids: Vec<i64>,
    snapshot: SnapshotRecord,
    changes: Option<SnapshotRecord>,
}

async fn one_account(
    cx: &StageContext<'_>,
    plan: &EnrichUnionids,
    account: &AccountName,
    budget: Budget,
) -> Result<Enriched, StageError> {
    let turn = Turn::wait(cx, &turn_name(account)).await?;
    turn.hold(alone(cx, plan, account, budget)).await
}

/// What is fetched and not merged yet is the account's, not the run's: one at a time asks, merges, or drops it.
pub fn turn_name(account: &AccountName) -> String {
    format!("details:{account}")
}

async fn alone(
    cx: &StageContext<'_>,
    plan: &EnrichUnionids,
    account: &AccountName,
    budget: Budget,
) -> Result<Enriched, StageError> {
    let table = cx.stage.table.as_ref().expect("an enrich stage has a table");
    let asked_ahead = cx.ahead.and_then(|ahead| ahead.take(account));
    if asked_ahead.is_none() {
        drop_cut_short(cx, account).await?;
    }
    let inputs = Inputs::gather(cx, plan, table, account).await?;
    let (mut tally, whole_walk) = match asked_ahead {
        Some(AskedAhead { mut tally, whole_walk }) => {
            tally.budget = budget;
            (tally, whole_walk)
        }
        None => (Tally::new(&cx.hands.lake, budget, inputs.fetched.parts.is_empty()), None),
    };
    if !is_whole(cx, account, &inputs, whole_walk).await? {
        ask(cx, account, &inputs, &mut tally).await?;
    }
    let parts = cx.hands.ledger.profile_parts(account).await?;
    let merged = merge::merge(cx, table, account, &inputs, (&parts, &mut tally)).await?;
    // With those of single calls that the merge made.
    let parts = cx.hands.ledger.profile_parts(account).await?;
    if let Some(endpoint) = tally.spent {
        tracing::warn!(
            account = %account, people = merged.not_asked,
            "the day's {} calls of account `{account}` are used up: {} followers are not asked yet, the next night goes on",
            endpoint.as_str(), merged.not_asked
        );
    }
    if tally.in_doubt > 0 {
        tracing::warn!(
            account = %account, people = tally.in_doubt, batches = tally.discarded,
            "no call is left for {} followers whose batch could not be believed: they go first on the next night, in small batches of \
             their own", tally.in_doubt
        );
    }
    Ok(Enriched {
        asked: tally.asked,
        with_unionid: merged.with_unionid,
        not_asked: merged.not_asked,
        quarantined: merged.quarantined,
        unconfirmed: tally.unconfirmed,
        spent: tally.spent,
        discarded: tally.discarded,
        in_doubt: tally.in_doubt,
        accepted: tally.accepted,
        part_ids: parts.into_iter().map(|(id, _)| id).collect(),
        snapshot: merged.profiles,
        changes: merged.changes,
    })
}

async fn known(cx: &StageContext<'_>, account: &AccountName) -> Result<Known, StageError> {
    let table = cx.stage.table.as_ref().expect("an enrich stage has a table");
    Ok(Known {
        has_profiles: cx.visible.slice(table.as_str(), account.as_str()).is_some(),
        has_answers: !cx.hands.ledger.profile_parts(account).await?.is_empty(),
    })
}

/// Takes back parts that an earlier run recorded and a power cut kept from the disk: their people are asked for again.
async fn drop_cut_short(cx: &StageContext<'_>, account: &AccountName) -> Result<(), StageError> {
    let (ledger, lake) = (&cx.hands.ledger, &cx.hands.lake);
    let parts = ledger.profile_parts(account).await?;
    let short: Vec<i64> = parts.into_iter().filter(|(_, path)| !lake.is_whole(path)).map(|(id, _)| id).collect();
    if !short.is_empty() {
        tracing::warn!(account = %account, parts = short.len(), "{} parts of fetched profiles are not whole: asking again", short.len());
        ledger.drop_profile_parts(&short).await?;
    }
    Ok(())
}

/// Whether the followers are exactly those of the walk that everybody was asked of: no event has come between.
async fn is_whole(
    cx: &StageContext<'_>,
    account: &AccountName,
    inputs: &Inputs,
    whole_walk: Option<i64>,
) -> Result<bool, StageError> {
    let Some(asked) = whole_walk else { return Ok(false) };
    let walk = cx.hands.ledger.open_walk(account).await?;
    let is_this = walk.is_some_and(|walk| walk.id == asked && walk.started_at == inputs.as_of);
    Ok(is_this && cx.hands.ledger.follower_marks(account, inputs.as_of).await?.is_empty())
}

/// The tables an account's enrichment reads.
pub(super) struct Inputs {
    pub followers: TableSource,
    pub profiles: TableSource,
    pub fetched: TableSource,
    /// How many follow the account or did.
    pub people: u64,
    pub as_of: Timestamp,
    pub stale: Stale,
    /// Whose rows of followers are not as they were when the profiles were merged; nothing where that is not known.
    pub changed: Option<Arc<Changed>>,
}

impl Inputs {
    async fn gather(
        cx: &StageContext<'_>,
        plan: &EnrichUnionids,
        table: &TableName,
        account: &AccountName,
    ) -> Result<Self, StageError> {
        let lake = &cx.hands.lake;
        let followers_spec = table_spec("followers").expect("followers is declared");
        let profiles_spec = table_spec("profiles").expect("profiles is declared");
        let followers = cx.visible.slice(plan.from.as_str(), account.as_str()).ok_or_else(|| {
            StageError::Rule(format!(
                "table `{}` has no rows of account `{account}` yet; run the stage that extracts them first",
                plan.from
            ))
        })?;
        let mut inputs = Self {
            people: followers.rows,
            as_of: followers.as_of,
            followers: cx.visible.slice_source(
                lake,
                (plan.from.as_str(), account.as_str()),
                "followers",
                followers_spec.sql_columns(),
            ),
            profiles: with_columns(
                cx.visible.slice_source(lake, (table.as_str(), account.as_str()), "profiles_before", Vec::new()),
                profiles_spec.sql_columns(),
            ),
            fetched: fetched_source(cx, account).await?,
            stale: Stale::at((cx.run.run_at, cx.run.today, cx.hands.settings.timezone), plan.refresh_after)
                .unless_since(cx.hands.ledger.rebound_at(account).await?),
            changed: None,
        };
        let profiles = cx.visible.slice(table.as_str(), account.as_str());
        if let (Some(profiles), Some(ahead)) = (profiles, cx.ahead) {
            inputs.changed = ahead.changed(account).filter(|changed| {
                // The profiles cover the followers that these changes are against, and nothing has come in between.
                changed.before == profiles.as_of
                    && changed.snapshot == followers.id
                    && inputs.followers.sql.is_none()
                    && inputs.fetched.parts.is_empty()
            });
        }
        Ok(inputs)
    }
}

/// A table as it is declared today: what a snapshot of before does not have is NULL.
fn with_columns(source: TableSource, declared: Vec<(String, String)>) -> TableSource {
    if source.parts.is_empty() {
        return TableSource { columns: declared, ..source };
    }
    let is_there = |name: &str| source.columns.iter().any(|(own, _)| own == name);
    if declared.iter().all(|(name, _)| is_there(name)) {
        return source;
    }
    let column = |(name, ty): &(String, String)| {
        if is_there(name) { name.clone() } else { format!("cast(null as {ty}) as {name}") }
    };
    let columns: Vec<String> = declared.iter().map(column).collect();
    let sql = format!("select {} from ({}) as older", columns.join(", "), source.select());
    TableSource { sql: Some(sql), columns: declared, ..source }
}

/// What was fetched and not merged yet, of this run or of one before it that did not come to its end.
pub(super) async fn fetched_source(cx: &StageContext<'_>, account: &AccountName) -> Result<TableSource, StageError> {
    let parts = cx.hands.ledger.profile_parts(account).await?;
    Ok(TableSource {
        name: "fetched".to_owned(),
        columns: part::schema().iter().map(|(name, ty)| ((*name).to_owned(), ty.sql().to_owned())).collect(),
        parts: parts.iter().map(|(_, path)| cx.hands.lake.absolute(path)).collect(),
        sql: None,
        are_alike: false,
    })
}

async fn ask(
    cx: &StageContext<'_>,
    account: &AccountName,
    inputs: &Inputs,
    tally: &mut Tally,
) -> Result<(), StageError> {
    let calls = tally.budget.left(&cx.calls).min(first::calls_left_today(cx, account).await?);
    let scarce = Scarce { calls, audience: first::audience(cx, account) };
    let in_doubt = cx.hands.ledger.openids_in_doubt(account).await?;
    let has_remembered = !in_doubt.is_empty();
    let needed = stream_needed(cx, inputs, (scarce, in_doubt)).await?;
    let total = tally.asked + needed.total;
    if has_remembered {
        tally.go_on_from(needed.pieces);
    }
    let ended = Asking::new(cx, account, tally, Some(total)).all(needed.batches, true).await;
    let read = needed.reader.await?;
    unless_spent(cx, tally, ended)?;
    read
}

/// When the day has no call left the rest is asked for on later nights, as when a run's own budget is spent. Where calls are
/// to be had again in a moment they are worth waiting for.
fn unless_spent(cx: &StageContext<'_>, tally: &mut Tally, asked: Result<(), StageError>) -> Result<(), StageError> {
    match asked {
        Err(StageError::WeChat(WeChatError::QuotaSpent { endpoint, until }))
            if until - cx.hands.clock.now() > WORTH_WAITING =>
        {
            tally.spent = Some(endpoint);
            Ok(())
        }
        asked => asked,
    }
}

/// Who needs asking.
struct Needed {
    /// How many they are, those of `pieces` among them.
    total: u64,
    /// Those who were in doubt on an earlier night, in batches of their own.
    pieces: Vec<Vec<OpenId>>,
    batches: mpsc::Receiver<Vec<OpenId>>,
    reader: tokio::task::JoinHandle<Result<(), StageError>>,
}

/// Batches of openids that need asking, read by the engine on a thread of its own while calls are under way.
async fn stream_needed(
    cx: &StageContext<'_>,
    inputs: &Inputs,
    (scarce, in_doubt): (Scarce, Vec<Vec<OpenId>>),
) -> Result<Needed, StageError> {
    let (send, batches) = mpsc::channel::<Vec<OpenId>>(64);
    let (tell_total, total) = tokio::sync::oneshot::channel();
    // Looking at few joins few; else it is everybody with everybody.
    let engine: Engine =
        if inputs.changed.is_some() { cx.hands.sparing_engine() } else { cx.hands.joining_engine(inputs.people) };
    let (followers, mut profiles, fetched) =
        (inputs.followers.clone(), inputs.profiles.clone(), inputs.fetched.clone());
    let mut params = inputs.stale.params();
    params.insert("walked_at".to_owned(), Param::Timestamp(inputs.as_of));
    let changed = inputs.changed.as_ref().map(|changed| narrow::source(&cx.hands.lake, changed));
    let (lake, fresh_from) = (cx.hands.lake.clone(), inputs.stale.fresh_from());
    let reader = tokio::task::spawn_blocking(move || {
        let session = engine.session()?;
        let is_near = changed.is_some();
        let is_first = profiles.parts.is_empty() && fetched.parts.is_empty();
        if let Some(changed) = changed.as_ref().filter(|_| profiles.sql.is_none()) {
            let of = (changed, &params, fresh_from);
            profiles.parts = narrow::parts_that_could_tell(&session, &lake, &profiles.parts, of)?;
        }
        let tables = [followers, profiles, fetched];
        session.keep_footers(tables.iter().map(|table| table.parts.len()).sum())?;
        for table in &tables {
            session.add_table(table)?;
        }
        let pieces = pieces::still_needed(&session, &in_doubt)?;
        if let Some(changed) = &changed {
            narrow::to_who_may_need_asking(&session, (&tables[0], changed), &params)?;
        }
        let needed = if is_first { "select openid from followers where active" } else { NEEDED };
        let needed = pieces::without(needed, &pieces);
        let refusing = pieces::without(REFUSED, &pieces);
        // Nobody waits for the total any more when the caller was interrupted: the send below then ends this thread.
        let count = |sql: &str| session.count(&format!("select count(*) from ({sql})"), &params);
        let (total, refused) = (count(&needed)?, if is_first { 0 } else { count(&refusing)? });
        let in_pieces: u64 = pieces.iter().map(|piece| u64::try_from(piece.len()).unwrap_or(u64::MAX)).sum();
        let calls = u64::try_from(pieces.len()).unwrap_or(u64::MAX);
        let scarce = Scarce { calls: scarce.calls.saturating_sub(calls), ..scarce };
        let _ = tell_total.send((total + refused + in_pieces, pieces));
        let needed = if is_first { needed } else { scarce.ordered(&session, &needed, total)? };
        in_batches(&session, (&needed, &params), BATCH, &send)?;
        let size = if refused <= MOST_SINGLY { 1 } else { BATCH };
        if refused > 0 {
            in_batches(&session, (&refusing, &params), size, &send)?;
        }
        drop(session);
        if is_near {
            // The answers are merged by the same few rows: it is open when they are there.
            engine.open_ahead();
        }
        Ok(())
    });
    match total.await {
        Ok((total, pieces)) => Ok(Needed { total, pieces, batches, reader }),
        Err(_) => match reader.await? {
            Err(error) => Err(error),
            Ok(()) => Err(StageError::Interrupted),
        },
    }
}

/// Sends the openids of a SELECT in batches of `size`, as long as anybody wants them.
fn in_batches(
    session: &Session,
    (sql, params): (&str, &Params),
    size: usize,
    send: &mpsc::Sender<Vec<OpenId>>,
) -> Result<(), StageError> {
    let mut batch = Vec::with_capacity(size);
    session.stream::<StageError>(sql, params, |rows| {
        let [(_, Values::Text(openids))] = rows.columns.as_slice() else { return Ok(false) };
        for openid in openids.iter().flatten() {
            batch.push(OpenId::new(openid));
            if batch.len() == size && send.blocking_send(std::mem::take(&mut batch)).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    if !batch.is_empty() {
        // A closed channel means that nobody wants the rest.
        let _ = send.blocking_send(batch);
    }
    Ok(())
}
