//! Fields of a frame, each by one instruction. They lie at odd multiples of 2, and the compiler takes an access that
//! may be misaligned apart into bytes; the machines that this runs on do not mind.

use core::arch::asm;

macro_rules! load {
    ($name:ident, $size:literal) => {
        /// Reads the field of this size at `AT` in a frame.
        ///
        /// # Safety
        /// The field lies inside the frame, and the verifier knows it.
        #[inline(always)]
        pub unsafe fn $name<const AT: i16>(frame: *const u8) -> u64 {
            let value: u64;
            // SAFETY: the caller vouches for the field.
            unsafe {
                asm!(
                    concat!("{value} = *(", $size, " *)({frame} + {at})"),
                    value = out(reg) value,
                    frame = in(reg) frame,
                    at = const AT,
                    options(readonly, nostack, preserves_flags),
                );
            }
            value
        }
    };
}

macro_rules! store {
    ($name:ident, $size:literal) => {
        /// Writes the field of this size at `AT` in a frame.
        ///
        /// # Safety
        /// The field lies inside the frame, and the verifier knows it.
        #[inline(always)]
        pub unsafe fn $name<const AT: i16>(frame: *mut u8, value: u64) {
            // SAFETY: the caller vouches for the field.
            unsafe {
                asm!(
                    concat!("*(", $size, " *)({frame} + {at}) = {value}"),
                    value = in(reg) value,
                    frame = in(reg) frame,
                    at = const AT,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

load!(load8, "u8");
load!(load16, "u16");
load!(load32, "u32");
load!(load64, "u64");
store!(store16, "u16");
store!(store32, "u32");
store!(store64, "u64");
