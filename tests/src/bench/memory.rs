//! Arrays of the bench's object as memory.

use std::{num::NonZeroUsize, os::fd::AsFd as _, ptr::NonNull};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{Ebpf, maps::Map};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// An array map in memory. The programs only run while this thread waits for them.
pub struct Memory<T> {
    base: NonNull<T>,
    bytes: NonZeroUsize,
    entries: usize,
}

impl<T: Copy> Memory<T> {
    /// The array `name` of `ebpf`, whose values must be `T`.
    pub fn new(ebpf: &Ebpf, name: &str) -> Result<Self> {
        let Some(Map::Array(data)) = ebpf.map(name) else {
            bail!("the bench's object has no array {name}");
        };
        let info = data.info()?;
        ensure!(
            info.value_size() as usize == size_of::<T>(),
            "{name}: its values have {} bytes, not {}",
            info.value_size(),
            size_of::<T>()
        );
        let entries = info.max_entries() as usize;
        // The kernel rounds the size of a value up to 8 bytes.
        ensure!(
            size_of::<T>().is_multiple_of(8) || size_of::<T>() == 4,
            "{name}: odd values"
        );
        let stride = size_of::<T>().next_multiple_of(8);
        let bytes = NonZeroUsize::new((entries * stride).next_multiple_of(4096))
            .with_context(|| format!("{name} is empty"))?;
        // SAFETY: a new mapping of a map that is this large.
        let base = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                data.fd().as_fd(),
                0,
            )
        }
        .with_context(|| format!("mapping {name}"))?;
        Ok(Self {
            base: base.cast(),
            bytes,
            entries,
        })
    }

    fn place(&self, index: usize) -> *mut T {
        assert!(index < self.entries, "entry {index} of {}", self.entries);
        let stride = size_of::<T>().next_multiple_of(8);
        // SAFETY: inside the mapping.
        unsafe { self.base.as_ptr().byte_add(index * stride) }
    }

    /// Reads an entry.
    pub fn get(&self, index: usize) -> T {
        // SAFETY: inside the mapping; the kernel is not running a program now.
        unsafe { self.place(index).read_volatile() }
    }

    /// Writes an entry.
    pub fn set(&mut self, index: usize, value: T) {
        // SAFETY: as above.
        unsafe { self.place(index).write_volatile(value) }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}
