//! Tables whose place in memory is part of the program (`BPF_PSEUDO_MAP_VALUE`, kernel 5.2).
//!
//! The kernel turns a lookup in an array map into a dozen instructions, around which a compiler must keep all that it
//! needs on the stack. It also lets a program name the address of a value, in a map of one entry. So such a table is one
//! value with all its records in it, and a lookup is a mask, a shift and an addition.
//!
//! In the object a table is a section of its own with room for one record. The loader puts a map in its place that has the
//! size that is configured.

use core::{arch::asm, cell::UnsafeCell, mem::MaybeUninit, ptr::NonNull};

/// A table of records.
#[repr(transparent)]
pub struct Known<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: memory of a map, which other CPUs and the daemon change at any time; whoever reads it must know.
unsafe impl<T> Sync for Known<T> {}

impl<T> Known<T> {
    /// For a `static` in the section `.bss.NAME`.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    /// The record at `index`, in a table of `mask + 1`, a power of two. (Not a comparison: Linux 6.1 forgets what it has seen of
    /// a number when the compiler compares one copy of it and has kept another on the stack.)
    #[inline(always)]
    pub fn get(&'static self, index: u32, mask: u32) -> &'static T {
        // SAFETY: inside the table, as far as the loader has told its length.
        unsafe { self.get_unchecked(index & mask) }
    }

    /// The same, to write to.
    #[inline(always)]
    pub fn pointer(&'static self, index: u32, mask: u32) -> NonNull<T> {
        // SAFETY: as above; what lies in an `UnsafeCell` may be written through any pointer to it.
        unsafe { self.at(Self::offset(index & mask)) }
    }

    /// The record at `index`.
    ///
    /// # Safety
    /// The table has one there, and the verifier sees that it does.
    #[inline(always)]
    pub unsafe fn get_unchecked(&'static self, index: u32) -> &'static T {
        // SAFETY: the caller vouches for it; every bit pattern is a record.
        unsafe { self.at(Self::offset(index)).as_ref() }
    }

    const BYTES: usize = size_of::<T>();
    const SHIFT: u32 = Self::BYTES.trailing_zeros();

    /// Bytes from the first record to another. Opaque to the compiler, which would bound something else than what it adds to
    /// the table's address, and the verifier would know of the one only.
    #[inline(always)]
    fn offset(index: u32) -> u64 {
        let mut bytes = u64::from(index);
        if Self::BYTES.is_power_of_two() {
            // SAFETY: arithmetic.
            unsafe {
                asm!("{0} <<= {1}", inout(reg) bytes, const Self::SHIFT, options(pure, nomem, nostack))
            };
        } else {
            // SAFETY: arithmetic.
            unsafe {
                asm!("{0} *= {1}", inout(reg) bytes, const Self::BYTES, options(pure, nomem, nostack))
            };
        }
        bytes
    }

    /// The record so many bytes after the first one. Opaque to the compiler as well: a section with room for one record, all
    /// zeroes and never written, has no other record and no other value for it.
    #[inline(always)]
    unsafe fn at(&'static self, bytes: u64) -> NonNull<T> {
        let mut record = self.0.get().cast::<T>();
        // SAFETY: arithmetic.
        unsafe {
            asm!("{0} += {1}", inout(reg) record, in(reg) bytes, options(pure, nomem, nostack))
        };
        // SAFETY: no record is at zero.
        unsafe { NonNull::new_unchecked(record) }
    }

    /// The first record. For a `static` that is not mangled: the compiler takes what others can write for what it is.
    #[inline(always)]
    pub fn first(&'static self) -> &'static T {
        // SAFETY: the loader makes no table without a record, and every bit pattern is one.
        unsafe { &*self.0.get().cast() }
    }
}
