//! (room under construction)

pub mod calendar;
