//! Asking what openids have become: a hundred a call, some calls side by side, their answers recorded in the order of the list.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio_util::task::AbortOnDropHandle;

use super::Moving;
use super::report::Stop;
use crate::domain::{ColumnType, OpenId};
use crate::ledger::{AccountMove, MovedRow};
use crate::stage::StageError;
use crate::wechat::{CallCounts, WeChat, WeChatError};

/// Openids in one call: WeChat's own limit.
const BATCH: usize = 100;
/// Calls side by side: what a process that is killed asks for once more.
const IN_FLIGHT: usize = 4;
/// Of the list in memory at a time.
const CHUNK: usize = 5_000;
/// One of a batch is no openid at all.
const BAD_OPENID: i64 = 40003;

/// How the asking ended.
pub(super) struct Asked {
    pub stop: Option<Stop>,
    pub calls: BTreeMap<String, u64>,
}

/// Asks for everybody on the list who is not answered for.
///
/// # Errors
///
/// [`StageError::WeChat`], [`StageError::Interrupted`]; what was recorded stays.
pub(super) async fn ask(moving: &Moving<'_>, mut own: AccountMove) -> Result<(AccountMove, Asked), StageError> {
    let calls = Arc::new(CallCounts::default());
    let wechat = moving.hands().wechat(&own.account).counting(calls.clone());
    let mut stop = None;
    while own.asked < own.people && stop.is_none() {
        let people = some_of_list(moving, &own).await?;
        // Tasks of their own: a call that is counted in a transaction must not stand still while answers are recorded.
        let call = |batch: &[OpenId]| {
            let (wechat, from, batch) = (wechat.clone(), own.from_app_id.clone(), batch.to_vec());
            AbortOnDropHandle::new(tokio::spawn(async move { outcomes(&wechat, &from, &batch).await }))
        };
        let mut answers = stream::iter(people.chunks(BATCH)).map(call).buffered(IN_FLIGHT);
        let mut batches = people.chunks(BATCH);
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = moving.stop().cancelled() => return Err(StageError::Interrupted),
            };
            let (Some(answer), Some(batch)) = (answer, batches.next()) else { break };
            let answered = match answer? {
                Ok(answered) => answered,
                Err(WeChatError::QuotaSpent { until, endpoint, .. }) => {
                    let reason = format!(
                        "the day's {endpoint} calls of account `{}` are used up: {} of {} openids are asked for",
                        own.account, own.asked, own.people
                    );
                    stop = Some(Stop::Wait { until: Some(until), reason });
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let rows = rows(own.asked, batch, answered);
            moving.hands().ledger.record_moved(moving.lease, (own.id, own.asked), &rows).await?;
            own.asked += u64::try_from(rows.len()).unwrap_or(u64::MAX);
            moving.tell("openids", own.asked, own.people);
        }
    }
    Ok((own, Asked { stop, calls: calls.snapshot() }))
}

/// The next of the list, from the first who is not answered for.
async fn some_of_list(moving: &Moving<'_>, own: &AccountMove) -> Result<Vec<OpenId>, StageError> {
    let (lake, path) = (moving.hands().lake.clone(), own.list_path.clone());
    let from = usize::try_from(own.asked).unwrap_or(usize::MAX);
    let read = tokio::task::spawn_blocking(move || {
        let columns = [("openid", ColumnType::Text)];
        lake.read_rows(&path, &columns, from..from + CHUNK).map(|mut rows| rows.texts(0))
    });
    let openids: Vec<OpenId> = read.await??.iter().flatten().map(OpenId::new).collect();
    if openids.is_empty() {
        return Err(StageError::Rule(format!(
            "the list of whom to ask for ends at place {} of {}; `lianbo migrate {} --from {} --fresh` makes it anew",
            own.asked, own.people, own.account, own.from_app_id
        )));
    }
    Ok(openids)
}

/// What WeChat says of a batch. Where it takes one for no openid and tells nothing of the others, they are asked for in halves.
async fn outcomes(
    wechat: &WeChat,
    from: &str,
    batch: &[OpenId],
) -> Result<HashMap<OpenId, Result<OpenId, String>>, WeChatError> {
    let mut outcomes = HashMap::new();
    let mut pieces = vec![batch];
    while let Some(piece) = pieces.pop() {
        match wechat.moved_openids(from, piece).await {
            Ok(moved) => {
                for one in moved {
                    let outcome = match outcomes.remove(&one.old) {
                        Some(other) if other != one.outcome => Err("answered twice, each time otherwise".to_owned()),
                        _ => one.outcome,
                    };
                    outcomes.insert(one.old, outcome);
                }
            }
            Err(error) if error.errcode() == Some(BAD_OPENID) => match piece {
                [one] => {
                    outcomes.insert(one.clone(), Err(format!("{BAD_OPENID}")));
                }
                _ => pieces.extend(piece.chunks(piece.len().div_ceil(2))),
            },
            Err(error) => return Err(error),
        }
    }
    Ok(outcomes)
}

/// Matched by the openid, never by position.
fn rows(asked: u64, batch: &[OpenId], mut answered: HashMap<OpenId, Result<OpenId, String>>) -> Vec<MovedRow> {
    let outcome = |openid: &OpenId| answered.remove(openid).unwrap_or_else(|| Err("not answered for".to_owned()));
    let outcomes: Vec<_> = batch.iter().map(outcome).collect();
    let places = asked + 1..;
    let people = batch.iter().cloned().zip(outcomes);
    places.zip(people).map(|(place, (openid, outcome))| MovedRow { place, openid, outcome }).collect()
}
