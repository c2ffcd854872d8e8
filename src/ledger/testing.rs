//! What the tests of this room share: a ledger in a folder of its own, with a lease, and short ways to its rows.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::domain::{AccountName, DeliveryState, OpenId, PipelineName, RunId, StageName, TemplateId};

/// So many seconds after a moment that all tests take for the start.
pub(super) fn at(seconds: i64) -> crate::clock::Timestamp {
    crate::clock::from_micros((1_795_400_000 + seconds) * 1_000_000)
}

pub(super) struct House {
    pub(super) ledger: Ledger,
    pub(super) lease: Lease,
    pub(super) path: PathBuf,
    _folder: tempfile::TempDir,
}

impl House {
    pub(super) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/ledger.db");
        let ledger = Ledger::open(&path).await.unwrap();
        let lease = acquire(&ledger, "first").await;
        Self { ledger, lease, path, _folder: folder }
    }

    /// Lets somebody else take the lease, who gets it back as its own.
    pub(super) async fn lose_lease(&self) -> Lease {
        self.ledger.renew_lease(&self.lease, Duration::ZERO).await.unwrap();
        acquire(&self.ledger, "second").await
    }

    pub(super) async fn run(&self, run_id: &str) -> Run {
        let new = NewRun {
            run_id: RunId::new(run_id),
            pipeline: PipelineName::new("nightly"),
            trigger: "hand".into(),
            scheduled_for: None,
            today: at(0).date_naive(),
            run_at: at(0),
            params: "{}".into(),
            is_test: false,
            started_at: at(0),
        };
        self.ledger.begin_run(&self.lease, new).await.unwrap()
    }

    pub(super) async fn push(&self, run_id: &str, recipients: u64) -> Push {
        self.run(run_id).await;
        self.push_again(run_id, recipients).await
    }

    pub(super) async fn push_again(&self, run_id: &str, recipients: u64) -> Push {
        let new = NewPush {
            run_id: RunId::new(run_id),
            pipeline: PipelineName::new("nightly"),
            stage: StageName::new("push"),
            account: AccountName::new("main"),
            template_id: TemplateId::new("tpl-sale-0000"),
            set_hash: "set".into(),
            set_path: "sets/r1.parquet".into(),
            frozen_at: at(0),
            recipients,
            is_test: false,
        };
        self.ledger.create_push(&self.lease, new).await.unwrap()
    }

    pub(super) async fn reload(&self, push: &Push) -> Push {
        self.ledger.push_by_key(push.key).await.unwrap().unwrap()
    }

    pub(super) async fn begin(&self, push: &Push, batch: Begin<'_>) -> Begun {
        self.ledger.begin_sends(&self.lease, push.key, batch).await.unwrap()
    }

    pub(super) async fn record(&self, push: &Push, outcomes: &[Outcome]) -> Recorded {
        self.ledger.record_outcomes(&self.lease, push.key, only(outcomes)).await.unwrap()
    }
}

async fn acquire(ledger: &Ledger, id: &str) -> Lease {
    match ledger.acquire_lease("house", &Holder::this_process(id.into()), Duration::from_secs(60)).await.unwrap() {
        Acquired::Mine(lease) => lease,
        Acquired::HeldBy(holder) => panic!("held by {holder:?}"),
    }
}

pub(super) fn people(seqs: RangeInclusive<u64>) -> Vec<(u64, OpenId)> {
    seqs.map(|seq| (seq, OpenId::new(format!("oPERSON-{seq:08}")))).collect()
}

pub(super) fn intents(people: &[(u64, OpenId)]) -> Vec<Intent<'_>> {
    people.iter().map(|(seq, openid)| Intent { seq: *seq, openid, unionid: None }).collect()
}

/// A batch of fresh recipients only.
pub(super) fn fresh<'a>(intents: &'a [Intent<'a>]) -> Begin<'a> {
    let claimed_to = intents.last().map_or(0, |intent| intent.seq);
    Begin {
        fresh: intents,
        again: &[],
        once_more: false,
        left_out: &[],
        skipped: &[],
        claimed_to,
        quota: None,
        daily_limit: None,
        cap: None,
        now: at(0),
    }
}

/// A batch of outcomes only.
pub(super) fn only(outcomes: &[Outcome]) -> OutcomeBatch<'_> {
    OutcomeBatch { outcomes, suppressions: &[], gone: &[], give_back: None, errors: 0, now: at(1) }
}

pub(super) fn outcome(seq: u64, attempt: u32, state: DeliveryState) -> Outcome {
    Outcome { seq, attempt, state, reason: None, errcode: None, msgid: None, at: at(1), retry_at: None }
}
