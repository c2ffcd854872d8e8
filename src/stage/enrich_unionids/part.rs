//! Answers gathered into one part of profiles.

use super::digest::{self, Kinds};
use crate::clock::{Timestamp, to_micros};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, ColumnType, Texts, Values};
use crate::lake::{Lake, LakeError, Part, PartColumn, PartWriter, WholeFile};
use crate::wechat::{ProfileBatch, Profiles};

/// Columns of a part of fetched profiles: those of `profiles`, and whether the answer is that of a single call.
pub fn schema() -> Vec<(&'static str, ColumnType)> {
    let mut schema = table_spec("profiles").expect("profiles is declared").part_schema();
    schema.push(("is_single", ColumnType::Boolean));
    schema
}

/// Answers, column by column.
pub struct ProfilePart {
    account: AccountName,
    calls: usize,
    profiles: Profiles,
    fetched_at: Vec<Option<i64>>,
    errcode: Vec<Option<i64>>,
    is_single: Vec<Option<bool>>,
}

impl ProfilePart {
    /// Room for so many `people`.
    pub fn new(account: AccountName, people: usize) -> Self {
        let profiles = Profiles::with_capacity(people);
        Self {
            account,
            calls: 0,
            profiles,
            fetched_at: Vec::with_capacity(people),
            errcode: Vec::with_capacity(people),
            is_single: Vec::new(),
        }
    }

    pub fn calls(&self) -> usize {
        self.calls
    }

    pub fn is_empty(&self) -> bool {
        self.profiles.is_empty()
    }

    /// Takes one answer; `now` is when it came.
    pub fn add(&mut self, answer: &ProfileBatch, now: Timestamp) {
        self.calls += 1;
        self.profiles.append(&answer.profiles);
        self.errcode.resize(self.profiles.len(), None);
        let refused = answer.refused.iter().map(|(openid, errcode)| (openid, Some(*errcode)));
        for (openid, errcode) in refused.chain(answer.unreadable.iter().map(|openid| (openid, None))) {
            self.profiles.push_unknown(openid.as_str());
            self.errcode.push(errcode);
        }
        if answer.is_single {
            self.is_single.resize(self.fetched_at.len(), None);
            self.is_single.resize(self.profiles.len(), Some(true));
        }
        self.fetched_at.resize(self.profiles.len(), Some(to_micros(now)));
    }

    /// Why a unionid is missing, row by row.
    fn missing(&self) -> Texts {
        let unionids = self.profiles.unionid.iter().zip(&self.profiles.subscribe).zip(&self.errcode);
        unionids
            .map(|((unionid, subscribe), errcode)| match (unionid, subscribe, errcode) {
                (Some(_), _, _) => None,
                (None, Some(true), _) => Some("not_bound"),
                (None, Some(false), _) => Some("unfollowed"),
                (None, None, Some(_)) => Some("error"),
                // An answer that cannot be read even singly: asked for again on the next night, and never taken for
                // "not asked".
                (None, None, None) => Some("quarantined"),
            })
            .collect()
    }

    /// Writes the part without waiting until it is durable; blocking.
    ///
    /// # Errors
    ///
    /// [`LakeError`]; nothing is left under the name then.
    pub fn write_soon(self, lake: &Lake, path: &str) -> Result<(Part, WholeFile), LakeError> {
        self.written(lake, path)?.finish_soon()
    }

    fn written(self, lake: &Lake, path: &str) -> Result<PartWriter, LakeError> {
        let mut writer = lake.writer_of_ids(path, &schema())?;
        let missing = self.missing();
        let mut kinds = Kinds::default();
        for (missing, (subscribe, fetched_at)) in
            missing.iter().zip(self.profiles.subscribe.iter().zip(&self.fetched_at))
        {
            kinds.add(missing, *subscribe, *fetched_at);
        }
        let Self { account, profiles, fetched_at, errcode, mut is_single, .. } = self;
        let micros = |seconds: Option<i64>| seconds.and_then(|seconds| seconds.checked_mul(1_000_000));
        let subscribe_time = profiles.subscribe_time.iter().copied().map(micros).collect();
        let mut columns = vec![
            ("account", PartColumn::Same(account.as_str())),
            ("openid", PartColumn::Texts(&profiles.openid)),
            ("unionid", PartColumn::Texts(&profiles.unionid)),
            ("unionid_missing", PartColumn::Texts(&missing)),
            ("subscribe", PartColumn::Values(Values::Boolean(profiles.subscribe))),
            ("subscribe_time", PartColumn::Values(Values::Timestamp(subscribe_time))),
            ("subscribe_scene", PartColumn::Texts(&profiles.subscribe_scene)),
            ("qr_scene", PartColumn::Values(Values::Integer(profiles.qr_scene))),
            ("qr_scene_str", PartColumn::Texts(&profiles.qr_scene_str)),
            ("tagid_list", PartColumn::Texts(&profiles.tagid_list)),
            ("language", PartColumn::Texts(&profiles.language)),
            ("remark", PartColumn::Texts(&profiles.remark)),
            ("groupid", PartColumn::Values(Values::Integer(profiles.groupid))),
            ("fetched_at", PartColumn::Values(Values::Timestamp(fetched_at))),
        ];
        if errcode.iter().any(Option::is_some) {
            let refusals = errcode.iter().map(|errcode| errcode.map(|_| 1)).collect();
            columns.push(("errcode", PartColumn::Values(Values::Integer(errcode))));
            columns.push(("refusals", PartColumn::Values(Values::Integer(refusals))));
        }
        if !is_single.is_empty() {
            is_single.resize(profiles.openid.len(), None);
            columns.push(("is_single", PartColumn::Values(Values::Boolean(is_single))));
        }
        writer.write_columns(profiles.openid.len(), columns)?;
        let ids = profiles.openid.iter().chain(profiles.unionid.iter()).flatten();
        digest::write(&lake.absolute(path), &kinds, ids)?;
        Ok(writer)
    }
}
