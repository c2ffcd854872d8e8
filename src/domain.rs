//! Words and rules: ids, states, quota days. Pure: no I/O, no async, no clock, no SQL but how it quotes.

mod bucket;
mod canary;
mod columns;
mod database;
mod day;
mod delivery;
mod finish;
mod ids;
mod known;
mod message_id;
mod percent;
mod person_hash;
mod quota_day;
pub mod quoting;
mod rate;
mod run;
pub mod tables;
mod texts;

pub use bucket::{BucketAddress, BucketCredentials, SCHEME as BUCKET_SCHEME};
pub use canary::{CanaryCounts, CanaryVerdict};
pub use columns::{ColumnType, Rows, Values};
pub use database::{DatabaseAddress, DatabaseKind, LineSecurity, NoAddress};
pub use day::end_of_day;
pub use delivery::{Counts, DeliveryEvent, DeliveryState, Unlawful, may_repeat, once_more_at};
pub use finish::{Candidate, Delivered, FINISH_WINDOW, Finish, Finished, finish};
pub use ids::{AccountName, MiniProgramName, OpenId, PipelineName, RunId, StageName, TableName, TemplateId, UnionId};
pub use known::{Neighbours, Quick, QuickSet, fingerprint, surely_differ};
pub use message_id::client_msg_id;
pub use percent::percent_decoded;
pub use person_hash::person_hash;
pub use quota_day::{LATE_RESET, QuotaDay};
pub use rate::{Sharer, fair_share};
pub use run::{RunStatus, StageStatus};
pub use texts::Texts;
