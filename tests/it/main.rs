//! Stories told through the door that users come in by: the real program, in a workspace of its own, against WeChat as
//! the simulator plays it.

mod architecture;
mod catalog;
#[allow(dead_code, reason = "what stories share; not every story needs all of it")]
mod house;
mod kills;
mod night;
mod push;
mod serve;
mod together;
