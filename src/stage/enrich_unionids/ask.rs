//! Asking: batches of a hundred `concurrency` wide, what they leave owed between them, answers gathered into parts.
//!
//! Each call is a task of its own, counted against the budget before it begins, and what its answer makes necessary
//! ([`Owed`]) goes before the next batch: a stop falls between two calls, and an answer is recorded as soon as it is
//! believed.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::budget::Budget;
use super::part::ProfilePart;
use super::spot::{GivenUp, Owed, Spot};
use super::{BATCH, pieces};
use crate::domain::{AccountName, OpenId};
use crate::lake::{Fingerprints, Lake, LakeError, WholeFile};
use crate::stage::{StageContext, StageError};
use crate::wechat::{Answer, Claim, Endpoint, ProfileBatch, ShortAnswer, WeChat, WeChatError};

/// A crash repeats at most so many calls for details: those in flight, those gathered, those being written; where so many or
/// nearly so many are in flight, those and two of the shortest parts.
const MOST_REPEATED: usize = 100;
/// Calls of the shortest part.
const SHORTEST_PART: usize = 16;
/// Parts that are written and recorded at a time; the next gathers meanwhile.
const WRITTEN_AT_ONCE: usize = 1;
/// Recorded parts on their way to the disk at a time: whoever gathers does not wait for it.
const MOST_SETTLING: usize = 8;
/// After a stop a call in flight has so long; then it is let go, as if it had never been made.
const SETTLE_LIMIT: Duration = Duration::from_secs(6);

/// What asking has told so far, also across the two times that a stage may ask (beside the walk, and after it).
pub(super) struct Tally {
    /// People whose answer came.
    pub asked: u64,
    pub with_unionid: u64,
    pub budget: Budget,
    /// Nobody stands twice in the parts.
    pub is_distinct: bool,
    /// Everybody who needed it was asked.
    pub is_complete: bool,
    /// Parts that were recorded.
    pub parts: usize,
    /// The calls of this endpoint were used up before all was asked: the rest is left to later nights.
    pub spent: Option<Endpoint>,
    /// People whose unionid is in doubt still: there was no call left to ask them singly.
    pub unconfirmed: u64,
    /// What the operator's `--accept-drop` let pass.
    pub accepted: Option<String>,
    /// Calls whose answer told of nobody.
    pub discarded: u64,
    /// People whom no call was left for after such an answer: they go first on the next night.
    pub in_doubt: u64,
    /// Whether any are remembered.
    has_remembered: bool,
    unionids: Fingerprints,
    batches: u64,
    spot: Spot,
}

impl Tally {
    /// `is_distinct`: nothing was fetched before by a run that did not come to its end.
    pub fn new(lake: &Lake, budget: Budget, is_distinct: bool) -> Self {
        Self {
            asked: 0,
            with_unionid: 0,
            budget,
            is_distinct,
            is_complete: false,
            parts: 0,
            spent: None,
            unconfirmed: 0,
            accepted: None,
            discarded: 0,
            in_doubt: 0,
            has_remembered: false,
            unionids: lake.fingerprints(),
            batches: 0,
            spot: Spot::default(),
        }
    }

    /// Each person once and no two of one unionid, among everything that was fetched: nothing to look for.
    pub fn is_plain(&mut self) -> bool {
        self.is_distinct && self.unionids.are_distinct()
    }

    /// Those whom an earlier night remembered go first.
    pub fn go_on_from(&mut self, pieces: Vec<Vec<OpenId>>) {
        self.has_remembered = true;
        self.spot.owed.extend(pieces.into_iter().map(Owed::Piece));
    }

    fn forget_answers(&mut self, people: usize) {
        self.asked = self.asked.saturating_sub(u64::try_from(people).unwrap_or(u64::MAX));
    }

    fn take(&mut self, answer: &ProfileBatch) {
        let people = answer.profiles.len() + answer.refused.len() + answer.unreadable.len();
        self.asked += u64::try_from(people).unwrap_or(u64::MAX);
        for unionid in answer.profiles.unionid.iter().flatten() {
            self.with_unionid += 1;
            self.unionids.note(unionid);
        }
    }
}

enum Done {
    /// Of several people by number, or of one.
    Asked(u64, Vec<OpenId>, Result<Answer, WeChatError>),
    Confirmed(u64, Claim, Result<bool, WeChatError>),
    /// Whether an answer that lacks people is right as far as it goes.
    Short(u64, Box<ShortAnswer>, Result<bool, WeChatError>),
    Again(OpenId, Result<ProfileBatch, WeChatError>),
}

pub(super) struct Asking<'a, 'b> {
    cx: &'a StageContext<'b>,
    account: &'a AccountName,
    wechat: WeChat,
    part: ProfilePart,
    calls: JoinSet<Done>,
    /// Answers that are not recorded, since another call must confirm them first.
    held: usize,
    /// A call failed: none is begun any more.
    failed: Option<WeChatError>,
    tally: &'a mut Tally,
    width: usize,
    calls_a_part: usize,
    total: Option<u64>,
    flushing: JoinSet<Result<WholeFile, StageError>>,
    /// Parts that are recorded and on their way to the disk.
    settling: JoinSet<Result<(), LakeError>>,
}

impl<'a, 'b> Asking<'a, 'b> {
    /// `total`: how many will be asked, as far as that is known.
    pub fn new(cx: &'a StageContext<'b>, account: &'a AccountName, tally: &'a mut Tally, total: Option<u64>) -> Self {
        let width = cx.hands.account(account).concurrency.max(1);
        let calls_a_part = (MOST_REPEATED.saturating_sub(width) / (WRITTEN_AT_ONCE + 1)).max(SHORTEST_PART);
        Self {
            cx,
            account,
            wechat: cx.wechat(account),
            part: ProfilePart::new(account.clone(), calls_a_part * BATCH),
            calls: JoinSet::new(),
            held: 0,
            failed: None,
            tally,
            width,
            calls_a_part,
            total,
            flushing: JoinSet::new(),
            settling: JoinSet::new(),
        }
    }

    /// Asks for all who come through `needed`, as far as the budget goes; what was answered is recorded, also when it
    /// ends in an error. `is_last`: nobody goes on with what stays owed then.
    pub async fn all(mut self, mut needed: mpsc::Receiver<Vec<OpenId>>, is_last: bool) -> Result<(), StageError> {
        let ended = self.until_none_is_left(&mut needed).await;
        // Whoever reads them for us ends with this.
        drop(needed);
        let is_cut_short = ended.is_err() || !self.tally.spot.owed.is_empty();
        let gives_up = is_cut_short && (is_last || self.cx.stop.is_cancelled());
        let given_up = if gives_up { self.put_doubtful_aside().await? } else { GivenUp::default() };
        self.remember(given_up).await?;
        self.tally.spot.forget_unrecorded();
        let flushed = self.flush().await;
        ended.and(flushed)
    }

    /// Asks singly for people whose unionid is in doubt, as far as the budget goes.
    pub async fn singly(mut self, people: Vec<OpenId>) -> Result<(), StageError> {
        // What is owed to batches was owed to get at the truth about these.
        self.tally.spot = Spot::default();
        self.tally.spot.owed.extend(people.into_iter().map(Owed::Again));
        let (_, mut nobody) = mpsc::channel(1);
        let ended = self.until_none_is_left(&mut nobody).await;
        // Whoever is left is found in doubt once more.
        self.tally.spot = Spot::default();
        let flushed = self.flush().await;
        ended.and(flushed)
    }

    async fn until_none_is_left(&mut self, needed: &mut mpsc::Receiver<Vec<OpenId>>) -> Result<(), StageError> {
        let (cx, stop) = (self.cx, self.cx.stop);
        let let_go = async {
            stop.cancelled().await;
            cx.hands.clock.sleep(SETTLE_LIMIT).await;
        };
        tokio::pin!(let_go);
        let mut has_more = true;
        loop {
            while self.may_begin()
                && let Some(owed) = self.tally.spot.owed.pop_front()
            {
                self.begin_owed(owed);
            }
            let may_ask = has_more && self.may_begin();
            tokio::select! {
                biased;
                Some(done) = self.calls.join_next() => self.note(done?).await?,
                batch = needed.recv(), if may_ask => match batch {
                    Some(batch) => self.begin(batch),
                    None => has_more = false,
                },
                () = stop.cancelled(), if may_ask => {}
                () = &mut let_go, if !self.calls.is_empty() => break,
                else => break,
            }
        }
        // What is still in flight has had its time.
        self.calls = JoinSet::new();
        if stop.is_cancelled() {
            return Err(StageError::Interrupted);
        }
        if let Some(error) = self.failed.take() {
            return Err(error.into());
        }
        self.tally.is_complete = !has_more && self.tally.spot.owed.is_empty();
        Ok(())
    }

    /// After a call that failed what is in flight still counts; what is owed stays owed.
    fn may_begin(&self) -> bool {
        let in_doubt = self.calls.len() + self.held;
        self.calls.len() < self.width
            && in_doubt < self.width + self.calls_a_part
            && self.failed.is_none()
            && !self.cx.stop.is_cancelled()
            && self.tally.budget.has_room(&self.cx.calls)
    }

    fn begin(&mut self, people: Vec<OpenId>) {
        let number = if people.len() > 1 { self.next_number() } else { 0 };
        self.ask_for(number, people);
    }

    /// A piece of a batch that could not be believed.
    fn begin_piece(&mut self, people: Vec<OpenId>) {
        if people.len() == 1 {
            return self.ask_for(0, people);
        }
        // No number next to its own is ever given: it has no neighbours.
        self.tally.batches += 1;
        let number = self.next_number();
        self.tally.batches += 1;
        self.tally.spot.stands_alone(number);
        self.ask_for(number, people);
    }

    fn ask_for(&mut self, number: u64, people: Vec<OpenId>) {
        self.tally.budget.begin(&self.cx.calls);
        let wechat = self.wechat.clone();
        self.calls.spawn(async move {
            let answer = wechat.profiles(&people).await;
            Done::Asked(number, people, answer)
        });
    }

    fn next_number(&mut self) -> u64 {
        self.tally.batches += 1;
        self.tally.batches
    }

    fn begin_owed(&mut self, owed: Owed) {
        let wechat = self.wechat.clone();
        match owed {
            Owed::Piece(people) => return self.begin_piece(people),
            Owed::Confirm { number, claim } => self.calls.spawn(async move {
                let answer = wechat.confirms(&claim).await;
                Done::Confirmed(number, claim, answer)
            }),
            Owed::Short { number, claim, short } => self.calls.spawn(async move {
                let answer = wechat.confirms(&claim).await;
                Done::Short(number, short, answer)
            }),
            Owed::Again(openid) => self.calls.spawn(async move {
                let answer = wechat.single(&openid).await;
                Done::Again(openid, answer)
            }),
        };
        self.tally.budget.begin(&self.cx.calls);
    }

    /// Takes what came of one call.
    async fn note(&mut self, done: Done) -> Result<(), StageError> {
        match done {
            Done::Asked(number, asked, Ok(Answer::Whole(answer))) => self.believe(number, asked, &answer).await,
            Done::Asked(_, _, Ok(Answer::Split(pieces))) => {
                self.tally.discarded += 1;
                self.tally.spot.owed.extend(pieces.into_iter().map(Owed::Piece));
                Ok(())
            }
            Done::Asked(number, _, Ok(Answer::Short(mut short))) => match short.claim.take() {
                Some(claim) => {
                    self.held += 1;
                    self.tally.spot.owed.push_back(Owed::Short { number, claim, short: Box::new(short) });
                    self.flush_when_full().await
                }
                None => self.believe_short(number, short).await,
            },
            Done::Short(number, short, Ok(true)) => {
                self.held -= 1;
                self.believe_short(number, *short).await
            }
            Done::Short(_, short, Ok(false)) => {
                self.held -= 1;
                self.ask_singly(short.told.into_iter().chain(short.missing));
                Ok(())
            }
            Done::Confirmed(number, claim, Ok(is_true)) => {
                let is_piece = self.tally.spot.is_piece(number);
                let wrong = self.tally.spot.judge(number, &claim, is_true);
                if is_piece {
                    // They count when they are told of.
                    self.tally.forget_answers(wrong.len());
                }
                if wrong.is_empty() { Ok(()) } else { self.take_back(wrong).await }
            }
            Done::Again(_, Ok(answer)) => self.gather(&answer).await,
            Done::Confirmed(number, claim, Err(error)) => self.fail(error, Some(Owed::Confirm { number, claim })),
            Done::Again(openid, Err(error)) => self.fail(error, Some(Owed::Again(openid))),
            Done::Asked(_, _, Err(error)) | Done::Short(_, _, Err(error)) => self.fail(error, None),
        }
    }

    /// What is owed stays owed, to whoever asks after this; of people who are in no part it is found anew.
    fn fail(&mut self, error: WeChatError, owed: Option<Owed>) -> Result<(), StageError> {
        self.tally.spot.owed.extend(owed);
        self.failed.get_or_insert(error);
        Ok(())
    }

    async fn believe(&mut self, number: u64, asked: Vec<OpenId>, answer: &ProfileBatch) -> Result<(), StageError> {
        let people = u64::try_from(asked.len()).unwrap_or(u64::MAX);
        // The answer to one is never shifted.
        if people == 1 || self.tally.spot.note(number, asked, answer) {
            return self.take(answer).await;
        }
        self.tally.asked += people;
        Ok(())
    }

    async fn believe_short(&mut self, number: u64, short: ShortAnswer) -> Result<(), StageError> {
        self.ask_singly(short.missing);
        self.believe(number, short.told, &short.batch).await
    }

    fn ask_singly(&mut self, people: impl IntoIterator<Item = OpenId>) {
        self.tally.spot.owed.extend(people.into_iter().map(|openid| Owed::Piece(vec![openid])));
    }

    /// Answers that a spot check found wrong: put aside on the disk, so that a crash believes them no more than we do.
    async fn take_back(&mut self, wrong: Vec<OpenId>) -> Result<(), StageError> {
        tracing::warn!(
            account = %self.account, people = wrong.len(),
            "a batch gave somebody another's unionid: asking again for {} people", wrong.len()
        );
        self.tally.is_distinct = false;
        self.tally.discarded += 1;
        self.put_aside(wrong).await
    }

    /// Whoever is in doubt and could not be looked at is not believed; gives them.
    async fn put_doubtful_aside(&mut self) -> Result<GivenUp, StageError> {
        let given_up = self.tally.spot.give_up();
        let batches = given_up.suspects.iter().chain(&given_up.batches).flatten();
        let people: Vec<OpenId> = given_up.loose.iter().chain(batches).cloned().collect();
        if !people.is_empty() {
            self.tally.is_distinct = false;
            self.tally.forget_answers(people.len());
            self.put_aside(people).await?;
        }
        Ok(given_up)
    }

    /// Remembers for whoever asks next, on this night or another, whom no call was left for.
    async fn remember(&mut self, given_up: GivenUp) -> Result<(), StageError> {
        let cut = self.tally.spot.unanswered().into_iter().chain(given_up.batches).collect();
        let pieces = pieces::remembered(cut, &given_up.suspects, &given_up.loose);
        if pieces.is_empty() && !self.tally.has_remembered {
            return Ok(());
        }
        self.tally.has_remembered = !pieces.is_empty();
        self.tally.in_doubt = pieces.iter().map(|piece| u64::try_from(piece.len()).unwrap_or(u64::MAX)).sum();
        Ok(self.cx.hands.ledger.keep_openids_in_doubt(self.account, &pieces).await?)
    }

    async fn put_aside(&mut self, people: Vec<OpenId>) -> Result<(), StageError> {
        let aside = ProfileBatch { unreadable: people, ..ProfileBatch::default() };
        self.part.add(&aside, self.cx.hands.clock.now());
        self.flush().await
    }

    async fn take(&mut self, answer: &ProfileBatch) -> Result<(), StageError> {
        self.tally.take(answer);
        self.cx.tell("details", self.tally.asked, self.total);
        self.gather(answer).await
    }

    async fn gather(&mut self, answer: &ProfileBatch) -> Result<(), StageError> {
        self.part.add(answer, self.cx.hands.clock.now());
        self.flush_when_full().await
    }

    async fn flush_when_full(&mut self) -> Result<(), StageError> {
        if self.part.calls() + self.held >= self.calls_a_part { self.begin_flush().await } else { Ok(()) }
    }

    /// Writes the gathered answers and records them while the next are asked for, a few parts at a time.
    async fn begin_flush(&mut self) -> Result<(), StageError> {
        self.end_flushes(WRITTEN_AT_ONCE - 1).await?;
        self.end_settling(MOST_SETTLING).await?;
        if self.part.is_empty() {
            return Ok(());
        }
        let next = ProfilePart::new(self.account.clone(), self.calls_a_part * BATCH);
        let full = std::mem::replace(&mut self.part, next);
        let (hands, account) = (self.cx.hands.clone(), self.account.clone());
        let path = format!("work/profiles/{account}/{}.parquet", self.cx.new_file_name());
        self.flushing.spawn(async move {
            let lake = hands.lake.clone();
            let (part, file) = tokio::task::spawn_blocking(move || full.write_soon(&lake, &path)).await??;
            let now = hands.clock.now();
            hands.ledger.record_profile_part(&account, &part.path, part.rows, now).await?;
            Ok(file)
        });
        Ok(())
    }

    /// Waits until no more than `left` parts are being written.
    async fn end_flushes(&mut self, left: usize) -> Result<(), StageError> {
        while self.flushing.len() > left {
            let Some(flushed) = self.flushing.join_next().await else { break };
            let file = flushed??;
            self.tally.parts += 1;
            self.settling.spawn_blocking(move || file.make_durable());
        }
        Ok(())
    }

    /// Waits until no more than `left` of the recorded parts are on their way to the disk.
    async fn end_settling(&mut self, left: usize) -> Result<(), StageError> {
        while self.settling.len() > left {
            let Some(settled) = self.settling.join_next().await else { break };
            settled??;
        }
        Ok(())
    }

    /// Writes and records everything that is gathered, after everything that was gathered before; all of it is durable then.
    async fn flush(&mut self) -> Result<(), StageError> {
        self.end_flushes(0).await?;
        self.begin_flush().await?;
        self.end_flushes(0).await?;
        self.end_settling(0).await
    }
}
