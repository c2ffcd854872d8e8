//! Profiles column by column: a batch of a hundred is a dozen buffers, not a thousand texts.

use std::fmt;

use super::wire::Profile;
use crate::domain::Texts;

/// One person of an answer, borrowed from its bytes.
#[derive(Default)]
pub(super) struct ProfileRow<'a> {
    pub openid: Option<&'a str>,
    pub unionid: Option<&'a str>,
    pub subscribe: Option<i64>,
    pub subscribe_time: Option<i64>,
    pub subscribe_scene: Option<&'a str>,
    pub qr_scene: Option<i64>,
    pub qr_scene_str: Option<&'a str>,
    /// As JSON without blanks.
    pub tagid_list: Option<&'a str>,
    pub language: Option<&'a str>,
    pub remark: Option<&'a str>,
    pub groupid: Option<i64>,
}

/// People as an Official Account sees them, each field a column of one length.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Profiles {
    pub openid: Texts,
    /// Missing proves nothing: some answers leave out what is known.
    pub unionid: Texts,
    pub subscribe: Vec<Option<bool>>,
    /// Seconds since 1970, the last time they followed.
    pub subscribe_time: Vec<Option<i64>>,
    pub subscribe_scene: Texts,
    pub qr_scene: Vec<Option<i64>>,
    pub qr_scene_str: Texts,
    /// JSON lists of numbers.
    pub tagid_list: Texts,
    pub language: Texts,
    pub remark: Texts,
    pub groupid: Vec<Option<i64>>,
}

impl Profiles {
    /// Room for `people`.
    pub fn with_capacity(people: usize) -> Self {
        let texts = |bytes| Texts::with_capacity(people, bytes);
        Self {
            openid: texts(28),
            unionid: texts(28),
            subscribe: Vec::with_capacity(people),
            subscribe_time: Vec::with_capacity(people),
            subscribe_scene: texts(20),
            qr_scene: Vec::with_capacity(people),
            qr_scene_str: texts(0),
            tagid_list: texts(3),
            language: texts(5),
            remark: texts(0),
            groupid: Vec::with_capacity(people),
        }
    }

    pub fn len(&self) -> usize {
        self.subscribe.len()
    }

    pub fn is_empty(&self) -> bool {
        self.subscribe.is_empty()
    }

    pub(super) fn push_row(&mut self, row: &ProfileRow<'_>) {
        self.push_all(row, Some(row.subscribe == Some(1)));
    }

    fn push_all(&mut self, row: &ProfileRow<'_>, subscribe: Option<bool>) {
        self.openid.push(row.openid);
        self.unionid.push(row.unionid);
        self.subscribe.push(subscribe);
        self.subscribe_time.push(row.subscribe_time);
        self.subscribe_scene.push(row.subscribe_scene);
        self.qr_scene.push(row.qr_scene);
        self.qr_scene_str.push(row.qr_scene_str);
        self.tagid_list.push(row.tagid_list.or(subscribe.map(|_| "[]")));
        self.language.push(row.language);
        self.remark.push(row.remark);
        self.groupid.push(row.groupid);
    }

    pub fn push(&mut self, profile: &Profile) {
        self.push_row(&ProfileRow {
            openid: Some(profile.openid.as_str()),
            unionid: profile.unionid.as_ref().map(|unionid| unionid.as_str()),
            subscribe: Some(i64::from(profile.subscribe)),
            subscribe_time: profile.subscribe_time,
            subscribe_scene: profile.subscribe_scene.as_deref(),
            qr_scene: profile.qr_scene,
            qr_scene_str: profile.qr_scene_str.as_deref(),
            tagid_list: Some(&tag_list(&profile.tagid_list)),
            language: profile.language.as_deref(),
            remark: profile.remark.as_deref(),
            groupid: profile.groupid,
        });
    }

    /// Somebody of whom nothing but the openid is known.
    pub fn push_unknown(&mut self, openid: &str) {
        self.push_all(&ProfileRow { openid: Some(openid), ..ProfileRow::default() }, None);
    }

    /// The people of `more` after those that are here.
    pub fn append(&mut self, more: &Self) {
        self.openid.append(&more.openid);
        self.unionid.append(&more.unionid);
        self.subscribe.extend_from_slice(&more.subscribe);
        self.subscribe_time.extend_from_slice(&more.subscribe_time);
        self.subscribe_scene.append(&more.subscribe_scene);
        self.qr_scene.extend_from_slice(&more.qr_scene);
        self.qr_scene_str.append(&more.qr_scene_str);
        self.tagid_list.append(&more.tagid_list);
        self.language.append(&more.language);
        self.remark.append(&more.remark);
        self.groupid.extend_from_slice(&more.groupid);
    }

    /// Openid and unionid of each.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = (Option<&str>, Option<&str>)> {
        self.openid.iter().zip(self.unionid.iter())
    }
}

impl fmt::Debug for Profiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Profiles({})", self.len())
    }
}

pub(super) fn tag_list(tags: &[i64]) -> String {
    let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
    format!("[{}]", tags.join(","))
}
