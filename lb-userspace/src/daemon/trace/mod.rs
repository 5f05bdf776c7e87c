//! The stream of a trace, from the ring in the kernel to a client of the control socket.
//!
//! The ring is read only as fast as the client takes the lines: who is slow fills the ring, whose programs count what
//! finds no room, and nobody else waits. There is no other buffer than one line's worth of [`CHUNK`].

mod describe;

use std::{
    convert::Infallible,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::{io::unix::AsyncFd, sync::watch};

use super::core::Handle;
use crate::{
    api::{TraceLine, TraceRequest},
    datapath::trace::{Records, Tracer},
    model::refused::{Refused, RefusedKind},
};

use describe::Describer;

/// Bytes of lines that are handed over at once.
const CHUNK: usize = 64 << 10;

/// How long names of services, backends and interfaces are good.
const NAMES_GOOD: Duration = Duration::from_secs(1);

/// How long a new trace waits for the end of one whose client has just gone.
const HANDOVER: Duration = Duration::from_millis(500);

/// Holds the place of the trace, and gives it back.
struct Hold {
    handle: Handle,
    number: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (handle, number) = (self.handle.clone(), self.number);
        // Without a runtime the daemon has ended, and the core has ended the trace with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = handle.call(move |engine, _| engine.end_trace(number)).await;
            });
        }
    }
}

/// A trace that runs. Dropping it ends it.
pub struct Trace {
    records: Box<dyn Records>,
    readable: AsyncFd<OwnedFd>,
    describer: Describer,
    names_at: Instant,
    lost: u64,
    stopped: watch::Receiver<bool>,
    hold: Hold,
}

impl Trace {
    /// Begins a trace for `by`.
    ///
    /// # Errors
    /// Another one runs; the request names what there is not; the kernel refuses the program.
    pub async fn begin(
        handle: Handle,
        request: TraceRequest,
        by: String,
        stopped: watch::Receiver<bool>,
    ) -> Result<Self, Refused> {
        let reserved = reserve(&handle, request, by).await?;
        let hold = Hold {
            handle,
            number: reserved.number,
        };
        let failed = |error: String| Refused::new(RefusedKind::Failed, format!("trace: {error}"));
        let prepared = tokio::task::spawn_blocking(reserved.prepare).await;
        let Tracer { program, records } = prepared
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        let readable = records.readable().and_then(|descriptor| {
            // SAFETY: the descriptor is owned, and the same for as long as it lives.
            unsafe { AsyncFd::register(descriptor) }.map_err(Into::into)
        });
        let readable = readable.map_err(|error| failed(error.to_string()))?;
        let filter = reserved.filter;
        let work = move |engine: &mut super::engine::Engine, _| {
            engine.begin_trace(program, &filter)?;
            Ok(engine.trace_names())
        };
        let names = hold.handle.call(work).await??;
        Ok(Self {
            records,
            readable,
            describer: Describer::new(names),
            names_at: Instant::now(),
            lost: 0,
            stopped,
            hold,
        })
    }

    /// Its lines, some at a time.
    pub fn lines(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        futures_util::stream::unfold(self, |mut trace| async move {
            let chunk = trace.next().await?;
            Some((Ok(chunk), trace))
        })
    }

    /// The next lines; `None` when the daemon stops.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Also under a flood that leaves nothing to wait for.
            if *self.stopped.borrow() {
                return None;
            }
            if self.names_at.elapsed() >= NAMES_GOOD {
                let names = self.hold.handle.call(|engine, _| engine.trace_names());
                self.describer = Describer::new(names.await.ok()?);
                self.names_at = Instant::now();
            }
            let chunk = self.take();
            if !chunk.is_empty() {
                return Some(chunk.into());
            }
            tokio::select! {
                biased;
                _ = self.stopped.wait_for(|stopped| *stopped) => return None,
                ready = self.readable.readable() => ready.ok()?.clear_ready(),
                () = tokio::time::sleep(NAMES_GOOD) => {}
            }
        }
    }

    /// What is there right now, as lines.
    fn take(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        while text.len() < CHUNK
            && let Some(record) = self.records.next()
        {
            let packet = Box::new(self.describer.packet(&record));
            line(&mut text, &TraceLine::Packet(packet));
        }
        match self.records.lost() {
            Ok(lost) if lost != self.lost => {
                self.lost = lost;
                line(&mut text, &TraceLine::Lost { lost });
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("lost records could not be counted: {error}"),
        }
        text
    }
}

fn line(text: &mut Vec<u8>, line: &TraceLine) {
    if let Err(error) = serde_json::to_writer(&mut *text, line) {
        tracing::warn!("a packet could not be written as JSON: {error}");
    }
    text.push(b'\n');
}

/// Takes the place, where it is free or about to be.
async fn reserve(
    handle: &Handle,
    request: TraceRequest,
    by: String,
) -> Result<super::engine::Reserved, Refused> {
    let end = Instant::now() + HANDOVER;
    loop {
        let (request, by) = (request.clone(), by.clone());
        let work =
            move |engine: &mut super::engine::Engine, now| engine.reserve_trace(&request, by, now);
        match handle.call(work).await? {
            Err(refused) if refused.kind == RefusedKind::Conflict && Instant::now() < end => {
                tokio::time::sleep(HANDOVER / 20).await;
            }
            result => return result,
        }
    }
}
