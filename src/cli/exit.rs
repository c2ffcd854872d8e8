//! Exit codes, and how a failure is told: once, with its causes, and what to do next.

use std::process::ExitCode;

use super::context::Context;
use crate::config::Problems;
use crate::domain::RunStatus;
use crate::scheduler::conductor::RunError;

/// How a command ended, as the shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// Failed or partial.
    Failed,
    /// Wrong usage or configuration.
    Usage,
    /// Halted by a guard.
    Halted,
    /// Run again later, or let `serve` go on by itself.
    Waiting,
}

impl Exit {
    /// The exit of a run that ended like this.
    pub fn of(status: RunStatus) -> Self {
        match status {
            RunStatus::Succeeded => Self::Done,
            RunStatus::Failed | RunStatus::Partial | RunStatus::Cancelled => Self::Failed,
            RunStatus::Halted => Self::Halted,
            RunStatus::Waiting | RunStatus::Running => Self::Waiting,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Halted => 3,
            Exit::Waiting => 75,
        })
    }
}

/// Why a command could not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// The configuration: every problem at once.
    Problems(Problems),
    /// Wrong usage, in one sentence with the next step.
    Usage(String),
    /// Anything else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// What a run, or an order about one, says when it cannot be.
pub fn of_run(error: RunError) -> Failure {
    match error {
        RunError::Usage(text) => Failure::Usage(text),
        other => Failure::Other(other.into()),
    }
}

impl Failure {
    /// Tells it (JSON on stdout where that was asked for, else text on stderr) and gives the exit.
    pub fn report(self, context: &Context) -> Exit {
        let (text, exit, problems) = match self {
            Self::Problems(problems) => (problems.to_string(), Exit::Usage, Some(problems.to_json())),
            Self::Usage(text) => (text, Exit::Usage, None),
            Self::Other(error) => (chain(&*error), Exit::Failed, None),
        };
        if context.is_json {
            let mut document = serde_json::json!({ "error": text });
            if let Some(problems) = problems {
                document["problems"] = problems;
            }
            super::context::print_line(&document.to_string());
        } else {
            eprintln!("{}", text.trim_end());
        }
        exit
    }
}

/// The error with its causes, each once.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for cause in std::iter::successors(Some(error), |error| error.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}
