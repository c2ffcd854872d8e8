//! Asking beside the walk: pages of a first walk go on into details while the next page is fetched.
//!
//! The way: the walk records a page, or several, and says so → their file is read, whoever was not met before is asked for → answers
//! become the same parts that the stage itself writes. Nothing new has to survive a crash: the pages and the parts are
//! there, and the stage asks for whoever is missing. Only where no profile is known yet, since then everybody needs
//! asking; later nights ask few, and the stage itself looks who.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::ask::{Asking, Tally};
use super::budget::Budget;
use super::share::{Known, Shares};
use super::{BATCH, turn_name};
use crate::config::settings::EnrichUnionids;
use crate::domain::{AccountName, Neighbours, OpenId, QuickSet, Texts};
use crate::stage::news::{Changed, Changes, WalkNews, WalkState};
use crate::stage::turns::Turn;
use crate::stage::{StageContext, StageError};

/// What was asked beside the walk, account by account.
#[derive(Default)]
pub struct Ahead {
    accounts: Mutex<BTreeMap<AccountName, AskedAhead>>,
    changes: Changes,
}

pub(super) struct AskedAhead {
    pub tally: Tally,
    /// The walk of which everybody was asked for.
    pub whole_walk: Option<i64>,
}

impl Ahead {
    /// With what the walks found changed when they had ended.
    pub fn with_changes(self, changes: Changes) -> Self {
        Self { changes, ..self }
    }

    /// Whose rows of followers are not as they were, where that is known.
    pub(super) fn changed(&self, account: &AccountName) -> Option<Arc<Changed>> {
        self.changes.get(account).cloned()
    }

    /// What was asked for an account; once.
    pub(super) fn take(&self, account: &AccountName) -> Option<AskedAhead> {
        self.accounts.lock().expect("nobody panics while holding it").remove(account)
    }
}

/// Asks for the followers of the walk that `news` tells of, until it has ended and they are asked. What fails here is no
/// failure yet: the stage meets it again.
pub async fn ask_ahead(cx: &StageContext<'_>, plan: &EnrichUnionids, news: &WalkNews) -> Ahead {
    let ahead = Ahead::default();
    let mut shares = Shares::equal(cx, plan);
    for account in &plan.accounts {
        let budget = shares.next_alone(&cx.calls, Known::NOTHING);
        match one_account(cx, account, budget, news).await {
            Ok(Some(asked)) => {
                ahead.accounts.lock().expect("nobody panics while holding it").insert(account.clone(), asked);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(account = %account, %error, "asking beside the walk broke off"),
        }
    }
    ahead
}

async fn one_account(
    cx: &StageContext<'_>,
    account: &AccountName,
    budget: Budget,
    news: &WalkNews,
) -> Result<Option<AskedAhead>, StageError> {
    let table = cx.stage.table.as_ref().expect("an enrich stage has a table");
    if cx.visible.slice(table.as_str(), account.as_str()).is_some() {
        return Ok(None);
    }
    let Some(turn) = Turn::now(cx.hands, &turn_name(account)).await? else { return Ok(None) };
    turn.hold(async {
        if !cx.hands.ledger.profile_parts(account).await?.is_empty() {
            return Ok(None);
        }
        let mut tally = Tally::new(&cx.hands.lake, budget, true);
        let (send, needed) = mpsc::channel(64);
        let asking = Asking::new(cx, account, &mut tally, None).all(needed, false);
        let (fed, asked) = tokio::join!(feed(cx, account, news, send), asking);
        let whole_walk = match (fed, asked) {
            (Ok(Fed { whole_walk, is_distinct }), Ok(())) => {
                tally.is_distinct &= is_distinct;
                whole_walk.filter(|_| tally.is_complete)
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::info!(account = %account, %error, "asking beside the walk broke off; it goes on after it");
                tally.is_complete = false;
                None
            }
        };
        Ok(Some(AskedAhead { tally, whole_walk }))
    })
    .await
}

struct Fed {
    whole_walk: Option<i64>,
    is_distinct: bool,
}

/// Hands on the people of all pages that are recorded, by the hundred.
async fn feed(
    cx: &StageContext<'_>,
    account: &AccountName,
    news: &WalkNews,
    needed: mpsc::Sender<Vec<OpenId>>,
) -> Result<Fed, StageError> {
    let mut batch = Vec::with_capacity(BATCH);
    let mut pages = Pages { cx, walk: None, read: 0, last: Texts::default(), neighbours: Neighbours::default() };
    let mut state = WalkState::default();
    let broken_off = Fed { whole_walk: None, is_distinct: true };
    while !state.has_ended {
        state = tokio::select! {
            state = news.other(account, state) => state,
            () = needed.closed() => return Ok(broken_off),
            () = cx.stop.cancelled() => return Ok(broken_off),
        };
        let Some(walk) = state.walk else { continue };
        if *pages.walk.get_or_insert(walk) != walk {
            // It started over. Whom that walk has that this one had not, the stage itself finds.
            return Ok(broken_off);
        }
        while pages.read < state.pages {
            for openid in pages.next().await? {
                batch.push(openid);
                if batch.len() < BATCH {
                    continue;
                }
                if needed.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).await.is_err() {
                    return Ok(broken_off);
                }
            }
        }
    }
    if !batch.is_empty() && needed.send(batch).await.is_err() {
        return Ok(broken_off);
    }
    Ok(Fed { whole_walk: pages.walk.filter(|_| state.is_whole), is_distinct: state.is_distinct })
}

/// The recorded pages of a walk, one after the other.
struct Pages<'a, 'b> {
    cx: &'a StageContext<'b>,
    walk: Option<i64>,
    /// The number of the last page that was read.
    read: u32,
    last: Texts,
    neighbours: Neighbours,
}

impl Pages<'_, '_> {
    /// The people of the next pages that are one file, without those of the file before: a list that changes while it is walked
    /// gives people near the edge of a page twice. Whoever comes twice from further away is asked for twice.
    async fn next(&mut self) -> Result<Vec<OpenId>, StageError> {
        let page = self.read_on().await?;
        let openids = if self.neighbours.are_new(page.iter().flatten()) {
            page.iter().flatten().map(OpenId::new).collect()
        } else {
            let mut met: QuickSet<&str> = self.last.iter().flatten().collect();
            page.iter().flatten().filter(|openid| met.insert(openid)).map(OpenId::new).collect()
        };
        self.last = page;
        Ok(openids)
    }

    async fn read_on(&mut self) -> Result<Texts, StageError> {
        let walk = self.walk.expect("pages are read of a walk that was told of");
        let part = self.cx.hands.ledger.walk_part_after(walk, self.read).await?;
        let part =
            part.ok_or_else(|| StageError::Rule(format!("pages of the walk after {} were taken back", self.read)))?;
        self.read = part.last_page;
        let lake = self.cx.hands.lake.clone();
        Ok(tokio::task::spawn_blocking(move || lake.read_texts(&part.path, "openid")).await??)
    }
}
