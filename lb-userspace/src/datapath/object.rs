//! The eBPF objects that the build embedded.
//!
//! Besides [`XDP`] there is a constant for every binary of `lb-ebpf`, named after it in capitals. One that nothing
//! uses takes no room in the daemon.

include!(concat!(env!("OUT_DIR"), "/objects.rs"));

/// The load balancer's program and maps, an ELF object for the kernel of this machine's byte order.
pub const XDP: &[u8] = EBB_XDP;

/// The programs of `cargo xtask bench`.
pub const BENCH: &[u8] = EBB_BENCH;

/// The programs of the lab's flood.
pub const FLOOD: &[u8] = EBB_FLOOD;

#[cfg(test)]
mod tests {
    use super::XDP;

    /// Offset of the machine number in an ELF header, two bytes in the object's byte order.
    const MACHINE: usize = 18;
    /// The machine number of BPF.
    const BPF: u16 = 247;

    #[test]
    fn the_object_is_bpf_of_this_byte_order() {
        assert_eq!(&XDP[..4], b"\x7fELF");
        let machine = u16::from_ne_bytes([XDP[MACHINE], XDP[MACHINE + 1]]);
        assert_eq!(machine, BPF);
    }
}
