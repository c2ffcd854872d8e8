//! `serve`: wakes the scheduler, answers over HTTP, and takes over changed files, until it is told to stop.
//!
//! One process a ledger does this; it holds the lease `serve`, and a standby waits for it. The way: lease → listen → each
//! second a look at the clock ([`crate::scheduler::clockwork`]) and at the files ([`reload`]); events that are posted are kept
//! and applied ([`callback`], [`mailroom`]) → on a stop, every run settles, then the lease is given back. What is due and what a run does is the scheduler's.

mod callback;
mod health;
mod lease;
mod mailroom;
mod metrics;
mod reload;
mod router;

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};
use tokio_util::sync::CancellationToken;

use self::lease::Keeper;
use self::mailroom::Mailroom;
use self::reload::Watcher;
use self::router::{Door, House};
use crate::app::App;
use crate::calendar::next_fire;
use crate::ledger::{Acquired, Holder, Lease, LedgerError};
use crate::scheduler::clockwork::{Clockwork, LEASE_NAME};
use crate::scheduler::runners::Runners;

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A look is never further away than this, even when the machine's clock was set back and the waker sleeps.
const LOOK_AT_LATEST: Duration = Duration::from_secs(5);
/// What is in flight may take this long to settle.
const SETTLE: Duration = Duration::from_secs(10);
/// How long an open request may keep the process after that.
const HANG_UP: Duration = Duration::from_secs(1);

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    pub listen: SocketAddr,
    /// Wait while another process serves, instead of refusing.
    pub is_standby: bool,
}

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("process {} on {} serves this workspace already", holder.pid, holder.host)]
    HeldBy { holder: Holder },
    #[error("another process took over")]
    Replaced,
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the waker cannot be started")]
    Waker(#[from] JobSchedulerError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A process that serves, or stands by.
pub struct Server {
    house: House,
    holder: Holder,
    lease: Option<Lease>,
    address: SocketAddr,
    listener: TcpListener,
}

impl Server {
    /// Takes the lease, unless it stands by, and the address.
    ///
    /// # Errors
    ///
    /// [`ServeError::HeldBy`] when another process serves; [`ServeError::Listen`] when the address is taken.
    pub async fn start(app: App, options: &Options) -> Result<Self, ServeError> {
        let ledger = app.hands().ledger.clone();
        let holder = app.conductor.holder.clone();
        let lease = match ledger.acquire_lease(LEASE_NAME, &holder, lease::LEASE).await? {
            Acquired::Mine(lease) => Some(lease),
            Acquired::HeldBy(_) if options.is_standby => None,
            Acquired::HeldBy(holder) => return Err(ServeError::HeldBy { holder }),
        };
        match listen(options.listen).await {
            Ok((listener, address)) => {
                let house = House::new(app, holder.id.clone(), address);
                Ok(Self { house, holder, lease, address, listener })
            }
            Err(error) => {
                if let Some(lease) = lease {
                    ledger.release_lease(&lease).await?;
                }
                Err(error)
            }
        }
    }

    /// Where it listens: the port that was found free when port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it waits for another process to end.
    pub fn stands_by(&self) -> bool {
        self.lease.is_none()
    }

    /// Serves until `stop`, then settles what is in flight.
    ///
    /// # Errors
    ///
    /// [`ServeError::Replaced`] when another process took the lease over; everything of this one has settled then.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServeError> {
        let hang_up = CancellationToken::new();
        let hands = self.house.app().hands().clone();
        let (mailroom, keeping) = Mailroom::open(hands.ledger.clone(), hands.clock);
        let kept = mailroom.kept();
        let door = Door::new(self.house.clone(), stop.clone(), mailroom);
        let http = tokio::spawn(router::answer(self.listener, door, hang_up.clone()));
        let lease = match self.lease {
            Some(lease) => Some(lease),
            None => lease::wait_for(&self.house, &self.holder, &stop).await?,
        };
        let served = match lease {
            Some(lease) => serve(&self.house, lease, kept, &stop).await,
            None => Ok(()),
        };
        hang_up.cancel();
        // Who keeps a request open longer than this is cut off.
        let _ = tokio::time::timeout(HANG_UP, http).await;
        // What was handed in and is not written by then is told again by the platform: nobody answered it.
        let _ = tokio::time::timeout(HANG_UP, keeping).await;
        served
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let refused = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}

/// Looks until `stop` or until the lease is lost.
async fn serve(house: &House, lease: Lease, kept: Arc<Notify>, stop: &CancellationToken) -> Result<(), ServeError> {
    let app = house.app();
    let (clock, ledger) = (app.hands().clock, app.hands().ledger.clone());
    let over = stop.child_token();
    let keeper = Keeper::start(ledger.clone(), clock, lease.clone(), over.clone());
    let runners = Runners::new(app.metrics.clone(), over.clone());
    let mut clockwork = Clockwork::new(runners.clone(), app.metrics.clone(), clock.now());
    let mut watcher = Watcher::new(&app.hands().settings.root);
    let wake = Arc::new(Notify::new());
    let mut waker = waker(wake.clone()).await?;
    let applying = tokio::spawn(mailroom::apply(house.clone(), kept, over.clone()));
    let telling = tokio::spawn(tell_late(house.clone(), over.clone()));
    tell_next_fires(&app);
    while !over.is_cancelled() {
        if let Some(changed) = watcher.look(&house.app()).await {
            tell_next_fires(&changed);
            house.move_to(changed);
        }
        if let Err(error) = clockwork.look(&house.app().conductor).await {
            tracing::warn!(error = %error, "a look at the clock broke off; the next one goes on");
        }
        tokio::select! {
            () = wake.notified() => {}
            () = clock.sleep(LOOK_AT_LATEST) => {}
            () = over.cancelled() => {}
        }
    }
    waker.shutdown().await?;
    // It ends with `over`; a panic of its own was told already.
    let _ = applying.await;
    let _ = telling.await;
    if !runners.settle(SETTLE).await {
        tracing::warn!("not everything has settled in {} s; the next start goes on from the ledger", SETTLE.as_secs());
    }
    let is_ours = keeper.end().await;
    ledger.release_lease(&lease).await?;
    if is_ours { Ok(()) } else { Err(ServeError::Replaced) }
}

/// Posts the alerts that could not be delivered, under the settings of now, until `over`.
async fn tell_late(house: House, over: CancellationToken) {
    while !over.is_cancelled() {
        house.app().conductor.alerts.post_later(&over).await;
    }
}

/// Wakes us each second. What is due, and in which zone, is never asked of it: it knows neither missed times nor clocks
/// that change.
async fn waker(wake: Arc<Notify>) -> Result<JobScheduler, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    scheduler.add(Job::new_repeated(LOOK, move |_, _| wake.notify_one())?).await?;
    scheduler.start().await?;
    Ok(scheduler)
}

fn tell_next_fires(app: &App) {
    let settings = &app.hands().settings;
    let now = app.hands().clock.now();
    for pipeline in settings.pipelines.values() {
        let Some(schedule) = &pipeline.schedule else { continue };
        match next_fire(schedule, settings.timezone, now) {
            Some(at) => {
                let local = at.with_timezone(&settings.timezone).format("%F %T %Z");
                tracing::info!(pipeline = %pipeline.name, "`{}` fires next at {local}", pipeline.name);
            }
            None => tracing::info!(pipeline = %pipeline.name, "`{}` does not fire any more", pipeline.name),
        }
    }
}

/// The house as it is now: settings change under it.
type Current = Arc<RwLock<App>>;

#[cfg(test)]
mod tests;
