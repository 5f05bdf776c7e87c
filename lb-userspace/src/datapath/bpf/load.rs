//! Has the kernel verify programs. It goes through millions of instructions for all of them, on as many CPUs as ask it.

use std::{io, num::NonZero, sync::Mutex, thread, time::Duration};

use aya::{
    Ebpf,
    programs::{ProgramError, Xdp},
};

use super::super::{Error, Result};
use crate::step::{Step, step};

/// Programs that are verified at once, at most: each takes memory of the kernel meanwhile, up to some hundred MB.
const AT_ONCE: usize = 4;

/// Loads a program. The verifier gives up with EAGAIN when a signal is pending (kernel/bpf/verifier.c, `do_check`),
/// which says nothing about the program. Whoever signals may go on for a while (a process that is stopped and continued,
/// a profiler), so each attempt waits longer than the one before: 1 ms, then twice as much, three quarters of a second in all.
pub(in crate::datapath) fn verify(program: &mut Xdp) -> std::result::Result<(), ProgramError> {
    const ATTEMPTS: u32 = 10;
    let mut attempt = 0;
    loop {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock && attempt < ATTEMPTS =>
            {
                thread::sleep(Duration::from_millis(1 << attempt.min(8)));
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Loads the programs of these names, all of which the object must have. The error is that of any one of them.
pub(super) fn all(ebpf: &mut Ebpf, names: &[&str]) -> Result<()> {
    for name in names {
        super::program(ebpf, name)?;
    }
    let mut waiting = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        if names.contains(&name) {
            let program: &mut Xdp = program
                .try_into()
                .map_err(|error| Error::Other(format!("program {name}: {error}")))?;
            waiting.push((name, program));
        }
    }
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let waiting = Mutex::new(waiting);
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some((name, program)) = next(&waiting) {
                step(Step::Program);
                verify(program).map_err(|error| {
                    let why = super::chain(&error);
                    Error::Other(format!("loading the program {name}: {why}"))
                })?;
            }
            Ok(())
        };
        let threads: Vec<_> = (1..workers.min(AT_ONCE))
            .map(|_| scope.spawn(work))
            .collect();
        let own = work();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::Other("loading the programs: panicked".into())))
            })
            .fold(own, Result::and)
    })
}

fn next<T>(waiting: &Mutex<Vec<T>>) -> Option<T> {
    waiting.lock().ok()?.pop()
}
