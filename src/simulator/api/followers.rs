//! `user/get`: pages of openids, with every way a page is known to differ from the documentation.

use std::io::Write as _;

use super::{Call, Refusal};
use crate::simulator::crowd::Crowd;
use crate::simulator::faults::ListEnd;
use crate::simulator::http::Reply;
use crate::simulator::people::mix;
use crate::simulator::world::World;

/// A page of the follower list in its order, which is no order of time.
pub fn page(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let (world, faults) = (call.world, call.faults);
    let cursor = call.request.parameter("next_openid").filter(|openid| !openid.is_empty());
    let asked = cursor.as_ref().and_then(|openid| world.people.by_openid(openid));
    let first_position = match &cursor {
        None => 0,
        Some(_) => {
            let index = asked.ok_or(40003)?;
            if faults.gone_cursor_refused && !world.crowd().follows(index) {
                return Err(40003.into());
            }
            world.people.position_of(index) + 1
        }
    };
    let found = Page::from(call, first_position);
    let is_hidden = faults.empty_page > 0 && {
        let number = world.page_number(asked);
        found.indices.last().into_iter().for_each(|last| world.note_cursor(*last, number + 1));
        number == faults.empty_page
    };
    if found.indices.is_empty() || is_hidden {
        write_end(call, found.total, cursor.as_deref(), reply);
    } else {
        write_page(call, &found, reply);
    }
    if faults.churn_per_page > 0 {
        world.unfollow_some(faults.churn_per_page);
        world.follow_some(faults.churn_per_page);
    }
    Ok(())
}

struct Page {
    total: u64,
    /// Those of the page before that come again.
    repeated: Vec<u64>,
    indices: Vec<u64>,
    is_last: bool,
}

impl Page {
    fn from(call: &Call<'_>, first_position: u64) -> Self {
        let (world, crowd) = (call.world, call.world.crowd());
        let size = usize::try_from(world.options.page_size.clamp(1, 10_000)).expect("a page is short");
        let mut indices = Vec::with_capacity(size);
        let mut is_last = true;
        for index in (first_position..world.people.capacity()).map(|position| world.people.at_position(position)) {
            if !crowd.follows(index) {
                continue;
            }
            if indices.len() == size {
                is_last = false;
                break;
            }
            indices.push(index);
        }
        let repeated = before(world, &crowd, first_position, call.faults.repeated_openids);
        Self { total: told_total(call, crowd.total()), repeated, indices, is_last }
    }
}

/// The followers as this answer counts them.
fn told_total(call: &Call<'_>, total: u64) -> u64 {
    let (world, faults) = (call.world, call.faults);
    let total = total.saturating_add_signed(faults.total_off);
    if faults.total_wobble == 0 {
        return total;
    }
    let spread = faults.total_wobble.saturating_mul(2).saturating_add(1);
    total.saturating_sub(faults.total_wobble).saturating_add(mix(world.next_call()) % spread)
}

/// The answer of an empty page where there is one: ordered once.
pub fn empty_page(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let cursor = call.request.parameter("next_openid");
    write_end(call, told_total(call, call.world.crowd().total()), cursor.as_deref(), reply);
    Ok(())
}

fn before(world: &World, crowd: &Crowd, position: u64, most: u64) -> Vec<u64> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let back = (0..position).rev().map(|position| world.people.at_position(position));
    back.filter(|index| crowd.follows(*index)).take(most).collect()
}

fn write_page(call: &Call<'_>, page: &Page, reply: &mut Reply) {
    let blank = call.faults.blank_openids;
    let strangers = call.faults.strangers;
    let others = usize::try_from(strangers).unwrap_or(usize::MAX).saturating_add(usize::from(blank));
    let count = page.repeated.len() + page.indices.len() + others;
    let out = &mut reply.body;
    out.reserve(count * 31 + 128);
    write!(out, r#"{{"total":{},"count":{},"data":{{"openid":["#, call.number(page.total), call.number(count))
        .expect("writing to memory cannot fail");
    if blank {
        out.extend_from_slice(br#""","#);
    }
    for stranger in 0..strangers {
        write!(out, r#""oStranger{stranger:019}","#).expect("writing to memory cannot fail");
    }
    for index in page.repeated.iter().chain(&page.indices) {
        out.push(b'"');
        out.extend_from_slice(&call.world.people.openid_letters(*index));
        out.extend_from_slice(br#"","#);
    }
    out.pop();
    let ends_here = page.is_last && call.faults.list_end == ListEnd::EmptyCursor;
    let last = page.indices.last().filter(|_| !ends_here).map(|index| call.world.people.openid(*index));
    write!(out, r#"]}},"next_openid":"{}"}}"#, last.unwrap_or_default()).expect("writing to memory cannot fail");
}

fn write_end(call: &Call<'_>, total: u64, cursor: Option<&str>, reply: &mut Reply) {
    let total = call.number(total);
    let count = call.number(0);
    let (data, next) = match call.faults.list_end {
        ListEnd::DataAbsent | ListEnd::EmptyCursor => ("", ""),
        ListEnd::EmptyList => (r#""data":{"openid":[]},"#, ""),
        ListEnd::SameCursor => ("", cursor.unwrap_or_default()),
    };
    write!(reply.body, r#"{{"total":{total},"count":{count},{data}"next_openid":"{next}"}}"#)
        .expect("writing to memory cannot fail");
}
