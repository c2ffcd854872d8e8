//! What is due, which stage comes next, who holds the lease, how a run is continued and how it stops.
//!
//! [`conductor`] carries one run from its beginning (or from where it stood) to its end; the calendar says when the next
//! fire is; [`order`] reads which stage comes after which; [`check`] binds every SQL before anything runs. Under `serve`
//! the [`clockwork`] looks each second: [`due`] says which scheduled times have come, [`standing`] whether a run may begin
//! or go on, [`runners`] carry what was begun. What a stage does inside is not known here.

pub mod alert;
pub mod allowance;
pub mod canary_view;
pub mod catalog;
pub mod check;
pub mod clockwork;
pub mod conductor;
pub mod coverage;
pub mod due;
pub mod events;
pub mod explain;
pub mod forget;
pub mod funnel;
pub mod inventory;
pub mod migrate;
pub mod next_step;
pub mod online;
pub mod order;
pub mod plan;
pub mod push_view;
pub mod quotas;
pub mod reviews;
pub mod runners;
pub mod standing;
pub mod status;
pub mod strangers;
pub mod vacuum;
pub mod view;
