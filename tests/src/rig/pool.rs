//! Loaded programs that are used again: the kernel's verifier takes a second for all of them, a row a millisecond.
//!
//! A program that comes back gets maps as new ones are before it is given away again.

use std::{
    ffi::{c_long, c_void},
    io,
    ops::{Deref, DerefMut},
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    ptr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapData, MapInfo, MapType};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use lb_userspace::{
    datapath::bpf::{self, BpfDatapath, program_names},
    model::spec::Capacity,
};

/// `BPF_F_RDONLY_PROG`: a map of constants.
const CONSTANTS: u32 = 1 << 7;
/// What is cleared by one system call.
const BYTES_AT_ONCE: usize = 1 << 20;

/// Those that nobody uses at the moment, by their sizes.
static POOL: Mutex<Vec<(Capacity, Loaded)>> = Mutex::new(Vec::new());

fn pool() -> MutexGuard<'static, Vec<(Capacity, Loaded)>> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A data plane for as long as a rig uses it.
pub struct Borrowed {
    /// There until the drop.
    loaded: Option<Loaded>,
    home: Home,
}

/// Where it goes when it is dropped.
enum Home {
    Pool(Capacity),
    /// Nowhere: its maps stay pinned there so long.
    Pins(PathBuf),
}

impl Borrowed {
    /// One of these sizes, whose maps are as new; `load` makes one if none is free, and says where it pinned the maps.
    ///
    /// # Errors
    /// Those of `load`, and the kernel's.
    pub fn from_pool(
        capacity: Capacity,
        load: impl FnOnce() -> Result<(BpfDatapath, PathBuf)>,
    ) -> Result<Self> {
        let free = {
            let mut pool = pool();
            let at = pool.iter().position(|(sizes, _)| *sizes == capacity);
            at.map(|at| pool.swap_remove(at).1)
        };
        let loaded = match free {
            Some(loaded) => {
                loaded.renew()?;
                loaded
            }
            None => {
                let (datapath, pins) = load()?;
                let loaded = Loaded::new(datapath)?;
                // Nobody would take them away when the process ends. Not before the maps are open: the kernel empties
                // a program array that no process has, and the jumps would be gone.
                bpf::remove_pins(&pins)?;
                loaded
            }
        };
        Ok(Self {
            loaded: Some(loaded),
            home: Home::Pool(capacity),
        })
    }

    /// One that nobody else gets, with maps that are pinned in `pins` until the drop.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pinned(datapath: BpfDatapath, pins: PathBuf) -> Result<Self> {
        Ok(Self {
            loaded: Some(Loaded::new(datapath)?),
            home: Home::Pins(pins),
        })
    }

    /// Where its maps are pinned, if they are.
    pub fn pins(&self) -> Option<&Path> {
        match &self.home {
            Home::Pins(pins) => Some(pins),
            Home::Pool(_) => None,
        }
    }
}

impl Deref for Borrowed {
    type Target = BpfDatapath;

    fn deref(&self) -> &BpfDatapath {
        &self.loaded.as_ref().expect("there until the drop").datapath
    }
}

impl DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut BpfDatapath {
        &mut self.loaded.as_mut().expect("there until the drop").datapath
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        match (&self.home, self.loaded.take()) {
            (Home::Pool(capacity), Some(loaded)) => pool().push((*capacity, loaded)),
            (Home::Pins(pins), _) => std::mem::drop(bpf::remove_pins(pins)),
            (Home::Pool(_), None) => {}
        }
    }
}

/// A data plane with small tables, and what puts it back into the state that it was loaded in.
struct Loaded {
    datapath: BpfDatapath,
    maps: Vec<MapData>,
    /// The control record as it was at the start: descriptor of the map, value.
    control: (u32, Vec<u8>),
}

impl Loaded {
    fn new(datapath: BpfDatapath) -> Result<Self> {
        let mut ids = Vec::new();
        for name in program_names() {
            let info = datapath.program_named(name)?.info()?;
            ids.extend(info.map_ids()?.context("the kernel tells no maps")?);
        }
        ids.sort_unstable();
        ids.dedup();
        let maps = ids.into_iter().map(MapData::from_id);
        let maps = maps.collect::<std::result::Result<Vec<_>, _>>()?;
        let mut control = None;
        for map in &maps {
            let info = map.info()?;
            if info.name_as_str() == Some("CONTROL") {
                control = Some((map_fd(map), first_value(map, &info)?));
            }
        }
        let control = control.context("there is no map CONTROL")?;
        Ok(Self {
            datapath,
            maps,
            control,
        })
    }

    /// Maps as they were at the start.
    fn renew(&self) -> Result<()> {
        for map in &self.maps {
            let info = map.info()?;
            clear(map, &info).with_context(|| format!("clear {:?}", info.name_as_str()))?;
        }
        let (fd, value) = &self.control;
        let key = 0u32.to_ne_bytes();
        let mut attr = element(*fd, &key);
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
        bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).context("restore the control record")
    }
}

fn clear(map: &MapData, info: &MapInfo) -> Result<()> {
    match info.map_type()? {
        _ if info.map_flags() & CONSTANTS != 0 => Ok(()),
        MapType::Array => clear_array(map, info, info.value_size() as usize),
        MapType::PerCpuArray => {
            let cpus = aya::util::nr_cpus().map_err(|(path, error)| {
                io::Error::new(error.kind(), format!("{path}: {error}"))
            })?;
            clear_array(
                map,
                info,
                info.value_size().next_multiple_of(8) as usize * cpus,
            )
        }
        MapType::Hash | MapType::LpmTrie => clear_keys(map, info),
        // Programs stay, and what nobody has read of a log harms nobody.
        MapType::ProgramArray | MapType::RingBuf => Ok(()),
        other => bail!("a map of kind {other:?}"),
    }
}

/// Writes zeroes to all entries (BPF_MAP_UPDATE_BATCH, kernel 5.6; for per-CPU arrays 5.13).
fn clear_array(map: &MapData, info: &MapInfo, value: usize) -> Result<()> {
    let at_once = (BYTES_AT_ONCE / value).clamp(1, info.max_entries() as usize);
    let zeroes = vec![0u8; value * at_once];
    let keys: Vec<u32> = (0..info.max_entries()).collect();
    for keys in keys.chunks(at_once) {
        // SAFETY: all zeroes is a value of this union of integers.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        attr.batch.keys = keys.as_ptr() as u64;
        attr.batch.values = zeroes.as_ptr() as u64;
        attr.batch.count = keys.len() as u32;
        attr.batch.map_fd = map_fd(map);
        bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr)?;
    }
    Ok(())
}

fn clear_keys(map: &MapData, info: &MapInfo) -> Result<()> {
    let mut key = vec![0u8; info.key_size() as usize];
    loop {
        let mut attr = element(map_fd(map), &[]);
        attr.__bindgen_anon_2.key = ptr::null::<c_void>() as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.next_key = key.as_mut_ptr() as u64;
        match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(()) => {}
            Err(error) if is_no_entry(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        bpf(
            bpf_cmd::BPF_MAP_DELETE_ELEM,
            &mut element(map_fd(map), &key),
        )?;
    }
}

fn is_no_entry(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.and_then(io::Error::raw_os_error) == Some(libc::ENOENT)
}

fn first_value(map: &MapData, info: &MapInfo) -> Result<Vec<u8>> {
    let mut value = vec![0u8; info.value_size() as usize];
    let key = 0u32.to_ne_bytes();
    let mut attr = element(map_fd(map), &key);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)?;
    Ok(value)
}

fn map_fd(map: &MapData) -> u32 {
    map.fd().as_fd().as_raw_fd() as u32
}

/// Arguments of a system call about the entry of a key.
fn element(map: u32, key: &[u8]) -> bpf_attr {
    // SAFETY: all zeroes is a value of this union of integers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_2.map_fd = map;
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> Result<()> {
    // SAFETY: the pointers in `attr` are to memory that lives longer and is as long as the map's keys and values are.
    let code: c_long = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as c_long,
            ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if code < 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}
