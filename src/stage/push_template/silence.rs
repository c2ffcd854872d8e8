//! When nobody has been answered for long: to go on would only put more people in doubt.

use std::time::{Duration, Instant};

use crate::wechat::SendOutcome;

const MOST: Duration = Duration::from_secs(60);
const FEWEST_UNANSWERED: u32 = 5;

/// Messages without an answer, in a row.
#[derive(Debug, Default)]
pub struct Silence(Option<(Instant, u32)>);

impl Silence {
    /// Takes note of one answer; gives why the push must wait, if it must.
    pub fn heard(&mut self, answer: &SendOutcome, now: Instant) -> Option<String> {
        let SendOutcome::NoAnswer { reason, .. } = answer else {
            self.0 = None;
            return None;
        };
        let (since, unanswered) = self.0.get_or_insert((now, 0));
        *unanswered += 1;
        let lasts = now.saturating_duration_since(*since);
        (*unanswered >= FEWEST_UNANSWERED && lasts >= MOST).then(|| {
            format!(
                "WeChat has answered none of {unanswered} messages for {} s ({reason}); check whether this machine reaches it",
                lasts.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_minute_without_any_answer_is_too_long_and_one_answer_is_enough() {
        let start = Clock::default().monotonic();
        let none = SendOutcome::NoAnswer { reason: "could not connect".to_owned(), may_have_left: false };
        let taken = SendOutcome::Accepted { msgid: None, duplicate: false };
        let mut silence = Silence::default();
        for second in [0, 20, 40, 59] {
            assert_eq!(silence.heard(&none, start + Duration::from_secs(second)), None);
        }
        assert_eq!(silence.heard(&taken, start + Duration::from_secs(59)), None);
        for second in [60, 80, 100, 119] {
            assert_eq!(silence.heard(&none, start + Duration::from_secs(second)), None);
        }
        let why = silence.heard(&none, start + Duration::from_secs(120)).unwrap();
        assert!(why.contains("none of 5 messages for 60 s") && why.contains("could not connect"), "{why}");
    }
}
