//! Spot checks: a batch may have shifted without a trace in it, everybody given the unionid of the one behind.
//!
//! A shift reaches to the end of its batch and leaves the last person without a unionid: whoever is last and has none is
//! asked for once more, singly, and so is one claim of each [`EVERY`]-th batch. When it is not confirmed, that batch and its
//! neighbours are asked again singly, every other batch since the last sound one is looked at too, and so is every batch
//! from then on, until [`EVERY`] in a row are sound.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::domain::OpenId;
use crate::wechat::{Claim, ProfileBatch, ShortAnswer};

/// Batches to a spot check: 1 call in 60 more, under 2 %, beside one for each batch whose last person has no unionid.
pub const EVERY: u64 = 60;

/// A call that is owed to earlier answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Owed {
    /// Look whether the batch of this number told the truth.
    Confirm { number: u64, claim: Claim },
    /// Ask singly: what was told of them before is not believed.
    Again(OpenId),
    /// Ask for people of whom nothing was told that counts: a piece of a batch.
    Piece(Vec<OpenId>),
    /// Look whether the answer to the batch of this number, which lacks people, is right as far as it goes.
    Short { number: u64, claim: Claim, short: Box<ShortAnswer> },
}

#[derive(Default)]
pub struct Spot {
    /// Answers since the last sound check, by the number of their batch.
    unchecked: BTreeMap<u64, (Vec<OpenId>, Option<Claim>)>,
    /// Neighbours of a wrong batch that are not answered yet.
    distrusted: HashSet<u64>,
    /// Batches to look at before things are as usual again.
    watched: u64,
    /// Batches since the last spot check.
    since_checked: u64,
    pub owed: VecDeque<Owed>,
}

impl Spot {
    /// Takes note of the answer to batch `number`, one more for each that is asked for. `false`: it is not to be believed, and
    /// is asked for again.
    pub fn note(&mut self, number: u64, asked: Vec<OpenId>, answer: &ProfileBatch) -> bool {
        if self.distrusted.remove(&number) {
            self.owed.extend(asked.into_iter().map(Owed::Again));
            return false;
        }
        let claim = answer.claim(&asked);
        if self.watched == 0 {
            self.owed.extend(answer.bereft(&asked).map(|claim| Owed::Confirm { number, claim }));
        }
        self.since_checked += 1;
        if let Some(claim) = claim.as_ref().filter(|_| self.watched > 0 || self.since_checked >= EVERY) {
            self.since_checked = 0;
            self.owed.push_back(Owed::Confirm { number, claim: claim.clone() });
        }
        self.unchecked.insert(number, (asked, claim));
        true
    }

    /// What came of a check of `claim`; gives those whose answers are taken back.
    pub fn judge(&mut self, number: u64, claim: &Claim, is_true: bool) -> Vec<OpenId> {
        if is_true {
            if self.watched == 0 && claim.unionid.is_none() {
                // Who has no unionid has none in a shifted batch either: no proof that it is sound.
            } else if self.watched == 0 {
                // What was answered up to here is taken for sound.
                self.unchecked = self.unchecked.split_off(&(number + 1));
            } else {
                self.watched -= 1;
                self.unchecked.remove(&number);
            }
            return Vec::new();
        }
        let mut wrong = Vec::new();
        for neighbour in number.saturating_sub(1)..=number + 1 {
            match self.unchecked.remove(&neighbour) {
                Some((asked, _)) => wrong.extend(asked),
                None if neighbour > number => {
                    self.distrusted.insert(neighbour);
                }
                None => {}
            }
        }
        if self.watched == 0 {
            let others = self.unchecked.iter().filter_map(|(number, (_, claim))| Some((*number, claim.clone()?)));
            self.owed.extend(others.map(|(number, claim)| Owed::Confirm { number, claim }));
        }
        self.watched = EVERY;
        self.owed.extend(wrong.iter().cloned().map(Owed::Again));
        wrong
    }

    /// When nothing more can be asked: everybody in doubt, if anything was wrong.
    pub fn give_up(&mut self) -> Vec<OpenId> {
        if self.watched == 0 {
            return Vec::new();
        }
        let again = self.owed.drain(..).filter_map(|owed| match owed {
            Owed::Again(openid) => Some(openid),
            Owed::Confirm { .. } | Owed::Piece(_) | Owed::Short { .. } => None,
        });
        again.chain(std::mem::take(&mut self.unchecked).into_values().flat_map(|(asked, _)| asked)).collect()
    }

    /// When asking breaks off: those of whom nothing is recorded are found by whoever looks next for people to ask for.
    pub fn forget_unrecorded(&mut self) {
        self.owed.retain(|owed| matches!(owed, Owed::Confirm { .. } | Owed::Again(_)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::UnionId;
    use crate::wechat::Profiles;

    fn batch(number: u64) -> (Vec<OpenId>, ProfileBatch) {
        let openid = format!("o{number}");
        let mut profiles = Profiles::default();
        profiles.push_unknown(&openid);
        (vec![OpenId::new(openid)], ProfileBatch { profiles, ..ProfileBatch::default() })
    }

    fn claim(number: u64) -> Claim {
        Claim { openid: OpenId::new(format!("o{number}")), unionid: Some(UnionId::new("u")) }
    }

    fn note(spot: &mut Spot, number: u64) -> bool {
        let (asked, answer) = batch(number);
        spot.note(number, asked, &answer)
    }

    fn numbers(spot: &mut Spot) -> (Vec<u64>, Vec<String>) {
        let (mut confirmed, mut again) = (Vec::new(), Vec::new());
        for owed in spot.owed.drain(..) {
            match owed {
                Owed::Confirm { number, .. } => confirmed.push(number),
                Owed::Again(openid) => again.push(openid.as_str().to_owned()),
                Owed::Piece(_) | Owed::Short { .. } => panic!("no batch was split"),
            }
        }
        (confirmed, again)
    }

    #[test]
    fn sound_batches_cost_one_call_in_sixty_and_are_forgotten() {
        let mut spot = Spot::default();
        for number in 1..=600 {
            assert!(note(&mut spot, number));
            let (confirmed, again) = numbers(&mut spot);
            assert_eq!((confirmed.len(), again.len()), (usize::from(number % EVERY == 0), 0));
            for number in confirmed {
                assert!(spot.judge(number, &claim(number), true).is_empty());
                assert!(spot.unchecked.is_empty());
            }
        }
    }

    #[test]
    fn a_wrong_batch_takes_its_neighbours_with_it_and_everybody_around_is_looked_at() {
        let mut spot = Spot::default();
        for number in 1..=60 {
            note(&mut spot, number);
        }
        assert_eq!(numbers(&mut spot).0, [60]);
        note(&mut spot, 62);
        assert_eq!(spot.judge(60, &claim(60), false), [OpenId::new("o59"), OpenId::new("o60")]);
        let (confirmed, again) = numbers(&mut spot);
        assert_eq!(confirmed, (1..=58).chain([62]).collect::<Vec<_>>());
        assert_eq!(again, ["o59", "o60"]);
        assert!(!note(&mut spot, 61), "the neighbour that comes later is not believed either");
        assert_eq!(numbers(&mut spot), (vec![], vec!["o61".to_owned()]));
        for number in (1..=58).chain([62]) {
            spot.judge(number, &claim(number), true);
        }
        assert!(note(&mut spot, 63));
        assert_eq!(numbers(&mut spot).0, [63], "as every batch from then on");
        spot.judge(63, &claim(63), true);
        note(&mut spot, 64);
        assert_eq!(numbers(&mut spot).0.len(), 0, "sixty in a row were sound");
    }

    #[test]
    fn whoever_is_last_and_has_no_unionid_where_others_have_is_looked_at_and_proves_nothing_when_right() {
        let asked: Vec<OpenId> = (0..10).map(|number| OpenId::new(format!("o{number}"))).collect();
        let answer = |without: &[usize]| {
            let mut profiles = Profiles::default();
            for (number, openid) in asked.iter().enumerate() {
                profiles.openid.push(Some(openid.as_str()));
                let unionid = format!("u{number}");
                profiles.unionid.push((!without.contains(&number)).then_some(unionid.as_str()));
                profiles.subscribe.push(Some(true));
            }
            ProfileBatch { profiles, ..ProfileBatch::default() }
        };
        for (without, looked_at) in [(vec![], 0), (vec![3], 0), (vec![9], 1), (vec![4, 9], 1), (vec![3, 4, 9], 0)] {
            let mut spot = Spot::default();
            spot.note(7, asked.clone(), &answer(&without));
            assert_eq!(numbers(&mut spot).0.len(), looked_at, "{without:?}");
        }
        let mut spot = Spot::default();
        spot.note(7, asked.clone(), &answer(&[9]));
        let suspect = Claim { openid: asked[9].clone(), unionid: None };
        assert!(spot.judge(7, &suspect, true).is_empty() && spot.unchecked.len() == 1);
        assert_eq!(spot.judge(7, &suspect, false), asked, "everybody of the batch is asked again");
    }
}
