//! `user/get`: pages of openids, with every way a page is known to differ from the documentation.

use std::io::Write as _;

use super::{Call, Refusal};
use crate::simulator::crowd::Crowd;
use crate::simulator::faults::ListEnd;
use crate::simulator::http::Reply;
use crate::simulator::world::World;

/// A page of the follower list in its order, which is no order of time.
pub fn page(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let (world, faults) = (call.world, call.faults);
    let cursor = call.request.parameter("next_openid").filter(|openid| !openid.is_empty());
    let first_position = match &cursor {
        None => 0,
        Some(openid) => {
            let index = world.people.by_openid(openid).ok_or(40003)?;
            if faults.gone_cursor_refused && !world.crowd().follows(index) {
                return Err(40003.into());
            }
            world.people.position_of(index) + 1
        }
    };
    let found = Page::from(call, first_position);
    if found.indices.is_empty() {
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
        Self { total: crowd.total(), repeated, indices, is_last }
    }
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
        out.extend_from_slice(call.world.people.openid(*index).as_bytes());
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
