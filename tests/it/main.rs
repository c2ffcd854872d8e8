//! Stories told through the door that users come in by: the real program, in a workspace of its own, against WeChat as
//! the simulator plays it.

mod architecture;
mod house;
mod kills;
mod night;
mod push;
mod catalog;
mod checks;
mod mistakes;
mod platform;
mod serve;
