//! The walk itself: a page, its file, its record, the next page, until one of the shapes of the end.

use std::collections::HashSet;

use crate::clock::{Timestamp, to_micros};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, OpenId, Texts};
use crate::lake::{Lake, LakeError, PartColumn};
use crate::ledger::{NewPage, Walk};
use crate::stage::{StageContext, StageError};
use crate::wechat::FollowerPage;

/// The code for an openid that is not of this account: in mid-walk, a cursor that unfollowed.
const BAD_OPENID: i64 = 40003;
/// A walk may start over this often before it is a failure.
const MOST_RESTARTS: u32 = 2;

/// A walk that came to its end.
pub(super) struct Walked {
    pub walk: Walk,
    /// Nobody stands on two pages, and every page has the columns of the table.
    pub is_distinct: bool,
    /// No page was taken back.
    pub is_whole: bool,
}

/// Goes on with a walk to the end of the list, recording page after page.
///
/// # Errors
///
/// [`StageError`]; what is recorded stays for the next try.
pub(super) async fn to_the_end(
    cx: &StageContext<'_>,
    account: &AccountName,
    mut walk: Walk,
) -> Result<Walked, StageError> {
    let wechat = cx.wechat(account);
    let ledger = &cx.hands.ledger;
    let mut cursors: HashSet<String> = HashSet::new();
    for page in ledger.walk_pages(walk.id).await? {
        cursors.extend(page.next_openid.map(|cursor| cursor.as_str().to_owned()));
    }
    let mut stepped_back = false;
    let mut met = cx.hands.lake.fingerprints();
    let (mut is_distinct, mut is_whole) = (walk.pages == 0, true);
    loop {
        if cx.stop.is_cancelled() {
            return Err(StageError::Interrupted);
        }
        let cursor = walk.next_openid.clone();
        let answer = tokio::select! {
            answer = wechat.followers_page(cursor.as_ref()) => answer,
            () = cx.stop.cancelled() => return Err(StageError::Interrupted),
        };
        let page = match answer {
            Ok(page) => page,
            Err(error) if error.errcode() == Some(BAD_OPENID) && walk.pages > 0 => {
                walk = recover_cursor(cx, account, walk, &mut stepped_back).await?;
                cursors.clear();
                met = cx.hands.lake.fingerprints();
                (is_distinct, is_whole) = (walk.pages == 0, walk.pages == 0);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let is_end = ends_walk(&page, cursor.as_ref(), &cursors);
        walk.total = page.total.or(walk.total);
        if !page.openids.is_empty() {
            page.openids.iter().flatten().for_each(|openid| met.note(openid));
            keep(cx, &mut walk, &page).await?;
            if let Some(news) = cx.news {
                news.tell(account, walk.id, walk.pages);
            }
        }
        cx.tell("pages", u64::from(walk.pages), walk.total.map(|total| total.div_ceil(10_000)));
        if is_end {
            let now = cx.hands.clock.now();
            ledger.finish_walk(walk.id, now).await?;
            walk.finished_at = Some(now);
            tracing::info!(account = %account, pages = walk.pages, rows = walk.openids, "walked {} pages of followers", walk.pages);
            return Ok(Walked { walk, is_distinct: is_distinct && met.are_distinct(), is_whole });
        }
        if let Some(next) = &page.next_openid {
            cursors.insert(next.as_str().to_owned());
        }
        walk.next_openid = page.next_openid;
    }
}

/// Whether this page is the last: empty, no cursor, the cursor just sent, or one seen earlier in this walk (a loop).
/// Never by a sum reaching `total`, which moves.
fn ends_walk(page: &FollowerPage, sent: Option<&OpenId>, seen: &HashSet<String>) -> bool {
    match &page.next_openid {
        None => true,
        Some(_) if page.openids.is_empty() => true,
        Some(next) => Some(next) == sent || seen.contains(next.as_str()),
    }
}

/// The cursor unfollowed: step back one page once, then start the walk over.
async fn recover_cursor(
    cx: &StageContext<'_>,
    account: &AccountName,
    mut walk: Walk,
    stepped_back: &mut bool,
) -> Result<Walk, StageError> {
    let ledger = &cx.hands.ledger;
    if !*stepped_back {
        *stepped_back = true;
        tracing::warn!(account = %account, page = walk.pages, "the walk's cursor is not accepted any more: one page back");
        ledger.step_back(walk.id).await?;
        let pages = ledger.walk_pages(walk.id).await?;
        walk.pages = u32::try_from(pages.len()).unwrap_or(u32::MAX);
        walk.openids = pages.iter().map(|page| page.count).sum();
        walk.next_openid = pages.last().and_then(|page| page.next_openid.clone());
        return Ok(walk);
    }
    if walk.restarts >= MOST_RESTARTS {
        return Err(StageError::Rule(format!(
            "account `{account}`: user/get refuses its own cursor (40003) again after {MOST_RESTARTS} fresh walks; try later"
        )));
    }
    let restarts = walk.restarts + 1;
    tracing::warn!(account = %account, restarts, "the walk starts over");
    forget(cx, &walk).await?;
    let mut fresh = ledger.begin_walk(account, &cx.run.run_id, cx.hands.clock.now()).await?;
    fresh.restarts = restarts;
    *stepped_back = false;
    Ok(fresh)
}

/// Forgets a walk with its files.
pub(super) async fn forget(cx: &StageContext<'_>, walk: &Walk) -> Result<(), StageError> {
    for page in cx.hands.ledger.walk_pages(walk.id).await? {
        cx.hands.lake.remove(&page.path)?;
    }
    Ok(cx.hands.ledger.drop_walk(walk.id).await?)
}

/// A page as a file, then in the ledger: the walk's checkpoint.
async fn keep(cx: &StageContext<'_>, walk: &mut Walk, page: &FollowerPage) -> Result<(), StageError> {
    let number = walk.pages + 1;
    let path = format!("work/walks/{}/{}/page-{number:05}.parquet", walk.account, walk.id);
    let count = u64::try_from(page.openids.len()).unwrap_or(u64::MAX);
    let (lake, account, openids) = (cx.hands.lake.clone(), walk.account.clone(), page.openids.clone());
    let (target, walked_at) = (path.clone(), walk.started_at);
    tokio::task::spawn_blocking(move || write_page(&lake, &target, &account, (&openids, walked_at))).await??;
    let new = NewPage { page: number, path: &path, count, next_openid: page.next_openid.as_ref(), total: page.total };
    cx.hands.ledger.record_page(walk.id, new, cx.hands.clock.now()).await?;
    walk.pages = number;
    walk.openids += count;
    Ok(())
}

/// With nothing before it, a page is as it stands a part of the table.
fn write_page(
    lake: &Lake,
    path: &str,
    account: &AccountName,
    (openids, walked_at): (&Texts, Timestamp),
) -> Result<(), LakeError> {
    let schema = table_spec("followers").expect("followers is declared").part_schema();
    let mut writer = lake.writer_of_ids(path, &schema)?;
    let walked_at = to_micros(walked_at);
    let columns = vec![
        ("account", PartColumn::Same(account.as_str())),
        ("openid", PartColumn::Texts(openids)),
        ("first_seen_at", PartColumn::SameTime(walked_at)),
        ("last_seen_at", PartColumn::SameTime(walked_at)),
        ("active", PartColumn::SameBoolean(true)),
    ];
    writer.write_columns(openids.len(), columns)?;
    writer.finish().map(|_| ())
}
