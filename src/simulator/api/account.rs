//! The account's own affairs: tokens, quotas, templates, and the mini program's login.

use std::io::Write as _;

use serde::Deserialize;
use serde_json::json;

use super::{Call, Refusal, write_json};
use crate::simulator::endpoint::Endpoint;
use crate::simulator::http::Reply;
use crate::simulator::login::Redeemed;
use crate::simulator::people::mix;
use crate::simulator::tokens::Granted;

#[derive(Deserialize)]
struct TokenRequest {
    #[serde(default)]
    grant_type: String,
    #[serde(default)]
    appid: String,
    #[serde(default)]
    secret: String,
    #[serde(default)]
    force_refresh: bool,
}

/// `token`: every call makes a new one.
pub fn legacy_token(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let parameter = |name| call.request.parameter(name).unwrap_or_default().into_owned();
    let request = TokenRequest {
        grant_type: parameter("grant_type"),
        appid: parameter("appid"),
        secret: parameter("secret"),
        force_refresh: false,
    };
    check_credentials(call, &request)?;
    let mut tokens = call.world.tokens.write().expect("no holder of the tokens panics");
    let granted = tokens.legacy(call.world.clock.now_seconds());
    write_token(call, &granted, reply);
    Ok(())
}

/// `stable_token`: the same one until it nears its end, or a new one by force.
pub fn stable_token(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let request: TokenRequest = call.json()?;
    check_credentials(call, &request)?;
    let now = call.world.clock.now_seconds();
    let mut tokens = call.world.tokens.write().expect("no holder of the tokens panics");
    let granted = if request.force_refresh { tokens.stable_forced(now).ok_or(45009)? } else { tokens.stable(now) };
    write_token(call, &granted, reply);
    Ok(())
}

fn check_credentials(call: &Call<'_>, request: &TokenRequest) -> Result<(), Refusal> {
    let options = &call.world.options;
    let errcode = if request.grant_type != "client_credential" {
        40002
    } else if request.appid.is_empty() {
        41002
    } else if request.secret.is_empty() {
        41004
    } else if request.appid != options.app_id {
        40013
    } else if request.secret != options.app_secret {
        40125
    } else {
        return Ok(());
    };
    Err(errcode.into())
}

fn write_token(call: &Call<'_>, granted: &Granted, reply: &mut Reply) {
    let expires_in = call.number(granted.expires_in_seconds);
    write!(reply.body, r#"{{"access_token":"{}","expires_in":{expires_in}}}"#, granted.access_token)
        .expect("writing to memory cannot fail");
}

#[derive(Deserialize)]
struct QuotaRequest {
    #[serde(default)]
    cgi_path: String,
}

/// `openapi/quota/get`.
pub fn quota(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let request: QuotaRequest = call.json()?;
    if request.cgi_path.starts_with("/sns/") {
        return Err(76022.into());
    }
    let endpoint = Endpoint::by_path(&request.cgi_path).ok_or(76021)?;
    let figure = call.world.quotas.figure(endpoint, call.world.quota_seconds(call.faults));
    let used = wobbling(figure.used, call.faults.quota_wobble_permille, call.world.next_call());
    let remain = figure.daily_limit.saturating_sub(used);
    let answer = json!({
        "errcode": 0, "errmsg": "ok",
        "quota": { "daily_limit": figure.daily_limit, "used": used, "remain": remain },
    });
    write_json(reply, &answer);
    Ok(())
}

/// A figure that is right within so many thousandths of itself.
fn wobbling(figure: u64, permille: u64, number: u64) -> u64 {
    let most = figure * permille / 1000;
    figure + mix(number) % (2 * most + 1) - most
}

/// `openapi/quota/clear`: empties one endpoint's counter.
pub fn clear_one_quota(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let request: QuotaRequest = call.json()?;
    let endpoint = Endpoint::by_path(&request.cgi_path).ok_or(76021)?;
    if !call.world.quotas.clear_one(endpoint, call.world.quota_seconds(call.faults)) {
        return Err(48006.into());
    }
    write_json(reply, &json!({ "errcode": 0, "errmsg": "ok" }));
    Ok(())
}

/// `getcallbackip`.
pub fn callback_addresses(reply: &mut Reply) -> Result<(), Refusal> {
    write_json(reply, &json!({ "ip_list": ["127.0.0.1", "203.0.113.0/24"] }));
    Ok(())
}

#[derive(Deserialize)]
struct ClearRequest {
    #[serde(default)]
    appid: String,
    #[serde(default)]
    appsecret: String,
}

/// `clear_quota`.
pub fn clear_quota(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let request: ClearRequest = call.json()?;
    clear(call, &request, reply)
}

/// `clear_quota/v2`, for when the token's own quota is spent: asked with the secret, by query or body.
pub fn clear_quota_by_secret(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let parameter = |name| call.request.parameter(name).unwrap_or_default().into_owned();
    let request = match call.json::<ClearRequest>() {
        Ok(request) if !request.appid.is_empty() => request,
        _ => ClearRequest { appid: parameter("appid"), appsecret: parameter("appsecret") },
    };
    if request.appsecret != call.world.options.app_secret {
        return Err(40125.into());
    }
    clear(call, &request, reply)
}

fn clear(call: &Call<'_>, request: &ClearRequest, reply: &mut Reply) -> Result<(), Refusal> {
    if request.appid != call.world.options.app_id {
        return Err(40013.into());
    }
    if !call.world.quotas.clear(call.world.quota_seconds(call.faults)) {
        return Err(48006.into());
    }
    write_json(reply, &json!({ "errcode": 0, "errmsg": "ok" }));
    Ok(())
}

/// `template/get_all_private_template`.
pub fn templates(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let listed = call.world.templates.iter().filter(|live| live.is_alive() && !live.template.unlisted);
    let list: Vec<serde_json::Value> = listed
        .map(|live| {
            let template = &live.template;
            json!({
                "template_id": template.template_id,
                "title": template.title,
                "primary_industry": template.primary_industry,
                "deputy_industry": template.deputy_industry,
                "content": template.content,
                "example": template.example,
            })
        })
        .collect();
    write_json(reply, &json!({ "template_list": list }));
    Ok(())
}

#[derive(Deserialize)]
struct BlockedRequest {
    #[serde(default)]
    tmpl_msg_id: String,
    #[serde(default)]
    largest_id: u64,
    #[serde(default)]
    limit: u64,
}

/// `queryblocktmplmsg`: messages of a template that the review refused.
pub fn blocked_messages(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let request: BlockedRequest = call.json()?;
    let limit = usize::try_from(request.limit.clamp(1, 100)).expect("a hundred fits");
    let blocked = call.world.blocked(&request.tmpl_msg_id, request.largest_id, limit);
    let messages: Vec<serde_json::Value> = blocked
        .iter()
        .map(|one| {
            json!({
                "id": one.id,
                "tmpl_msg_id": one.template_id,
                "title": one.title,
                "content": "",
                "send_timestamp": one.sent_at_seconds,
                "openid": call.world.people.openid(one.index),
            })
        })
        .collect();
    let messages = match messages.as_slice() {
        [only] if call.faults.blocked_as_object => only.clone(),
        _ => json!(messages),
    };
    write_json(reply, &json!({ "errcode": 0, "errmsg": "ok", "msginfo": messages }));
    Ok(())
}

/// `sns/jscode2session`.
pub fn login(call: &Call<'_>, reply: &mut Reply) -> Result<(), Refusal> {
    let (world, request) = (call.world, call.request);
    let parameter = |name| request.parameter(name).unwrap_or_default();
    let errcode = if parameter("appid").is_empty() {
        Some(41002)
    } else if parameter("appid") != world.options.miniprogram_app_id {
        Some(40013)
    } else if parameter("secret") != world.options.miniprogram_app_secret {
        Some(40125)
    } else if parameter("js_code").is_empty() {
        Some(41008)
    } else {
        None
    };
    errcode.map_or(Ok(()), |errcode| Err(Refusal::code(errcode)))?;
    let mut logins = world.logins.lock().expect("no holder of the logins panics");
    let index = match logins.redeem(&parameter("js_code"), world.clock.now_seconds()) {
        Redeemed::Person(index) => index,
        Redeemed::Invalid => return Err(40029.into()),
        Redeemed::Used => return Err(40163.into()),
    };
    let session_key = format!("{:016x}{:06x}==", mix(index ^ world.next_call()), index & 0xff_ffff);
    let answer = json!({
        "session_key": session_key,
        "openid": world.people.mp_openid(index),
        "unionid": world.people.unionid(index),
    });
    write_json(reply, &answer);
    Ok(())
}
