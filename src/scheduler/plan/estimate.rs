//! One stage of a plan: its calls, rows and messages, from the tables as they stand.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use super::days::{Bounds, course};
use super::reads::WalkPlan;
use super::{PlanRequest, StagePlan};
use crate::clock::Timestamp;
use crate::config::settings::{
    DatabaseSource, MaterializeRecipients, OnExpiry, Priority, PushTemplate, Stage, StageKind,
};
use crate::domain::{AccountName, BucketAddress, QuotaDay, StageName, StageStatus};
use crate::engine::Params;
use crate::ledger::{Lease, Push, Run, StageRecord};
use crate::scheduler::allowance::Allowance;
use crate::scheduler::conductor;
use crate::stage::tables::Visible;
use crate::stage::{Quiet, StageContext, StageError, live, materialize_recipients};
use crate::wechat::{CallCounts, Endpoint};

pub struct Estimator<'a> {
    pub(super) request: &'a PlanRequest<'a>,
    run: Run,
    /// Whether the run has begun; otherwise it is imagined.
    has_begun: bool,
    pub(super) visible: Visible,
    params: Params,
    pub(super) records: BTreeMap<StageName, StageRecord>,
    pushes: Vec<Push>,
    pub(super) allowances: &'a [Allowance],
    /// Recipients of the sets planned so far.
    sets: BTreeMap<StageName, Option<u64>>,
    /// Sends of today by each push, as its `daily_limit` counts them.
    sent_today: BTreeMap<i64, u64>,
    /// Sends that pushes planned so far take of an account's day.
    taken: BTreeMap<(AccountName, QuotaDay), u64>,
    /// The walks planned so far, by account.
    pub(super) walks: BTreeMap<AccountName, WalkPlan>,
    lease: Lease,
    stop: CancellationToken,
}

impl<'a> Estimator<'a> {
    pub async fn new(
        request: &'a PlanRequest<'a>,
        run: Run,
        has_begun: bool,
        allowances: &'a [Allowance],
    ) -> Result<Self, StageError> {
        let mut visible = Visible::default();
        let (mut records, mut pushes, mut sent_today) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        if let Some(hands) = request.house {
            visible.add(hands.ledger.current_snapshots().await?);
            if has_begun {
                visible.add(hands.ledger.staged_snapshots(&run.run_id).await?);
                let stages = hands.ledger.stages(&run.run_id).await?;
                records = stages.into_iter().map(|record| (record.stage.clone(), record)).collect();
                pushes = hands.ledger.pushes_of(&run.run_id).await?;
                sent_today = hands.ledger.push_calls(QuotaDay::of(request.clock.now())).await?;
            }
            let events = live::export_events(hands, &visible).await?;
            visible.lay_over(events);
        }
        let params = conductor::sql_params(&run, request.pipeline);
        Ok(Self {
            request,
            run,
            has_begun,
            visible,
            params,
            records,
            pushes,
            allowances,
            sent_today,
            sets: BTreeMap::new(),
            taken: BTreeMap::new(),
            walks: BTreeMap::new(),
            // Nothing is written under it: a plan only reads.
            lease: Lease { name: "plan".to_owned(), fence: 0, holder_id: String::new() },
            stop: CancellationToken::new(),
        })
    }

    /// Removes what was written out to be read.
    ///
    /// # Errors
    ///
    /// [`StageError::Lake`] when a file cannot be removed.
    pub fn tidy(&self) -> Result<(), StageError> {
        match self.request.house {
            Some(hands) => Ok(self.visible.drop_events(&hands.lake.scratch())?),
            None => Ok(()),
        }
    }

    /// Plans one stage; those it reads were planned before.
    pub async fn stage(&mut self, stage: &Stage) -> Result<StagePlan, StageError> {
        let mut plan =
            StagePlan { name: stage.name.to_string(), kind: stage.kind.as_str().to_owned(), ..StagePlan::default() };
        let record = self.records.get(&stage.name);
        if let Some(record) = record.filter(|it| matches!(it.status, StageStatus::Succeeded | StageStatus::Partial)) {
            plan.is_done = true;
            plan.rows = Some(record.rows_out);
            self.sets.insert(stage.name.clone(), Some(record.rows_out));
            return Ok(plan);
        }
        match &stage.kind {
            StageKind::ExtractFollowers(own) => self.extract(stage, own, &mut plan).await?,
            StageKind::EnrichUnionids(own) => self.enrich(stage, own, &mut plan).await?,
            StageKind::MaterializeRecipients(own) => self.materialize(stage, own, &mut plan).await?,
            StageKind::PushTemplate(own) => self.push(stage, own, &mut plan),
            StageKind::LoadUsers(_)
            | StageKind::JoinIdentities(_)
            | StageKind::MeasureCoverage(_)
            | StageKind::Sql(_)
            | StageKind::Publish(_) => {
                let table = stage.table.as_ref().map(|table| table.as_str());
                plan.rows = table
                    .filter(|table| self.visible.slices(table).next().is_some())
                    .map(|table| self.visible.rows(table));
                if let StageKind::LoadUsers(own) = &stage.kind {
                    plan.notes.extend(own.database.as_ref().map(database_note));
                    plan.notes.extend(own.bucket.as_ref().map(bucket_note));
                }
            }
        }
        Ok(plan)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.request.clock.now()
    }

    /// A stage as it would see the house; nothing where there is no house yet.
    pub(super) fn context<'b>(&'b self, stage: &'b Stage) -> Option<StageContext<'b>> {
        self.request.house.map(|hands| StageContext {
            hands,
            run: &self.run,
            lease: &self.lease,
            stage,
            visible: &self.visible,
            params: &self.params,
            stop: &self.stop,
            progress: &Quiet,
            calls: std::sync::Arc::new(CallCounts::default()),
            news: None,
            accepts_drop: false,
            ahead: None,
        })
    }

    async fn materialize(
        &mut self,
        stage: &Stage,
        own: &MaterializeRecipients,
        plan: &mut StagePlan,
    ) -> Result<(), StageError> {
        plan.add_calls(&own.account, Endpoint::Blacklist, Some(1));
        let forecast = match self.context(stage) {
            Some(cx) => materialize_recipients::forecast(&cx, own).await,
            None => Ok(None),
        };
        let send = match forecast {
            Ok(Some(forecast)) => {
                let left: Vec<String> =
                    forecast.left_out.iter().map(|(reason, people)| format!("{people} {reason}")).collect();
                if !left.is_empty() {
                    plan.notes.push(format!("of {} given, left out: {}", forecast.given, left.join(", ")));
                }
                if forecast.holdout > 0 {
                    plan.notes.push(format!("{} held out", forecast.holdout));
                }
                Some(forecast.send)
            }
            Ok(None) => {
                plan.notes.push("not known until the tables it reads were made once".to_owned());
                None
            }
            Err(error @ (StageError::Rule(_) | StageError::Sql { .. })) => {
                plan.notes.push(format!("would fail as things stand: {}", conductor::stages::chain(&error)));
                None
            }
            Err(error) => return Err(error),
        };
        plan.rows = send;
        self.sets.insert(stage.name.clone(), send);
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "a forecast")]
    fn push(&mut self, stage: &Stage, own: &PushTemplate, plan: &mut StagePlan) {
        let begun = self.pushes.iter().find(|push| push.stage == stage.name).cloned();
        let messages = match &begun {
            Some(push) => Some(push.counts.pending),
            None => self.sets.get(&own.recipients).copied().flatten(),
        };
        plan.messages = messages;
        plan.rows = messages;
        plan.add_calls(&own.account, Endpoint::TemplateSend, messages);
        plan.add_calls(&own.account, Endpoint::QuotaGet, Some(1));
        if begun.as_ref().is_none_or(|push| push.messages_path.is_none()) {
            plan.add_calls(&own.account, Endpoint::TemplateList, Some(1));
        }
        let Some(messages) = messages else { return };
        let ceiling = self.request.settings.accounts.get(&own.account).and_then(|account| account.send_rate);
        let ordered = begun.as_ref().and_then(|push| push.rate_override);
        let rate = ordered.unwrap_or(own.rate).min(ceiling.unwrap_or(f64::INFINITY));
        plan.seconds = Some(messages as f64 / rate);
        self.spread(own, begun.as_ref(), (messages, rate), plan);
        if own.approve && begun.is_none_or(|push| push.approved_by.is_none()) {
            plan.notes.push("waits for approval before the first send".to_owned());
        }
    }

    /// Plays the push through, and takes its sends from the account's days.
    fn spread(&mut self, own: &PushTemplate, begun: Option<&Push>, (messages, rate): (u64, f64), plan: &mut StagePlan) {
        let now = self.request.clock.now();
        let today = QuotaDay::of(now);
        let uses_reserve = own.priority == Priority::Service;
        let name = Endpoint::TemplateSend.as_str();
        let allowance = self.allowances.iter().find(|it| it.account == own.account && it.endpoint == name);
        let sent_today = begun.and_then(|push| self.sent_today.get(&push.key)).copied().unwrap_or(0);
        let daily =
            |day| own.daily_limit.map(|limit| if day == today { limit.saturating_sub(sent_today) } else { limit });
        let left = |day: QuotaDay| {
            let of_account =
                allowance.and_then(|it| if day == today { it.left(uses_reserve) } else { it.whole_day(uses_reserve) });
            let taken = self.taken.get(&(own.account.clone(), day)).copied().unwrap_or(0);
            let of_account = of_account.map(|left| left.saturating_sub(taken));
            [of_account, daily(day)].into_iter().flatten().min()
        };
        let expires_at = self.expires_at(own);
        let course = course(&Bounds {
            from: now,
            messages,
            rate,
            window: own.window,
            zone: self.request.settings.timezone,
            expires_at,
            left: &left,
        });
        for (date, sends) in &course.days {
            *self.taken.entry((own.account.clone(), QuotaDay::from_date(*date))).or_default() += sends;
        }
        if course.would_expire > 0 && own.on_expiry == OnExpiry::Stop && begun.is_none() {
            plan.notes
                .push("cannot end before it expires; with on_expiry = \"stop\" such a set does not start".to_owned());
        }
        if course.no_room > 0 {
            plan.notes.push(format!("no day has room for {} of them: raise the quota or the rate", course.no_room));
        }
        plan.days = course.days;
        plan.would_expire = course.would_expire;
        plan.ends_at = course.ends_at;
    }

    /// From the scheduled time; by hand, from the run's start.
    fn expires_at(&self, own: &PushTemplate) -> Option<Timestamp> {
        let from = if self.has_begun { self.run.scheduled_for.unwrap_or(self.run.started_at) } else { self.run.run_at };
        own.expires.and_then(|expires| from.checked_add_signed(chrono::TimeDelta::from_std(expires).ok()?))
    }
}

/// What a load would ask a database for.
fn database_note(source: &DatabaseSource) -> String {
    let query = source.query.split_whitespace().collect::<Vec<_>>().join(" ");
    let way = match &source.key {
        Some(key) => format!("in pages of {} rows along `{key}`", source.page_rows),
        None => "as one stream, which a crash begins anew (source.key pages it)".to_owned(),
    };
    format!("reads {} {way}, and only reads: {query}", source.address.shown())
}

fn bucket_note(address: &BucketAddress) -> String {
    let place = address.object(&address.pattern);
    format!("lists {} at {} and reads what of it is new or changed: {place}", address.bucket, address.shown_service())
}
