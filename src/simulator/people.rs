//! The people of the simulated world: pure functions of a seed and an index, none of them held in memory.
//!
//! A person is an index. An id carries the index scrambled and a check half, so an id that comes in is turned back
//! into the index without a table, and an id of another account or a typing error is known as one. The order of the
//! follower list is a permutation of the indices, unrelated to when anybody followed.
//!
//! Not here: who follows at this moment (`crowd`), what a person received (`inbox`).

use base64url::{digit, value};

/// The instant at which the world's past was written: 2026-11-01 in UTC, in seconds.
pub const WORLD_BEGAN_SECONDS: i64 = 1_793_491_200;
/// Ids carry at most this many bits of index.
const INDEX_BITS: u32 = 40;
pub const ID_CHARACTERS: usize = 28;
const PREFIX_CHARACTERS: usize = 6;
/// The platform's own tag.
pub const STARRED_TAG: u64 = 2;
const THREE_YEARS_SECONDS: u64 = 3 * 365 * 86_400;

const CITIES: [&str; 12] =
    ["上海", "北京", "深圳", "广州", "杭州", "成都", "武汉", "南京", "西安", "重庆", "苏州", "长沙"];
const SCENES: [&str; 8] = [
    "ADD_SCENE_QR_CODE",
    "ADD_SCENE_QR_CODE",
    "ADD_SCENE_SEARCH",
    "ADD_SCENE_PAID",
    "ADD_SCENE_PROFILE_CARD",
    "ADD_SCENE_WECHAT_ADVERTISEMENT",
    "ADD_SCENE_CHANNELS",
    "ADD_SCENE_OTHERS",
];
const NAMES: [&str; 8] = ["小鱼", "阿明", "Lily", "山风", "豆豆", "老王", "Cici", "木子"];

/// What a property is drawn for, so that two properties of one person are unrelated.
#[derive(Clone, Copy)]
pub enum Trait {
    Bound = 1,
    SubscribeTime,
    Scene,
    City,
    Name,
    Registered,
    LastLogin,
    ExportedUnionid,
    RepeatedRow,
    OddProfile,
    Refusal,
    Tag,
    Errcode,
    LeftOut,
    MissingUnionid,
    ChangedUnionid,
    Unmoved,
}

/// Everybody there is, by index.
#[derive(Debug)]
pub struct People {
    seed: u64,
    bound_share: f64,
    order: Permutation,
    account: IdSpace,
    union: IdSpace,
    /// Of the Open Platform account that the account was bound to later.
    later_union: IdSpace,
    miniprogram: IdSpace,
}

/// What makes a world of people.
pub struct PeopleOptions<'a> {
    pub seed: u64,
    /// Of all followers, how many the account sees a unionid of.
    pub bound_share: f64,
    /// The least number of people the world must have room for.
    pub room: u64,
    pub app_id: &'a str,
    pub miniprogram_app_id: &'a str,
}

impl People {
    pub fn new(options: &PeopleOptions<'_>) -> Self {
        let seed = options.seed;
        Self {
            seed,
            bound_share: options.bound_share,
            order: Permutation::new(seed, options.room),
            account: IdSpace::new(seed, options.app_id),
            union: IdSpace::new(seed, "open platform account"),
            later_union: IdSpace::new(seed, "open platform account of later"),
            miniprogram: IdSpace::new(seed, options.miniprogram_app_id),
        }
    }

    /// How many people there is room for; indices are below it.
    pub fn capacity(&self) -> u64 {
        self.order.size()
    }

    /// Towards the Official Account.
    pub fn openid(&self, index: u64) -> String {
        self.account.encode(index)
    }

    /// The same as it stands in an answer, without an allocation: ten thousand of them are a page.
    pub fn openid_letters(&self, index: u64) -> [u8; ID_CHARACTERS] {
        self.account.letters(index)
    }

    /// Towards the Open Platform account; the same in every world of one seed.
    pub fn unionid(&self, index: u64) -> String {
        self.union.encode(index)
    }

    /// What a person's unionid has changed to.
    pub fn later_unionid(&self, index: u64) -> String {
        self.later_union.encode(index)
    }

    /// Towards the mini program.
    pub fn mp_openid(&self, index: u64) -> String {
        self.miniprogram.encode(index)
    }

    /// Whose openid this is, if it is one of this account's.
    pub fn by_openid(&self, openid: &str) -> Option<u64> {
        self.account.decode(openid).filter(|index| *index < self.capacity())
    }

    pub fn by_unionid(&self, unionid: &str) -> Option<u64> {
        let found = self.union.decode(unionid).or_else(|| self.later_union.decode(unionid));
        found.filter(|index| *index < self.capacity())
    }

    /// Whose openid this was towards the account with another app id.
    pub fn by_openid_of(&self, app_id: &str, openid: &str) -> Option<u64> {
        IdSpace::new(self.seed, app_id).decode(openid).filter(|index| *index < self.capacity())
    }

    /// Who stands at `position` of the follower list.
    pub fn at_position(&self, position: u64) -> u64 {
        self.order.forward(position)
    }

    /// The reverse of [`People::at_position`].
    pub fn position_of(&self, index: u64) -> u64 {
        self.order.backward(index)
    }

    /// Whether the account sees this person's unionid.
    pub fn is_bound(&self, index: u64) -> bool {
        self.happens(index, Trait::Bound, self.bound_share)
    }

    /// When this person first followed, in seconds since 1970.
    pub fn subscribed_at(&self, index: u64) -> i64 {
        self.before_the_beginning(index, Trait::SubscribeTime, THREE_YEARS_SECONDS)
    }

    pub fn scene(&self, index: u64) -> &'static str {
        pick(&SCENES, self.draw(index, Trait::Scene))
    }

    /// Whether the account has put a star to this person.
    pub fn is_starred(&self, index: u64) -> bool {
        self.draw(index, Trait::Tag).is_multiple_of(5)
    }

    pub fn city(&self, index: u64) -> &'static str {
        pick(&CITIES, self.draw(index, Trait::City))
    }

    pub fn nickname(&self, index: u64) -> &'static str {
        pick(&NAMES, self.draw(index, Trait::Name))
    }

    /// A moment in the `span_seconds` before the world began.
    pub fn before_the_beginning(&self, index: u64, what: Trait, span_seconds: u64) -> i64 {
        let back = self.draw(index, what) % span_seconds;
        WORLD_BEGAN_SECONDS - i64::try_from(back).expect("a span of years fits in 64 bits")
    }

    /// Whether something that befalls `share` of all people befalls this one.
    pub fn happens(&self, index: u64, what: Trait, share: f64) -> bool {
        let high = u32::try_from(self.draw(index, what) >> 32).expect("the upper half has 32 bits");
        f64::from(high) < share * 4_294_967_296.0
    }

    /// Whether this person is the one in `every` (none when zero).
    pub fn one_in(&self, index: u64, what: Trait, every: u64) -> bool {
        every > 0 && self.draw(index, what).is_multiple_of(every)
    }

    /// The person's number for a property; evenly spread over 64 bits.
    pub fn draw(&self, index: u64, what: Trait) -> u64 {
        mix(mix(self.seed ^ index).wrapping_add(property_key(what)))
    }
}

fn property_key(what: Trait) -> u64 {
    // A fieldless enum's number is its identity here; it only salts a hash.
    let number = u64::from(what as u8);
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn pick(from: &[&'static str], draw: u64) -> &'static str {
    let choices = u64::try_from(from.len()).expect("a length fits in 64 bits");
    from[usize::try_from(draw % choices).expect("the remainder is below a length")]
}

/// One family of ids: its prefix, and the keys that scramble and check.
#[derive(Debug)]
struct IdSpace {
    prefix: [u8; PREFIX_CHARACTERS],
    scramble: u64,
    check: u64,
}

impl IdSpace {
    fn new(seed: u64, name: &str) -> Self {
        let key = hash_bytes(seed, name.as_bytes());
        let mut prefix = [b'o'; PREFIX_CHARACTERS];
        for (place, letter) in prefix.iter_mut().enumerate().skip(1) {
            *letter = digit(key >> (place * 6));
        }
        Self { prefix, scramble: mix(key ^ 1), check: mix(key ^ 2) }
    }

    fn encode(&self, index: u64) -> String {
        self.letters(index).iter().copied().map(char::from).collect()
    }

    fn letters(&self, index: u64) -> [u8; ID_CHARACTERS] {
        let first = mix(index ^ self.scramble);
        let second = mix(first ^ self.check);
        let mut bits = (u128::from(first) << 64) | u128::from(second);
        let mut letters = [0; ID_CHARACTERS];
        letters[..PREFIX_CHARACTERS].copy_from_slice(&self.prefix);
        for letter in letters[PREFIX_CHARACTERS..].iter_mut().rev() {
            *letter = digit(bits.to_le_bytes()[0].into());
            bits >>= 6;
        }
        letters
    }

    fn decode(&self, id: &str) -> Option<u64> {
        let letters = id.as_bytes();
        if letters.len() != ID_CHARACTERS || letters[..PREFIX_CHARACTERS] != self.prefix {
            return None;
        }
        let mut bits: u128 = 0;
        for letter in &letters[PREFIX_CHARACTERS..] {
            bits = (bits << 6) | u128::from(value(*letter)?);
        }
        let first = u64::try_from((bits >> 64) & u128::from(u64::MAX)).ok()?;
        let second = u64::try_from(bits & u128::from(u64::MAX)).ok()?;
        let index = unmix(first) ^ self.scramble;
        (mix(first ^ self.check) == second && index >> INDEX_BITS == 0).then_some(index)
    }
}

/// A permutation of the numbers below a power of two, both ways without a table.
#[derive(Debug)]
struct Permutation {
    bits: u32,
    factors: [(u64, u64); 3],
}

impl Permutation {
    fn new(seed: u64, room: u64) -> Self {
        let bits = room.max(64).next_power_of_two().trailing_zeros();
        let factors = [11, 12, 13].map(|salt| {
            let odd = mix(seed ^ salt) | 1;
            (odd, odd_inverse(odd))
        });
        Self { bits, factors }
    }

    fn size(&self) -> u64 {
        1 << self.bits
    }

    fn mask(&self) -> u64 {
        self.size() - 1
    }

    fn forward(&self, number: u64) -> u64 {
        self.factors.iter().fold(number, |x, (odd, _)| self.fold_down(x.wrapping_mul(*odd) & self.mask()))
    }

    fn backward(&self, number: u64) -> u64 {
        self.factors.iter().rev().fold(number, |x, (_, inverse)| self.fold_down(x).wrapping_mul(*inverse) & self.mask())
    }

    /// Its own reverse, since the shift is at least half of the bits.
    fn fold_down(&self, x: u64) -> u64 {
        x ^ (x >> self.bits.div_ceil(2))
    }
}

/// The number that undoes a multiplication by `odd` modulo any power of two up to 2^64.
fn odd_inverse(odd: u64) -> u64 {
    (0..6).fold(odd, |x, _| x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x))))
}

/// Scrambles 64 bits; every output has one input.
pub fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn unmix(mut x: u64) -> u64 {
    x ^= (x >> 31) ^ (x >> 62);
    x = x.wrapping_mul(0x3196_42b2_d24d_8ec3);
    x ^= (x >> 27) ^ (x >> 54);
    x = x.wrapping_mul(0x96de_1b17_3f11_9089);
    x ^ (x >> 30) ^ (x >> 60)
}

/// A number for some bytes; eight at a time, since it stands on the way of every send.
pub fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let length = u64::try_from(bytes.len()).expect("a length fits in 64 bits");
    bytes.chunks(8).fold(mix(seed ^ length), |state, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(state.rotate_left(23) ^ u64::from_le_bytes(word))
    })
}

/// The alphabet that ids and tokens are written in.
pub mod base64url {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    /// The character of the lowest six bits.
    pub fn digit(bits: u64) -> u8 {
        ALPHABET[usize::try_from(bits & 63).expect("six bits are an index")]
    }

    /// The reverse of [`digit`].
    pub fn value(letter: u8) -> Option<u8> {
        match letter {
            b'A'..=b'Z' => Some(letter - b'A'),
            b'a'..=b'z' => Some(letter - b'a' + 26),
            b'0'..=b'9' => Some(letter - b'0' + 52),
            b'-' => Some(62),
            b'_' => Some(63),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn people(room: u64) -> People {
        People::new(&PeopleOptions { seed: 7, bound_share: 0.95, room, app_id: "wx01", miniprogram_app_id: "wx02" })
    }

    #[test]
    fn every_id_leads_back_to_its_person_and_no_other_space_accepts_it() {
        let people = people(10_000_000);
        for index in [0, 1, 77, 9_999_999] {
            let openid = people.openid(index);
            assert_eq!(openid.len(), 28);
            assert!(openid.starts_with('o'));
            assert_eq!(people.by_openid(&openid), Some(index));
            assert_eq!(people.by_unionid(&people.unionid(index)), Some(index));
            assert_eq!(people.by_openid(&people.mp_openid(index)), None);
            assert_eq!(people.by_openid(&people.unionid(index)), None);
            assert_eq!(people.by_openid_of("wx01", &openid), Some(index));
        }
    }

    #[test]
    fn an_openid_with_one_wrong_letter_is_nobodys() {
        let people = people(1000);
        let mut openid = people.openid(5).into_bytes();
        openid[15] = if openid[15] == b'A' { b'B' } else { b'A' };
        assert_eq!(people.by_openid(&String::from_utf8(openid).unwrap()), None);
    }

    #[test]
    fn the_order_of_the_list_is_a_permutation() {
        for room in [64, 100, 2048, 5000] {
            let people = people(room);
            let seen: HashSet<u64> = (0..people.capacity()).map(|position| people.at_position(position)).collect();
            assert_eq!(u64::try_from(seen.len()).unwrap(), people.capacity());
            assert!((0..people.capacity()).all(|index| people.at_position(people.position_of(index)) == index));
            assert!((0..people.capacity()).any(|position| people.at_position(position) != position));
        }
    }

    #[test]
    fn about_the_asked_share_is_bound() {
        let people = people(20_000);
        let bound = (0..20_000).filter(|index| people.is_bound(*index)).count();
        assert!((18_800..19_200).contains(&bound), "{bound}");
    }

    #[test]
    fn two_accounts_of_one_seed_share_their_unionids_alone() {
        let options = |app_id| PeopleOptions { seed: 3, bound_share: 1.0, room: 100, app_id, miniprogram_app_id: "m" };
        let (one, other) = (People::new(&options("wxa")), People::new(&options("wxb")));
        assert_eq!(one.unionid(9), other.unionid(9));
        assert_ne!(one.openid(9), other.openid(9));
    }
}
