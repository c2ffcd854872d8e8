//! A WeChat of its own beside the house: followers, details, templates, quotas, an inbox for everybody, and every
//! fault of the platform on order.
//!
//! It is a second reading of the platform's documentation and shares nothing with the client, not even a wire type:
//! a wrong belief must not pass its own test. Way of a call: `http` → `api` → `world` (`people`, `crowd`, `inbox`,
//! `tokens`, `quota`, `template`, `faults`) → answer; what happens later goes through `postman`. `control` is the door
//! for tests and the demo in other processes, `export` the mini program's side of the same people.
//!
//! Not simulated: tags that an account makes itself, changes of templates, subscription notices, request logs (`rid`).

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod api;
mod churn;
mod clock;
mod control;
mod crowd;
mod endpoint;
mod envelope;
mod export;
mod faults;
mod http;
mod inbox;
mod login;
mod mailbag;
mod options;
mod orders;
mod people;
mod postman;
mod quota;
mod template;
mod tokens;
mod world;

pub use churn::ChurnHabits;
pub use endpoint::Endpoint;
pub use export::{Exported, UsersOptions, write_users_csv};
pub use faults::{DuplicateAnswer, Faults, FinishHabits, FollowHabits, IdleEnd, InvalidInBatch, ListEnd, NonFollower};
pub use inbox::InboxReport;
pub use mailbag::CallbackReport;
pub use options::{Callback, CallbackMode, Options};
pub use orders::{Fault, Order};
pub use people::WORLD_BEGAN_SECONDS;
pub use template::{ORDER_TEMPLATE_ID, SALE_TEMPLATE_ID, Template};

use postman::Destination;
use world::World;

/// A running platform. Dropping it stops it; [`Simulator::stop`] also waits until it is down.
pub struct Simulator {
    world: Arc<World>,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Simulator {
    /// Starts a platform on 127.0.0.1, on the runtime this is called from. Many may run in one process.
    ///
    /// # Errors
    /// When the port is taken, the callback address is not `http://…`, or the mode of callbacks wants a key that there
    /// is not.
    pub async fn start(options: Options) -> io::Result<Self> {
        let callback = options.callback.as_ref();
        let destination = callback.map(|callback| Destination::of(callback, &options.app_id)).transpose()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port.unwrap_or(0))).await?;
        let address = listener.local_addr()?;
        let postmen = options.postmen.max(1);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let world = Arc::new(World::new(options));
        destination.into_iter().for_each(|destination| world.set_destination(destination));
        tasks.spawn(http::listen(listener, world.clone(), stop.clone(), tasks.clone()));
        let (living, stopped) = (world.clone(), stop.clone());
        tasks.spawn(async move { stopped.run_until_cancelled(live(living)).await });
        for _ in 0..postmen {
            let (world, stop) = (world.clone(), stop.clone());
            tasks.spawn(async move { stop.run_until_cancelled(postman::carry(world)).await });
        }
        Ok(Self { world, address, stop, tasks })
    }

    /// Ends every connection and waits for all tasks.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What stands in for `https://api.weixin.qq.com`: without a slash at the end.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What the world was made of.
    pub fn options(&self) -> &Options {
        &self.world.options
    }

    /// Who received how often.
    pub fn inbox(&self) -> InboxReport {
        self.world.inbox.report()
    }

    /// Empties every inbox, for a second push to be counted by itself.
    pub fn clear_inbox(&self) {
        self.world.inbox.clear();
    }

    /// Messages in this person's inbox, at most 255; 0 for nobody's openid.
    pub fn received(&self, openid: &str) -> u32 {
        self.world.people.by_openid(openid).map_or(0, |index| self.world.inbox.received(index))
    }

    /// Calls that arrived, by endpoint name (`user/get`), whatever became of them.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.world.quotas.calls()
    }

    /// How the posting of events went.
    pub fn callbacks(&self) -> CallbackReport {
        self.world.mailbag.report()
    }

    /// Enters another callback address in the account's console: events go there from now on.
    ///
    /// # Errors
    /// When the address is not `http://…`, or the mode wants a key that there is not.
    pub fn set_callback(&self, callback: &Callback) -> io::Result<()> {
        self.world.set_destination(Destination::of(callback, &self.world.options.app_id)?);
        Ok(())
    }

    /// Checks the callback address as when it is entered in the console; [`Simulator::callbacks`] tells how it went.
    pub fn check_callback(&self) {
        self.world.mailbag.put(self.world.clock.now_micros(), mailbag::Letter::Check);
    }

    /// How many follow now.
    pub fn followers(&self) -> u64 {
        self.world.live_on(&self.world.faults());
        self.world.crowd().total()
    }

    /// The ids of the person of an index: towards the account, the Open Platform account, the mini program.
    pub fn ids(&self, index: u64) -> (String, String, String) {
        let people = &self.world.people;
        (people.openid(index), people.unionid(index), people.mp_openid(index))
    }

    /// The openids of everybody who can be matched: they follow, the account sees their unionid, and the export of
    /// [`write_users_csv`] with this world's options holds it.
    pub fn matchable(&self) -> Vec<String> {
        self.world.live_on(&self.world.faults());
        let (people, crowd) = (&self.world.people, self.world.crowd());
        let (users, faults) = (self.world.options.users_options(), self.world.faults());
        let is_told = |index: &u64| self.world.told_unionid(*index, &faults) == Some(people.unionid(*index));
        let matches = |index: &u64| crowd.follows(*index) && users.holds_unionid(people, *index) && is_told(index);
        users.indices().filter(matches).map(|index| people.openid(index)).collect()
    }

    /// Moves the platform's clock.
    pub fn advance(&self, seconds: i64) {
        self.world.clock.advance(seconds);
        self.world.live_on(&self.world.faults());
        self.world.mailbag.look_again();
    }

    /// Sets the platform's clock; it goes on from there.
    pub fn set_clock(&self, at: DateTime<Utc>) {
        self.world.clock.set(at);
        self.world.live_on(&self.world.faults());
        self.world.mailbag.look_again();
    }

    /// Orders something for the next calls.
    pub fn order(&self, order: Order) {
        self.world.orders.add(order);
    }

    /// Another system of the account makes so many calls of its day.
    pub fn spend(&self, endpoint: Endpoint, calls: u64) {
        let world = &self.world;
        world.quotas.spend(endpoint, world.quota_seconds(&world.faults()), calls);
    }

    /// Takes back what was ordered and has not happened.
    pub fn clear_orders(&self) {
        self.world.orders.clear();
    }

    /// The habits that hold now.
    pub fn faults(&self) -> Faults {
        (*self.world.faults()).clone()
    }

    /// Changes the habits from the next call on.
    pub fn set_faults(&self, faults: Faults) {
        self.world.set_faults(faults);
    }

    /// Lets a person unfollow; false when they did not follow.
    pub fn unfollow(&self, openid: &str) -> bool {
        !self.world.unfollow(self.world.people.by_openid(openid)).is_empty()
    }

    /// Lets so many unfollow; their openids.
    pub fn unfollow_some(&self, count: u64) -> Vec<String> {
        self.openids(&self.world.unfollow_some(count))
    }

    /// Lets a person follow; false when they did already.
    pub fn follow(&self, openid: &str) -> bool {
        !self.world.follow(self.world.people.by_openid(openid)).is_empty()
    }

    /// Lets so many follow who never did, users of the mini program first; their openids.
    pub fn follow_some(&self, count: u64) -> Vec<String> {
        self.openids(&self.world.follow_some(count))
    }

    /// Gives a person another unionid; false when they have it already, or for nobody's openid.
    pub fn rebind(&self, openid: &str) -> bool {
        self.world.people.by_openid(openid).is_some_and(|index| self.world.rebind(index))
    }

    /// Puts a person on the account's blacklist; false for nobody's openid.
    pub fn blacklist(&self, openid: &str) -> bool {
        self.world.people.by_openid(openid).map(|index| self.world.blacklist(index, true)).is_some()
    }

    /// Lets a person refuse a template; false when there is no such person or template.
    pub fn refuse_template(&self, openid: &str, template_id: &str) -> bool {
        let (index, template) = (self.world.people.by_openid(openid), self.world.template(template_id));
        index.zip(template).map(|(index, template)| self.world.refuse(index, template, true)).is_some()
    }

    /// Removes a template from the account; false when there is none of that id.
    pub fn kill_template(&self, template_id: &str) -> bool {
        self.world.kill_template(template_id)
    }

    /// Ends all tokens, as when somebody else refreshed by force.
    pub fn revoke_tokens(&self) {
        self.world.tokens.write().expect("no holder of the tokens panics").revoke();
    }

    /// The current stable token is refused from now on, and still given out to whoever asks: only a forced one helps.
    pub fn spoil_token(&self) {
        self.world.tokens.write().expect("no holder of the tokens panics").spoil();
    }

    /// How many tokens were forced on the last day on which any was.
    pub fn forced_tokens(&self) -> u32 {
        self.world.tokens.read().expect("no holder of the tokens panics").forced_today()
    }

    /// A login code of the mini program for the person of an index.
    pub fn login_code(&self, index: u64) -> String {
        let mut logins = self.world.logins.lock().expect("no holder of the logins panics");
        logins.issue(index, self.world.clock.now_seconds())
    }

    fn openids(&self, indices: &[u64]) -> Vec<String> {
        indices.iter().map(|index| self.world.people.openid(*index)).collect()
    }
}

/// Lets the world go on while nobody calls: those who come and go are told of all the same.
async fn live(world: Arc<World>) {
    loop {
        world.clock.wait(std::time::Duration::from_secs(1)).await;
        world.live_on(&world.faults());
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests;
