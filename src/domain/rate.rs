//! How senders of one account divide its ceiling.

/// The sends a second that one of several senders may have at most, so that each gets what it wants or an equal part of
/// what those who want little leave. All are rates; the answers of all together never pass the ceiling.
pub fn fair_share(ceiling: f64, wanted: f64, others: &[f64]) -> f64 {
    let mut all: Vec<f64> = others.iter().copied().chain([wanted]).map(|rate| rate.max(0.0)).collect();
    all.sort_by(f64::total_cmp);
    let (mut left, mut senders) = (ceiling.max(0.0), all.len());
    for modest in all {
        #[expect(clippy::cast_precision_loss, reason = "so many senders there never are")]
        let equal = left / senders as f64;
        if modest > equal {
            return wanted.clamp(0.0, equal.max(0.0));
        }
        left -= modest;
        senders -= 1;
    }
    own.wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_wants_little_leaves_the_rest_to_the_others() {
        assert_eq!(fair_share(100.0, 500.0, &[]), 100.0);
        assert_eq!(fair_share(100.0, 500.0, &[500.0]), 50.0);
        assert_eq!(fair_share(100.0, 500.0, &[10.0]), 90.0);
        assert_eq!(fair_share(100.0, 10.0, &[500.0]), 10.0);
        assert_eq!(fair_share(100.0, 500.0, &[10.0, 500.0]), 45.0);
        assert_eq!(fair_share(100.0, 20.0, &[30.0]), 20.0);
    }

    proptest! {
        #[test]
        fn shares_never_pass_the_ceiling_and_waste_nothing(
            ceiling in 0.1..1_000.0_f64,
            wanted in prop::collection::vec((0.1..2_000.0_f64, prop::sample::select(vec![1.0, 4.0])), 1..8),
        ) {
            let shares: Vec<f64> = (0..wanted.len())
                .map(|own| {
                    let others: Vec<f64> = (0..wanted.len()).filter(|at| *at != own).map(|at| wanted[at]).collect();
                    fair_share(ceiling, wanted[own], &others)
                })
                .collect();
            let (given, asked) = (shares.iter().sum::<f64>(), all.iter().map(|one| one.wanted).sum::<f64>());
            prop_assert!(given <= ceiling + 1e-6, "{shares:?}");
            prop_assert!(given >= asked.min(ceiling) - 1e-6, "{shares:?}");
        }
    }
}
