//! The one clock that client, servers and tests share.

use std::{io, mem::MaybeUninit};

/// Nanoseconds of `CLOCK_MONOTONIC`.
///
/// The clock is the machine's own: values from different processes and network namespaces can be compared.
#[must_use]
pub fn now_ns() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is valid for one timespec, which the call fills.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr()) };
    assert_eq!(
        done,
        0,
        "CLOCK_MONOTONIC is always there: {}",
        io::Error::last_os_error()
    );
    // SAFETY: the call succeeded, so the value is initialised.
    let time = unsafe { time.assume_init() };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Seconds between two values of [`now_ns`], negative when `to` is before `from`.
#[must_use]
pub fn seconds_between(from: u64, to: u64) -> f64 {
    let (sign, ns) = if to >= from {
        (1.0, to - from)
    } else {
        (-1.0, from - to)
    };
    sign * std::time::Duration::from_nanos(ns).as_secs_f64()
}
