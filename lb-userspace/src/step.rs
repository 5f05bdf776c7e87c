//! The steps in which the daemon changes what outlasts it: the journal, the maps, the programs. A test counts them, and has the daemon
//! die at each in turn; elsewhere nobody counts, and a step costs one load.

use std::sync::{
    OnceLock,
    atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
};

/// What a step is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Step {
    /// Something of making the seed's file: make, write, sync, give it its name.
    Seed = 1,
    /// Append a record to the journal.
    JournalWrite,
    /// Have the disk keep it.
    JournalSync,
    /// Something of the journal's replacement by a snapshot: make, write, sync, rename, sync the directory.
    Snapshot,
    /// Store a word of a record: of a backend, a service, the node.
    Word,
    /// Store a slot of a table that no packet sees yet.
    HiddenSlot,
    /// Store an entry of an address index that no packet sees yet.
    HiddenEntry,
    /// Publish a table, an index or the end of a service with one store.
    Publish,
    /// Store a slot that packets see.
    LiveSlot,
    /// Wait until no packet in flight sees what was there before.
    Barrier,
    /// Change an entry of the flow table or of the handshake table, or note how many there are.
    Entry,
    /// Change a map by a system call.
    Call,
    /// Make and pin the maps that are missing, or remove a pin of one.
    Pin,
    /// Have the kernel load a program.
    Program,
    /// Put a program into a place of the jump table.
    Jump,
    /// Make, pin, remove the link of an interface, or put a program into it.
    Link,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Seed,
        Self::JournalWrite,
        Self::JournalSync,
        Self::Snapshot,
        Self::Word,
        Self::HiddenSlot,
        Self::HiddenEntry,
        Self::Publish,
        Self::LiveSlot,
        Self::Barrier,
        Self::Entry,
        Self::Call,
        Self::Pin,
        Self::Program,
        Self::Jump,
        Self::Link,
    ];

    /// What [`Steps::taken`] calls it.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == code)
    }
}

/// Steps that are listed; later ones are only counted.
pub const LISTED: usize = 1 << 16;

/// Where steps are counted: memory that the test and the daemon share. All zero is the beginning.
#[repr(C)]
#[derive(Debug)]
pub struct Steps {
    /// The daemon dies at the step that makes this zero; zero for never.
    left: AtomicU32,
    /// Other than 0: entries of flows are left out. How many change while time passes is up to the traffic.
    without_entries: AtomicU32,
    count: AtomicU64,
    list: [AtomicU8; LISTED],
}

impl Steps {
    /// Counts from zero again. The daemon dies in place of its `at`-th step from here on, counted from 1; 0 for never.
    ///
    /// [`Step::Entry`] counts if `entries` says so.
    pub fn begin(&self, at: u32, entries: bool) {
        self.without_entries
            .store(u32::from(!entries), Ordering::Relaxed);
        self.count.store(0, Ordering::Relaxed);
        self.left.store(at, Ordering::Release);
    }

    /// How many there have been, and what the first [`LISTED`] of them did.
    pub fn taken(&self) -> (u64, Vec<Step>) {
        let count = self.count.load(Ordering::Acquire);
        let listed = usize::try_from(count).unwrap_or(LISTED).min(LISTED);
        let codes = self.list.iter().take(listed);
        let steps = codes.filter_map(|code| Step::from_code(code.load(Ordering::Relaxed)));
        (count, steps.collect())
    }

    fn take(&self, step: Step) {
        if step == Step::Entry && self.without_entries.load(Ordering::Relaxed) != 0 {
            return;
        }
        let at = self.count.fetch_add(1, Ordering::AcqRel);
        let place = usize::try_from(at).ok().and_then(|at| self.list.get(at));
        if let Some(place) = place {
            place.store(step as u8, Ordering::Relaxed);
        }
        let down = |left: u32| left.checked_sub(1);
        let before = self
            .left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, down);
        if before == Ok(1) {
            die();
        }
    }
}

static STEPS: OnceLock<&'static Steps> = OnceLock::new();

/// Has this process count its steps there.
pub fn count_in(steps: &'static Steps) {
    // Whoever was first stays.
    let _ = STEPS.set(steps);
}

/// A step is about to be done.
#[inline]
pub(crate) fn step(step: Step) {
    if let Some(steps) = STEPS.get() {
        steps.take(step);
    }
}

/// Ends this process as `kill -9` does: nothing is flushed, nobody is told.
fn die() -> ! {
    let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
    // The signal is on its way.
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_from_the_beginning_that_was_set_last() {
        // SAFETY: integers, for which all zero is valid.
        let steps: Box<Steps> = unsafe { Box::new_zeroed().assume_init() };
        for step in Step::ALL {
            steps.take(step);
        }
        assert_eq!(steps.taken(), (16, Step::ALL.to_vec()));
        steps.begin(3, false);
        steps.take(Step::Entry);
        steps.take(Step::Word);
        steps.take(Step::Barrier);
        assert_eq!(steps.taken(), (2, vec![Step::Word, Step::Barrier]));
        assert_eq!(steps.left.load(Ordering::Relaxed), 1);
    }
}
