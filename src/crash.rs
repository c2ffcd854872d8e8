//! Places at which a test ends the process as a power cut would: at once, with nothing said, flushed or given back.
//!
//! Each step that others rely on has a [`CrashPoint`] right before and right after it. A process that is started with
//! `LIANBO_CRASH_AT=POINT:N` aborts when it passes that point for the N-th time (`before_send:3`); `LIANBO_LOG` of
//! `lianbo::crash=trace` lists what is passed. Both only where debug assertions are compiled in, which is the profile of
//! the tests: in a release build [`pass`] is an empty function, and the variable is not looked at.

/// Makes the enum, its list and its names of one list, so that none can be missing in another.
macro_rules! crash_points {
    ($($(#[$what:meta])* $point:ident = $name:literal,)*) => {
        /// Where the process may be ended. `tests/it/crashes.rs` walks all of them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum CrashPoint {
            $($(#[$what])* $point,)*
        }

        impl CrashPoint {
            /// All points, in the order of a run.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// As `LIANBO_CRASH_AT` spells it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

crash_points! {
    /// A page of a walk is put aside; neither is it recorded, nor is the next one asked for.
    AfterPageArrived = "after_page_arrived",
    /// A part of the lake is whole under a name that nobody reads.
    BeforePartRename = "before_part_rename",
    AfterPartRename = "after_part_rename",
    /// The same for a part that DuckDB wrote.
    BeforeCopyRename = "before_copy_rename",
    AfterCopyRename = "after_copy_rename",
    /// The tables of a run move in an open transaction.
    BeforePublishCommit = "before_publish_commit",
    /// They have moved; the catalog still shows those before.
    AfterPublishCommit = "after_publish_commit",
    BeforeCatalogRename = "before_catalog_rename",
    AfterCatalogRename = "after_catalog_rename",
    /// Quota and intents of a batch are in an open transaction.
    BeforeIntentCommit = "before_intent_commit",
    /// The intents are durable and no byte has left.
    AfterIntentCommit = "after_intent_commit",
    /// A message is taken from the desk.
    BeforeSend = "before_send",
    /// Its answer is here and not looked at.
    AfterSend = "after_send",
    /// Its outcome is known to this process alone.
    AfterOutcomeJudged = "after_outcome_judged",
    /// Outcomes of a group are in an open transaction.
    BeforeOutcomeCommit = "before_outcome_commit",
    AfterOutcomeCommit = "after_outcome_commit",
    /// Nobody is owed a message; the push does not say yet that it has ended.
    BeforePushEnd = "before_push_end",
    AfterPushEnd = "after_push_end",
    /// A file of a `publish` stage is whole under a name that nobody reads.
    BeforeExportRename = "before_export_rename",
    AfterExportRename = "after_export_rename",
}

/// Goes on, unless the process was started to end here.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn pass(_: CrashPoint) {}

/// Goes on, unless the process was started to end here.
#[cfg(debug_assertions)]
pub fn pass(point: CrashPoint) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ORDERED: OnceLock<Option<(CrashPoint, AtomicU64)>> = OnceLock::new();
    tracing::trace!("passes {}", point.name());
    let ordered = ORDERED.get_or_init(|| {
        let text = std::env::var("LIANBO_CRASH_AT").ok()?;
        let (point, n) = ordered(&text).unwrap_or_else(|| panic!("LIANBO_CRASH_AT={text} is not POINT:N"));
        Some((point, AtomicU64::new(n)))
    });
    if let Some((at, left)) = ordered
        && *at == point
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}

/// Reads `POINT:N`; N counts from 1.
#[cfg(debug_assertions)]
fn ordered(text: &str) -> Option<(CrashPoint, u64)> {
    let (name, n) = text.split_once(':')?;
    let point = CrashPoint::ALL.iter().find(|point| point.name() == name)?;
    Some((*point, n.parse().ok().filter(|n| *n > 0)?))
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_a_point_and_a_passing() {
        assert_eq!(ordered("after_send:12"), Some((CrashPoint::AfterSend, 12)));
        for wrong in ["after_send", "after_send:0", "after_send:x", "after_lunch:1", ""] {
            assert_eq!(ordered(wrong), None, "{wrong}");
        }
    }
}
