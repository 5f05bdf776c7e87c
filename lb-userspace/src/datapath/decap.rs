//! The program of `ebb decap`: loaded, told its settings, put on an interface to stay, and taken off again.

use std::{io, os::fd::AsFd as _};

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        LpmTrie, PerCpuArray,
        lpm_trie::{Key, LpmTrie as Trie},
    },
    programs::Xdp,
};
use lb_common::{Addr, tunnel::Decap};

use super::{bpf::verify, object::EBB_DECAP, xdp_link};
use crate::model::spec::{Prefix, XdpMode};

/// The program's name, as `bpftool prog` shows it.
const NAME: &str = "decap";
const SOURCES: &str = "DECAP_SOURCES";
const COUNTS: &str = "DECAP_COUNTS";

/// What the program is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// UDP port of the tunnel.
    pub port: u16,
    /// Where tunnels may come from; anywhere when empty.
    pub sources: Vec<Prefix>,
    /// How it is attached.
    pub mode: XdpMode,
}

/// Why the program could not be put on an interface, or taken off, or asked.
#[derive(Debug, thiserror::Error)]
pub enum DecapError {
    /// The kernel did not load it.
    #[error("load the program: {0}")]
    Load(String),
    /// The kernel did not attach it, or did not take it off. `EBUSY`, `EEXIST`: another program is there;
    /// `EOPNOTSUPP`: no native XDP; `ENODEV`: no such interface in this network namespace.
    #[error("{what} interface {ifindex}: {source}")]
    Interface {
        /// What was to be done.
        what: &'static str,
        /// Index of the interface.
        ifindex: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its counters could not be read.
    #[error("read the counters: {0}")]
    Counts(String),
}

/// Puts the program on an interface, to stay until [`detach`] or the interface's end; whether in native mode.
///
/// # Errors
/// See [`DecapError`].
pub fn attach(ifindex: u32, settings: &Settings) -> Result<bool, DecapError> {
    let mut ebpf = load(settings)?;
    let fd = program(&mut ebpf)?.fd().map_err(load_error)?;
    let attach = |native| xdp_link::attach(ifindex, fd.as_fd(), native).map(|()| native);
    let done = match settings.mode {
        XdpMode::Native => attach(true),
        XdpMode::Generic => attach(false),
        XdpMode::Auto => match attach(true) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => attach(false),
            result => result,
        },
    };
    done.map_err(|source| DecapError::Interface {
        what: "attach to",
        ifindex,
        source,
    })
}

/// Takes the program off; `false` when this interface runs none.
///
/// # Errors
/// See [`DecapError`].
pub fn detach(ifindex: u32) -> Result<bool, DecapError> {
    xdp_link::detach(ifindex, NAME.as_bytes()).map_err(|source| DecapError::Interface {
        what: "detach from",
        ifindex,
        source,
    })
}

/// What the program on an interface has counted, all CPUs together; `None` when this interface runs none.
///
/// # Errors
/// See [`DecapError`].
pub fn counts(ifindex: u32) -> Result<Option<Vec<(&'static str, u64)>>, DecapError> {
    let failed = |error: &dyn std::error::Error| DecapError::Counts(error.to_string());
    let Some(id) = xdp_link::program_on(ifindex).map_err(|error| failed(&error))? else {
        return Ok(None);
    };
    let Some(info) = aya::programs::loaded_programs()
        .flatten()
        .find(|info| info.id() == id && info.name() == NAME.as_bytes())
    else {
        return Ok(None);
    };
    let maps = info
        .map_ids()
        .map_err(|error| failed(&error))?
        .unwrap_or_default();
    for id in maps {
        let info = aya::maps::MapInfo::from_id(id).map_err(|error| failed(&error))?;
        if info.name_as_str() != Some(COUNTS) {
            continue;
        }
        let data = aya::maps::MapData::from_id(id).map_err(|error| failed(&error))?;
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(aya::maps::Map::PerCpuArray(data))
            .map_err(|error| failed(&error))?;
        let mut all = Vec::new();
        for (kind, name) in Decap::ALL {
            let values = map.get(&(kind as u32), 0).map_err(|error| failed(&error))?;
            all.push((name, values.iter().sum()));
        }
        return Ok(Some(all));
    }
    Err(DecapError::Counts(format!(
        "the program has no map {COUNTS}"
    )))
}

/// The loaded program, for tests that run it by hand.
///
/// # Errors
/// [`DecapError::Load`].
pub fn load(settings: &Settings) -> Result<Ebpf, DecapError> {
    let (port, checks) = (
        settings.port.to_be(),
        u32::from(!settings.sources.is_empty()),
    );
    let mut ebpf = EbpfLoader::new()
        .override_global("DECAP_PORT", &port, true)
        .override_global("DECAP_CHECKS", &checks, true)
        .load(EBB_DECAP)
        .map_err(load_error)?;
    let map = ebpf
        .map_mut(SOURCES)
        .ok_or_else(|| DecapError::Load(format!("the object has no map {SOURCES}")))?;
    let mut sources: Trie<_, [u8; 16], u32> = LpmTrie::try_from(map).map_err(load_error)?;
    for prefix in &settings.sources {
        let mapped = if prefix.address().is_ipv4() { 96 } else { 0 };
        let key = Key::new(
            mapped + u32::from(prefix.length()),
            Addr::from(prefix.address()).bytes(),
        );
        sources.insert(&key, 1, 0).map_err(load_error)?;
    }
    verify(program(&mut ebpf)?).map_err(load_error)?;
    Ok(ebpf)
}

/// The program of the object.
///
/// # Errors
/// [`DecapError::Load`].
pub fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, DecapError> {
    ebpf.program_mut(NAME)
        .ok_or_else(|| DecapError::Load(format!("the object has no program {NAME}")))?
        .try_into()
        .map_err(load_error)
}

fn load_error(error: impl std::error::Error) -> DecapError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    DecapError::Load(text)
}
