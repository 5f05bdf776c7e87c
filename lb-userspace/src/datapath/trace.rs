//! What a trace needs of a data plane: a tracing program that takes the plain one's place, and the records it makes.

use std::{io, os::fd::OwnedFd};

use lb_common::trace::TraceEvent;

use super::{Result, bpf};

/// Loads a tracing program. It takes as long as the verifier does, and so is not for the thread that owns the data
/// plane.
pub type Prepare = Box<dyn FnOnce() -> Result<Tracer> + Send>;

/// A tracing program that is loaded and not yet in anybody's way.
pub struct Tracer {
    /// For [`super::Datapath::begin_trace`].
    pub program: TracingProgram,
    /// What it will see.
    pub records: Box<dyn Records>,
}

/// A tracing program, of the data plane that made it.
pub enum TracingProgram {
    /// In the kernel.
    Bpf(Box<bpf::Tracing>),
    /// In memory.
    Fake,
}

/// The records of a trace. Whoever reads too slowly loses records, and the data plane does not wait.
pub trait Records: Send {
    /// A descriptor of its own that becomes readable when there are records.
    ///
    /// # Errors
    /// No descriptor is left.
    fn readable(&self) -> io::Result<OwnedFd>;

    /// Takes the next record out; `None` when there is none right now.
    fn next(&mut self) -> Option<Record>;

    /// How many records were lost so far.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn lost(&self) -> Result<u64>;
}

/// What became of one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What became of it.
    pub event: TraceEvent,
    /// The beginning of the frame as it came.
    pub came: Vec<u8>,
    /// The beginning of the frame as it left.
    pub left: Vec<u8>,
}

impl Record {
    /// Reads a record as it lies in the ring; `None` when it is shorter than it says.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, frames) = bytes.split_at_checked(size_of::<TraceEvent>())?;
        // SAFETY: as many bytes as the event has, of which every pattern is one.
        let event: TraceEvent = unsafe { head.as_ptr().cast::<TraceEvent>().read_unaligned() };
        let (came, left) = frames.split_at_checked(event.captured_came as usize)?;
        Some(Self {
            event,
            came: came.to_vec(),
            left: left.get(..event.captured_left as usize)?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart_and_short_ones_refused() {
        let event = TraceEvent {
            captured_came: 3,
            captured_left: 2,
            service: 9,
            ..TraceEvent::default()
        };
        let mut bytes = vec![0; size_of::<TraceEvent>()];
        // SAFETY: there is room for it.
        unsafe {
            bytes
                .as_mut_ptr()
                .cast::<TraceEvent>()
                .write_unaligned(event)
        };
        bytes.extend(b"abcde");
        let record = Record::parse(&bytes).expect("a record");
        assert_eq!(
            (record.event, &*record.came, &*record.left),
            (event, &b"abc"[..], &b"de"[..])
        );
        for length in 0..bytes.len() {
            assert_eq!(Record::parse(&bytes[..length]), None, "{length}");
        }
    }
}
