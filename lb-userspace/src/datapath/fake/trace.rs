//! A trace of the packets in memory.

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
};

use lb_common::{
    abi::ServiceRecord,
    steer::Packet,
    trace::{TraceEvent, TraceFilter, known},
};

use super::Delivered;
use crate::datapath::{
    Result,
    trace::{Record, Records},
};

/// Records that wait at most; more are lost.
const WAITING_MAX: usize = 64;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Record>,
    lost: u64,
}

/// Where packets are shown.
pub struct Shown {
    filter: TraceFilter,
    queue: Arc<Mutex<Queue>>,
    bell: UnixStream,
}

/// Where they are seen.
pub struct Seen {
    queue: Arc<Mutex<Queue>>,
    bell: UnixStream,
}

/// Both ends of a new trace.
pub fn pair() -> io::Result<(Shown, Seen)> {
    let (ring, hear) = UnixStream::pair()?;
    hear.set_nonblocking(true)?;
    ring.set_nonblocking(true)?;
    let queue = Arc::new(Mutex::new(Queue::default()));
    let shown = Shown {
        filter: TraceFilter::ALL,
        queue: Arc::clone(&queue),
        bell: ring,
    };
    Ok((shown, Seen { queue, bell: hear }))
}

impl Shown {
    /// Sets what is shown.
    pub fn set_filter(&mut self, filter: TraceFilter) {
        self.filter = filter;
    }

    /// Shows a packet, if it is wanted.
    pub fn show(&self, id: u32, service: &ServiceRecord, packet: &Packet, delivered: &Delivered) {
        let event = TraceEvent {
            source: packet.client,
            destination: service.vip,
            source_port: packet.client_port,
            destination_port: packet.service_port,
            protocol: service.protocol,
            flags: packet.flags,
            known: known::NETWORK | known::TRANSPORT,
            service: id,
            backend: delivered.backend,
            outcome: delivered.outcome as u32,
            ifindex: 1,
            ..TraceEvent::default()
        };
        if !self.filter.admits(&event) || !self.filter.wants(&event) {
            return;
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.waiting.len() < WAITING_MAX {
            queue.waiting.push_back(Record {
                event,
                came: Vec::new(),
                left: Vec::new(),
            });
        } else {
            queue.lost += 1;
        }
        // A full pipe rings already.
        let _ = (&self.bell).write(&[1]);
    }
}

impl Records for Seen {
    fn readable(&self) -> io::Result<OwnedFd> {
        self.bell.as_fd().try_clone_to_owned()
    }

    fn next(&mut self) -> Option<Record> {
        let _ = self.bell.read(&mut [0; WAITING_MAX]);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.waiting.pop_front()
    }

    fn lost(&self) -> Result<u64> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(queue.lost)
    }
}
