//! Spot checks: a batch may have shifted without a trace in it, everybody given the unionid of the one behind.
//!
//! A shift reaches to the end of its batch and leaves the last person without a unionid: whoever is last and has none is
//! asked for once more, singly. Where they truly have none, a shift would have left the one before them without one too: so it
//! goes on up to the first who was given one, or, after [`MOST_OF_TAIL`], with that one. One claim of each [`EVERY`]-th batch is
//! looked at besides. When a claim is not confirmed, that batch and its neighbours are asked again singly, every other batch since
//! the last sound one is looked at too, and so is every batch from then on, until [`EVERY`] in a row are sound.
//!
//! A piece of a batch that could not be believed stands alone: when it is wrong as well, its halves are asked for, and nobody
//! else is suspected of more than before.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::domain::OpenId;
use crate::wechat::{Claim, ProfileBatch, ShortAnswer};

/// Batches to a spot check: 1 call in 60 more, under 2 %, beside one for each batch whose last person has no unionid.
pub const EVERY: u64 = 60;
/// People at the end of a batch who are asked for one after the other, while they truly have no unionid.
const MOST_OF_TAIL: usize = 3;

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

/// Whoever is not believed, since no call was left to look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GivenUp {
    /// They were to be asked one by one.
    pub loose: Vec<OpenId>,
    /// Batches that look shifted.
    pub suspects: Vec<Vec<OpenId>>,
    /// Batches that nothing speaks against but that another one was wrong.
    pub batches: Vec<Vec<OpenId>>,
}

#[derive(Default)]
pub struct Spot {
    /// Answers since the last sound check, by the number of their batch.
    unchecked: BTreeMap<u64, Noted>,
    /// Neighbours of a wrong batch that are not answered yet.
    distrusted: HashSet<u64>,
    /// Batches to look at before things are as usual again.
    watched: u64,
    /// Batches since the last spot check.
    since_checked: u64,
    /// The numbers of pieces of earlier batches.
    pieces: HashSet<u64>,
    pub owed: VecDeque<Owed>,
}

/// An answer.
#[derive(Debug)]
struct Noted {
    asked: Vec<OpenId>,
    claim: Option<Claim>,
    /// It looks shifted, and who could tell is being asked: until then no other batch clears it.
    is_in_question: bool,
    /// Who else has no unionid at its end and is asked for if the one behind them truly has none, the next one last.
    tail: Vec<OpenId>,
    /// They are not all.
    has_longer_tail: bool,
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
        let is_piece = self.pieces.contains(&number);
        let bereft = answer.bereft(&asked).filter(|_| is_piece || self.watched == 0);
        let is_in_question = bereft.is_some();
        if let Some(claim) = bereft {
            let owed = Owed::Confirm { number, claim };
            // Unless it is looked at, a piece is not believed: it goes first.
            if is_piece { self.owed.push_front(owed) } else { self.owed.push_back(owed) }
        }
        self.since_checked += 1;
        if let Some(claim) = claim.as_ref().filter(|_| self.watched > 0 || self.since_checked >= EVERY) {
            self.since_checked = 0;
            self.owed.push_back(Owed::Confirm { number, claim: claim.clone() });
        }
        // The last one is asked for already.
        let mut tail: Vec<OpenId> = answer.tail(&asked).skip(1).take(MOST_OF_TAIL).cloned().collect();
        let has_longer_tail = tail.len() == MOST_OF_TAIL;
        tail.truncate(MOST_OF_TAIL - 1);
        tail.reverse();
        self.unchecked.insert(number, Noted { asked, claim, is_in_question, tail, has_longer_tail });
        true
    }

    /// The batch of this number is a piece of one that could not be believed.
    pub fn stands_alone(&mut self, number: u64) {
        self.pieces.insert(number);
    }

    pub fn is_piece(&self, number: u64) -> bool {
        self.pieces.contains(&number)
    }

    /// What came of a check of `claim`; gives those whose answers are taken back.
    pub fn judge(&mut self, number: u64, claim: &Claim, is_true: bool) -> Vec<OpenId> {
        if is_true {
            self.confirmed(number, claim);
            return Vec::new();
        }
        if self.pieces.remove(&number) {
            let wrong = self.unchecked.remove(&number).map(|noted| noted.asked).unwrap_or_default();
            self.owed.extend(halves(&wrong));
            return wrong;
        }
        let mut wrong = Vec::new();
        for neighbour in number.saturating_sub(1)..=number + 1 {
            match self.unchecked.remove(&neighbour) {
                Some(noted) => wrong.extend(noted.asked),
                None if neighbour > number => {
                    self.distrusted.insert(neighbour);
                }
                None => {}
            }
        }
        if self.watched == 0 {
            let others = self.unchecked.iter().filter_map(|(number, noted)| Some((*number, noted.claim.clone()?)));
            self.owed.extend(others.map(|(number, claim)| Owed::Confirm { number, claim }));
        }
        self.watched = EVERY;
        self.owed.extend(wrong.iter().cloned().map(Owed::Again));
        wrong
    }

    fn confirmed(&mut self, number: u64, claim: &Claim) {
        let Some(own) = self.unchecked.get_mut(&number) else { return };
        let names_others = own.claim.as_ref().filter(|claim| claim.unionid.is_some());
        if claim.unionid.is_none() && (self.watched == 0 || names_others.is_some()) {
            // Who has no unionid has none in a shifted batch either: no proof that it is sound.
            if !own.is_in_question || self.watched > 0 {
                // Where others are watched every batch is looked at by its own claim.
                return;
            }
            let next = own.tail.pop().map(|openid| Claim { openid, unionid: None });
            let next = next.or_else(|| names_others.filter(|_| std::mem::take(&mut own.has_longer_tail)).cloned());
            own.is_in_question = next.is_some();
            if let Some(claim) = next {
                self.owed.push_front(Owed::Confirm { number, claim });
            }
        } else if self.watched == 0 {
            // What was answered up to here is taken for sound.
            self.unchecked.retain(|other, noted| *other > number || (noted.is_in_question && *other != number));
        } else {
            self.watched -= 1;
            self.unchecked.remove(&number);
        }
    }

    /// When nothing more can be asked: everybody in doubt. They are in batches that look shifted and could not be looked at,
    /// and once one was wrong in all that were not.
    pub fn give_up(&mut self) -> GivenUp {
        let mut given_up = GivenUp::default();
        let in_question = self.unchecked.extract_if(.., |_, noted| noted.is_in_question);
        given_up.suspects.extend(in_question.map(|(_, noted)| noted.asked));
        self.owed.retain(|owed| match owed {
            Owed::Again(openid) => {
                given_up.loose.push(openid.clone());
                false
            }
            Owed::Confirm { number, .. } => self.unchecked.contains_key(number),
            Owed::Piece(_) | Owed::Short { .. } => true,
        });
        if self.watched > 0 {
            given_up.batches.extend(std::mem::take(&mut self.unchecked).into_values().map(|noted| noted.asked));
        }
        given_up
    }

    /// The people of whom nothing was told that counts, in the batches that they were to be asked in next.
    pub fn unanswered(&self) -> Vec<Vec<OpenId>> {
        let pieces = self.owed.iter().map(|owed| match owed {
            Owed::Piece(people) => people.clone(),
            Owed::Short { short, .. } => short.told.iter().chain(&short.missing).cloned().collect(),
            Owed::Confirm { .. } | Owed::Again(_) => Vec::new(),
        });
        pieces.filter(|people| !people.is_empty()).collect()
    }

    /// When asking breaks off: those of whom nothing is recorded are found by whoever looks next for people to ask for.
    pub fn forget_unrecorded(&mut self) {
        self.owed.retain(|owed| matches!(owed, Owed::Confirm { .. } | Owed::Again(_)));
    }
}

/// What is owed to people who are asked for anew.
fn halves(people: &[OpenId]) -> Vec<Owed> {
    match people {
        [] => Vec::new(),
        [one] => vec![Owed::Again(one.clone())],
        several => several.chunks(several.len().div_ceil(2)).map(|half| Owed::Piece(half.to_vec())).collect(),
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

    /// What the answer for ten says of the last of them.
    fn claim_of(number: u64) -> Claim {
        let (asked, answer) = ten(number, &[]);
        answer.claim(&asked).unwrap()
    }

    fn claim(number: u64) -> Claim {
        Claim { openid: OpenId::new(format!("o{number}")), unionid: Some(UnionId::new("u")) }
    }

    /// A batch of ten; the answer gives some of them no unionid.
    fn ten(number: u64, without: &[usize]) -> (Vec<OpenId>, ProfileBatch) {
        batch_of(10, number, without)
    }

    fn batch_of(people: usize, number: u64, without: &[usize]) -> (Vec<OpenId>, ProfileBatch) {
        let asked: Vec<OpenId> = (0..people).map(|n| OpenId::new(format!("o{number}-{n}"))).collect();
        let mut profiles = Profiles::default();
        for (n, openid) in asked.iter().enumerate() {
            let unionid = format!("u{number}-{n}");
            profiles.openid.push(Some(openid.as_str()));
            profiles.unionid.push((!without.contains(&n)).then_some(unionid.as_str()));
            profiles.subscribe.push(Some(true));
        }
        (asked, ProfileBatch { profiles, ..ProfileBatch::default() })
    }

    fn note_ten(spot: &mut Spot, number: u64, without: &[usize]) -> Vec<OpenId> {
        let (asked, answer) = ten(number, without);
        assert!(spot.note(number, asked.clone(), &answer));
        asked
    }

    fn nothing_of(openid: &OpenId) -> Claim {
        Claim { openid: openid.clone(), unionid: None }
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
        for (without, looked_at) in [(vec![], 0), (vec![3], 0), (vec![9], 1), (vec![4, 9], 1), (vec![3, 4, 9], 1)] {
            let mut spot = Spot::default();
            note_ten(&mut spot, 7, &without);
            assert_eq!(numbers(&mut spot).0.len(), looked_at, "{without:?}");
        }
        for (without, looked_at) in [(20, 1), (21, 0)] {
            let mut spot = Spot::default();
            let (asked, answer) = batch_of(100, 7, &(100 - without..100).collect::<Vec<_>>());
            spot.note(7, asked, &answer);
            assert_eq!(numbers(&mut spot).0.len(), looked_at, "a whole batch of which many have none says nothing");
        }
        let mut spot = Spot::default();
        let asked = note_ten(&mut spot, 7, &[9]);
        assert!(spot.judge(7, &nothing_of(&asked[9]), true).is_empty() && spot.unchecked.len() == 1);
        assert_eq!(numbers(&mut spot).0, [7], "that one, and no other: the one before has a unionid");
        assert_eq!(spot.judge(7, &nothing_of(&asked[9]), false), asked, "everybody of the batch is asked again");
    }

    #[test]
    fn where_a_last_person_truly_has_none_those_before_are_looked_at_up_to_one_who_was_given_one() {
        for (without, one_by_one) in
            [(&[9][..], &[9][..]), (&[8, 9], &[9, 8]), (&[5, 8, 9], &[9, 8]), (&[6, 7, 8, 9], &[9, 8, 7, 5])]
        {
            let mut spot = Spot::default();
            let (asked, answer) = ten(7, without);
            // As small ones are looked at, whatever they have.
            spot.stands_alone(7);
            spot.note(7, asked.clone(), &answer);
            let mut looked_at = Vec::new();
            while let Some(Owed::Confirm { number: 7, claim }) = spot.owed.pop_front() {
                looked_at.push(asked.iter().position(|openid| *openid == claim.openid).unwrap());
                assert_eq!(claim.unionid.is_some(), claim.openid == asked[5]);
                assert!(spot.judge(7, &claim, true).is_empty());
            }
            assert_eq!(looked_at, one_by_one, "{without:?}");
            assert_eq!(spot.give_up(), GivenUp::default());
        }
    }

    #[test]
    fn a_batch_whose_end_is_not_known_yet_is_cleared_by_no_other_and_not_believed_without_a_call() {
        let mut spot = Spot::default();
        let asked = note_ten(&mut spot, 7, &[8, 9]);
        spot.owed.clear();
        assert!(spot.judge(7, &nothing_of(&asked[9]), true).is_empty());
        note_ten(&mut spot, 8, &[]);
        spot.judge(8, &claim_of(8), true);
        assert_eq!(spot.unchecked.keys().copied().collect::<Vec<_>>(), [7]);
        let given_up = spot.give_up();
        assert_eq!((given_up.suspects, spot.owed.len()), (vec![asked], 0));
    }

    #[test]
    fn a_batch_in_question_is_not_cleared_by_one_that_is_looked_at_meanwhile() {
        let mut spot = Spot::default();
        let asked = note_ten(&mut spot, 7, &[9]);
        note_ten(&mut spot, 8, &[]);
        spot.judge(8, &claim_of(8), true);
        assert_eq!(spot.judge(7, &nothing_of(&asked[9]), false), asked);
    }

    #[test]
    fn a_last_person_who_has_no_unionid_clears_no_batch_that_another_one_has_put_in_doubt() {
        let mut spot = Spot::default();
        let people = [4, 7].map(|number| note_ten(&mut spot, number, &[9]));
        assert_eq!(numbers(&mut spot).0, [4, 7], "both end with somebody who has none");
        assert_eq!(spot.judge(7, &nothing_of(&people[1][9]), false), people[1]);
        let owed: Vec<Owed> = spot.owed.drain(..).collect();
        let Some(Owed::Confirm { number: 4, claim }) = owed.first() else { panic!("{owed:?}") };
        assert_eq!(claim.openid, people[0][8], "a shift has made that one wrong");
        assert!(spot.judge(4, &nothing_of(&people[0][9]), true).is_empty());
        assert_eq!(spot.judge(4, claim, false), people[0], "everybody of it is asked again");
    }

    #[test]
    fn a_piece_that_is_wrong_is_asked_in_halves_and_puts_nobody_else_in_doubt() {
        let mut spot = Spot::default();
        note(&mut spot, 4);
        let people: Vec<OpenId> = (0..3).map(|n| OpenId::new(format!("p{n}"))).collect();
        spot.stands_alone(5);
        spot.note(5, people.clone(), &ProfileBatch::default());
        note(&mut spot, 6);
        assert_eq!(spot.judge(5, &claim(5), false), people);
        let halves = [Owed::Piece(people[..2].to_vec()), Owed::Piece(people[2..].to_vec())];
        assert_eq!(spot.owed.drain(..).collect::<Vec<_>>(), halves);
        assert_eq!((spot.watched, spot.unchecked.len()), (0, 2));
        spot.owed.extend(halves);
        assert_eq!(spot.unanswered(), [people[..2].to_vec(), people[2..].to_vec()]);
        assert_eq!(spot.give_up(), GivenUp::default());
    }

    #[test]
    fn a_batch_that_looks_shifted_is_not_believed_when_no_call_is_left_to_look() {
        let mut spot = Spot::default();
        let asked = note_ten(&mut spot, 4, &[9]);
        note(&mut spot, 5);
        spot.owed.push_back(Owed::Confirm { number: 5, claim: claim(5) });
        let given_up = spot.give_up();
        assert_eq!((given_up.suspects, given_up.batches), (vec![asked], Vec::new()));
        assert_eq!(spot.owed.len(), 1, "the other was to be looked at by the way");
    }

    #[test]
    fn a_small_piece_whose_last_has_no_unionid_is_looked_at_before_the_next() {
        let mut spot = Spot::default();
        let asked: Vec<OpenId> = (0..3).map(|n| OpenId::new(format!("p{n}"))).collect();
        let mut profiles = Profiles::default();
        for openid in &asked {
            profiles.openid.push(Some(openid.as_str()));
            profiles.unionid.push(None);
            profiles.subscribe.push(Some(true));
        }
        let answer = ProfileBatch { profiles, ..ProfileBatch::default() };
        spot.owed.push_back(Owed::Piece(vec![OpenId::new("q")]));
        spot.stands_alone(2);
        spot.note(2, asked, &answer);
        assert!(matches!(&spot.owed[0], Owed::Confirm { number: 2, .. }), "{:?}", spot.owed);
    }
}
