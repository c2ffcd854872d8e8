//! One simulated account with everything that belongs to it; many may live in one process.
//!
//! `api` answers calls out of it, `control` changes it, `postman` posts what it owes. Every method is quick and none
//! waits, so calls are answered where they were read.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::churn::Lived;
use super::clock::SimulatedClock;
use super::crowd::Crowd;
use super::faults::{Faults, Turns};
use super::inbox::{Inbox, Remembered};
use super::login::Logins;
use super::mailbag::{Letter, Mailbag};
use super::options::Options;
use super::orders::Orders;
use super::people::{People, PeopleOptions, Trait, mix};
use super::postman::Destination;
use super::quota::Quotas;
use super::template::Template;
use super::tokens::TokenBook;

/// Blocked messages that queryblocktmplmsg remembers.
const BLOCKED_KEPT: usize = 10_000;

/// Cursors of the follower list whose page is known; those of one walk of a thousand million.
const CURSORS_KEPT: usize = 100_000;

/// Everything there is.
pub struct World {
    pub options: Options,
    pub clock: SimulatedClock,
    pub people: People,
    pub inbox: Inbox,
    pub quotas: Quotas,
    pub templates: Vec<LiveTemplate>,
    pub tokens: RwLock<TokenBook>,
    pub logins: Mutex<Logins>,
    /// Accepted `client_msg_id`s.
    pub sent_ids: Remembered,
    /// Messages of the last minute, when the 60-second rule holds.
    pub sent_lately: Remembered,
    /// People who were sent something, when a habit asks for it.
    pub reached_lately: Remembered,
    pub turns: Turns,
    pub orders: Orders,
    pub mailbag: Mailbag,
    /// Whether events are posted, which every send asks.
    has_callback: AtomicBool,
    destination: RwLock<Option<Arc<Destination>>>,
    crowd: RwLock<Crowd>,
    pub(super) lived: Lived,
    /// Cursor → the number of the page that it asks for, where a habit wants to know.
    pages: Mutex<HashMap<u64, u64>>,
    /// People whose unionid has changed, one by one.
    rebound: RwLock<HashSet<u64>>,
    refusals: RwLock<HashSet<(u64, usize)>>,
    remarks: RwLock<HashMap<u64, String>>,
    /// People to whom a send is being answered, when a habit asks for it.
    being_answered: Mutex<HashSet<u64>>,
    blocked: Mutex<Vec<Blocked>>,
    faults: RwLock<Arc<Faults>>,
    calls: AtomicU64,
}

/// A template and whether it is still there.
pub struct LiveTemplate {
    pub template: Template,
    pub keys: Vec<String>,
    dead: AtomicBool,
}

/// A message that the review refused.
#[derive(Debug, Clone)]
pub struct Blocked {
    pub id: u64,
    pub template_id: String,
    pub title: String,
    pub index: u64,
    pub sent_at_seconds: i64,
}

impl LiveTemplate {
    fn new(template: Template) -> Self {
        Self { keys: template.keys(), template, dead: AtomicBool::new(false) }
    }

    pub fn is_alive(&self) -> bool {
        !self.dead.load(Ordering::Relaxed)
    }
}

impl World {
    pub fn new(options: Options) -> Self {
        let people = People::new(&PeopleOptions {
            seed: options.seed,
            bound_share: options.bound_share,
            room: options.room(),
            app_id: &options.app_id,
            miniprogram_app_id: &options.miniprogram_app_id,
        });
        let world = Self {
            clock: SimulatedClock::default(),
            inbox: Inbox::new(people.capacity()),
            quotas: Quotas::new(options.followers, &options.quota),
            templates: options.templates.iter().cloned().map(LiveTemplate::new).collect(),
            tokens: RwLock::new(TokenBook::new(options.seed, options.token_lifetime_seconds)),
            logins: Mutex::default(),
            sent_ids: Remembered::default(),
            sent_lately: Remembered::default(),
            reached_lately: Remembered::default(),
            turns: Turns::default(),
            orders: Orders::default(),
            mailbag: Mailbag::default(),
            has_callback: AtomicBool::new(false),
            destination: RwLock::default(),
            crowd: RwLock::new(Crowd::new(options.followers)),
            lived: Lived::default(),
            pages: Mutex::default(),
            rebound: RwLock::default(),
            refusals: RwLock::default(),
            remarks: RwLock::default(),
            being_answered: Mutex::default(),
            blocked: Mutex::default(),
            faults: RwLock::new(Arc::new(options.faults.clone())),
            calls: AtomicU64::new(0),
            people,
            options,
        };
        world.begin_to_live();
        world
    }

    /// The habits that hold now.
    pub fn faults(&self) -> Arc<Faults> {
        self.faults.read().expect("no holder of the habits panics").clone()
    }

    /// Until now the old habits held, from now on these.
    pub fn set_faults(&self, faults: Faults) {
        self.live_on(&self.faults());
        self.begin_to_live();
        *self.faults.write().expect("no holder of the habits panics") = Arc::new(faults);
    }

    pub fn has_callback(&self) -> bool {
        self.has_callback.load(Ordering::Relaxed)
    }

    /// Where events are posted now.
    pub fn destination(&self) -> Option<Arc<Destination>> {
        self.destination.read().expect("no holder of the destination panics").clone()
    }

    /// Events go there from the next one on.
    pub fn set_destination(&self, destination: Destination) {
        *self.destination.write().expect("no holder of the destination panics") = Some(Arc::new(destination));
        self.has_callback.store(true, Ordering::Relaxed);
    }

    /// The second that the quota day is judged by: behind the clock while the reset lags.
    pub fn quota_seconds(&self, faults: &Faults) -> i64 {
        self.clock.now_seconds() - faults.quota_reset_lag_seconds
    }

    /// A number that no other call has.
    pub fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    pub fn crowd(&self) -> RwLockReadGuard<'_, Crowd> {
        self.crowd.read().expect("no holder of the crowd panics")
    }

    pub(super) fn crowd_to_change(&self) -> RwLockWriteGuard<'_, Crowd> {
        self.crowd.write().expect("no holder of the crowd panics")
    }

    /// Lets these people unfollow and says so to the callback; those who do not follow are passed over.
    pub fn unfollow(&self, indices: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut crowd = self.crowd.write().expect("no holder of the crowd panics");
        let gone: Vec<u64> = indices.into_iter().filter(|index| crowd.unfollow(*index)).collect();
        drop(crowd);
        self.announce(&gone, false, self.clock.now_seconds());
        gone
    }

    /// Lets these people follow and says so to the callback; those who follow already are passed over.
    pub fn follow(&self, indices: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let now = self.clock.now_seconds();
        let mut crowd = self.crowd.write().expect("no holder of the crowd panics");
        let come: Vec<u64> = indices.into_iter().filter(|index| crowd.follow(*index, now)).collect();
        drop(crowd);
        self.announce(&come, true, now);
        come
    }

    /// So many followers leave, as far as there are any.
    pub fn unfollow_some(&self, count: u64) -> Vec<u64> {
        let mut crowd = self.crowd.write().expect("no holder of the crowd panics");
        let some: Vec<u64> = (0..count).map_while(|_| crowd.leaver()).collect();
        drop(crowd);
        self.unfollow(some)
    }

    /// So many people come who never followed, as far as there is room for them; users of the mini program first.
    pub fn follow_some(&self, count: u64) -> Vec<u64> {
        let mut crowd = self.crowd.write().expect("no holder of the crowd panics");
        let some: Vec<u64> = (0..count).map_while(|_| crowd.newcomer(self.people.capacity())).collect();
        drop(crowd);
        self.follow(some)
    }

    /// Keeps a person out by the account's own wish, or no longer.
    pub fn blacklist(&self, index: u64, keep_out: bool) {
        self.crowd.write().expect("no holder of the crowd panics").blacklist(index, keep_out);
    }

    /// Tells the callback of people who came or went at this second.
    pub(super) fn announce(&self, indices: &[u64], comes: bool, at_seconds: i64) {
        if indices.is_empty() || !self.has_callback() {
            return;
        }
        let faults = self.faults();
        let (habits, now) = (&faults.follow_events, self.clock.now_micros());
        for index in indices.iter().copied() {
            let draw = mix(index ^ mix(self.next_call()));
            if habits.missing_every > 0 && draw.is_multiple_of(habits.missing_every) {
                continue;
            }
            let is_repeated = habits.repeated_every > 0 && mix(draw).is_multiple_of(habits.repeated_every);
            let spread = mix(draw ^ 1) % (u64::from(habits.spread_milliseconds) + 1);
            let wait = i64::from(habits.delay_milliseconds) + i64::try_from(spread).expect("a spread fits in 32 bits");
            let copies = if is_repeated { 3 } else { 1 };
            let letter = Letter::Follow { index, comes, at_seconds, copies };
            self.mailbag.put(now + wait * 1_000, letter);
        }
    }

    /// The number of the page that a cursor asks for, as far as it was given out.
    pub fn page_number(&self, cursor: Option<u64>) -> u64 {
        let pages = self.pages.lock().expect("no holder of the pages panics");
        cursor.map_or(1, |cursor| pages.get(&cursor).copied().unwrap_or(0))
    }

    /// This cursor asks for that page.
    pub fn note_cursor(&self, cursor: u64, page: u64) {
        let mut pages = self.pages.lock().expect("no holder of the pages panics");
        if pages.len() >= CURSORS_KEPT {
            pages.clear();
        }
        pages.insert(cursor, page);
    }

    /// This person has another unionid from now on; false when that was so already.
    pub fn rebind(&self, index: u64) -> bool {
        self.rebound.write().expect("no holder of the unionids panics").insert(index)
    }

    /// Whether a person's unionid is another than the mini program knows.
    pub fn is_rebound(&self, index: u64, faults: &Faults) -> bool {
        let rebound = self.rebound.read().expect("no holder of the unionids panics");
        (!rebound.is_empty() && rebound.contains(&index))
            || self.people.one_in(index, Trait::ChangedUnionid, faults.changed_unionid_every)
    }

    /// The unionid that the account is told of a person today, if any.
    pub fn told_unionid(&self, index: u64, faults: &Faults) -> Option<String> {
        let people = &self.people;
        if !people.is_bound(index) || people.one_in(index, Trait::MissingUnionid, faults.missing_unionid_every) {
            return None;
        }
        Some(if self.is_rebound(index, faults) { people.later_unionid(index) } else { people.unionid(index) })
    }

    /// What the account calls this person, if anything.
    pub fn remark(&self, index: u64) -> Option<String> {
        let remarks = self.remarks.read().expect("no holder of the remarks panics");
        if remarks.is_empty() { None } else { remarks.get(&index).cloned() }
    }

    pub fn set_remark(&self, index: u64, remark: String) {
        self.remarks.write().expect("no holder of the remarks panics").insert(index, remark);
    }

    /// Begins to answer a send to this person; false when another one is being answered.
    pub fn begin_answer(&self, index: u64) -> bool {
        self.being_answered.lock().expect("no holder of the set panics").insert(index)
    }

    /// The answer is on its way.
    pub fn end_answer(&self, index: u64) {
        self.being_answered.lock().expect("no holder of the set panics").remove(&index);
    }

    /// The place of a template that is still there.
    pub fn template(&self, template_id: &str) -> Option<usize> {
        self.templates.iter().position(|live| live.template.template_id == template_id && live.is_alive())
    }

    /// Removes a template, as a change of the account's category does; false when there is none of that id.
    pub fn kill_template(&self, template_id: &str) -> bool {
        let found = self.template(template_id);
        found.inspect(|place| self.templates[*place].dead.store(true, Ordering::Relaxed)).is_some()
    }

    /// This person refuses this template from now on, or takes it back.
    pub fn refuse(&self, index: u64, template: usize, refuses: bool) {
        let mut refusals = self.refusals.write().expect("no holder of the refusals panics");
        if refuses {
            refusals.insert((index, template));
        } else {
            refusals.remove(&(index, template));
        }
    }

    pub fn refuses(&self, index: u64, template: usize) -> bool {
        let refusals = self.refusals.read().expect("no holder of the refusals panics");
        !refusals.is_empty() && refusals.contains(&(index, template))
    }

    /// Remembers a message that the review refused.
    pub fn block(&self, blocked: Blocked) {
        let mut all = self.blocked.lock().expect("no holder of the blocked messages panics");
        if all.len() < BLOCKED_KEPT {
            all.push(blocked);
        }
    }

    /// The blocked messages of a template, newest first, below `largest_id` unless that is 0.
    pub fn blocked(&self, template_id: &str, largest_id: u64, limit: usize) -> Vec<Blocked> {
        let all = self.blocked.lock().expect("no holder of the blocked messages panics");
        let wanted = |one: &&Blocked| one.template_id == template_id && (largest_id == 0 || one.id < largest_id);
        all.iter().rev().filter(wanted).take(limit).cloned().collect()
    }
}
