//! Orders from outside, under `/_simulator/`: what a test or the demo wants to know or to happen.
//!
//! GET `inbox`, `calls`, `callbacks`, `world`, `received?openid=`, `person?index=` (or `openid=`, `unionid=`), `login?index=`;
//! POST `order`, `orders/clear`, `faults`, `clock`, `unfollow`, `follow`, `rebind`, `blacklist`, `refuse`, `kill_template`,
//! `revoke_tokens`, `inbox/clear`, `event`, `callback`, `callback/check`. What is not understood answers 400 with `{"error"}`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::crowd::Standing;
use super::endpoint::Endpoint;
use super::http::{Reply, Request};
use super::mailbag::{Event, Letter};
use super::options::{Callback, CallbackMode};
use super::orders::Order;
use super::postman::Destination;
use super::world::World;

type Answer = Result<Value, String>;

pub fn answer(world: &World, what: &str, request: &Request<'_>, reply: &mut Reply) {
    let answer = if request.is_post { change(world, what, request.body) } else { look(world, what, request) };
    let value = answer.unwrap_or_else(|error| {
        reply.status = 400;
        json!({ "error": error })
    });
    serde_json::to_writer(&mut reply.body, &value).expect("writing JSON to memory cannot fail");
}

fn look(world: &World, what: &str, request: &Request<'_>) -> Answer {
    match what {
        "inbox" => Ok(json!(world.inbox.report())),
        "calls" => Ok(json!(world.quotas.calls())),
        "callbacks" => Ok(json!(world.mailbag.report())),
        "world" => Ok(describe(world)),
        "received" => {
            let index = asked_person(world, request)?;
            Ok(json!({ "received": world.inbox.received(index) }))
        }
        "person" => Ok(person(world, asked_person(world, request)?)),
        "login" => {
            let index = asked_person(world, request)?;
            let mut logins = world.logins.lock().expect("no holder of the logins panics");
            Ok(json!({ "js_code": logins.issue(index, world.clock.now_seconds()) }))
        }
        _ => Err(format!("there is no {what} to look at")),
    }
}

fn describe(world: &World) -> Value {
    let options = &world.options;
    let templates = world.templates.iter().filter(|live| live.is_alive());
    let templates: Vec<&str> = templates.map(|live| live.template.template_id.as_str()).collect();
    json!({
        "seed": options.seed,
        "app_id": options.app_id,
        "miniprogram_app_id": options.miniprogram_app_id,
        "followers": world.crowd().total(),
        "users": options.users,
        "matched_users": options.matched_users,
        "templates": templates,
        "now_seconds": world.clock.now_seconds(),
        "faults": *world.faults(),
    })
}

fn asked_person(world: &World, request: &Request<'_>) -> Result<u64, String> {
    if let Some(openid) = request.parameter("openid") {
        return world.people.by_openid(&openid).ok_or_else(|| "this is nobody's openid".to_owned());
    }
    if let Some(unionid) = request.parameter("unionid") {
        return world.people.by_unionid(&unionid).ok_or_else(|| "this is nobody's unionid".to_owned());
    }
    let index = request.parameter("index").and_then(|text| text.parse().ok());
    index
        .filter(|index| *index < world.people.capacity())
        .ok_or_else(|| "name a person by openid, unionid or index".to_owned())
}

fn person(world: &World, index: u64) -> Value {
    let people = &world.people;
    let (follows, subscribed_at) = match world.crowd().standing(index) {
        Standing::Follows { since } => (true, Some(since.unwrap_or_else(|| people.subscribed_at(index)))),
        Standing::Left | Standing::Stranger => (false, None),
    };
    json!({
        "index": index,
        "openid": people.openid(index),
        "unionid": world.told_unionid(index, &world.faults()).unwrap_or_else(|| people.unionid(index)),
        "mp_openid": people.mp_openid(index),
        "bound": people.is_bound(index),
        "follows": follows,
        "subscribe_time": subscribed_at,
        "subscribe_scene": people.scene(index),
        "city": people.city(index),
        "is_user": world.options.users_options().indices().contains(&index),
        "received": world.inbox.received(index),
    })
}

/// Calls of a day that another system of the account makes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpendOrder {
    endpoint: String,
    calls: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockOrder {
    #[serde(default)]
    advance_seconds: i64,
    /// RFC 3339; set first, then advanced.
    #[serde(default)]
    set: Option<chrono::DateTime<chrono::Utc>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeopleOrder {
    #[serde(default)]
    openids: Vec<String>,
    /// So many of the platform's choice.
    #[serde(default)]
    count: u64,
    #[serde(default)]
    template_id: Option<String>,
    /// For `refuse` and `blacklist`: takes it back.
    #[serde(default)]
    withdraw: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateOrder {
    template_id: String,
}

fn read<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn change(world: &World, what: &str, body: &[u8]) -> Answer {
    match what {
        "order" => add_order(world, read(body)?),
        "orders/clear" => {
            world.orders.clear();
            Ok(json!({ "ok": true }))
        }
        "faults" => {
            let changed = world.faults().with(read(body)?).map_err(|error| error.to_string())?;
            world.set_faults(changed);
            Ok(json!(*world.faults()))
        }
        "clock" => {
            let order: ClockOrder = read(body)?;
            order.set.into_iter().for_each(|at| world.clock.set(at));
            world.clock.advance(order.advance_seconds);
            world.live_on(&world.faults());
            world.mailbag.look_again();
            Ok(json!({ "now_seconds": world.clock.now_seconds() }))
        }
        "unfollow" | "follow" | "rebind" | "blacklist" | "refuse" => change_people(world, what, &read(body)?),
        "spend" => {
            let order: SpendOrder = read(body)?;
            let endpoint = Endpoint::ALL.into_iter().find(|endpoint| endpoint.name() == order.endpoint);
            let endpoint = endpoint.ok_or_else(|| format!("`{}` is no call that is known", order.endpoint))?;
            world.quotas.spend(endpoint, world.quota_seconds(&world.faults()), order.calls);
            Ok(json!({ "ok": true }))
        }
        "kill_template" => {
            let order: TemplateOrder = read(body)?;
            Ok(json!({ "killed": world.kill_template(&order.template_id) }))
        }
        "revoke_tokens" => {
            world.tokens.write().expect("no holder of the tokens panics").revoke();
            Ok(json!({ "ok": true }))
        }
        "inbox/clear" => {
            world.inbox.clear();
            Ok(json!({ "ok": true }))
        }
        "event" => tell_event(world, read(body)?),
        "callback" => {
            let order: CallbackOrder = read(body)?;
            let callback = Callback::new(order.url, order.token).sealed(order.mode, order.encoding_aes_key);
            let destination = Destination::of(&callback, &world.options.app_id).map_err(|error| error.to_string())?;
            world.set_destination(destination);
            Ok(json!({ "ok": true }))
        }
        "callback/check" => {
            world.mailbag.put(world.clock.now_micros(), Letter::Check);
            Ok(json!({ "ok": true }))
        }
        _ => Err(format!("there is no {what} to change")),
    }
}

fn add_order(world: &World, order: Order) -> Answer {
    if let Some(unknown) = order.endpoint.as_ref().filter(|name| Endpoint::by_name(name).is_none()) {
        return Err(format!("there is no endpoint {unknown}"));
    }
    world.orders.add(order);
    Ok(json!({ "ok": true }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallbackOrder {
    url: String,
    token: String,
    #[serde(default)]
    mode: CallbackMode,
    #[serde(default)]
    encoding_aes_key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventOrder {
    openid: String,
    event: String,
    /// XML that stands behind the event's name, as it is.
    #[serde(default)]
    fields: String,
    /// CreateTime; left out: when it is told.
    #[serde(default)]
    created_at_seconds: Option<i64>,
    #[serde(default = "once")]
    copies: u8,
}

fn once() -> u8 {
    1
}

fn tell_event(world: &World, order: EventOrder) -> Answer {
    let index = world.people.by_openid(&order.openid).ok_or("this is nobody's openid")?;
    let event = Event {
        index,
        created_at_seconds: order.created_at_seconds,
        inner: format!("<Event><![CDATA[{}]]></Event>{}", order.event, order.fields),
        copies: order.copies,
    };
    world.mailbag.put(world.clock.now_micros(), Letter::Other(Box::new(event)));
    Ok(json!({ "ok": true }))
}

fn change_people(world: &World, what: &str, order: &PeopleOrder) -> Answer {
    let named = order.openids.iter().map(|openid| world.people.by_openid(openid));
    let named: Vec<u64> = named.collect::<Option<_>>().ok_or("one of these is nobody's openid")?;
    let changed = match what {
        "unfollow" if order.count > 0 => world.unfollow_some(order.count),
        "unfollow" => world.unfollow(named),
        "follow" if order.count > 0 => world.follow_some(order.count),
        "follow" => world.follow(named),
        "rebind" => named.into_iter().filter(|index| world.rebind(*index)).collect(),
        "blacklist" => {
            named.iter().for_each(|index| world.blacklist(*index, !order.withdraw));
            named
        }
        _ => {
            let template_id = order.template_id.as_deref().ok_or("name the template_id")?;
            let template = world.template(template_id).ok_or("there is no such template")?;
            named.iter().for_each(|index| world.refuse(*index, template, !order.withdraw));
            named
        }
    };
    let openids: Vec<String> = changed.iter().map(|index| world.people.openid(*index)).collect();
    Ok(json!({ "changed": openids.len(), "openids": openids }))
}
