//! What ebb's XDP program and its daemon share.
//!
//! Everything in here is `no_std`, free of I/O and tested on the host as a plain library: the layout of the
//! maps, the flow hash, checksum updates, and the steering rule itself ([`steer`]), which the XDP program
//! instantiates over BPF maps and the tests over memory.
//!
//! Byte order: integers are in host order unless the docstring says "network order".

#![no_std]
// One instruction of the BPF machine, see `mask`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod address;
pub mod alert;
pub mod checksum;
pub mod entry;
pub mod former;
pub mod fragment;
pub mod full_nat;
pub mod hash;
pub mod identification;
pub mod index;
pub mod limits;
pub mod mask;
pub mod outcome;
pub mod protect;
pub mod quic;
pub mod recent;
pub mod steer;
pub mod trace;
pub mod tunnel;

pub use address::Addr;
