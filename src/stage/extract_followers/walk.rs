//! The walk itself: a page, which is put aside; its file and its record while the next page is on its way; until one of the
//! shapes of the end.

use std::collections::HashSet;
use std::time::Duration;

use super::OPENIDS_A_PAGE;
use super::arrived;
use super::book::{Book, Ended, Joined};
use super::roll::Exceptions;
use crate::domain::{AccountName, OpenId};
use crate::ledger::{NewPage, Walk};
use crate::stage::{StageContext, StageError};
use crate::wechat::FollowerPage;

/// The code for an openid that is not of this account: in mid-walk, a cursor that unfollowed.
const BAD_OPENID: i64 = 40003;
/// A walk may start over this often before it is a failure.
const MOST_RESTARTS: u32 = 2;

/// How long to wait before an end that came too early is asked for again.
const ASKED_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// A walk that came to its end.
pub(super) struct Walked {
    pub walk: Walk,
    /// Nobody stands on two pages, and every page has the columns of the table.
    pub is_distinct: bool,
    /// No page was taken back.
    pub is_whole: bool,
    /// Where it differs from the list of the snapshot before; nothing where there is none, or too much differs.
    pub exceptions: Option<Exceptions>,
    /// Parts of the table that were joined of pages already.
    pub joined: Joined,
}

impl Walked {
    fn of(walk: Walk, is_whole: bool, ended: Ended) -> Self {
        let Ended { is_distinct, exceptions, joined } = ended;
        Self { walk, is_distinct, is_whole, exceptions, joined }
    }
}

/// A walk that reached the end in an earlier process.
///
/// # Errors
///
/// [`StageError`] when its pages cannot be read.
pub(super) async fn ended(cx: &StageContext<'_>, walk: Walk) -> Result<Walked, StageError> {
    let ended = Book::begin(cx, &walk).await?.end().await?;
    Ok(Walked::of(walk, true, ended))
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
    take_back_cut_short(cx, &mut walk).await?;
    let mut cursors: HashSet<String> = HashSet::new();
    let mut largest = 0;
    for page in ledger.walk_pages(walk.id).await? {
        largest = largest.max(usize::try_from(page.count).unwrap_or(usize::MAX));
        cursors.extend(page.next_openid.map(|cursor| cursor.as_str().to_owned()));
    }
    let (mut stepped_back, mut asked_again) = (false, 0);
    let mut book = Book::begin(cx, &walk).await?;
    let mut is_whole = true;
    let mut arrived = arrived::find(&cx.hands.lake, &walk);
    if let Some(page) = &arrived {
        largest = largest.max(page.openids.len());
        cursors.extend(page.next_openid.as_ref().map(|next| next.as_str().to_owned()));
        walk.next_openid.clone_from(&page.next_openid);
    }
    if walk.pages > 0 && walk.next_openid.is_none() {
        // The page that ends the list is recorded; asking without a cursor would begin it anew.
        return finish(cx, walk, book, is_whole).await;
    }
    loop {
        let cursor = walk.next_openid.clone();
        let asking = async {
            tokio::select! {
                biased;
                () = cx.stop.cancelled() => None,
                answer = wechat.followers_page(cursor.as_ref()) => Some(answer),
            }
        };
        let keeping = async {
            match arrived.take() {
                Some(page) => keep(cx, &mut walk, book, &page).await,
                None => Ok(book),
            }
        };
        let (answer, kept) = tokio::join!(asking, keeping);
        book = kept?;
        let page = match answer.ok_or(StageError::Interrupted)? {
            Ok(page) => page,
            Err(error) if error.errcode() == Some(BAD_OPENID) && walk.pages > 0 => {
                walk = recover_cursor(cx, account, walk, &mut stepped_back).await?;
                cursors.clear();
                book = Book::begin(cx, &walk).await?;
                is_whole = walk.pages == 0;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let is_end = ends_walk(&page, cursor.as_ref(), &cursors);
        walk.total = total_told(walk.total, &page);
        largest = largest.max(page.openids.len());
        let collected = walk.openids + u64::try_from(page.openids.len()).unwrap_or(u64::MAX);
        if is_end && let Some(short) = EarlyEnd::of(collected, walk.total, largest) {
            if asked_again < ASKED_AGAIN.len() {
                tracing::warn!(account = %account, page = walk.pages, "the list ended early, {short}: asking again");
                cx.pause(ASKED_AGAIN[asked_again]).await?;
                asked_again += 1;
                continue;
            }
            short.judge(cx, account)?;
        }
        asked_again = 0;
        // A cursor that unfollows days later is another one.
        stepped_back &= page.openids.is_empty();
        if is_end {
            if !page.openids.is_empty() {
                book = keep(cx, &mut walk, book, &page).await?;
            }
            return finish(cx, walk, book, is_whole).await;
        }
        cursors.extend(page.next_openid.as_ref().map(|next| next.as_str().to_owned()));
        walk.next_openid.clone_from(&page.next_openid);
        arrived = Some(put_aside(cx, &walk, page).await?);
    }
}

async fn finish(cx: &StageContext<'_>, mut walk: Walk, book: Book, is_whole: bool) -> Result<Walked, StageError> {
    arrived::remove(&cx.hands.lake, &walk)?;
    let now = cx.hands.clock.now();
    cx.hands.ledger.finish_walk(walk.id, now).await?;
    walk.finished_at = Some(now);
    let (account, pages) = (&walk.account, walk.pages);
    tracing::info!(account = %account, pages, rows = walk.openids, "walked {pages} pages of followers");
    let ended = book.end().await?;
    Ok(Walked::of(walk, is_whole, ended))
}

/// Makes sure that a page need not be asked for again, whatever comes.
async fn put_aside(cx: &StageContext<'_>, walk: &Walk, page: FollowerPage) -> Result<FollowerPage, StageError> {
    let (lake, walk) = (cx.hands.lake.clone(), walk.clone());
    Ok(tokio::task::spawn_blocking(move || arrived::put(&lake, &walk, &page).map(|()| page)).await??)
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

/// How many followers WeChat counts, by this page and those before. A page with nobody on it may say anything: whether the list
/// ends with it is judged by the larger count, so that one wrong answer does not make everybody behind it leave.
fn total_told(before: Option<u64>, page: &FollowerPage) -> Option<u64> {
    if page.openids.is_empty() { page.total.max(before) } else { page.total.or(before) }
}

/// A list that ended long before the number of followers that WeChat told with it.
///
/// `total` moves while a list is walked and never ends a walk; but a page that came back empty by mistake looks like the
/// end, and everybody behind it would be marked as gone.
#[derive(Debug, Clone, Copy, PartialEq)]
struct EarlyEnd {
    collected: u64,
    total: u64,
}

impl EarlyEnd {
    /// Short by a twentieth, and by more than a page, which is the least that an empty page can hide.
    fn of(collected: u64, total: Option<u64>, largest_page: usize) -> Option<Self> {
        let total = total?;
        let missing = total.saturating_sub(collected);
        let is_early = missing * 20 > total && missing >= u64::try_from(largest_page.max(1)).unwrap_or(u64::MAX);
        is_early.then_some(Self { collected, total })
    }

    /// Still short after all tries: up to a fifth it is `total` that is wrong; beyond that the operator says.
    fn judge(self, cx: &StageContext<'_>, account: &AccountName) -> Result<(), StageError> {
        let missing = self.total - self.collected;
        if missing * 5 <= self.total || cx.accepts_drop {
            tracing::warn!(account = %account, "the list ended early again, {self}: taken as the end");
            return Ok(());
        }
        Err(StageError::Rule(format!(
            "account `{account}`: WeChat ends the follower list early, {self}; nobody is marked as gone. The next run asks again \
             for what is missing; if the list is right, `lianbo run {} --accept-drop \"reason\"` takes it as it is",
            cx.run.pipeline
        )))
    }
}

impl std::fmt::Display for EarlyEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "after {} followers where WeChat counts {}", self.collected, self.total)
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
        arrived::remove(&cx.hands.lake, &walk)?;
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
    arrived::remove(&cx.hands.lake, walk)?;
    Ok(cx.hands.ledger.drop_walk(walk.id).await?)
}

/// Takes back pages that an earlier run recorded and a power cut kept from the disk, with all after them.
async fn take_back_cut_short(cx: &StageContext<'_>, walk: &mut Walk) -> Result<(), StageError> {
    let (ledger, lake) = (&cx.hands.ledger, &cx.hands.lake);
    let pages = ledger.walk_pages(walk.id).await?;
    let Some(whole) = pages.iter().position(|page| !lake.is_whole(&page.path)) else { return Ok(()) };
    tracing::warn!(account = %walk.account, page = whole + 1, "recorded pages are not whole: walking on from before them");
    for _ in whole..pages.len() {
        ledger.step_back(walk.id).await?;
    }
    let whole = &pages[..whole];
    walk.pages = u32::try_from(whole.len()).unwrap_or(u32::MAX);
    walk.openids = whole.iter().map(|page| page.count).sum();
    walk.next_openid = whole.last().and_then(|page| page.next_openid.clone());
    Ok(())
}

/// A page as a file, then in the ledger.
async fn keep(cx: &StageContext<'_>, walk: &mut Walk, book: Book, page: &FollowerPage) -> Result<Book, StageError> {
    let number = walk.pages + 1;
    let path = format!("work/walks/{}/{}/page-{number:05}.parquet", walk.account, walk.id);
    let count = u64::try_from(page.openids.len()).unwrap_or(u64::MAX);
    let book = book.write(number, &path, page.openids.clone()).await?;
    let new = NewPage { page: number, path: &path, count, next_openid: page.next_openid.as_ref(), total: page.total };
    cx.hands.ledger.record_page(walk.id, new, cx.hands.clock.now()).await?;
    walk.pages = number;
    walk.openids += count;
    if let Some(news) = cx.news {
        news.tell(&walk.account, walk.id, walk.pages);
    }
    cx.tell("pages", u64::from(walk.pages), walk.total.map(|total| total.div_ceil(OPENIDS_A_PAGE)));
    Ok(book)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_with_nobody_on_it_does_not_make_the_list_shorter() {
        let told = |before, total, openids: &[&str]| {
            let openids = openids.iter().copied().map(Some).collect();
            total_told(before, &FollowerPage { total, count: 0, openids, next_openid: None, is_last: true })
        };
        assert_eq!([told(Some(2_000), Some(0), &[]), told(Some(2_000), None, &[])], [Some(2_000); 2]);
        assert_eq!([told(None, Some(0), &[]), told(Some(5), Some(9), &[])], [Some(0), Some(9)]);
        assert_eq!([told(Some(2_000), Some(1_900), &["oA"]), told(Some(7), None, &["oA"])], [Some(1_900), Some(7)]);
    }

    #[test]
    fn a_list_is_cut_short_where_a_page_and_a_twentieth_of_it_are_missing() {
        let early = |collected, total, largest_page| EarlyEnd::of(collected, total, largest_page).is_some();
        assert!(early(20_000, Some(45_000), 10_000));
        assert!(!early(40_000, Some(45_000), 10_000), "no page is missing");
        assert!(!early(960_000, Some(1_000_000), 10_000), "a total that moves");
        assert!(!early(45_000, Some(40_000), 10_000) && !early(20_000, None, 10_000) && !early(0, Some(0), 0));
        assert!(early(0, Some(3), 0), "nobody of three");
    }
}
