//! The two token spaces of an account: legacy and stable, which neither replace nor invalidate each other.
//!
//! A legacy fetch replaces the token before it, which lives on for five minutes. A stable fetch gives the same token
//! until five minutes before its end; a forced one kills the token at once, if the last was at least 30 s ago.

use super::clock::quota_day;
use super::people::{base64url, mix};

/// How long a replaced token still works, and how long before its end a stable one is renewed.
const OVERLAP_SECONDS: i64 = 300;
const FORCED_SPACING_SECONDS: i64 = 30;
const FORCED_A_DAY: u32 = 20;
const TOKEN_CHARACTERS: u64 = 136;

/// A token as it is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    pub access_token: String,
    pub expires_in_seconds: i64,
}

/// What a token in a query is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// Never given out, or replaced.
    Unknown,
    /// Given out, and past its end.
    Expired,
}

/// All tokens of one account.
#[derive(Debug)]
pub struct TokenBook {
    seed: u64,
    issued: u64,
    lifetime_seconds: i64,
    legacy: Space,
    stable: Space,
    forced: Forced,
    /// Refused everywhere and still given out.
    spoiled: Option<String>,
}

#[derive(Debug, Default)]
struct Space {
    current: Option<Token>,
    previous: Option<Token>,
}

#[derive(Debug, Clone)]
struct Token {
    text: String,
    ends_at_seconds: i64,
}

#[derive(Debug, Default)]
struct Forced {
    last_at_seconds: Option<i64>,
    day: i64,
    today: u32,
}

impl TokenBook {
    pub fn new(seed: u64, lifetime_seconds: i64) -> Self {
        Self {
            seed,
            issued: 0,
            lifetime_seconds,
            legacy: Space::default(),
            stable: Space::default(),
            forced: Forced::default(),
            spoiled: None,
        }
    }

    /// A new legacy token; the one before lives five minutes more.
    pub fn legacy(&mut self, now_seconds: i64) -> Granted {
        let token = self.issue(now_seconds);
        let granted = token.granted(now_seconds);
        self.legacy.replace(token, now_seconds);
        granted
    }

    /// The stable token, renewed when five minutes or less are left of it.
    pub fn stable(&mut self, now_seconds: i64) -> Granted {
        match &self.stable.current {
            Some(token) if token.ends_at_seconds - now_seconds > OVERLAP_SECONDS => token.granted(now_seconds),
            _ => {
                let token = self.issue(now_seconds);
                let granted = token.granted(now_seconds);
                self.stable.replace(token, now_seconds);
                granted
            }
        }
    }

    /// A new stable token and the end of the one before; within 30 s of the last such call the current one. `None`
    /// when today's forced calls are used up.
    pub fn stable_forced(&mut self, now_seconds: i64) -> Option<Granted> {
        if self.forced.last_at_seconds.is_some_and(|last| (now_seconds - last) < FORCED_SPACING_SECONDS) {
            return Some(self.stable(now_seconds));
        }
        if quota_day(now_seconds) != self.forced.day {
            (self.forced.day, self.forced.today) = (quota_day(now_seconds), 0);
        }
        if self.forced.today == FORCED_A_DAY {
            return None;
        }
        self.forced.today += 1;
        self.forced.last_at_seconds = Some(now_seconds);
        let token = self.issue(now_seconds);
        let granted = token.granted(now_seconds);
        self.stable = Space { current: Some(token), previous: None };
        Some(granted)
    }

    /// Ends every token there is, as when somebody else refreshed.
    pub fn revoke(&mut self) {
        self.legacy = Space::default();
        self.stable = Space::default();
    }

    /// From now on the current stable token is refused by every call, while asking for the token gives it again: only a
    /// forced one helps.
    pub fn spoil(&mut self) {
        self.spoiled = self.stable.current.as_ref().map(|token| token.text.clone());
    }

    /// Tokens forced on the last day on which there were any.
    pub fn forced_today(&self) -> u32 {
        self.forced.today
    }

    pub fn verdict(&self, text: &str, now_seconds: i64) -> Verdict {
        if self.spoiled.as_deref() == Some(text) {
            return Verdict::Unknown;
        }
        let known = [&self.stable.current, &self.legacy.current, &self.stable.previous, &self.legacy.previous]
            .into_iter()
            .flatten()
            .find(|token| token.text == text);
        match known {
            None => Verdict::Unknown,
            Some(token) if token.ends_at_seconds <= now_seconds => Verdict::Expired,
            Some(_) => Verdict::Good,
        }
    }

    fn issue(&mut self, now_seconds: i64) -> Token {
        self.issued += 1;
        let start = mix(self.seed ^ mix(self.issued)).wrapping_add(now_seconds.unsigned_abs());
        let mut text = String::from("98_");
        text.extend((0..TOKEN_CHARACTERS).map(|place| char::from(base64url::digit(mix(start ^ mix(place))))));
        Token { text, ends_at_seconds: now_seconds + self.lifetime_seconds }
    }
}

impl Space {
    fn replace(&mut self, token: Token, now_seconds: i64) {
        self.previous = self.current.take().map(|old| Token {
            ends_at_seconds: old.ends_at_seconds.min(now_seconds + OVERLAP_SECONDS),
            text: old.text,
        });
        self.current = Some(token);
    }
}

impl Token {
    fn granted(&self, now_seconds: i64) -> Granted {
        Granted { access_token: self.text.clone(), expires_in_seconds: self.ends_at_seconds - now_seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_000_000;

    #[test]
    fn a_legacy_token_outlives_its_successor_by_five_minutes() {
        let mut book = TokenBook::new(1, 7200);
        let first = book.legacy(NOW).access_token;
        let second = book.legacy(NOW + 10).access_token;
        assert_ne!(first, second);
        assert_eq!(book.verdict(&first, NOW + 300), Verdict::Good);
        assert_eq!(book.verdict(&first, NOW + 310), Verdict::Expired);
        assert_eq!(book.verdict(&second, NOW + 310), Verdict::Good);
    }

    #[test]
    fn the_stable_token_stays_the_same_until_five_minutes_before_its_end() {
        let mut book = TokenBook::new(1, 7200);
        let first = book.stable(NOW);
        let again = book.stable(NOW + 6899);
        assert_eq!((again.access_token.as_str(), again.expires_in_seconds), (first.access_token.as_str(), 301));
        let renewed = book.stable(NOW + 6900);
        assert_ne!(renewed.access_token, first.access_token);
        assert_eq!(book.verdict(&first.access_token, NOW + 7199), Verdict::Good);
    }

    #[test]
    fn a_spoiled_token_is_given_out_and_refused_until_another_is_forced() {
        let mut book = TokenBook::new(1, 7200);
        let spoiled = book.stable(NOW).access_token;
        book.spoil();
        assert_eq!((book.stable(NOW + 1).access_token, book.verdict(&spoiled, NOW + 1)), (spoiled, Verdict::Unknown));
        let forced = book.stable_forced(NOW + 2).unwrap().access_token;
        assert_eq!((book.verdict(&forced, NOW + 2), book.forced_today()), (Verdict::Good, 1));
    }

    #[test]
    fn the_two_spaces_do_not_touch_each_other() {
        let mut book = TokenBook::new(1, 7200);
        let stable = book.stable(NOW).access_token;
        book.legacy(NOW);
        book.legacy(NOW + 1);
        assert_eq!(book.verdict(&stable, NOW + 6000), Verdict::Good);
    }

    #[test]
    fn a_forced_refresh_kills_at_once_but_not_twice_in_thirty_seconds_nor_over_twenty_a_day() {
        let mut book = TokenBook::new(1, 7200);
        let first = book.stable(NOW).access_token;
        let forced = book.stable_forced(NOW).unwrap().access_token;
        assert_eq!(book.verdict(&first, NOW), Verdict::Unknown);
        assert_eq!(book.stable_forced(NOW + 29).unwrap().access_token, forced);
        assert!((1..20).all(|turn| book.stable_forced(NOW + turn * 30).is_some()));
        assert_eq!(book.stable_forced(NOW + 20 * 30), None);
        assert!(book.stable_forced(NOW + 86_400).is_some());
    }
}
