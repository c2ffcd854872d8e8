//! The one access token of an account: a copy in memory, the store behind it, one renewal at a time.
//!
//! A call takes [`Tokens::current`]; when WeChat refuses the token it took, [`Tokens::renew`] says what to call again
//! with: the same where the refusal is most likely a passing one, one that another process has renewed already, else
//! what WeChat gives out, asked under the store's lock. Refused again, [`Tokens::remedy`] forces a new one, on a small
//! daily budget, and only when the string is proven dead (`standing`). While it is under suspicion calls go one by one.
//! Each request for a token is made once. Not here: deciding to call again (`client` for the token, `retry` for the rest).

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

use super::code::CodeClass;
use super::endpoint::Endpoint;
use super::error::WeChatError;
use super::line::{Line, Request};
use super::ports::{StoredToken, TokenStore};
use super::standing::Standing;
use super::wire::{TokenAnswer, lacking};
use super::{TokenKind, WeChatSettings};
use crate::clock::{Clock, Timestamp};
use crate::domain::QuotaDay;

/// A token with less left is renewed before it is used.
const LEAST_LEFT: TimeDelta = TimeDelta::seconds(60);
/// What an answer without a lifetime is trusted for.
const UNKNOWN_LIFETIME_SECONDS: i64 = 300;
const LONGEST_LIFETIME_SECONDS: i64 = 30 * 24 * 3600;
/// A legacy token this young is not replaced for a refusal: each fetch ends the one before and counts against the day.
const YOUNG: TimeDelta = TimeDelta::seconds(30);

/// A token in use.
pub(super) struct Held {
    token: StoredToken,
    /// Where sends go with this token, parsed once.
    pub send_url: Url,
    standing: Arc<Standing>,
}

impl Held {
    pub fn secret(&self) -> &str {
        self.token.access_token.expose_secret()
    }

    /// WeChat took the token.
    pub fn accepted(&self) {
        self.standing.accepted();
    }

    fn is_same(&self, token: &StoredToken) -> bool {
        self.secret() == token.access_token.expose_secret()
    }
}

/// Which token a renewal is for: the stored one is taken when it already answers that.
enum Wanted<'a> {
    Usable,
    OtherThan(&'a Held),
    ForcedOver(&'a Held),
    Anew { forced: bool },
}

pub(super) struct Tokens {
    settings: WeChatSettings,
    base: Url,
    line: Arc<Line>,
    store: Arc<dyn TokenStore>,
    clock: Clock,
    current: RwLock<Option<Arc<Held>>>,
    /// One renewal at a time in this process; the store's lock does the same between processes.
    renewing: tokio::sync::Mutex<()>,
    /// One call at a time with a token that is under suspicion.
    probing: tokio::sync::Mutex<()>,
    /// When a request for a token last got no answer, and why: whoever waited for it meanwhile need not ask in turn.
    unanswered: Mutex<Option<(Instant, WeChatError)>>,
}

impl Tokens {
    pub fn new(settings: WeChatSettings, base: Url, line: Arc<Line>, store: Arc<dyn TokenStore>, clock: Clock) -> Self {
        let (current, renewing, probing) = Default::default();
        Self { settings, base, line, store, clock, current, renewing, probing, unanswered: Mutex::default() }
    }

    /// To be held through a call: while the token is under suspicion calls go one by one, the first of them after long
    /// enough to judge by. The first success frees all others, and a dead token costs no more calls than it must.
    pub async fn turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if !self.is_doubted() {
            return None;
        }
        let turn = self.probing.lock().await;
        if !self.is_doubted() {
            return None;
        }
        if let Some(at) = self.peek()?.standing.judged_at(self.span()) {
            self.clock.sleep(at.saturating_duration_since(self.clock.monotonic())).await;
        }
        Some(turn)
    }

    /// A token with at least a minute left. `limit`: of the request for one, where one has to be made.
    ///
    /// # Errors
    ///
    /// [`WeChatError::TokenRejected`] for a token that was given up a moment ago.
    pub async fn current(&self, limit: Option<Duration>) -> Result<Arc<Held>, WeChatError> {
        if let Some(held) = self.usable() {
            return match held.standing.given_up(self.clock.monotonic()) {
                Some(errcode) => Err(self.rejected(errcode)),
                None => Ok(held),
            };
        }
        let asked_at = self.clock.monotonic();
        let _turn = self.renewing.lock().await;
        if let Some(held) = self.usable() {
            return Ok(held);
        }
        if let Some(stored) = self.load().await?
            && is_usable(&stored, self.clock.now())
        {
            return Ok(self.hold(stored, None));
        }
        self.answered_since(asked_at)?;
        self.under_lock(Wanted::Usable, limit).await
    }

    /// After `used` was refused: what to call again with, which may well be the same.
    pub async fn renew(&self, used: &Arc<Held>, limit: Option<Duration>) -> Result<Arc<Held>, WeChatError> {
        used.standing.refused(self.clock.monotonic());
        let asked_at = self.clock.monotonic();
        let _turn = self.renewing.lock().await;
        if let Some(other) = self.other_than(used).await? {
            return Ok(other);
        }
        if used.standing.is_passing(self.clock.monotonic()) || self.is_young(used) {
            return Ok(Arc::clone(used));
        }
        self.answered_since(asked_at)?;
        self.under_lock(Wanted::OtherThan(used), limit).await
    }

    /// After `used` was refused again: another token, forced where only that helps. `None` when there is no proof that
    /// the token is dead: the call is to be made again after a while.
    ///
    /// # Errors
    ///
    /// [`WeChatError::TokenRejected`] when the token is dead and there is no other to be had.
    pub async fn remedy(
        &self,
        used: &Arc<Held>,
        errcode: i64,
        limit: Option<Duration>,
    ) -> Result<Option<Arc<Held>>, WeChatError> {
        let again = self.renew(used, limit).await?;
        if !used.is_same(&again.token) {
            return Ok(Some(again));
        }
        let _turn = self.renewing.lock().await;
        if let Some(other) = self.other_than(used).await? {
            return Ok(Some(other));
        }
        // Asked only now: others may have got through while this one waited for its turn.
        if !used.standing.is_dead(self.clock.monotonic(), self.span()) {
            return Ok(None);
        }
        if self.settings.token != TokenKind::Stable {
            return Err(self.give_up(used, errcode));
        }
        if !used.standing.is_insisted_on() {
            return Ok(None);
        }
        tracing::warn!(
            account = %self.settings.account, errcode,
            "no call gets through with the access token, and WeChat gives out the same again: a new one is forced"
        );
        match self.under_lock(Wanted::ForcedOver(used), limit).await {
            Ok(held) => Ok(Some(held)),
            Err(WeChatError::NoForcedRenewal { .. }) => Err(self.give_up(used, errcode)),
            Err(error) => Err(error),
        }
    }

    fn give_up(&self, used: &Held, errcode: i64) -> WeChatError {
        used.standing.give_up(self.clock.monotonic(), errcode);
        self.rejected(errcode)
    }

    /// What is to be said of a token that WeChat keeps refusing.
    pub fn rejected(&self, errcode: i64) -> WeChatError {
        WeChatError::TokenRejected { account: self.settings.account.clone(), errcode }
    }

    /// A renewal that an operator asked for.
    pub async fn anew(&self, forced: bool, limit: Option<Duration>) -> Result<StoredToken, WeChatError> {
        let _turn = self.renewing.lock().await;
        Ok(self.under_lock(Wanted::Anew { forced }, limit).await?.token.clone())
    }

    /// What the store holds, used up or not.
    pub async fn load(&self) -> Result<Option<StoredToken>, WeChatError> {
        self.store.load().await.map_err(WeChatError::Store)
    }

    fn peek(&self) -> Option<Arc<Held>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn usable(&self) -> Option<Arc<Held>> {
        self.peek().filter(|held| is_usable(&held.token, self.clock.now()))
    }

    fn is_doubted(&self) -> bool {
        self.peek().is_some_and(|held| held.standing.is_doubted())
    }

    /// How long nothing must have got through before a token counts as dead.
    fn span(&self) -> Duration {
        self.settings.retry_base * 3
    }

    /// A token in memory or in the store that is not `used`: somebody has renewed it already.
    async fn other_than(&self, used: &Held) -> Result<Option<Arc<Held>>, WeChatError> {
        if let Some(held) = self.usable()
            && !used.is_same(&held.token)
        {
            return Ok(Some(held));
        }
        let stored = self.load().await?.filter(|stored| is_usable(stored, self.clock.now()) && !used.is_same(stored));
        Ok(stored.map(|stored| self.hold(stored, None)))
    }

    fn is_young(&self, used: &Held) -> bool {
        self.settings.token == TokenKind::Legacy && self.clock.now() - used.token.fetched_at < YOUNG
    }

    /// # Errors
    ///
    /// The failure of a request that went unanswered while this caller waited for its end.
    fn answered_since(&self, asked_at: Instant) -> Result<(), WeChatError> {
        let unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        match &*unanswered {
            Some((at, error)) if *at >= asked_at => error.copy_of_silence().map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }

    async fn under_lock(&self, wanted: Wanted<'_>, limit: Option<Duration>) -> Result<Arc<Held>, WeChatError> {
        let guard = self.store.lock().await.map_err(WeChatError::Store)?;
        let renewed = self.renew_alone(wanted, limit).await;
        let released = guard.release().await.map_err(WeChatError::Store);
        let held = renewed?;
        released.map(|()| held)
    }

    async fn renew_alone(&self, wanted: Wanted<'_>, limit: Option<Duration>) -> Result<Arc<Held>, WeChatError> {
        if let Some(stored) = self.load().await?
            && is_usable(&stored, self.clock.now())
        {
            let already = match &wanted {
                Wanted::Usable => true,
                Wanted::OtherThan(used) | Wanted::ForcedOver(used) => !used.is_same(&stored),
                Wanted::Anew { .. } => false,
            };
            if already {
                return Ok(self.hold(stored, None));
            }
        }
        let forced = self.settings.token == TokenKind::Stable
            && matches!(wanted, Wanted::ForcedOver(_) | Wanted::Anew { forced: true });
        if forced && !self.store.take_forced().await.map_err(WeChatError::Store)? {
            return Err(WeChatError::NoForcedRenewal { account: self.settings.account.clone() });
        }
        let fetched = self.fetch(forced, limit).await?;
        tracing::info!(account = %self.settings.account, forced, expires_at = %fetched.expires_at, "access token fetched");
        // Held first: a store that fails must not lose the only good token.
        let held = self.hold(fetched, Some(self.clock.monotonic()));
        if forced {
            held.standing.put_on_trial();
        }
        self.store.save(held.token.clone()).await.map_err(WeChatError::Store)?;
        Ok(held)
    }

    /// Keeps a token in memory. `fetched_at`: it just came from WeChat.
    fn hold(&self, token: StoredToken, fetched_at: Option<Instant>) -> Arc<Held> {
        let before = self.peek().filter(|held| held.is_same(&token));
        let mut send_url = self.url(Endpoint::TemplateSend);
        send_url.query_pairs_mut().append_pair("access_token", token.access_token.expose_secret());
        let standing = before.as_ref().map(|held| Arc::clone(&held.standing)).unwrap_or_default();
        if let (Some(_), Some(at)) = (before, fetched_at) {
            standing.confirmed(at);
        }
        let held = Arc::new(Held { token, send_url, standing });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&held));
        held
    }

    async fn fetch(&self, forced: bool, limit: Option<Duration>) -> Result<StoredToken, WeChatError> {
        let request = Request { limit, ..self.request(forced)? };
        let endpoint = request.endpoint;
        match self.line.ask::<TokenAnswer>(request, None).await {
            Ok(answer) => self.stored(endpoint, answer),
            Err(error) if error.class() == Some(CodeClass::Quota) => {
                let until = QuotaDay::of(self.clock.now()).next().starts_at();
                Err(WeChatError::QuotaSpent { endpoint, until })
            }
            Err(error) => {
                if let Some(copy) = error.copy_of_silence() {
                    let silence = Some((self.clock.monotonic(), copy));
                    *self.unanswered.lock().unwrap_or_else(PoisonError::into_inner) = silence;
                }
                Err(error)
            }
        }
    }

    fn stored(&self, endpoint: Endpoint, answer: TokenAnswer) -> Result<StoredToken, WeChatError> {
        let access_token = answer.access_token.ok_or_else(|| lacking(endpoint, "access_token"))?;
        let seconds = answer.expires_in.unwrap_or(UNKNOWN_LIFETIME_SECONDS).clamp(0, LONGEST_LIFETIME_SECONDS);
        let fetched_at = self.clock.now();
        Ok(StoredToken {
            access_token: SecretString::from(access_token),
            expires_at: fetched_at + TimeDelta::seconds(seconds),
            fetched_at,
        })
    }

    fn request(&self, forced: bool) -> Result<Request, WeChatError> {
        let WeChatSettings { app_id, app_secret, token, account, .. } = &self.settings;
        match token {
            TokenKind::Stable => {
                let body = serde_json::json!({
                    "grant_type": "client_credential",
                    "appid": app_id,
                    "secret": app_secret.expose_secret(),
                    "force_refresh": forced,
                });
                let body = Some(body.to_string().into_bytes());
                Ok(Request { endpoint: Endpoint::StableToken, url: self.url(Endpoint::StableToken), body, limit: None })
            }
            TokenKind::Legacy => {
                let mut url = self.url(Endpoint::Token);
                url.query_pairs_mut()
                    .append_pair("grant_type", "client_credential")
                    .append_pair("appid", app_id)
                    .append_pair("secret", app_secret.expose_secret());
                Ok(Request { endpoint: Endpoint::Token, url, body: None, limit: None })
            }
            TokenKind::Centre { url } => {
                let url = url.parse().map_err(|error| WeChatError::Setup {
                    account: account.clone(),
                    reason: format!("the address of the token centre: {error}"),
                })?;
                Ok(Request { endpoint: Endpoint::TokenCentre, url, body: None, limit: None })
            }
        }
    }

    /// The address of a call without its query.
    pub fn url(&self, endpoint: Endpoint) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", self.base.path().trim_end_matches('/'), endpoint.cgi_path()));
        url
    }
}

/// Whether a token has a minute left, or half its life where that is shorter.
fn is_usable(token: &StoredToken, now: Timestamp) -> bool {
    let margin = LEAST_LEFT.min((token.expires_at - token.fetched_at) / 2);
    token.expires_at - now > margin
}
