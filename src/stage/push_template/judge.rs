//! What an answer means for its recipient: settled, again in a while, or a reason to stop the whole push.

use std::time::Duration;

use chrono::TimeDelta;

use super::{End, Item, SaidBy};
use crate::clock::Timestamp;
use crate::domain::{DeliveryState, may_repeat};
use crate::ledger::Outcome;
use crate::pace::Answer;
use crate::wechat::{CodeClass, SendOutcome, class_of, lookup_code};

/// Sends tried for a recipient whose answers say "busy" or do not come.
const MOST_TRIES: u32 = 6;
/// Sends tried for a recipient who is "too frequent".
const MOST_SLOW_TRIES: u32 = 3;
/// Sends tried when the token is refused, each of them twice; then the recipient is put back.
const MOST_TOKEN_TRIES: u32 = 3;
/// How often a recipient is put back for that: a dead token stops the push long before.
const MOST_TOKEN_ATTEMPTS: u32 = 4;
/// How long whoever was put back waits.
const TOKEN_WAIT: TimeDelta = TimeDelta::seconds(20);

/// What to do with one answer.
#[derive(Debug)]
pub enum Verdict {
    Settled(Outcome),
    /// Send the same message again, with the same id, after a while.
    Again {
        after: Duration,
        in_doubt: bool,
    },
    /// Not now: this recipient is pending until a time, and the push goes on.
    PutBack(Outcome),
    /// Nothing more is to be sent; this recipient is owed.
    Stop(End),
}

/// The verdict, and what the pace is told.
pub fn judge(item: &Item, answer: &SendOutcome, now: Timestamp, constant_fields: &[String]) -> (Verdict, Answer) {
    match answer {
        SendOutcome::Accepted { msgid, .. } => {
            (Verdict::Settled(Outcome { msgid: *msgid, ..ended(item, DeliveryState::Sent, now) }), Answer::Fine)
        }
        SendOutcome::NoAnswer { may_have_left, reason } => {
            (no_answer(item, *may_have_left, reason, now), Answer::Missing)
        }
        SendOutcome::Refused { errcode, errmsg, class, field } => {
            let pace = match (*class, *errcode) {
                (CodeClass::Retry, _) => Answer::Busy,
                (CodeClass::Slow, _) => Answer::TooFast,
                _ => Answer::Fine,
            };
            let refusal = Refusal { errcode: *errcode, errmsg, field: field.as_deref(), constant_fields };
            (refused(item, *class, &refusal, now), pace)
        }
    }
}

struct Refusal<'a> {
    errcode: i64,
    errmsg: &'a str,
    field: Option<&'a str>,
    constant_fields: &'a [String],
}

fn refused(item: &Item, class: CodeClass, refusal: &Refusal<'_>, now: Timestamp) -> Verdict {
    let errcode = refusal.errcode;
    let settled = |state, reason: &str| {
        Verdict::Settled(Outcome { reason: Some(reason.to_owned()), errcode: Some(errcode), ..ended(item, state, now) })
    };
    let failed = |reason: &str| match item.may_have_it() {
        // Whoever is counted as failed may be sent to again: not somebody who may have the message.
        true => settled(DeliveryState::Unconfirmed, &format!("refused, but an earlier try may have arrived: {reason}")),
        false => settled(DeliveryState::Failed, reason),
    };
    match class {
        // An earlier try of ours was taken: this person has it, or will.
        CodeClass::Done if errcode != DUPLICATE_IN_A_MINUTE || item.in_doubt => {
            Verdict::Settled(ended(item, DeliveryState::Sent, now))
        }
        CodeClass::Done => failed("the same content went to this person within a minute"),
        CodeClass::Held => settled(DeliveryState::Held, "under WeChat's review"),
        CodeClass::Recipient => match refusal.field {
            Some(field) if refusal.constant_fields.iter().any(|name| name == field) => Verdict::Stop(End::Halted {
                errcode: Some(errcode),
                why: format!(
                    "WeChat says {errcode}: field `{field}` is refused, and it is the same for everybody; mend it"
                ),
            }),
            Some(field) => failed(&format!("field `{field}` refused")),
            None => failed(meaning(errcode)),
        },
        CodeClass::SlowRecipient if item.tries < MOST_SLOW_TRIES => again(item, Duration::from_secs(2), item.in_doubt),
        CodeClass::SlowRecipient => failed(meaning(errcode)),
        CodeClass::Retry => busy(item, errcode, now),
        CodeClass::Slow => Verdict::Again { after: to_next_minute(now), in_doubt: item.in_doubt },
        CodeClass::Quota => Verdict::Stop(End::QuotaSpent {
            why: format!("WeChat says {errcode}: the day's sends of the account are used up"),
            said_by: SaidBy::WeChat,
        }),
        CodeClass::Token => refused_token(item, errcode, now),
        CodeClass::Campaign if TEMPLATE_CODES.contains(&errcode) => Verdict::Stop(End::TemplateGone { errcode }),
        // The client has tried what there is to try, and says so itself.
        CodeClass::Operator if class_of(errcode) == CodeClass::Token => {
            Verdict::Stop(End::Halted { errcode: Some(errcode), why: refusal.errmsg.to_owned() })
        }
        CodeClass::Campaign | CodeClass::Operator => Verdict::Stop(End::Halted {
            errcode: Some(errcode),
            why: format!("WeChat says {errcode} ({}): {}", refusal.errmsg, advice(errcode)),
        }),
        CodeClass::Unknown if item.tries < 2 => again(item, Duration::from_secs(1), item.in_doubt),
        CodeClass::Unknown => {
            tracing::warn!(errcode, "WeChat answers with a code that is not known: {errcode} ({})", refusal.errmsg);
            failed("a code of WeChat that is not known")
        }
    }
}

const DUPLICATE_IN_A_MINUTE: i64 = 40241;
const TEMPLATE_CODES: [i64; 2] = [40036, 40037];

/// Others get through with the token, or the client would have renewed it or said that it is dead.
fn refused_token(item: &Item, errcode: i64, now: Timestamp) -> Verdict {
    if item.tries < MOST_TOKEN_TRIES {
        return again(item, Duration::from_secs(1), item.in_doubt);
    }
    let reason = Some("the access token was refused for this message alone".to_owned());
    let outcome = |state| Outcome { reason, errcode: Some(errcode), ..ended(item, state, now) };
    match item.in_doubt {
        true => Verdict::Settled(Outcome { retry_at: item.once_more_at(), ..outcome(DeliveryState::Unconfirmed) }),
        false if item.attempt < MOST_TOKEN_ATTEMPTS => {
            Verdict::PutBack(Outcome { retry_at: Some(now + TOKEN_WAIT), ..outcome(item.put_back_to()) })
        }
        false if item.repeats > 0 => Verdict::Settled(outcome(DeliveryState::Unconfirmed)),
        false => Verdict::Settled(outcome(DeliveryState::Failed)),
    }
}

fn busy(item: &Item, errcode: i64, now: Timestamp) -> Verdict {
    if item.tries < MOST_TRIES && may_repeat(item.first_try_at, now) {
        return again(item, Duration::from_secs(1), true);
    }
    Verdict::Settled(Outcome {
        reason: Some("WeChat stayed busy".to_owned()),
        errcode: Some(errcode),
        retry_at: item.once_more_at(),
        ..ended(item, DeliveryState::Unconfirmed, now)
    })
}

fn no_answer(item: &Item, may_have_left: bool, reason: &str, now: Timestamp) -> Verdict {
    let in_doubt = item.in_doubt || may_have_left;
    if !in_doubt {
        return again(item, Duration::from_secs(1), false);
    }
    if item.tries < MOST_TRIES && may_repeat(item.first_try_at, now) {
        return again(item, Duration::from_millis(250), true);
    }
    Verdict::Settled(Outcome {
        reason: Some(format!("no answer: {reason}")),
        errcode: item.last_errcode,
        retry_at: item.once_more_at(),
        ..ended(item, DeliveryState::Unconfirmed, now)
    })
}

/// Doubling from `first`, at most a minute.
fn again(item: &Item, first: Duration, in_doubt: bool) -> Verdict {
    let doubled = first.saturating_mul(1 << item.tries.saturating_sub(1).min(6));
    Verdict::Again { after: doubled.min(Duration::from_secs(60)), in_doubt }
}

fn to_next_minute(now: Timestamp) -> Duration {
    let into = u64::try_from(now.timestamp().rem_euclid(60)).unwrap_or(0);
    Duration::from_secs(60 - into)
}

fn meaning(errcode: i64) -> &'static str {
    lookup_code(errcode).map_or("a code of WeChat that is not known", |code| code.meaning)
}

fn advice(errcode: i64) -> &'static str {
    lookup_code(errcode).map_or("look it up", |code| code.advice)
}

/// The end of this attempt, without more to say.
fn ended(item: &Item, state: DeliveryState, now: Timestamp) -> Outcome {
    Outcome {
        seq: item.seq,
        attempt: item.attempt,
        state,
        reason: None,
        errcode: None,
        msgid: None,
        at: now,
        retry_at: None,
    }
}
