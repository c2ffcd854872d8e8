//! `/metrics`: what this process counted, and what the ledger knows at this moment, in Prometheus' text format.
//!
//! The ledger's figures are those of every process; they are asked anew for each answer, so that nothing that is gone
//! stays in them.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::router::Door;
use crate::app::App;
use crate::calendar::next_fire;
use crate::clock::Timestamp;
use crate::domain::{QuotaDay, RunStatus};
use crate::ledger::{LedgerError, Usage};
use crate::telemetry::{
    CALLBACKS_WAITING, LAST_SUCCESS_TIMESTAMP_SECONDS, Metrics, NEXT_FIRE_TIMESTAMP_SECONDS, PUSH_RECIPIENTS,
    QUOTA_LIMIT, QUOTA_REMAINING, QUOTA_USED, RUNS, WAITING_RUNS,
};
use crate::wechat::Endpoint;

/// Pushes that are looked through for the last one of each stage.
const PUSHES: u32 = 200;

/// All figures, or 503 when the ledger does not answer.
pub async fn metrics(State(door): State<Door>) -> Response {
    let app = door.house.app();
    match of_ledger(&app).await {
        Ok(ledger) => {
            let text = app.metrics.render() + &ledger.render();
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(error) => {
            tracing::warn!(error = %error, "the ledger does not answer");
            (StatusCode::SERVICE_UNAVAILABLE, "the ledger does not answer\n").into_response()
        }
    }
}

async fn of_ledger(app: &App) -> Result<Metrics, LedgerError> {
    let metrics = Metrics::default();
    let now = app.hands().clock.now();
    runs(app, &metrics).await?;
    pipelines(app, &metrics, now).await?;
    pushes(app, &metrics).await?;
    quota(app, &metrics, now).await?;
    metrics.set(CALLBACKS_WAITING, &[], app.hands().ledger.waiting_callbacks().await?);
    Ok(metrics)
}

async fn runs(app: &App, metrics: &Metrics) -> Result<(), LedgerError> {
    let mut waiting = 0;
    for (pipeline, status, count) in app.hands().ledger.count_runs().await? {
        metrics.set(RUNS, &[("pipeline", pipeline.as_str()), ("status", status.as_str())], count);
        if status == RunStatus::Waiting {
            waiting += count;
        }
    }
    metrics.set(WAITING_RUNS, &[], waiting);
    Ok(())
}

async fn pipelines(app: &App, metrics: &Metrics, now: Timestamp) -> Result<(), LedgerError> {
    let settings = &app.hands().settings;
    for pipeline in settings.pipelines.values() {
        let labels = [("pipeline", pipeline.name.as_str())];
        if let Some(ended) = app.hands().ledger.last_success(&pipeline.name).await?.and_then(|run| run.ended_at) {
            metrics.set(LAST_SUCCESS_TIMESTAMP_SECONDS, &labels, seconds(ended));
        }
        let next = pipeline.schedule.as_ref().and_then(|schedule| next_fire(schedule, settings.timezone, now));
        if let Some(next) = next {
            metrics.set(NEXT_FIRE_TIMESTAMP_SECONDS, &labels, seconds(next));
        }
    }
    Ok(())
}

async fn pushes(app: &App, metrics: &Metrics) -> Result<(), LedgerError> {
    let mut told = BTreeSet::new();
    for push in app.hands().ledger.latest_pushes(PUSHES).await? {
        if push.is_test || !told.insert((push.pipeline.clone(), push.stage.clone())) {
            continue;
        }
        let counts = push.counts;
        for (state, count) in [
            ("pending", counts.pending),
            ("sent", counts.sent),
            ("failed", counts.failed),
            ("skipped", counts.skipped),
            ("held", counts.held),
            ("unconfirmed", counts.unconfirmed),
        ] {
            let labels = [("pipeline", push.pipeline.as_str()), ("stage", push.stage.as_str()), ("state", state)];
            metrics.set(PUSH_RECIPIENTS, &labels, count);
        }
    }
    Ok(())
}

async fn quota(app: &App, metrics: &Metrics, now: Timestamp) -> Result<(), LedgerError> {
    for usage in app.hands().ledger.usage(None, Some(QuotaDay::of(now))).await? {
        let labels = [("account", usage.account.as_str()), ("endpoint", usage.endpoint.as_str())];
        metrics.set(QUOTA_USED, &labels, usage.calls);
        if let Some(limit) = limit(app, &usage) {
            metrics.set(QUOTA_LIMIT, &labels, limit);
            let left = if usage.exhausted_at.is_some() { 0 } else { limit.saturating_sub(usage.calls) };
            metrics.set(QUOTA_REMAINING, &labels, left);
        }
    }
    Ok(())
}

/// Our ceiling, WeChat's own figure or its documented default: the lower of what is known.
fn limit(app: &App, usage: &Usage) -> Option<u64> {
    let documented = || Endpoint::parse(&usage.endpoint).and_then(Endpoint::documented_daily_limit);
    let account = app.hands().settings.accounts.get(&usage.account);
    let ceiling = account.and_then(|account| account.quota.ceilings.get(&usage.endpoint).copied());
    let known = usage.wechat_limit.or_else(documented);
    ceiling.into_iter().chain(known).min()
}

/// Since 1970; nothing here is older.
fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.timestamp()).unwrap_or_default()
}
