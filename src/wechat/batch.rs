//! Profiles by the hundred, with the guards that a batch needs.
//!
//! A batch with one bad openid in it has been seen to give everybody after it their neighbour's unionid. So an answer
//! counts only when it holds nobody but who was asked for, matched by openid, and no unionid twice; otherwise the batch is
//! to be split in halves, down to single calls, which are never shifted. Whoever is missing from an answer is to be asked
//! for singly. One call at a time is made here, and what must follow it is only said: who asks keeps to a budget, records
//! what came, and may be stopped between any two calls.
//! Not here: which batches are looked at once more ([`WeChat::confirms`]), and comparing with what is known already.

use super::client::WeChat;
use super::code::CodeClass;
use super::error::WeChatError;
use super::profiles::Profiles;
use crate::domain::{OpenId, QuickSet, UnionId, surely_differ};

/// People of a whole batch.
const WHOLE: usize = 100;

/// What became of people asked for: each is in exactly one of the lists.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ProfileBatch {
    pub profiles: Profiles,
    /// With the errcode of their single call.
    pub refused: Vec<(OpenId, i64)>,
    /// Answered, but with something that cannot be read even alone.
    pub unreadable: Vec<OpenId>,
    /// Of one person, by the call that is never shifted.
    pub is_single: bool,
}

/// What one call for several people is worth.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Everybody who was asked for.
    Whole(ProfileBatch),
    /// Right as far as it goes, it seems.
    Short(ShortAnswer),
    /// Nothing: ask again by these pieces.
    Split(Vec<Vec<OpenId>>),
}

/// An answer that lacks people.
#[derive(Debug, PartialEq, Eq)]
pub struct ShortAnswer {
    pub batch: ProfileBatch,
    /// Those of whom it tells, in the order they were asked for.
    pub told: Vec<OpenId>,
    pub missing: Vec<OpenId>,
    /// What a single call must confirm before the answer is believed: somebody is missing because their openid was not
    /// taken, most likely, and that is what a shift has been seen to come with. Nothing where it tells no unionid.
    pub claim: Option<Claim>,
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
        let last = asked.iter().rev().find_map(|openid| Some((openid, self.unionid_of(openid)?)));
        let (openid, unionid) =
            last.map(|(openid, unionid)| (openid, Some(unionid))).or(Some((asked.last()?, None)))?;
        Some(Claim { openid: openid.clone(), unionid: unionid.map(UnionId::new) })
    }

    fn unionid_of(&self, openid: &OpenId) -> Option<&str> {
        self.profiles.ids().find(|(own, _)| *own == Some(openid.as_str())).and_then(|(_, unionid)| unionid)
    }
}

impl ProfileBatch {
    /// The last of those asked for, where the answer gives them no unionid though they follow: what a shift leaves at the end of
    /// a batch. Nothing is wrong with most of them, but a single call tells. Not of a whole batch of which many have none, since
    /// every other call would be such a one then; of few, many say nothing.
    pub fn bereft(&self, asked: &[OpenId]) -> Option<Claim> {
        let without = self.profiles.unionid.iter().filter(Option::is_none).count();
        let is_telling = asked.len() < WHOLE || without * 5 <= self.profiles.len();
        if is_telling { self.ends_without(asked) } else { None }
    }

    fn ends_without(&self, asked: &[OpenId]) -> Option<Claim> {
        let last = asked.last()?;
        if asked.len() < 2 {
            return None;
        }
        let own = self.profiles.ids().position(|(openid, _)| openid == Some(last.as_str()))?;
        let has_unionid = self.profiles.unionid.iter().nth(own).flatten().is_some();
        let is_bereft = !has_unionid && self.profiles.subscribe.get(own) == Some(&Some(true));
        is_bereft.then(|| Claim { openid: last.clone(), unionid: None })
    }
}

impl ProfileBatch {
    /// Who stands at the end of those asked for and has no unionid by the answer, the last first. Where the last one truly has
    /// none, a shift would have handed that to the one before.
    pub fn tail<'a>(&self, asked: &'a [OpenId]) -> impl Iterator<Item = &'a OpenId> {
        asked.iter().rev().take_while(|openid| self.unionid_of(openid).is_none())
    }
}

enum Worth {
    Whole,
    /// Right as far as it goes; these are missing.
    Short(Vec<OpenId>),
    /// Somebody who was not asked for, or a unionid twice.
    Nothing,
}

impl WeChat {
    /// One call for up to a hundred people. Whoever stands twice among them makes the answer worth nothing.
    ///
    /// # Errors
    ///
    /// What is not about one person: token, quota, connection.
    pub async fn profiles(&self, openids: &[OpenId]) -> Result<Answer, WeChatError> {
        if let [openid] = openids {
            return Ok(Answer::Whole(self.single(openid).await?));
        }
        match self.batch(openids).await {
            Ok(profiles) => Ok(judged(openids, ProfileBatch { profiles, ..ProfileBatch::default() })),
            Err(WeChatError::Unreadable { .. }) => Ok(Answer::Split(pieces(openids, 1))),
            Err(error) if error.class() == Some(CodeClass::Recipient) => Ok(Answer::Split(halves(openids))),
            Err(error) => Err(error),
        }
    }

    /// One person, by the call that is never shifted.
    ///
    /// # Errors
    ///
    /// As [`WeChat::profiles`].
    pub async fn single(&self, openid: &OpenId) -> Result<ProfileBatch, WeChatError> {
        let mut batch = ProfileBatch { is_single: true, ..ProfileBatch::default() };
        match self.profile(openid).await {
            Ok(profile) => batch.profiles.push(&profile),
            Err(WeChatError::Refused { class: CodeClass::Recipient, errcode, .. }) => {
                batch.refused.push((openid.clone(), errcode));
            }
            Err(WeChatError::Unreadable { .. }) => batch.unreadable.push(openid.clone()),
            Err(error) => return Err(error),
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
}

/// What an answer to a call for several people means for the next calls.
fn judged(asked: &[OpenId], batch: ProfileBatch) -> Answer {
    match worth(asked, &batch.profiles) {
        Worth::Whole => Answer::Whole(batch),
        Worth::Nothing => Answer::Split(halves(asked)),
        Worth::Short(missing) => {
            let lacking: QuickSet<&str> = missing.iter().map(OpenId::as_str).collect();
            let told = asked.iter().filter(|openid| !lacking.contains(openid.as_str())).cloned().collect();
            let claim = batch.claim(asked).filter(|claim| claim.unionid.is_some());
            Answer::Short(ShortAnswer { batch, told, missing, claim })
        }
    }
}

fn halves(openids: &[OpenId]) -> Vec<Vec<OpenId>> {
    pieces(openids, openids.len().div_ceil(2).max(1))
}

fn pieces(openids: &[OpenId], size: usize) -> Vec<Vec<OpenId>> {
    openids.chunks(size).map(<[OpenId]>::to_vec).collect()
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
