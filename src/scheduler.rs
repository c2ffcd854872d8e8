//! What is due, which stage comes next, who holds the lease, how a run is continued and how it stops.
//!
//! [`conductor`] carries one run from its beginning (or from where it stood) to its end; [`calendar`] says when the next
//! fire is; [`order`] reads which stage comes after which; [`check`] binds every SQL before anything runs. What a stage
//! does inside is not known here.

pub mod alert;
pub mod allowance;
pub mod calendar;
pub mod catalog;
pub mod check;
pub mod conductor;
pub mod next_step;
pub mod order;
pub mod plan;
pub mod push_view;
pub mod status;
pub mod view;
