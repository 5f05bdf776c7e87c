//! The bench's own object, and runs of its driver.

use std::{rc::Rc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use lb_userspace::datapath::object;
use nix::time::{ClockId, clock_gettime};

use super::{
    memory::Memory,
    shared::{Config, State},
};
use crate::rig::Verdict;

/// The loaded object.
pub struct Driver {
    /// The object.
    pub ebpf: Ebpf,
    config: Memory<Config>,
    state: Memory<State>,
    order: Memory<u32>,
    written: Option<Rc<Vec<u32>>>,
    measured: ProgramArray<MapData>,
    flows: u32,
    length: usize,
}

/// What a call of BPF_PROG_TEST_RUN gave.
pub struct Run {
    /// CPU time of this thread, all repeats together.
    pub cpu: Duration,
    /// Verdict of the last repeat.
    pub verdict: Verdict,
    /// Frame of the last repeat.
    pub frame: Vec<u8>,
    /// Index into the order of the last repeat's flow.
    pub position: u32,
    /// Frames made since the driver was set up.
    pub made: u32,
}

impl Driver {
    /// Loads it.
    pub fn new() -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .load(object::BENCH)
            .context("loading the bench's maps")?;
        let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_string()).collect();
        for name in &names {
            program(&mut ebpf, name)?
                .load()
                .with_context(|| format!("loading the bench's program {name}"))?;
        }
        let map = ebpf
            .take_map("MEASURED")
            .context("the bench's object has no map MEASURED")?;
        Ok(Self {
            config: Memory::new(&ebpf, "CONFIG")?,
            state: Memory::new(&ebpf, "STATE")?,
            order: Memory::new(&ebpf, "ORDER")?,
            written: None,
            measured: ProgramArray::try_from(map)?,
            flows: 1,
            length: 0,
            ebpf,
        })
    }

    /// From now on the driver writes these frames, for the flows in this order, beginning at its start.
    pub fn set_up(&mut self, config: Config, order: &Rc<Vec<u32>>) -> Result<()> {
        ensure!(
            order.len() <= self.order.len() && order.len() == config.flows as usize,
            "{} flows in an order of {}",
            config.flows,
            order.len()
        );
        let same = matches!(&self.written, Some(old) if Rc::ptr_eq(old, order));
        if !same {
            for (place, number) in order.iter().enumerate() {
                self.order.set(place, *number);
            }
            self.written = Some(Rc::clone(order));
        }
        (self.flows, self.length) = (config.flows, config.length as usize);
        self.config.set(0, config);
        self.rewind(0);
        Ok(())
    }

    /// Goes on with the flow at `position`.
    pub fn rewind(&mut self, position: u32) {
        let state = State {
            position,
            ..State::default()
        };
        self.state.set(0, state);
    }

    /// Frames for which a floor found no entry, since the last [`Driver::rewind`].
    pub fn misses(&self) -> u64 {
        self.state.get(0).misses
    }

    /// The driver calls this program from now on.
    pub fn select(&mut self, program: &ProgramFd) -> Result<()> {
        self.measured
            .set(0, program, 0)
            .context("putting the measured program into the driver's PROG_ARRAY")
    }

    /// The same, one of its own programs.
    pub fn select_own(&mut self, name: &str) -> Result<()> {
        let fd = program(&mut self.ebpf, name)?.fd()?.try_clone()?;
        self.select(&fd)
    }

    /// Runs the driver.
    pub fn run(&mut self, repeat: u32) -> Result<Run> {
        let frame_in = vec![0u8; self.length];
        let mut frame = vec![0u8; 2048];
        let drive = program(&mut self.ebpf, "drive")?;
        let before = thread_time()?;
        let result = drive
            .test_run(TestRunOptions {
                data_in: Some(&frame_in),
                data_out: Some(&mut frame),
                repeat,
                ..TestRunOptions::default()
            })
            .context("BPF_PROG_TEST_RUN")?;
        let cpu = thread_time()?.saturating_sub(before);
        frame.truncate(result.data_size_out as usize);
        let state = self.state.get(0);
        Ok(Run {
            cpu,
            verdict: Verdict::from_code(result.return_value),
            frame,
            position: state.position.checked_sub(1).unwrap_or(self.flows - 1),
            made: state.made,
        })
    }
}

/// A program of the object.
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let Some(program) = ebpf.program_mut(name) else {
        bail!("the object has no program {name}");
    };
    Ok(program.try_into()?)
}

/// CPU time of this thread. Wall time would hold the kernel's waits for its grace periods as well: each test run
/// changes a dispatcher twice.
fn thread_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .context("reading the thread's CPU time")?
        .into())
}
