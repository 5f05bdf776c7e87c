//! Virtual machines with other kernels: Debian's, under QEMU, with an initramfs made here.
//!
//! ```text
//!   archive   which packages are the kernel, fetched once into target/vm/
//!   modules   which modules are needed, in the order of loading
//!   image     programs, their shared libraries and modules in one cpio archive
//!   machine   QEMU with that kernel and image; starts programs inside
//!   guest     process 1 inside, which does what the machine's owner asks
//! ```
//!
//! Host and guest talk in lines of JSON over a serial port of its own ([`talk`]), so that the kernel's console cannot
//! get between them.

pub mod archive;
pub mod cpio;
pub mod guest;
pub mod image;
pub mod machine;
pub mod modules;
pub mod talk;

pub use archive::{Kernel, Release};
pub use image::Image;
pub use machine::{Joint, Machine};
