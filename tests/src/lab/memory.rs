//! What a process holds in memory, as the kernel counts it.

use std::{fmt, fs};

use anyhow::{Context as _, Result};

/// From `/proc/PID/status`, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All that is resident (`VmRSS`).
    pub resident: u64,
    /// Heap and stacks (`RssAnon`).
    pub anonymous: u64,
    /// Pages of files that are mapped: of the program itself, and of BPF maps (`RssFile`).
    pub file: u64,
    /// Shared memory (`RssShmem`).
    pub shared: u64,
    /// The most that was ever resident (`VmHWM`).
    pub peak: u64,
}

impl Memory {
    /// Of a process.
    ///
    /// # Errors
    /// There is none, or the kernel does not say.
    pub fn of(pid: u32) -> Result<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/status"))?)
    }

    fn parse(text: &str) -> Result<Self> {
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number =
                line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
            let kilobytes = number.and_then(|number| number.parse::<u64>().ok());
            anyhow::Ok(kilobytes.with_context(|| format!("no {name} in its status"))? * 1024)
        };
        Ok(Self {
            resident: bytes("VmRSS")?,
            anonymous: bytes("RssAnon")?,
            file: bytes("RssFile")?,
            shared: bytes("RssShmem")?,
            peak: bytes("VmHWM")?,
        })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mega = |bytes: u64| bytes as f64 / 1e6;
        write!(
            f,
            "{:.1} MB resident (VmRSS): {:.1} RssAnon, {:.1} RssFile, {:.1} RssShmem; at most {:.1} so far (VmHWM)",
            mega(self.resident),
            mega(self.anonymous),
            mega(self.file),
            mega(self.shared),
            mega(self.peak),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let text = "Name:\tx\nVmHWM:\t  100 kB\nVmRSS:\t   60 kB\nRssAnon:\t 30 kB\nRssFile:\t  20 kB\nRssShmem:\t 10 kB\n";
        let memory = Memory::parse(text).unwrap();
        assert_eq!(memory.resident, 60 << 10);
        assert_eq!(
            memory.anonymous + memory.file + memory.shared,
            memory.resident
        );
        assert_eq!(memory.peak, 100 << 10);
        assert!(Memory::parse("VmRSS:\t 1 kB\n").is_err());
    }
}
