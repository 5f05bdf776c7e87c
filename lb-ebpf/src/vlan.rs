//! Replacing the 802.1Q tags of a frame (IEEE 802.1Q-2018, clause 9).

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::outcome::Outcome;
use network_types::eth::EthHdr;

use crate::{
    forward::Exit,
    parse::{ETHERTYPE_VLAN, header},
};

/// Bytes of a tag.
const TAG: usize = 4;
/// Bits of the VLAN id.
const ID_MASK: u16 = 0xfff;

/// An Ethernet header with a tag.
#[repr(C)]
struct Tagged {
    macs: [u8; 12],
    tag_type: u16,
    control: u16,
    ether_type: u16,
}

/// Gives a frame with `tags` bytes of tags in front of a packet of this EtherType (as loaded) the exit's MAC addresses
/// and its tag, or none, in place of those tags. Whatever pointed into the packet is void afterwards, also when it fails.
#[inline(always)]
pub fn retag(ctx: &XdpContext, tags: usize, ether_type: u16, exit: &Exit) -> Result<(), Outcome> {
    let new = if exit.vlan == 0 { 0 } else { TAG };
    let delta = tags as i32 - new as i32;
    // SAFETY: the context is the kernel's own.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), delta) } != 0 {
        return Err(Outcome::DropNoHeadroom);
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    // SAFETY: `header` has checked them.
    unsafe {
        if exit.vlan == 0 {
            let plain: *mut EthHdr = header(start, end)?;
            exit.address(plain);
            (*plain).ether_type = ether_type;
        } else {
            let tagged: *mut Tagged = header(start, end)?;
            exit.address(tagged.cast());
            (*tagged).tag_type = ETHERTYPE_VLAN;
            (*tagged).control = (exit.vlan & ID_MASK).to_be();
            (*tagged).ether_type = ether_type;
        }
    }
    Ok(())
}
