//! ebb's daemon and command line as a library, so that tests and the binary share one code.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod datapath;
pub mod model;
pub mod step;
