//! When the first messages of a push allow the rest to go: a rule over what WeChat's finish events said.

/// What became of the messages of a canary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct CanaryCounts {
    /// Recipients who were sent to, whatever came of it.
    pub sent_to: u64,
    pub delivered: u64,
    pub blocked: u64,
    pub failed: u64,
    /// Refused at the send: no event comes of them.
    pub refused: u64,
}

/// What is to be done about a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CanaryVerdict {
    Passed,
    Failed,
    /// Events that are still to come decide.
    Open,
}

impl CanaryCounts {
    /// Messages of which no event tells yet.
    pub fn untold(&self) -> u64 {
        self.sent_to.saturating_sub(self.delivered + self.lost())
    }

    /// Share of the messages that were not delivered as far as is known; whoever is not told of counts as not delivered.
    pub fn not_delivered_share(&self) -> f64 {
        share(self.sent_to.saturating_sub(self.delivered), self.sent_to)
    }

    /// Judges by the most that may stay undelivered; `is_over`: no more events are waited for.
    pub fn verdict(&self, max_not_delivered: f64, is_over: bool) -> CanaryVerdict {
        if self.not_delivered_share() <= max_not_delivered {
            return CanaryVerdict::Passed;
        }
        if is_over || share(self.lost(), self.sent_to) > max_not_delivered {
            return CanaryVerdict::Failed;
        }
        CanaryVerdict::Open
    }

    fn lost(&self) -> u64 {
        self.blocked + self.failed + self.refused
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_is_judged_as_soon_as_no_event_can_change_it_and_at_its_end_at_the_latest() {
        let seen = |delivered, blocked, refused| CanaryCounts { sent_to: 100, delivered, blocked, failed: 0, refused };
        for (counts, is_over, verdict) in [
            (seen(0, 0, 0), false, CanaryVerdict::Open),
            (seen(69, 20, 0), false, CanaryVerdict::Open),
            (seen(70, 0, 0), false, CanaryVerdict::Passed),
            (seen(10, 25, 6), false, CanaryVerdict::Failed),
            (seen(10, 20, 10), false, CanaryVerdict::Open),
            (seen(69, 0, 0), true, CanaryVerdict::Failed),
            (seen(70, 0, 0), true, CanaryVerdict::Passed),
            (CanaryCounts::default(), false, CanaryVerdict::Passed),
        ] {
            assert_eq!(counts.verdict(0.3, is_over), verdict, "{counts:?}");
        }
        assert_eq!(seen(60, 10, 5).untold(), 25);
    }
}
