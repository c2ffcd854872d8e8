//! Tags and the blacklist: the other lists of openids that an account can ask for.
//!
//! There is one tag, the platform's own star, which a fifth of all people carry.

use serde::Deserialize;
use serde_json::json;

use super::{Call, Refusal, write_json};
use crate::simulator::crowd::Standing;
use crate::simulator::http::Reply;
use crate::simulator::people::STARRED_TAG;

const BLACKLIST_PAGE: usize = 1_000;
const BLACKLIST_BATCH: usize = 20;

/// `tags/get`.
pub fn all(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let starred = call.world.crowd().total() / 5;
    write_json(reply, &json!({ "tags": [{ "id": STARRED_TAG, "name": "星标组", "count": starred }] }));
    Ok(())
}

#[derive(Deserialize)]
struct MembersRequest {
    #[serde(default)]
    tagid: u64,
    #[serde(default)]
    next_openid: String,
}

/// `user/tag/get`: a page of the followers who carry a tag, in the order of the follower list.
pub fn members(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let (world, request) = (call.world, call.json::<MembersRequest>()?);
    if request.tagid != STARRED_TAG {
        return Err(45159.into());
    }
    let first_position = match request.next_openid.as_str() {
        "" => 0,
        openid => world.people.position_of(world.people.by_openid(openid).ok_or(40003)?) + 1,
    };
    let size = usize::try_from(world.options.page_size.clamp(1, 10_000)).expect("a page is short");
    let crowd = world.crowd();
    let page: Vec<String> = (first_position..world.people.capacity())
        .map(|position| world.people.at_position(position))
        .filter(|index| world.people.is_starred(*index) && crowd.follows(*index))
        .take(size)
        .map(|index| world.people.openid(index))
        .collect();
    let head = json!({ "count": page.len(), "next_openid": page.last().cloned().unwrap_or_default() });
    write_list(head, &page, reply);
    Ok(())
}

/// An empty list has no `data`.
fn write_list(mut answer: serde_json::Value, page: &[String], reply: &mut Reply) {
    if !page.is_empty() {
        answer["data"] = json!({ "openid": page });
    }
    write_json(reply, &answer);
}

#[derive(Deserialize)]
struct PersonRequest {
    #[serde(default)]
    openid: String,
}

/// `tags/getidlist`.
pub fn of_person(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let request: PersonRequest = call.json()?;
    let index = call.world.people.by_openid(&request.openid).ok_or(40003)?;
    if call.world.crowd().standing(index) == Standing::Stranger {
        return Err(49003.into());
    }
    let tags = if call.world.people.is_starred(index) { vec![STARRED_TAG] } else { Vec::new() };
    write_json(reply, &json!({ "tagid_list": tags }));
    Ok(())
}

#[derive(Deserialize)]
struct BlacklistRequest {
    #[serde(default)]
    begin_openid: String,
}

/// Those whom the account keeps out.
pub fn blacklist(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let request: BlacklistRequest = call.json()?;
    let people = &call.world.people;
    let after = match request.begin_openid.as_str() {
        "" => None,
        openid => Some(people.by_openid(openid).ok_or(49003)?),
    };
    let crowd = call.world.crowd();
    let total = crowd.blacklisted().count();
    let page: Vec<String> = crowd
        .blacklisted()
        .filter(|index| after.is_none_or(|after| *index > after))
        .take(BLACKLIST_PAGE)
        .map(|index| people.openid(index))
        .collect();
    let next = page.last().cloned().unwrap_or_default();
    write_list(json!({ "total": total, "count": page.len(), "next_openid": next }), &page, reply);
    Ok(())
}

#[derive(Deserialize)]
struct BlacklistChange {
    #[serde(default)]
    openid_list: Vec<String>,
}

/// `tags/members/batchblacklist` and its reverse.
pub fn change_blacklist(call: &Call<'_>, keep_out: bool, reply: &mut Reply) -> Result<(), Refusal> {
    let request: BlacklistChange = call.json()?;
    if request.openid_list.is_empty() || request.openid_list.len() > BLACKLIST_BATCH {
        return Err(40032.into());
    }
    let people = &call.world.people;
    let named: Option<Vec<u64>> = request.openid_list.iter().map(|openid| people.by_openid(openid)).collect();
    named.ok_or(49003)?.into_iter().for_each(|index| call.world.blacklist(index, keep_out));
    write_json(reply, &json!({ "errcode": 0, "errmsg": "ok" }));
    Ok(())
}
