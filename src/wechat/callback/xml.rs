//! The body of a callback, read as what it is: XML from outside.
//!
//! One flat element `xml` with texts in it; what is deeper is passed over. No document type, no entity but the five that
//! XML has itself and numbered characters, and a bound on everything.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesRef, Event};

/// A message with everything that an account's operator may write is far below this.
pub const LARGEST_BODY_BYTES: usize = 64 * 1024;
const DEEPEST: usize = 8;
const MOST_ELEMENTS: usize = 512;

/// What a body must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    #[error("the body is larger than {LARGEST_BODY_BYTES} bytes")]
    TooLarge,
    #[error("the body is no XML in UTF-8")]
    Malformed,
    #[error("the body has a document type, which nothing of WeChat's has")]
    DocumentType,
    #[error("the body has an entity that XML does not know by itself")]
    Entity,
    #[error("the body is deeper than {DEEPEST} elements or has more than {MOST_ELEMENTS}")]
    TooDeep,
    #[error("the body says an element twice that may be there once")]
    Twice,
}

/// The texts of the elements that matter, as they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Texts {
    pub from: Option<String>,
    pub create_time: Option<String>,
    pub msg_type: Option<String>,
    pub event: Option<String>,
    pub event_key: Option<String>,
    pub msg_id: Option<String>,
    pub status: Option<String>,
    pub encrypt: Option<String>,
}

impl Texts {
    /// Names are case-sensitive: `MsgID` is an event's, `MsgId` an ordinary message's.
    fn slot(&mut self, name: &[u8]) -> Option<&mut Option<String>> {
        Some(match name {
            b"FromUserName" => &mut self.from,
            b"CreateTime" => &mut self.create_time,
            b"MsgType" => &mut self.msg_type,
            b"Event" => &mut self.event,
            b"EventKey" => &mut self.event_key,
            b"MsgID" => &mut self.msg_id,
            b"Status" => &mut self.status,
            b"Encrypt" => &mut self.encrypt,
            _ => return None,
        })
    }
}

/// Reads a body.
///
/// # Errors
///
/// [`XmlError`] for what no callback of WeChat's looks like.
pub(super) fn read(body: &[u8]) -> Result<Texts, XmlError> {
    if body.len() > LARGEST_BODY_BYTES {
        return Err(XmlError::TooLarge);
    }
    let body = std::str::from_utf8(body).map_err(|_| XmlError::Malformed)?;
    let mut reader = Reader::from_str(body);
    let mut walk = Walk::default();
    loop {
        match reader.read_event().map_err(|_| XmlError::Malformed)? {
            Event::Start(start) => walk.open(start.name().as_ref())?,
            Event::Empty(start) => {
                walk.open(start.name().as_ref())?;
                walk.close()?;
            }
            Event::End(_) => walk.close()?,
            Event::Text(text) => walk.say(text.decode().map_err(|_| XmlError::Malformed)?)?,
            Event::CData(text) => walk.say(text.decode().map_err(|_| XmlError::Malformed)?)?,
            Event::GeneralRef(reference) => walk.say(resolve(&reference)?)?,
            Event::DocType(_) => return Err(XmlError::DocumentType),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            Event::Eof => return walk.end(),
        }
    }
}

fn resolve(reference: &BytesRef<'_>) -> Result<Cow<'static, str>, XmlError> {
    if let Some(letter) = reference.resolve_char_ref().map_err(|_| XmlError::Entity)? {
        return Ok(Cow::Owned(letter.to_string()));
    }
    let name = reference.decode().map_err(|_| XmlError::Entity)?;
    resolve_xml_entity(&name).map(Cow::Borrowed).ok_or(XmlError::Entity)
}

/// Where the reading stands.
#[derive(Default)]
struct Walk {
    texts: Texts,
    depth: usize,
    elements: usize,
    /// The element of the second level that is open, where it is one that matters.
    open: Option<(Vec<u8>, String)>,
}

impl Walk {
    fn open(&mut self, name: &[u8]) -> Result<(), XmlError> {
        self.depth += 1;
        self.elements += 1;
        if self.depth > DEEPEST || self.elements > MOST_ELEMENTS {
            return Err(XmlError::TooDeep);
        }
        // A second root, or one of another name, is nothing of WeChat's.
        if self.depth == 1 && (name != b"xml" || self.elements > 1) {
            return Err(XmlError::Malformed);
        }
        if self.depth == 2 && self.texts.slot(name).is_some() {
            self.open = Some((name.to_vec(), String::new()));
        }
        Ok(())
    }

    fn say(&mut self, text: Cow<'_, str>) -> Result<(), XmlError> {
        match &mut self.open {
            Some((_, said)) if self.depth == 2 => said.push_str(&text),
            _ if self.depth == 0 && !text.trim().is_empty() => return Err(XmlError::Malformed),
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), XmlError> {
        if self.depth == 2
            && let Some((name, said)) = self.open.take()
            && let Some(slot) = self.texts.slot(&name)
            && slot.replace(said.trim().to_owned()).is_some()
        {
            return Err(XmlError::Twice);
        }
        self.depth = self.depth.checked_sub(1).ok_or(XmlError::Malformed)?;
        Ok(())
    }

    fn end(self) -> Result<Texts, XmlError> {
        if self.depth == 0 && self.elements > 0 { Ok(self.texts) } else { Err(XmlError::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_texts_and_cdata_read_alike_and_what_is_deeper_is_passed_over() {
        let body =
            b"<?xml version=\"1.0\"?>\n<xml><FromUserName><![CDATA[oA]]></FromUserName>\n <CreateTime> 12 </CreateTime>
            <Event><![CDATA[ TEMPLATESENDJOBFINISH ]]></Event><EventKey/><List><Status>inner</Status></List>
            <Status>failed: user &amp; block &#x41;</Status><MsgId>3</MsgId></xml>";
        let texts = read(body).unwrap();
        assert_eq!(texts.from.as_deref(), Some("oA"));
        assert_eq!(texts.create_time.as_deref(), Some("12"));
        assert_eq!(texts.event.as_deref(), Some("TEMPLATESENDJOBFINISH"));
        assert_eq!(texts.event_key.as_deref(), Some(""));
        assert_eq!(texts.status.as_deref(), Some("failed: user & block A"));
        assert_eq!(texts.msg_id, None, "MsgId is another element");
    }

    #[test]
    fn bombs_and_rubbish_are_refused() {
        let deep = format!("<xml>{}{}</xml>", "<a>".repeat(20), "</a>".repeat(20));
        let wide = format!("<xml>{}</xml>", "<a/>".repeat(600));
        let large = format!("<xml><a>{}</a></xml>", "x".repeat(LARGEST_BODY_BYTES));
        for (body, error) in [
            ("<!DOCTYPE xml [<!ENTITY a \"b\">]><xml><Event>&a;</Event></xml>", XmlError::DocumentType),
            ("<!DOCTYPE x SYSTEM \"file:///etc/passwd\"><xml></xml>", XmlError::DocumentType),
            ("<xml><Event>&lol;</Event></xml>", XmlError::Entity),
            ("<xml><Event>&#xFFFFFFFF;</Event></xml>", XmlError::Entity),
            (&deep, XmlError::TooDeep),
            (&wide, XmlError::TooDeep),
            (&large, XmlError::TooLarge),
            ("<xml><Event>a</Event><Event>b</Event></xml>", XmlError::Twice),
            ("", XmlError::Malformed),
            ("{}", XmlError::Malformed),
            ("<xml>", XmlError::Malformed),
            ("<xml></xml><xml></xml>", XmlError::Malformed),
            ("<xml><a></b></xml>", XmlError::Malformed),
            ("<html></html>", XmlError::Malformed),
        ] {
            assert_eq!(read(body.as_bytes()), Err(error), "{}", &body[..body.len().min(80)]);
        }
        assert_eq!(read(b"<xml><Event>\xff</Event></xml>"), Err(XmlError::Malformed));
    }
}
