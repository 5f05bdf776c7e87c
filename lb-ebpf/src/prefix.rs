//! Keys of longest-prefix-match tries.

use core::mem::MaybeUninit;

use aya_ebpf::maps::lpm_trie::Key;
use lb_common::Addr;

/// Room for a key.
pub type Place = MaybeUninit<[u32; 5]>;

/// The key of a whole address, built in `place`.
// Volatile: else two halves are stored as one unaligned word, which the verifier refuses on the stack.
#[inline(always)]
pub fn key<'a>(place: &'a mut Place, address: &Addr) -> &'a Key<[u8; 16]> {
    let words = place.as_mut_ptr().cast::<u32>();
    // SAFETY: five words, all written; a key is packed and has as many bytes.
    unsafe {
        words.write_volatile(128);
        words.add(1).write_volatile(address.high as u32);
        words.add(2).write_volatile((address.high >> 32) as u32);
        words.add(3).write_volatile(address.low as u32);
        words.add(4).write_volatile((address.low >> 32) as u32);
        &*words.cast::<Key<[u8; 16]>>()
    }
}
