//! The calls of the platform, one method each: what is asked, and what the answer is in words of the house.
//!
//! Reads carry the current token, renew it when it is refused, and are patient (`retry`). A send leaves once. Not here:
//! guarding and splitting batches of profiles (`batch`).

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Url;
use tokio_util::sync::CancellationToken;

use super::code::CodeClass;
use super::endpoint::Endpoint;
use super::error::WeChatError;
use super::line::{Line, Request};
use super::ports::{CallCounts, CallMeter, StoreError, StoredToken, TokenStore};
use super::profiles::Profiles;
use super::retry::{Patience, Waiting};
use super::token::{Held, Tokens};
use super::transport::{Transport, host_of};
use super::wire::{
    Answer, BatchAnswer, BlockedAnswer, BlockedMessage, FollowerAnswer, FollowerPage, MovedAnswer, MovedOpenid,
    Profile, ProfileAnswer, QuotaAnswer, QuotaFigure, SendAnswer, Template, TemplatesAnswer, decode, lacking,
    named_field,
};
use super::{TokenKind, WeChatSettings};
use crate::clock::Clock;
use crate::domain::{OpenId, QuotaDay, TemplateId};
use crate::redact;

/// The same message was accepted before.
const ALREADY_ACCEPTED: i64 = 45065;
const REASON_LIMIT: usize = 200;
/// How long what WeChat said of a quota is taken for its word on calls that were in flight then.
const FIGURE_HOLDS: Duration = Duration::from_secs(5);
/// Characters of an address; servers take 8 000.
const LONGEST_ADDRESS: usize = 8_000;
/// Refused messages asked for at once: WeChat's most.
const BLOCKED_PAGE: usize = 100;

/// The client of one Official Account. Clones share connections, permits and the token.
///
/// Every future may be dropped at any time: nothing is left behind but, perhaps, a call that WeChat has seen.
#[derive(Clone)]
pub struct WeChat {
    shared: Arc<Shared>,
    counts: Option<Arc<CallCounts>>,
    /// For callers who wait: each call is tried once, and for so long at most.
    limit: Option<Duration>,
    /// Once this is called, no send is begun any more.
    stop: Option<CancellationToken>,
}

struct Shared {
    settings: WeChatSettings,
    line: Arc<Line>,
    tokens: Tokens,
    waiting: Waiting,
    /// When WeChat was last asked for an endpoint's figure after it had refused a call, and what it said.
    figures: tokio::sync::Mutex<BTreeMap<Endpoint, (Instant, Option<QuotaFigure>)>>,
    clock: Clock,
}

/// What became of one send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendOutcome {
    /// WeChat took the message. `duplicate`: it had taken this very message before.
    Accepted { msgid: Option<i64>, duplicate: bool },
    /// WeChat did not take it. `field`: the one a 47003 names.
    Refused { errcode: i64, errmsg: String, class: CodeClass, field: Option<String> },
    /// Nobody knows, unless `may_have_left` is false: then it was certainly not sent.
    NoAnswer { reason: String, may_have_left: bool },
}

/// A read, ready to be repeated.
struct Read<'a> {
    endpoint: Endpoint,
    query: &'a [(&'a str, &'a str)],
    body: Option<Vec<u8>>,
}

impl WeChat {
    /// # Errors
    ///
    /// [`WeChatError::Setup`] when an address cannot be read or the system's certificates cannot be loaded.
    pub fn new(
        settings: WeChatSettings,
        tokens: Arc<dyn TokenStore>,
        meter: Arc<dyn CallMeter>,
        clock: Clock,
    ) -> Result<Self, WeChatError> {
        let setup = |reason: String| WeChatError::Setup { account: settings.account.clone(), reason };
        let base: Url = settings.api_base.parse().map_err(|error| setup(format!("the address of the API: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(setup("the address of the API begins with neither http nor https".to_owned()));
        }
        let centre = match &settings.token {
            TokenKind::Centre { url } => {
                Some(url.parse::<Url>().map_err(|error| setup(format!("the address of the token centre: {error}")))?)
            }
            TokenKind::Stable | TokenKind::Legacy => None,
        };
        let hosts: Vec<&Url> = std::iter::once(&base).chain(&centre).collect();
        let transport = Transport::new(&hosts, settings.timeout, clock).map_err(|error| setup(chain(&*error)))?;
        let line = Arc::new(Line::new(transport, meter, settings.concurrency));
        let tokens = Tokens::new(settings.clone(), base, Arc::clone(&line), tokens, clock);
        let waiting = Waiting::new(settings.account.clone(), clock);
        Ok(Self {
            shared: Arc::new(Shared { settings, line, tokens, waiting, figures: tokio::sync::Mutex::default(), clock }),
            counts: None,
            limit: None,
            stop: None,
        })
    }

    /// A clone whose calls are counted into `counts`: a stage's own figure.
    pub fn counting(&self, counts: Arc<CallCounts>) -> Self {
        Self { counts: Some(counts), ..self.clone() }
    }

    /// A clone for whoever waits at a terminal: each call is tried once and ends within `limit`, twice that where a token
    /// has to be fetched first.
    pub fn at_once(&self, limit: Duration) -> Self {
        Self { limit: Some(limit.min(self.shared.settings.timeout)), ..self.clone() }
    }

    /// A clone that begins no send once `stop` is called: what waits for a token or would be sent a second time then comes
    /// back as not sent.
    pub fn until(&self, stop: CancellationToken) -> Self {
        Self { stop: Some(stop), ..self.clone() }
    }

    /// The page of the follower list that comes after `after`, or the first.
    pub async fn followers_page(&self, after: Option<&OpenId>) -> Result<FollowerPage, WeChatError> {
        // An empty cursor has been refused at times: the first page goes without one.
        let cursor = after.map(|openid| ("next_openid", openid.as_str()));
        let read = Read { endpoint: Endpoint::UserGet, query: cursor.as_slice(), body: None };
        Ok(self.read::<FollowerAnswer>(&read).await?.into_page(after))
    }

    /// One person, by the call that is never wrong about whose unionid it gives.
    pub async fn profile(&self, openid: &OpenId) -> Result<Profile, WeChatError> {
        let endpoint = Endpoint::UserInfo;
        let query = [("openid", openid.as_str()), ("lang", "zh_CN")];
        let answer: ProfileAnswer = self.read(&Read { endpoint, query: &query, body: None }).await?;
        answer
            .into_profile()
            .filter(|profile| profile.openid == *openid)
            .ok_or_else(|| lacking(endpoint, "the person asked for"))
    }

    /// One `batchget` of at most 100, as it comes: unguarded.
    pub(super) async fn batch(&self, openids: &[OpenId]) -> Result<Profiles, WeChatError> {
        let body = batch_body(openids);
        let read = Read { endpoint: Endpoint::UserInfoBatchget, query: &[], body: Some(body) };
        Ok(self.read::<BatchAnswer>(&read).await?.profiles)
    }

    /// The account's templates. One that is missing here may still work.
    pub async fn templates(&self) -> Result<Vec<Template>, WeChatError> {
        let read = Read { endpoint: Endpoint::TemplateList, query: &[], body: None };
        Ok(self.read::<TemplatesAnswer>(&read).await?.into_templates())
    }

    /// Messages of a template that the review refused, newest first; `below`: only those with a smaller id. Also gives
    /// whether there may be more.
    pub async fn blocked_messages(
        &self,
        template_id: &TemplateId,
        below: Option<u64>,
    ) -> Result<(Vec<BlockedMessage>, bool), WeChatError> {
        let asked = serde_json::json!({
            "tmpl_msg_id": template_id.as_str(), "largest_id": below.unwrap_or(0), "limit": BLOCKED_PAGE,
        });
        let body = Some(asked.to_string().into_bytes());
        let read = Read { endpoint: Endpoint::BlockedMessages, query: &[], body };
        let (messages, listed) = self.read::<BlockedAnswer>(&read).await?.into_messages();
        Ok((messages, listed >= BLOCKED_PAGE))
    }

    /// The page of followers whom the account keeps out that comes after `after`, or the first.
    pub async fn blacklist_page(&self, after: Option<&OpenId>) -> Result<FollowerPage, WeChatError> {
        let asked = serde_json::json!({ "begin_openid": after.map_or("", OpenId::as_str) });
        let body = Some(asked.to_string().into_bytes());
        let read = Read { endpoint: Endpoint::Blacklist, query: &[], body };
        Ok(self.read::<FollowerAnswer>(&read).await?.into_page(after))
    }

    /// What openids of an account that was moved into this one have become: of at most 100, in any order, and each with its
    /// own outcome. Whoever is missing was not answered for.
    pub async fn moved_openids(&self, from_app_id: &str, openids: &[OpenId]) -> Result<Vec<MovedOpenid>, WeChatError> {
        let openids: Vec<&str> = openids.iter().map(OpenId::as_str).collect();
        let asked = serde_json::json!({ "from_appid": from_app_id, "openid_list": openids });
        let body = Some(asked.to_string().into_bytes());
        let read = Read { endpoint: Endpoint::ChangeOpenid, query: &[], body };
        Ok(self.read::<MovedAnswer>(&read).await?.into_moved())
    }

    /// What WeChat says of the day of one call.
    pub async fn quota(&self, endpoint: Endpoint) -> Result<QuotaFigure, WeChatError> {
        let answer: QuotaAnswer = self.read(&quota_of(endpoint)).await?;
        answer.into_figure().ok_or_else(|| lacking(Endpoint::QuotaGet, "quota"))
    }

    /// Fetches a token now. `forced` (stable tokens only) kills the one before, from the budget of forced renewals.
    pub async fn refresh_token(&self, forced: bool) -> Result<StoredToken, WeChatError> {
        let mut patience = self.patience();
        loop {
            let error = match self.shared.tokens.anew(forced, self.limit).await {
                Ok(token) => return Ok(token),
                Err(error) => error,
            };
            // A forced renewal that went unanswered may have been made: it is not made again.
            if forced || !patience.again(&error).await {
                return Err(patience.over(error));
            }
        }
    }

    /// Has a token ready.
    pub async fn have_token(&self) -> Result<(), WeChatError> {
        let mut patience = self.patience();
        loop {
            let error = match self.shared.tokens.current(self.limit).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if !patience.again(&error).await {
                return Err(patience.over(error));
            }
        }
    }

    fn patience(&self) -> Patience<'_> {
        Patience::new(&self.shared.waiting, self.shared.settings.retry_base, self.limit.is_some())
    }

    /// The stored token, used up or not, without any call to WeChat.
    pub async fn stored_token(&self) -> Result<Option<StoredToken>, WeChatError> {
        self.shared.tokens.load().await
    }

    /// Sends a message, once; a second time only when the first was refused for its token, and so was not sent.
    pub async fn send(&self, body: Vec<u8>) -> SendOutcome {
        self.try_send(body).await.unwrap_or_else(not_sent)
    }

    async fn try_send(&self, body: Vec<u8>) -> Result<SendOutcome, WeChatError> {
        let tokens = &self.shared.tokens;
        let Some(_turn) = self.unless_stopped(tokens.turn()).await else { return Ok(stopped()) };
        let held = tokens.current(self.limit).await.inspect_err(|error| self.tell_silence(error))?;
        if self.is_stopped() {
            return Ok(stopped());
        }
        let first = self.send_once(&held, body.clone()).await;
        if !is_token_refusal(&first) {
            noted(&held, &first);
            return Ok(first);
        }
        if self.is_stopped() {
            return Ok(first);
        }
        let renewed = tokens.renew(&held, self.limit).await?;
        if self.is_stopped() {
            return Ok(first);
        }
        let second = self.send_once(&renewed, body).await;
        match &second {
            // The message goes back to its push; the next try finds a token that works.
            SendOutcome::Refused { class: CodeClass::Token, errcode, .. } => {
                tokens.remedy(&renewed, *errcode, self.limit).await?;
            }
            outcome => noted(&renewed, outcome),
        }
        Ok(second)
    }

    fn is_stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    /// What comes of `waiting`, unless the stop is called first.
    async fn unless_stopped<T>(&self, waiting: impl Future<Output = T>) -> Option<T> {
        match &self.stop {
            None => Some(waiting.await),
            Some(stop) => tokio::select! {
                // In this order: what is ready costs no look at the stop.
                biased;
                done = waiting => Some(done),
                () = stop.cancelled() => None,
            },
        }
    }

    /// The push tries a message again that WeChat certainly did not get; here it is only said.
    fn tell_silence(&self, error: &WeChatError) {
        if matches!(error, WeChatError::Transport { .. }) {
            self.shared.waiting.tell(error, "messages wait until it does");
        }
    }

    async fn send_once(&self, held: &Held, body: Vec<u8>) -> SendOutcome {
        if let Some(counts) = &self.counts {
            counts.add(Endpoint::TemplateSend);
        }
        let outcome = self.exchange_message(held, body).await;
        if let (Some(counts), SendOutcome::Refused { .. } | SendOutcome::NoAnswer { .. }) = (&self.counts, &outcome) {
            counts.add_failed_send();
        }
        outcome
    }

    async fn exchange_message(&self, held: &Held, body: Vec<u8>) -> SendOutcome {
        let endpoint = Endpoint::TemplateSend;
        let reply = match self.shared.line.transport.exchange(&held.send_url, Some(body), self.limit).await {
            Ok(reply) => reply,
            Err(source) => {
                let (reason, may_have_left) = (chain(&source), source.may_have_left);
                if !may_have_left {
                    self.tell_silence(&WeChatError::Transport { endpoint, host: host_of(&held.send_url), source });
                }
                return SendOutcome::NoAnswer { reason, may_have_left };
            }
        };
        match decode::<SendAnswer>(endpoint, &reply) {
            // A success says errcode 0; an object with neither that nor a msgid is somebody else's.
            Ok(SendAnswer { errcode: None, msgid: None, .. }) => SendOutcome::NoAnswer {
                reason: "the answer says nothing of the message".to_owned(),
                may_have_left: true,
            },
            Ok(answer) => SendOutcome::Accepted { msgid: answer.msgid, duplicate: false },
            Err(WeChatError::Refused { errcode: ALREADY_ACCEPTED, .. }) => {
                SendOutcome::Accepted { msgid: None, duplicate: true }
            }
            Err(error @ (WeChatError::Refused { .. } | WeChatError::LengthRequired { .. })) => not_sent(error),
            Err(error) => SendOutcome::NoAnswer { reason: chain(&error), may_have_left: true },
        }
    }

    /// A read with all that makes it come back with an answer.
    async fn read<T: Answer>(&self, read: &Read<'_>) -> Result<T, WeChatError> {
        let mut patience = self.patience();
        loop {
            let error = match self.with_token(read).await {
                Ok(answer) => return Ok(answer),
                Err(WeChatError::QuotaSpent { endpoint, .. }) if self.learns_its_figure(endpoint).await => continue,
                Err(error) => self.told_apart(error).await,
            };
            if !patience.again(&error).await {
                return Err(match error {
                    // The figure says that calls remain, minutes of refusals say not: the limit has moved.
                    WeChatError::Refused { endpoint, class: CodeClass::Slow, errcode: 45009, .. } => {
                        self.spent(endpoint, false)
                    }
                    WeChatError::Refused { class: CodeClass::Token, errcode, .. } if self.limit.is_none() => {
                        self.shared.tokens.rejected(errcode)
                    }
                    error => patience.over(error),
                });
            }
        }
    }

    /// A read with the token of the moment, once more when that is refused, and with another where that is the remedy.
    async fn with_token<T: Answer>(&self, read: &Read<'_>) -> Result<T, WeChatError> {
        let tokens = &self.shared.tokens;
        let _turn = tokens.turn().await;
        let held = tokens.current(self.limit).await?;
        let first = self.read_once(read, &held).await;
        if refused_token(&first).is_none() {
            return first;
        }
        let renewed = tokens.renew(&held, self.limit).await?;
        let second = self.read_once(read, &renewed).await;
        let Some(errcode) = refused_token(&second) else { return second };
        match tokens.remedy(&renewed, errcode, self.limit).await? {
            Some(other) => self.read_once(read, &other).await,
            None => second,
        }
    }

    async fn read_once<T: Answer>(&self, read: &Read<'_>, held: &Held) -> Result<T, WeChatError> {
        let mut url = self.shared.tokens.url(read.endpoint);
        url.query_pairs_mut().append_pair("access_token", held.secret()).extend_pairs(read.query);
        if url.as_str().len() > LONGEST_ADDRESS {
            // No server takes it, and nobody has such an id.
            let reason = format!("it needs an id that makes an address of {} characters", url.as_str().len());
            return Err(WeChatError::Unreadable { endpoint: read.endpoint, reason });
        }
        let request = Request { endpoint: read.endpoint, url, body: read.body.clone(), limit: self.limit };
        let answer = self.shared.line.ask(request, self.counts.as_deref()).await;
        match &answer {
            Ok(_) => held.accepted(),
            Err(error) if error.errcode().is_some() && error.class() != Some(CodeClass::Token) => held.accepted(),
            Err(_) => {}
        }
        answer
    }

    /// Where the documented default alone forbids a call, WeChat is asked once for the account's own figure, which is noted for
    /// the day. Gives whether there is one now that was not known before.
    async fn learns_its_figure(&self, endpoint: Endpoint) -> bool {
        if endpoint == Endpoint::QuotaGet || !matches!(self.shared.line.goes_by_default(endpoint).await, Ok(true)) {
            return false;
        }
        let answer = self.with_token::<QuotaAnswer>(&quota_of(endpoint)).await;
        let Some(figure) = answer.ok().and_then(QuotaAnswer::into_figure) else { return false };
        tracing::info!(
            endpoint = endpoint.as_str(),
            limit = figure.daily_limit,
            used = figure.used,
            "the documented calls of the day are used up; WeChat allows this account {}",
            figure.daily_limit
        );
        self.shared.line.told(endpoint, Some(figure)).await.is_ok()
    }

    /// 45009 is said of a day and at times of a minute: the quota tells which.
    async fn told_apart(&self, error: WeChatError) -> WeChatError {
        let WeChatError::Refused { endpoint, errcode, errmsg, rid, class: CodeClass::Quota } = error else {
            return error;
        };
        if endpoint == Endpoint::QuotaGet {
            return self.spent(endpoint, false);
        }
        let (figure, ours) = self.figure_after_a_refusal(endpoint).await;
        match (figure, ours) {
            // The figure is off by up to one percent.
            (Some(quota), _) if quota.remain > quota.daily_limit / 100 => {
                WeChatError::Refused { endpoint, errcode, errmsg, rid, class: CodeClass::Slow }
            }
            // What it counts beyond ours may be of the day before.
            (Some(quota), Ok(ours)) => self.spent(endpoint, quota.used > ours + quota.daily_limit / 50),
            (None, Ok(ours)) => self.spent(endpoint, ours == 0),
            (_, Err(error)) => {
                tracing::warn!(%error, "what WeChat says of its quota could not be noted");
                self.spent(endpoint, false)
            }
        }
    }

    /// What WeChat says of an endpoint's day, and how many calls we have counted. Whoever was refused at the same time is told
    /// the same: it is asked once.
    async fn figure_after_a_refusal(&self, endpoint: Endpoint) -> (Option<QuotaFigure>, Result<u64, StoreError>) {
        let mut figures = self.shared.figures.lock().await;
        let now = self.shared.clock.monotonic();
        let known = figures.get(&endpoint).filter(|(at, _)| now.saturating_duration_since(*at) < FIGURE_HOLDS);
        if let Some((_, figure)) = known {
            return (*figure, self.shared.line.told(endpoint, None).await);
        }
        let answer = self.with_token::<QuotaAnswer>(&quota_of(endpoint)).await;
        let figure = answer.ok().and_then(QuotaAnswer::into_figure);
        figures.insert(endpoint, (self.shared.clock.monotonic(), figure));
        (figure, self.shared.line.told(endpoint, figure).await)
    }

    fn spent(&self, endpoint: Endpoint, may_be_late: bool) -> WeChatError {
        let clock = self.shared.clock;
        let until = QuotaDay::opens_again(clock.now(), may_be_late, clock.quota_spread());
        WeChatError::QuotaSpent { endpoint, until }
    }
}

impl std::fmt::Debug for WeChat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeChat").field("account", &self.shared.settings.account).finish_non_exhaustive()
    }
}

fn quota_of(endpoint: Endpoint) -> Read<'static> {
    let body = serde_json::json!({ "cgi_path": endpoint.cgi_path() }).to_string().into_bytes();
    Read { endpoint: Endpoint::QuotaGet, query: &[], body: Some(body) }
}

fn refused_token<T>(answer: &Result<T, WeChatError>) -> Option<i64> {
    answer.as_ref().err().filter(|error| error.class() == Some(CodeClass::Token)).and_then(WeChatError::errcode)
}

fn is_token_refusal(outcome: &SendOutcome) -> bool {
    matches!(outcome, SendOutcome::Refused { class: CodeClass::Token, .. })
}

/// An answer that is not about the token says that the token is good; no answer says nothing.
fn noted(held: &Held, outcome: &SendOutcome) {
    match outcome {
        SendOutcome::Accepted { .. } | SendOutcome::Refused { .. } => held.accepted(),
        SendOutcome::NoAnswer { .. } => {}
    }
}

/// A message that was kept back because its push stops.
fn stopped() -> SendOutcome {
    SendOutcome::NoAnswer { reason: "the push stops".to_owned(), may_have_left: false }
}

/// What an error means for a message that it kept from being taken.
fn not_sent(error: WeChatError) -> SendOutcome {
    let (errcode, errmsg, class) = match error {
        WeChatError::Refused { errcode, errmsg, class, .. } => (errcode, errmsg, class),
        WeChatError::TokenRejected { errcode, .. } => (errcode, chain(&error), CodeClass::Operator),
        WeChatError::LengthRequired { .. } => (412, chain(&error), CodeClass::Operator),
        WeChatError::QuotaSpent { .. } => (45009, chain(&error), CodeClass::Quota),
        error => return SendOutcome::NoAnswer { reason: chain(&error), may_have_left: false },
    };
    let field = if errcode == 47003 { named_field(&errmsg) } else { None };
    SendOutcome::Refused { errcode, errmsg, class, field }
}

/// An error with its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    redact::without_secrets(&text, REASON_LIMIT)
}

/// The body of a `batchget`, written straight into a buffer: a tree of it costs more than the call's own bytes.
fn batch_body(openids: &[OpenId]) -> Vec<u8> {
    let mut body = Vec::with_capacity(16 + openids.len() * 64);
    body.extend_from_slice(b"{\"user_list\":[");
    for (at, openid) in openids.iter().enumerate() {
        body.extend_from_slice(if at == 0 { &b"{\"openid\":"[..] } else { b",{\"openid\":" });
        serde_json::to_writer(&mut body, openid.as_str()).expect("text can always be written to memory");
        body.extend_from_slice(b",\"lang\":\"zh_CN\"}");
    }
    body.extend_from_slice(b"]}");
    body
}
