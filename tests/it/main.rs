//! Stories told through the door that users come in by: the real program, in a workspace of its own, against WeChat as
//! the simulator plays it.

mod alerts;
mod architecture;
mod buckets;
mod callbacks;
mod catalog;
mod chat;
mod checks;
mod control;
// The points are passed over in a release build.
#[cfg(debug_assertions)]
mod crashes;
mod databases;
mod details;
mod docs;
mod exports;
mod followers;
mod guards;
#[allow(dead_code, reason = "what stories share; not every story needs all of it")]
mod house;
mod https;
mod identities;
mod kills;
mod later_nights;
mod many_nights;
mod migrate;
mod mistakes;
mod night;
mod odd_platform;
mod odd_sends;
mod often_killed;
mod planned;
mod push;
mod python;
mod readers;
mod reading;
mod reports;
mod scarce;
mod sealed;
mod serve;
mod servers;
mod sources;
mod together;
mod tokens;
mod unreachable;
mod unwritable;
mod windows;
