//! Keeps events on the disk before they are answered, many with one write, and applies them afterwards.
//!
//! Whoever is posted an event hands it in and waits. One task takes whatever has gathered while it wrote the last group,
//! writes it in one transaction, and lets everybody of that group answer. Nothing is held back on purpose: alone, an event
//! waits for one write; in a storm, groups grow. Another task applies what was kept, a moment later, and holds nobody up.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::router::House;
use crate::clock::{Clock, Timestamp};
use crate::ledger::{Ledger, LedgerError, NewCallback};
use crate::scheduler::{catalog, events, reviews};

/// Events of one transaction.
const LARGEST_GROUP: usize = 512;
/// Events that may wait to be written; whoever comes past it waits at the door.
const WAITING: usize = 8_192;
/// The platform waits five seconds; it is told before that that it has to try again.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two rounds of applying, so that a storm is applied in large batches.
const BREATH: Duration = Duration::from_millis(100);
/// What is early, or was kept by a standby, is found by looking.
const LOOK: Duration = Duration::from_secs(1);
const ASK_EVERY: TimeDelta = TimeDelta::seconds(30);
const TIDY_EVERY: TimeDelta = TimeDelta::hours(1);
/// What the catalog shows of followers is at most this much behind what was told of them.
const CATALOG_EVERY: TimeDelta = TimeDelta::minutes(10);

/// Hands events in. Cheap to clone.
#[derive(Clone)]
pub struct Mailroom {
    letters: mpsc::Sender<Letter>,
    kept: Arc<Notify>,
}

struct Letter {
    event: NewCallback,
    is_kept: oneshot::Sender<bool>,
}

impl Mailroom {
    /// Opens it; the task ends when every clone is gone and all that was handed in is written.
    pub fn open(ledger: Ledger, clock: Clock) -> (Self, JoinHandle<()>) {
        let (letters, inbox) = mpsc::channel(WAITING);
        let kept = Arc::new(Notify::new());
        let task = tokio::spawn(keep(inbox, ledger, clock, kept.clone()));
        (Self { letters, kept }, task)
    }

    /// Waits until the event is on the disk; false when it is not, and the platform has to try again.
    pub async fn take(&self, event: NewCallback) -> bool {
        let (is_kept, answer) = oneshot::channel();
        let handed_in = async {
            self.letters.send(Letter { event, is_kept }).await.ok()?;
            answer.await.ok()
        };
        matches!(tokio::time::timeout(PATIENCE, handed_in).await, Ok(Some(true)))
    }

    /// Told after every group.
    pub fn kept(&self) -> Arc<Notify> {
        self.kept.clone()
    }
}

async fn keep(mut inbox: mpsc::Receiver<Letter>, ledger: Ledger, clock: Clock, kept: Arc<Notify>) {
    let mut letters = Vec::with_capacity(LARGEST_GROUP);
    while inbox.recv_many(&mut letters, LARGEST_GROUP).await > 0 {
        let (events, waiting): (Vec<_>, Vec<_>) =
            letters.drain(..).map(|letter| (letter.event, letter.is_kept)).unzip();
        let is_kept = match ledger.keep_callbacks(&events, clock.now()).await {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(error = %error, "{} events could not be kept: the platform has to try again", events.len());
                false
            }
        };
        for waiting in waiting {
            // Whoever gave up waiting is told again by the platform.
            let _ = waiting.send(is_kept);
        }
        kept.notify_one();
    }
}

/// Applies what was kept until `over`.
pub async fn apply(house: House, kept: Arc<Notify>, over: CancellationToken) {
    let clock = house.app().hands().clock;
    let mut chores = Chores { asked_at: clock.now(), tidied_at: clock.now(), shown_at: None, is_news: false };
    loop {
        if let Err(error) = chores.round(&house).await {
            tracing::warn!(error = %error, "events could not be applied; the next round goes on");
        }
        tokio::select! {
            () = clock.sleep(BREATH) => {}
            () = over.cancelled() => return,
        }
        tokio::select! {
            () = kept.notified() => {}
            () = clock.sleep(LOOK) => {}
            () = over.cancelled() => return,
        }
    }
}

/// What is done now and then beside applying.
struct Chores {
    asked_at: Timestamp,
    tidied_at: Timestamp,
    /// When the catalog was last written here.
    shown_at: Option<Timestamp>,
    /// Whether somebody came or went since.
    is_news: bool,
}

impl Chores {
    async fn round(&mut self, house: &House) -> Result<(), LedgerError> {
        let app = house.app();
        let hands = app.hands();
        let applied = events::apply(hands).await?;
        if applied.looked_at > 0 {
            tracing::debug!(
                looked_at = applied.looked_at,
                told = applied.told,
                settled = applied.settled,
                marked = applied.marked,
                early = applied.early,
                "events were applied"
            );
        }
        let now = hands.clock.now();
        if now - self.asked_at >= ASK_EVERY || applied.marked > 0 {
            self.asked_at = now;
            events::ask_undecided(hands).await?;
            reviews::follow_up(hands).await?;
        }
        self.is_news |= applied.marked > 0;
        if self.is_news && self.shown_at.is_none_or(|at| now - at >= CATALOG_EVERY) {
            (self.shown_at, self.is_news) = (Some(now), false);
            if let Err(error) = catalog::refresh(hands).await {
                tracing::warn!(error = %error, "the catalog stays as it was");
            }
        }
        if now - self.tidied_at >= TIDY_EVERY {
            self.tidied_at = now;
            hands.ledger.drop_callbacks(now - events::KEPT).await?;
        }
        Ok(())
    }
}
