//! People who leave, come and come back by themselves, second by second of the platform's clock.
//!
//! Who they are follows from the seed and the second alone, so two worlds that were told the same are the same, whoever
//! called them how often. The seconds since the last look are lived through at the next call; a clock that was moved on
//! moves them along, one that was set back begins anew from there.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::crowd::Crowd;
use super::faults::Faults;
use super::people::mix;
use super::world::World;

/// After a leap of the clock, at most the last so many seconds of it are lived through: a month.
const LONGEST_LEAP_SECONDS: i64 = 31 * 86_400;
/// Draws for somebody who follows, before a second has one leaver less.
const DRAWS: u64 = 64;

/// People a second, on average: 0.05 is one every twenty seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChurnHabits {
    /// Followers who leave.
    pub leave: f64,
    /// People who never followed and do now, as far as there is room for them.
    pub come: f64,
    /// People who left and follow again, as far as there are any.
    pub come_back: f64,
}

impl ChurnHabits {
    fn is_still(&self) -> bool {
        [self.leave, self.come, self.come_back].iter().all(|rate| *rate <= 0.0)
    }
}

/// Up to which second the world has been lived through.
#[derive(Debug, Default)]
pub struct Lived {
    to_seconds: Mutex<i64>,
}

impl World {
    /// Lives through the seconds up to now by these habits.
    pub fn live_on(&self, faults: &Faults) {
        let habits = faults.churn_per_second;
        if habits.is_still() {
            return;
        }
        let now = self.clock.now_seconds();
        let mut to = self.lived.to_seconds.lock().expect("no holder of the second panics");
        let first = (*to + 1).max(now - LONGEST_LEAP_SECONDS);
        *to = now;
        (first..=now).for_each(|second| self.live_a_second(habits, second));
    }

    /// What is lived through later begins now: nothing of the past is caught up with.
    pub fn begin_to_live(&self) {
        *self.lived.to_seconds.lock().expect("no holder of the second panics") = self.clock.now_seconds();
    }

    fn live_a_second(&self, habits: ChurnHabits, second: i64) {
        let draw =
            |what: u64, turn: u64| mix(mix(self.options.seed ^ mix(second.unsigned_abs())) ^ mix(what << 32 | turn));
        let mut crowd = self.crowd_to_change();
        let leave: Vec<u64> = (0..people_of(habits.leave, second))
            .filter_map(|turn| {
                let index = (0..DRAWS)
                    .map(|again| crowd.known_at(draw(1, turn * DRAWS + again)))
                    .find(|index| crowd.follows(*index))?;
                crowd.unfollow(index).then_some(index)
            })
            .collect();
        let capacity = self.people.capacity();
        // Neither a newcomer nor somebody who left follows: each of them does from now on.
        let follows = |next: Option<u64>, crowd: &mut Crowd| next.filter(|index| crowd.follow(*index, second));
        let come: Vec<u64> = (0..people_of(habits.come, second))
            .map_while(|_| {
                let next = crowd.newcomer(capacity);
                follows(next, &mut crowd)
            })
            .collect();
        let back: Vec<u64> = (0..people_of(habits.come_back, second))
            .map_while(|turn| {
                let next = crowd.returner(draw(2, turn));
                follows(next, &mut crowd)
            })
            .collect();
        drop(crowd);
        self.announce(&leave, false, second);
        self.announce(&come, true, second);
        self.announce(&back, true, second);
    }
}

/// How many of a rate fall into one second, so that over many seconds the rate is met exactly.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "rates are small"
)]
fn people_of(rate: f64, second: i64) -> u64 {
    let up_to = |second: i64| (rate.max(0.0) * second as f64).floor();
    (up_to(second + 1) - up_to(second)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::Options;

    #[test]
    fn two_worlds_of_one_seed_live_through_the_same_and_another_seed_through_something_else() {
        let habits = ChurnHabits { leave: 0.5, come: 0.25, come_back: 0.125 };
        let follows = |seed| {
            let world = World::new(Options { seed, followers: 2_000, ..Options::default() });
            (1_793_491_200..1_793_491_800).for_each(|second| world.live_a_second(habits, second));
            let crowd = world.crowd();
            let all: Vec<bool> = (0..world.people.capacity()).map(|index| crowd.follows(index)).collect();
            assert_eq!(all.iter().filter(|follows| **follows).count(), 2_000 - 300 + 150 + 75);
            assert_eq!(crowd.total(), 1_925);
            all
        };
        assert!(follows(5) == follows(5) && follows(5) != follows(6));
    }

    #[test]
    fn a_rate_is_met_over_many_seconds() {
        let of_an_hour =
            |rate| (1_793_491_200..1_793_491_200 + 3_600).map(|second| people_of(rate, second)).sum::<u64>();
        assert_eq!((of_an_hour(0.05), of_an_hour(3.0), of_an_hour(0.0)), (180, 10_800, 0));
    }
}
