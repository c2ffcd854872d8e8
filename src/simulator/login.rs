//! Login codes of the mini program: given out by the control API, good once and for five minutes.

use std::collections::HashMap;

use super::people::mix;

const CODE_SECONDS: i64 = 300;
/// Codes that are remembered; the oldest are forgotten together past it.
const CODES_KEPT: usize = 10_000;

/// The codes that were given out.
#[derive(Debug, Default)]
pub struct Logins {
    issued: u64,
    codes: HashMap<String, Code>,
}

#[derive(Debug)]
struct Code {
    index: u64,
    ends_at_seconds: i64,
    used: bool,
}

/// What became of a code that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redeemed {
    Person(u64),
    /// Unknown or past its five minutes.
    Invalid,
    Used,
}

impl Logins {
    /// A code for one login of this person.
    pub fn issue(&mut self, index: u64, now_seconds: i64) -> String {
        if self.codes.len() >= CODES_KEPT {
            self.codes.retain(|_, code| code.ends_at_seconds > now_seconds);
        }
        self.issued += 1;
        let text = format!("0{:016x}{:016x}", mix(self.issued), mix(self.issued ^ index ^ now_seconds.unsigned_abs()));
        self.codes.insert(text.clone(), Code { index, ends_at_seconds: now_seconds + CODE_SECONDS, used: false });
        text
    }

    pub fn redeem(&mut self, code: &str, now_seconds: i64) -> Redeemed {
        match self.codes.get_mut(code) {
            Some(code) if code.used => Redeemed::Used,
            Some(code) if code.ends_at_seconds > now_seconds => {
                code.used = true;
                Redeemed::Person(code.index)
            }
            _ => Redeemed::Invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_good_once_and_for_five_minutes() {
        let mut logins = Logins::default();
        let code = logins.issue(8, 1_000);
        let late = logins.issue(9, 1_000);
        assert_eq!(logins.redeem(&code, 1_010), Redeemed::Person(8));
        assert_eq!(logins.redeem(&code, 1_011), Redeemed::Used);
        assert_eq!(logins.redeem(&late, 1_300), Redeemed::Invalid);
        assert_eq!(logins.redeem("0", 1_000), Redeemed::Invalid);
    }
}
