//! Clients that know when something broke: a load generator with long and short connections, single connections
//! from chosen ports, and a handshake that can be held half-way.

pub mod connection;
mod load;
pub mod raw;
pub mod report;

pub use connection::{Answer, Connection, Failure, Reason, request_once};
pub use load::{Load, LoadOptions, Watch, raise_open_files};
pub use report::{Broken, Flow, Late, Length, Report, Sample, begun_within};
