//! The program of `ebb decap`, loaded and run on single packets (BPF_PROG_TEST_RUN).

use std::process::Command;

use anyhow::{Result, ensure};
use aya::{
    Ebpf,
    maps::PerCpuArray,
    programs::{TestRun as _, TestRunOptions},
};
use lb_common::tunnel::Decap;
use lb_userspace::{
    datapath::decap::{self, Settings},
    model::spec::XdpMode,
};

use crate::rig::{TUNNEL_PORT, Verdict};

/// The program, in this thread's network namespace.
pub struct TunnelEnd(Ebpf);

impl TunnelEnd {
    /// Loads it; tunnels may come from these prefixes, or from anywhere if there are none.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Panics
    /// One is no prefix.
    pub fn new(sources: &[&str]) -> Result<Self> {
        let sources = sources.iter().map(|text| text.parse().expect("a prefix"));
        Ok(Self(decap::load(&Settings {
            port: TUNNEL_PORT,
            sources: sources.collect(),
            mode: XdpMode::Native,
        })?))
    }

    /// Runs the decapsulating program: verdict, frame, the one thing counted.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Panics
    /// Not exactly one thing was counted.
    pub fn run(&mut self, frame: &[u8]) -> Result<(Verdict, Vec<u8>, Decap)> {
        let before = self.counts()?;
        let mut out = vec![0; 4096];
        let result = decap::program(&mut self.0)?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat: 1,
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        let after = self.counts()?;
        let counted: Vec<Decap> = Decap::ALL
            .iter()
            .map(|(kind, _)| *kind)
            .filter(|kind| after[*kind as usize] != before[*kind as usize])
            .collect();
        let total = after.iter().sum::<u64>() - before.iter().sum::<u64>();
        assert_eq!(
            (counted.len(), total),
            (1, 1),
            "one count a packet: {counted:?}"
        );
        Ok((Verdict::from_code(result.return_value), out, counted[0]))
    }

    fn counts(&self) -> Result<Vec<u64>> {
        let map = self.0.map("DECAP_COUNTS").expect("the object has it");
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        Decap::ALL
            .iter()
            .map(|(kind, _)| Ok(map.get(&(*kind as u32), 0)?.iter().sum()))
            .collect()
    }
}

/// Runs `ip` in this thread's network namespace.
///
/// # Errors
/// It fails.
pub fn ip(words: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(words).status()?;
    ensure!(status.success(), "ip {words:?}");
    Ok(())
}
