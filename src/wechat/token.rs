//! The one access token of an account: a copy in memory, the store behind it, one renewal at a time.
//!
//! A call takes [`Tokens::current`]; when WeChat refuses the token it took, [`Tokens::renew`] looks whether another
//! process has renewed already, else renews under the store's lock. WeChat may answer with the very same string: then
//! the refusal was a passing one, or somebody forced a renewal, and only a second refusal leads to [`Tokens::force`],
//! on a small daily budget. Not here: deciding to call again (`client` once for the token, `retry` for the rest).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

use super::code::CodeClass;
use super::endpoint::Endpoint;
use super::error::WeChatError;
use super::line::{Line, Request};
use super::ports::{StoredToken, TokenStore};
use super::retry::Patience;
use super::wire::{TokenAnswer, lacking};
use super::{TokenKind, WeChatSettings};
use crate::clock::{Clock, Timestamp};
use crate::domain::QuotaDay;

/// A token with less left is renewed before it is used.
const LEAST_LEFT: TimeDelta = TimeDelta::seconds(60);
/// What an answer without a lifetime is trusted for.
const UNKNOWN_LIFETIME_SECONDS: i64 = 300;
const LONGEST_LIFETIME_SECONDS: i64 = 30 * 24 * 3600;
/// How long WeChat's word that the refused token is the right one spares asking again: under load a few percent of
/// calls are refused although the token is good.
const CONFIRMATION_HOLDS: Duration = Duration::from_secs(10);

/// A token in use.
pub(super) struct Held {
    token: StoredToken,
    /// Where sends go with this token, parsed once.
    pub send_url: Url,
    /// Refusals in a row; shared by all copies of one string.
    refusals: Arc<AtomicU32>,
    /// When WeChat last gave out this same string again.
    confirmed_at: Option<Instant>,
}

impl Held {
    pub fn secret(&self) -> &str {
        self.token.access_token.expose_secret()
    }

    /// WeChat took the token.
    pub fn accepted(&self) {
        if self.refusals.load(Ordering::Relaxed) != 0 {
            self.refusals.store(0, Ordering::Relaxed);
        }
    }

    fn refused(&self) -> u32 {
        self.refusals.fetch_add(1, Ordering::Relaxed) + 1
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
}

impl Tokens {
    pub fn new(settings: WeChatSettings, base: Url, line: Arc<Line>, store: Arc<dyn TokenStore>, clock: Clock) -> Self {
        Self { settings, base, line, store, clock, current: RwLock::default(), renewing: tokio::sync::Mutex::default() }
    }

    /// A token with at least a minute left.
    pub async fn current(&self) -> Result<Arc<Held>, WeChatError> {
        if let Some(held) = self.usable() {
            return Ok(held);
        }
        let _turn = self.renewing.lock().await;
        if let Some(held) = self.usable() {
            return Ok(held);
        }
        if let Some(stored) = self.load().await?
            && is_usable(&stored, self.clock.now())
        {
            return Ok(self.hold(stored, None));
        }
        self.under_lock(Wanted::Usable).await
    }

    /// After `used` was refused: another token, or the same again when WeChat insists on it.
    pub async fn renew(&self, used: &Held) -> Result<Arc<Held>, WeChatError> {
        used.refused();
        let _turn = self.renewing.lock().await;
        if let Some(held) = self.usable()
            && (!used.is_same(&held.token) || self.is_confirmed(&held))
        {
            return Ok(held);
        }
        self.under_lock(Wanted::OtherThan(used)).await
    }

    /// After `used` was refused again: a token that is certainly another. `None` when that is not the remedy, since
    /// other calls got through with it meanwhile or this kind of token knows no force.
    ///
    /// # Errors
    ///
    /// [`WeChatError::TokenRejected`] when the budget of forced renewals allows none.
    pub async fn force(&self, used: &Held, errcode: i64) -> Result<Option<Arc<Held>>, WeChatError> {
        let refusals = used.refused();
        let _turn = self.renewing.lock().await;
        if let Some(held) = self.usable()
            && !used.is_same(&held.token)
        {
            return Ok(Some(held));
        }
        if self.settings.token != TokenKind::Stable || refusals < 2 {
            return Ok(None);
        }
        match self.under_lock(Wanted::ForcedOver(used)).await {
            Ok(held) => Ok(Some(held)),
            Err(WeChatError::NoForcedRenewal { account }) => Err(WeChatError::TokenRejected { account, errcode }),
            Err(error) => Err(error),
        }
    }

    /// A renewal that an operator asked for.
    pub async fn anew(&self, forced: bool) -> Result<StoredToken, WeChatError> {
        let _turn = self.renewing.lock().await;
        Ok(self.under_lock(Wanted::Anew { forced }).await?.token.clone())
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

    fn is_confirmed(&self, held: &Held) -> bool {
        held.confirmed_at.is_some_and(|at| self.clock.monotonic().duration_since(at) < CONFIRMATION_HOLDS)
    }

    async fn under_lock(&self, wanted: Wanted<'_>) -> Result<Arc<Held>, WeChatError> {
        let guard = self.store.lock().await.map_err(WeChatError::Store)?;
        let renewed = self.renew_alone(wanted).await;
        let released = guard.release().await.map_err(WeChatError::Store);
        let held = renewed?;
        released.map(|()| held)
    }

    async fn renew_alone(&self, wanted: Wanted<'_>) -> Result<Arc<Held>, WeChatError> {
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
        let fetched = self.fetch(forced).await?;
        tracing::info!(account = %self.settings.account, forced, expires_at = %fetched.expires_at, "access token renewed");
        // Held first: a store that fails must not lose the only good token.
        let held = self.hold(fetched, Some(self.clock.monotonic()));
        self.store.save(held.token.clone()).await.map_err(WeChatError::Store)?;
        Ok(held)
    }

    /// Keeps a token in memory. `fetched_at`: it just came from WeChat.
    fn hold(&self, token: StoredToken, fetched_at: Option<Instant>) -> Arc<Held> {
        let before = self.peek().filter(|held| held.is_same(&token));
        let mut send_url = self.url(Endpoint::TemplateSend);
        send_url.query_pairs_mut().append_pair("access_token", token.access_token.expose_secret());
        let held = Arc::new(Held {
            token,
            send_url,
            confirmed_at: before.as_ref().and(fetched_at),
            refusals: before.map(|held| Arc::clone(&held.refusals)).unwrap_or_default(),
        });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&held));
        held
    }

    async fn fetch(&self, forced: bool) -> Result<StoredToken, WeChatError> {
        let mut patience = Patience::new(self.clock, self.settings.retry_base);
        loop {
            let request = self.request(forced)?;
            let endpoint = request.endpoint;
            let error = match self.line.ask::<TokenAnswer>(request, None).await {
                Ok(answer) => return self.stored(endpoint, answer),
                Err(error) => error,
            };
            if error.class() == Some(CodeClass::Quota) {
                let until = QuotaDay::of(self.clock.now()).next().starts_at();
                return Err(WeChatError::QuotaSpent { endpoint, until });
            }
            if !patience.again(&error).await {
                return Err(error);
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
                Ok(Request { endpoint: Endpoint::StableToken, url: self.url(Endpoint::StableToken), body })
            }
            TokenKind::Legacy => {
                let mut url = self.url(Endpoint::Token);
                url.query_pairs_mut()
                    .append_pair("grant_type", "client_credential")
                    .append_pair("appid", app_id)
                    .append_pair("secret", app_secret.expose_secret());
                Ok(Request { endpoint: Endpoint::Token, url, body: None })
            }
            TokenKind::Centre { url } => {
                let url = url.parse().map_err(|error| WeChatError::Setup {
                    account: account.clone(),
                    reason: format!("the address of the token centre: {error}"),
                })?;
                Ok(Request { endpoint: Endpoint::TokenCentre, url, body: None })
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
