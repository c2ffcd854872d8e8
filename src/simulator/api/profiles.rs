//! `user/info`, its batch of a hundred, `updateremark` and `changeopenid`: what the account is told of a person.

use std::borrow::Cow;
use std::io::Write as _;

use serde::Deserialize;

use super::{Call, Refusal, write_json};
use crate::simulator::crowd::{Crowd, Standing};
use crate::simulator::faults::{InvalidInBatch, NonFollower};
use crate::simulator::http::Reply;
use crate::simulator::people::{Trait, mix};

const BATCH_LIMIT: usize = 100;

/// `user/info`.
pub fn one(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let openid = call.request.parameter("openid").filter(|openid| !openid.is_empty()).ok_or(41009)?;
    let index = known(call, &call.world.crowd(), &openid).ok_or(40003)?;
    let entry = Entry { openid: &openid, index: Some(index), unionid_of: Some(index) };
    entry.write(call, &call.world.crowd(), &mut reply.body);
    Ok(())
}

/// Whose openid this is, if the account ever knew them.
fn known(call: &Call<'_>, crowd: &Crowd, openid: &str) -> Option<u64> {
    call.world.people.by_openid(openid).filter(|index| crowd.standing(*index) != Standing::Stranger)
}

#[derive(Deserialize)]
struct BatchRequest<'a> {
    #[serde(borrow)]
    user_list: Vec<Asked<'a>>,
}

#[derive(Deserialize)]
struct Asked<'a> {
    #[serde(borrow, default)]
    openid: Cow<'a, str>,
}

/// `user/info/batchget`; the order of the answer is not that of the request.
pub fn batch(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let request: BatchRequest<'_> = serde_json::from_slice(call.request.body).map_err(|_| Refusal::code(47001))?;
    if request.user_list.is_empty() || request.user_list.len() > BATCH_LIMIT {
        return Err(40032.into());
    }
    let crowd = call.world.crowd();
    let mut entries: Vec<Entry<'_>> = request
        .user_list
        .iter()
        .map(|asked| {
            let index = known(call, &crowd, &asked.openid);
            Entry { openid: &asked.openid, index, unionid_of: index }
        })
        .collect();
    if let Some(first_invalid) = entries.iter().position(|entry| entry.index.is_none()) {
        match call.faults.invalid_in_batch {
            InvalidInBatch::WholeBatch => return Err(40003.into()),
            InvalidInBatch::ShortAnswer => entries.retain(|entry| entry.index.is_some()),
            InvalidInBatch::Shift => shift(&mut entries[first_invalid..]),
        }
    }
    let shifts = |entry: &Entry<'_>| {
        let people = &call.world.people;
        entry.index.is_some_and(|index| people.one_in(index, Trait::OddProfile, call.faults.shift_every))
    };
    if let Some(first) = entries.iter().position(shifts) {
        shift(&mut entries[first..]);
    }
    if call.faults.left_out_every > 0 {
        let people = &call.world.people;
        let left_out = |index| people.one_in(index, Trait::LeftOut, call.faults.left_out_every);
        entries.retain(|entry| !entry.index.is_some_and(left_out));
    }
    entries.sort_by_key(|entry| mix(entry.index.unwrap_or(u64::MAX)));
    reply.body.extend_from_slice(br#"{"user_info_list":["#);
    for (place, entry) in entries.iter().enumerate() {
        if place > 0 {
            reply.body.push(b',');
        }
        entry.write(call, &crowd, &mut reply.body);
    }
    reply.body.extend_from_slice(b"]}");
    Ok(())
}

/// Gives everybody the unionid of the one behind.
fn shift(entries: &mut [Entry<'_>]) {
    for place in 0..entries.len() {
        entries[place].unionid_of = entries.get(place + 1).and_then(|next| next.index);
    }
}

/// One person in an answer.
struct Entry<'a> {
    openid: &'a str,
    index: Option<u64>,
    /// Whose unionid is told: somebody else's when the batch has shifted.
    unionid_of: Option<u64>,
}

impl Entry<'_> {
    fn write(&self, call: &Call<'_>, crowd: &Crowd, out: &mut Vec<u8>) {
        match self.index.map(|index| (index, crowd.standing(index))) {
            Some((index, Standing::Follows { since })) => self.write_follower(call, (index, since), out),
            _ => self.write_non_follower(call, out),
        }
    }

    fn write_follower(&self, call: &Call<'_>, (index, since): (u64, Option<i64>), out: &mut Vec<u8>) {
        let (people, faults) = (&call.world.people, call.faults);
        let openid = self.openid;
        if people.one_in(index, Trait::OddProfile, faults.sparse_every) {
            write!(out, r#"{{"subscribe":1,"openid":"{openid}""#).expect("writing to memory cannot fail");
            self.write_unionid(call, out);
            out.push(b'}');
            return;
        }
        let subscribed_at = call.number(since.unwrap_or_else(|| people.subscribed_at(index)));
        write!(
            out,
            r#"{{"subscribe":1,"openid":"{openid}","nickname":"","sex":0,"language":"zh_CN","city":"","province":"","country":"","headimgurl":"","subscribe_time":{subscribed_at}"#
        )
        .expect("writing to memory cannot fail");
        self.write_unionid(call, out);
        out.extend_from_slice(br#","remark":""#);
        if let Some(remark) = call.world.remark(index) {
            let quoted = serde_json::to_string(&remark).expect("writing JSON to memory cannot fail");
            out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
        }
        if people.one_in(index, Trait::OddProfile, faults.broken_json_every) {
            out.extend_from_slice(br"\");
        }
        if people.one_in(index, Trait::OddProfile, faults.control_characters_every) {
            out.extend_from_slice(b"a\x14b\x07\xff");
        }
        let scene = people.scene(index);
        let by_code = scene == "ADD_SCENE_QR_CODE";
        let qr_scene = if by_code { people.draw(index, Trait::Scene) % 100 + 1 } else { 0 };
        let tags = if people.is_starred(index) { "[2]" } else { "[]" };
        write!(
            out,
            r#"","groupid":0,"tagid_list":{tags},"subscribe_scene":"{scene}","qr_scene":{},"qr_scene_str":""}}"#,
            call.number(qr_scene)
        )
        .expect("writing to memory cannot fail");
    }

    fn write_non_follower(&self, call: &Call<'_>, out: &mut Vec<u8>) {
        let openid = self.openid.replace(['"', '\\'], "");
        write!(out, r#"{{"subscribe":0,"openid":"{openid}","#).expect("writing to memory cannot fail");
        if call.faults.non_follower != NonFollower::Bare {
            out.extend_from_slice(
                br#""nickname":"","sex":0,"language":"zh_CN","city":"","province":"","country":"","headimgurl":"","#,
            );
        }
        out.extend_from_slice(br#""tagid_list":[]"#);
        if call.faults.non_follower == NonFollower::WithUnionid {
            self.write_unionid(call, out);
        }
        out.push(b'}');
    }

    fn write_unionid(&self, call: &Call<'_>, out: &mut Vec<u8>) {
        let told = self.unionid_of.and_then(|index| Some((index, call.world.told_unionid(index, call.faults)?)));
        let Some((index, unionid)) = told else { return };
        let has_space = call.world.people.one_in(index, Trait::OddProfile, call.faults.leading_space_every);
        let space = if has_space { " " } else { "" };
        write!(out, r#","unionid":"{space}{unionid}""#).expect("writing to memory cannot fail");
    }
}

#[derive(Deserialize)]
struct RemarkRequest {
    #[serde(default)]
    openid: String,
    #[serde(default)]
    remark: String,
}

/// `user/info/updateremark`.
pub fn update_remark(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let request: RemarkRequest = call.json()?;
    let index = known(call, &call.world.crowd(), &request.openid).ok_or(40003)?;
    call.world.set_remark(index, request.remark);
    write_json(reply, &serde_json::json!({ "errcode": 0, "errmsg": "ok" }));
    Ok(())
}

#[derive(Deserialize)]
struct ChangeRequest {
    #[serde(default)]
    from_appid: String,
    #[serde(default)]
    openid_list: Vec<String>,
}

/// `changeopenid`: openids of an account that was moved into this one, each with its own outcome.
pub fn change_openid(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let request: ChangeRequest = call.json()?;
    if request.openid_list.is_empty() || request.openid_list.len() > BATCH_LIMIT {
        return Err(40032.into());
    }
    if request.from_appid.is_empty() {
        return Err(41002.into());
    }
    let people = &call.world.people;
    let crowd = call.world.crowd();
    let is_known = call.world.options.moved_from.as_ref().is_none_or(|known| *known == request.from_appid);
    let unmoved_every = call.faults.unmoved_every;
    let is_moved =
        |index: &u64| is_known && crowd.follows(*index) && !people.one_in(*index, Trait::Unmoved, unmoved_every);
    let results: Vec<serde_json::Value> = request
        .openid_list
        .iter()
        .map(|old| match people.by_openid_of(&request.from_appid, old).filter(is_moved) {
            Some(index) => {
                serde_json::json!({ "ori_openid": old, "new_openid": people.openid(index), "err_msg": "ok" })
            }
            None => serde_json::json!({ "ori_openid": old, "err_msg": "ori_openid error" }),
        })
        .collect();
    write_json(reply, &serde_json::json!({ "errcode": 0, "errmsg": "ok", "result_list": results }));
    Ok(())
}
