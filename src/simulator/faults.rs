//! Everything that can be wrong with the platform as a standing habit; what befalls single calls is in `orders`.
//!
//! A habit holds until it is changed, at the start or at run time; `every = N` means each N-th time by count, or the N-th
//! part of the people or messages by draw, and 0 never.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::churn::ChurnHabits;

/// The platform's habits. The default is a platform on its best behaviour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// 40001 for a token that is good.
    pub spurious_token_every: u64,
    /// 40164 to every call of the account.
    pub ip_not_listed: bool,
    /// `expires_in`, `total` and the like as text.
    pub numbers_as_text: bool,
    /// Answers are labelled text/plain.
    pub text_plain: bool,

    pub list_end: ListEnd,
    /// Each page begins with a blank openid.
    pub blank_openids: bool,
    /// So many openids of a page come again at the start of the next.
    pub repeated_openids: u64,
    /// So many openids of nobody stand on each page, the same on all.
    pub strangers: u64,
    /// So many leave and so many come after each page.
    pub churn_per_page: u64,
    /// Who leaves, comes and comes back by the clock.
    pub churn_per_second: ChurnHabits,
    /// A cursor that has unfollowed answers 40003.
    pub gone_cursor_refused: bool,
    /// The `total` of a page is off by so many.
    pub total_off: i64,
    /// The `total` of a page is off by up to so many, each time anew.
    pub total_wobble: u64,
    /// The page of this number is always empty, in the shape of the list's end; pages count from 1.
    pub empty_page: u64,

    pub invalid_in_batch: InvalidInBatch,
    /// People from whom on a batch gives everybody the next one's unionid, though nothing is wrong with it.
    pub shift_every: u64,
    pub non_follower: NonFollower,
    /// People whom a batch leaves out, though nothing is wrong with them.
    pub left_out_every: u64,
    /// People of whom `changeopenid` tells no new openid, though they follow.
    pub unmoved_every: u64,
    /// People whose unionid is told no longer, though they follow.
    pub missing_unionid_every: u64,
    /// People who have another unionid than before; 1: the account was bound to another Open Platform account.
    pub changed_unionid_every: u64,
    /// People whose remark ends in a lone backslash, which breaks the whole answer.
    pub broken_json_every: u64,
    /// People whose remark holds control characters and a byte that is no UTF-8.
    pub control_characters_every: u64,
    /// People whose unionid begins with a space.
    pub leading_space_every: u64,
    /// People of whom only three fields come.
    pub sparse_every: u64,

    /// What repeating a `client_msg_id` within the window answers.
    pub duplicate_answer: DuplicateAnswer,
    /// How long a `client_msg_id` is known.
    pub dedupe_window_seconds: u32,
    /// 40241 to the same message to the same person within a minute, when no `client_msg_id` is given.
    pub sixty_second_rule: bool,
    /// -1, nothing sent.
    pub busy_every: u64,
    /// 40252; delivered after `audit_seconds`.
    pub audit_every: u64,
    pub audit_seconds: u32,
    /// Of the messages under audit, those that are refused in the end.
    pub audit_refused_every: u64,
    /// The message is accepted and the connection ends before the answer.
    pub lost_answer_every: u64,
    /// The connection ends before the message is looked at.
    pub lost_request_every: u64,
    /// People who refuse every template, each by a draw of its own.
    pub refusing_every: u64,
    /// People to whom a send answers this code, each code by a draw of its own: `{"50002": 400}`.
    pub person_errcodes_every: BTreeMap<i64, u64>,
    /// 43108 to a send while another to the same person is being answered.
    pub same_person_at_once_refused: bool,
    /// 43117 to a person who was sent something within so many seconds.
    pub same_person_within_seconds: u32,
    /// `queryblocktmplmsg` answers one message as an object instead of a list.
    pub blocked_as_object: bool,

    /// What becomes of a connection on which nothing was asked for so many milliseconds; 0: nothing.
    pub idle_ends_after_milliseconds: u64,
    pub idle_end: IdleEnd,

    /// Limits lower than quota/get shows, by endpoint name.
    pub hidden_limits: BTreeMap<String, u64>,
    /// How much later than midnight the counters are emptied.
    pub quota_reset_lag_seconds: i64,
    /// `used` of quota/get is off by up to so many thousandths, each time anew.
    pub quota_wobble_permille: u64,
    /// 45011 past so many calls a minute, by endpoint name.
    pub minute_limits: BTreeMap<String, u64>,

    pub finish: FinishHabits,
    pub follow_events: FollowHabits,
}

/// How finish events come, when a callback is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinishHabits {
    /// The least time between acceptance and the event.
    pub delay_milliseconds: u32,
    /// Added to it by a draw, so that events overtake each other.
    pub spread_milliseconds: u32,
    pub missing_every: u64,
    /// The same body comes three times.
    pub repeated_every: u64,
    /// MsgID 0 when the send had a `client_msg_id`.
    pub msgid_zero: bool,
    pub user_block_every: u64,
    pub system_failed_every: u64,
    pub freq_limit_every: u64,
    /// A status that no documentation names.
    pub unheard_status_every: u64,
}

/// How the events of people who come and go are told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FollowHabits {
    /// The least time between what happened and its event.
    pub delay_milliseconds: u32,
    /// Added to it by a draw: an event may overtake the one before it.
    pub spread_milliseconds: u32,
    pub missing_every: u64,
    /// The same body comes three times.
    pub repeated_every: u64,
}

/// How the follower list ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListEnd {
    /// The last page has a cursor; the page after it has count 0 and no `data`.
    DataAbsent,
    /// The same, with an empty list in `data`.
    EmptyList,
    /// The last page has an empty cursor.
    EmptyCursor,
    /// The page after the last has count 0 and repeats the cursor it was asked with.
    SameCursor,
}

/// What an openid of nobody does to a batch of details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvalidInBatch {
    /// 40003 for all of it.
    WholeBatch,
    /// Its entry is left out.
    ShortAnswer,
    /// From its entry on, everybody has the next one's unionid.
    Shift,
}

/// How a connection ends that was idle for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdleEnd {
    /// In good order.
    Close,
    /// By a reset.
    Reset,
    /// By a reset when the next call comes, which is not looked at.
    NextCall,
}

/// What is told of somebody who has unfollowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFollower {
    /// `subscribe`, `openid` and an empty tag list.
    Bare,
    /// All profile keys, empty; no unionid.
    EmptyProfile,
    WithUnionid,
}

/// What the second call with one `client_msg_id` answers; none delivers again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DuplicateAnswer {
    SameMsgid,
    NewMsgid,
    /// 45065.
    Refused,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            spurious_token_every: 0,
            ip_not_listed: false,
            numbers_as_text: false,
            text_plain: false,
            list_end: ListEnd::DataAbsent,
            blank_openids: false,
            repeated_openids: 0,
            strangers: 0,
            churn_per_page: 0,
            churn_per_second: ChurnHabits::default(),
            gone_cursor_refused: false,
            total_off: 0,
            total_wobble: 0,
            empty_page: 0,
            invalid_in_batch: InvalidInBatch::WholeBatch,
            shift_every: 0,
            non_follower: NonFollower::EmptyProfile,
            left_out_every: 0,
            unmoved_every: 0,
            missing_unionid_every: 0,
            changed_unionid_every: 0,
            broken_json_every: 0,
            control_characters_every: 0,
            leading_space_every: 0,
            sparse_every: 0,
            duplicate_answer: DuplicateAnswer::SameMsgid,
            dedupe_window_seconds: 600,
            sixty_second_rule: false,
            busy_every: 0,
            audit_every: 0,
            audit_seconds: 1800,
            audit_refused_every: 0,
            lost_answer_every: 0,
            lost_request_every: 0,
            refusing_every: 0,
            person_errcodes_every: BTreeMap::new(),
            same_person_at_once_refused: false,
            same_person_within_seconds: 0,
            blocked_as_object: false,
            idle_ends_after_milliseconds: 0,
            idle_end: IdleEnd::Close,
            hidden_limits: BTreeMap::new(),
            quota_reset_lag_seconds: 0,
            quota_wobble_permille: 0,
            minute_limits: BTreeMap::new(),
            finish: FinishHabits::default(),
            follow_events: FollowHabits::default(),
        }
    }
}

impl Default for FinishHabits {
    fn default() -> Self {
        Self {
            delay_milliseconds: 200,
            spread_milliseconds: 0,
            missing_every: 0,
            repeated_every: 0,
            msgid_zero: false,
            user_block_every: 0,
            system_failed_every: 0,
            freq_limit_every: 0,
            unheard_status_every: 0,
        }
    }
}

impl Faults {
    /// These habits with the keys of `changes` in place of their own; keys inside tables count one by one.
    ///
    /// # Errors
    /// When a key is unknown or a value does not fit; nothing is changed then.
    pub fn with(&self, changes: serde_json::Value) -> Result<Self, serde_json::Error> {
        let mut all = serde_json::to_value(self)?;
        overlay(&mut all, changes);
        serde_json::from_value(all)
    }
}

fn overlay(onto: &mut serde_json::Value, changes: serde_json::Value) {
    match (onto, changes) {
        (serde_json::Value::Object(onto), serde_json::Value::Object(changes)) => {
            for (key, change) in changes {
                overlay(onto.entry(key).or_insert(serde_json::Value::Null), change);
            }
        }
        (onto, change) => *onto = change,
    }
}

/// Counts how often each habit was asked, so that every N-th time is known.
#[derive(Debug, Default)]
pub struct Turns {
    pub token: AtomicU64,
    pub busy: AtomicU64,
    pub audit: AtomicU64,
    pub lost_answer: AtomicU64,
    pub lost_request: AtomicU64,
}

impl Turns {
    /// Whether this is an N-th time.
    pub fn due(turn: &AtomicU64, every: u64) -> bool {
        every > 0 && (turn.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn habits_change_key_by_key_and_refuse_unknown_ones() {
        let changed = Faults::default()
            .with(serde_json::json!({ "list_end": "empty_cursor", "finish": { "missing_every": 3 } }))
            .unwrap();
        assert_eq!(changed.list_end, ListEnd::EmptyCursor);
        assert_eq!((changed.finish.missing_every, changed.finish.delay_milliseconds), (3, 200));
        assert!(Faults::default().with(serde_json::json!({ "list_ends": 1 })).is_err());
    }

    #[test]
    fn every_third_turn_is_due() {
        let turn = AtomicU64::new(0);
        let due: Vec<bool> = (0..6).map(|_| Turns::due(&turn, 3)).collect();
        assert_eq!(due, [false, false, true, false, false, true]);
        assert!(!Turns::due(&turn, 0));
    }
}
