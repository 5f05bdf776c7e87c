//! The outcome counters, read fast: a service's in one system call (BPF_MAP_LOOKUP_BATCH, kernel 5.13 for per-CPU
//! arrays), since each input asks for them.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_cmd};
use lb_common::{limits::OUTCOMES_MAX, outcome::Outcome};

const ROW: usize = OUTCOMES_MAX as usize;

/// A counter that has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Service, 0 for none.
    pub service: u32,
    /// Outcome.
    pub outcome: Outcome,
    /// By how much.
    pub by: u64,
}

/// The counters of one loaded program.
pub struct Counters {
    map: MapData,
    cpus: usize,
    /// As last read, [`ROW`] for each service.
    last: Vec<u64>,
    keys: [u32; ROW],
    values: Vec<u64>,
}

impl Counters {
    /// Of the program that pinned its maps in `pins`; the services below `services`.
    ///
    /// # Errors
    /// The map is not there or has another form.
    pub fn open(pins: &Path, services: usize) -> Result<Self> {
        let map = MapData::from_pin(pins.join("OUTCOMES"))?;
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, error)| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        ensure!(map.info()?.max_entries() as usize >= services * ROW);
        let mut counters = Self {
            map,
            cpus,
            last: vec![0; services * ROW],
            keys: [0; ROW],
            values: vec![0; ROW * cpus],
        };
        counters.moved_anywhere()?;
        Ok(counters)
    }

    /// What a service's counters moved by since they were last read; appended to `moved`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn moved(&mut self, service: u32, moved: &mut Vec<Moved>) -> Result<()> {
        self.read(service)?;
        let first = service as usize * ROW;
        for (number, &outcome) in Outcome::ALL.iter().enumerate() {
            let now: u64 = self.values[number * self.cpus..][..self.cpus].iter().sum();
            let last = &mut self.last[first + number];
            if now != *last {
                let by = now - *last;
                moved.push(Moved {
                    service,
                    outcome,
                    by,
                });
                *last = now;
            }
        }
        Ok(())
    }

    /// The same for all services.
    ///
    /// # Errors
    /// The kernel's.
    pub fn moved_anywhere(&mut self) -> Result<Vec<Moved>> {
        let mut moved = Vec::new();
        for service in 0..(self.last.len() / ROW) as u32 {
            self.moved(service, &mut moved)?;
        }
        Ok(moved)
    }

    /// Reads a service's counters into `values`, all CPUs of one after the other.
    fn read(&mut self, service: u32) -> Result<()> {
        // The kernel begins behind the key that it is given.
        let before = (service * OUTCOMES_MAX).wrapping_sub(1);
        let mut next = 0u32;
        // SAFETY: all zeroes is a value of this union of integers.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        attr.batch.in_batch = if service == 0 {
            0
        } else {
            &raw const before as u64
        };
        attr.batch.out_batch = &raw mut next as u64;
        attr.batch.keys = self.keys.as_mut_ptr() as u64;
        attr.batch.values = self.values.as_mut_ptr() as u64;
        attr.batch.count = Outcome::COUNT as u32;
        attr.batch.map_fd = self.map.fd().as_fd().as_raw_fd() as u32;
        // SAFETY: keys and values have room for `count` entries.
        let done = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                bpf_cmd::BPF_MAP_LOOKUP_BATCH as libc::c_int,
                &raw mut attr,
                size_of::<bpf_attr>(),
            )
        };
        let error = io::Error::last_os_error();
        // ENOENT: there is nothing behind what was read.
        if done != 0 && error.raw_os_error() != Some(libc::ENOENT) {
            return Err(error).context("reading outcome counters (BPF_MAP_LOOKUP_BATCH)");
        }
        ensure!(
            self.keys[0] == service * OUTCOMES_MAX,
            "read key {} for service {service}",
            self.keys[0]
        );
        Ok(())
    }
}
