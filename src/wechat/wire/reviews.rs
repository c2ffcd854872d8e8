//! The messages that the platform's review refused: documented as a list, and seen as one object where there is one.

use serde::Deserialize;
use serde_json::Value;

use super::loose::{number, text};
use crate::domain::OpenId;

/// A message that was under review and was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedMessage {
    pub id: u64,
    pub openid: OpenId,
    /// Seconds since 1970; `None`: not said.
    pub sent_at_seconds: Option<i64>,
}

#[derive(Deserialize)]
pub(in super::super) struct BlockedAnswer {
    #[serde(default, deserialize_with = "number")]
    pub(super) errcode: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    pub(super) errmsg: Option<String>,
    #[serde(default)]
    msginfo: Value,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default, deserialize_with = "number")]
    id: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    openid: Option<String>,
    #[serde(default, deserialize_with = "number")]
    send_timestamp: Option<i64>,
}

impl BlockedAnswer {
    /// The messages, and how many entries there were with those that cannot be read.
    pub fn into_messages(self) -> (Vec<BlockedMessage>, usize) {
        let entries: Vec<Value> = match self.msginfo {
            Value::Array(entries) => entries,
            Value::Object(one) if one.contains_key("openid") => vec![Value::Object(one)],
            // An object of objects.
            Value::Object(all) => all.into_iter().map(|(_, entry)| entry).filter(Value::is_object).collect(),
            _ => Vec::new(),
        };
        let listed = entries.len();
        let messages = entries.into_iter().filter_map(|entry| {
            let entry: Entry = serde_json::from_value(entry).ok()?;
            let openid = entry.openid.map(|openid| openid.trim().to_owned()).filter(|openid| !openid.is_empty())?;
            Some(BlockedMessage {
                id: u64::try_from(entry.id?).ok()?,
                openid: OpenId::new(openid),
                sent_at_seconds: entry.send_timestamp,
            })
        });
        (messages.collect(), listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> (Vec<BlockedMessage>, usize) {
        serde_json::from_str::<BlockedAnswer>(body).unwrap().into_messages()
    }

    #[test]
    fn refused_messages_come_as_a_list_as_an_object_or_not_at_all() {
        let one = BlockedMessage { id: 7, openid: OpenId::new("oA"), sent_at_seconds: Some(1_700_000_000) };
        let entry = r#"{"id":7,"tmpl_msg_id":"t","title":"","content":"","send_timestamp":1700000000,"openid":" oA"}"#;
        assert_eq!(read(&format!(r#"{{"errcode":0,"msginfo":[{entry}]}}"#)), (vec![one.clone()], 1));
        assert_eq!(read(&format!(r#"{{"errcode":0,"msginfo":{entry}}}"#)), (vec![one.clone()], 1));
        assert_eq!(read(&format!(r#"{{"errcode":0,"msginfo":{{"0":{entry}}}}}"#)), (vec![one], 1));
        let bare = BlockedMessage { id: 8, openid: OpenId::new("oB"), sent_at_seconds: None };
        assert_eq!(read(r#"{"msginfo":[{"id":"8","openid":"oB"},{"id":9},{"openid":"oC"}]}"#), (vec![bare], 3));
        for body in [r#"{"errcode":0}"#, r#"{"msginfo":null}"#, r#"{"msginfo":{}}"#, r#"{"msginfo":[]}"#] {
            assert_eq!(read(body), (Vec::new(), 0), "{body}");
        }
    }
}
