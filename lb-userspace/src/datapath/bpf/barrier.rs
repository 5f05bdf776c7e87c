//! Waiting until no running program can still see what was there before.
//!
//! An update of a map-in-map returns only after every program that runs at that time has left (`synchronize_rcu` in
//! the kernel's `maybe_wait_bpf_programs`, since 5.0), because a caller may rely on the old inner map being out of
//! use. That is the one barrier that the bpf(2) interface offers, so the daemon keeps such a map for it alone.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};

use crate::{
    datapath::{Error, Result},
    step::{Step, step},
};

/// A map-in-map that is used for nothing but waiting.
pub struct Barrier {
    outer: OwnedFd,
    inner: OwnedFd,
}

fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: bpf(2) with a fully initialised attribute union.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            attributes as *mut bpf_attr,
            mem::size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn create(kind: bpf_map_type, inner: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    // SAFETY: all zero is a valid attribute union.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the union's member for BPF_MAP_CREATE.
    unsafe {
        let create = &mut attributes.__bindgen_anon_1;
        create.map_type = kind as u32;
        create.key_size = 4;
        create.value_size = 4;
        create.max_entries = 1;
        create.inner_map_fd = inner.map_or(0, |fd| fd.as_raw_fd() as u32);
    }
    let fd = bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

impl Barrier {
    /// Makes the maps.
    pub fn new() -> Result<Self> {
        let kernel = |source| Error::Kernel {
            what: "creating the barrier's maps".into(),
            source,
        };
        let inner = create(bpf_map_type::BPF_MAP_TYPE_ARRAY, None).map_err(kernel)?;
        let outer =
            create(bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS, Some(&inner)).map_err(kernel)?;
        Ok(Self { outer, inner })
    }

    /// Returns when every program that was running at the call has left.
    pub fn wait(&self) -> Result<()> {
        step(Step::Barrier);
        let key = 0u32;
        let value = self.inner.as_raw_fd() as u32;
        // SAFETY: all zero is a valid attribute union.
        let mut attributes: bpf_attr = unsafe { mem::zeroed() };
        // SAFETY: the union's member for BPF_MAP_UPDATE_ELEM; key and value outlive the call.
        unsafe {
            let update = &mut attributes.__bindgen_anon_2;
            update.map_fd = self.outer.as_raw_fd() as u32;
            update.key = (&raw const key) as u64;
            update.__bindgen_anon_1.value = (&raw const value) as u64;
        }
        bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes).map_err(|source| Error::Kernel {
            what: "waiting for running programs".into(),
            source,
        })?;
        Ok(())
    }
}
