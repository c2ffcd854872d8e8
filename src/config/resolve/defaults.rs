//! Every default of the contract that is more than "none" or "empty", in one place.

use std::time::Duration;

use crate::config::settings::{HaltWhen, Retry};

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

const fn hours(count: u64) -> Duration {
    minutes(60 * count)
}

pub const TIMEZONE: chrono_tz::Tz = chrono_tz::Asia::Shanghai;

pub const API_BASE: &str = "https://api.weixin.qq.com";
pub const PAGE_KEY: &str = "pagepath";
/// Read calls in flight.
pub const READ_CONCURRENCY: u64 = 32;
pub const TIMEOUT: Duration = Duration::from_secs(10);

pub const LEDGER_URL: &str = "sqlite://data/ledger.db";
pub const LAKE_URL: &str = "data/lake";
pub const MEMORY_LIMIT: &str = "4GB";
/// Below this a join or a set of a few hundred thousand people fails; with it one of a million is made.
pub const LEAST_MEMORY: &str = "200MB";
pub const LEAST_MEMORY_BYTES: u64 = 200_000_000;
pub const LISTEN: &str = "127.0.0.1:8787";

pub const RETRY: Retry = Retry { times: 3, wait: minutes(10) };

pub const REFRESH_AFTER: Duration = hours(30 * 24);
/// How long a delivered message says that a person can be reached.
pub const LATELY: Duration = hours(30 * 24);
/// Share of a file's rows.
pub const MAX_BAD: f64 = 0.05;
/// Rows of a page of a database, and how long the statement of one may take.
pub const PAGE_ROWS: u64 = 50_000;
pub const STATEMENT_TIMEOUT: Duration = minutes(5);
pub const MAX_STALENESS: Duration = hours(48);
pub const PUBLISH_TO: &str = "data/published";

/// Sends a second.
pub const RATE: f64 = 50.0;
/// Sends in flight.
pub const SEND_CONCURRENCY: u64 = 64;
pub const HALT_WHEN: HaltWhen = HaltWhen { failed_share: 0.2, after: 200 };
pub const CANARY_WAIT: Duration = minutes(10);
pub const CANARY_MAX_NOT_DELIVERED: f64 = 0.3;
