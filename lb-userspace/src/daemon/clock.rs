//! The daemon's clock: Unix time that never jumps.
//!
//! Deadlines are absolute times, so that they outlast a restart. But the machine's wall clock is set now and then, forward
//! and back, and a drain must neither end early nor late for that. So the wall clock is asked once, and from there on time
//! passes as `CLOCK_BOOTTIME` says, which nobody sets and which goes on while the machine sleeps. A file keeps how far apart
//! the two were: the next daemon of the same boot goes on by it as long as something depends on times that were written down.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

/// Names the boot; another one after each.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// In the state directory: the boot's name, and Unix milliseconds minus those of `CLOCK_BOOTTIME`.
const FILE: &str = "clock";

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Unix milliseconds.
    fn now_ms(&self) -> u64;
}

/// The machine's clock, which may be set.
#[derive(Debug, Clone, Copy, Default)]
pub struct WallClock;

impl Clock for WallClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Unix time that never jumps.
pub struct SteadyClock {
    wall: Arc<dyn Clock>,
    /// Unix milliseconds at the boot.
    boot_ms: AtomicI64,
}

impl SteadyClock {
    /// From the wall clock as it is now.
    pub fn new(wall: Arc<dyn Clock>) -> Self {
        let boot_ms = AtomicI64::new(boot_by(wall.as_ref()));
        Self { wall, boot_ms }
    }

    /// The clock that may be set.
    pub fn wall(&self) -> &Arc<dyn Clock> {
        &self.wall
    }

    /// Goes on by the time of the daemon before, where there was one since the boot and `goes_on`; otherwise by the wall
    /// clock, and writes that down in `directory` for the next one. Returns by how many milliseconds the wall clock is ahead.
    ///
    /// # Errors
    /// The file can not be written. The clock is good all the same.
    pub fn resume(&self, directory: &Path, goes_on: bool) -> io::Result<i64> {
        let path = directory.join(FILE);
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let by_wall = boot_by(self.wall.as_ref());
        if let Some(before) = kept(&path, boot.trim()).filter(|_| goes_on) {
            self.boot_ms.store(before, Ordering::Relaxed);
            return Ok(by_wall - before);
        }
        self.boot_ms.store(by_wall, Ordering::Relaxed);
        write(&path, &format!("{} {by_wall}\n", boot.trim())).map(|()| 0)
    }
}

impl Clock for SteadyClock {
    fn now_ms(&self) -> u64 {
        let now = self.boot_ms.load(Ordering::Relaxed) + since_boot_ms();
        u64::try_from(now).unwrap_or(0)
    }
}

fn boot_by(wall: &dyn Clock) -> i64 {
    i64::try_from(wall.now_ms()).unwrap_or(i64::MAX / 2) - since_boot_ms()
}

/// Milliseconds since the boot, those asleep included. Of a kernel without the clock (none since 2.6.39) always 0.
fn since_boot_ms() -> i64 {
    let Ok(time) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        return 0;
    };
    time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000
}

fn kept(path: &Path, boot: &str) -> Option<i64> {
    let text = fs::read_to_string(path).ok()?;
    let (of, boot_ms) = text.trim().split_once(' ')?;
    (of == boot).then(|| boot_ms.parse().ok())?
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let new: PathBuf = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wall clock that is set.
    struct Set(AtomicI64);

    impl Clock for Set {
        fn now_ms(&self) -> u64 {
            u64::try_from(self.0.load(Ordering::Relaxed)).unwrap()
        }
    }

    const HOUR: i64 = 3_600_000;

    /// Unix milliseconds of a time, give or take what a test takes.
    fn near(clock: &SteadyClock, expected: i64) {
        let distance = i64::try_from(clock.now_ms()).unwrap() - expected;
        assert!((0..60_000).contains(&distance), "{distance} ms off");
    }

    #[test]
    fn time_passes_whatever_the_wall_clock_is_set_to() {
        let wall = Arc::new(Set(AtomicI64::new(10 * HOUR)));
        let clock = SteadyClock::new(Arc::clone(&wall) as Arc<dyn Clock>);
        let began = clock.now_ms();
        for set in [0, 9 * HOUR, 11 * HOUR, 1000 * HOUR] {
            wall.0.store(set, Ordering::Relaxed);
            near(&clock, 10 * HOUR);
        }
        while clock.now_ms() == began {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_next_daemon_goes_on_by_it_while_something_is_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let wall = Arc::new(Set(AtomicI64::new(10 * HOUR)));
        let start = || SteadyClock::new(Arc::clone(&wall) as Arc<dyn Clock>);
        let first = start();
        assert_eq!(first.resume(directory.path(), true).unwrap(), 0);
        wall.0.store(20 * HOUR, Ordering::Relaxed);
        let second = start();
        let ahead = second.resume(directory.path(), true).unwrap();
        assert!((ahead - 10 * HOUR).abs() < 60_000, "{ahead}");
        near(&second, 10 * HOUR);
        let third = start();
        assert_eq!(third.resume(directory.path(), false).unwrap(), 0);
        near(&third, 20 * HOUR);
    }

    #[test]
    fn what_another_boot_has_left_is_not_gone_by() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["another-boot 5\n", "", "nonsense", "\u{0}\u{0}"] {
            fs::write(directory.path().join(FILE), text).unwrap();
            let wall = Arc::new(Set(AtomicI64::new(10 * HOUR)));
            let clock = SteadyClock::new(wall);
            assert_eq!(clock.resume(directory.path(), true).unwrap(), 0);
            near(&clock, 10 * HOUR);
        }
    }
}
