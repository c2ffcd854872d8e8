//! The states of a run and of its stages.

use serde::{Deserialize, Serialize};

/// Where a run stands. `Running` and `Waiting` runs are unfinished, and so are `Failed` and `Halted` ones: `run` continues them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    Running,
    Waiting,
    Halted,
    Failed,
    Partial,
    Succeeded,
    Cancelled,
}

impl RunStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Halted => "halted",
            Self::Failed => "failed",
            Self::Partial => "partial",
            Self::Succeeded => "succeeded",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Waiting, Self::Halted, Self::Failed, Self::Partial, Self::Succeeded, Self::Cancelled]
            .into_iter()
            .find(|status| status.as_str() == text)
    }

    /// Whether the next `run` begins anew instead of continuing this one.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Partial | Self::Cancelled)
    }
}

/// Where a stage of a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageStatus {
    Pending,
    Running,
    Waiting,
    Halted,
    Failed,
    /// Some accounts or mini programs failed and kept their old rows; the others finished.
    Partial,
    Succeeded,
    /// Not run, because a stage it reads failed.
    Skipped,
}

impl StageStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Halted => "halted",
            Self::Failed => "failed",
            Self::Partial => "partial",
            Self::Succeeded => "succeeded",
            Self::Skipped => "skipped",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Pending,
            Self::Running,
            Self::Waiting,
            Self::Halted,
            Self::Failed,
            Self::Partial,
            Self::Succeeded,
            Self::Skipped,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
    }
}
