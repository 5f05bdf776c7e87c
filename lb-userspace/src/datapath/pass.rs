//! The smallest XDP program: pass every packet.
//!
//! A veth takes frames from the other end's XDP_TX or a redirect only while it runs an XDP program of its own;
//! without one they vanish uncounted (veth.c, `veth_xdp_xmit`: no program on the receiving side, no NAPI). So a
//! container's end of a veth, or a bridge port, towards a node that balances in native mode carries this program.

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::xdp_link;

/// Why the pass program could not be put on an interface.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The kernel did not load it.
    #[error("load the pass program: {0}")]
    Load(#[source] io::Error),
    /// The kernel did not attach it. `EBUSY`: another program is there; `EOPNOTSUPP`: no native XDP; `ENODEV`: no
    /// such interface in this network namespace.
    #[error("attach the pass program to interface {ifindex}: {source}")]
    Attach {
        /// Index of the interface.
        ifindex: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel did not take it off.
    #[error("detach the pass program from interface {ifindex}: {source}")]
    Detach {
        /// Index of the interface.
        ifindex: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The link could not be pinned.
    #[error("pin the pass program at {path}: {source}")]
    Pin {
        /// Where.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

// bpf(2), include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_PASS: i32 = 2;

/// The program's name, as `bpftool prog` shows it.
const NAME: &[u8] = b"ebb_pass";

/// One BPF instruction. `registers`: destination in the low nibble, source in the high one.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `r0 = XDP_PASS; exit`.
const PROGRAM: [Instruction; 2] = [
    Instruction {
        code: 0xb7,
        registers: 0,
        offset: 0,
        immediate: XDP_PASS,
    },
    Instruction {
        code: 0x95,
        registers: 0,
        offset: 0,
        immediate: 0,
    },
];

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD, up to the program's name.
#[repr(C)]
struct LoadArguments {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The first fields of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
struct LinkArguments {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// The fields of `union bpf_attr` for BPF_OBJ_PIN.
#[repr(C)]
struct PinArguments {
    path: u64,
    object: u32,
    flags: u32,
}

const _: () = {
    assert!(size_of::<Instruction>() == 8);
    assert!(size_of::<LoadArguments>() == 64);
    assert!(size_of::<LinkArguments>() == 16);
    assert!(size_of::<PinArguments>() == 16);
};

/// Attaches the pass program to an interface of the calling thread's network namespace, in native mode.
///
/// The program stays as long as the returned link, or a pin of it, is there.
///
/// # Errors
/// See [`PassError`].
pub fn attach_pass(ifindex: u32) -> Result<OwnedFd, PassError> {
    let program = load().map_err(PassError::Load)?;
    let arguments = LinkArguments {
        program: program.as_raw_fd().cast_unsigned(),
        ifindex,
        attach_type: BPF_XDP,
        flags: xdp_link::XDP_FLAGS_DRV_MODE,
    };
    // SAFETY: the arguments are those of this command.
    unsafe { bpf_fd(BPF_LINK_CREATE, &arguments) }
        .map_err(|source| PassError::Attach { ifindex, source })
}

/// Attaches the pass program as [`attach_pass`] does, to stay until [`detach_pass`] or the interface's end: no
/// descriptor, no pin. For `ebb pass`, which may run where no BPF file system is mounted (`ip netns exec`).
///
/// # Errors
/// See [`PassError`]; `EBUSY` when any program is there already.
pub fn attach_pass_for_good(ifindex: u32) -> Result<(), PassError> {
    let program = load().map_err(PassError::Load)?;
    xdp_link::attach(ifindex, program.as_fd(), true)
        .map_err(|source| PassError::Attach { ifindex, source })
}

/// Takes off what [`attach_pass_for_good`] put on; `false` when this interface runs no pass program of that kind.
/// Another program is never taken off.
///
/// # Errors
/// [`PassError::Detach`].
pub fn detach_pass(ifindex: u32) -> Result<bool, PassError> {
    xdp_link::detach(ifindex, NAME).map_err(|source| PassError::Detach { ifindex, source })
}

/// Pins a link that [`attach_pass`] returned, so that the program stays after this process.
///
/// `path` is in a BPF file system, its directory exists. Removing the file takes the program off again.
///
/// # Errors
/// [`PassError::Pin`].
pub fn pin(link: BorrowedFd<'_>, path: &Path) -> Result<(), PassError> {
    let failed = |source| PassError::Pin {
        path: path.display().to_string(),
        source,
    };
    let text = CString::new(path.as_os_str().as_bytes()).map_err(|nul| failed(nul.into()))?;
    let arguments = PinArguments {
        path: text.as_ptr().expose_provenance() as u64,
        object: link.as_fd().as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    // SAFETY: the arguments are those of this command, and the path outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &arguments) }
        .map(drop)
        .map_err(failed)
}

fn load() -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..NAME.len()].copy_from_slice(NAME);
    let arguments = LoadArguments {
        kind: BPF_PROG_TYPE_XDP,
        instruction_count: PROGRAM.len() as u32,
        instructions: PROGRAM.as_ptr().expose_provenance() as u64,
        license: c"Dual MIT/GPL".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    // SAFETY: the arguments are those of this command; instructions and licence are constants.
    unsafe { bpf_fd(BPF_PROG_LOAD, &arguments) }
}

/// A bpf(2) command that returns a new descriptor.
///
/// # Safety
/// As [`bpf`].
unsafe fn bpf_fd<T>(command: libc::c_long, arguments: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, arguments) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bpf(2).
///
/// # Safety
/// `arguments` has the layout of this command's part of `union bpf_attr` (without padding), and its pointers are
/// valid for the call.
unsafe fn bpf<T>(command: libc::c_long, arguments: &T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's promise; the size is the structure's own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(arguments),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
