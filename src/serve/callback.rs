//! `/callback/{account}`: what WeChat's servers post to us.
//!
//! GET is the check of the address. POST is an event: it is WeChat's, or it is refused and changes nothing; it is on the
//! disk before it is answered `success`; what it means is found out afterwards ([`mailroom`](super::mailroom)). Whoever
//! posts is unknown until the signature is checked, so nothing before that is believed, kept or repeated in a log.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::router::Door;
use crate::app::App;
use crate::config::settings::Account;
use crate::domain::AccountName;
use crate::ledger::NewCallback;
use crate::telemetry::{CALLBACKS_REFUSED_TOTAL, CALLBACKS_TOTAL};
use crate::wechat::{CallbackEvent, CallbackKeys, CallbackQuery, CallbackRefused, Posted};

/// Events that tell something here; of all others only the number is of interest.
const KEPT_EVENTS: [&str; 3] = ["subscribe", "unsubscribe", "TEMPLATESENDJOBFINISH"];
const SUCCESS: &str = "success";

type Pairs = Query<HashMap<String, String>>;

/// The check of the address: the `echostr` as it came, and nothing else.
pub async fn check(State(door): State<Door>, Path(account): Path<String>, Query(pairs): Pairs) -> Response {
    let app = door.house.app();
    let Some((account, keys)) = keys(&app, &account) else { return nobody() };
    let query = query(pairs);
    match keys.answer_check(&query) {
        Ok(echostr) => text(StatusCode::OK, echostr.to_owned()),
        Err(refused) => refuse(&door, &account.name, refused),
    }
}

/// An event, or something that a person wrote.
pub async fn take(State(door): State<Door>, Path(account): Path<String>, Query(pairs): Pairs, body: Bytes) -> Response {
    let app = door.house.app();
    let Some((account, keys)) = keys(&app, &account) else { return nobody() };
    let event = match keys.open(&query(pairs), &body) {
        Ok(Posted::Event(event)) => event,
        Ok(Posted::Other) => {
            count(&app, &account.name, "message");
            return text(StatusCode::OK, SUCCESS.to_owned());
        }
        Err(refused) => return refuse(&door, &account.name, refused),
    };
    let Some(name) = KEPT_EVENTS.into_iter().find(|name| *name == event.name) else {
        count(&app, &account.name, "other");
        return text(StatusCode::OK, SUCCESS.to_owned());
    };
    if !door.mailroom.take(kept(&account.name, event)).await {
        app.metrics.add(CALLBACKS_REFUSED_TOTAL, &labels(&account.name, "reason", "not_kept"), 1);
        return text(StatusCode::SERVICE_UNAVAILABLE, "not kept: try again\n".to_owned());
    }
    count(&app, &account.name, name);
    text(StatusCode::OK, SUCCESS.to_owned())
}

/// The account and what it shares with WeChat; none for one that takes no callbacks.
fn keys<'a>(app: &'a App, account: &str) -> Option<(&'a Account, CallbackKeys)> {
    let account = app.hands().settings.accounts.get(account)?;
    let token = account.callback_token.clone()?;
    Some((account, CallbackKeys::new(&account.app_id, token, account.encoding_aes_key.as_ref())))
}

fn query(mut pairs: HashMap<String, String>) -> CallbackQuery {
    let mut take = |name: &str| pairs.remove(name).unwrap_or_default();
    CallbackQuery {
        signature: take("signature"),
        timestamp: take("timestamp"),
        nonce: take("nonce"),
        echostr: take("echostr"),
        encrypt_type: take("encrypt_type"),
        msg_signature: take("msg_signature"),
    }
}

fn kept(account: &AccountName, event: CallbackEvent) -> NewCallback {
    NewCallback {
        account: account.clone(),
        openid: event.openid,
        created_at: event.created_at,
        event: event.name,
        event_key: event.key,
        msgid: event.msgid,
        status: event.status,
    }
}

fn nobody() -> Response {
    text(StatusCode::NOT_FOUND, "no account of this name takes callbacks\n".to_owned())
}

/// What is not WeChat's is forbidden; what is, and cannot be read, is a bad request.
fn refuse(door: &Door, account: &AccountName, refused: CallbackRefused) -> Response {
    let (status, reason) = match refused {
        CallbackRefused::Signature => (StatusCode::FORBIDDEN, "signature"),
        CallbackRefused::Sealed => (StatusCode::FORBIDDEN, "sealed"),
        CallbackRefused::NoKey => (StatusCode::FORBIDDEN, "no_key"),
        CallbackRefused::Xml(_) | CallbackRefused::Lacks(_) => (StatusCode::BAD_REQUEST, "malformed"),
    };
    let app = door.house.app();
    app.metrics.add(CALLBACKS_REFUSED_TOTAL, &labels(account, "reason", reason), 1);
    // Anybody can make these: the first of a minute is told, the others are counted.
    if door.may_complain(app.hands().clock.now()) {
        tracing::warn!(account = %account, "a callback was refused: {refused}; is the callback of account {account} set as in its console?");
    }
    text(status, format!("{refused}\n"))
}

fn count(app: &App, account: &AccountName, event: &str) {
    app.metrics.add(CALLBACKS_TOTAL, &labels(account, "event", event), 1);
}

fn labels<'a>(account: &'a AccountName, name: &'a str, value: &'a str) -> [(&'a str, &'a str); 2] {
    [("account", account.as_str()), (name, value)]
}

fn text(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}
