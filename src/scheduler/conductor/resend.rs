//! A new push of just those whom another push did not reach: a run of the same pipeline whose set is frozen already, taken
//! from the set of the old push, with the variables as they were. The old push stays as it ended.

use serde_json::json;

use super::{Conductor, LEASE, RunError, lease_name, params_json};
use crate::clock::Timestamp;
use crate::config::settings::{Pipeline, PushTemplate, Stage, StageKind};
use crate::domain::tables::table_spec;
use crate::domain::{RunId, RunStatus, StageStatus, TableName};
use crate::engine::{Params, TableSource, Written, text};
use crate::lake::Lake;
use crate::ledger::{Acquired, Lease, NewRun, Order, Push, Run, RunChange, SnapshotRecord, StageRecord};
use crate::stage::{Hands, StageError, blocking};

/// Whom to send to again.
#[derive(Debug, Clone, Copy)]
pub struct Resend<'a> {
    pub push: &'a Push,
    /// Only those whom WeChat refused with this code; else everybody who failed.
    pub errcode: Option<i64>,
    pub who: &'a str,
}

/// A push that waits to be run.
#[derive(Debug)]
pub struct Resent {
    pub run_id: RunId,
    pub people: u64,
}

impl Conductor {
    /// Makes the run; the next `run` of the pipeline, or `serve`, sends.
    ///
    /// # Errors
    ///
    /// [`RunError::Usage`] when the push is not over, its pipeline has an unfinished run, or nobody failed.
    pub async fn resend(&self, resend: Resend<'_>) -> Result<Resent, RunError> {
        let push = resend.push;
        let name = format!("{}/{}", push.run_id, push.stage);
        if push.ended_at.is_none() {
            return Err(RunError::Usage(format!(
                "{name} is not over: who failed is known when it has come to its end"
            )));
        }
        let Some(pipeline) = self.hands.settings.pipelines.get(&push.pipeline) else {
            return Err(RunError::Usage(format!("{name} is of pipeline `{}`, which is gone", push.pipeline)));
        };
        let Some(plan) = plan_of(pipeline, push) else {
            return Err(RunError::Usage(format!(
                "pipeline `{}` has no push stage `{}` any more",
                push.pipeline, push.stage
            )));
        };
        let Acquired::Mine(lease) =
            self.hands.ledger.acquire_lease(&lease_name(&push.pipeline), &self.holder, LEASE).await?
        else {
            return Err(RunError::Usage(format!("pipeline `{}` runs now: wait for its end", push.pipeline)));
        };
        let made = self.resend_under(&lease, (pipeline, plan), &resend).await;
        self.hands.ledger.release_lease(&lease).await?;
        made
    }

    async fn resend_under(
        &self,
        lease: &Lease,
        (pipeline, plan): (&Pipeline, &PushTemplate),
        resend: &Resend<'_>,
    ) -> Result<Resent, RunError> {
        let (ledger, push, now) = (&self.hands.ledger, resend.push, self.hands.clock.now());
        if let Some(run) = ledger.unfinished_run(&push.pipeline).await? {
            return Err(RunError::Usage(format!(
                "run {} of `{}` is not finished; finish it with `lianbo run {1} --continue`, or cancel it with `lianbo push cancel {0}`",
                run.run_id, push.pipeline
            )));
        }
        let moved = ledger.latest_move(&push.account).await?;
        if moved.is_some_and(|own| own.ended_at.is_none_or(|at| at > push.frozen_at)) {
            return Err(RunError::Usage(format!(
                "account `{}` was moved after push {}/{} was made: whom it did not reach has another openid now; send to a new set",
                push.account, push.run_id, push.stage
            )));
        }
        let old = ledger.run(&push.run_id).await?;
        let old = old.ok_or_else(|| RunError::Usage(format!("run {} is gone", push.run_id)))?;
        let run_id = self.new_run_id(now);
        let set = Set { run_id: &run_id, plan, resend };
        let written = set.write(&self.hands).await?;
        if written.0.rows == 0 {
            self.hands.lake.remove(&set.path()).map_err(StageError::from)?;
            let code = resend.errcode.map_or(String::new(), |code| format!(" with {code}"));
            return Err(RunError::Usage(format!(
                "nobody of {}/{} failed{code} whom no resend has reached since",
                push.run_id, push.stage
            )));
        }
        let new = NewRun {
            run_id: run_id.clone(),
            pipeline: push.pipeline.clone(),
            trigger: "resend".to_owned(),
            scheduled_for: None,
            today: self.local_date(now),
            run_at: now,
            params: params_json(pipeline, &params_of(&old)).to_string(),
            is_test: old.is_test,
            started_at: now,
        };
        ledger.begin_run(lease, new).await?;
        self.record_made(lease, pipeline, &set, &written).await?;
        let order = Order { who: resend.who, at: now };
        ledger.record_resend(&run_id, push, order, format!("{} people", written.0.rows)).await?;
        let change = RunChange {
            status: RunStatus::Waiting,
            reason: Some(format!("made to send again to {} people of {}/{}", written.0.rows, push.run_id, push.stage)),
            waiting_until: None,
        };
        ledger.set_run_status(lease, &run_id, change, now).await?;
        Ok(Resent { run_id, people: written.0.rows })
    }

    /// Everything but the push is done: the set stands, and no other stage of the pipeline runs again for it.
    async fn record_made(
        &self,
        lease: &Lease,
        pipeline: &Pipeline,
        set: &Set<'_>,
        (written, hash, as_of): &(Written, String, Timestamp),
    ) -> Result<(), RunError> {
        let ledger = &self.hands.ledger;
        let now = self.hands.clock.now();
        let of = format!("{}/{}", set.resend.push.run_id, set.resend.push.stage);
        ledger.record_snapshot(lease, &set.snapshot(lease, (written, *as_of), now)).await?;
        for stage in &pipeline.stages {
            if stage.name == set.resend.push.stage {
                continue;
            }
            let is_set = stage.name == set.plan.recipients;
            let detail = if is_set {
                json!({
                    "given": written.rows, "recipients": written.rows, "holdout": 0, "left_out": {},
                    "set_hash": hash, "set_path": set.path(), "as_of": as_of.to_rfc3339(), "resend_of": of,
                })
            } else {
                json!({ "resend_of": of })
            };
            ledger
                .record_stage(lease, &done(set.run_id, stage, if is_set { written.rows } else { 0 }, (detail, now)))
                .await?;
        }
        Ok(())
    }
}

fn done(run_id: &RunId, stage: &Stage, rows: u64, (detail, now): (serde_json::Value, Timestamp)) -> StageRecord {
    StageRecord {
        run_id: run_id.clone(),
        stage: stage.name.clone(),
        kind: stage.kind.as_str().to_owned(),
        table: stage.table.clone(),
        status: StageStatus::Succeeded,
        rows_in: rows,
        rows_out: rows,
        started_at: now,
        seconds: 0.0,
        api_calls: Default::default(),
        detail,
        error: None,
    }
}

fn plan_of<'a>(pipeline: &'a Pipeline, push: &Push) -> Option<&'a PushTemplate> {
    pipeline.stages.iter().find(|stage| stage.name == push.stage).and_then(|stage| match &stage.kind {
        StageKind::PushTemplate(plan) => Some(plan.as_ref()),
        _ => None,
    })
}

/// The parameters the old run had: its messages are said again.
fn params_of(run: &Run) -> std::collections::BTreeMap<String, crate::config::settings::ParamValue> {
    use crate::config::settings::ParamValue;
    let given: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&run.params).unwrap_or_default();
    let value = |value: &serde_json::Value| match value {
        serde_json::Value::Bool(value) => ParamValue::Boolean(*value),
        serde_json::Value::Number(number) => number
            .as_i64()
            .map(ParamValue::Integer)
            .or_else(|| number.as_f64().map(ParamValue::Float))
            .unwrap_or_else(|| ParamValue::Text(number.to_string())),
        serde_json::Value::String(text) => ParamValue::Text(text.clone()),
        other => ParamValue::Text(other.to_string()),
    };
    given.iter().map(|(name, own)| (name.clone(), value(own))).collect()
}

/// The set to be: those of the old one who failed, numbered anew.
struct Set<'a> {
    run_id: &'a RunId,
    plan: &'a PushTemplate,
    resend: &'a Resend<'a>,
}

impl Set<'_> {
    fn slice(&self) -> String {
        format!("{}.{}", self.run_id, self.plan.recipients)
    }

    fn path(&self) -> String {
        Lake::part_path(&TableName::new("recipients"), &self.slice(), self.run_id.as_str(), 1)
    }

    fn snapshot(&self, lease: &Lease, (written, as_of): (&Written, Timestamp), now: Timestamp) -> SnapshotRecord {
        SnapshotRecord {
            id: self.run_id.to_string(),
            table: TableName::new("recipients"),
            slice: self.slice(),
            run_id: self.run_id.clone(),
            stage: self.plan.recipients.clone(),
            as_of,
            rows: written.rows,
            bytes: written.bytes,
            parts: vec![self.path()],
            columns: table_spec("recipients").expect("recipients is declared").sql_columns(),
            source_hash: None,
            made_at: now,
            fence: lease.fence,
            events_to: None,
            app_id: None,
        }
    }

    /// Writes it; gives its hash and how old its data is as well.
    async fn write(&self, hands: &Hands) -> Result<(Written, String, Timestamp), RunError> {
        let push = self.resend.push;
        let mut source = crate::stage::live::export(hands, "deliveries").await?;
        source.name = "_deliveries".to_owned();
        let old = hands.lake.absolute(&push.set_path);
        let old =
            TableSource { name: "_set".to_owned(), columns: Vec::new(), parts: vec![old], sql: None, are_alike: false };
        let (target, exported) = (hands.lake.absolute(&self.path()), source.clone());
        let code = self.resend.errcode.map_or(String::new(), |code| format!("and failed.errcode = {code}"));
        // Whoever a resend reached before, of this push or of any that shares its people, is not sent to once more.
        let before: Vec<String> =
            hands.ledger.resends_around(push).await?.iter().map(|run_id| text(run_id.as_str())).collect();
        let reached = if before.is_empty() {
            String::new()
        } else {
            format!(
                "and s.openid not in (select openid from _deliveries
                     where run_id in ({}) and state in ('sent', 'held', 'unconfirmed'))",
                before.join(", ")
            )
        };
        let sql = format!(
            "select {run} as run_id, s.pipeline, s.stage, row_number() over (order by s.seq) as seq, s.account, s.openid,
                    s.unionid, 'send' as arm, s.variables
             from _set as s join _deliveries as failed on failed.seq = s.seq
             where s.arm = 'send' and failed.run_id = {old} and failed.stage = {stage} and failed.state = 'failed' {code}
                   {reached}
             order by s.seq",
            run = text(self.run_id.as_str()),
            old = text(push.run_id.as_str()),
            stage = text(push.stage.as_str()),
        );
        let stop = tokio_util::sync::CancellationToken::new();
        let written = blocking(&hands.engine, &stop, move |session| {
            session.add_table(&source)?;
            session.add_table(&old)?;
            Ok(session.copy(&sql, &Params::new(), &target)?)
        })
        .await;
        crate::stage::live::discard(hands, &exported)?;
        let hash = crate::stage::materialize_recipients::hash_file(hands, &self.path()).await;
        Ok((written?, hash?, push.frozen_at))
    }
}
