//! (room under construction)

pub mod alert;
pub mod calendar;
