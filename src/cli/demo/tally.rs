//! The two counts side by side: messages that people found in their inboxes, and what the ledger claims to have sent.

use serde::Serialize;

use crate::domain::Counts;
use crate::ledger::DeliveryRow;
use crate::simulator::Simulator;

/// Counted person by person in the simulator, beside the ledger's figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Whom the simulator knows to be users who follow, with a unionid on both sides, before anybody changed their mind.
    pub matchable: u64,
    pub received_once: u64,
    pub received_twice: u64,
    /// Of the matchable, those without a message.
    pub received_nothing: u64,
    /// People with a message who are not among the matchable.
    pub strangers: u64,
    /// Calls that repeated a message already accepted; WeChat keeps them off by their id.
    pub repeats_kept_off: u64,
    pub ledger_recipients: u64,
    pub ledger_sent: u64,
    pub ledger_not_sent: u64,
    /// Without a message although the ledger has no reason for it.
    pub missed: u64,
}

/// A recipient who got nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    pub seq: u64,
    pub openid: String,
    pub state: &'static str,
    pub errcode: Option<i64>,
    pub reason: Option<String>,
}

impl Failed {
    pub fn of(row: DeliveryRow) -> Self {
        Self {
            seq: row.seq,
            openid: row.openid.as_str().to_owned(),
            state: row.state.as_str(),
            errcode: row.errcode,
            reason: row.reason,
        }
    }
}

impl Tally {
    /// `matchable` as it was before anybody changed their mind.
    pub fn of(simulator: &Simulator, matchable: &[String], push: &Counts) -> Self {
        let received: Vec<u32> = matchable.iter().map(|openid| simulator.received(openid)).collect();
        let count = |wanted: fn(u32) -> bool| wide(received.iter().filter(|times| wanted(**times)).count());
        let inbox = simulator.inbox();
        let with_message = count(|times| times > 0);
        let received_nothing = count(|times| times == 0);
        let not_sent = push.failed + push.skipped + push.held + push.unconfirmed + push.pending;
        Self {
            matchable: wide(matchable.len()),
            received_once: inbox.once,
            received_twice: inbox.twice_or_more,
            received_nothing,
            strangers: inbox.people.saturating_sub(with_message),
            repeats_kept_off: inbox.repeats_kept_off,
            ledger_recipients: push.recipients,
            ledger_sent: push.sent,
            ledger_not_sent: not_sent,
            missed: received_nothing.saturating_sub(not_sent),
        }
    }

    /// Everything that does not add up, in words. `changed`: people who changed their mind after the nightly.
    pub fn wrong(&self, push: &Counts, at_kill: &Counts, changed: usize) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut expect = |holds: bool, text: String| {
            if !holds {
                wrong.push(text);
            }
        };
        expect(push.add_up(), format!("the ledger's counts do not add up: {push:?}"));
        expect(at_kill.add_up(), format!("the ledger's counts at the kill did not add up: {at_kill:?}"));
        expect(at_kill.pending > 0, "nothing was left to send when the process was killed".to_owned());
        expect(
            self.ledger_recipients == self.matchable,
            format!("{} recipients, but {} people can be matched", self.ledger_recipients, self.matchable),
        );
        expect(
            self.received_once == self.ledger_sent,
            format!("{} received it once, the ledger says {} sent", self.received_once, self.ledger_sent),
        );
        expect(self.received_twice == 0, format!("{} received it twice", self.received_twice));
        expect(self.missed == 0, format!("{} were missed", self.missed));
        expect(self.strangers == 0, format!("{} received it who were not chosen", self.strangers));
        expect(
            self.ledger_not_sent == wide(changed) && push.pending == 0,
            format!("{} were not sent to, where {changed} changed their mind", self.ledger_not_sent),
        );
        wrong
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).expect("a count fits in 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> (Tally, Counts, Counts) {
        let push = Counts { recipients: 10, sent: 8, failed: 2, ..Counts::default() };
        let at_kill = Counts { recipients: 10, sent: 4, pending: 6, ..Counts::default() };
        let tally = Tally {
            matchable: 10,
            received_once: 8,
            received_twice: 0,
            received_nothing: 2,
            strangers: 0,
            repeats_kept_off: 1,
            ledger_recipients: 10,
            ledger_sent: 8,
            ledger_not_sent: 2,
            missed: 0,
        };
        (tally, push, at_kill)
    }

    #[test]
    fn nothing_is_wrong_when_everybody_has_one_message_and_the_rest_a_reason() {
        let (tally, push, at_kill) = good();
        assert_eq!(tally.wrong(&push, &at_kill, 2), Vec::<String>::new());
    }

    #[test]
    fn a_second_message_a_missed_person_and_a_finished_kill_are_each_told() {
        let (tally, push, at_kill) = good();
        let twice = Tally { received_once: 7, received_twice: 1, ..tally };
        assert_eq!(twice.wrong(&push, &at_kill, 2).len(), 2);
        let missed = Tally { received_once: 7, received_nothing: 3, missed: 1, ..tally };
        assert_eq!(missed.wrong(&push, &at_kill, 2).len(), 2);
        assert_eq!(tally.wrong(&push, &push, 2).len(), 1);
    }
}
