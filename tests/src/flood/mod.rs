//! A flood: frames from sources that nobody has, made by an XDP program and sent as live frames
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`, kernel 5.18), millions a second.

#[path = "../../../lb-ebpf/src/flood/shared.rs"]
#[expect(dead_code, reason = "the programs use the rest")]
mod shared;
mod shed;

use std::{
    net::SocketAddrV4,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use lb_common::{
    checksum::sum_bytes,
    steer::tcp::{ACK, SYN},
};
use lb_userspace::datapath::object;

use crate::lab::Netns;
use shared::{BARE_HEADER, Flood as Record, LENGTH, WINDOW, kind};
pub use shed::Shedder;

/// Frames that the kernel hands over at a time; must fit the veth's ring (256).
const BATCH: u32 = 64;

/// Bursts a second that a rate is made of. Each costs the kernel some milliseconds to set up.
const BURSTS_PER_SECOND: u64 = 10;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// TCP segments that open connections.
    Syn,
    /// TCP segments of connections that nobody has.
    Ack,
    /// UDP datagrams.
    Udp,
}

/// A flood to be made.
#[derive(Debug, Clone)]
pub struct FloodOptions {
    /// What is sent.
    pub kind: Kind,
    /// Where to.
    pub target: SocketAddrV4,
    /// Interface that the frames leave by: the near end of a veth whose far end runs XDP.
    pub interface: String,
    /// MAC address at its far end.
    pub to_mac: [u8; 6],
    /// Frames a second, at most.
    pub per_second: u64,
}

/// A running flood; ends on drop.
#[derive(Debug)]
pub struct Flood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    start: Instant,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What a flood was.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Frames made.
    pub frames: u64,
    /// Time taken.
    pub took: Duration,
}

impl Sent {
    /// Million frames a second.
    #[must_use]
    pub fn mpps(&self) -> f64 {
        self.frames as f64 / self.took.as_secs_f64() / 1e6
    }
}

impl Flood {
    /// Starts a flood in a network namespace.
    ///
    /// # Errors
    /// Root is missing, or the kernel refuses the program.
    pub fn start(netns: &Netns, options: FloodOptions) -> Result<Self> {
        let (sent, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counter, asked, netns) = (Arc::clone(&sent), Arc::clone(&stop), netns.clone());
        let (tell, told) = mpsc::channel();
        let thread = thread::Builder::new().name("flood".into()).spawn(move || {
            netns.enter()?;
            let generator = Generator::new(&options)?;
            // Nobody listens any more when `start` has given up.
            let _ = tell.send(());
            generator.run(options.per_second, &counter, &asked)
        })?;
        let mut flood = Self {
            sent,
            stop,
            start: Instant::now(),
            thread: Some(thread),
        };
        if told.recv().is_err() {
            flood.join()?;
            bail!("the flood's thread ended");
        }
        flood.start = Instant::now();
        Ok(flood)
    }

    /// Frames made so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It had ended before, with this.
    pub fn stop(mut self) -> Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        self.join()?;
        Ok(Sent {
            frames: self.sent(),
            took: self.start.elapsed(),
        })
    }

    fn join(&mut self) -> Result<()> {
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .map_err(|_| anyhow!("the flood's thread panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.join();
    }
}

/// The loaded program, in the namespace that it sends from.
struct Generator(Ebpf);

impl Generator {
    fn new(options: &FloodOptions) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .load(object::FLOOD)
            .context("loading the flood's maps")?;
        let map = ebpf
            .map_mut("FLOOD")
            .context("the flood's object has no map FLOOD")?;
        let mut record: Array<&mut MapData, Plain> = Array::try_from(map)?;
        let ifindex = nix::net::if_::if_nametoindex(options.interface.as_str())
            .with_context(|| format!("interface {}", options.interface))?;
        record.set(0, Plain(options.record(ifindex)), 0)?;
        program(&mut ebpf, "flood")?
            .load()
            .context("loading the flood's program")?;
        Ok(Self(ebpf))
    }

    fn run(mut self, per_second: u64, sent: &AtomicU64, stop: &AtomicBool) -> Result<()> {
        let burst = u32::try_from(per_second / BURSTS_PER_SECOND)?.max(BATCH);
        let start = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            self.send(burst)?;
            let frames = sent.fetch_add(u64::from(burst), Ordering::Relaxed) + u64::from(burst);
            let due = Duration::from_secs_f64(frames as f64 / per_second as f64);
            // A rate is a matter of time: this is its clock, not a wait for something.
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
        Ok(())
    }

    fn send(&mut self, frames: u32) -> Result<()> {
        program(&mut self.0, "flood")?
            .test_run(TestRunOptions {
                data_in: Some(&[0; LENGTH]),
                repeat: frames,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })
            .context("BPF_PROG_TEST_RUN with live frames (kernel 5.18)")?;
        Ok(())
    }
}

impl FloodOptions {
    /// What the program is told.
    fn record(&self, ifindex: u32) -> Record {
        let transport = self.transport();
        let mut ip = vec![0x45, 0];
        ip.extend((20 + transport.len() as u16).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, self.protocol(), 0, 0, 0, 0, 0, 0]);
        ip.extend(self.target.ip().octets());
        let mut pseudo = self.target.ip().octets().to_vec();
        pseudo.extend([0, self.protocol()]);
        pseudo.extend((transport.len() as u16).to_be_bytes());
        let mut frame = [
            &self.to_mac[..],
            &[2, 0xf1, 0, 0, 0, 1],
            &[0x08, 0x00],
            &ip,
            &transport,
        ]
        .concat();
        frame.resize(LENGTH, 0);
        let word = |at: usize| {
            let bytes: [u8; 8] = std::array::from_fn(|byte| frame[at * 8 + byte]);
            u64::from_ne_bytes(bytes)
        };
        Record {
            frame: std::array::from_fn(word),
            ip_sum: sum_bytes(&ip),
            transport_sum: sum_bytes(&pseudo) + sum_bytes(&transport),
            kind: if self.kind == Kind::Udp {
                kind::UDP
            } else {
                kind::TCP
            },
            ifindex,
            made: 0,
            seed: rand::random(),
            reserved: [0; 3],
        }
    }

    const fn protocol(&self) -> u8 {
        match self.kind {
            Kind::Syn | Kind::Ack => 6,
            Kind::Udp => 17,
        }
    }

    /// The transport header and its data; source port, sequence number and checksum are zero.
    fn transport(&self) -> Vec<u8> {
        let port = self.target.port().to_be_bytes();
        let mut bytes = vec![0, 0, port[0], port[1]];
        match self.kind {
            Kind::Udp => bytes.extend([0, 18, 0, 0]),
            Kind::Syn | Kind::Ack => {
                let (flags, acknowledged) = if self.kind == Kind::Syn {
                    (SYN, 0)
                } else {
                    (ACK, 0x1234_5678u32)
                };
                bytes.extend([0; 4]);
                bytes.extend(acknowledged.to_be_bytes());
                bytes.extend([BARE_HEADER, flags]);
                bytes.extend(WINDOW.to_be_bytes());
                bytes.extend([0; 4]);
            }
        }
        if self.kind == Kind::Udp {
            bytes.extend(*b"ten bytes!");
        }
        bytes
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the flood's object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// For the map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain(Record);

// SAFETY: integers and arrays of them, without padding.
unsafe impl aya::Pod for Plain {}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program adds to a template makes a frame with right checksums.
    #[test]
    fn templates_sum_up() {
        for kind in [Kind::Syn, Kind::Ack, Kind::Udp] {
            let options = FloodOptions {
                kind,
                target: "203.0.113.10:80".parse().unwrap(),
                interface: "lb".into(),
                to_mac: [2; 6],
                per_second: 1,
            };
            let record = options.record(1);
            let mut frame: Vec<u8> = record
                .frame
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect();
            let source = [100, 64, 1, 2];
            frame[26..30].copy_from_slice(&source);
            let check =
                |sum: u64| (!lb_common::checksum::fold(sum + sum_bytes(&source))).to_ne_bytes();
            frame[24..26].copy_from_slice(&check(record.ip_sum));
            let at = if kind == Kind::Udp { 40 } else { 50 };
            frame[at..at + 2].copy_from_slice(&check(record.transport_sum));
            let view = crate::fuzz::view::View::parse(&frame).unwrap();
            assert_eq!(
                crate::fuzz::sums::network_error(&frame, &view),
                0,
                "{kind:?}"
            );
            assert_eq!(
                crate::fuzz::sums::transport_error(&frame, &view),
                0,
                "{kind:?}"
            );
        }
    }
}
