//! How much a question may take. What goes past a limit is an error that names it, never a part of the answer.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::QueryError;
use crate::config::settings::Settings;
use crate::engine::Engine;
use crate::stage::{Hands, StageError};

/// What spills to the disk at most, as a multiple of the memory.
const SPILLED: u64 = 10;
/// A statement that does not hear that its time is over is left to itself after this.
const PATIENCE: Duration = Duration::from_secs(5);

/// The limits of a question; `None` is none.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    pub time: Option<Duration>,
    pub rows: Option<u64>,
    /// Instead of the workspace's own: as it was written, and in bytes.
    pub memory: Option<(String, u64)>,
}

impl Limits {
    /// The engine that a question is answered by.
    pub(super) fn engine(&self, hands: &Hands) -> Engine {
        let (memory, bytes) = self.memory(&hands.settings);
        hands.engine.with_limits(memory, bytes.saturating_mul(SPILLED))
    }

    fn memory<'a>(&'a self, settings: &'a Settings) -> (&'a str, u64) {
        let own = (settings.engine.memory_limit.as_str(), settings.engine.memory_limit_bytes);
        self.memory.as_ref().map_or(own, |(text, bytes)| (text.as_str(), *bytes))
    }

    /// What is said when the engine runs out of memory.
    pub(super) fn out_of_memory(&self, settings: &Settings) -> QueryError {
        let from = if self.memory.is_some() { "--memory" } else { "`memory_limit` of [engine]" };
        let (memory, _) = self.memory(settings);
        QueryError::Limit(format!(
            "this needs more than {memory} of memory and {SPILLED} times as much on the disk, the limit by {from}: ask for \
             less at once, or give it more, such as --memory 8GB"
        ))
    }

    /// Waits for an answer as long as it may take. `ask` is given what stops it.
    ///
    /// # Errors
    ///
    /// [`QueryError::Limit`] when it took longer; what the answer had written out for itself may then be left, until `vacuum`.
    pub(super) async fn in_time<T, F: Future<Output = Result<T, QueryError>>>(
        &self,
        hands: &Hands,
        stop: &CancellationToken,
        ask: impl FnOnce(CancellationToken) -> F,
    ) -> Result<T, QueryError> {
        let own = stop.child_token();
        let mut answer = Box::pin(ask(own.clone()));
        let Some(limit) = self.time else { return answer.await };
        tokio::select! {
            done = &mut answer => return done,
            () = hands.clock.sleep(limit) => own.cancel(),
        }
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Err(QueryError::Stage(StageError::Interrupted))) | Err(_) => Err(QueryError::Limit(format!(
                "this takes longer than {}, the limit by --timeout: ask for less at once, or give it more, such as \
                 --timeout 1h or --timeout none",
                told(limit)
            ))),
            Ok(done) => done,
        }
    }
}

/// What is said when there are more rows.
pub(super) fn too_many_rows(most: u64) -> QueryError {
    QueryError::Limit(format!(
        "this gives more than {most} rows, the limit by --max-rows: ask for fewer, or allow more, such as --max-rows {} or \
         --max-rows none",
        most.saturating_mul(10)
    ))
}

/// `10m`, `90s`, `1500ms`.
fn told(time: Duration) -> String {
    let millis = time.as_millis();
    match (millis % 1_000, millis / 1_000) {
        (0, seconds) if seconds % 60 == 0 => format!("{}m", seconds / 60),
        (0, seconds) => format!("{seconds}s"),
        _ => format!("{millis}ms"),
    }
}
