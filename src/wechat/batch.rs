//! Profiles by the hundred, with the guards that a batch needs.
//!
//! A batch with one bad openid in it has been seen to give everybody after it their neighbour's unionid. So an answer
//! counts only when it holds nobody but who was asked for, matched by openid, and no unionid twice; otherwise the batch is
//! split in halves, down to single calls, which are never shifted. Whoever is missing from an answer is asked for singly.
//! Not here: which batches are looked at once more ([`WeChat::confirms`]), and comparing with what is known already.

use std::borrow::Cow;

use super::client::WeChat;
use super::code::CodeClass;
use super::error::WeChatError;
use super::profiles::Profiles;
use crate::domain::{OpenId, QuickSet, UnionId, surely_differ};

/// The most that WeChat takes in one call.
const BATCH_SIZE: usize = 100;

/// What became of the people asked for: each is in exactly one of the lists.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ProfileBatch {
    pub profiles: Profiles,
    /// With the errcode of their single call.
    pub refused: Vec<(OpenId, i64)>,
    /// Answered, but with something that cannot be read even alone.
    pub unreadable: Vec<OpenId>,
    /// Whether any answer failed a guard: unionids of this batch deserve a second look.
    pub suspicious: bool,
}

/// One claim of a batch that a single call can confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub openid: OpenId,
    pub unionid: Option<UnionId>,
}

impl ProfileBatch {
    /// The claim that a shift would have made wrong most surely: a shift begins at the bad openid and reaches to the end,
    /// where it leaves nothing; so the last of those asked for to whom the answer gives a unionid.
    pub fn claim(&self, asked: &[OpenId]) -> Option<Claim> {
        let told = |openid: &OpenId| {
            self.profiles.ids().find(|(own, _)| *own == Some(openid.as_str())).and_then(|(_, unionid)| unionid)
        };
        let last = asked.iter().rev().find_map(|openid| Some((openid, told(openid)?)));
        let (openid, unionid) =
            last.map(|(openid, unionid)| (openid, Some(unionid))).or(Some((asked.last()?, None)))?;
        Some(Claim { openid: openid.clone(), unionid: unionid.map(UnionId::new) })
    }
}

impl ProfileBatch {
    /// The last of those asked for, where the answer gives them no unionid though they follow and most others have one: what
    /// a shift leaves at the end of a batch. Nothing is wrong with most of them, but a single call tells.
    pub fn bereft(&self, asked: &[OpenId]) -> Option<Claim> {
        let last = asked.last()?;
        let without = self.profiles.unionid.iter().filter(Option::is_none).count();
        if asked.len() < 2 || without * 5 > self.profiles.len() {
            return None;
        }
        let own = self.profiles.ids().position(|(openid, _)| openid == Some(last.as_str()))?;
        let has_unionid = self.profiles.unionid.iter().nth(own).flatten().is_some();
        let is_bereft = !has_unionid && self.profiles.subscribe.get(own) == Some(&Some(true));
        is_bereft.then(|| Claim { openid: last.clone(), unionid: None })
    }
}

/// What an answer is worth.
enum Worth {
    Whole,
    /// Right as far as it goes; these are missing.
    Short(Vec<OpenId>),
    /// Somebody who was not asked for, or a unionid twice.
    Nothing,
}

impl WeChat {
    /// Any number of people, by batches of 100. Whoever stands twice in one is asked for twice, singly.
    ///
    /// # Errors
    ///
    /// What is not about one person (token, quota, connection) ends the whole; what was fetched by then is dropped.
    pub async fn profiles(&self, openids: &[OpenId]) -> Result<ProfileBatch, WeChatError> {
        let mut batch = ProfileBatch::default();
        // Each part is answered, or replaced by smaller ones: at most two calls for each person.
        let mut parts: Vec<Cow<'_, [OpenId]>> = openids.chunks(BATCH_SIZE).rev().map(Cow::Borrowed).collect();
        while let Some(part) = parts.pop() {
            if let [openid] = &*part {
                self.single(openid, &mut batch).await?;
                continue;
            }
            match self.batch(&part).await {
                Ok(answer) => match worth(&part, &answer) {
                    Worth::Whole => batch.take(answer),
                    Worth::Short(missing) if self.confirms_short(&part, &answer).await? => {
                        batch.take(answer);
                        parts.extend(missing.into_iter().rev().map(|openid| Cow::Owned(vec![openid])));
                    }
                    Worth::Short(_) => {
                        batch.suspicious = true;
                        parts.extend(pieces(&part, 1));
                    }
                    Worth::Nothing => {
                        batch.suspicious = true;
                        parts.extend(pieces(&part, part.len().div_ceil(2)));
                    }
                },
                Err(WeChatError::Unreadable { .. }) => parts.extend(pieces(&part, 1)),
                Err(error) if error.class() == Some(CodeClass::Recipient) => {
                    parts.extend(pieces(&part, part.len().div_ceil(2)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(batch)
    }

    /// Whether a single call, which is never shifted, says what a batch said of somebody.
    ///
    /// # Errors
    ///
    /// As [`WeChat::profiles`].
    pub async fn confirms(&self, claim: &Claim) -> Result<bool, WeChatError> {
        match self.profile(&claim.openid).await {
            Ok(profile) => Ok(profile.unionid == claim.unionid),
            Err(WeChatError::Refused { class: CodeClass::Recipient, .. }) => Ok(false),
            // Says nothing of unionids.
            Err(WeChatError::Unreadable { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Somebody is missing because their openid was not taken, most likely: what a shift has been seen to come with.
    async fn confirms_short(&self, asked: &[OpenId], answer: &Profiles) -> Result<bool, WeChatError> {
        let short = ProfileBatch { profiles: answer.clone(), ..ProfileBatch::default() };
        match short.claim(asked) {
            Some(claim) if claim.unionid.is_some() => self.confirms(&claim).await,
            _ => Ok(true),
        }
    }

    async fn single(&self, openid: &OpenId, batch: &mut ProfileBatch) -> Result<(), WeChatError> {
        match self.profile(openid).await {
            Ok(profile) => batch.profiles.push(&profile),
            Err(WeChatError::Refused { class: CodeClass::Recipient, errcode, .. }) => {
                batch.refused.push((openid.clone(), errcode));
            }
            Err(WeChatError::Unreadable { .. }) => batch.unreadable.push(openid.clone()),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl ProfileBatch {
    fn take(&mut self, answer: Profiles) {
        if self.profiles.is_empty() { self.profiles = answer } else { self.profiles.append(&answer) }
    }
}

/// `part` in pieces of `size`, the first one last.
fn pieces<'a>(part: &Cow<'a, [OpenId]>, size: usize) -> Vec<Cow<'a, [OpenId]>> {
    match part {
        Cow::Borrowed(part) => part.chunks(size).rev().map(Cow::Borrowed).collect(),
        Cow::Owned(part) => part.chunks(size).rev().map(|piece| Cow::Owned(piece.to_vec())).collect(),
    }
}

/// Whether the answer holds nobody but those of `asked`, each once, and no unionid twice.
fn worth(asked: &[OpenId], answer: &Profiles) -> Worth {
    if answer.is_empty() || answer.len() > asked.len() {
        return Worth::Nothing;
    }
    // As it nearly always is: each of those asked, in the order they were asked, and nobody's unionid twice.
    if answer.openid.iter().eq(asked.iter().map(|openid| Some(openid.as_str())))
        && surely_differ(answer.ids().filter_map(|(openid, unionid)| unionid.or(openid)))
    {
        return Worth::Whole;
    }
    let mut missing: QuickSet<&str> = asked.iter().map(OpenId::as_str).collect();
    let mut unionids = QuickSet::default();
    let is_sound = answer.ids().all(|(openid, unionid)| {
        openid.is_some_and(|openid| missing.remove(openid)) && unionid.is_none_or(|unionid| unionids.insert(unionid))
    });
    match (is_sound, missing.is_empty()) {
        (false, _) => Worth::Nothing,
        (true, true) => Worth::Whole,
        (true, false) => {
            Worth::Short(asked.iter().filter(|openid| missing.contains(openid.as_str())).cloned().collect())
        }
    }
}
