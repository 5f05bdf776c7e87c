//! Where a flood ends: in front of everything that is not the balancer.

use std::mem;

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::PerCpuArray,
    programs::{SchedClassifier, TcAttachType, xdp::XdpMode},
};
use lb_userspace::datapath::object;

use super::{program, shared::Shed};
use crate::lab::Lab;

/// A program on every interface that the balancer's packets arrive at. It drops all but a few of a flood's frames,
/// and passes everything else, as the lab's own pass program does, in whose place it is. On backends with `ebb decap` it is
/// behind that.
pub struct Shedder(Ebpf);

impl Shedder {
    /// Over a lab that was made without pass programs.
    ///
    /// # Errors
    /// The kernel refuses the program; behind `ebb decap`, one older than 6.6 does.
    pub fn over(lab: &Lab) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .load(object::FLOOD)
            .context("loading the flood's maps")?;
        let shed = program(&mut ebpf, "shed")?;
        shed.load()
            .context("loading the program that sheds a flood")?;
        for (role, interface) in lab.far_interfaces() {
            let shed = &mut *shed;
            let attached = lab
                .netns(&role)
                .run(|| shed.attach(&interface, XdpMode::Driver));
            // The link lives as long as the program.
            let _ = attached?.with_context(|| format!("attaching to {interface} in {role}"))?;
        }
        if lab.has_decap() {
            behind_decap(&mut ebpf, lab)?;
        }
        Ok(Self(ebpf))
    }

    /// Frames of floods that arrived, and those of them that went on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn arrived(&self) -> Result<(u64, u64)> {
        let map = self
            .0
            .map("SHED")
            .context("the flood's object has no map SHED")?;
        let map: PerCpuArray<_, [u64; 2]> = PerCpuArray::try_from(map)?;
        const { assert!(mem::size_of::<Shed>() == 16) };
        Ok(map
            .get(&0, 0)?
            .iter()
            .fold((0, 0), |sum, cpu| (sum.0 + cpu[0], sum.1 + cpu[1])))
    }
}

fn behind_decap(ebpf: &mut Ebpf, lab: &Lab) -> Result<()> {
    let shed: &mut SchedClassifier = ebpf
        .program_mut("shed_later")
        .context("the flood's object has no program shed_later")?
        .try_into()?;
    shed.load()
        .context("loading the program that sheds a flood later")?;
    for role in lab.backends() {
        let shed = &mut *shed;
        let attached = lab
            .netns(role)
            .run(move || shed.attach("eth0", TcAttachType::Ingress));
        let _ = attached?.with_context(|| format!("attaching to eth0 in {role}"))?;
    }
    Ok(())
}
