//! Profiles by the hundred, with the guards that a batch needs.
//!
//! A batch with one bad openid in it has been seen to give everybody after it their neighbour's unionid. So an answer
//! counts only when it holds exactly who was asked for, matched by openid, and no unionid twice; otherwise the batch is
//! split in halves, down to single calls, which are never shifted. Not here: comparing with what is known already.

use std::collections::HashSet;

use super::client::WeChat;
use super::code::CodeClass;
use super::error::WeChatError;
use super::wire::{Profile, ProfileAnswer};
use crate::domain::OpenId;

/// The most that WeChat takes in one call.
const BATCH_SIZE: usize = 100;

/// What became of the people asked for: each is in exactly one of the lists.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ProfileBatch {
    pub profiles: Vec<Profile>,
    /// With the errcode of their single call.
    pub refused: Vec<(OpenId, i64)>,
    /// Answered, but with something that cannot be read even alone.
    pub unreadable: Vec<OpenId>,
    /// Whether any answer failed a guard: unionids of this batch deserve a second look.
    pub suspicious: bool,
}

impl WeChat {
    /// Any number of people, each once, by batches of 100.
    ///
    /// # Errors
    ///
    /// What is not about one person (token, quota, connection) ends the whole; what was fetched by then is dropped.
    pub async fn profiles(&self, openids: &[OpenId]) -> Result<ProfileBatch, WeChatError> {
        let mut seen = HashSet::with_capacity(openids.len());
        let asked: Vec<OpenId> = openids.iter().filter(|openid| seen.insert(*openid)).cloned().collect();
        let mut batch = ProfileBatch::default();
        // Each part is answered, or replaced by smaller ones: at most two calls for each person.
        let mut parts: Vec<&[OpenId]> = asked.chunks(BATCH_SIZE).rev().collect();
        while let Some(part) = parts.pop() {
            if let [openid] = part {
                self.single(openid, &mut batch).await?;
                continue;
            }
            match self.batch(part).await {
                Ok(answers) => match guarded(part, answers) {
                    Some(profiles) => batch.profiles.extend(profiles),
                    None => {
                        batch.suspicious = true;
                        parts.extend(halves(part));
                    }
                },
                Err(WeChatError::Unreadable { .. }) => parts.extend(part.chunks(1).rev()),
                Err(error) if error.class() == Some(CodeClass::Recipient) => parts.extend(halves(part)),
                Err(error) => return Err(error),
            }
        }
        Ok(batch)
    }

    async fn single(&self, openid: &OpenId, batch: &mut ProfileBatch) -> Result<(), WeChatError> {
        match self.profile(openid).await {
            Ok(profile) => batch.profiles.push(profile),
            Err(WeChatError::Refused { class: CodeClass::Recipient, errcode, .. }) => {
                batch.refused.push((openid.clone(), errcode));
            }
            Err(WeChatError::Unreadable { .. }) => batch.unreadable.push(openid.clone()),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn halves(part: &[OpenId]) -> [&[OpenId]; 2] {
    let (first, second) = part.split_at(part.len() / 2);
    [second, first]
}

/// The profiles, if they are exactly those of `asked` and no unionid stands twice among them.
fn guarded(asked: &[OpenId], answers: Vec<ProfileAnswer>) -> Option<Vec<Profile>> {
    if answers.len() != asked.len() {
        return None;
    }
    let profiles: Vec<Profile> = answers.into_iter().map(ProfileAnswer::into_profile).collect::<Option<_>>()?;
    let mut missing: HashSet<&OpenId> = asked.iter().collect();
    let mut unionids = HashSet::with_capacity(profiles.len());
    let sound = profiles.iter().all(|profile| {
        missing.remove(&profile.openid) && profile.unionid.as_ref().is_none_or(|unionid| unionids.insert(unionid))
    });
    sound.then_some(profiles)
}
