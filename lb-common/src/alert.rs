//! What the programs tell the daemon at once, through a ring: layout shared by both sides.

use crate::Addr;

/// One alert.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Alert {
    /// A [`kind`].
    pub kind: u32,
    /// Backend id.
    pub backend: u32,
    /// Of [`kind::CUT`]: the client's address.
    pub client: Addr,
    /// The client's port, network order as loaded.
    pub client_port: u16,
    /// The service's port, network order as loaded.
    pub service_port: u16,
    /// Service id.
    pub service: u32,
    /// Sequence number of the client's packet, host order.
    pub sequence: u32,
    /// Zero.
    pub reserved: u32,
}

/// Kinds of [`Alert`].
pub mod kind {
    /// The backend has refused an opening. The fields after `backend` are zero.
    pub const REFUSED: u32 = 1;
    /// At a deadline a client was reset, and the backend is to be told.
    pub const CUT: u32 = 2;
}

/// Most clients' resets that a CPU tells the daemon of in a tick of the kernel's clock.
pub const CUTS_PER_TICK: u32 = 32;

/// What a CPU has said lately.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Said {
    /// Tick of the last refusal that was told.
    pub refused: u32,
    /// Tick that `cuts` belongs to.
    pub tick: u32,
    /// Resets told in it.
    pub cuts: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Alert>() == 40 && size_of::<Said>() == 16);
