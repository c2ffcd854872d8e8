//! `[accounts.NAME]` → an Official Account.

use std::collections::BTreeMap;

use secrecy::SecretString;

use super::defaults;
use super::house::is_address;
use crate::config::file::{Field, Section};
use crate::config::problems::accepted;
use crate::config::settings::{Account, AccountQuota, TokenSource};
use crate::domain::AccountName;

/// The calls that are made, as `quota` names them.
const ENDPOINTS: [&str; 11] = [
    "message/template/send",
    "user/get",
    "user/info",
    "user/info/batchget",
    "template/get_all_private_template",
    "openapi/quota/get",
    "tags/get",
    "tags/members/getblacklist",
    "wxa/sec/queryblocktmplmsg",
    "token",
    "stable_token",
];
/// WeChat's `EncodingAESKey` is always this long.
const AES_KEY_CHARACTERS: usize = 43;

pub(super) fn read(name: AccountName, mut section: Section<'_>) -> Account {
    let app_id = section.require("app_id", "the account's AppID, from its console").and_then(|field| field.full_text());
    let app_secret = section
        .require(
            "app_secret",
            "write app_secret = \"${LIANBO_MAIN_SECRET}\" and export that variable or put it into .env",
        )
        .and_then(|field| field.full_text());
    let api_base = section.take("api_base").and_then(|field| api_base(&field));
    let token = section.take("token").and_then(|field| token(&field));
    let page_key = section
        .take("page_key")
        .and_then(|field| field.choice(&[("pagepath", "pagepath"), ("path", "path"), ("page", "page")]));
    let concurrency = section.take("concurrency").and_then(|field| field.count("calls in flight", 1..=1024));
    let send_rate = section.take("send_rate").and_then(|field| field.rate());
    let timeout = section.take("timeout").and_then(|field| field.positive_duration());
    let quota = quota(section.section("quota", "the account's `quota`"));
    let (callback_token, encoding_aes_key) = callback(section.section("callback", "the account's `callback`"));
    section.finish();
    Account {
        name,
        app_id: app_id.unwrap_or_default(),
        app_secret: SecretString::from(app_secret.unwrap_or_default()),
        api_base: api_base.unwrap_or_else(|| defaults::API_BASE.to_owned()),
        token: token.unwrap_or(TokenSource::Stable),
        page_key: page_key.unwrap_or(defaults::PAGE_KEY).to_owned(),
        concurrency: usize::try_from(concurrency.unwrap_or(defaults::READ_CONCURRENCY)).expect("at most 1024"),
        send_rate,
        timeout: timeout.unwrap_or(defaults::TIMEOUT),
        quota,
        callback_token,
        encoding_aes_key,
    }
}

fn api_base(field: &Field<'_>) -> Option<String> {
    let text = field.full_text()?;
    if !is_address(&text) || text.contains(['?', '#']) {
        field.refuse(
            "this is not the address of an API",
            format!("write http://… or https://…, as in \"{}\"", defaults::API_BASE),
        );
        return None;
    }
    if text.ends_with('/') {
        field.refuse("there is a slash at its end", format!("write \"{}\"", text.trim_end_matches('/')));
        return None;
    }
    Some(text)
}

fn token(field: &Field<'_>) -> Option<TokenSource> {
    if !field.is_table() {
        let text = field.text()?;
        return match text.as_str() {
            "stable" => Some(TokenSource::Stable),
            "legacy" => Some(TokenSource::Legacy),
            // What stands here may be a token pasted by mistake: it is not repeated.
            other => {
                let hint = accepted(other, ["stable", "legacy"].into_iter());
                field.refuse(
                    "this is not a way to get a token",
                    format!("{hint}; or {{ url = \"http://…\" }} for a token centre"),
                );
                None
            }
        };
    }
    let mut section = field.section("`token`")?;
    let url_field = section.require("url", "token = { url = \"http://token-centre/…\" }");
    section.finish();
    let url_field = url_field?;
    let url = url_field.full_text()?;
    if !is_address(&url) {
        url_field.refuse("this is not the address of a token centre", "write http://… or https://…");
        return None;
    }
    Some(TokenSource::Centre { url })
}

fn quota(mut section: Section<'_>) -> AccountQuota {
    let reserve_section = section.section("reserve", "`reserve`");
    let mut quota = AccountQuota { ceilings: calls(&section, &["reserve"]), reserve: calls(&reserve_section, &[]) };
    for field in reserve_section.fields() {
        let kept = quota.reserve.get(field.name).copied().unwrap_or_default();
        if let Some(ceiling) = quota.ceilings.get(field.name).filter(|ceiling| kept > **ceiling) {
            field.refuse(
                format!("the reserve is more than the ceiling of {ceiling}"),
                "keep less than may be called in all",
            );
        }
    }
    quota.reserve.retain(|_, kept| *kept > 0);
    quota
}

fn calls(section: &Section<'_>, other_keys: &[&str]) -> BTreeMap<String, u64> {
    let mut calls = BTreeMap::new();
    for field in section.fields().into_iter().filter(|field| !other_keys.contains(&field.name)) {
        if !ENDPOINTS.contains(&field.name) {
            let hint = accepted(field.name, ENDPOINTS.into_iter());
            field.refuse_key(format!("`{}` is no call that is made", field.name), hint);
        } else if let Some(count) = field.count("calls a day", 0..=u64::MAX) {
            calls.insert(field.name.to_owned(), count);
        }
    }
    calls
}

fn callback(mut section: Section<'_>) -> (Option<SecretString>, Option<SecretString>) {
    let token = section.take("token").and_then(|field| field.optional_secret());
    let key_field = section.take("encoding_aes_key");
    section.finish();
    let Some(field) = key_field else { return (token, None) };
    let Some(key) = field.optional_text() else { return (token, None) };
    if key.len() != AES_KEY_CHARACTERS || !key.chars().all(|c| c.is_ascii_alphanumeric()) {
        field.refuse(
            "this is not an EncodingAESKey",
            format!("copy its {AES_KEY_CHARACTERS} letters and digits from the account's console"),
        );
    } else if token.is_none() {
        field.refuse("a key without a token verifies nothing", "set `token` of the callback as well");
    }
    (token, Some(SecretString::from(key)))
}
