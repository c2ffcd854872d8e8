//! How a workspace stands: how old the data of each account and mini program is, what runs, waits or is halted, what is
//! left of the day's quota, when pipelines fire next, and whether `serve` lives. Read from the ledger alone.

use serde::Serialize;

use super::allowance::{Allowance, WATCHED, allowances};
use super::clockwork;
use super::view::{RunView, seconds_between};
use crate::calendar::next_fire;
use crate::clock::Timestamp;
use crate::config::settings::{Settings, StageKind};
use crate::domain::{PipelineName, QuotaDay, TableName};
use crate::ledger::{Freeze, Ledger, LedgerError};

/// A workspace as it stands.
#[derive(Debug, Clone, Serialize)]
pub struct StatusView {
    pub workspace: String,
    pub at: Timestamp,
    /// Whether anything ever ran here.
    pub has_run: bool,
    /// Whether something stays as it is until a person acts.
    pub needs_person: bool,
    pub serve: Option<Serving>,
    /// Stop switches that are on.
    pub frozen: Vec<Freeze>,
    pub data: Vec<DataAge>,
    /// The latest run of each pipeline that ever ran.
    pub runs: Vec<RunView>,
    pub quota_day: String,
    pub quota: Vec<Allowance>,
    pub fires: Vec<NextFire>,
}

/// The process that serves.
#[derive(Debug, Clone, Serialize)]
pub struct Serving {
    pub host: String,
    pub pid: u32,
}

/// How old the rows of one account or mini program are.
#[derive(Debug, Clone, Serialize)]
pub struct DataAge {
    /// `account` or `miniprogram`.
    pub side: &'static str,
    pub name: String,
    pub table: TableName,
    pub pipeline: PipelineName,
    /// `None`: never made.
    pub rows: Option<u64>,
    pub as_of: Option<Timestamp>,
    pub age_seconds: Option<f64>,
}

/// When a pipeline fires next.
#[derive(Debug, Clone, Serialize)]
pub struct NextFire {
    pub pipeline: PipelineName,
    pub at: Option<Timestamp>,
    pub after: Vec<PipelineName>,
}

impl StatusView {
    /// How the workspace stands at `now`; without a ledger nothing ran yet.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] when the ledger cannot be read.
    pub async fn of(settings: &Settings, ledger: Option<&Ledger>, now: Timestamp) -> Result<Self, LedgerError> {
        let day = QuotaDay::of(now);
        let mut view = Self {
            workspace: settings.root.to_string_lossy().into_owned(),
            at: now,
            has_run: false,
            needs_person: false,
            serve: None,
            frozen: Vec::new(),
            data: data(settings),
            runs: Vec::new(),
            quota_day: day.to_string(),
            quota: allowances(settings, ledger, day, &WATCHED).await?,
            fires: fires(settings, now),
        };
        let Some(ledger) = ledger else { return Ok(view) };
        view.add_ages(ledger, now).await?;
        for name in settings.pipelines.keys() {
            if let Some(run) = ledger.latest_runs(1, Some(name)).await?.pop() {
                view.runs.push(RunView::of(ledger, &run, now).await?);
            }
        }
        view.frozen = ledger.freezes().await?;
        view.has_run = !view.runs.is_empty();
        view.needs_person = view.runs.iter().any(|run| run.next.as_ref().is_some_and(|next| next.needs_person));
        view.serve = ledger
            .lease_holder(clockwork::LEASE_NAME)
            .await?
            .map(|holder| Serving { host: holder.host, pid: holder.pid });
        Ok(view)
    }

    async fn add_ages(&mut self, ledger: &Ledger, now: Timestamp) -> Result<(), LedgerError> {
        let current = ledger.current_snapshots().await?;
        for age in &mut self.data {
            let own = current.iter().find(|snapshot| snapshot.table == age.table && snapshot.slice == age.name);
            let Some(own) = own else { continue };
            age.rows = Some(own.rows);
            age.as_of = Some(own.as_of);
            age.age_seconds = Some(seconds_between(own.as_of, now));
        }
        Ok(())
    }
}

/// What should be there: the tables that come from accounts and mini programs.
fn data(settings: &Settings) -> Vec<DataAge> {
    let mut data: Vec<DataAge> = Vec::new();
    for pipeline in settings.pipelines.values() {
        for stage in &pipeline.stages {
            let (side, names): (_, Vec<String>) = match &stage.kind {
                StageKind::ExtractFollowers(plan) => {
                    ("account", plan.accounts.iter().map(ToString::to_string).collect())
                }
                StageKind::EnrichUnionids(plan) => ("account", plan.accounts.iter().map(ToString::to_string).collect()),
                StageKind::LoadUsers(plan) => ("miniprogram", vec![plan.miniprogram.to_string()]),
                _ => continue,
            };
            let Some(table) = &stage.table else { continue };
            for name in names {
                if !data.iter().any(|known| known.table == *table && known.name == name) {
                    data.push(DataAge {
                        side,
                        name,
                        table: table.clone(),
                        pipeline: pipeline.name.clone(),
                        rows: None,
                        as_of: None,
                        age_seconds: None,
                    });
                }
            }
        }
    }
    data.sort_by(|a, b| (a.side, &a.name, &a.table).cmp(&(b.side, &b.name, &b.table)));
    data
}

/// Every pipeline with a schedule; the next one first.
fn fires(settings: &Settings, now: Timestamp) -> Vec<NextFire> {
    let scheduled = settings.pipelines.values().filter_map(|pipeline| Some((pipeline, pipeline.schedule.as_ref()?)));
    let mut fires: Vec<NextFire> = scheduled
        .map(|(pipeline, schedule)| NextFire {
            pipeline: pipeline.name.clone(),
            at: next_fire(schedule, settings.timezone, now),
            after: pipeline.after.clone(),
        })
        .collect();
    fires.sort_by_key(|fire| (fire.at.is_none(), fire.at));
    fires
}
