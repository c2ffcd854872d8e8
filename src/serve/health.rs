//! Whether the process lives (`/healthz`), and whether it does its work (`/readyz`).

use axum::extract::State;
use axum::http::StatusCode;

use super::router::Door;
use crate::scheduler::clockwork::LEASE_NAME;

/// 200 as long as there is anybody to answer.
pub async fn healthz() -> &'static str {
    "alive\n"
}

/// 200 while the ledger answers and this process is the one that serves; else 503 with the reason.
pub async fn readyz(State(door): State<Door>) -> (StatusCode, String) {
    match why_not(&door).await {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn why_not(door: &Door) -> Option<String> {
    if door.stop.is_cancelled() {
        return Some("stopping".to_owned());
    }
    match door.house.app().hands().ledger.lease_holder(LEASE_NAME).await {
        Ok(Some(holder)) if holder.id == door.house.holder_id => None,
        Ok(Some(holder)) => Some(format!("standing by: process {} on {} serves", holder.pid, holder.host)),
        Ok(None) => Some("nobody holds the lease to serve".to_owned()),
        Err(error) => Some(format!("the ledger does not answer: {error}")),
    }
}
