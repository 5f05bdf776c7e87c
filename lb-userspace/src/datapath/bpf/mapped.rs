//! Arrays in the kernel as memory of this process (`BPF_F_MMAPABLE`, kernel 5.5): a word changes with one store that
//! programs see whole, and a table is read at the speed of memory.

use std::{
    io,
    marker::PhantomData,
    num::NonZeroUsize,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::{
    datapath::{Error, Result},
    step::{Step, step},
};

/// Types that are nothing but words, so that they can be read and written word by word.
///
/// # Safety
/// `repr(C)`, no padding, every bit pattern valid, size a multiple of 8, alignment at least that of `u64`.
pub unsafe trait Words: Copy {}

// SAFETY: their layouts are asserted in lb-common; all their fields are integers.
unsafe impl Words for lb_common::abi::ServiceRecord {}
// SAFETY: as above.
unsafe impl Words for lb_common::abi::BackendRecord {}
// SAFETY: as above.
unsafe impl Words for lb_common::abi::ControlRecord {}
// SAFETY: as above.
unsafe impl Words for lb_common::abi::Slot {}
// SAFETY: as above.
unsafe impl Words for lb_common::entry::FlowEntry {}
// SAFETY: as above.
unsafe impl Words for lb_common::full_nat::PortEntry {}
// SAFETY: as above.
unsafe impl Words for lb_common::full_nat::Sources {}
// SAFETY: as above.
unsafe impl Words for lb_common::index::IndexEntry {}
// SAFETY: as above.
unsafe impl Words for lb_common::recent::Group {}

/// What parts of a map begin and end at: a multiple of every size of page.
const ALIGNMENT: usize = 1 << 16;

/// An array map, parts of which are laid into memory while they are wanted. For large ones: each mapped page counts as
/// memory of this process (`VmRSS`), though it is the map's.
pub struct Parts<T> {
    what: &'static str,
    map: OwnedFd,
    entries: u32,
    _type: PhantomData<T>,
}

impl<T: Words> Parts<T> {
    /// Of `map`, whose values must be `T`.
    pub fn new(what: &'static str, map: &MapData) -> Result<Self> {
        // Else an entry could lie in two parts.
        const { assert!(ALIGNMENT.is_multiple_of(size_of::<T>())) };
        let entries = entries::<T>(what, map)?;
        let map = map.fd().as_fd().try_clone_to_owned();
        let map = map.map_err(|source| failed(what, source))?;
        Ok(Self {
            what,
            map,
            entries,
            _type: PhantomData,
        })
    }

    /// The first of them alone: the others are there because programs want a power of two.
    pub fn of(self, entries: u32) -> Self {
        Self {
            entries: entries.min(self.entries),
            ..self
        }
    }

    /// Number of entries.
    pub fn len(&self) -> u32 {
        self.entries
    }

    /// Maps one entry, and perhaps some around it.
    pub fn one(&self, index: u32) -> Result<Mapped<T>> {
        if index >= self.entries {
            return Err(Error::OutOfRange {
                what: self.what,
                id: index,
                capacity: self.entries,
            });
        }
        self.part(index..index + 1)
    }

    /// Maps these entries, and perhaps some around them.
    pub fn part(&self, range: Range<u32>) -> Result<Mapped<T>> {
        Mapped::part(self.what, self.map.as_fd(), self.entries, range)
    }
}

/// An array map in memory, or a part of one.
pub struct Mapped<T> {
    what: &'static str,
    base: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
    /// Entries that are mapped.
    mapped: Range<u32>,
    _type: PhantomData<T>,
}

// SAFETY: the memory is the kernel's and stays mapped while `Mapped` lives; all access is by atomic words.
unsafe impl<T> Send for Mapped<T> {}

/// Number of entries of a map whose values must be `T`, or whose one value must be several.
fn entries<T>(what: &'static str, map: &MapData) -> Result<u32> {
    let info = map
        .info()
        .map_err(|error| Error::Other(format!("{what}: {error}")))?;
    let (size, values) = (size_of::<T>() as u32, info.max_entries());
    if values == 1 && info.value_size().is_multiple_of(size) {
        return Ok(info.value_size() / size);
    }
    if info.value_size() != size {
        return Err(Error::Other(format!(
            "{what}: its values have {} bytes, this ebb expects {}",
            info.value_size(),
            size_of::<T>()
        )));
    }
    Ok(values)
}

fn failed(what: &str, source: io::Error) -> Error {
    Error::Kernel {
        what: format!("mapping {what} into memory"),
        source,
    }
}

impl<T: Words> Mapped<T> {
    const WORDS: usize = size_of::<T>() / 8;

    /// Maps all entries of `map`, whose values must be `T`.
    pub fn new(what: &'static str, map: &MapData) -> Result<Self> {
        let entries = entries::<T>(what, map)?;
        Self::part(what, map.fd().as_fd(), entries, 0..entries)
    }

    /// Maps `range` of a map of `entries`, widened to whole pages.
    fn part(
        what: &'static str,
        map: BorrowedFd<'_>,
        entries: u32,
        range: Range<u32>,
    ) -> Result<Self> {
        let all = (entries as usize * size_of::<T>()).next_multiple_of(4096);
        let start = range.start as usize * size_of::<T>() / ALIGNMENT * ALIGNMENT;
        // Nothing can not be mapped.
        let end = range.end.max(range.start + 1) as usize * size_of::<T>();
        let end = end.next_multiple_of(ALIGNMENT);
        let bytes = NonZeroUsize::new(end.min(all).saturating_sub(start))
            .ok_or_else(|| Error::Other(format!("{what} has no entries {range:?}")))?;
        let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, of a map that is at least this large.
        let base = unsafe { mmap(None, bytes, flags, MapFlags::MAP_SHARED, map, start as i64) }
            .map_err(|error| failed(what, error.into()))?;
        let (first, last) = (
            start / size_of::<T>(),
            (start + bytes.get()) / size_of::<T>(),
        );
        Ok(Self {
            what,
            base: base.cast(),
            bytes,
            mapped: first as u32..(last as u32).min(entries),
            _type: PhantomData,
        })
    }

    /// Number of entries.
    pub fn len(&self) -> u32 {
        self.mapped.end - self.mapped.start
    }

    /// The words of an entry.
    pub fn words(&self, index: u32) -> Result<&[AtomicU64]> {
        self.words_of(index..index.saturating_add(1))
    }

    /// The words of several entries, one after the other.
    pub fn words_of(&self, range: Range<u32>) -> Result<&[AtomicU64]> {
        if range.start < self.mapped.start || range.end > self.mapped.end || range.is_empty() {
            return Err(Error::OutOfRange {
                what: self.what,
                id: range.start.max(range.end.saturating_sub(1)),
                capacity: self.mapped.end,
            });
        }
        let place = (range.start - self.mapped.start) as usize;
        // SAFETY: inside the mapping, as just checked; aligned, since the mapping is.
        Ok(unsafe {
            std::slice::from_raw_parts(
                self.base.add(place * Self::WORDS).as_ptr(),
                range.len() * Self::WORDS,
            )
        })
    }

    /// Reads an entry. Entries of more than one word may change while they are read.
    pub fn read(&self, index: u32) -> Result<T> {
        let words = self.words(index)?;
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        let place = value.as_mut_ptr().cast::<u64>();
        for (number, word) in words.iter().enumerate() {
            // SAFETY: `T` has exactly this many words.
            unsafe { place.add(number).write(word.load(Ordering::Acquire)) };
        }
        // SAFETY: every word was written, every bit pattern is valid.
        Ok(unsafe { value.assume_init() })
    }

    /// Writes the words of an entry in the given range, the last one first but `last` after all others.
    pub fn write(
        &self,
        index: u32,
        value: &T,
        range: std::ops::Range<usize>,
        last: usize,
    ) -> Result<()> {
        let words = self.words(index)?;
        let source = (value as *const T).cast::<u64>();
        // SAFETY: `T` has `WORDS` words, and callers name words of it.
        let word = |number: usize| unsafe { source.add(number.min(Self::WORDS - 1)).read() };
        for number in range.filter(|number| *number != last) {
            step(Step::Word);
            words[number].store(word(number), Ordering::Relaxed);
        }
        step(Step::Word);
        words[last].store(word(last), Ordering::Release);
        Ok(())
    }

    /// Writes the words of an entry from `first` on that differ, the last one first. For what no packet asks for.
    pub fn note(&self, index: u32, value: &T, first: usize) -> Result<()> {
        let words = self.words(index)?;
        let source = (value as *const T).cast::<u64>();
        for (number, word) in words.iter().enumerate().skip(first).rev() {
            // SAFETY: `T` has exactly this many words.
            let new = unsafe { source.add(number).read() };
            if word.load(Ordering::Relaxed) != new {
                step(Step::Entry);
                word.store(new, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Writes a whole entry that nobody reads yet.
    pub fn fill(&self, index: u32, value: &T) -> Result<()> {
        let words = self.words(index)?;
        let source = (value as *const T).cast::<u64>();
        for (number, word) in words.iter().enumerate() {
            // SAFETY: `T` has exactly this many words.
            word.store(unsafe { source.add(number).read() }, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes a whole entry; readers see its first word change last.
    pub fn write_all(&self, index: u32, value: &T) -> Result<()> {
        self.write(index, value, 0..Self::WORDS, 0)
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped; no reference outlives `self`.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}
