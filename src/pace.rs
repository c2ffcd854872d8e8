//! How long to wait: one [`Pace`] for everybody who sends for an account.
//!
//! A sender asks for its [`Turn`] and waits until then; afterwards it reports what came back. Turns are handed out one
//! interval apart (the generic cell rate algorithm with a rate that changes), so no one-second window, wherever it begins,
//! holds more than 1.1 of the rate and one, however many senders there are. Trouble on the other side halves the rate;
//! calm brings it back within a minute. Time is an argument: nothing here reads a clock or sleeps, sends, or knows the
//! quota of the day.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far behind the plan a sender may be and still make up for it. With the timers' own lateness this keeps a window
/// below 1.1 of the rate.
const TOLERANCE: Duration = Duration::from_millis(40);
/// How far ahead a turn is handed out. Whoever would wait longer asks again, so that a changed rate reaches everybody soon.
const HORIZON: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);
/// When a pace that is closed should be asked again.
const CLOSED_ASKS_AGAIN: Duration = Duration::from_millis(100);
/// Steps from standstill back to the full rate, one a second.
const STEPS: f64 = 50.0;
/// Share of the last second's answers that may be trouble.
const TROUBLE_SHARE: usize = 10;
/// Sends a second below which no rate goes: one a day.
const SLOWEST: f64 = 1.0 / 86_400.0;

/// When a sender may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// The caller's own turn: send then. It is taken, whether or not the caller sends.
    SendAt(Instant),
    /// Nothing is taken: the next free turn is more than a second away. Ask again then.
    AskAgainAt(Instant),
}

/// What a send came back with, as far as the pace is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Anything that says nothing about speed, refusals of the recipient included.
    Fine,
    /// The platform is busy (-1).
    Busy,
    /// The platform says we are too fast (45011).
    TooFast,
    /// No answer came.
    Missing,
}

/// The rate and the plan of turns. Slower than the full rate only after trouble.
#[derive(Debug)]
pub struct Pace {
    /// Sends a second when all is well.
    full: f64,
    /// Sends a second now.
    current: f64,
    /// The last turn handed out, as planned.
    last: Option<Instant>,
    /// Answers of the last second: when, and whether they were trouble.
    answers: VecDeque<(Instant, bool)>,
    troubles: usize,
    halved_at: Option<Instant>,
    /// When the right to send ends that somebody else divides; `None`: it is nobody's to divide.
    open_until: Option<Instant>,
    /// Since when it has been calm; moved on by a second with each step up.
    calm_since: Instant,
}

impl Pace {
    /// Starts at the full rate, in sends a second. A rate that is no positive number counts as one send a day.
    pub fn new(rate_per_second: f64, now: Instant) -> Self {
        let full = usable(rate_per_second);
        Self {
            full,
            current: full,
            last: None,
            answers: VecDeque::new(),
            troubles: 0,
            halved_at: None,
            open_until: None,
            calm_since: now,
        }
    }

    /// Hands out the next turn. Turns come in order; calling more often does not make them come sooner.
    pub fn next(&mut self, now: Instant) -> Turn {
        self.climb(now);
        if !self.is_open(now) {
            return Turn::AskAgainAt(now + CLOSED_ASKS_AGAIN);
        }
        let interval = Duration::from_secs_f64(self.current.recip());
        let oldest = now.checked_sub(TOLERANCE).unwrap_or(now);
        let planned = self.last.map_or(now, |last| (last + interval).max(oldest));
        if planned > now + HORIZON {
            return Turn::AskAgainAt((planned - HORIZON).min(now + HORIZON));
        }
        self.last = Some(planned);
        Turn::SendAt(planned.max(now))
    }

    /// Takes note of an answer. Halves the rate, at most once a second, when the answer was [`Answer::TooFast`] or when more
    /// than a tenth of the last second's answers were [`Answer::Busy`] or [`Answer::Missing`].
    pub fn report(&mut self, answer: Answer, now: Instant) {
        self.climb(now);
        self.forget_answers_before(now);
        let trouble = matches!(answer, Answer::Busy | Answer::Missing);
        self.answers.push_back((now, trouble));
        self.troubles += usize::from(trouble);
        let troubled = answer == Answer::TooFast || self.troubles * TROUBLE_SHARE > self.answers.len();
        if !troubled {
            return;
        }
        self.calm_since = self.calm_since.max(now);
        if self.halved_at.is_none_or(|at| now.saturating_duration_since(at) >= SECOND) {
            self.halved_at = Some(now);
            self.current = (self.current / 2.0).max(SLOWEST);
        }
    }

    /// Changes the full rate, in sends a second, from now on. A pace that is slowed down stays slowed down by the same share.
    pub fn set_rate(&mut self, rate_per_second: f64, now: Instant) {
        self.climb(now);
        let full = usable(rate_per_second);
        self.current = (self.current / self.full * full).clamp(SLOWEST, full);
        self.full = full;
    }

    /// Hands out turns until then and no longer, unless this is called again; `None`: without an end.
    pub fn open_until(&mut self, until: Option<Instant>) {
        self.open_until = until;
    }

    /// Whether anything may be sent at all.
    pub fn is_open(&self, now: Instant) -> bool {
        self.open_until.is_none_or(|until| now < until)
    }

    /// Sends a second now.
    pub fn current_rate(&mut self, now: Instant) -> f64 {
        self.climb(now);
        self.current
    }

    /// Sends a second when all is well.
    pub fn full_rate(&self) -> f64 {
        self.full
    }

    /// One step up for every second of calm that has passed.
    fn climb(&mut self, now: Instant) {
        while self.current < self.full && now.saturating_duration_since(self.calm_since) >= SECOND {
            self.calm_since += SECOND;
            self.current = (self.current + self.full / STEPS).min(self.full);
        }
        if self.current >= self.full {
            self.calm_since = self.calm_since.max(now);
        }
    }

    fn forget_answers_before(&mut self, now: Instant) {
        while let Some((at, trouble)) = self.answers.front().copied() {
            if now.saturating_duration_since(at) < SECOND {
                break;
            }
            self.answers.pop_front();
            self.troubles -= usize::from(trouble);
        }
    }
}

fn usable(rate_per_second: f64) -> f64 {
    if rate_per_second.is_finite() { rate_per_second.max(SLOWEST) } else { SLOWEST }
}

/// A [`Pace`] for many senders; clones share it.
#[derive(Debug, Clone)]
pub struct SharedPace(Arc<Mutex<Pace>>);

impl SharedPace {
    /// See [`Pace::new`].
    pub fn new(rate_per_second: f64, now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Pace::new(rate_per_second, now))))
    }

    /// See [`Pace::next`].
    pub fn next(&self, now: Instant) -> Turn {
        self.locked().next(now)
    }

    /// See [`Pace::report`].
    pub fn report(&self, answer: Answer, now: Instant) {
        self.locked().report(answer, now);
    }

    /// See [`Pace::set_rate`].
    pub fn set_rate(&self, rate_per_second: f64, now: Instant) {
        self.locked().set_rate(rate_per_second, now);
    }

    /// See [`Pace::is_open`].
    pub fn is_open(&self, now: Instant) -> bool {
        self.locked().is_open(now)
    }

    /// See [`Pace::open_until`].
    pub fn open_until(&self, until: Option<Instant>) {
        self.locked().open_until(until);
    }

    /// See [`Pace::current_rate`].
    pub fn current_rate(&self, now: Instant) -> f64 {
        self.locked().current_rate(now)
    }

    /// See [`Pace::full_rate`].
    pub fn full_rate(&self) -> f64 {
        self.locked().full_rate()
    }

    /// No call leaves the plan half changed, so a panic elsewhere under the lock does no harm.
    fn locked(&self) -> MutexGuard<'_, Pace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[expect(clippy::disallowed_methods, reason = "a point to count simulated time from")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Plays `workers` that ask, wait (and wake up to `late` too late), send, and take `answer_takes` for each send.
    /// Returns the offsets of all sends within `length`, in order.
    fn play(
        rate: f64,
        workers: usize,
        length: Duration,
        mut delays: impl FnMut() -> (Duration, Duration),
    ) -> Vec<Duration> {
        let start = origin();
        let mut pace = Pace::new(rate, start);
        let mut free_at = vec![start; workers];
        let mut sends = Vec::new();
        loop {
            let worker = (0..workers).min_by_key(|worker| free_at[*worker]).expect("there are workers");
            let now = free_at[worker];
            if now - start >= length {
                sends.retain(|at| *at < length);
                sends.sort();
                return sends;
            }
            let (late, answer_takes) = delays();
            free_at[worker] = match pace.next(now) {
                Turn::SendAt(at) => {
                    let sent = if at > now { at + late } else { now };
                    sends.push(sent - start);
                    sent + answer_takes
                }
                Turn::AskAgainAt(at) => at + late,
            };
        }
    }

    fn fullest_window(sends: &[Duration]) -> usize {
        let mut first = 0;
        let mut most = 0;
        for (last, at) in sends.iter().enumerate() {
            while *at - sends[first] >= SECOND {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        most
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_window_holds_more_than_the_rate_allows(
            rate in 0.5..400.0_f64,
            workers in 1..80_usize,
            delays in prop::collection::vec((0..15_u64, 1..400_u64), 1..50),
        ) {
            let mut turn = 0;
            let sends = play(rate, workers, Duration::from_secs(8), || {
                turn += 1;
                let (late, takes) = delays[turn % delays.len()];
                (millis(late), millis(takes))
            });
            let most = fullest_window(&sends) as f64;
            prop_assert!(most <= rate * 1.1 + 1.0, "{most} sends in a second at {rate}/s");
        }

        #[test]
        fn the_mean_is_the_rate_when_the_senders_keep_up(rate in 5.0..300.0_f64, late in 0..15_u64) {
            let length = Duration::from_secs(20);
            let sends = play(rate, 64, length, || (millis(late), millis(100)));
            let mean = sends.len() as f64 / length.as_secs_f64();
            prop_assert!((mean / rate - 1.0).abs() <= 0.02, "{mean}/s instead of {rate}/s");
        }

        #[test]
        fn the_rate_halves_at_most_once_a_second_and_stays_within_bounds(
            answers in prop::collection::vec((0..4_u8, 0..700_u64), 1..200),
        ) {
            let start = origin();
            let mut pace = Pace::new(50.0, start);
            let (mut now, mut halved) = (start, None::<Instant>);
            for (kind, wait) in answers {
                now += millis(wait);
                let before = pace.current_rate(now);
                let answer = [Answer::Fine, Answer::Busy, Answer::TooFast, Answer::Missing][usize::from(kind)];
                pace.report(answer, now);
                let after = pace.current_rate(now);
                prop_assert!(after <= 50.0 && after >= before / 2.0);
                if after < before {
                    prop_assert!(halved.is_none_or(|at| now - at >= SECOND));
                    halved = Some(now);
                }
            }
            now += Duration::from_secs(60);
            prop_assert_eq!(pace.current_rate(now), 50.0, "a minute of calm brings it back");
        }
    }

    #[test]
    fn a_single_sender_that_wakes_late_still_reaches_the_rate() {
        let sends = play(50.0, 1, Duration::from_secs(20), || (millis(12), millis(3)));
        assert!((980..=1020).contains(&sends.len()), "{} sends in 20 s at 50/s", sends.len());
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let start = origin();
        let mut pace = Pace::new(100.0, start);
        let _ = pace.next(start);
        let later = start + Duration::from_secs(60);
        let at_once = (0..50).filter(|_| pace.next(later) == Turn::SendAt(later)).count();
        assert!(at_once <= 5, "{at_once} at once after a pause");
    }

    #[test]
    fn too_fast_halves_at_once_and_only_once_a_second() {
        let start = origin();
        let mut pace = Pace::new(80.0, start);
        pace.report(Answer::TooFast, start);
        pace.report(Answer::TooFast, start + millis(999));
        assert_eq!(pace.current_rate(start + millis(999)), 40.0);
        pace.report(Answer::TooFast, start + millis(1_000));
        assert_eq!(pace.current_rate(start + millis(1_000)), 20.0);
    }

    #[test]
    fn a_tenth_of_troubled_answers_is_borne_and_more_is_not() {
        let start = origin();
        let mut pace = Pace::new(80.0, start);
        for _ in 0..18 {
            pace.report(Answer::Fine, start);
        }
        pace.report(Answer::Busy, start);
        pace.report(Answer::Missing, start);
        assert_eq!(pace.current_rate(start), 80.0, "two of twenty");
        pace.report(Answer::Missing, start);
        assert_eq!(pace.current_rate(start), 40.0, "three of twenty-one");
    }

    #[test]
    fn answers_of_more_than_a_second_ago_do_not_count() {
        let start = origin();
        let mut pace = Pace::new(80.0, start);
        for _ in 0..100 {
            pace.report(Answer::Fine, start);
        }
        pace.report(Answer::Busy, start + SECOND);
        assert_eq!(pace.current_rate(start + SECOND), 40.0);
    }

    #[test]
    fn calm_brings_the_rate_back_step_by_step_within_a_minute() {
        let start = origin();
        let mut pace = Pace::new(100.0, start);
        for second in 0..10 {
            pace.report(Answer::TooFast, start + Duration::from_secs(second));
        }
        let trouble_ended = start + Duration::from_secs(9);
        let mut last = pace.current_rate(trouble_ended);
        assert!(last < 5.0);
        for second in 1..=60 {
            let rate = pace.current_rate(trouble_ended + Duration::from_secs(second));
            assert!(rate >= last && rate - last <= 2.0 + 1e-9, "no leaps");
            last = rate;
        }
        assert_eq!(last, 100.0);
    }

    #[test]
    fn a_changed_rate_reaches_waiting_senders_within_a_second() {
        let start = origin();
        let mut pace = Pace::new(0.01, start);
        let _ = pace.next(start);
        let Turn::AskAgainAt(again) = pace.next(start) else { panic!("the next turn is 100 s away") };
        assert_eq!(again, start + SECOND);
        pace.set_rate(50.0, start + millis(10));
        assert_eq!(pace.next(again), Turn::SendAt(again));
    }

    #[test]
    fn nothing_goes_out_after_the_right_to_send_has_ended() {
        let start = origin();
        let mut pace = Pace::new(50.0, start);
        pace.open_until(Some(start));
        assert_eq!(pace.next(start), Turn::AskAgainAt(start + millis(100)), "it has no share yet");
        pace.open_until(Some(start + millis(500)));
        assert_eq!(pace.next(start + millis(100)), Turn::SendAt(start + millis(100)));
        assert_eq!(pace.next(start + millis(500)), Turn::AskAgainAt(start + millis(600)), "nobody renewed it");
    }

    #[test]
    fn a_slowed_pace_stays_slowed_when_the_rate_changes() {
        let start = origin();
        let mut pace = Pace::new(80.0, start);
        pace.report(Answer::TooFast, start);
        pace.set_rate(20.0, start);
        assert_eq!(pace.current_rate(start), 10.0);
    }

    #[test]
    fn senders_on_many_threads_share_one_plan() {
        let start = origin();
        let pace = SharedPace::new(100.0, start);
        let turns: Vec<Instant> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    let pace = pace.clone();
                    scope.spawn(move || [pace.next(start), pace.next(start)])
                })
                .collect();
            let turns = threads.into_iter().flat_map(|thread| thread.join().expect("it does not panic"));
            let mut turns: Vec<_> = turns
                .map(|turn| match turn {
                    Turn::SendAt(at) => at,
                    Turn::AskAgainAt(_) => panic!("sixteen turns fit into a second"),
                })
                .collect();
            turns.sort();
            turns
        });
        assert!(turns.windows(2).all(|pair| pair[1] - pair[0] >= millis(9)), "one interval apart");
    }
}
