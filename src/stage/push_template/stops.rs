//! Why and whether a push comes to a stop.

use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use crate::clock::Timestamp;
use crate::stage::StageError;

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
    ending: Mutex<Option<End>>,
    /// Why no more is claimed; what is claimed is still sent.
    run_out: Mutex<Option<End>>,
}

impl Stops {
    pub fn new(halt: CancellationToken) -> Arc<Self> {
        Arc::new(Self { halt, ending: Mutex::new(None), run_out: Mutex::new(None) })
    }

    /// Stops at once: what is in flight settles, what was claimed and not sent is put back. The first reason stands.
    pub fn stop(&self, end: End) {
        let mut ending = self.ending.lock().expect("nobody panics while holding the reason");
        if ending.is_none() {
            tracing::debug!("the push stops: {end:?}");
            *ending = Some(end);
        }
        drop(ending);
        self.halt.cancel();
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
