//! WeChat's platform as the house sees it: calls with their answers, one access token, codes with their meaning.
//!
//! A read goes `client` → `line` (meter, permits, counting) → `transport` → `wire` (bytes to words), and comes back
//! through `retry`, the only place that decides whether to ask again. The token every call carries is held by `token`
//! and kept between processes by whoever implements [`TokenStore`]. A send takes the same way but is never repeated
//! here, except once after a refused token. `code` is WeChat's table of error codes as data.
//!
//! The other direction, what WeChat posts to us, is `callback` with `crypto`: whether it is WeChat's, and what it says.
//!
//! Not here: choosing recipients, pacing, counting down the day's quota, storing anything, listening for callbacks.

mod batch;
mod callback;
mod client;
mod code;
mod crypto;
mod direct;
mod endpoint;
mod error;
mod line;
mod message;
mod ports;
mod profiles;
mod retry;
mod standing;
mod token;
mod transport;
mod wire;

#[cfg(test)]
mod tests;

use std::time::Duration;

use secrecy::SecretString;

use crate::domain::AccountName;

pub use batch::{Answer, Claim, ProfileBatch, ShortAnswer};
pub use callback::{CallbackEvent, CallbackKeys, CallbackQuery, CallbackRefused, LARGEST_BODY_BYTES, Posted, XmlError};
pub use client::{SendOutcome, WeChat};
pub use code::{Code, CodeClass, all as all_codes, class_of, lookup as lookup_code};
pub use endpoint::Endpoint;
pub use error::WeChatError;
pub use message::Message;
pub use ports::{CallCounts, CallEnd, CallMeter, RefreshGuard, Refused, SendMark, StoreError, StoredToken, TokenStore};
pub use profiles::Profiles;
pub use wire::{BlockedMessage, FollowerPage, MovedOpenid, Profile, QuotaFigure, Template, template_fields};

/// What the client of one Official Account needs to know.
#[derive(Debug, Clone)]
pub struct WeChatSettings {
    pub account: AccountName,
    pub app_id: String,
    pub app_secret: SecretString,
    /// Scheme and host without a trailing slash.
    pub api_base: String,
    pub token: TokenKind,
    /// The whole of one call, from connecting to the last byte.
    pub timeout: Duration,
    /// Read calls in flight, over all clones.
    pub concurrency: usize,
    /// What the retry rules take for a second: [`WeChatSettings::RETRY_BASE`], less only in tests.
    pub retry_base: Duration,
}

impl WeChatSettings {
    /// The first wait between two tries, and the unit of all waits.
    pub const RETRY_BASE: Duration = Duration::from_secs(1);
}

/// Where access tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenKind {
    /// `stable_token`: other systems of the account cannot invalidate ours by fetching their own.
    Stable,
    /// `token`: every fetch kills the token before it.
    Legacy,
    /// A token centre of the house: GET answers `{"access_token","expires_in"}`.
    Centre { url: String },
}
