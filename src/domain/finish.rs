//! What the platform says of a message after it was accepted, and which delivery it says it of.
//!
//! An event names its message by msgid; reports say that it may be 0, and what is held or unconfirmed has no msgid of its
//! own. Then the person and the time decide. Every rule here gives the same result whatever the order and the number of
//! the events.

use super::{DeliveryEvent, DeliveryState};
use crate::clock::Timestamp;

/// An event counts for a send that was first tried at most this long before it.
pub const FINISH_WINDOW: chrono::TimeDelta = chrono::TimeDelta::hours(24);
/// Whole seconds, and two clocks: an event may seem to be this much older than its send.
const SKEW: chrono::TimeDelta = chrono::TimeDelta::seconds(60);

/// What became of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivered {
    Success,
    /// The person refuses the account's messages.
    Blocked,
    /// Anything else, known or not.
    Failed,
}

impl Delivered {
    /// Reads a `Status` as the platform spells it: blanks and case say nothing.
    pub fn of_status(raw: &str) -> Self {
        let bare: String = raw.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect();
        match bare.as_str() {
            "success" => Self::Success,
            "failed:userblock" => Self::Blocked,
            _ => Self::Failed,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Success, Self::Blocked, Self::Failed].into_iter().find(|one| one.as_str() == text)
    }

    fn event(self) -> DeliveryEvent {
        match self {
            Self::Success => DeliveryEvent::DeliveredEvent,
            Self::Blocked | Self::Failed => DeliveryEvent::BlockedEvent,
        }
    }

    /// Of two words about one message in one second, the better is believed.
    fn rank(self) -> u8 {
        match self {
            Self::Success => 2,
            Self::Blocked => 1,
            Self::Failed => 0,
        }
    }
}

/// A finish event as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    /// `None` for 0.
    pub msgid: Option<i64>,
    pub at: Timestamp,
    pub delivered: Delivered,
}

/// A delivery to the person that the event names, from the account that it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub push_key: i64,
    pub seq: u64,
    pub state: DeliveryState,
    pub msgid: Option<i64>,
    /// `None` for one that was left out without a try.
    pub first_try_at: Option<Timestamp>,
    pub delivered: Option<(Delivered, Timestamp)>,
}

/// What an event does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// The delivery takes this state (its own, unless the event settles it) and this word.
    Told { push_key: i64, seq: u64, from: DeliveryState, to: DeliveryState },
    /// The delivery knew.
    Known,
    /// A send to this person is under way, and its outcome may make it the one: to be asked again.
    Early,
    /// Nobody's: another system of the account sent it, or it is too old.
    Unmatched,
}

/// Decides what an event does, among all deliveries of its person and account that are still row by row.
pub fn finish(event: &Finish, candidates: &[Candidate]) -> Finished {
    let by_id = |one: &&Candidate| event.msgid.is_some() && one.msgid == event.msgid;
    if let Some(exact) = candidates.iter().find(by_id) {
        return tell(event, exact);
    }
    let in_time = |one: &&Candidate| {
        one.first_try_at.is_some_and(|tried| event.at + SKEW >= tried && event.at - tried <= FINISH_WINDOW)
    };
    let near: Vec<&Candidate> = candidates.iter().filter(in_time).collect();
    // The very event, told again: its mark is found before anybody else is looked for.
    if near.iter().any(|one| is_mark_of(event, one)) {
        return Finished::Known;
    }
    if near.iter().any(|one| matches!(one.state, DeliveryState::Sending | DeliveryState::Pending)) {
        return Finished::Early;
    }
    let nameless = near.into_iter().filter(|one| is_nameless(event, one));
    match nameless.max_by_key(|one| (one.first_try_at, one.push_key, one.seq)) {
        Some(one) => tell(event, one),
        None => Finished::Unmatched,
    }
}

fn is_mark_of(event: &Finish, one: &Candidate) -> bool {
    event.msgid.is_none() && one.delivered.is_some_and(|(_, at)| at == event.at)
}

/// Whether an event that no id ties to a delivery may be this one's.
fn is_nameless(event: &Finish, one: &Candidate) -> bool {
    if one.delivered.is_some() {
        return false;
    }
    match one.state {
        DeliveryState::Held | DeliveryState::Unconfirmed => one.msgid.is_none() || event.msgid.is_none(),
        // With an id it would have been found by it, unless the answer had none.
        DeliveryState::Sent => one.msgid.is_none() || event.msgid.is_none(),
        DeliveryState::Pending | DeliveryState::Sending | DeliveryState::Failed | DeliveryState::Skipped => false,
    }
}

fn tell(event: &Finish, one: &Candidate) -> Finished {
    let told = |to| Finished::Told { push_key: one.push_key, seq: one.seq, from: one.state, to };
    if let Ok(next) = one.state.after(event.delivered.event()) {
        return told(next);
    }
    match one.state {
        DeliveryState::Pending | DeliveryState::Sending => Finished::Early,
        DeliveryState::Sent if is_news(event, one) => told(DeliveryState::Sent),
        DeliveryState::Sent
        | DeliveryState::Failed
        | DeliveryState::Skipped
        | DeliveryState::Held
        | DeliveryState::Unconfirmed => Finished::Known,
    }
}

/// The later word counts.
fn is_news(event: &Finish, one: &Candidate) -> bool {
    one.delivered.is_none_or(|(word, at)| (event.at, event.delivered.rank()) > (at, word.rank()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::from_micros;

    fn at(seconds: i64) -> Timestamp {
        from_micros((1_795_400_000 + seconds) * 1_000_000)
    }

    fn event(msgid: i64, seconds: i64) -> Finish {
        Finish { msgid: (msgid != 0).then_some(msgid), at: at(seconds), delivered: Delivered::Success }
    }

    fn candidate(seq: u64, state: DeliveryState, msgid: Option<i64>, tried: i64) -> Candidate {
        Candidate { push_key: 1, seq, state, msgid, first_try_at: Some(at(tried)), delivered: None }
    }

    fn told(seq: u64, from: DeliveryState, to: DeliveryState) -> Finished {
        Finished::Told { push_key: 1, seq, from, to }
    }

    #[test]
    fn every_spelling_has_its_word() {
        for (raw, word) in [
            ("success", Delivered::Success),
            (" Success\n", Delivered::Success),
            ("failed:user block", Delivered::Blocked),
            ("failed: user block", Delivered::Blocked),
            ("Failed:UserBlock", Delivered::Blocked),
            ("failed: system failed", Delivered::Failed),
            ("failed:freq limit", Delivered::Failed),
            ("", Delivered::Failed),
            ("anything new", Delivered::Failed),
        ] {
            assert_eq!(Delivered::of_status(raw), word, "{raw:?}");
        }
    }

    #[test]
    fn an_id_finds_its_delivery_and_settles_what_waited_for_it() {
        use DeliveryState as S;
        let people = [candidate(1, S::Sent, Some(7), 0), candidate(2, S::Held, None, 5)];
        assert_eq!(finish(&event(7, 10), &people), told(1, S::Sent, S::Sent));
        assert_eq!(finish(&event(8, 10), &people), told(2, S::Held, S::Sent));
        let blocked = Finish { delivered: Delivered::Blocked, ..event(8, 10) };
        assert_eq!(finish(&blocked, &people), told(2, S::Held, S::Failed));
        assert_eq!(finish(&event(8, 10), &people[..1]), Finished::Unmatched);
    }

    #[test]
    fn without_an_id_the_latest_send_before_the_event_is_meant() {
        use DeliveryState as S;
        let people = [candidate(1, S::Sent, Some(7), 0), candidate(2, S::Unconfirmed, None, 500)];
        assert_eq!(finish(&event(0, 510), &people), told(2, S::Unconfirmed, S::Sent));
        assert_eq!(finish(&event(0, 300), &people), told(1, S::Sent, S::Sent));
        assert_eq!(finish(&event(0, 500 + 25 * 3600), &people), Finished::Unmatched);
        assert_eq!(finish(&event(0, -61), &people), Finished::Unmatched);
    }

    #[test]
    fn a_send_under_way_makes_an_event_wait() {
        use DeliveryState as S;
        let people = [candidate(1, S::Sending, None, 0), candidate(2, S::Unconfirmed, None, -100)];
        assert_eq!(finish(&event(7, 1), &people), Finished::Early);
        assert_eq!(finish(&event(0, 1), &people), Finished::Early);
        let people = [candidate(1, S::Sending, Some(7), 0)];
        assert_eq!(finish(&event(7, 1), &people), Finished::Early, "it is being sent again");
    }

    fn apply(people: &mut [Candidate], event: &Finish) -> bool {
        let Finished::Told { seq, to, .. } = finish(event, people) else { return false };
        let one = people.iter_mut().find(|one| one.seq == seq).unwrap();
        one.state = to;
        one.delivered = Some((event.delivered, event.at));
        one.msgid = one.msgid.or(event.msgid);
        true
    }

    proptest! {
        #[test]
        fn telling_it_again_changes_nothing(msgid in prop::sample::select(vec![0_i64, 7, 8]), seconds in 0_i64..100,
            state in prop::sample::select(DeliveryState::ALL.to_vec()), own in prop::option::of(Just(7_i64))) {
            let mut people = [candidate(1, state, own, 0), candidate(2, DeliveryState::Unconfirmed, None, -30)];
            apply(&mut people, &event(msgid, seconds));
            let after = people;
            prop_assert!(!apply(&mut people, &event(msgid, seconds)));
            prop_assert_eq!(people, after);
        }

        #[test]
        fn two_words_about_one_sent_message_end_alike_in_either_order(first in 0_i64..4, second in 0_i64..4) {
            let one = event(7, first);
            let other = Finish { delivered: Delivered::Failed, ..event(7, second) };
            let start = [candidate(1, DeliveryState::Sent, Some(7), 0)];
            let (mut forth, mut back) = (start, start);
            [one, other].iter().for_each(|event| { apply(&mut forth, event); });
            [other, one].iter().for_each(|event| { apply(&mut back, event); });
            prop_assert_eq!(forth, back);
        }
    }
}
