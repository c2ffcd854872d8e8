//! The platform's doors: every call comes in here, is counted, judged and answered.
//!
//! The order of judgement: what was ordered to befall it → address of the caller → access token → quota → the
//! endpoint itself. The endpoints are in `account`, `followers`, `tags`, `profiles` and `send`.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::Write as _;

use super::control;
use super::endpoint::Endpoint;
use super::faults::{Faults, Turns};
use super::http::{Reply, Request};
use super::orders::Fault;
use super::people::mix;
use super::tokens::Verdict;
use super::world::World;

mod account;
mod followers;
mod profiles;
mod send;
mod tags;

/// One call with what it needs to be answered.
struct Call<'a> {
    world: &'a World,
    faults: &'a Faults,
    request: &'a Request<'a>,
}

/// A code instead of an answer.
#[derive(Debug)]
struct Refusal {
    errcode: i64,
    text: Cow<'static, str>,
}

impl Refusal {
    fn code(errcode: i64) -> Self {
        Self { errcode, text: Cow::Borrowed(text_of(errcode)) }
    }

    fn write(&self, world: &World, reply: &mut Reply) {
        let call = mix(world.next_call());
        reply.body.clear();
        let (first, second, third) = (call >> 32, (call >> 8) & 0xff_ffff, mix(call) >> 32);
        write!(
            reply.body,
            r#"{{"errcode":{},"errmsg":"{} rid: {first:08x}-{second:08x}-{third:08x}"}}"#,
            self.errcode, self.text
        )
        .expect("writing to memory cannot fail");
    }
}

impl From<i64> for Refusal {
    fn from(errcode: i64) -> Self {
        Self::code(errcode)
    }
}

/// Answers one call. Does not wait: what has to be waited for stands in the reply.
pub fn answer(world: &World, request: &Request<'_>, reply: &mut Reply) {
    let faults = world.faults();
    world.live_on(&faults);
    if let Some(order) = request.path.strip_prefix("/_simulator/") {
        control::answer(world, order, request, reply);
        return;
    }
    let Some(endpoint) = Endpoint::by_path(request.path) else {
        reply.status = 404;
        return;
    };
    world.quotas.arrived(endpoint);
    if faults.text_plain {
        reply.content_type = "text/plain";
    }
    let call = Call { world, faults: &faults, request };
    match world.orders.befall(endpoint) {
        None => call.settle(endpoint, reply),
        Some(fault) => call.befallen(endpoint, &fault, reply),
    }
}

impl Call<'_> {
    fn befallen(&self, endpoint: Endpoint, fault: &Fault, reply: &mut Reply) {
        match fault {
            Fault::Errcode(errcode) => Refusal::code(*errcode).write(self.world, reply),
            Fault::Refusal(errcode, text) => {
                Refusal { errcode: *errcode, text: Cow::Owned(text.clone()) }.write(self.world, reply);
            }
            Fault::LostRequest => reply.hang_up = true,
            Fault::NotJson => {
                (reply.status, reply.content_type) = (502, "text/html");
                reply.body.extend_from_slice(b"<html><body><h1>502 Bad Gateway</h1></body></html>");
            }
            Fault::Status(status) => reply.status = *status,
            Fault::LostAnswer => {
                self.settle(endpoint, reply);
                reply.hang_up = true;
            }
            Fault::LateAnswer(milliseconds) => {
                self.settle(endpoint, reply);
                reply.delay = std::time::Duration::from_millis(*milliseconds);
            }
            Fault::EmptyPage if endpoint == Endpoint::UserGet => {
                if let Err(refusal) = self.admit(endpoint).and_then(|()| followers::empty_page(self, reply)) {
                    refusal.write(self.world, reply);
                }
            }
            Fault::EmptyPage => self.settle(endpoint, reply),
            Fault::BrokenJson => {
                self.settle(endpoint, reply);
                reply.body.pop();
            }
        }
    }

    fn settle(&self, endpoint: Endpoint, reply: &mut Reply) {
        if let Err(refusal) = self.admit(endpoint).and_then(|()| self.serve(endpoint, reply)) {
            refusal.write(self.world, reply);
        }
    }

    fn admit(&self, endpoint: Endpoint) -> Result<(), Refusal> {
        let world = self.world;
        if self.faults.ip_not_listed && endpoint != Endpoint::Login {
            let text = "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist";
            return Err(Refusal { errcode: 40164, text: Cow::Borrowed(text) });
        }
        if endpoint.needs_token() {
            let token = self.request.parameter("access_token").filter(|token| !token.is_empty()).ok_or(41001)?;
            let tokens = world.tokens.read().expect("no holder of the tokens panics");
            match tokens.verdict(&token, world.clock.now_seconds()) {
                Verdict::Unknown => return Err(40001.into()),
                Verdict::Expired => return Err(42001.into()),
                Verdict::Good if Turns::due(&world.turns.token, self.faults.spurious_token_every) => {
                    return Err(40001.into());
                }
                Verdict::Good => {}
            }
        }
        if let Some(limit) = self.faults.minute_limits.get(endpoint.name())
            && !world.quotas.take_of_minute(endpoint, world.clock.now_seconds(), *limit)
        {
            return Err(45011.into());
        }
        let hidden_limit = self.faults.hidden_limits.get(endpoint.name()).copied();
        if endpoint.is_metered() && !world.quotas.take(endpoint, world.quota_seconds(self.faults), hidden_limit) {
            return Err(45009.into());
        }
        Ok(())
    }

    fn serve(&self, endpoint: Endpoint, reply: &mut Reply) -> Result<(), Refusal> {
        match endpoint {
            Endpoint::TemplateSend => send::send(self, reply),
            Endpoint::UserGet => followers::page(self, reply),
            Endpoint::Blacklist => tags::blacklist(self, reply),
            Endpoint::UserInfo => profiles::one(self, reply),
            Endpoint::UserInfoBatchget => profiles::batch(self, reply),
            Endpoint::ChangeOpenid => profiles::change_openid(self, reply),
            Endpoint::Token => account::legacy_token(self, reply),
            Endpoint::StableToken => account::stable_token(self, reply),
            Endpoint::TagsGet => tags::all(self, reply),
            Endpoint::TemplateList => account::templates(self, reply),
            Endpoint::BlockedMessages => account::blocked_messages(self, reply),
            Endpoint::QuotaGet => account::quota(self, reply),
            Endpoint::ClearQuota => account::clear_quota(self, reply),
            Endpoint::ClearQuotaBySecret => account::clear_quota_by_secret(self, reply),
            Endpoint::Login => account::login(self, reply),
            Endpoint::TagMembers => tags::members(self, reply),
            Endpoint::TagsOf => tags::of_person(self, reply),
            Endpoint::UpdateRemark => profiles::update_remark(self, reply),
            Endpoint::BlacklistAdd => tags::change_blacklist(self, true, reply),
            Endpoint::BlacklistRemove => tags::change_blacklist(self, false, reply),
            Endpoint::QuotaClear => account::clear_one_quota(self, reply),
            Endpoint::CallbackAddresses => account::callback_addresses(reply),
        }
    }

    /// The body of a command, read as JSON.
    fn json<T: for<'de> serde::Deserialize<'de>>(&self) -> Result<T, Refusal> {
        if !self.request.is_post {
            return Err(43002.into());
        }
        serde_json::from_slice(self.request.body).map_err(|_| Refusal::code(47001))
    }

    /// A number as this platform writes it today: bare, or as text.
    fn number(&self, number: impl Display) -> String {
        if self.faults.numbers_as_text { format!("\"{number}\"") } else { number.to_string() }
    }
}

/// Writes a value as the whole answer.
fn write_json(reply: &mut Reply, value: &serde_json::Value) {
    serde_json::to_writer(&mut reply.body, value).expect("writing JSON to memory cannot fail");
}

fn text_of(errcode: i64) -> &'static str {
    match errcode {
        -1 => "system error",
        40001 => "invalid credential, access_token is invalid or not latest",
        40002 => "invalid grant_type",
        40003 => "invalid openid",
        40013 => "invalid appid",
        40029 => "invalid code",
        40032 => "invalid openid list size",
        40036 => "invalid template_id size",
        40037 => "invalid template_id",
        40125 => "invalid appsecret",
        40163 => "code been used",
        40164 => "invalid ip, not in whitelist",
        40165 => "invalid weapp pagepath",
        40241 => "The message is duplicate in 60 seconds",
        40249 => "blocked for illegal content",
        40252 => "模板消息部分内容需要平台审核",
        41001 => "access_token missing",
        41002 => "appid missing",
        41004 => "appsecret missing",
        41008 => "missing code",
        41009 => "missing openid",
        42001 => "access_token expired",
        43002 => "require POST method",
        43004 => "require subscribe",
        43019 => "require remove blacklist",
        43108 => "concurrent call to the same user",
        43117 => "too frequent to the same user",
        43101 => "user refuse to accept the msg",
        45009 => "reach max api daily quota limit",
        45011 => "api minute-quota reach limit must slower retry next minute",
        45065 => "clientmsgid exist",
        45159 => "invalid tag id",
        47001 => "data format error",
        47003 => "argument invalid!",
        48001 => "api unauthorized",
        48006 => "forbid to clear quota because of reaching the limit",
        49003 => "not match openid with appid",
        50002 => "user limited",
        76021 => "cgi_path not found",
        76022 => "could not use this cgi_path, no permission",
        _ => "error",
    }
}
