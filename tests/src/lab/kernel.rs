//! The kernel's side of a lab: scripts for `ip`, settings, offloads, mounts.

use std::{
    ffi::CString,
    fs,
    io::{self, Write as _},
    mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};

/// Where BPF objects are pinned.
pub(super) const BPF_FS: &str = "/sys/fs/bpf";

/// Runs `ip [-n netns] -batch -` with `script`.
pub(super) fn ip_batch(netns: Option<&str>, script: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("run ip (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        // When ip ends early, its message says more than the broken pipe.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!(
            "ip -batch in {}: {}\n{script}",
            netns.unwrap_or("the root namespace"),
            why.trim()
        );
    }
    Ok(())
}

/// Writes settings below /proc/sys/net, those of the calling thread's namespace. A setting that this kernel does
/// not have is no error: it has not the behaviour either.
pub(super) fn write_settings(settings: &[(&str, &str)]) -> Result<()> {
    for (name, value) in settings {
        let path = format!("/proc/sys/net/{name}");
        match fs::write(&path, value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("write {value} to {path}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Turns checksum offload for sending off on every interface of the calling thread's namespace but the loopback.
/// XDP would see the unfinished checksums of local senders.
pub(super) fn finish_checksums() -> Result<()> {
    let socket = ioctl_socket()?;
    for interface in nix::net::if_::if_nameindex()?.into_iter() {
        let name = interface.name();
        if name.to_bytes() == b"lo" {
            continue;
        }
        set_tx_checksum_off(&socket, name.to_bytes())
            .with_context(|| format!("ethtool -K {} tx off", name.to_string_lossy()))?;
    }
    Ok(())
}

/// Index of an interface in the calling thread's namespace.
pub(super) fn ifindex(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("interface {name}"))
}

fn ioctl_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// MAC address of an interface in the calling thread's namespace.
pub(super) fn mac(name: &str) -> Result<[u8; 6]> {
    let socket = ioctl_socket()?;
    let mut request = request(name.as_bytes());
    // SAFETY: the request is an ifreq with a name; the kernel fills the address in.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if done != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("MAC address of {name}"));
    }
    // SAFETY: this request fills in a hardware address.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address.sa_data) {
        *to = from.cast_unsigned();
    }
    Ok(mac)
}

/// An ioctl's request about an interface.
fn request(name: &[u8]) -> libc::ifreq {
    // SAFETY: ifreq is plain data, all zeroes is a value of it.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, &from) in request
        .ifr_name
        .iter_mut()
        .zip(name.iter().take(libc::IFNAMSIZ - 1))
    {
        *to = from.cast_signed();
    }
    request
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// include/uapi/linux/ethtool.h
const ETHTOOL_STXCSUM: u32 = 0x17;

fn set_tx_checksum_off(socket: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let mut value = EthtoolValue {
        command: ETHTOOL_STXCSUM,
        data: 0,
    };
    let mut request = request(name);
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request points to an ethtool_value that lives through the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Mounts the BPF file system where it belongs, if it is not there yet.
pub(super) fn mount_bpf_fs() -> Result<()> {
    if is_bpf_fs(Path::new(BPF_FS))? {
        return Ok(());
    }
    let done = mount(
        Some("bpf"),
        BPF_FS,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    );
    done.with_context(|| format!("mount a BPF file system at {BPF_FS}"))
}

fn is_bpf_fs(path: &Path) -> Result<bool> {
    /// include/uapi/linux/magic.h
    const BPF_FS_MAGIC: libc::c_long = 0xcafe_4a11;
    let text = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: statfs is plain data; the call fills it.
    let mut answer: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: both pointers are valid for the call.
    if unsafe { libc::statfs(text.as_ptr(), &raw mut answer) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("statfs {}", path.display()));
    }
    Ok(answer.f_type == BPF_FS_MAGIC)
}
