//! Frames seen on an interface of the lab, by tcpdump.
//!
//! What an XDP program sends by the interface it runs on, or takes, is not seen there; one hop further it is.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::{Guard, Lab};

/// Time in which tcpdump must start, and end.
const LIMIT: Duration = Duration::from_secs(20);
/// Bytes kept of a frame: more than any link of a lab takes.
const SNAPSHOT: &str = "4096";

/// A running capture; ends on drop.
#[derive(Debug)]
pub struct Capture {
    guard: Guard,
    file: PathBuf,
}

impl Capture {
    /// Begins to capture what fits `filter` (pcap-filter(7), words separated by spaces) and goes `out` of or comes
    /// `in` by an interface of a role's namespace. Returns when nothing is missed any more.
    ///
    /// # Errors
    /// tcpdump is missing, or does not like the filter; with what it said.
    pub fn start(lab: &Lab, role: &str, interface: &str, way: &str, filter: &str) -> Result<Self> {
        // A log of its own: that of an earlier one says as well that it listens.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("capture-{number}-{role}-{interface}");
        let file = lab.directory().join(format!("{name}.pcap"));
        let mut command = lab.command(role, "tcpdump");
        command
            .args(["-i", interface, "-Q", way, "-s", SNAPSHOT])
            // Each frame is handed over and written at once: those in a block that is not full yet are lost at the end.
            .args(["--immediate-mode", "-U"])
            // Not as a user of its own, who may not write here.
            .args(["-Z", "root", "-w"])
            .arg(&file)
            .args(filter.split(' '));
        let mut guard = lab
            .spawn(&name, command)
            .context("hint: apt-get install tcpdump")?;
        let deadline = Instant::now() + LIMIT;
        // It says so when its socket is bound.
        while !guard.log_tail().contains("listening on") {
            if guard.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("tcpdump does not listen{}", guard.log_tail());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { guard, file })
    }

    /// Ends it as soon as the frames are `enough`, or after some time: the frames, in the order in which they came.
    ///
    /// # Errors
    /// It missed some, or wrote no file that can be read.
    pub fn stop_when(mut self, enough: impl Fn(&[Vec<u8>]) -> bool) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + LIMIT;
        let is_enough = || {
            let bytes = fs::read(&self.file).ok()?;
            // The last frame may be half written.
            Some(enough(&frames(&bytes)?))
        };
        while is_enough() != Some(true) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        self.guard.terminate(LIMIT)?;
        let said = self.guard.log_tail();
        ensure!(
            said.contains("\n  | 0 packets dropped by kernel"),
            "tcpdump missed frames{said}"
        );
        let bytes =
            fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))?;
        frames(&bytes).with_context(|| format!("{} is no capture", self.file.display()))
    }
}

/// The frames in a file as tcpdump writes it on this machine (draft-ietf-opsawg-pcap): a header of 24 bytes, then
/// frames with one of 16 each.
fn frames(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(word))
    };
    if word(file, 0)? != MAGIC {
        return None;
    }
    let mut rest = file.get(24..)?;
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let end = 16 + usize::try_from(word(rest, 8)?).ok()?;
        frames.push(rest.get(16..end)?.to_vec());
        rest = &rest[end..];
    }
    Some(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_in_a_file() {
        let mut file = 0xa1b2_c3d4_u32.to_ne_bytes().to_vec();
        file.resize(24, 0);
        assert_eq!(frames(&file), Some(vec![]));
        for frame in [&b"one"[..], b"three"] {
            file.extend([0; 8]);
            file.extend((frame.len() as u32).to_ne_bytes());
            file.extend([0; 4]);
            file.extend(frame);
        }
        assert_eq!(
            frames(&file),
            Some(vec![b"one".to_vec(), b"three".to_vec()])
        );
        assert_eq!(frames(&file[..file.len() - 1]), None);
        assert_eq!(frames(&[0; 24]), None);
    }
}
