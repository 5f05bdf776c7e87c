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

/// Lets go of the program's own pages, whose contents are in its file: most are of the start alone, and those that are
/// wanted again come back with the next use.
fn set_program_aside() {
    let (Ok(program), Ok(maps)) = (
        std::fs::read_link("/proc/self/exe"),
        std::fs::read_to_string("/proc/self/maps"),
    ) else {
        return;
    };
    for line in maps.lines() {
        if let Some((start, end)) = code_of(&program.to_string_lossy(), line) {
            // SAFETY: code, which nobody writes: what is mapped privately and has not been written reads the same after
            // this.
            unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_DONTNEED) };
        }
    }
}

/// The addresses of a line of `/proc/self/maps` (proc(5)) that maps code of `program`.
fn code_of(program: &str, line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (addresses, mode) = (words.next()?, words.next()?);
    // After offset, device and inode.
    if mode != "r-xp" || words.nth(3)? != program {
        return None;
    }
    let (start, end) = addresses.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

/// Returns after which the start is over.
const START: u32 = 3;

/// Returns between two looks at which of the program's pages are still wanted.
const SELDOM: u32 = 8;

/// When to give back.
#[derive(Debug)]
pub struct Heap {
    next: Instant,
    /// Returns until the program's pages are set aside.
    left: u32,
}

impl Heap {
    /// A period from now.
    pub fn begin() -> Self {
        Self {
            next: Instant::now() + PERIOD,
            left: START,
        }
    }

    /// Gives back what is free, if it is time, and once in a while what of the program is not used any more.
    pub fn tidy(&mut self) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + PERIOD;
        self.left -= 1;
        if self.left == 0 {
            self.left = SELDOM;
            set_program_aside();
        }
        #[cfg(target_env = "gnu")]
        // SAFETY: free memory alone changes.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_is_mapped_to_run() {
        let rows = [
            ("7f00-8f00 r-xp 00001000 fe:00 77 /usr/sbin/ebb", true),
            ("7f00-8f00 r--p 00001000 fe:00 77 /usr/sbin/ebb", false),
            ("7f00-8f00 r-xp 00001000 fe:00 77 /usr/lib/libc.so.6", false),
            ("7f00-8f00 r-xp 00000000 00:00 0", false),
        ];
        for (line, is_code) in rows {
            let expected = is_code.then_some((0x7f00, 0x8f00));
            assert_eq!(code_of("/usr/sbin/ebb", line), expected, "{line}");
        }
    }
}
