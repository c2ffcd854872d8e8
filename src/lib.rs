//! Lianbo (联播) reaches the users of a WeChat Mini Program through the followers of an Official Account.
//!
//! The rooms, in the order of the data: people come in by `cli` and `serve`; `app` wires the house from `config`;
//! `scheduler` decides what is due and which stage comes next; `stage` holds one step of the way each; the stages
//! work with the hands `wechat`, `exports`, `lake`, `engine`, `ledger` and `pace`; `domain`, `template`, `clock`,
//! `memory` and `redact` are the ground. `simulator` is a WeChat of its own beside the house. Arrows go down (`ARCHITECTURE.md`).

pub mod cli;
pub mod serve;

pub mod app;
pub mod config;

pub mod scheduler;

pub mod stage;

pub mod engine;
pub mod exports;
pub mod lake;
pub mod ledger;
pub mod pace;
pub mod wechat;

pub mod calendar;
pub mod clock;
pub mod crash;
pub mod domain;
pub mod memory;
pub mod redact;
pub mod telemetry;
pub mod template;

pub mod simulator;
