//! What the verifier of the running kernel had to do for the object.

use std::{fmt, path::PathBuf};

use aya::Ebpf;
use serde::Serialize;

use super::{BpfDatapath, Instance, Options, VALUE_MAX, chain, loaded, remove_pins};
use crate::{
    datapath::{Datapath as _, Error, Result, object, trace::TracingProgram},
    model::spec::{Capacity, XdpMode},
};

/// What a kernel's verifier may look at to prove one of the programs, of the million at which it gives up
/// (`BPF_COMPLEXITY_LIMIT_INSNS`). A node's start is the time that this takes.
pub const INSTRUCTIONS_MAX: u32 = 300_000;

/// A program that the kernel took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Its name in the object.
    pub name: &'static str,
    /// Instructions that the verifier looked at until it was sure, each as often as it came by. `None` before Linux
    /// 5.16.
    pub instructions: Option<u32>,
    /// Bytes of machine code; `None` where the kernel does not compile.
    pub machine_code_bytes: Option<u32>,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |n: Option<u32>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        write!(
            f,
            "{:<10}{:>7} instructions verified (budget {}), {:>6} bytes of machine code",
            self.name,
            or_unknown(self.instructions),
            INSTRUCTIONS_MAX,
            or_unknown(self.machine_code_bytes)
        )
    }
}

impl BpfDatapath {
    /// The object's programs, as the kernel took them.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn verified(&self) -> Result<Vec<Verified>> {
        Instance::Plain
            .programs()
            .map(|name| verified_of(&self.ebpf, name))
            .collect()
    }

    /// The programs of its tracing instance, loaded for this question alone.
    ///
    /// # Errors
    /// The kernel refuses them.
    pub fn verified_tracing(&self) -> Result<Vec<Verified>> {
        match self.prepare_trace()?()?.program {
            TracingProgram::Bpf(tracing) => tracing.verified(),
            TracingProgram::Fake => Ok(Vec::new()),
        }
    }
}

/// One of an object's programs, as the kernel took it.
pub(super) fn verified_of(ebpf: &Ebpf, name: &'static str) -> Result<Verified> {
    let info = loaded(ebpf, name)?
        .info()
        .map_err(|error| Error::Other(format!("asking about {name}: {}", chain(&error))))?;
    Ok(Verified {
        name,
        instructions: info.verified_instruction_count(),
        machine_code_bytes: Some(info.size_jitted()).filter(|bytes| *bytes > 0),
    })
}

/// Loads the object into the running kernel, attaches it nowhere, and removes it again.
///
/// # Errors
/// The kernel refuses it; with what its verifier says.
pub fn try_out() -> Result<Vec<Verified>> {
    let pins = PathBuf::from(format!("/sys/fs/bpf/ebb-verify-{}", std::process::id()));
    let options = Options {
        pins: pins.clone(),
        interfaces: Vec::new(),
        mode: XdpMode::Auto,
        // The sizes mean nothing to the verifier.
        capacity: Capacity {
            services: 8,
            backends: 32,
            slots: 4096,
            flows: 1024,
            handshakes: 256,
            ports: 1024,
        },
        trace: false,
        value_max: VALUE_MAX,
    };
    let verified =
        BpfDatapath::open(object::XDP, &options).and_then(|datapath| datapath.verified());
    remove_pins(&pins).map_err(|source| Error::Kernel {
        what: format!("removing {}", pins.display()),
        source,
    })?;
    verified
}
