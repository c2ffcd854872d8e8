//! WeChat's answers: bytes in, words of the house out.
//!
//! WeChat answers failures with HTTP 200 and an errcode, writes numbers as text at times, leaves fields out, and lets
//! raw control characters and broken UTF-8 through. So bodies are parsed strictly first and cleaned only when that
//! fails, and no field but an id is ever required. Not here: asking again, and guards over several answers (`batch`).

mod loose;
mod moves;
mod quick;
mod reviews;

use serde::Deserialize;

use super::code::class_at;
use super::endpoint::Endpoint;
use super::error::WeChatError;
use super::profiles::{ProfileRow, Profiles, tag_list};
use super::transport::Reply;
use crate::domain::{OpenId, TemplateId, Texts, UnionId};
use crate::redact;
use loose::{Ids, List, LooseNumber, TrimmedId, number, text};
pub(super) use moves::MovedAnswer;
pub use moves::MovedOpenid;
pub(super) use reviews::BlockedAnswer;
pub use reviews::BlockedMessage;

/// The longest part of WeChat's words that is kept.
const ERRMSG_LIMIT: usize = 200;

/// An answer that may be a refusal.
pub(super) trait Answer: Sized {
    /// Reads a body, strictly.
    fn read(body: &[u8]) -> serde_json::Result<Self>;

    /// The errcode, if there was one, and its text.
    fn envelope(&self) -> (Option<i64>, Option<&str>);
}

macro_rules! answers {
    ($($answer:ty),*) => {$(
        impl Answer for $answer {
            fn read(body: &[u8]) -> serde_json::Result<Self> {
                serde_json::from_slice(body)
            }

            fn envelope(&self) -> (Option<i64>, Option<&str>) {
                (self.errcode, self.errmsg.as_deref())
            }
        }
    )*};
}
answers!(ProfileAnswer, TemplatesAnswer, QuotaAnswer, TokenAnswer, SendAnswer, BlockedAnswer, MovedAnswer);

/// Reads an answer: an error exactly when an errcode is there and not 0.
pub(super) fn decode<T: Answer>(endpoint: Endpoint, reply: &Reply) -> Result<T, WeChatError> {
    if reply.status == 412 {
        return Err(WeChatError::LengthRequired { endpoint });
    }
    let body = reply.body.trim_ascii_start();
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
    if reply.status >= 500 || body.first() != Some(&b'{') {
        return Err(WeChatError::NotJson { endpoint, status: reply.status, bytes: reply.body.len() });
    }
    let answer = T::read(body)
        .or_else(|_| T::read(cleaned(body).as_bytes()))
        .map_err(|error| WeChatError::Unreadable { endpoint, reason: without_values(&error) })?;
    if let (Some(errcode), errmsg) = answer.envelope()
        && errcode != 0
    {
        let (errmsg, rid) = without_tail(errmsg.unwrap_or_default());
        return Err(WeChatError::Refused { endpoint, errcode, errmsg, rid, class: class_at(endpoint, errcode) });
    }
    Ok(answer)
}

/// An answer that is an object but lacks what it is for.
pub(super) fn lacking(endpoint: Endpoint, what: &str) -> WeChatError {
    WeChatError::Unreadable { endpoint, reason: format!("{what} is missing") }
}

/// What is wrong with a body; the parser's own words quote values, which may be ids, when a type is wrong.
fn without_values(error: &serde_json::Error) -> String {
    match error.is_data() {
        true => format!("a value of another type at column {}", error.column()),
        false => error.to_string(),
    }
}

fn cleaned(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).collect()
}

/// The stable part of an errmsg and its rid: the tail changes with every call and is never compared.
fn without_tail(errmsg: &str) -> (String, Option<String>) {
    let rid_at = errmsg.find("rid:");
    let rid = rid_at.and_then(|at| errmsg[at + 4..].split_whitespace().next()).map(str::to_owned);
    let end = [rid_at, errmsg.find("hint:")].into_iter().flatten().min().unwrap_or(errmsg.len());
    (redact::without_secrets(errmsg[..end].trim(), ERRMSG_LIMIT), rid)
}

/// The field that a 47003 names: `argument invalid! data.thing1.value invalid` → `thing1`.
pub(super) fn named_field(errmsg: &str) -> Option<String> {
    let rest = &errmsg[errmsg.find("data.")? + "data.".len()..];
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    (end > 0).then(|| rest[..end].to_owned())
}

/// One page of the follower list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowerPage {
    /// Followers now, as WeChat counts them; moves while the list is walked, never a reason to stop.
    pub total: Option<u64>,
    /// Entries of this page, as WeChat counts them.
    pub count: u64,
    /// Trimmed, without blanks: each is there.
    pub openids: Texts,
    /// What to ask the next page with.
    pub next_openid: Option<OpenId>,
    /// Whether this page ends the list, as far as one page can tell. A walk must also stop at a cursor it has seen.
    pub is_last: bool,
}

#[derive(Deserialize)]
pub(super) struct FollowerAnswer {
    #[serde(default, deserialize_with = "number")]
    errcode: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    errmsg: Option<String>,
    #[serde(default, deserialize_with = "number")]
    total: Option<i64>,
    #[serde(default, deserialize_with = "number")]
    count: Option<i64>,
    #[serde(default)]
    data: Option<FollowerData>,
    #[serde(default)]
    next_openid: TrimmedId,
}

#[derive(Deserialize)]
struct FollowerData {
    #[serde(default)]
    openid: Ids,
}

impl Answer for FollowerAnswer {
    fn read(body: &[u8]) -> serde_json::Result<Self> {
        let Some(quick::Page { total, count, openids, listed, next_openid }) = quick::page(body) else {
            return serde_json::from_slice(body);
        };
        let data = Some(FollowerData { openid: Ids { ids: openids, listed } });
        Ok(Self { errcode: None, errmsg: None, total, count, data, next_openid: TrimmedId(next_openid) })
    }

    fn envelope(&self) -> (Option<i64>, Option<&str>) {
        (self.errcode, self.errmsg.as_deref())
    }
}

impl FollowerAnswer {
    /// `after`: the cursor this page was asked with.
    pub fn into_page(self, after: Option<&OpenId>) -> FollowerPage {
        let Ids { ids, listed } = self.data.map(|data| data.openid).unwrap_or_default();
        let listed_count = u64::try_from(listed).unwrap_or(u64::MAX);
        let count = self.count.and_then(|count| u64::try_from(count).ok()).unwrap_or(listed_count);
        let next_openid = self.next_openid.0.map(OpenId::new);
        let is_last = count == 0 || listed == 0 || next_openid.is_none() || next_openid.as_ref() == after;
        FollowerPage {
            total: self.total.and_then(|total| u64::try_from(total).ok()),
            count,
            openids: ids,
            next_openid,
            is_last,
        }
    }
}

/// A person as an Official Account sees them. Everything but the openid may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub openid: OpenId,
    /// Missing proves nothing: some answers leave out what is known.
    pub unionid: Option<UnionId>,
    pub subscribe: bool,
    /// Seconds since 1970, the last time they followed.
    pub subscribe_time: Option<i64>,
    pub subscribe_scene: Option<String>,
    pub qr_scene: Option<i64>,
    pub qr_scene_str: Option<String>,
    pub tagid_list: Vec<i64>,
    pub language: Option<String>,
    pub remark: Option<String>,
    pub groupid: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct ProfileAnswer {
    #[serde(default, deserialize_with = "number")]
    errcode: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    errmsg: Option<String>,
    #[serde(default)]
    openid: TrimmedId,
    #[serde(default)]
    unionid: TrimmedId,
    #[serde(default, deserialize_with = "number")]
    subscribe: Option<i64>,
    #[serde(default, deserialize_with = "number")]
    subscribe_time: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    subscribe_scene: Option<String>,
    #[serde(default, deserialize_with = "number")]
    qr_scene: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    qr_scene_str: Option<String>,
    #[serde(default)]
    tagid_list: List<LooseNumber>,
    #[serde(default, deserialize_with = "text")]
    language: Option<String>,
    #[serde(default, deserialize_with = "text")]
    remark: Option<String>,
    #[serde(default, deserialize_with = "number")]
    groupid: Option<i64>,
}

impl ProfileAnswer {
    fn push_to(&self, profiles: &mut Profiles) {
        let tags: Vec<i64> = self.tagid_list.0.iter().filter_map(|tag| tag.0).collect();
        profiles.push_row(&ProfileRow {
            openid: self.openid.0.as_deref(),
            unionid: self.unionid.0.as_deref(),
            subscribe: self.subscribe,
            subscribe_time: self.subscribe_time,
            subscribe_scene: self.subscribe_scene.as_deref(),
            qr_scene: self.qr_scene,
            qr_scene_str: self.qr_scene_str.as_deref(),
            tagid_list: Some(&tag_list(&tags)),
            language: self.language.as_deref(),
            remark: self.remark.as_deref(),
            groupid: self.groupid,
        });
    }

    /// `None` without an openid.
    pub fn into_profile(self) -> Option<Profile> {
        Some(Profile {
            openid: OpenId::new(self.openid.0?),
            unionid: self.unionid.0.map(UnionId::new),
            subscribe: self.subscribe == Some(1),
            subscribe_time: self.subscribe_time,
            subscribe_scene: self.subscribe_scene,
            qr_scene: self.qr_scene,
            qr_scene_str: self.qr_scene_str,
            tagid_list: self.tagid_list.0.into_iter().filter_map(|tag| tag.0).collect(),
            language: self.language,
            remark: self.remark,
            groupid: self.groupid,
        })
    }
}

/// Profiles in the order WeChat gave them; one may lack its openid.
pub(super) struct BatchAnswer {
    errcode: Option<i64>,
    errmsg: Option<String>,
    pub profiles: Profiles,
}

#[derive(Deserialize)]
struct LooseBatch {
    #[serde(default, deserialize_with = "number")]
    errcode: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    errmsg: Option<String>,
    #[serde(default)]
    user_info_list: List<ProfileAnswer>,
}

impl Answer for BatchAnswer {
    fn read(body: &[u8]) -> serde_json::Result<Self> {
        if let Some(profiles) = quick::profiles(body) {
            return Ok(Self { errcode: None, errmsg: None, profiles });
        }
        let LooseBatch { errcode, errmsg, user_info_list } = serde_json::from_slice(body)?;
        let mut profiles = Profiles::with_capacity(user_info_list.0.len());
        user_info_list.0.iter().for_each(|answer| answer.push_to(&mut profiles));
        Ok(Self { errcode, errmsg, profiles })
    }

    fn envelope(&self) -> (Option<i64>, Option<&str>) {
        (self.errcode, self.errmsg.as_deref())
    }
}

/// A message template of the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub template_id: TemplateId,
    pub title: String,
    pub content: String,
    pub example: String,
    /// The keys of `content`, in its order, without `.DATA`.
    pub fields: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct TemplatesAnswer {
    #[serde(default, deserialize_with = "number")]
    errcode: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    errmsg: Option<String>,
    #[serde(default)]
    template_list: List<TemplateEntry>,
}

#[derive(Deserialize)]
struct TemplateEntry {
    #[serde(default)]
    template_id: TrimmedId,
    #[serde(default, deserialize_with = "text")]
    title: Option<String>,
    #[serde(default, deserialize_with = "text")]
    content: Option<String>,
    #[serde(default, deserialize_with = "text")]
    example: Option<String>,
}

impl TemplatesAnswer {
    pub fn into_templates(self) -> Vec<Template> {
        let entries = self.template_list.0.into_iter();
        entries
            .filter_map(|entry| {
                let content = entry.content.unwrap_or_default();
                Some(Template {
                    template_id: TemplateId::new(entry.template_id.0?),
                    title: entry.title.unwrap_or_default(),
                    fields: template_fields(&content),
                    content,
                    example: entry.example.unwrap_or_default(),
                })
            })
            .collect()
    }
}

/// The keys of a template's content: `{{thing1.DATA}}`, blanks between the braces allowed, each once, in order.
pub fn template_fields(content: &str) -> Vec<String> {
    let mut fields: Vec<String> = Vec::new();
    let mut pieces = content.split(".DATA").peekable();
    while let Some(before) = pieces.next() {
        let Some(after) = pieces.peek() else { break };
        let head = before.trim_end_matches(|c: char| c.is_ascii_digit());
        let name_start = head.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '_').len();
        let opened =
            before[..name_start].trim_end().strip_suffix('{').is_some_and(|rest| rest.trim_end().ends_with('{'));
        let closed = after.trim_start().strip_prefix('}').is_some_and(|rest| rest.trim_start().starts_with('}'));
        let name = &before[name_start..];
        if opened && closed && name_start < head.len() && !fields.iter().any(|field| field == name) {
            fields.push(name.to_owned());
        }
    }
    fields
}

/// What WeChat says of one call's day. Off by up to one percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaFigure {
    pub daily_limit: u64,
    pub used: u64,
    pub remain: u64,
}

#[derive(Deserialize)]
pub(super) struct QuotaAnswer {
    #[serde(default, deserialize_with = "number")]
    errcode: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    errmsg: Option<String>,
    #[serde(default)]
    quota: Option<QuotaEntry>,
}

#[derive(Deserialize)]
struct QuotaEntry {
    #[serde(default, deserialize_with = "number")]
    daily_limit: Option<i64>,
    #[serde(default, deserialize_with = "number")]
    used: Option<i64>,
    #[serde(default, deserialize_with = "number")]
    remain: Option<i64>,
}

impl QuotaAnswer {
    pub fn into_figure(self) -> Option<QuotaFigure> {
        let quota = self.quota?;
        let whole = |figure: Option<i64>| figure.and_then(|figure| u64::try_from(figure).ok());
        let (daily_limit, used) = (whole(quota.daily_limit)?, whole(quota.used).unwrap_or(0));
        Some(QuotaFigure { daily_limit, used, remain: whole(quota.remain).unwrap_or(daily_limit.saturating_sub(used)) })
    }
}

#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default, deserialize_with = "number")]
    errcode: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    errmsg: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub access_token: Option<String>,
    /// Seconds.
    #[serde(default, deserialize_with = "number")]
    pub expires_in: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct SendAnswer {
    #[serde(default, deserialize_with = "number")]
    pub errcode: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    errmsg: Option<String>,
    /// Needs all 64 bits. What does not fit is left out rather than bent.
    #[serde(default, deserialize_with = "number")]
    pub msgid: Option<i64>,
}

#[cfg(test)]
mod tests;
