//! The reading of a sync: how many calls its walks and its details take, over which quota days they spread, and when the
//! last one is made.
//!
//! A walk is as long as WeChat last said (an open walk's `total`) or as the last one was, and waits for a day's calls. Details
//! do not: a night asks for what its day has, and the next one, by the schedule or a day later, goes on. The pace is that of
//! the stage's last run that made calls enough to tell, by its calls and seconds; before any it is assumed, and the plan says so.

use chrono::{NaiveDate, TimeDelta};
use serde::Serialize;

use super::StagePlan;
use super::days::{Bounds, Course, Nights, course};
use super::estimate::Estimator;
use crate::calendar::next_fire;
use crate::clock::Timestamp;
use crate::config::settings::{EnrichUnionids, ExtractFollowers, Schedule, Stage};
use crate::domain::{AccountName, QuotaDay, StageStatus};
use crate::ledger::Walk;
use crate::stage::extract_followers::{self, OPENIDS_A_PAGE};
use crate::stage::{StageError, enrich_unionids};
use crate::wechat::Endpoint;

/// What a call is taken to last before any run has told.
const ASSUMED_SECONDS: f64 = 0.5;
/// Runs that are looked through for a stage's pace.
const RUNS_LOOKED_AT: u32 = 20;
/// A night of few calls tells of what else it did rather than of their pace.
const ENOUGH_TO_TELL: u64 = 20;

/// Calls of one endpoint to read an account, and when they would be made.
#[derive(Debug, Clone, Serialize)]
pub struct ReadPlan {
    pub account: AccountName,
    pub endpoint: &'static str,
    pub calls: u64,
    /// Calls a second while they are made.
    pub calls_per_second: f64,
    /// No run has told the pace yet.
    pub is_assumed: bool,
    /// Quota days (midnight to midnight in Shanghai) with the calls of each.
    pub days: Vec<ReadDay>,
    /// `None` when no day of the next year has room for all.
    pub ends_at: Option<Timestamp>,
}

/// Calls of a quota day.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ReadDay {
    pub date: NaiveDate,
    pub calls: u64,
}

/// Where an account's walk would stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct WalkPlan {
    /// Followers at its end.
    followers: Option<u64>,
    /// Details are asked for beside it.
    is_first: bool,
    ends_at: Option<Timestamp>,
}

impl Estimator<'_> {
    pub(super) async fn extract(
        &mut self,
        stage: &Stage,
        own: &ExtractFollowers,
        plan: &mut StagePlan,
    ) -> Result<(), StageError> {
        let mut rows = Some(0);
        for account in &own.accounts {
            let table = match self.context(stage) {
                Some(cx) => extract_followers::followers_now(&cx, account).await?,
                None => None,
            };
            let open = self.open_walk(account).await?;
            let told = open.as_ref().and_then(|walk| walk.total);
            let known = told.or(table);
            let walked = open.map_or(0, |walk| u64::from(walk.pages));
            // A call for each page and one that finds the end, without the pages that a walk begun before has.
            let pages = known.map(|known| (known.div_ceil(OPENIDS_A_PAGE) + 1).saturating_sub(walked).max(1));
            let calls = if self.is_young(stage, own, account) { Some(0) } else { pages };
            plan.add_calls(account, Endpoint::UserGet, calls);
            rows = rows.zip(known).map(|(sum, known)| sum + known);
            if known.is_none() {
                plan.notes.push(format!("account `{account}` was never walked: a call for each 10 000 followers"));
            } else if table.is_none() {
                plan.notes.push(format!(
                    "account `{account}`: the number of followers is WeChat's own, from the walk so far"
                ));
            }
            let now = self.now();
            let read = self.read(stage, (account, Endpoint::UserGet), calls.unwrap_or(0), now).await?;
            let ends_at = read.as_ref().map_or(Some(now), |read| read.ends_at);
            self.walks.insert(account.clone(), WalkPlan { followers: known, is_first: table.is_none(), ends_at });
            plan.reads.extend(read);
        }
        plan.rows = rows;
        Ok(())
    }

    /// Whether the last walk is taken as it is.
    fn is_young(&self, stage: &Stage, own: &ExtractFollowers, account: &AccountName) -> bool {
        let table = stage.table.as_ref().map_or("followers", |table| table.as_str());
        let age = self.visible.slice(table, account.as_str()).map(|snapshot| self.now() - snapshot.as_of);
        !own.reuse_within.is_zero() && age.is_some_and(|age| age.to_std().unwrap_or_default() < own.reuse_within)
    }

    async fn open_walk(&self, account: &AccountName) -> Result<Option<Walk>, StageError> {
        let Some(hands) = self.request.house else { return Ok(None) };
        Ok(hands.ledger.open_walk(account).await?.filter(|walk| walk.finished_at.is_none()))
    }

    pub(super) async fn enrich(
        &mut self,
        stage: &Stage,
        own: &EnrichUnionids,
        plan: &mut StagePlan,
    ) -> Result<(), StageError> {
        let batch = u64::try_from(enrich_unionids::BATCH).unwrap_or(u64::MAX);
        let mut rows = Some(0);
        let within = match self.context(stage) {
            Some(cx) => enrich_unionids::batches_within_budget(&cx, own).await?,
            None => own.budget.map(|budget| vec![budget / to_u64(own.accounts.len()).max(1); own.accounts.len()]),
        };
        for (place, account) in own.accounts.iter().enumerate() {
            let budget = within.as_ref().and_then(|within| within.get(place)).copied();
            let walk = self.walks.get(account).copied();
            let needed = match self.context(stage) {
                Some(cx) => enrich_unionids::needed(&cx, own, account).await?,
                None => None,
            };
            // Of a table that is still being made, everybody is asked for but those whom the run asked for already.
            let asked = self.records.get(&stage.name).filter(|_| own.accounts.len() == 1);
            let asked = asked.and_then(|record| record.api_calls.get(Endpoint::UserInfoBatchget.as_str())).copied();
            let first = walk.filter(|walk| walk.is_first).and_then(|walk| walk.followers);
            let needed = needed.or_else(|| first.map(|all| all.saturating_sub(asked.unwrap_or(0) * batch)));
            let calls = needed.map(|needed| needed.div_ceil(batch).min(budget.unwrap_or(u64::MAX)));
            plan.add_calls(account, Endpoint::UserInfoBatchget, calls);
            rows = rows.zip(needed).map(|(sum, needed)| sum + needed);
            if let (Some(budget), Some(needed)) = (budget, needed)
                && needed.div_ceil(batch) > budget
            {
                plan.notes
                    .push(format!("account `{account}`: the budget leaves {} for later", needed - budget * batch));
            }
            let now = self.now();
            let from = walk.filter(|walk| !walk.is_first).and_then(|walk| walk.ends_at).unwrap_or(now);
            let calls = calls.unwrap_or(0);
            let Some((mut read, tonight)) = self.details(stage, account, calls, from).await? else { continue };
            // Who stands on the last page is asked for after it.
            let walk_ends = walk.and_then(|walk| walk.ends_at).unwrap_or(from);
            read.ends_at = read.ends_at.map(|ends_at| ends_at.max(walk_ends));
            if let (true, Some(needed)) = (tonight < calls, needed) {
                let left = needed.saturating_sub(tonight * batch);
                plan.notes.push(match tonight {
                    0 => format!(
                        "account `{account}`: the day's calls are used up: {left} are left for the nights after, which each ask \
                         for what their day has room for"
                    ),
                    _ => format!(
                        "account `{account}`: the day's quota leaves {left} for the nights after, which each ask for what \
                         their day has room for"
                    ),
                });
            }
            let checks = spot_checks(&read, calls);
            plan.reads.push(read);
            if let Some(checks) = checks {
                plan.add_calls(account, Endpoint::UserInfo, Some(checks.calls));
                plan.reads.push(checks);
            }
        }
        plan.rows = rows;
        Ok(())
    }

    /// Plays batches of details through, night by night, and how many calls the first night makes; nothing where there is none.
    async fn details(
        &self,
        stage: &Stage,
        account: &AccountName,
        calls: u64,
        from: Timestamp,
    ) -> Result<Option<(ReadPlan, u64)>, StageError> {
        let endpoint = Endpoint::UserInfoBatchget;
        if calls == 0 {
            return Ok(None);
        }
        let told = self.pace(stage, endpoint, calls).await?;
        let rate = told.unwrap_or_else(|| self.assumed_pace(account, endpoint));
        let zone = self.request.settings.timezone;
        let schedule = self.request.pipeline.schedule.as_ref().filter(|schedule| matches!(schedule, Schedule::Cron(_)));
        let next = |begun: Timestamp| match schedule {
            Some(schedule) => next_fire(schedule, zone, begun),
            None => Some(begun + TimeDelta::days(1)),
        };
        let left = |day| self.left(account, endpoint, day);
        let worth_waiting = enrich_unionids::WORTH_WAITING;
        let (course, tonight) = Nights { from, calls, rate, left: &left, next: &next, worth_waiting }.course();
        Ok(Some((read_plan((account, endpoint), calls, (rate, told.is_none()), course), tonight)))
    }

    /// Calls that a quota day still has.
    fn left(&self, account: &AccountName, endpoint: Endpoint, day: QuotaDay) -> Option<u64> {
        let name = endpoint.as_str();
        let allowance = self.allowances.iter().find(|own| own.account == *account && own.endpoint == name);
        let today = QuotaDay::of(self.now());
        allowance.and_then(|own| if day == today { own.left(true) } else { own.whole_day(true) })
    }

    /// Plays the calls of a stage through, day by day; nothing where there is none.
    async fn read(
        &self,
        stage: &Stage,
        (account, endpoint): (&AccountName, Endpoint),
        calls: u64,
        from: Timestamp,
    ) -> Result<Option<ReadPlan>, StageError> {
        if calls == 0 {
            return Ok(None);
        }
        let told = self.pace(stage, endpoint, calls).await?;
        let rate = told.unwrap_or_else(|| self.assumed_pace(account, endpoint));
        let left = |day| self.left(account, endpoint, day);
        let zone = self.request.settings.timezone;
        let course = course(&Bounds { from, messages: calls, rate, window: None, zone, expires_at: None, left: &left });
        Ok(Some(read_plan((account, endpoint), calls, (rate, told.is_none()), course)))
    }

    /// Calls a second of the stage's last run that came to its end and made enough of `calls` to tell; else of the one that
    /// made most.
    #[expect(clippy::cast_precision_loss, reason = "a forecast")]
    async fn pace(&self, stage: &Stage, endpoint: Endpoint, calls: u64) -> Result<Option<f64>, StageError> {
        let Some(hands) = self.request.house else { return Ok(None) };
        let mut most: Option<(u64, f64)> = None;
        for run in hands.ledger.latest_runs(RUNS_LOOKED_AT, Some(&self.request.pipeline.name)).await? {
            let stages = hands.ledger.stages(&run.run_id).await?;
            let done =
                stages.iter().find(|record| record.stage == stage.name && record.status == StageStatus::Succeeded);
            let made = done.and_then(|record| record.api_calls.get(endpoint.as_str()).copied()).unwrap_or(0);
            if let Some(record) = done.filter(|record| made > 0 && record.seconds > 0.0)
                && most.is_none_or(|(most, _)| made > most)
            {
                most = Some((made, made as f64 / record.seconds));
                if made >= calls.min(ENOUGH_TO_TELL) {
                    break;
                }
            }
        }
        Ok(most.map(|(_, pace)| pace))
    }

    /// Pages come one after the other, details side by side.
    #[expect(clippy::cast_precision_loss, reason = "a forecast")]
    fn assumed_pace(&self, account: &AccountName, endpoint: Endpoint) -> f64 {
        let side_by_side = self.request.settings.accounts.get(account).map_or(1, |account| account.concurrency);
        let at_once = if endpoint == Endpoint::UserGet { 1.0 } else { side_by_side as f64 };
        at_once / ASSUMED_SECONDS
    }
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn read_plan(
    (account, endpoint): (&AccountName, Endpoint),
    calls: u64,
    (calls_per_second, is_assumed): (f64, bool),
    course: Course,
) -> ReadPlan {
    ReadPlan {
        account: account.clone(),
        endpoint: endpoint.as_str(),
        calls,
        calls_per_second,
        is_assumed,
        days: course.days.into_iter().map(|(date, calls)| ReadDay { date, calls }).collect(),
        ends_at: course.ends_at,
    }
}

/// The single calls that look at one batch in sixty, at the pace and on the days of the batches.
#[expect(clippy::cast_precision_loss, reason = "a forecast")]
fn spot_checks(batches: &ReadPlan, calls: u64) -> Option<ReadPlan> {
    let checks = calls / enrich_unionids::SPOT_CHECK_EVERY;
    let mut made = 0;
    let days = batches.days.iter().filter_map(|day| {
        let before = made / enrich_unionids::SPOT_CHECK_EVERY;
        made += day.calls;
        let calls = made / enrich_unionids::SPOT_CHECK_EVERY - before;
        (calls > 0).then_some(ReadDay { date: day.date, calls })
    });
    (checks > 0).then(|| ReadPlan {
        endpoint: Endpoint::UserInfo.as_str(),
        calls: checks,
        calls_per_second: batches.calls_per_second / enrich_unionids::SPOT_CHECK_EVERY as f64,
        days: days.collect(),
        ..batches.clone()
    })
}
