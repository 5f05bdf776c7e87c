//! Comparisons without branches: their answers are masks, all bits for yes and none for no.
//!
//! A verifier goes each way of each branch, and what it finds out on the ways it keeps apart: a choice among a few candidates by
//! comparisons costs it the product of the ways to go over each of them, which soon is more than the rest of a program. A mask has
//! one way. (A processor likes it as well: which candidate it will be is nothing that it can guess.)

/// All bits where `value` is negative. In eBPF an instruction that the compiler does not see through: it would make a branch of
/// what is done with the mask. Nor does it move the instruction (which is not said to be `pure`): it would rather put off all of a
/// group's choices until the last one, and keep on the stack what they are made of.
#[inline(always)]
pub fn negative(value: i64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: one instruction on a register.
        unsafe {
            core::arch::asm!("{value} s>>= 63", value = inout(reg) value, options(nomem, nostack));
        }
        value as u64
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        (value >> 63) as u64
    }
}

/// `value`, of which the compiler does not know what it is made of: so it keeps one register or place on the stack for it, and not one for
/// each of its parts.
#[inline(always)]
pub fn whole(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: one instruction on a register, which changes nothing. (Without any, two lines of the source would begin at one
        // instruction, and the kernel refuses that.)
        unsafe {
            core::arch::asm!("{value} = {value}", value = inout(reg) value, options(nomem, nostack));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        value
    }
}

/// All bits where `value` is zero.
#[inline(always)]
pub fn zero(value: u64) -> u64 {
    !negative((value | value.wrapping_neg()) as i64)
}

/// All bits where `value` has any of `bits`.
#[inline(always)]
pub fn any(value: u64, bits: u64) -> u64 {
    !zero(value & bits)
}

/// All bits where `a` is more than `b`.
#[inline(always)]
pub fn more(a: u32, b: u32) -> u64 {
    negative(b as i64 - a as i64)
}

/// `a` where the mask has its bits, else `b`.
#[inline(always)]
pub const fn select(mask: u64, a: u64, b: u64) -> u64 {
    b ^ ((a ^ b) & mask)
}

#[cfg(test)]
mod tests {
    use super::{any, more, negative, select, zero};
    use proptest::prelude::{prop_assert_eq, proptest};

    const fn mask(yes: bool) -> u64 {
        if yes { u64::MAX } else { 0 }
    }

    proptest! {
        #[test]
        fn masks_say_what_comparisons_say(a: u64, b: u64, c: u32, d: u32, shift in 0_u32..64) {
            let few = a >> shift;
            for value in [a, few, few.wrapping_neg(), 0, 1, u64::MAX, 1 << 63] {
                prop_assert_eq!(negative(value as i64), mask((value as i64) < 0));
                prop_assert_eq!(zero(value), mask(value == 0));
                prop_assert_eq!(any(value, b), mask(value & b != 0));
                prop_assert_eq!(select(zero(value), a, b), if value == 0 { a } else { b });
            }
            for (c, d) in [(c, d), (c, c), (c, 0), (0, d), (u32::MAX, d), (c, u32::MAX)] {
                prop_assert_eq!(more(c, d), mask(c > d));
            }
        }
    }
}
