//! What WeChat posts to us: whether it is WeChat's, and what it says.
//!
//! A signature over the token covers timestamp and nonce in every mode; in the sealed modes a second one covers the sealed
//! text, which only the account's key opens, and which names the account's app id at its end. Nothing of a body is
//! believed before that. Whoever stores and answers is elsewhere.

mod xml;

use secrecy::{ExposeSecret as _, SecretString};

use self::xml::Texts;
pub use self::xml::{LARGEST_BODY_BYTES, XmlError};
use super::crypto::{AesKey, is_signature};
use crate::clock::{Timestamp, from_micros};
use crate::domain::OpenId;

/// Seconds that every calendar can hold.
const LATEST_SECOND: i64 = 253_402_300_799;

/// What an account shares with WeChat for its callbacks.
#[derive(Debug)]
pub struct CallbackKeys {
    token: SecretString,
    aes_key: Option<AesKey>,
    app_id: String,
}

/// The query of a callback; what is missing is empty.
#[derive(Debug, Clone, Default)]
pub struct CallbackQuery {
    pub signature: String,
    pub timestamp: String,
    pub nonce: String,
    pub echostr: String,
    pub encrypt_type: String,
    pub msg_signature: String,
}

/// A message that was WeChat's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Posted {
    Event(CallbackEvent),
    /// Something a person wrote, or of a kind that has no event: nothing of ours.
    Other,
}

/// An event as WeChat tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbackEvent {
    pub openid: OpenId,
    pub created_at: Timestamp,
    /// As it is spelled: `subscribe`, `TEMPLATESENDJOBFINISH`.
    pub name: String,
    /// Empty when there is none.
    pub key: String,
    /// 0 when there is none.
    pub msgid: i64,
    /// Of a finish event, as it is spelled.
    pub status: Option<String>,
}

/// Why a callback is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallbackRefused {
    #[error("the signature is not WeChat's")]
    Signature,
    #[error("the message is sealed, and this account has no encoding_aes_key")]
    NoKey,
    #[error("the message was not sealed for this account")]
    Sealed,
    #[error(transparent)]
    Xml(#[from] XmlError),
    #[error("the event lacks a readable {0}")]
    Lacks(&'static str),
}

impl CallbackKeys {
    /// `encoding_aes_key` was checked when the configuration was read; one that cannot be used counts as none.
    pub fn new(app_id: &str, token: SecretString, encoding_aes_key: Option<&SecretString>) -> Self {
        Self { token, aes_key: encoding_aes_key.and_then(AesKey::read), app_id: app_id.to_owned() }
    }

    /// What the check of the address is answered with.
    ///
    /// # Errors
    ///
    /// [`CallbackRefused::Signature`].
    pub fn answer_check<'a>(&self, query: &'a CallbackQuery) -> Result<&'a str, CallbackRefused> {
        self.check_signature(query)?;
        Ok(&query.echostr)
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`CallbackRefused`].
    pub fn open(&self, query: &CallbackQuery, body: &[u8]) -> Result<Posted, CallbackRefused> {
        self.check_signature(query)?;
        let outer = xml::read(body)?;
        let texts = match &outer.encrypt {
            None if query.encrypt_type == "aes" => return Err(CallbackRefused::Sealed),
            None => outer,
            Some(sealed) => match self.unseal(query, sealed) {
                // Both forms in one body, and no key for the sealed one: the open one is as good as in plain mode.
                Err(CallbackRefused::NoKey) if outer.msg_type.is_some() => outer,
                opened => xml::read(&opened?)?,
            },
        };
        read_event(texts)
    }

    fn check_signature(&self, query: &CallbackQuery) -> Result<(), CallbackRefused> {
        let parts = [self.token.expose_secret(), query.timestamp.as_str(), query.nonce.as_str()];
        if is_signature(&query.signature, &parts) { Ok(()) } else { Err(CallbackRefused::Signature) }
    }

    fn unseal(&self, query: &CallbackQuery, sealed: &str) -> Result<Vec<u8>, CallbackRefused> {
        let key = self.aes_key.as_ref().ok_or(CallbackRefused::NoKey)?;
        let parts = [self.token.expose_secret(), query.timestamp.as_str(), query.nonce.as_str(), sealed];
        if !is_signature(&query.msg_signature, &parts) {
            return Err(CallbackRefused::Signature);
        }
        key.open(sealed, &self.app_id).ok_or(CallbackRefused::Sealed)
    }
}

fn read_event(texts: Texts) -> Result<Posted, CallbackRefused> {
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    let Some(msg_type) = text(texts.msg_type) else { return Err(CallbackRefused::Lacks("MsgType")) };
    if msg_type != "event" {
        return Ok(Posted::Other);
    }
    let openid = text(texts.from).ok_or(CallbackRefused::Lacks("FromUserName"))?;
    let seconds = texts.create_time.and_then(|text| text.parse::<i64>().ok());
    let seconds = seconds.filter(|seconds| (0..=LATEST_SECOND).contains(seconds));
    let seconds = seconds.ok_or(CallbackRefused::Lacks("CreateTime"))?;
    let msgid = match text(texts.msg_id) {
        None => 0,
        Some(digits) => digits.parse().ok().filter(|id| *id >= 0).ok_or(CallbackRefused::Lacks("MsgID"))?,
    };
    Ok(Posted::Event(CallbackEvent {
        openid: OpenId::new(openid),
        created_at: from_micros(seconds * 1_000_000),
        name: text(texts.event).ok_or(CallbackRefused::Lacks("Event"))?,
        key: texts.event_key.unwrap_or_default(),
        msgid,
        status: texts.status,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> CallbackKeys {
        CallbackKeys::new("wxapp", SecretString::from("AAAAA"), None)
    }

    fn query() -> CallbackQuery {
        CallbackQuery {
            signature: "f464b24fc39322e44b38aa78f5edd27bd1441696".to_owned(),
            timestamp: "1714036504".to_owned(),
            nonce: "1514711492".to_owned(),
            echostr: "4711".to_owned(),
            ..CallbackQuery::default()
        }
    }

    fn event(inner: &str) -> String {
        format!(
            "<xml><ToUserName>gh</ToUserName><FromUserName>oA</FromUserName><CreateTime>5</CreateTime>{inner}</xml>"
        )
    }

    #[test]
    fn the_check_is_answered_to_whoever_knows_the_token() {
        assert_eq!(keys().answer_check(&query()), Ok("4711"));
        let wrong = CallbackQuery { signature: "6e5aeb0d1a3fd2b2da2d7df6bd0a4ccfaf9b7ce5".to_owned(), ..query() };
        assert_eq!(keys().answer_check(&wrong), Err(CallbackRefused::Signature));
        assert_eq!(keys().open(&wrong, b"<xml/>"), Err(CallbackRefused::Signature));
    }

    #[test]
    fn an_event_is_read_and_a_message_is_none_of_ours() {
        let body = event(
            "<MsgType>event</MsgType><Event>TEMPLATESENDJOBFINISH</Event><MsgID>3264439863978712345</MsgID><Status>success</Status>",
        );
        let Posted::Event(read) = keys().open(&query(), body.as_bytes()).unwrap() else { panic!("no event") };
        assert_eq!((read.msgid, read.status.as_deref()), (3_264_439_863_978_712_345, Some("success")));
        assert_eq!((read.openid.as_str(), read.created_at), ("oA", from_micros(5_000_000)));
        let body = event("<MsgType>text</MsgType><Content>hello</Content><MsgId>9</MsgId>");
        assert_eq!(keys().open(&query(), body.as_bytes()), Ok(Posted::Other));
    }

    #[test]
    fn what_is_missing_or_unreadable_is_named() {
        for (inner, lacks) in [
            ("", "MsgType"),
            ("<MsgType>event</MsgType>", "Event"),
            ("<MsgType>event</MsgType><Event>a</Event><MsgID>x</MsgID>", "MsgID"),
            ("<MsgType>event</MsgType><Event>a</Event><MsgID>9223372036854775808</MsgID>", "MsgID"),
        ] {
            let refused = keys().open(&query(), event(inner).as_bytes());
            assert_eq!(refused, Err(CallbackRefused::Lacks(lacks)), "{inner}");
        }
        let late = event("<MsgType>event</MsgType><Event>a</Event>").replace(">5<", ">99999999999999<");
        assert_eq!(keys().open(&query(), late.as_bytes()), Err(CallbackRefused::Lacks("CreateTime")));
    }

    #[test]
    fn sealed_alone_without_a_key_is_refused_and_both_forms_are_read_in_the_open() {
        let sealed = event("<Encrypt>AAAA</Encrypt>");
        assert_eq!(keys().open(&query(), sealed.as_bytes()), Err(CallbackRefused::NoKey));
        let both = event("<MsgType>event</MsgType><Event>subscribe</Event><Encrypt>AAAA</Encrypt>");
        assert!(matches!(keys().open(&query(), both.as_bytes()), Ok(Posted::Event(_))));
        let said_sealed = CallbackQuery { encrypt_type: "aes".to_owned(), ..query() };
        let plain = event("<MsgType>event</MsgType><Event>subscribe</Event>");
        assert_eq!(keys().open(&said_sealed, plain.as_bytes()), Err(CallbackRefused::Sealed));
    }
}
