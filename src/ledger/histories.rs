//! Random histories of a push, played against the law of `domain` and the ledger itself: after each step both say the same,
//! and nobody is sent to again who may have the message, but within the time in which WeChat tells repeats apart.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::testing::*;
use super::*;
use crate::clock::Timestamp;
use crate::domain::{
    AccountName, Candidate, Counts, Delivered, DeliveryEvent, DeliveryState, Finish, Finished, QuotaDay, finish,
    may_repeat, once_more_at,
};

const RECIPIENTS: u64 = 12;
/// WeChat tells a repeat apart for so long after the first try.
const DEDUPE_WINDOW: TimeDelta = TimeDelta::minutes(10);
/// Whoever got no answer is sent to once more so often at most.
const MOST_REPEATS: u32 = 3;
const WORDS: [(&str, Delivered); 3] = [
    ("success", Delivered::Success),
    ("failed:user block", Delivered::Blocked),
    ("failed: system failed", Delivered::Failed),
];

/// One step of a random history; people are numbers that are reduced to those of the push.
#[derive(Debug, Clone)]
enum Step {
    Claim {
        fresh: u64,
        skipped: u64,
    },
    /// Whoever is owed again by the rules, so many at most.
    Again(usize),
    /// Claims rows of any state: those that have ended must be left alone.
    AgainAnybody(u64),
    /// An answer to the attempt in flight, or to one before; once or twice.
    Answer {
        who: u64,
        said: Said,
        late_by: u32,
        twice: bool,
    },
    /// An event of the platform, so many seconds before now.
    Finish {
        who: u64,
        msgid: Msgid,
        word: usize,
        ago: i64,
        copies: usize,
    },
    ApplyEvents,
    /// Whoever got no answer is sent to once more, where that was chosen.
    OnceMore,
    Pass(i64),
    /// The process dies with whatever is in flight; another goes on.
    Restart,
    SkipRest,
}

#[derive(Debug, Clone, Copy)]
enum Said {
    Accepted { with_id: bool },
    Refused,
    UnderReview,
    NoAnswerInTime,
    PutBack { wait: i64 },
    LeftOut,
}

#[derive(Debug, Clone, Copy)]
enum Msgid {
    Own,
    Zero,
    Strange,
}

fn step() -> impl Strategy<Value = Step> {
    let said = prop_oneof![
        4 => any::<bool>().prop_map(|with_id| Said::Accepted { with_id }),
        1 => Just(Said::Refused),
        2 => Just(Said::UnderReview),
        2 => Just(Said::NoAnswerInTime),
        2 => (0..200i64).prop_map(|wait| Said::PutBack { wait }),
        1 => Just(Said::LeftOut),
    ];
    let msgid = prop_oneof![3 => Just(Msgid::Own), 3 => Just(Msgid::Zero), 1 => Just(Msgid::Strange)];
    let who = 0..RECIPIENTS;
    prop_oneof![
        3 => (0..4u64, 0..2u64).prop_map(|(fresh, skipped)| Step::Claim { fresh, skipped }),
        3 => (1..6usize).prop_map(Step::Again),
        1 => who.clone().prop_map(Step::AgainAnybody),
        8 => (who.clone(), said, prop_oneof![5 => Just(0u32), 1 => 1..3u32], any::<bool>())
            .prop_map(|(who, said, late_by, twice)| Step::Answer { who, said, late_by, twice }),
        5 => (who, msgid, 0..WORDS.len(), -30..700i64, 1..3usize)
            .prop_map(|(who, msgid, word, ago, copies)| Step::Finish { who, msgid, word, ago, copies }),
        4 => Just(Step::ApplyEvents),
        2 => Just(Step::OnceMore),
        3 => prop_oneof![1..30i64, 400..700i64].prop_map(Step::Pass),
        2 => Just(Step::Restart),
        1 => Just(Step::SkipRest),
    ]
}

/// What the law says of one recipient.
#[derive(Debug, Clone, PartialEq)]
struct Person {
    state: DeliveryState,
    attempt: u32,
    repeats: u32,
    msgid: Option<i64>,
    first_try_at: Option<Timestamp>,
    retry_at: Option<Timestamp>,
    delivered: Option<(Delivered, Timestamp)>,
}

/// An event that waits in the law's own list.
#[derive(Debug, Clone)]
struct Waiting {
    who: u64,
    said: Finish,
    due_at: Timestamp,
    looks: u32,
}

/// What the process that sends knows beside the ledger, and WeChat's side of it.
#[derive(Debug, Clone, Copy, Default)]
struct Send {
    /// When the oldest send went out that may have been taken and of which no answer came.
    in_doubt_since: Option<Timestamp>,
    /// Whether the attempt in flight is a repeat of one in doubt.
    is_repeat: bool,
    /// Taken for certain, by an answer or an event.
    was_taken: bool,
}

struct World {
    house: House,
    push: Push,
    now: Timestamp,
    resends: bool,
    people: Vec<Option<Person>>,
    sends: Vec<Send>,
    waiting: Vec<Waiting>,
    seen: BTreeSet<(u64, Timestamp, i64)>,
    rest_is_skipped: bool,
    calls: u64,
}

impl World {
    async fn begin(resends: bool) -> Self {
        let house = House::new().await;
        let push = house.push("r1", RECIPIENTS).await;
        let size = usize::try_from(RECIPIENTS).unwrap();
        Self {
            house,
            push,
            now: at(0),
            resends,
            people: vec![None; size],
            sends: vec![Send::default(); size],
            waiting: Vec::new(),
            seen: BTreeSet::new(),
            rest_is_skipped: false,
            calls: 0,
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Claim { fresh, skipped } => self.claim(fresh, skipped).await,
            Step::Again(most) => self.again(most).await,
            Step::AgainAnybody(who) => {
                let is_open = |person: &Person| matches!(person.state, DeliveryState::Pending | DeliveryState::Sending);
                if self.people[index(who)].as_ref().is_some_and(|person| !is_open(person)) {
                    self.claim_again(&[who + 1], false).await;
                }
            }
            Step::Answer { who, said, late_by, twice } => {
                for _ in 0..=usize::from(twice) {
                    self.answer(who, said, late_by).await;
                }
            }
            Step::Finish { who, msgid, word, ago, copies } => {
                for _ in 0..copies {
                    self.hear(who, msgid, word, ago).await;
                }
            }
            Step::ApplyEvents => self.apply_events().await,
            Step::OnceMore if self.resends => self.once_more().await,
            Step::OnceMore => {}
            Step::Pass(seconds) => self.now += TimeDelta::seconds(seconds),
            Step::Restart => self.restart().await,
            Step::SkipRest => self.skip_rest().await,
        }
    }

    fn charge(&self) -> (AccountName, QuotaDay) {
        (self.push.account.clone(), QuotaDay::of(at(0)))
    }

    async fn claim(&mut self, fresh: u64, skipped: u64) {
        let claimed = u64::try_from(self.people.iter().flatten().count()).unwrap();
        let last = (claimed + fresh + skipped).min(RECIPIENTS);
        if self.rest_is_skipped || last == claimed {
            return;
        }
        let openids = people(claimed + 1..=last);
        let all = intents(&openids);
        let (send, skip) = all.split_at(all.len().min(index(fresh)));
        let skip: Vec<_> = skip.iter().map(|intent| (*intent, "unfollowed")).collect();
        let (account, day) = self.charge();
        let quota = Some(QuotaCharge { account: &account, endpoint: "send", day, limit: None, keep: 0 });
        let batch = Begin { skipped: &skip, claimed_to: last, quota, now: self.now, ..testing::fresh(send) };
        let begun = self.house.begin(&self.push, batch).await;
        assert_eq!(begun, Begun::Yes { attempts: send.iter().map(|intent| (intent.seq, 1)).collect() });
        self.calls += u64::try_from(send.len()).unwrap();
        for seq in claimed + 1..=last {
            let is_sent_to = seq <= claimed + u64::try_from(send.len()).unwrap();
            let (event, attempt) =
                if is_sent_to { (DeliveryEvent::IntentWritten, 1) } else { (DeliveryEvent::LeftOut, 0) };
            self.people[index(seq - 1)] = Some(Person {
                state: DeliveryState::Pending.after(event).unwrap(),
                attempt,
                repeats: 0,
                msgid: None,
                first_try_at: is_sent_to.then_some(self.now),
                retry_at: None,
                delivered: None,
            });
            if is_sent_to {
                self.bytes_leave(seq - 1);
            }
        }
    }

    /// By the rules of the sender: what is in flight and may be repeated, then what was put back and is due.
    async fn again(&mut self, most: usize) {
        let ledger = &self.house.ledger;
        let mut rows = ledger.left_in_flight(self.push.key).await.unwrap();
        rows.retain(|row| row.first_try_at.is_some_and(|tried| may_repeat(tried, self.now)));
        rows.extend(ledger.owed(self.push.key, self.now, 100).await.unwrap());
        let seqs: Vec<u64> = rows.iter().map(|row| row.seq).take(most).collect();
        self.claim_again(&seqs, false).await;
    }

    async fn claim_again(&mut self, seqs: &[u64], once_more: bool) {
        let claimed_to = self.house.reload(&self.push).await.claimed_to;
        let (account, day) = self.charge();
        let quota = Some(QuotaCharge { account: &account, endpoint: "send", day, limit: None, keep: 0 });
        let batch = Begin { again: seqs, once_more, claimed_to, quota, now: self.now, ..fresh(&[]) };
        let Begun::Yes { mut attempts } = self.house.begin(&self.push, batch).await else { panic!("it is not begun") };
        attempts.sort_unstable();
        let mut lawful = Vec::new();
        for seq in seqs {
            let now = self.now;
            let person = self.people[index(seq - 1)].as_mut().expect("a row was claimed before");
            if once_more {
                person.state = person.state.after(DeliveryEvent::RepeatAllowed).expect("those alone are asked for");
                person.repeats += 1;
                assert!(person.repeats <= MOST_REPEATS, "{seq} is sent to once more for ever");
                let send = &mut self.sends[index(seq - 1)];
                let since = send.in_doubt_since.take().expect("whoever is unconfirmed was sent to");
                assert!(now - since >= DEDUPE_WINDOW, "{seq} is sent to once more after {}", now - since);
            }
            let was_pending = person.state == DeliveryState::Pending;
            let Ok(next) = person.state.after(DeliveryEvent::IntentWritten) else { continue };
            (person.state, person.attempt, person.retry_at) = (next, person.attempt + 1, None);
            person.first_try_at = if was_pending { Some(now) } else { person.first_try_at };
            lawful.push((*seq, person.attempt));
            self.sends[index(seq - 1)].is_repeat = !was_pending;
            self.bytes_leave(seq - 1);
        }
        lawful.sort_unstable();
        assert_eq!(attempts, lawful);
        self.calls += u64::try_from(attempts.len()).unwrap();
    }

    /// The message may be with WeChat from now on.
    fn bytes_leave(&mut self, who: u64) {
        let now = self.now;
        let send = &mut self.sends[index(who)];
        assert!(!send.was_taken, "{who} has it and is sent to again");
        if let Some(since) = send.in_doubt_since {
            assert!(now - since < DEDUPE_WINDOW, "{who} may have it and is sent to again after {}", now - since);
        }
        send.in_doubt_since.get_or_insert(now);
    }

    async fn answer(&mut self, who: u64, said: Said, late_by: u32) {
        let Some(person) = self.people[index(who)].as_mut() else { return };
        let send = &mut self.sends[index(who)];
        let is_current = late_by == 0 && person.state == DeliveryState::Sending;
        // Whoever may have it from an earlier try is not put back, and not left out as if nothing had happened.
        let may_have_it = send.is_repeat || person.repeats > 0;
        let is_doubted = may_have_it && matches!(said, Said::PutBack { .. } | Said::LeftOut);
        if is_current && is_doubted {
            return;
        }
        let msgid = i64::try_from(1_000 + who).unwrap();
        let (event, msgid, retry_at) = match said {
            Said::Accepted { with_id } => (DeliveryEvent::Accepted, with_id.then_some(msgid), None),
            Said::Refused if may_have_it => (DeliveryEvent::RefusedInDoubt, None, None),
            Said::Refused => (DeliveryEvent::Refused, None, None),
            Said::UnderReview => (DeliveryEvent::TakenForReview, None, None),
            Said::NoAnswerInTime => {
                let until = person.first_try_at.and_then(|at| once_more_at(at, person.repeats));
                (DeliveryEvent::NoAnswer, None, until)
            }
            Said::PutBack { wait } => (DeliveryEvent::PutBack, None, Some(self.now + TimeDelta::seconds(wait))),
            Said::LeftOut => (DeliveryEvent::LeftOut, None, None),
        };
        let state = DeliveryState::Sending.after(event).unwrap();
        let attempt = person.attempt.wrapping_sub(late_by);
        let outcome = Outcome { msgid, retry_at, at: self.now, ..outcome(who + 1, attempt, state) };
        let batch = OutcomeBatch { now: self.now, ..only(std::slice::from_ref(&outcome)) };
        let recorded = self.house.ledger.record_outcomes(&self.house.lease, self.push.key, batch).await.unwrap();
        assert_eq!(recorded, Recorded::Yes { changed: u64::from(is_current) });
        if is_current {
            person.state = person.state.after(event).unwrap();
            (person.msgid, person.retry_at) = (msgid.or(person.msgid), retry_at);
            match said {
                Said::Accepted { .. } | Said::UnderReview => send.was_taken = true,
                Said::Refused if may_have_it => {}
                Said::PutBack { .. } | Said::LeftOut | Said::Refused => send.in_doubt_since = None,
                Said::NoAnswerInTime => {}
            }
        }
    }

    async fn once_more(&mut self) {
        if self.rest_is_skipped {
            return;
        }
        let is_due = |person: &Person| {
            person.state == DeliveryState::Unconfirmed && person.retry_at.is_some_and(|at| at <= self.now)
        };
        let lawful: Vec<u64> = (1..)
            .zip(&self.people)
            .filter(|(_, person)| person.as_ref().is_some_and(is_due))
            .map(|(seq, _)| seq)
            .collect();
        let due = self.house.ledger.repeats_due(self.push.key, self.now).await.unwrap();
        assert_eq!(due.iter().map(|row| row.seq).collect::<Vec<_>>(), lawful);
        self.claim_again(&lawful, true).await;
    }

    /// An event is kept; the ledger looks at it later.
    async fn hear(&mut self, who: u64, msgid: Msgid, word: usize, ago: i64) {
        let created_at = self.now - TimeDelta::seconds(ago);
        let msgid = match msgid {
            Msgid::Own => i64::try_from(1_000 + who).unwrap(),
            Msgid::Zero => 0,
            Msgid::Strange => 9_999,
        };
        let event = NewCallback {
            account: self.push.account.clone(),
            openid: people(who + 1..=who + 1).remove(0).1,
            created_at,
            event: "TEMPLATESENDJOBFINISH".into(),
            event_key: String::new(),
            msgid,
            status: Some(WORDS[word].0.into()),
        };
        let new = self.house.ledger.keep_callbacks(&[event], self.now).await.unwrap();
        assert_eq!(new == 1, self.seen.insert((who, created_at, msgid)));
        if new == 1 {
            let said = Finish { msgid: (msgid != 0).then_some(msgid), at: created_at, delivered: WORDS[word].1 };
            self.waiting.push(Waiting { who, said, due_at: self.now, looks: 0 });
        }
    }

    async fn apply_events(&mut self) {
        let applied = self.house.ledger.apply_callbacks(1_000, self.now).await.unwrap();
        // What is due first is looked at first, and of those at once what came first.
        self.waiting.sort_by_key(|event| event.due_at);
        let (due, later): (Vec<Waiting>, Vec<Waiting>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|event| event.due_at <= self.now);
        self.waiting = later;
        let mut lawful = Applied { looked_at: u64::try_from(due.len()).unwrap(), ..Applied::default() };
        for mut event in due {
            match self.decide(&event) {
                Finished::Told { from, to, .. } => {
                    let person = self.people[index(event.who)].as_mut().unwrap();
                    (person.state, person.delivered) = (to, Some((event.said.delivered, event.said.at)));
                    person.msgid = person.msgid.or(event.said.msgid);
                    person.retry_at = person.retry_at.filter(|_| from == to);
                    self.sends[index(event.who)].was_taken = true;
                    lawful.told += 1;
                    lawful.settled += u64::from(from != to);
                }
                Finished::Early => {
                    let seconds = 1_i64 << event.looks.min(10);
                    event.due_at = self.now + TimeDelta::seconds(seconds.min(600));
                    event.looks += 1;
                    lawful.early += 1;
                    self.waiting.push(event);
                }
                Finished::Known | Finished::Unmatched => {}
            }
        }
        assert_eq!(applied, lawful);
    }

    fn decide(&self, event: &Waiting) -> Finished {
        let own = self.people[index(event.who)].iter().map(|person| Candidate {
            push_key: self.push.key,
            seq: event.who + 1,
            state: person.state,
            msgid: person.msgid,
            first_try_at: person.first_try_at,
            delivered: person.delivered,
        });
        let told = finish(&event.said, &own.collect::<Vec<_>>());
        if let Finished::Told { from, to, .. } = told {
            let events = [DeliveryEvent::DeliveredEvent, DeliveryEvent::BlockedEvent];
            let is_lawful = events.into_iter().any(|event| from.after(event) == Ok(to));
            assert!(from == to || is_lawful, "{from:?} became {to:?} by an event");
        }
        told
    }

    /// Another process opens the same file and takes the lease; the old one can write nothing any more.
    async fn restart(&mut self) {
        let old = self.house.lease.clone();
        self.house.lease = self.house.lose_lease().await;
        let ledger = Ledger::open(&self.house.path).await.unwrap();
        std::mem::replace(&mut self.house.ledger, ledger).close().await;
        let late = [outcome(1, 1, DeliveryState::Sent)];
        let recorded = self.house.ledger.record_outcomes(&old, self.push.key, only(&late)).await.unwrap();
        assert_eq!(recorded, Recorded::LeaseLost);
        // What the next session does first: whoever is in doubt for too long is not repeated.
        let state = DeliveryState::Sending.after(DeliveryEvent::NoAnswer).unwrap();
        let left = self.house.ledger.left_in_flight(self.push.key).await.unwrap();
        let old = left.iter().filter(|row| row.first_try_at.is_none_or(|tried| !may_repeat(tried, self.now)));
        let outcomes: Vec<Outcome> = old
            .map(|row| {
                let retry_at = row.first_try_at.and_then(|at| once_more_at(at, row.repeats));
                Outcome { retry_at, ..outcome(row.seq, row.attempt, state) }
            })
            .collect();
        let recorded = self.house.record(&self.push, &outcomes).await;
        assert_eq!(recorded, Recorded::Yes { changed: u64::try_from(outcomes.len()).unwrap() });
        for Outcome { seq, retry_at, .. } in outcomes {
            let person = self.people[index(seq - 1)].as_mut().unwrap();
            (person.state, person.retry_at) = (person.state.after(DeliveryEvent::NoAnswer).unwrap(), retry_at);
        }
    }

    async fn skip_rest(&mut self) {
        self.house.ledger.skip_rest(&self.house.lease, self.push.key, "expired", self.now).await.unwrap();
        self.rest_is_skipped = true;
        for person in self.people.iter_mut().flatten().filter(|person| person.state == DeliveryState::Pending) {
            (person.state, person.retry_at) = (person.state.after(DeliveryEvent::LeftOut).unwrap(), None);
        }
    }

    /// The ledger's rows and counts are the law's.
    async fn agree(&self) {
        let rows = self.house.ledger.deliveries(self.push.key, 0, 100).await.unwrap();
        let lawful: Vec<(u64, Person)> =
            (1..).zip(&self.people).filter_map(|(seq, person)| Some((seq, person.clone()?))).collect();
        let kept: Vec<(u64, Person)> = rows.into_iter().map(|row| (row.seq, person_of(row))).collect();
        assert_eq!(kept, lawful);
        let counts = self.house.reload(&self.push).await.counts;
        assert!(counts.add_up(), "{counts:?}");
        assert_eq!(counts, self.house.ledger.state_counts(self.push.key).await.unwrap());
        assert_eq!(counts, self.lawful_counts());
        let usage = self.house.ledger.usage(None, None).await.unwrap();
        assert_eq!(usage.iter().map(|usage| usage.calls).sum::<u64>(), self.calls);
    }

    fn lawful_counts(&self) -> Counts {
        let mut counts = Counts { recipients: RECIPIENTS, ..Counts::default() };
        for person in &self.people {
            let state = match person {
                Some(person) => person.state,
                None if self.rest_is_skipped => DeliveryState::Skipped,
                None => DeliveryState::Pending,
            };
            *match state {
                DeliveryState::Pending | DeliveryState::Sending => &mut counts.pending,
                DeliveryState::Sent => &mut counts.sent,
                DeliveryState::Failed => &mut counts.failed,
                DeliveryState::Skipped => &mut counts.skipped,
                DeliveryState::Held => &mut counts.held,
                DeliveryState::Unconfirmed => &mut counts.unconfirmed,
            } += 1;
        }
        counts
    }
}

fn person_of(row: DeliveryRow) -> Person {
    let DeliveryRow { state, attempt, repeats, msgid, first_try_at, retry_at, .. } = row;
    let delivered = row.delivered.and_then(|word| Delivered::parse(&word)).zip(row.delivered_at);
    Person { state, attempt, repeats, msgid, first_try_at, retry_at, delivered }
}

fn index(who: u64) -> usize {
    usize::try_from(who).unwrap()
}

#[test]
fn any_history_leaves_the_ledger_where_the_law_says_and_nobody_is_sent_to_twice() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    let histories = (prop::collection::vec(step(), 1..60), any::<bool>());
    runner
        .run(&histories, |(history, resends)| {
            runtime.block_on(async {
                let mut world = World::begin(resends).await;
                for step in history {
                    let before: Vec<Option<DeliveryState>> =
                        world.people.iter().map(|person| person.as_ref().map(|person| person.state)).collect();
                    world.take(step).await;
                    world.agree().await;
                    for (was, is) in before.iter().zip(&world.people) {
                        let is_end =
                            matches!(was, Some(DeliveryState::Sent | DeliveryState::Failed | DeliveryState::Skipped));
                        assert!(!is_end || is.as_ref().map(|person| person.state) == *was, "{was:?} was left");
                    }
                }
            });
            Ok(())
        })
        .unwrap();
}
