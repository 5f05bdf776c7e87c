//! A daemon that dies at a chosen step, and comes back at once: its program is loaded before it is born, by a process that
//! has a child for each of its lives. The verifier takes seconds; so a life costs a few milliseconds.
//!
//! Each life is the daemon as it is (its engine, its journal, its control socket) over the maps in the kernel, as found.

use std::{
    fs::{File, OpenOptions},
    io,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::Ebb;
use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    daemon::{
        assemble::{self, NodeOptions},
        clock::{Clock, WallClock},
    },
    step::{self, Step, Steps},
};
use nix::{
    sys::{
        mman::{MapFlags, ProtFlags, mmap},
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork},
};

/// Time between two looks at the shared words.
const PAUSE: Duration = Duration::from_micros(500);

/// Time in which a life must answer, or end that is to end. One that loads the program for itself keeps the verifier busy, for ten
/// seconds and more where others want the CPUs too.
const LIMIT: Duration = Duration::from_secs(60);

/// What the test and the daemon share. All zero is the beginning.
#[repr(C)]
#[derive(Debug)]
struct Words {
    steps: Steps,
    /// Lives that may begin.
    granted: AtomicU64,
    /// Lives that have begun.
    begun: AtomicU64,
    /// Lives that have ended.
    ended: AtomicU64,
    /// Other than 0: lives load the program for themselves.
    anew: AtomicU32,
    /// How far the daemon's wall clock is ahead of the machine's, milliseconds.
    ahead_ms: AtomicI64,
    /// The process of this life.
    pid: AtomicU32,
}

fn share(path: &Path) -> Result<&'static Words> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    let bytes = NonZeroUsize::new(size_of::<Words>()).context("no words")?;
    let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, of a file that is as large.
    let base = unsafe { mmap(None, bytes, flags, MapFlags::MAP_SHARED, file, 0) }?;
    // SAFETY: aligned to a page; atomic integers, for which every value is valid; never unmapped.
    Ok(unsafe { base.cast().as_ref() })
}

/// The wall clock, set forward or back by whoever holds the words.
struct SetClock(&'static Words);

impl Clock for SetClock {
    fn now_ms(&self) -> u64 {
        let ahead = self.0.ahead_ms.load(Ordering::Relaxed);
        WallClock.now_ms().saturating_add_signed(ahead)
    }
}

/// Has the daemon live again and again, each time that its words grant a life.
///
/// # Errors
/// The program can not be loaded; in a life, those of the daemon.
pub fn live(options: &NodeOptions, words: &Path) -> Result<()> {
    let words = share(words)?;
    step::count_in(&words.steps);
    let datapath = assemble::load_node(options)?;
    loop {
        while words.granted.load(Ordering::Acquire) <= words.begun.load(Ordering::Relaxed) {
            thread::sleep(PAUSE);
        }
        // SAFETY: this process has one thread.
        let child = match unsafe { fork() }? {
            ForkResult::Child => {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if words.anew.load(Ordering::Relaxed) != 0 {
                    return assemble::run_node(options);
                }
                return assemble::run_loaded(options, datapath, Arc::new(SetClock(words)));
            }
            ForkResult::Parent { child } => child,
        };
        words
            .pid
            .store(child.as_raw().unsigned_abs(), Ordering::Release);
        words.begun.fetch_add(1, Ordering::Release);
        waitpid(child, None)?;
        words.ended.fetch_add(1, Ordering::Release);
    }
}

/// Decides over a daemon's lives.
#[derive(Debug)]
pub struct Fate(&'static Words);

impl Fate {
    /// Makes the words, in a new file.
    pub(super) fn new(path: &Path) -> Result<Self> {
        let file = File::create_new(path)?;
        file.set_len(size_of::<Words>() as u64)?;
        let fate = Self(share(path)?);
        fate.grant();
        Ok(fate)
    }

    /// Grants one more life.
    pub fn grant(&self) {
        self.0.granted.fetch_add(1, Ordering::Release);
    }

    /// Counts steps from here on, changes of flow entries if `entries` says so. The daemon dies in place of the `at`-th; 0 for
    /// never.
    pub fn die_at(&self, at: u32, entries: bool) {
        self.0.steps.begin(at, entries);
    }

    /// Steps since then, and what the first of them did.
    #[must_use]
    pub fn taken(&self) -> (u64, Vec<Step>) {
        self.0.steps.taken()
    }

    /// Lives so far.
    #[must_use]
    pub fn lives(&self) -> u64 {
        self.0.begun.load(Ordering::Acquire)
    }

    /// Whether nobody is there.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.0.ended.load(Ordering::Acquire) == self.lives()
    }

    /// Waits for a death; whether it came within `limit`.
    #[must_use]
    pub fn dies(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.is_dead() {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(PAUSE);
        }
        true
    }

    /// Whether lives from here on load the program for themselves, as a daemon does, and put it in place of the one that runs.
    pub fn load_anew(&self, anew: bool) {
        self.0.anew.store(u32::from(anew), Ordering::Relaxed);
    }

    /// Grants one more life, which is to end by itself; whether it does, until `aftermath` has passed since its first answer.
    ///
    /// # Errors
    /// It neither ends nor answers.
    pub fn ends_again(&self, ebb: &Ebb, aftermath: Duration) -> Result<bool> {
        let lives = self.lives();
        self.grant();
        let deadline = Instant::now() + LIMIT;
        while self.lives() == lives || !self.is_dead() {
            if matches!(ebb.reach().get("/v1/status"), Ok((200, _))) {
                return Ok(self.dies(aftermath));
            }
            ensure!(Instant::now() < deadline, "it neither ends nor answers");
            thread::sleep(PAUSE);
        }
        Ok(true)
    }

    /// Grants one more life and waits until it answers.
    ///
    /// # Errors
    /// It does not answer, or ends.
    pub fn revive(&self, ebb: &Ebb) -> Result<()> {
        let lives = self.lives();
        self.grant();
        let deadline = Instant::now() + LIMIT;
        while !matches!(ebb.reach().get("/v1/status"), Ok((200, _))) {
            let has_ended = self.lives() > lives && self.is_dead();
            ensure!(
                !has_ended && Instant::now() < deadline,
                "it does not come back{}",
                ebb.log_tail()
            );
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Grants one more life, which must end by itself.
    ///
    /// # Errors
    /// It goes on.
    pub fn refuse(&self, ebb: &Ebb) -> Result<String> {
        let lives = self.lives();
        self.grant();
        let deadline = Instant::now() + LIMIT;
        while self.lives() == lives || !self.is_dead() {
            ensure!(Instant::now() < deadline, "it lives");
            thread::sleep(PAUSE);
        }
        Ok(ebb.log_tail())
    }

    /// Ends this life as `kill -9` does.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill9(&self) -> Result<()> {
        let pid = i32::try_from(self.0.pid.load(Ordering::Acquire)).map_err(io::Error::other)?;
        if !self.is_dead() {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        ensure!(self.dies(LIMIT), "process {pid} does not end");
        Ok(())
    }

    /// Sets the daemon's wall clock so far ahead of the machine's, milliseconds; negative for behind.
    pub fn set_clock(&self, ahead_ms: i64) {
        self.0.ahead_ms.store(ahead_ms, Ordering::Relaxed);
    }
}
