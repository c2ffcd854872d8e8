//! Random days at the desk: whoever may have a message already is never owed it again, nor sent it too late.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::{Clock, from_micros};
use crate::config::settings::{OnExpiry, OnInvalid, Place, Priority, Unconfirmed};
use crate::domain::{AccountName, OpenId, StageName, TemplateId};
use crate::wechat::class_of;

const CODES: [i64; 14] =
    [-1, 40001, 45009, 45011, 43108, 43004, 40037, 48001, 45065, 40241, 40252, 99_999, 47003, 40003];

fn nowhere() -> Place {
    Place { file: std::path::PathBuf::new(), span: 0..0 }
}

fn plan(unconfirmed: Unconfirmed) -> PushTemplate {
    PushTemplate {
        account: AccountName::new("main"),
        recipients: StageName::new("audience"),
        recipients_place: nowhere(),
        template_id: TemplateId::new("tpl"),
        template_id_place: nowhere(),
        miniprogram: None,
        url: None,
        data: Vec::new(),
        rate: 1000.0,
        concurrency: 8,
        unconfirmed,
        halt_when: HaltWhen { failed_share: 1.0, after: 1_000_000 },
        priority: Priority::Campaign,
        approve: false,
        on_invalid: OnInvalid::Stop,
        on_expiry: OnExpiry::Stop,
        window: None,
        daily_limit: None,
        expires: None,
        canary: None,
        test_openids: Vec::new(),
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// So many who were never tried.
    Fresh(u8),
    /// One whom a process that died may have sent to, so many seconds ago.
    Left(u16),
    /// One who may have a message of before WeChat's window, and is sent it once more.
    OnceMore,
    Pass(u16),
    /// Takes what may go out.
    Start,
    /// The answer to one in flight: accepted, none, surely not sent, or a code.
    Answer(u8, Said),
}

#[derive(Debug, Clone)]
enum Said {
    Accepted,
    Nothing { may_have_left: bool },
    Code(usize),
}

impl Said {
    fn outcome(&self) -> SendOutcome {
        match self {
            Self::Accepted => SendOutcome::Accepted { msgid: Some(7), duplicate: false },
            Self::Nothing { may_have_left } => {
                SendOutcome::NoAnswer { reason: "none".to_owned(), may_have_left: *may_have_left }
            }
            Self::Code(at) => {
                let errcode = CODES[*at];
                SendOutcome::Refused { errcode, errmsg: String::new(), class: class_of(errcode), field: None }
            }
        }
    }

    /// Whether the message may have been taken though nobody said so.
    fn leaves_doubt(&self) -> bool {
        matches!(self, Self::Nothing { may_have_left: true }) || matches!(self, Self::Code(at) if CODES[*at] == -1)
    }
}

fn step() -> impl Strategy<Value = Step> {
    let said = prop_oneof![
        3 => Just(Said::Accepted),
        4 => any::<bool>().prop_map(|may_have_left| Said::Nothing { may_have_left }),
        4 => (0..CODES.len()).prop_map(Said::Code),
    ];
    prop_oneof![
        2 => (1..6u8).prop_map(Step::Fresh),
        2 => (0..480u16).prop_map(Step::Left),
        1 => Just(Step::OnceMore),
        3 => prop_oneof![Just(1u16), 1..90u16, 300..600u16].prop_map(Step::Pass),
        5 => Just(Step::Start),
        8 => (any::<u8>(), said).prop_map(|(who, said)| Step::Answer(who, said)),
    ]
}

/// A desk, and everybody who was ever on it.
struct Day {
    desk: Desk,
    stops: Arc<Stops>,
    wall: Timestamp,
    monotonic: Instant,
    in_flight: Vec<Item>,
    /// By seq: whether an earlier try may have been taken.
    may_have_it: BTreeMap<u64, bool>,
    ended: BTreeMap<u64, DeliveryState>,
}

impl Day {
    fn begin(unconfirmed: Unconfirmed) -> Self {
        let monotonic = Clock::default().monotonic();
        let stops = Stops::new(CancellationToken::new());
        let desk =
            Desk::new(&plan(unconfirmed), SharedPace::new(1000.0, monotonic), Guard::default(), Arc::clone(&stops));
        Self {
            desk,
            stops,
            wall: from_micros(1_795_400_000_000_000),
            monotonic,
            in_flight: Vec::new(),
            may_have_it: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    fn add(&mut self, (tried_before, repeats): (Option<u16>, u32)) {
        let seq = u64::try_from(self.may_have_it.len()).unwrap() + 1;
        self.may_have_it.insert(seq, tried_before.is_some() || repeats > 0);
        let first_try_at = self.wall - TimeDelta::seconds(i64::from(tried_before.unwrap_or(0)));
        self.desk.add(vec![Item {
            seq,
            attempt: 1,
            openid: OpenId::new(format!("o{seq}")),
            unionid: None,
            body: Vec::new(),
            first_try_at,
            tries: 0,
            in_doubt: tried_before.is_some(),
            repeats,
            last_errcode: None,
        }]);
    }

    fn settle(&mut self, settled: Settled) {
        let Outcome { seq, state, .. } = settled.outcome;
        assert_eq!(self.ended.insert(seq, state), None, "{seq} ends twice");
        let is_owed = state == DeliveryState::Pending;
        assert!(!is_owed || !self.may_have_it[&seq], "{seq} may have it and is owed it again");
        let is_failed = state == DeliveryState::Failed;
        assert!(!is_failed || !self.may_have_it[&seq], "{seq} may have it and would be sent it again with the failed");
    }

    fn take(&mut self, step: Step) {
        let at = (self.wall, self.monotonic);
        match step {
            Step::Fresh(n) => (0..n).for_each(|_| self.add((None, 0))),
            Step::Left(age) => self.add((Some(age), 0)),
            Step::OnceMore => self.add((None, 1)),
            Step::Pass(seconds) => {
                self.wall += TimeDelta::seconds(i64::from(seconds));
                self.monotonic += Duration::from_secs(u64::from(seconds));
            }
            Step::Start => {
                while let Some(item) = self.desk.next(at) {
                    self.start(item);
                }
                self.desk.take_given_up().into_iter().for_each(|one| self.settle(one));
            }
            Step::Answer(who, said) if !self.in_flight.is_empty() => {
                let item = self.in_flight.swap_remove(usize::from(who) % self.in_flight.len());
                if said.leaves_doubt() {
                    self.may_have_it.insert(item.seq, true);
                }
                if let Some(settled) = self.desk.settle(item, &said.outcome(), at) {
                    self.settle(settled);
                }
            }
            Step::Answer(..) => {}
        }
    }

    fn start(&mut self, item: Item) {
        let seq = item.seq;
        assert!(!self.stops.halt.is_cancelled(), "{seq} is sent to after a stop");
        assert!(!self.ended.contains_key(&seq), "{seq} is sent to after its end");
        assert!(self.in_flight.iter().all(|other| other.seq != seq), "{seq} is in flight twice");
        let age = self.wall - item.first_try_at;
        let is_repeat = self.may_have_it[&seq] && (item.in_doubt || item.repeats == 0);
        assert!(!is_repeat || age < TimeDelta::minutes(10), "{seq} is sent to again after {age}");
        self.in_flight.push(item);
    }

    /// Everybody has ended, is in flight, lies on the desk, or is in doubt and left to the ledger.
    fn close(mut self) {
        let lying: Vec<Item> = self.desk.clear().collect();
        for item in &lying {
            assert_eq!(item.may_have_it(), self.may_have_it[&item.seq], "{} is put back by this", item.seq);
        }
        let known = |seq: &u64| {
            self.ended.contains_key(seq)
                || self.in_flight.iter().any(|item| item.seq == *seq)
                || lying.iter().any(|item| item.seq == *seq)
                || (self.may_have_it[seq] && self.stops.halt.is_cancelled())
        };
        let lost: Vec<&u64> = self.may_have_it.keys().filter(|seq| !known(seq)).collect();
        assert!(lost.is_empty(), "{lost:?} are lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_may_have_it_is_not_owed_it_again_and_nobody_is_lost(
        history in prop::collection::vec(step(), 1..80),
        unconfirmed in prop::sample::select(vec![Unconfirmed::Keep, Unconfirmed::Resend]),
    ) {
        let mut day = Day::begin(unconfirmed);
        for step in history {
            day.take(step);
        }
        day.close();
    }
}

#[test]
fn whoever_may_have_it_and_is_refused_the_second_time_stays_unconfirmed_with_the_refusal_told() {
    let mut day = Day::begin(Unconfirmed::Resend);
    let code = CODES.iter().position(|own| *own == 43004).unwrap();
    day.take(Step::Fresh(1));
    day.take(Step::Start);
    day.take(Step::Answer(0, Said::Nothing { may_have_left: true }));
    day.take(Step::Pass(2));
    day.take(Step::Start);
    let item = day.in_flight.pop().unwrap();
    let settled = day.desk.settle(item, &Said::Code(code).outcome(), (day.wall, day.monotonic)).unwrap();
    let Outcome { state, reason, errcode, retry_at, .. } = settled.outcome;
    assert_eq!((state, errcode, retry_at), (DeliveryState::Unconfirmed, Some(43004), None), "nor once more by choice");
    assert!(reason.unwrap().starts_with("refused, but an earlier try may have arrived: "));
}

#[test]
fn whoever_may_have_it_is_not_owed_it_again_when_the_day_is_used_up() {
    for (code, ends) in [(45009, "quota"), (48001, "halt"), (40037, "template")] {
        let mut day = Day::begin(Unconfirmed::Keep);
        let code = CODES.iter().position(|own| *own == code).unwrap();
        day.take(Step::Fresh(1));
        day.take(Step::Start);
        day.take(Step::Answer(0, Said::Nothing { may_have_left: true }));
        day.take(Step::Pass(2));
        day.take(Step::Start);
        day.take(Step::Answer(0, Said::Code(code)));
        assert!(day.stops.halt.is_cancelled(), "{ends}");
        assert_eq!(day.ended.get(&1), None, "{ends}");
        day.close();
    }
}

#[test]
fn a_turn_of_before_a_standstill_is_not_taken_until_the_lease_was_looked_at_again() {
    let mut day = Day::begin(Unconfirmed::Keep);
    day.desk.pace().set_rate(0.1, day.monotonic);
    day.take(Step::Fresh(3));
    day.take(Step::Start);
    day.take(Step::Answer(0, Said::Accepted));
    day.take(Step::Start);
    assert!(day.in_flight.is_empty(), "the next turn is ten seconds away");
    day.desk.pace().open_until(Some(day.monotonic + Duration::from_secs(20)));
    day.take(Step::Pass(700));
    day.take(Step::Start);
    assert!(day.in_flight.is_empty(), "somebody else may have sent to them meanwhile");
    day.desk.pace().open_until(Some(day.monotonic + Duration::from_secs(20)));
    day.take(Step::Pass(2));
    day.take(Step::Start);
    assert_eq!(day.in_flight.len(), 1);
}
