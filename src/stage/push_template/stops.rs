//! Why and whether a push comes to a stop.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Timestamp};
use crate::ledger::LedgerError;
use crate::stage::StageError;

/// Of the ten seconds that a stop may take, what is left for the end of the run is enough for a process that ends.
const STOPPED_WITHIN: Duration = Duration::from_millis(9_200);

/// Why sending came to a stop.
#[derive(Debug)]
pub enum End {
    /// Nobody is left to claim now.
    Exhausted,
    /// 45009, or nothing left of our own ceiling.
    QuotaSpent {
        why: String,
        said_by: SaidBy,
    },
    /// 40036 or 40037: look at the list of templates once before believing it.
    TemplateGone {
        errcode: i64,
    },
    Halted {
        errcode: Option<i64>,
        why: String,
    },
    /// Nobody has been answered for long.
    Unanswered {
        why: String,
    },
    WindowClosed {
        opens: Timestamp,
    },
    DailyLimit {
        until: Timestamp,
    },
    /// The first messages are sent: they are to be judged before the others.
    CanarySent,
    Paused,
    /// The stop switch of its account is on.
    Frozen,
    /// Its approval is missing, or of something else.
    Unapproved,
    Expired,
    Interrupted,
    Failed(StageError),
}

impl End {
    /// In words, as far as an answer of WeChat says it.
    pub fn told(&self) -> String {
        match self {
            Self::QuotaSpent { why, .. } | Self::Halted { why, .. } | Self::Unanswered { why } => why.clone(),
            Self::TemplateGone { errcode } => format!("WeChat says {errcode} of the template"),
            other => format!("{other:?}"),
        }
    }
}

/// Who says that the day's calls are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaidBy {
    /// 45009.
    WeChat,
    /// Our own count.
    Ledger,
}

/// Why and whether a push comes to a stop.
pub struct Stops {
    /// Cancelled to take no more; what is in flight still settles.
    pub halt: CancellationToken,
    /// Cancelled besides when somebody keeps the ledger busy: whatever else is to be written would wait its full time too.
    pub ledger_is_kept: CancellationToken,
    ending: Mutex<Option<End>>,
    /// Why no more is claimed; what is claimed is still sent.
    run_out: Mutex<Option<End>>,
}

impl Stops {
    pub fn new(halt: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            halt,
            ledger_is_kept: CancellationToken::new(),
            ending: Mutex::new(None),
            run_out: Mutex::new(None),
        })
    }

    /// Stops at once: what is in flight settles, what was claimed and not sent is put back. The first reason stands; says
    /// whether this is it.
    pub fn stop(&self, end: End) -> bool {
        if let End::Failed(StageError::Ledger(LedgerError::Busy { .. })) = &end {
            self.ledger_is_kept.cancel();
        }
        let mut ending = self.ending.lock().expect("nobody panics while holding the reason");
        let is_first = ending.is_none();
        if is_first {
            *ending = Some(end);
        }
        drop(ending);
        self.halt.cancel();
        is_first
    }

    /// Comes when no write to the ledger is waited for any more: somebody keeps it busy, or a stop has taken its time. What
    /// could not be recorded is found again as in flight.
    pub async fn out_of_patience(&self, clock: Clock) {
        let has_taken_its_time = async {
            self.halt.cancelled().await;
            clock.sleep(STOPPED_WITHIN).await;
        };
        tokio::select! {
            () = self.ledger_is_kept.cancelled() => {}
            () = has_taken_its_time => {}
        }
    }

    /// Whether it stops because WeChat refused a send with 45009.
    pub fn is_quota_refused(&self) -> bool {
        let ending = self.ending.lock().expect("nobody panics while holding the reason");
        matches!(*ending, Some(End::QuotaSpent { said_by: SaidBy::WeChat, .. }))
    }

    /// Claims come to an end; what is claimed has its call reserved, so it is sent. Whatever stops that comes before this.
    pub fn run_out(&self, end: End) {
        *self.run_out.lock().expect("nobody panics while holding the reason") = Some(end);
    }

    /// Why it came to a stop, once it has.
    pub fn reason(&self, is_interrupted: bool) -> End {
        let ending = self.ending.lock().expect("nobody panics while holding the reason").take();
        let run_out = self.run_out.lock().expect("nobody panics while holding the reason").take();
        match ending {
            Some(end) => end,
            None if is_interrupted => End::Interrupted,
            None => run_out.unwrap_or(End::Exhausted),
        }
    }
}
