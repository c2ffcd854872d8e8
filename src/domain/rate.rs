//! How senders of one account divide its ceiling.

/// A sender: the sends a second it wants, and its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sharer {
    pub wanted: f64,
    /// How many parts it gets where another of weight 1 gets one. Positive.
    pub weight: f64,
}

/// The sends a second that one of several senders may have at most, so that each gets what it wants or its part, by
/// weight, of what those who want little leave. All are rates; the answers of all together never pass the ceiling.
pub fn fair_share(ceiling: f64, own: Sharer, others: &[Sharer]) -> f64 {
    let clean = |one: &Sharer| Sharer { wanted: one.wanted.max(0.0), weight: one.weight.max(f64::MIN_POSITIVE) };
    let own = clean(&own);
    let mut all: Vec<Sharer> = others.iter().map(clean).chain([own]).collect();
    all.sort_by(|a, b| (a.wanted / a.weight).total_cmp(&(b.wanted / b.weight)));
    let mut left = ceiling.max(0.0);
    let mut weights: f64 = all.iter().map(|one| one.weight).sum();
    for modest in all {
        let part = (left / weights).max(0.0);
        if modest.wanted > part * modest.weight {
            return own.wanted.min(part * own.weight);
        }
        left -= modest.wanted;
        weights -= modest.weight;
    }
    own.wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn alike(ceiling: f64, wanted: f64, others: &[f64]) -> f64 {
        let sharer = |wanted| Sharer { wanted, weight: 1.0 };
        let others: Vec<Sharer> = others.iter().copied().map(sharer).collect();
        fair_share(ceiling, sharer(wanted), &others)
    }

    #[test]
    fn who_wants_little_leaves_the_rest_to_the_others() {
        assert_eq!(alike(100.0, 500.0, &[]), 100.0);
        assert_eq!(alike(100.0, 500.0, &[500.0]), 50.0);
        assert_eq!(alike(100.0, 500.0, &[10.0]), 90.0);
        assert_eq!(alike(100.0, 10.0, &[500.0]), 10.0);
        assert_eq!(alike(100.0, 500.0, &[10.0, 500.0]), 45.0);
        assert_eq!(alike(100.0, 20.0, &[30.0]), 20.0);
    }

    #[test]
    fn who_weighs_more_gets_more_parts_but_not_more_than_it_wants() {
        let (heavy, light) = (Sharer { wanted: 500.0, weight: 4.0 }, Sharer { wanted: 500.0, weight: 1.0 });
        assert_eq!((fair_share(100.0, heavy, &[light]), fair_share(100.0, light, &[heavy])), (80.0, 20.0));
        let modest = Sharer { wanted: 30.0, weight: 4.0 };
        assert_eq!((fair_share(100.0, modest, &[light]), fair_share(100.0, light, &[modest])), (30.0, 70.0));
    }

    proptest! {
        #[test]
        fn shares_never_pass_the_ceiling_and_waste_nothing(
            ceiling in 0.1..1_000.0_f64,
            wanted in prop::collection::vec((0.1..2_000.0_f64, prop::sample::select(vec![1.0, 4.0])), 1..8),
        ) {
            let all: Vec<Sharer> = wanted.iter().map(|(wanted, weight)| Sharer { wanted: *wanted, weight: *weight }).collect();
            let shares: Vec<f64> = (0..all.len())
                .map(|own| {
                    let others: Vec<Sharer> = (0..all.len()).filter(|at| *at != own).map(|at| all[at]).collect();
                    fair_share(ceiling, all[own], &others)
                })
                .collect();
            let (given, asked) = (shares.iter().sum::<f64>(), all.iter().map(|one| one.wanted).sum::<f64>());
            prop_assert!(given <= ceiling + 1e-6, "{shares:?}");
            prop_assert!(given >= asked.min(ceiling) - 1e-6, "{shares:?}");
        }
    }
}
