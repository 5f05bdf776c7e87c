//! A program on an interface without a link or a pin: put there over rtnetlink, it stays until it is taken off again or
//! the interface ends.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

// include/uapi/linux/if_link.h
pub(super) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1 << 0;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_REPLACE: u32 = 1 << 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_EXPECTED_FD: u16 = 8;

/// Length of struct nlmsghdr.
const MESSAGE_HEADER: usize = 16;
/// Length of struct ifinfomsg.
const LINK_HEADER: usize = 16;

/// Puts a program on an interface of the calling thread's network namespace where there is none yet.
///
/// # Errors
/// `EBUSY` or `EEXIST`: another program is there; `EOPNOTSUPP`: no native XDP; `ENODEV`: no such interface.
pub fn attach(ifindex: u32, program: BorrowedFd<'_>, native: bool) -> io::Result<()> {
    let flags = mode_flag(native) | XDP_FLAGS_UPDATE_IF_NOEXIST;
    set(ifindex, Some(program), flags, None)
}

/// Takes off a program of this name; `false` when this interface runs none that [`attach`] put there. Another program
/// is never taken off.
///
/// # Errors
/// The kernel's.
pub fn detach(ifindex: u32, name: &[u8]) -> io::Result<bool> {
    for info in aya::programs::loaded_programs().flatten() {
        if info.name() != name {
            continue;
        }
        // A program that has gone meanwhile is not on the interface.
        let Ok(program) = info.fd() else { continue };
        for native in [true, false] {
            let flags = mode_flag(native) | XDP_FLAGS_REPLACE;
            match set(ifindex, None, flags, Some(program.as_fd())) {
                Ok(()) => return Ok(true),
                // Not this one, none in this mode, or one that a link holds.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EEXIST | libc::ENOENT | libc::EBUSY | libc::EOPNOTSUPP)
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(false)
}

/// Id of the program that an interface runs; `None` for none.
///
/// # Errors
/// The kernel's.
pub fn program_on(ifindex: u32) -> io::Result<Option<u32>> {
    let mut body = vec![0; LINK_HEADER];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let answer = request(libc::RTM_GETLINK, 0, &body)?;
    if message_kind(&answer)? != libc::RTM_NEWLINK {
        return verdict(&answer).map(|()| None);
    }
    let attributes = answer
        .get(MESSAGE_HEADER + LINK_HEADER..)
        .ok_or_else(short)?;
    Ok(find_attribute(attributes, IFLA_XDP)
        .and_then(|xdp| find_attribute(xdp, IFLA_XDP_PROG_ID))
        .and_then(|id| id.try_into().ok())
        .map(u32::from_ne_bytes))
}

const fn mode_flag(native: bool) -> u32 {
    if native {
        XDP_FLAGS_DRV_MODE
    } else {
        XDP_FLAGS_SKB_MODE
    }
}

/// Sets an interface's program; `None` takes it off. `expected`: only if it is this one.
fn set(
    ifindex: u32,
    program: Option<BorrowedFd<'_>>,
    flags: u32,
    expected: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let fd = program.map_or(-1, |program| program.as_raw_fd());
    let mut xdp = Vec::new();
    attribute(&mut xdp, IFLA_XDP_FD, &fd.to_ne_bytes());
    attribute(&mut xdp, IFLA_XDP_FLAGS, &flags.to_ne_bytes());
    if let Some(expected) = expected {
        let fd = expected.as_raw_fd().to_ne_bytes();
        attribute(&mut xdp, IFLA_XDP_EXPECTED_FD, &fd);
    }
    // struct ifinfomsg: family and padding, type, index, flags, change.
    let mut body = vec![0; LINK_HEADER];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    attribute(&mut body, IFLA_XDP | libc::NLA_F_NESTED as u16, &xdp);
    verdict(&request(libc::RTM_SETLINK, libc::NLM_F_ACK, &body)?)
}

/// Appends a netlink attribute: length and type in host order, the value, and padding to four bytes.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = 4 + value.len() as u16;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of that type.
fn find_attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const KIND_MASK: u16 = !(libc::NLA_F_NESTED as u16);
    loop {
        let (length, rest) = attributes.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let kind = u16::from_ne_bytes(*rest.first_chunk::<2>()?);
        if kind & KIND_MASK == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// Sends a message and returns the kernel's first answer.
fn request(kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<Vec<u8>> {
    // struct nlmsghdr: length, type, flags, sequence, port.
    let length = u32::try_from(MESSAGE_HEADER + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    // SAFETY: no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let fd = socket.as_raw_fd();
    // SAFETY: the buffer is valid for its length.
    if unsafe { libc::send(fd, message.as_ptr().cast(), message.len(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0_u8; 1 << 16];
    // SAFETY: as above.
    let n = unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    answer.truncate(n.unsigned_abs());
    Ok(answer)
}

fn message_kind(answer: &[u8]) -> io::Result<u16> {
    let bytes = answer.get(4..6).ok_or_else(short)?;
    Ok(u16::from_ne_bytes([bytes[0], bytes[1]]))
}

/// What an answer of type NLMSG_ERROR says.
fn verdict(answer: &[u8]) -> io::Result<()> {
    // nlmsghdr, then nlmsgerr, which begins with the negative error number, 0 for done.
    let number = answer.get(16..20).ok_or_else(short)?;
    let number = i32::from_ne_bytes(number.try_into().map_err(|_| short())?);
    if number == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-number))
    }
}

fn short() -> io::Error {
    io::Error::other("a short answer from rtnetlink")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others_of_odd_length() {
        let mut inner = Vec::new();
        attribute(&mut inner, IFLA_XDP_PROG_ID, &7_u32.to_ne_bytes());
        let mut all = Vec::new();
        attribute(&mut all, 3, b"eth0\0");
        attribute(&mut all, IFLA_XDP | libc::NLA_F_NESTED as u16, &inner);
        let found = find_attribute(&all, IFLA_XDP).expect("it is there");
        assert_eq!(
            find_attribute(found, IFLA_XDP_PROG_ID),
            Some(&7_u32.to_ne_bytes()[..])
        );
        assert_eq!(find_attribute(&all, 99), None);
        for cut in 0..all.len() {
            // Never a panic, whatever the kernel sent.
            let _ = find_attribute(&all[..cut], IFLA_XDP);
        }
    }
}
