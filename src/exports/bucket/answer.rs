//! What an S3 service says in XML: pages of a list, and why it refuses.
//!
//! Elements are known by their names alone: services that speak like S3 differ in the namespace they name. Not here: what is
//! done about it.

use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::Event;

use super::Object;
use crate::clock::Timestamp;
use crate::domain::percent_decoded;

/// Deeper than any answer.
const DEEPEST: usize = 16;

/// A page of a list.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Page {
    pub objects: Vec<Object>,
    /// Where the next page goes on, if there is one.
    pub next: Option<String>,
}

/// Why a service refuses, in its own words.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub code: String,
    pub message: String,
    /// Where the bucket is, should it be elsewhere.
    pub region: Option<String>,
}

/// Reads a page; `None` for what is none.
pub(super) fn page(body: &[u8]) -> Option<Page> {
    let mut found = Page::default();
    let (mut is_list, mut is_list_whole, mut is_encoded, mut is_truncated) = (false, true, false, false);
    let mut object = Draft::default();
    walk(body, &mut |path, text| {
        is_list |= path.first().is_some_and(|root| root == "ListBucketResult");
        match path {
            [_, name] if name == "EncodingType" => is_encoded = text == "url",
            [_, name] if name == "IsTruncated" => is_truncated = text == "true",
            [_, name] if name == "NextContinuationToken" => found.next = Some(text.to_owned()),
            [_, name] if name == "Contents" => match std::mem::take(&mut object).object() {
                Some(object) => found.objects.push(object),
                None => is_list_whole = false,
            },
            [_, parent, name] if parent == "Contents" => object.take(name, text),
            _ => {}
        }
    })?;
    if !(is_list && is_list_whole) {
        return None;
    }
    if is_encoded {
        for object in &mut found.objects {
            // As forms write it: a plus is a space.
            object.key = percent_decoded(&object.key.replace('+', " "));
        }
    }
    found.next = found.next.filter(|_| is_truncated);
    // A page that says there is more and not where would be asked for for ever.
    (found.next.is_some() || !is_truncated).then_some(found)
}

/// What is known of an object before its element ends.
#[derive(Default)]
struct Draft {
    key: Option<String>,
    changed: Option<Timestamp>,
    bytes: Option<u64>,
    etag: Option<String>,
}

impl Draft {
    fn take(&mut self, name: &str, text: &str) {
        match name {
            "Key" => self.key = Some(text.to_owned()),
            "LastModified" => self.changed = chrono::DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc()),
            "Size" => self.bytes = text.parse().ok(),
            "ETag" => self.etag = Some(text.trim_matches('"').to_owned()),
            _ => {}
        }
    }

    fn object(self) -> Option<Object> {
        Some(Object { key: self.key?, changed: self.changed?, bytes: self.bytes?, etag: self.etag? })
    }
}

/// Reads a refusal; without one its texts are empty.
pub(super) fn refusal(body: &[u8]) -> Refusal {
    let mut found = Refusal::default();
    let _ = walk(body, &mut |path, text| match path {
        [_, name] if name == "Code" => text.clone_into(&mut found.code),
        [_, name] if name == "Message" => text.clone_into(&mut found.message),
        [_, name] if name == "Region" => found.region = Some(text.to_owned()),
        _ => {}
    });
    found
}

/// Tells of every element at its end: its path from the root, and its text. `None` for what is no XML.
fn walk(body: &[u8], tell: &mut dyn FnMut(&[String], &str)) -> Option<()> {
    let mut reader = Reader::from_str(std::str::from_utf8(body).ok()?);
    let mut path: Vec<String> = Vec::new();
    let mut text = String::new();
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => {
                path.push(String::from_utf8_lossy(start.local_name().as_ref()).into_owned());
                text.clear();
                if path.len() > DEEPEST {
                    return None;
                }
            }
            Event::Empty(start) => {
                path.push(String::from_utf8_lossy(start.local_name().as_ref()).into_owned());
                tell(&path, "");
                path.pop();
            }
            Event::End(_) => {
                tell(&path, &text);
                path.pop();
                text.clear();
            }
            Event::Text(said) => text.push_str(&said.decode().ok()?),
            Event::CData(said) => text.push_str(&said.decode().ok()?),
            Event::GeneralRef(reference) => match reference.resolve_char_ref().ok()? {
                Some(letter) => text.push(letter),
                None => text.push_str(resolve_xml_entity(&reference.decode().ok()?)?),
            },
            Event::DocType(_) => return None,
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            Event::Eof => return path.is_empty().then_some(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_gives_its_objects_and_where_the_next_one_begins() {
        let body = r#"<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Name>mall</Name><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
            <NextContinuationToken>a&amp;b==</NextContinuationToken>
            <Contents><Key>dt%3D1/%E5%9F%8E+b%2B.csv</Key><LastModified>2026-11-24T02:30:00.000Z</LastModified>
              <ETag>&quot;d41d8&quot;</ETag><Size>12</Size><Owner><ID>x</ID></Owner></Contents>
            </ListBucketResult>"#;
        let found = page(body.as_bytes()).unwrap();
        assert_eq!(found.next.as_deref(), Some("a&b=="));
        let object = &found.objects[0];
        assert_eq!((object.key.as_str(), object.bytes, object.etag.as_str()), ("dt=1/城 b+.csv", 12, "d41d8"));
        assert_eq!(object.changed.to_rfc3339(), "2026-11-24T02:30:00+00:00");
        let plain = "<ListBucketResult><Contents><Key>a%3Db</Key><LastModified>2026-11-24T02:30:00Z</LastModified>\
                     <ETag>x</ETag><Size>1</Size></Contents></ListBucketResult>";
        let found = page(plain.as_bytes()).unwrap();
        assert_eq!(
            (found.objects[0].key.as_str(), found.next),
            ("a%3Db", None),
            "it does not say that keys are encoded"
        );
    }

    #[test]
    fn what_is_no_page_is_none() {
        for body in [
            "",
            "<html>hello</html>",
            "<ListBucketResult>",
            "<!DOCTYPE x><ListBucketResult/>",
            "<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
            "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        ] {
            assert_eq!(page(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn a_refusal_says_code_and_message() {
        let said = refusal(
            b"<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message><BucketName>x</BucketName></Error>",
        );
        assert_eq!(
            (said.code.as_str(), said.message.as_str()),
            ("NoSuchBucket", "The specified bucket does not exist")
        );
        assert_eq!(refusal(b"oops"), Refusal::default());
    }
}
