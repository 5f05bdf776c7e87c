//! Programs of `cargo xtask bench`: a driver that makes packets, floors to compare with, the ends of the live test.
//!
//! ebb itself is not in here: the bench loads the object that the daemon loads and lets the driver call it.

#![no_std]
#![no_main]
// A field of a frame by one instruction: Rust has no stable name for that.
#![feature(asm_experimental_arch)]

mod driver;
mod floors;
mod live;
mod maps;
#[path = "../parse.rs"]
#[expect(
    dead_code,
    reason = "ebb's parser; the floors use less of what it finds"
)]
mod parse;
#[expect(dead_code, reason = "user space uses the rest")]
mod shared;
mod word;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Nothing in here panics; the verifier would refuse the loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
