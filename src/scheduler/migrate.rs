//! An account that was moved into another one (账号迁移): everybody has another openid there, and the platform tells which.
//!
//! The way: nothing of the account goes on, and nobody is owed a message ([`quiet`]) → the account of now gives a token →
//! everybody known is put on a list ([`list`]) → a hundred a call are asked for, each answer recorded before the next ([`ask`])
//! → what was left unfinished is cancelled, and the tables are written anew beside those that are read ([`rewrite`]) → one
//! transaction of the ledger makes them current and gives its own rows the openids of now. Killed anywhere, the same command
//! goes on; until the last step nobody sees any of it. No run touches the account meanwhile (`stage/moved.rs`), others go on.

mod ask;
mod list;
mod quiet;
mod report;
mod rewrite;

use tokio_util::sync::CancellationToken;

use self::report::{Figures, Stop};
pub use self::report::{MoveStatus, Report};
use super::catalog;
use super::conductor::{Conductor, Held, Holding, RunError, Watch};
use crate::clock::Timestamp;
use crate::domain::{AccountName, RunId};
use crate::ledger::{AccountMove, FinishedMove, Lease, NewMove, Order, Touched};
use crate::stage::tables::Visible;
use crate::stage::{Hands, StageError, live};

/// Of those who follow, the share without a new openid from which it is surely the wrong account that was named.
const MOST_REFUSED_PERCENT: u64 = 20;
/// Answers in memory at a time.
const CHUNK: u32 = 4_000;

/// What is ordered.
#[derive(Debug, Clone)]
pub struct MoveRequest {
    /// As the configuration names it, with the app id of now.
    pub account: AccountName,
    /// The app id of before.
    pub from_app_id: String,
    /// Forget what was asked before, and begin anew.
    pub fresh: bool,
    /// Take it that so many have no new openid, for this reason.
    pub accept_refused: Option<String>,
    pub who: String,
}

/// A move that is carried out.
pub(in crate::scheduler) struct Moving<'a> {
    pub conductor: &'a Conductor,
    pub request: &'a MoveRequest,
    /// Of this account's moves: nobody else carries one out.
    pub lease: &'a Lease,
    pub watch: Watch<'a>,
}

/// Moves an account, or goes on with a move that was stopped.
///
/// # Errors
///
/// [`RunError::Usage`] when the app ids cannot be what is meant; [`RunError::Stage`] for what WeChat refuses. What was
/// answered stays for the next time.
pub async fn migrate(conductor: &Conductor, request: &MoveRequest, watch: &Watch<'_>) -> Result<Report, RunError> {
    let began = conductor.hands.clock.monotonic();
    let stop = watch.stop.child_token();
    let name = format!("migrate:{}", request.account);
    let Holding::All(own) = conductor.hold(vec![name.clone()], stop.clone()).await? else {
        let reason = format!("another process moves account `{}` now", request.account);
        return Ok(Report::stopped(request, conductor, Stop::Wait { until: None, reason }));
    };
    let lease = own.lease(&name).expect("it was asked for").clone();
    let moving = Moving { conductor, request, lease: &lease, watch: Watch { stop: &stop, ..*watch } };
    let done = moving.carry_out().await;
    moving.hands().settle.settle().await?;
    own.release().await?;
    let mut report = match done {
        Err(RunError::Stage(StageError::Interrupted)) => {
            let mut report = Report::stopped(request, conductor, Stop::interrupted());
            report.tell_of(conductor.hands.ledger.latest_move(&request.account).await?.as_ref());
            report
        }
        done => done?,
    };
    report.seconds = (conductor.hands.clock.monotonic() - began).as_secs_f64();
    Ok(report)
}

impl Moving<'_> {
    pub fn hands(&self) -> &Hands {
        &self.conductor.hands
    }

    pub fn stop(&self) -> &CancellationToken {
        self.watch.stop
    }

    /// The app id of now.
    pub fn to_app_id(&self) -> &str {
        &self.hands().account(&self.request.account).app_id
    }

    async fn carry_out(&self) -> Result<Report, RunError> {
        let mut report = Report::new(self.request, self.conductor);
        let own = match self.latest().await? {
            Some(own) if own.ended_at.is_some() => return self.over(own, report).await,
            Some(own) => own,
            None => match self.begin().await? {
                Ok(own) => own,
                Err(stop) => return Ok(report.end(stop)),
            },
        };
        report.tell_of(Some(&own));
        let (own, asked) = ask::ask(self, own).await?;
        report.tell_of(Some(&own));
        report.api_calls = asked.calls;
        if let Some(stop) = asked.stop {
            return Ok(report.end(stop));
        }
        let (refused, most) = self.hands().ledger.refused_followers(&own).await?;
        report.refused_followers = refused;
        if refused * 100 > own.followers * MOST_REFUSED_PERCENT && self.request.accept_refused.is_none() {
            return Ok(report.end(Stop::too_many_refused(&own, (refused, most))));
        }
        let held = match quiet::wait(self, &mut report).await? {
            Ok(held) => held,
            Err(stop) => return Ok(report.end(stop)),
        };
        let done = self.finish(&own, (refused, &mut report)).await;
        held.release().await?;
        done?;
        let own = self.hands().ledger.latest_move(&self.request.account).await?.unwrap_or(own);
        self.over(own, report).await
    }

    /// The move to go on with, or that is over; nothing where one is to begin.
    async fn latest(&self) -> Result<Option<AccountMove>, RunError> {
        let MoveRequest { account, from_app_id, .. } = self.request;
        let ledger = &self.hands().ledger;
        let Some(own) = ledger.latest_move(account).await? else { return Ok(None) };
        let is_same = own.from_app_id == *from_app_id && own.to_app_id == self.to_app_id();
        if own.ended_at.is_some() {
            return Ok(is_same.then_some(own));
        }
        if self.request.fresh {
            self.have_token().await?;
            ledger.drop_move(self.lease, own.id).await?;
            self.hands().lake.remove(&own.list_path).map_err(StageError::from)?;
            return Ok(None);
        }
        if is_same {
            return Ok(Some(own));
        }
        Err(RunError::Usage(format!(
            "account `{account}` is being moved from {} to {}, and {} of {} openids are asked for; with these app ids `lianbo migrate \
             {account} --from {}` goes on, --fresh forgets the answers and begins anew",
            own.from_app_id, own.to_app_id, own.asked, own.people, own.from_app_id
        )))
    }

    async fn begin(&self) -> Result<Result<AccountMove, Stop>, RunError> {
        self.check_app_ids().await?;
        let held = match quiet::now(self).await? {
            Ok(held) => held,
            Err(stop) => return Ok(Err(stop)),
        };
        let begun = self.begin_held(&held).await;
        held.release().await?;
        begun.map(Ok)
    }

    async fn check_app_ids(&self) -> Result<(), RunError> {
        let MoveRequest { account, from_app_id, .. } = self.request;
        let to = self.to_app_id();
        if from_app_id == to {
            return Err(RunError::Usage(format!(
                "account `{account}` still has the app id {to} in config/lianbo.toml: put app_id and app_secret of the account it was \
                 moved into there, then give the command again"
            )));
        }
        let mut visible = Visible::default();
        visible.add(self.hands().ledger.current_snapshots().await?);
        match visible.app_id_of(account) {
            Some(walked) if walked == to => Err(RunError::Usage(format!(
                "the openids in the tables of account `{account}` are those of {to}, its app id of now: there is nothing to move"
            ))),
            Some(walked) if walked != from_app_id => Err(RunError::Usage(format!(
                "the openids in the tables of account `{account}` are those of {walked}, not of {from_app_id}: `lianbo migrate \
                 {account} --from {walked}`"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether WeChat takes the app id and secret of now: a move that is begun keeps every stage from the account, and one that
    /// is begun anew forgets its answers.
    async fn have_token(&self) -> Result<(), StageError> {
        tokio::select! {
            token = self.hands().wechat(&self.request.account).have_token() => Ok(token?),
            () = self.stop().cancelled() => Err(StageError::Interrupted),
        }
    }

    async fn begin_held(&self, held: &Held) -> Result<AccountMove, RunError> {
        let hands = self.hands();
        self.have_token().await?;
        super::events::catch_up(hands).await?;
        let now = hands.clock.now();
        let run_id = self.new_id(now);
        let list = list::write(self, &run_id).await?;
        if held.stop().is_cancelled() {
            return Err(StageError::Interrupted.into());
        }
        let new = NewMove {
            account: &self.request.account,
            from_app_id: &self.request.from_app_id,
            to_app_id: self.to_app_id(),
            run_id: &run_id,
            list_path: &list.path,
            people: list.people,
            followers: list.followers,
        };
        hands.ledger.begin_move(self.lease, new, now).await?;
        let begun = hands.ledger.latest_move(&self.request.account).await?;
        tracing::info!(account = %self.request.account, people = list.people, "{} openids are to be asked for", list.people);
        begun.ok_or_else(|| RunError::Usage("the move that was begun is not there".to_owned()))
    }

    fn new_id(&self, now: Timestamp) -> RunId {
        let local = now.with_timezone(&self.hands().settings.timezone);
        RunId::new(format!("migrate-{}-{}", local.format("%Y%m%d-%H%M%S"), self.hands().clock.random_id(4)))
    }

    /// From the answers to tables that are current, everything held.
    async fn finish(&self, own: &AccountMove, (refused, report): (u64, &mut Report)) -> Result<(), RunError> {
        let hands = self.hands();
        super::events::catch_up(hands).await?;
        let mut touched = Touched::default();
        let answers = self.export_answers(own, &mut touched).await?;
        let made = rewrite::rewrite(self, own, &answers).await?;
        for snapshot in &made.snapshots {
            *report.tables.entry(snapshot.table.to_string()).or_default() += snapshot.rows;
            hands.ledger.record_snapshot(self.lease, snapshot).await?;
        }
        let unionids = rewrite::unionids(self, own, &touched).await?;
        let figures = Figures { moved: made.moved, refused: own.people - made.moved, refused_followers: refused };
        let detail = figures.told(own, self.request.accept_refused.as_deref());
        let outcome = serde_json::to_string(&figures).unwrap_or_default();
        let done = FinishedMove { of: own, touched: &touched, unionids: &unionids, outcome: &outcome, detail: &detail };
        let order = Order { who: &self.request.who, at: hands.clock.now() };
        if self.stop().is_cancelled() {
            return Err(StageError::Interrupted.into());
        }
        report.suppressions = hands.ledger.finish_move(self.lease, done, order).await?;
        Ok(())
    }

    /// The answers as a part that the engine reads, and whom of them the ledger names.
    async fn export_answers(&self, own: &AccountMove, touched: &mut Touched) -> Result<String, StageError> {
        let hands = self.hands();
        let path = list::answers_path(own);
        let mut writer = hands.lake.writer(&path, &list::ANSWERS)?;
        let mut after = 0;
        loop {
            let rows = hands.ledger.moved(own.id, after, CHUNK).await?;
            let Some(last) = rows.last() else { break };
            after = last.place;
            hands.ledger.touched_by_move(self.lease, own, (&rows, touched)).await?;
            writer.write(list::answers(&rows))?;
            self.tell("answers", after, own.people);
            if self.stop().is_cancelled() {
                return Err(StageError::Interrupted);
            }
        }
        writer.finish()?;
        Ok(path)
    }

    /// What is left when the tables have changed: done again where a crash came between.
    async fn over(&self, own: AccountMove, mut report: Report) -> Result<Report, RunError> {
        let hands = self.hands();
        if let Err(error) = catalog::repair(hands).await {
            tracing::warn!("the catalog stays as it was: {error}");
        }
        hands.ledger.clear_moved(self.lease, own.id).await?;
        for path in [own.list_path.clone(), list::answers_path(&own)] {
            hands.lake.remove(&path).map_err(StageError::from)?;
        }
        report.tell_of(Some(&own));
        Ok(report)
    }

    fn tell(&self, unit: &'static str, done: u64, total: u64) {
        let stage = self.request.account.as_str();
        self.watch.progress.update(&crate::stage::Progress { stage, unit, done, total: Some(total) });
    }

    /// The tables as they are now, with what events told since the walks.
    async fn visible(&self) -> Result<Visible, StageError> {
        let mut visible = Visible::default();
        visible.add(self.hands().ledger.current_snapshots().await?);
        let events = live::export_events(self.hands(), &visible).await?;
        visible.lay_over(events);
        Ok(visible)
    }
}
