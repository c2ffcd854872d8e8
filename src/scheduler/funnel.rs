//! A campaign's funnel: from the recipients of each arm to what became of them, by day or segment, and what the message did
//! where an outcome is known: the share of the arm that was sent to beside that of the holdout.
//!
//! Everybody of an arm counts, also whoever the message did not reach: arms were drawn before anything was sent, so only
//! whole arms compare like with like. Each view carries the SQL it was counted with.

mod outcome;
mod person;
mod segment;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::person::Found;
pub use self::person::PersonColumn;
use self::segment::{DAY, Segment};
use crate::clock::Timestamp;
use crate::engine::text;
use crate::ledger::Push;
use crate::stage::query::{QueryError, records};
use crate::stage::{Hands, StageError};

/// The funnel of one push.
#[derive(Debug, Serialize)]
pub struct FunnelView {
    pub run_id: String,
    pub pipeline: String,
    pub stage: String,
    pub account: String,
    pub first_send_at: Option<Timestamp>,
    pub by: Option<String>,
    pub outcome: Option<String>,
    /// Whether the segment is of the send, which nobody of a holdout has.
    #[serde(skip)]
    pub needs_send: bool,
    /// Arms in the order send, holdout; in each the segments with most recipients first.
    pub rows: Vec<FunnelRow>,
    /// Of everybody, then of each segment that stands in both arms; nothing without an outcome or a holdout.
    pub effects: Vec<Effect>,
    pub sql: String,
}

/// An arm, or a segment of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FunnelRow {
    /// `send` or `holdout`.
    pub arm: String,
    /// `None` where it is not known, and where there is no segment.
    pub segment: Option<String>,
    pub recipients: u64,
    pub sent: u64,
    /// Of the sent, by their finish events.
    pub delivered: u64,
    pub blocked: u64,
    pub delivery_failed: u64,
    /// Of the sent, those whose event has not come.
    pub untold: u64,
    pub failed: u64,
    pub skipped: u64,
    pub held: u64,
    pub unconfirmed: u64,
    pub pending: u64,
    /// Recipients with the outcome; `None` without one.
    pub outcome: Option<u64>,
}

/// What the message did: shares of 0 to 1.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Effect {
    /// `None`: everybody.
    pub segment: Option<String>,
    pub send_rate: f64,
    pub holdout_rate: f64,
    /// `send_rate - holdout_rate`.
    pub difference: f64,
    /// The 95 % confidence interval of the difference, by Newcombe's hybrid score method.
    pub low: f64,
    pub high: f64,
}

/// The funnel of a push, told apart by a segment and measured by an outcome where these are given.
///
/// # Errors
///
/// [`QueryError::Sql`] when a table or a column is not there, or an outcome has values that say neither yes nor no.
pub async fn funnel(
    hands: &Hands,
    push: &Push,
    (by, outcome): (Option<&str>, Option<&PersonColumn>),
) -> Result<FunnelView, QueryError> {
    let set = of_set(hands, push).await?;
    let segment = match by {
        Some(written) => Some(segment(hands, &set, written).await?),
        None => None,
    };
    let of_segment = match &segment {
        Some(segment) => Some(segment.sql(hands).await?),
        None => None,
    };
    let of_outcome = match outcome {
        Some(column) => {
            let found = Found::find(hands, column).await?;
            outcome::refuse_other_words(hands, &found, &set).await?;
            let happened = format!("bool_or({})", outcome::happened(&found.name(), push));
            Some(("count(*) filter (o.value)".to_owned(), found.join("o", &happened)))
        }
        None => None,
    };
    let sql = sql((push, &set), of_segment, of_outcome);
    let rows: Vec<FunnelRow> = records(hands, &sql).await?;
    let needs_send = segment.as_ref().is_some_and(Segment::has_day);
    Ok(FunnelView {
        run_id: push.run_id.to_string(),
        pipeline: push.pipeline.to_string(),
        stage: push.stage.to_string(),
        account: push.account.to_string(),
        first_send_at: push.first_send_at,
        by: by.map(str::to_owned),
        outcome: outcome.map(|column| format!("{}.{}", column.table, column.column)),
        effects: if needs_send { Vec::new() } else { effects(&rows, segment.is_some()) },
        needs_send,
        rows,
        sql,
    })
}

/// A variable that the set's SELECT did not give would be NULL throughout: that is a mistake in the name.
async fn segment(hands: &Hands, set: &str, written: &str) -> Result<Segment, QueryError> {
    #[derive(Deserialize)]
    struct First {
        variables: Option<String>,
    }
    let first = format!("select variables from recipients where {set} limit 1");
    let first: Vec<First> = records(hands, &first).await?;
    let variables = first.into_iter().next().map(|first| {
        let variables: Value = serde_json::from_str(&first.variables.unwrap_or_default()).unwrap_or_default();
        variables.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect::<Vec<String>>()
    });
    let segment = Segment::read(written, variables.as_deref()).map_err(|part| {
        let known = variables.as_deref().filter(|known| !known.is_empty());
        QueryError::Sql {
            message: format!("the set has no variable `{part}`"),
            offset: None,
            hint: Some(format!(
                "it has: {}; there are `{DAY}` (of the send; `variables.{DAY}` is the set's own), TABLE.COLUMN of a table with \
                 unionids, or with account and openid, and several with `+`",
                known.map_or_else(|| "none".to_owned(), |known| known.join(", "))
            )),
        }
    })?;
    if segment.has_day() && variables.is_some_and(|known| known.iter().any(|own| own == DAY)) {
        tracing::warn!("`{DAY}` is the day of the send; the set's own column of that name is `variables.{DAY}`");
    }
    Ok(segment)
}

/// A push's recipients: they stand under the stage that made the set.
async fn of_set(hands: &Hands, push: &Push) -> Result<String, QueryError> {
    let stages = hands.ledger.stages(&push.run_id).await.map_err(StageError::from)?;
    let made = stages.iter().find(|stage| stage.detail.get("set_path").and_then(Value::as_str) == Some(&push.set_path));
    let stage = made.map_or(push.stage.as_str(), |stage| stage.stage.as_str());
    Ok(of_stage(push, stage))
}

fn of_stage(push: &Push, stage: &str) -> String {
    format!("run_id = {} and stage = {}", text(push.run_id.as_str()), text(stage))
}

/// `segment` and `outcome`: their SQL over `r` and `d`, and the joins it takes.
fn sql((push, set): (&Push, &str), segment: Option<(String, String)>, outcome: Option<(String, String)>) -> String {
    let none = |ty: &str| (format!("cast(null as {ty})"), String::new());
    let (segment, of_segment) = segment.unwrap_or_else(|| none("varchar"));
    let (outcome, of_outcome) = outcome.unwrap_or_else(|| none("bigint"));
    let count = |state: &str| format!("count(*) filter (d.state = '{state}')");
    let told = |fate: &str| format!("count(*) filter (d.state = 'sent' and d.delivered = '{fate}')");
    format!(
        "select r.arm, {segment} as segment, count(*) as recipients, {sent} as sent,
       {delivered} as delivered, {blocked} as blocked, {undelivered} as delivery_failed,
       count(*) filter (d.state = 'sent' and d.delivered is null) as untold,
       {failed} as failed, {skipped} as skipped, {held} as held, {unconfirmed} as unconfirmed, {pending} as pending,
       {outcome} as outcome
from (select * from recipients where {set}) as r
left join (select * from deliveries where {own}) as d on d.seq = r.seq and r.arm = 'send'{of_segment}{of_outcome}
group by r.arm, segment
order by r.arm = 'holdout', recipients desc, segment",
        sent = count("sent"),
        delivered = told("success"),
        blocked = told("blocked"),
        undelivered = told("failed"),
        failed = count("failed"),
        skipped = count("skipped"),
        held = count("held"),
        unconfirmed = count("unconfirmed"),
        pending = count("pending"),
        own = of_stage(push, push.stage.as_str()),
    )
}

fn effects(rows: &[FunnelRow], has_segments: bool) -> Vec<Effect> {
    let sum = |arm: &str, wanted: Option<&Option<String>>| {
        let mut of = (0, 0);
        for row in rows.iter().filter(|row| row.arm == arm && wanted.is_none_or(|segment| row.segment == *segment)) {
            of = (of.0 + row.outcome?, of.1 + row.recipients);
        }
        (of.1 > 0).then_some(of)
    };
    let effect = |segment: Option<&Option<String>>| {
        let (send, holdout) = (sum("send", segment)?, sum("holdout", segment)?);
        Some(Effect { segment: segment.cloned().flatten(), ..compared(send, holdout) })
    };
    let mut effects: Vec<Effect> = effect(None).into_iter().collect();
    if has_segments {
        let segments = rows.iter().filter(|row| row.arm == "send").map(|row| &row.segment);
        effects.extend(segments.filter_map(|segment| effect(Some(segment))));
    }
    effects
}

/// The difference of two shares, each given as those with the outcome, of all (more than 0).
fn compared(send: (u64, u64), holdout: (u64, u64)) -> Effect {
    let ((p1, l1, u1), (p2, l2, u2)) = (wilson(send), wilson(holdout));
    let difference = p1 - p2;
    Effect {
        segment: None,
        send_rate: p1,
        holdout_rate: p2,
        difference,
        low: difference - ((p1 - l1).powi(2) + (u2 - p2).powi(2)).sqrt(),
        high: difference + ((u1 - p1).powi(2) + (p2 - l2).powi(2)).sqrt(),
    }
}

/// A share with its 95 % score interval (Wilson 1927).
#[expect(clippy::cast_precision_loss, reason = "people")]
fn wilson((with, all): (u64, u64)) -> (f64, f64, f64) {
    const Z: f64 = 1.959_963_984_540_054;
    let (n, share) = (all as f64, with as f64 / all as f64);
    let middle = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let whole = 1.0 + Z * Z / n;
    (share, (middle - half) / whole, (middle + half) / whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_newcombe() {
        // Newcombe, Statistics in Medicine 17 (1998) 873, table II, method 10.
        for ((send, holdout), (low, high)) in [
            (((56, 70), (48, 80)), (0.0524, 0.3339)),
            (((9, 10), (3, 10)), (0.1705, 0.8090)),
            (((5, 56), (0, 29)), (-0.0381, 0.1926)),
            (((10, 10), (0, 10)), (0.6075, 1.0)),
        ] {
            let effect = compared(send, holdout);
            assert!((effect.low - low).abs() < 6e-5 && (effect.high - high).abs() < 6e-5, "{effect:?}");
        }
    }

    #[test]
    fn an_effect_needs_both_arms_and_an_outcome() {
        let row = |arm: &str, segment: Option<&str>, recipients, outcome| FunnelRow {
            arm: arm.to_owned(),
            segment: segment.map(str::to_owned),
            recipients,
            sent: 0,
            delivered: 0,
            blocked: 0,
            delivery_failed: 0,
            untold: 0,
            failed: 0,
            skipped: 0,
            held: 0,
            unconfirmed: 0,
            pending: 0,
            outcome,
        };
        let rows = [
            row("send", Some("a"), 10, Some(5)),
            row("send", Some("b"), 10, Some(1)),
            row("holdout", Some("a"), 5, Some(1)),
        ];
        let found = effects(&rows, true);
        let shares: Vec<_> =
            found.iter().map(|own| (own.segment.as_deref(), own.send_rate, own.holdout_rate)).collect();
        assert_eq!(shares, [(None, 0.3, 0.2), (Some("a"), 0.5, 0.2)]);
        assert!(effects(&rows[..2], true).is_empty());
        assert!(effects(&[row("send", None, 10, None), row("holdout", None, 5, None)], false).is_empty());
    }
}
