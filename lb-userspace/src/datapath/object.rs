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
    use aya_obj::{Object, generated::bpf_insn};

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

    /// Bytes of stack that a program and whatever it calls may use together (`MAX_BPF_STACK`), and what each frame is rounded up to:
    /// Linux 6.1 counts 32 bytes for a function that uses none. 6.18 does not, and would not tell.
    const STACK_MAX: u32 = 512;
    const ROUNDED_TO: u32 = 32;

    /// Opcodes (RFC 9669): copies a register, adds a number to one. Register 10 is the frame's upper end.
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    const FRAME: u8 = 10;

    /// Bytes of stack that a function uses, as a verifier sees it.
    fn frame(instructions: &[bpf_insn]) -> u32 {
        let mut based = [false; 16];
        based[usize::from(FRAME)] = true;
        let mut lowest = 0;
        for insn in instructions {
            let (to, from) = (insn.dst_reg(), insn.src_reg());
            let class = insn.code & 7;
            match class {
                // Loads by the second register; stores by the first.
                1 if based[usize::from(from)] => lowest = lowest.min(i32::from(insn.off)),
                2 | 3 if based[usize::from(to)] => lowest = lowest.min(i32::from(insn.off)),
                _ => {}
            }
            if insn.code == ADD && based[usize::from(to)] {
                lowest = lowest.min(insn.imm);
            }
            // Whatever else is written holds no address of the frame that anything is to be added to.
            if !matches!(class, 2 | 3 | 5 | 6) {
                based[usize::from(to)] = insn.code == MOVE && from == FRAME;
            }
        }
        lowest.unsigned_abs()
    }

    #[test]
    fn frames_leave_room_for_what_they_call() {
        let object = Object::parse(XDP).expect("an object");
        let programs: Vec<_> = object.programs.values().collect();
        let entry = |key: &(usize, u64)| {
            programs
                .iter()
                .any(|program| program.function_key() == *key)
        };
        let rounded = |bytes: u32| bytes.max(1).next_multiple_of(ROUNDED_TO);
        let frames = object
            .functions
            .iter()
            .map(|(key, function)| (entry(key), &function.name, frame(&function.instructions)));
        let (programs, called): (Vec<_>, Vec<_>) = frames.partition(|(is_entry, ..)| *is_entry);
        let called = called.iter().map(|(_, _, bytes)| rounded(*bytes)).max();
        let called = called.expect("functions that are called");
        assert!(programs.len() > 20, "{programs:?}");
        for (_, name, bytes) in programs {
            println!("{name}: {bytes} bytes");
            assert!(
                rounded(bytes) + called <= STACK_MAX,
                "{name}: {bytes} bytes of stack, and {called} for what it may call"
            );
        }
    }
}
