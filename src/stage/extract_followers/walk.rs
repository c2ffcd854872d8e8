//! The walk itself: a page, which is put aside; its rows in the part that is being filled while the next page is on its way, and the
//! record of a part that is whole; until one of the shapes of the end.

use std::collections::HashSet;
use std::time::Duration;

use super::OPENIDS_A_PAGE;
use super::arrived::{self, Log};
use super::book::{Book, Ended, Seen, WrittenPart};
use super::roll::Exceptions;
use crate::domain::{AccountName, OpenId};
use crate::lake::LakeError;
use crate::ledger::{NewWalkPart, Walk, WalkPart};
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
}

impl Walked {
    fn of(walk: Walk, is_whole: bool, ended: Ended) -> Self {
        let Ended { is_distinct, exceptions } = ended;
        Self { walk, is_distinct, is_whole, exceptions }
    }
}

/// A walk that reached the end in an earlier process.
///
/// # Errors
///
/// [`StageError`] when its pages cannot be read.
pub(super) async fn ended(cx: &StageContext<'_>, mut walk: Walk) -> Result<Walked, StageError> {
    let pages = walk.pages;
    let book = readable(cx, &mut walk).await?;
    if walk.pages < pages {
        let account = walk.account.clone();
        return to_the_end(cx, &account, walk).await;
    }
    Ok(Walked::of(walk, true, book.end().await?))
}

/// Goes on with a walk to the end of the list, recording part after part.
///
/// # Errors
///
/// [`StageError`]; what has arrived stays for the next try.
pub(super) async fn to_the_end(
    cx: &StageContext<'_>,
    account: &AccountName,
    mut walk: Walk,
) -> Result<Walked, StageError> {
    let wechat = cx.wechat(account);
    take_back_cut_short(cx, &mut walk).await?;
    let book = readable(cx, &mut walk).await?;
    let (mut stepped_back, mut asked_again) = (false, 0);
    let mut is_whole = true;
    let (log, pages) = Log::open(&cx.hands.lake, &walk);
    let mut desk = Desk { walk, log, book: Some(book) };
    let Seen { mut cursors, mut largest } = desk.book.as_mut().map(Book::seen).unwrap_or_default();
    for page in &pages {
        desk.walk.total = total_told(desk.walk.total, page);
        largest = largest.max(count_of(page));
        cursors.extend(page.next_openid.as_ref().map(|next| next.as_str().to_owned()));
    }
    desk.keep_all(cx, pages).await?;
    if desk.walk.pages > 0 && desk.walk.next_openid.is_none() {
        // The page that ends the list is recorded; asking without a cursor would begin it anew.
        return desk.finish(cx, is_whole).await;
    }
    let mut arrived = None;
    loop {
        let cursor = desk.cursor(arrived.as_ref());
        let asking = async {
            tokio::select! {
                biased;
                () = cx.stop.cancelled() => None,
                answer = wechat.followers_page(cursor.as_ref()) => Some(answer),
            }
        };
        let (answer, kept) = tokio::join!(asking, desk.keep_all(cx, arrived.take()));
        kept?;
        let page = match answer {
            None => return Err(desk.break_off(cx, StageError::Interrupted).await),
            Some(Ok(page)) => page,
            Some(Err(error)) if error.errcode() == Some(BAD_OPENID) && desk.walk.pages > 0 => {
                desk = recover_cursor(cx, account, desk, &mut stepped_back).await?;
                cursors.clear();
                is_whole = desk.walk.pages == 0;
                continue;
            }
            Some(Err(error)) => return Err(desk.break_off(cx, error.into()).await),
        };
        let is_end = ends_walk(&page, cursor.as_ref(), &cursors);
        desk.walk.total = total_told(desk.walk.total, &page);
        largest = largest.max(count_of(&page));
        if is_end && let Some(short) = EarlyEnd::of(desk.walk.openids + count_of(&page), desk.walk.total, largest) {
            if asked_again < ASKED_AGAIN.len() {
                let pages = desk.walk.pages;
                tracing::warn!(account = %account, page = pages, "the list ended early, {short}: asking again");
                let pause = cx.pause(ASKED_AGAIN[asked_again]).await;
                asked_again += 1;
                match pause {
                    Ok(()) => continue,
                    Err(error) => return Err(desk.break_off(cx, error).await),
                }
            }
            if let Err(error) = short.judge(cx, account) {
                return Err(desk.break_off(cx, error).await);
            }
        }
        asked_again = 0;
        // A cursor that unfollows days later is another one.
        stepped_back &= page.openids.is_empty();
        if is_end {
            desk.keep_all(cx, Some(page).filter(|page| !page.openids.is_empty())).await?;
            return desk.finish(cx, is_whole).await;
        }
        cursors.extend(page.next_openid.as_ref().map(|next| next.as_str().to_owned()));
        arrived = Some(desk.put_aside(page).await?);
    }
}

/// A walk with its pages in hand: those that are put aside, written, and recorded.
struct Desk {
    /// With the pages that are written; the ledger has those of recorded parts.
    walk: Walk,
    log: Log,
    /// Missing only where writing failed, which ends the stage.
    book: Option<Book>,
}

impl Desk {
    async fn begin(cx: &StageContext<'_>, walk: Walk, log: Log) -> Result<Self, StageError> {
        let book = Some(Book::begin(cx, &walk).await?);
        Ok(Self { walk, log, book })
    }

    fn book(&mut self) -> Book {
        self.book.take().expect("whoever could not write does not go on")
    }

    /// What to ask for next, after a page that may be on its way still.
    fn cursor(&self, arrived: Option<&FollowerPage>) -> Option<OpenId> {
        arrived.map_or(&self.walk.next_openid, |page| &page.next_openid).clone()
    }

    /// Makes sure that a page need not be asked for again, whatever comes.
    async fn put_aside(&mut self, page: FollowerPage) -> Result<FollowerPage, StageError> {
        let (mut log, number) = (self.log.clone(), self.walk.pages + 1);
        let begins_part = self.book.as_ref().is_none_or(Book::begins_part);
        let putting = move || log.put(number, &page, begins_part).map(|()| (log, page));
        let (log, page) = tokio::task::spawn_blocking(putting).await??;
        self.log = log;
        Ok(page)
    }

    /// Writes pages, and records the parts that are whole with them.
    async fn keep_all(
        &mut self,
        cx: &StageContext<'_>,
        pages: impl IntoIterator<Item = FollowerPage>,
    ) -> Result<(), StageError> {
        for page in pages {
            let (count, next_openid) = (count_of(&page), page.next_openid.clone());
            let (book, whole) = self.book().write(page).await?;
            self.book = Some(book);
            self.walk.pages += 1;
            self.walk.openids += count;
            self.walk.next_openid = next_openid;
            record(cx, &self.walk, whole).await?;
            let total = self.walk.total.map(|total| total.div_ceil(OPENIDS_A_PAGE));
            cx.tell("pages", u64::from(self.walk.pages), total);
        }
        Ok(())
    }

    async fn record_rest(&mut self, cx: &StageContext<'_>) -> Result<(), StageError> {
        let (book, whole) = self.book().end_part().await?;
        self.book = Some(book);
        record(cx, &self.walk, whole).await
    }

    /// Whoever asks how far the walk is is told by the ledger: also of the pages of a part that is not full.
    async fn break_off(mut self, cx: &StageContext<'_>, why: StageError) -> StageError {
        match self.record_rest(cx).await {
            Ok(()) => why,
            Err(error) => error,
        }
    }

    async fn finish(mut self, cx: &StageContext<'_>, is_whole: bool) -> Result<Walked, StageError> {
        self.record_rest(cx).await?;
        let book = self.book();
        let mut walk = self.walk;
        arrived::remove(&cx.hands.lake, &walk)?;
        let now = cx.hands.clock.now();
        cx.hands.ledger.finish_walk(walk.id, now).await?;
        walk.finished_at = Some(now);
        let (account, pages) = (&walk.account, walk.pages);
        tracing::info!(account = %account, pages, rows = walk.openids, "walked {pages} pages of followers");
        let ended = book.end().await?;
        Ok(Walked::of(walk, is_whole, ended))
    }
}

/// A part that is whole is in the ledger, and whoever looks for people to ask for hears of it.
async fn record(cx: &StageContext<'_>, walk: &Walk, whole: Option<WrittenPart>) -> Result<(), StageError> {
    let Some(WrittenPart { first_page, last_page, path, openids, next_openid, total }) = whole else { return Ok(()) };
    let next_openid = next_openid.as_ref();
    let new = NewWalkPart { first_page, last_page, path: &path, openids, next_openid, total };
    cx.hands.ledger.record_walk_part(walk.id, new, cx.hands.clock.now()).await?;
    if let Some(news) = cx.news {
        news.tell(&walk.account, walk.id, last_page);
    }
    Ok(())
}

fn count_of(page: &FollowerPage) -> u64 {
    u64::try_from(page.openids.len()).unwrap_or(u64::MAX)
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
    fn of(collected: u64, total: Option<u64>, largest_page: u64) -> Option<Self> {
        let total = total?;
        let missing = total.saturating_sub(collected);
        let is_early = missing * 20 > total && missing >= largest_page.max(1);
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
    desk: Desk,
    stepped_back: &mut bool,
) -> Result<Desk, StageError> {
    let (ledger, lake) = (&cx.hands.ledger, &cx.hands.lake);
    let refused_after = desk.walk.pages;
    let mut walk = desk.walk;
    drop(desk.book);
    if !*stepped_back {
        *stepped_back = true;
        tracing::warn!(account = %account, page = refused_after, "the walk's cursor is not accepted any more: one page back");
        let mut recorded = ledger.walk_parts(walk.id).await?;
        if recorded.last().is_some_and(|last| last.last_page == refused_after) {
            // The others of its part are put aside still, most likely.
            ledger.step_back(walk.id).await?;
            recorded.pop();
        }
        go_to(&mut walk, &recorded);
        Log::take_back(lake, &walk, refused_after)?;
        let (log, pages) = Log::open(lake, &walk);
        let mut desk = Desk::begin(cx, walk, log).await?;
        desk.keep_all(cx, pages).await?;
        return Ok(desk);
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
    let (log, _) = Log::open(lake, &fresh);
    Desk::begin(cx, fresh, log).await
}

/// Takes a walk to where its recorded parts end.
fn go_to(walk: &mut Walk, parts: &[WalkPart]) {
    let last = parts.last();
    walk.pages = last.map_or(0, |part| part.last_page);
    walk.openids = parts.iter().map(|part| part.openids).sum();
    walk.next_openid = last.and_then(|part| part.next_openid.clone());
}

/// Forgets a walk with its files.
pub(super) async fn forget(cx: &StageContext<'_>, walk: &Walk) -> Result<(), StageError> {
    for part in cx.hands.ledger.walk_parts(walk.id).await? {
        cx.hands.lake.remove(&part.path)?;
    }
    arrived::remove(&cx.hands.lake, walk)?;
    Ok(cx.hands.ledger.drop_walk(walk.id).await?)
}

/// Takes back parts that an earlier run recorded and a power cut kept from the disk, with all after them.
async fn take_back_cut_short(cx: &StageContext<'_>, walk: &mut Walk) -> Result<(), StageError> {
    let parts = cx.hands.ledger.walk_parts(walk.id).await?;
    match parts.iter().position(|part| !cx.hands.lake.is_whole(&part.path)) {
        Some(whole) => take_back(cx, walk, (&parts, whole)).await,
        None => Ok(()),
    }
}

/// Takes back all recorded parts but the first few.
async fn take_back(
    cx: &StageContext<'_>,
    walk: &mut Walk,
    (parts, kept): (&[WalkPart], usize),
) -> Result<(), StageError> {
    for _ in kept..parts.len() {
        cx.hands.ledger.step_back(walk.id).await?;
    }
    walk.finished_at = None;
    go_to(walk, &parts[..kept]);
    tracing::warn!(account = %walk.account, page = walk.pages + 1, "recorded pages are not whole: walking on from before them");
    Ok(())
}

/// The book of a walk, once parts that cannot be read are taken back: nothing is lost with them but the calls.
async fn readable(cx: &StageContext<'_>, walk: &mut Walk) -> Result<Book, StageError> {
    loop {
        let damaged = match Book::begin(cx, walk).await {
            Err(StageError::Lake(LakeError::ReadRows { path, source })) => {
                tracing::warn!(account = %walk.account, path = %path.display(), error = %source, "a part of the walk is damaged");
                path
            }
            begun => return begun,
        };
        let parts = cx.hands.ledger.walk_parts(walk.id).await?;
        let Some(kept) = parts.iter().position(|part| cx.hands.lake.absolute(&part.path) == damaged) else {
            return Err(StageError::Rule(format!("{} cannot be read", damaged.display())));
        };
        take_back(cx, walk, (&parts, kept)).await?;
    }
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
        let early = |collected, total, largest_page: u64| EarlyEnd::of(collected, total, largest_page).is_some();
        assert!(early(20_000, Some(45_000), 10_000));
        assert!(!early(40_000, Some(45_000), 10_000), "no page is missing");
        assert!(!early(960_000, Some(1_000_000), 10_000), "a total that moves");
        assert!(!early(45_000, Some(40_000), 10_000) && !early(20_000, None, 10_000) && !early(0, Some(0), 0));
        assert!(early(0, Some(3), 0), "nobody of three");
    }
}
