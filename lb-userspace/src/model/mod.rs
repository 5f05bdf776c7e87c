//! The pure part of ebb: what is wanted, what follows from it, and in which order it is carried out.
//!
//! Nothing in here reads a clock, opens a file or a socket, or knows tokio or aya. `now` is always an argument.
//!
//! A command's way: [`command`] or [`reload`] turns a request into [`state::Op`]s or refuses it; the journal writes
//! them down; [`state::State::apply`] carries them out; [`compose`] says who takes new flows then; [`desired`] what
//! the maps should hold; [`plan`] what is to be written, in which order. [`census`] is the look at the flow tables.

pub mod address;
pub mod ages;
pub mod census;
pub mod command;
pub mod compose;
pub mod death;
pub mod desired;
pub mod drain;
pub mod forecast;
pub mod former;
pub mod health;
pub mod observed;
pub mod packed;
pub mod plan;
pub mod refused;
pub mod reload;
pub mod share;
pub mod spec;
pub mod speech;
pub mod state;
pub mod table;
pub mod trace;
