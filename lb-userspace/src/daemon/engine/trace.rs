//! The one trace that may run at a time.

use std::collections::HashMap;

use lb_common::trace::TraceFilter;

use super::Engine;
use crate::{
    api::{TraceRequest, TraceStatus},
    datapath::{
        self,
        trace::{Prepare, TracingProgram},
    },
    model::{
        command::Result,
        refused::{Refused, RefusedKind},
        trace::{Wanted, filter},
    },
};

/// A trace, from the request to the moment when the plain program is back.
pub(super) struct Trace {
    number: u64,
    status: TraceStatus,
    /// Nobody listens any more; the plain program is not back yet.
    is_over: bool,
}

/// Names by id, for whoever reads records.
#[derive(Debug, Default)]
pub struct Names {
    /// Services.
    pub services: HashMap<u32, String>,
    /// Backends.
    pub backends: HashMap<u32, String>,
}

/// What a new trace needs.
pub struct Reserved {
    /// Its number, for [`Engine::end_trace`].
    pub number: u64,
    /// What it shows.
    pub filter: TraceFilter,
    /// Loads its program.
    pub prepare: Prepare,
}

impl Engine {
    /// Takes the one place for a trace. Whoever does must call [`Engine::end_trace`] at last.
    pub fn reserve_trace(
        &mut self,
        request: &TraceRequest,
        by: String,
        now_ms: u64,
    ) -> Result<Reserved> {
        let filter = filter(
            &self.state,
            &Wanted {
                of: request.of.as_deref(),
                client: request.client,
                port: request.port,
                protocol: request.protocol.as_deref(),
                outcomes: &request.outcomes,
                all: request.all,
                snap_in: request.snap_in,
                snap_out: request.snap_out,
            },
        )?;
        if let Some(running) = &self.trace {
            let seconds = now_ms.saturating_sub(running.status.since_ms) / 1000;
            return Err(Refused::conflict(format!(
                "trace: another one runs, for {seconds} s, by {}",
                running.status.by
            ))
            .hint("one at a time: end that one, or wait for it"));
        }
        let prepare = self.datapath.prepare_trace().map_err(failed)?;
        self.traces += 1;
        self.trace = Some(Trace {
            number: self.traces,
            status: TraceStatus {
                by,
                since_ms: now_ms,
            },
            is_over: false,
        });
        Ok(Reserved {
            number: self.traces,
            filter,
            prepare,
        })
    }

    /// Puts the tracing program in front.
    pub fn begin_trace(&mut self, program: TracingProgram, filter: &TraceFilter) -> Result<()> {
        self.datapath.begin_trace(program, filter).map_err(failed)
    }

    /// Ends the trace of that number: the plain program comes back.
    pub fn end_trace(&mut self, number: u64) {
        if let Some(trace) = self.trace.as_mut().filter(|trace| trace.number == number) {
            trace.is_over = true;
            self.finish_trace();
        }
    }

    /// Ends whatever trace there is, as the daemon stops.
    pub fn end_any_trace(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.is_over = true;
            self.finish_trace();
        }
    }

    /// Brings the plain program back after a trace. What fails is tried again.
    pub(super) fn finish_trace(&mut self) {
        if self.trace.as_ref().is_none_or(|trace| !trace.is_over) {
            return;
        }
        match self.datapath.end_trace() {
            Ok(()) => self.trace = None,
            Err(error) => {
                tracing::warn!("the trace has ended, but the plain program is not back: {error}");
            }
        }
    }

    /// The trace that runs.
    pub fn trace_status(&self) -> Option<TraceStatus> {
        self.trace.as_ref().map(|trace| trace.status.clone())
    }

    /// What the ids in records mean.
    pub fn trace_names(&self) -> Names {
        let services = self.state.services.iter();
        let backends = self.state.backends();
        Names {
            services: services
                .map(|(name, service)| (service.id, name.clone()))
                .collect(),
            backends: backends
                .map(|(_, _, id, backend)| (id, backend.name.clone()))
                .collect(),
        }
    }
}

fn failed(error: datapath::Error) -> Refused {
    Refused::new(RefusedKind::Failed, format!("trace: {error}"))
        .hint("packets go on through the program that was there; the daemon's log may say more")
}
