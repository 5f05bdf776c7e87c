//! The tracing instance: the same object loaded a second time, over the same pinned maps, with programs of its own.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, ProgramArray, RingBuf},
    programs::{ProgramFd, Xdp},
    util::KernelVersion,
};
use lb_common::{
    abi::jump,
    trace::{TraceCounts, TraceFilter},
};

use super::{
    Instance, JUMPS_TRACING, Options, Pod, chain, load_object, loaded, map_error, program, take,
    verified::{Verified, verified_of},
};
use crate::datapath::{
    Error, Result, object,
    trace::{Record, Records, Tracer, TracingProgram},
};

// SAFETY: plain integers without padding, as asserted in lb-common.
unsafe impl aya::Pod for Pod<TraceFilter> {}
// SAFETY: as above.
unsafe impl aya::Pod for Pod<TraceCounts> {}

/// Name of the program that stands in front of the balancer.
const ENTRY: &str = "traced";

/// The tracing programs, loaded.
pub struct Tracing {
    ebpf: Ebpf,
    filter: Array<MapData, Pod<TraceFilter>>,
    jumps: PathBuf,
}

impl Tracing {
    /// Loads them. Packets that are not wanted go to `plain`.
    ///
    /// # Errors
    /// The kernel refuses them.
    pub fn load(options: &Options, plain: &ProgramFd) -> Result<Tracer> {
        check_kernel()?;
        let jumps = options.pins.join(JUMPS_TRACING);
        // What a daemon that was killed left behind.
        remove(&jumps)?;
        let mut ebpf = load_object(object::XDP, options, Instance::Tracing)?;
        fill_jumps(&mut ebpf, plain)?;
        let filter = Array::try_from(take(&mut ebpf, "TRACE_FILTER")?).map_err(map_error)?;
        let ring = RingBuf::try_from(take(&mut ebpf, "TRACE_RING")?).map_err(map_error)?;
        let counts = PerCpuArray::try_from(take(&mut ebpf, "TRACE_COUNTS")?).map_err(map_error)?;
        let program = Self {
            ebpf,
            filter,
            jumps,
        };
        Ok(Tracer {
            program: TracingProgram::Bpf(Box::new(program)),
            records: Box::new(Ring { ring, counts }),
        })
    }

    /// Sets which packets are shown.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_filter(&mut self, filter: &TraceFilter) -> Result<()> {
        self.filter.set(0, Pod(*filter), 0).map_err(map_error)
    }

    /// The program for the interfaces.
    ///
    /// # Errors
    /// The object has none.
    pub fn entry(&mut self) -> Result<&mut Xdp> {
        program(&mut self.ebpf, ENTRY)
    }

    /// The same, for tests that run it by hand.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn front(&self) -> Result<&Xdp> {
        loaded(&self.ebpf, ENTRY)
    }

    /// The programs, as the kernel took them.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn verified(&self) -> Result<Vec<Verified>> {
        Instance::Tracing
            .programs()
            .map(|name| verified_of(&self.ebpf, name))
            .collect()
    }
}

/// `bpf_xdp_load_bytes` came with Linux 5.18.
fn check_kernel() -> Result<()> {
    let kernel = KernelVersion::current()
        .map_err(|error| Error::Other(format!("the kernel's version: {}", chain(&error))))?;
    if kernel < KernelVersion::new(5, 18, 0) {
        return Err(Error::Other(format!(
            "needs Linux 5.18 or later, and this is {kernel}"
        )));
    }
    Ok(())
}

impl Drop for Tracing {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.jumps) {
            tracing::warn!("{error}");
        }
    }
}

/// Removes the pin of the tracing programs' jumps, where there is one.
pub(super) fn remove(jumps: &std::path::Path) -> Result<()> {
    match fs::remove_file(jumps) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Kernel {
            what: format!("removing {}", jumps.display()),
            source,
        }),
        _ => Ok(()),
    }
}

fn fill_jumps(ebpf: &mut Ebpf, plain: &ProgramFd) -> Result<()> {
    let mut jumps = ProgramArray::try_from(take(ebpf, "JUMPS")?).map_err(map_error)?;
    for (place, name) in jump::PROGRAMS.iter().chain(jump::TRACING) {
        let fd = program(ebpf, name)?
            .fd()
            .map_err(|error| Error::Other(format!("program {name}: {}", chain(&error))))?;
        jumps.set(*place, fd, 0).map_err(map_error)?;
    }
    jumps.set(jump::PLAIN, plain, 0).map_err(map_error)
}

/// The ring that the programs write to.
struct Ring {
    ring: RingBuf<MapData>,
    counts: PerCpuArray<MapData, Pod<TraceCounts>>,
}

impl Records for Ring {
    fn readable(&self) -> io::Result<OwnedFd> {
        self.ring.as_fd().try_clone_to_owned()
    }

    fn next(&mut self) -> Option<Record> {
        loop {
            let item = self.ring.next()?;
            // The programs write whole records only; whatever else is there is not ours to show.
            if let Some(record) = Record::parse(&item) {
                return Some(record);
            }
        }
    }

    fn lost(&self) -> Result<u64> {
        let counts = self.counts.get(&0, 0).map_err(map_error)?;
        Ok(counts.iter().map(|Pod(cpu)| cpu.lost).sum())
    }
}
