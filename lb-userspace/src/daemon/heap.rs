//! The daemon's heap. Its needs come in bursts (a table built, a large status told), and what they leave free in
//! between is given back to the kernel.

use std::time::{Duration, Instant};

/// Time between two returns.
const PERIOD: Duration = Duration::from_secs(2);

/// Has the threads share one heap, and takes whatever is large from the kernel and gives it back at once. To be called
/// before there are threads; says nothing where the C library is not GNU's.
pub fn configure() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [
        (libc::M_ARENA_MAX, 1),
        // A fixed threshold; by itself it grows with what is freed.
        (libc::M_MMAP_THRESHOLD, 128 << 10),
        (libc::M_TRIM_THRESHOLD, 512 << 10),
    ] {
        // SAFETY: it only sets parameters of the allocator.
        unsafe { libc::mallopt(what, value) };
    }
}

/// Lets the kernel drop the pages of something that is read once in a long while; they come back from the file.
pub fn set_aside(bytes: &'static [u8]) {
    const PAGE: usize = 4096;
    let (start, end) = (
        bytes.as_ptr() as usize,
        bytes.as_ptr() as usize + bytes.len(),
    );
    let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
    if start < end {
        // SAFETY: only advice; whatever it does, the bytes read the same afterwards. Without it all is well, too.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_PAGEOUT) };
    }
}

/// When to give back.
#[derive(Debug)]
pub struct Heap {
    next: Instant,
}

impl Heap {
    /// A period from now.
    pub fn begin() -> Self {
        Self {
            next: Instant::now() + PERIOD,
        }
    }

    /// Gives back what is free, if it is time.
    pub fn tidy(&mut self) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + PERIOD;
        #[cfg(target_env = "gnu")]
        // SAFETY: free memory alone changes.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
