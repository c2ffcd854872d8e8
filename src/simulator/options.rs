//! What a simulated world is made of; the command line maps its flags to these fields.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::export::UsersOptions;
use super::faults::Faults;
use super::template::Template;

/// A world to start. The default is an account of 20 000 followers on its best behaviour.
#[derive(Debug, Clone)]
pub struct Options {
    /// Two worlds of one seed have the same people.
    pub seed: u64,
    /// On 127.0.0.1; `None` takes a free one.
    pub port: Option<u16>,
    pub app_id: String,
    pub app_secret: String,
    /// The account that was moved into this one, the only one that `changeopenid` knows; left out, it knows any.
    pub moved_from: Option<String>,
    pub miniprogram_app_id: String,
    pub miniprogram_app_secret: String,
    pub followers: u64,
    /// Users of the mini program.
    pub users: u64,
    /// Of the users, those who follow the account (at most the smaller of the two).
    pub matched_users: u64,
    /// Of the followers, the part whose unionid the account sees.
    pub bound_share: f64,
    pub templates: Vec<Template>,
    /// When not empty, the mini program's pages: any other `pagepath` answers 40165.
    pub pages: Vec<String>,
    /// Calls a day by endpoint name (`message/template/send`), in place of the documented ones.
    pub quota: BTreeMap<String, u64>,
    /// Openids on a page of the follower list; the platform's figure is 10 000.
    pub page_size: u64,
    pub token_lifetime_seconds: i64,
    /// How long each call takes at least.
    pub latency: Duration,
    pub faults: Faults,
    /// Where events are posted; none are without it. Another can be entered later.
    pub callback: Option<Callback>,
    /// Events in flight to it at once.
    pub postmen: usize,
}

/// What was entered in the account's console for its server push.
#[derive(Debug, Clone)]
pub struct Callback {
    /// `http://host[:port]/path`; TLS is not spoken.
    pub url: String,
    pub token: String,
    pub mode: CallbackMode,
    /// The EncodingAESKey of 43 characters; unused in plain mode.
    pub encoding_aes_key: String,
    /// The account's own id, as events name it.
    pub account: String,
}

/// How much of an event is readable on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallbackMode {
    /// All of it.
    #[default]
    Plain,
    /// All of it, and the sealed form beside it.
    Compatible,
    /// Nothing but the account's name.
    Safe,
}

impl Callback {
    /// Events in the open.
    pub fn new(url: impl Into<String>, token: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            token: token.into(),
            mode: CallbackMode::Plain,
            encoding_aes_key: String::new(),
            account: "gh_5d3a1f0c92b7".to_owned(),
        }
    }

    /// The same address in another mode.
    pub fn sealed(self, mode: CallbackMode, encoding_aes_key: impl Into<String>) -> Self {
        Self { mode, encoding_aes_key: encoding_aes_key.into(), ..self }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            port: None,
            app_id: "wx0000000000000000".to_owned(),
            app_secret: "0123456789abcdef0123456789abcdef".to_owned(),
            moved_from: None,
            miniprogram_app_id: "wx1111111111111111".to_owned(),
            miniprogram_app_secret: "fedcba9876543210fedcba9876543210".to_owned(),
            followers: 20_000,
            users: 30_000,
            matched_users: 16_000,
            bound_share: 0.95,
            templates: Template::samples(),
            pages: Vec::new(),
            quota: BTreeMap::new(),
            page_size: 10_000,
            token_lifetime_seconds: 7_200,
            latency: Duration::ZERO,
            faults: Faults::default(),
            callback: None,
            postmen: 64,
        }
    }
}

impl Options {
    /// The mini program's side of the same world.
    pub fn users_options(&self) -> UsersOptions {
        UsersOptions {
            seed: self.seed,
            app_id: self.app_id.clone(),
            miniprogram_app_id: self.miniprogram_app_id.clone(),
            followers: self.followers,
            users: self.users,
            matched_users: self.matched_users,
            ..UsersOptions::default()
        }
    }

    /// People the world must have room for: everybody there is, and newcomers.
    pub(super) fn room(&self) -> u64 {
        self.users_options().people() + self.followers / 8 + 4_096
    }
}
