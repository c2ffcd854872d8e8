//! What a move tells of itself: how far it is, why it stopped, and the command that goes on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::conductor::Conductor;
use super::MoveRequest;
use crate::clock::Timestamp;
use crate::domain::{AccountName, RunId};
use crate::ledger::AccountMove;

/// How a move stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveStatus {
    /// The tables have the openids of now.
    Succeeded,
    /// The same command goes on, later or after something else.
    Waiting,
    /// A person has to decide.
    Halted,
}

/// What came of the command.
#[derive(Debug, Serialize)]
pub struct Report {
    pub account: AccountName,
    pub from_app_id: String,
    pub to_app_id: String,
    pub status: MoveStatus,
    pub waiting_until: Option<Timestamp>,
    pub reason: Option<String>,
    /// Commands that go on.
    pub next: Vec<String>,
    /// Under which the tables of the move stand in `tables`.
    pub run_id: Option<RunId>,
    /// Openids to ask for, and of these whom the account's own list had.
    pub people: u64,
    pub followers: u64,
    pub asked: u64,
    /// They have their openid of now.
    pub moved: u64,
    /// They stay under the openid of before, as gone.
    pub refused: u64,
    pub refused_followers: u64,
    /// That hold for the openid of now, or for a unionid in its place.
    pub suppressions: u64,
    /// Unfinished runs that were cancelled: what they had made has the openids of before.
    pub cancelled_runs: Vec<RunId>,
    /// Tables that were written anew, with their rows.
    pub tables: BTreeMap<String, u64>,
    pub api_calls: BTreeMap<String, u64>,
    pub seconds: f64,
}

/// Why a move does not go on now.
#[derive(Debug)]
pub enum Stop {
    Wait {
        until: Option<Timestamp>,
        reason: String,
    },
    /// After these commands.
    After {
        reason: String,
        commands: Vec<String>,
    },
    /// Only a person can say.
    Halt {
        reason: String,
        commands: Vec<String>,
    },
}

/// What came of a move, as the ledger keeps it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figures {
    pub moved: u64,
    pub refused: u64,
    pub refused_followers: u64,
}

impl Figures {
    /// For the audit.
    pub fn told(&self, own: &AccountMove, accepted: Option<&str>) -> String {
        let accepted = accepted.map_or_else(String::new, |reason| format!("; taken as gone: {reason}"));
        format!(
            "account {} from {} to {}: {} openids moved, {} stay as gone, {} of them followers{accepted}",
            own.account, own.from_app_id, own.to_app_id, self.moved, self.refused, self.refused_followers
        )
    }
}

impl Stop {
    pub fn interrupted() -> Self {
        Self::Wait { until: None, reason: "interrupted".to_owned() }
    }

    pub fn too_many_refused(own: &AccountMove, (refused, most): (u64, Option<String>)) -> Self {
        let said = most.map_or_else(String::new, |most| format!(", most of them with `{most}`"));
        let again = format!("lianbo migrate {} --from {}", own.account, own.from_app_id);
        let reason = format!(
            "{refused} of {} followers of account `{}` have no openid under {}{said}: nothing was changed. Is {} the account that was \
             moved? --fresh begins anew; --accept-refused \"why\" takes them as gone",
            own.followers, own.account, own.to_app_id, own.from_app_id
        );
        Self::Halt { reason, commands: vec![format!("{again} --fresh"), format!("{again} --accept-refused \"why\"")] }
    }
}

impl Report {
    pub fn new(request: &MoveRequest, conductor: &Conductor) -> Self {
        Self {
            account: request.account.clone(),
            from_app_id: request.from_app_id.clone(),
            to_app_id: conductor.hands.account(&request.account).app_id.clone(),
            status: MoveStatus::Succeeded,
            waiting_until: None,
            reason: None,
            next: Vec::new(),
            run_id: None,
            people: 0,
            followers: 0,
            asked: 0,
            moved: 0,
            refused: 0,
            refused_followers: 0,
            suppressions: 0,
            cancelled_runs: Vec::new(),
            tables: BTreeMap::new(),
            api_calls: BTreeMap::new(),
            seconds: 0.0,
        }
    }

    pub fn stopped(request: &MoveRequest, conductor: &Conductor, stop: Stop) -> Self {
        Self::new(request, conductor).end(stop)
    }

    /// With what the ledger says of the move.
    pub fn tell_of(&mut self, own: Option<&AccountMove>) {
        let Some(own) = own else { return };
        self.run_id = Some(own.run_id.clone());
        (self.people, self.followers, self.asked) = (own.people, own.followers, own.asked);
        let figures = own.outcome.as_deref().and_then(|text| serde_json::from_str::<Figures>(text).ok());
        if let Some(Figures { moved, refused, refused_followers }) = figures {
            (self.moved, self.refused, self.refused_followers) = (moved, refused, refused_followers);
        }
    }

    pub fn end(mut self, stop: Stop) -> Self {
        let again = format!("lianbo migrate {} --from {}", self.account, self.from_app_id);
        let (status, until, reason, commands) = match stop {
            Stop::Wait { until, reason } => (MoveStatus::Waiting, until, reason, vec![again]),
            Stop::After { reason, mut commands } => {
                commands.push(again);
                (MoveStatus::Waiting, None, reason, commands)
            }
            Stop::Halt { reason, commands } => (MoveStatus::Halted, None, reason, commands),
        };
        self.status = status;
        self.waiting_until = until;
        self.reason = Some(reason);
        self.next = commands;
        self
    }
}
