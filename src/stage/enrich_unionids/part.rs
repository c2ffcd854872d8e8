//! Answers gathered into one part of profiles.

use crate::clock::{Timestamp, to_micros};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, ColumnType, Rows, Values};
use crate::lake::{Lake, LakeError, Part};
use crate::wechat::ProfileBatch;

/// Columns of a part of fetched profiles: those of `profiles`, and the code of an openid that was refused.
pub fn schema() -> Vec<(&'static str, ColumnType)> {
    let mut schema = table_spec("profiles").expect("profiles is declared").part_schema();
    schema.push(("errcode", ColumnType::Integer));
    schema
}

/// Answers, column by column.
pub struct ProfilePart {
    account: AccountName,
    calls: usize,
    openid: Vec<Option<String>>,
    unionid: Vec<Option<String>>,
    missing: Vec<Option<String>>,
    subscribe: Vec<Option<bool>>,
    subscribe_time: Vec<Option<i64>>,
    subscribe_scene: Vec<Option<String>>,
    qr_scene: Vec<Option<i64>>,
    qr_scene_str: Vec<Option<String>>,
    tagid_list: Vec<Option<String>>,
    language: Vec<Option<String>>,
    remark: Vec<Option<String>>,
    groupid: Vec<Option<i64>>,
    fetched_at: Vec<Option<i64>>,
    errcode: Vec<Option<i64>>,
}

impl ProfilePart {
    pub fn new(account: AccountName) -> Self {
        Self {
            account,
            calls: 0,
            openid: Vec::new(),
            unionid: Vec::new(),
            missing: Vec::new(),
            subscribe: Vec::new(),
            subscribe_time: Vec::new(),
            subscribe_scene: Vec::new(),
            qr_scene: Vec::new(),
            qr_scene_str: Vec::new(),
            tagid_list: Vec::new(),
            language: Vec::new(),
            remark: Vec::new(),
            groupid: Vec::new(),
            fetched_at: Vec::new(),
            errcode: Vec::new(),
        }
    }

    pub fn calls(&self) -> usize {
        self.calls
    }

    pub fn is_empty(&self) -> bool {
        self.openid.is_empty()
    }

    /// Takes one answer; `now` is when it came.
    pub fn add(&mut self, answer: ProfileBatch, now: Timestamp) {
        self.calls += 1;
        let now = Some(to_micros(now));
        for profile in answer.profiles {
            let missing = match (&profile.unionid, profile.subscribe) {
                (Some(_), _) => None,
                (None, true) => Some("not_bound"),
                (None, false) => Some("unfollowed"),
            };
            self.openid.push(Some(profile.openid.as_str().to_owned()));
            self.unionid.push(profile.unionid.map(|id| id.as_str().to_owned()));
            self.missing.push(missing.map(str::to_owned));
            self.subscribe.push(Some(profile.subscribe));
            self.subscribe_time.push(profile.subscribe_time.and_then(|seconds| seconds.checked_mul(1_000_000)));
            self.subscribe_scene.push(profile.subscribe_scene);
            self.qr_scene.push(profile.qr_scene);
            self.qr_scene_str.push(profile.qr_scene_str);
            self.tagid_list.push(Some(tag_list(&profile.tagid_list)));
            self.language.push(profile.language);
            self.remark.push(profile.remark);
            self.groupid.push(profile.groupid);
            self.fetched_at.push(now);
            self.errcode.push(None);
        }
        let refused = answer.refused.into_iter().map(|(openid, errcode)| (openid, "error", Some(errcode)));
        // An answer that cannot be read even singly: asked for again on the next night, and never taken for "not asked".
        let unreadable = answer.unreadable.into_iter().map(|openid| (openid, "quarantined", None));
        for (openid, missing, errcode) in refused.chain(unreadable) {
            self.openid.push(Some(openid.as_str().to_owned()));
            self.unionid.push(None);
            self.missing.push(Some(missing.to_owned()));
            self.subscribe.push(None);
            self.subscribe_time.push(None);
            self.subscribe_scene.push(None);
            self.qr_scene.push(None);
            self.qr_scene_str.push(None);
            self.tagid_list.push(None);
            self.language.push(None);
            self.remark.push(None);
            self.groupid.push(None);
            self.fetched_at.push(now);
            self.errcode.push(errcode);
        }
    }

    /// Writes the part; blocking.
    ///
    /// # Errors
    ///
    /// [`LakeError`]; nothing is left under the name then.
    pub fn write(self, lake: &Lake, path: &str) -> Result<Part, LakeError> {
        let count = self.openid.len();
        let mut writer = lake.writer(path, &schema())?;
        let account = self.account.to_string();
        let columns = [
            ("account", Values::Text(vec![Some(account); count])),
            ("openid", Values::Text(self.openid)),
            ("unionid", Values::Text(self.unionid)),
            ("unionid_missing", Values::Text(self.missing)),
            ("subscribe", Values::Boolean(self.subscribe)),
            ("subscribe_time", Values::Timestamp(self.subscribe_time)),
            ("subscribe_scene", Values::Text(self.subscribe_scene)),
            ("qr_scene", Values::Integer(self.qr_scene)),
            ("qr_scene_str", Values::Text(self.qr_scene_str)),
            ("tagid_list", Values::Text(self.tagid_list)),
            ("language", Values::Text(self.language)),
            ("remark", Values::Text(self.remark)),
            ("groupid", Values::Integer(self.groupid)),
            ("fetched_at", Values::Timestamp(self.fetched_at)),
            ("errcode", Values::Integer(self.errcode)),
        ];
        writer
            .write(Rows { columns: columns.into_iter().map(|(name, values)| (name.to_owned(), values)).collect() })?;
        writer.finish()
    }
}

fn tag_list(tags: &[i64]) -> String {
    let mut text = String::from("[");
    for (index, tag) in tags.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&tag.to_string());
    }
    text.push(']');
    text
}
