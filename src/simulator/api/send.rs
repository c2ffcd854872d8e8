//! `message/template/send`: the call that is made a million times, so it borrows from the request and writes bytes.
//!
//! A call is judged in this order: busy → template → person → fields → seen before → accepted (or held for review).
//! Only what is accepted for the first time reaches an inbox.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::{Call, Refusal};
use crate::simulator::crowd::Standing;
use crate::simulator::faults::{DuplicateAnswer, Turns};
use crate::simulator::http::Reply;
use crate::simulator::mailbag::{FinishStatus, Letter};
use crate::simulator::people::{Trait, hash_bytes, mix};
use crate::simulator::template::{Fault, check};
use crate::simulator::world::LiveTemplate;

const TEMPLATE_ID_CHARACTERS: usize = 43;
const SIXTY_SECONDS: u32 = 60;

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    touser: Cow<'a, str>,
    #[serde(borrow, default)]
    template_id: Cow<'a, str>,
    /// Empty when there is none.
    #[serde(borrow, default)]
    client_msg_id: Cow<'a, str>,
    #[serde(borrow, default)]
    miniprogram: Option<MiniProgram<'a>>,
    #[serde(borrow, default)]
    data: Fields<'a>,
}

#[derive(Deserialize)]
struct MiniProgram<'a> {
    #[serde(borrow, default)]
    appid: Cow<'a, str>,
    #[serde(borrow, default, alias = "path", alias = "page")]
    pagepath: Cow<'a, str>,
}

#[derive(Default)]
struct Fields<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// A key that borrows: `Cow` as a map's key would be copied.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Value<'a> {
    #[serde(borrow, default)]
    value: Cow<'a, str>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the fields of a message")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(6);
                while let Some((Key(key), Value { value })) = map.next_entry()? {
                    fields.push((key, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_ref())
    }
}

/// Whom a message goes to and by which template.
#[derive(Clone, Copy)]
struct Target {
    index: u64,
    template: usize,
}

pub fn send(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let (world, faults) = (call.world, call.faults);
    if Turns::due(&world.turns.lost_request, faults.lost_request_every) {
        reply.hang_up = true;
        return Ok(());
    }
    if Turns::due(&world.turns.busy, faults.busy_every) {
        return Err((-1).into());
    }
    let message: Message<'_> = serde_json::from_slice(call.request.body).map_err(|_| Refusal::code(47001))?;
    let target = find(call, &message)?;
    check_fields(&world.templates[target.template], &message.data)?;
    if faults.same_person_at_once_refused {
        if !world.begin_answer(target.index) {
            return Err(43108.into());
        }
        reply.answers = Some(target.index);
    }
    let key = message_key(call, &message, target);
    if is_too_soon(call, key, target) {
        return Err(43117.into());
    }
    if let Some(answered) = answer_repeat(call, &message, (key, target), reply) {
        return answered;
    }
    accept(call, target, key, !message.client_msg_id.is_empty(), reply)
}

fn find(call: &Call<'_>, message: &Message<'_>) -> Result<Target, Refusal> {
    let (world, faults) = (call.world, call.faults);
    if message.template_id.len() != TEMPLATE_ID_CHARACTERS {
        return Err(40036.into());
    }
    let template = world.template(&message.template_id).ok_or(40037)?;
    if let Some(miniprogram) = message.miniprogram.as_ref().filter(|one| !one.appid.is_empty()) {
        if miniprogram.appid != world.options.miniprogram_app_id {
            return Err(40013.into());
        }
        let page = miniprogram.pagepath.split('?').next().unwrap_or_default();
        if !world.options.pages.is_empty() && !world.options.pages.iter().any(|known| known == page) {
            return Err(40165.into());
        }
    }
    let index = world.people.by_openid(&message.touser).ok_or(40003)?;
    {
        let crowd = world.crowd();
        match crowd.standing(index) {
            Standing::Stranger => return Err(40003.into()),
            Standing::Left => return Err(43004.into()),
            Standing::Follows { .. } if crowd.is_blacklisted(index) => return Err(43019.into()),
            Standing::Follows { .. } => {}
        }
    }
    for (errcode, every) in &faults.person_errcodes_every {
        let draw = mix(world.people.draw(index, Trait::Errcode) ^ errcode.unsigned_abs());
        if *every > 0 && draw.is_multiple_of(*every) {
            return Err((*errcode).into());
        }
    }
    let place = u64::try_from(template).expect("a place in a short list fits in 64 bits");
    let drawn = faults.refusing_every > 0
        && mix(world.people.draw(index, Trait::Refusal) ^ place).is_multiple_of(faults.refusing_every);
    if drawn || world.refuses(index, template) {
        return Err(43101.into());
    }
    Ok(Target { index, template })
}

fn check_fields(live: &LiveTemplate, fields: &Fields<'_>) -> Result<(), Refusal> {
    for key in &live.keys {
        let declared = live.template.declared.get(key).map(Vec::as_slice);
        let what = match check(key, fields.get(key).unwrap_or_default(), declared) {
            Ok(()) => continue,
            Err(Fault::Empty) => "is empty",
            Err(Fault::Invalid) => "invalid",
        };
        let text = format!("argument invalid! data.{key}.value {what}");
        return Err(Refusal { errcode: 47003, text: text.into() });
    }
    Ok(())
}

/// Whether the person was sent something else a moment ago. A repeat is not something else.
fn is_too_soon(call: &Call<'_>, key: u64, target: Target) -> bool {
    let (world, faults) = (call.world, call.faults);
    let now = world.clock.now_seconds();
    faults.same_person_within_seconds > 0
        && !world.sent_ids.knows(key, now, faults.dedupe_window_seconds)
        && world.reached_lately.first_seen(mix(target.index), now, faults.same_person_within_seconds).is_some()
}

/// What makes two sends the same: the person and the caller's id; without one, every call is its own.
fn message_key(call: &Call<'_>, message: &Message<'_>, target: Target) -> u64 {
    if message.client_msg_id.is_empty() {
        return mix(call.world.next_call() ^ call.world.options.seed.rotate_left(32));
    }
    mix(hash_bytes(target.index, message.client_msg_id.as_bytes()))
}

/// The answer to a message that was accepted before; `None` when it is new, which is remembered.
fn answer_repeat(
    call: &Call<'_>,
    message: &Message<'_>,
    (key, target): (u64, Target),
    reply: &mut Reply,
) -> Option<Result<(), Refusal>> {
    let (world, faults) = (call.world, call.faults);
    let now = world.clock.now_seconds();
    if message.client_msg_id.is_empty() {
        if !faults.sixty_second_rule {
            return None;
        }
        let content = message
            .data
            .0
            .iter()
            .fold(hash_bytes(target.index, message.template_id.as_bytes()), |state, (key, value)| {
                hash_bytes(hash_bytes(state, key.as_bytes()), value.as_bytes())
            });
        world.sent_lately.first_seen(mix(content), now, SIXTY_SECONDS)?;
        world.inbox.keep_off();
        return Some(Err(40241.into()));
    }
    world.sent_ids.first_seen(key, now, faults.dedupe_window_seconds)?;
    world.inbox.keep_off();
    match faults.duplicate_answer {
        DuplicateAnswer::SameMsgid => write_accepted(reply, msgid(key)),
        DuplicateAnswer::NewMsgid => write_accepted(reply, msgid(mix(key ^ world.next_call()))),
        DuplicateAnswer::Refused => return Some(Err(45065.into())),
    }
    Some(Ok(()))
}

fn accept(call: &Call<'_>, target: Target, key: u64, has_id: bool, reply: &mut Reply) -> Result<(), Refusal> {
    let (world, faults) = (call.world, call.faults);
    let msgid = msgid(key);
    if Turns::due(&world.turns.audit, faults.audit_every) {
        let passes = faults.audit_refused_every == 0 || !mix(key).is_multiple_of(faults.audit_refused_every);
        let at = world.clock.now_micros() + i64::from(faults.audit_seconds) * 1_000_000;
        world.mailbag.put(at, Letter::Review { index: target.index, template: target.template, msgid, passes });
        return Err(40252.into());
    }
    let status = finish_status(call, key);
    if status == FinishStatus::Success {
        world.inbox.deliver(target.index);
    } else {
        world.inbox.miss();
    }
    if world.has_callback() {
        promise_finish(call, target, (key, status), has_id);
    }
    reply.hang_up = Turns::due(&world.turns.lost_answer, faults.lost_answer_every);
    write_accepted(reply, msgid);
    Ok(())
}

/// Whether the N-th part of all messages, by a draw of its own for each `salt`.
fn drawn(key: u64, salt: u64, every: u64) -> bool {
    every > 0 && mix(key ^ mix(salt)).is_multiple_of(every)
}

fn finish_status(call: &Call<'_>, key: u64) -> FinishStatus {
    let finish = &call.faults.finish;
    if drawn(key, 1, finish.user_block_every) {
        FinishStatus::UserBlock
    } else if drawn(key, 2, finish.system_failed_every) {
        FinishStatus::SystemFailed
    } else if drawn(key, 3, finish.freq_limit_every) {
        FinishStatus::FreqLimit
    } else if drawn(key, 7, finish.unheard_status_every) {
        FinishStatus::Unheard
    } else {
        FinishStatus::Success
    }
}

fn promise_finish(call: &Call<'_>, target: Target, (key, status): (u64, FinishStatus), has_id: bool) {
    let (world, finish) = (call.world, &call.faults.finish);
    if drawn(key, 4, finish.missing_every) {
        return;
    }
    let copies = if drawn(key, 5, finish.repeated_every) { 3 } else { 1 };
    let spread = mix(key ^ 6) % (u64::from(finish.spread_milliseconds) + 1);
    let delay = i64::from(finish.delay_milliseconds) + i64::try_from(spread).expect("a spread fits in 32 bits");
    let msgid = if finish.msgid_zero && has_id { 0 } else { msgid(key) };
    let letter = Letter::Finish { index: target.index, msgid, status, copies };
    world.mailbag.put(world.clock.now_micros() + delay * 1_000, letter);
}

/// An id of the size the platform gives: above 2^61, below 2^63.
fn msgid(key: u64) -> u64 {
    (1 << 61) + (mix(key ^ 0x6d73_6769_6400) >> 3)
}

fn write_accepted(reply: &mut Reply, msgid: u64) {
    write!(reply.body, r#"{{"errcode":0,"errmsg":"ok","msgid":{msgid}}}"#).expect("writing to memory cannot fail");
}
