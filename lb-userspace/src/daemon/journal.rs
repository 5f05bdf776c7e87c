//! The journal: every change of the state, on disk before the maps know of it.
//!
//! A file of lines: a header naming the format, then records, each `CRC32 JSON`. A record holds the operations of one
//! command, so a command is there whole or not at all. A record cut off by a power failure is the last one; it was never
//! acknowledged and is dropped with a warning. Damage anywhere else is refused: guessing what was wanted breaks
//! connections. When the file has grown it is replaced by one that begins with a snapshot.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{
    model::state::{Op, State},
    step::{Step, step},
};

/// First line of a journal.
const HEADER: &str = "ebb journal 1\n";

/// Beginning of the header of any version.
const HEADER_KIND: &str = "ebb journal ";

/// Records after which a snapshot is worth its while, in bytes.
const SNAPSHOT_BYTES: u64 = 1 << 20;

/// Why a journal can not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon has the directory.
    #[error("{0} is in use by another daemon")]
    Locked(PathBuf),
    /// The file is of another version.
    #[error("{path} has the format {found:?}, this ebb has {:?}", HEADER.trim_end())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its first line.
        found: String,
    },
    /// A record that is not the last one is damaged.
    #[error("{path}: record in line {line} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Snapshot(Box<State>),
    Ops(Vec<Op>),
}

/// Where operations are written down before they take effect.
pub trait Log: Send {
    /// Writes them down; when it returns they outlast a power failure.
    fn append(&mut self, ops: &[Op]) -> io::Result<()>;

    /// Offers the state that all operations so far lead to, for a snapshot.
    fn offer(&mut self, state: &State) -> io::Result<()>;
}

/// A log that forgets, for tests and the simulator.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLog;

impl Log for NoLog {
    fn append(&mut self, _ops: &[Op]) -> io::Result<()> {
        Ok(())
    }

    fn offer(&mut self, _state: &State) -> io::Result<()> {
        Ok(())
    }
}

/// A journal in a directory that belongs to this process alone.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    path: PathBuf,
    file: File,
    bytes: u64,
    snapshot_bytes: u64,
    /// Set when the file's end could not be restored after a failed write.
    broken: bool,
    _lock: Flock<File>,
}

/// An opened journal and what it says.
#[derive(Debug)]
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// The state that it leads to.
    pub state: State,
    /// Whether it was there before.
    pub existed: bool,
    /// What is odd about it, for people.
    pub warnings: Vec<String>,
}

impl Journal {
    /// Opens the journal in `directory`, which is made where it is missing.
    pub fn open(directory: &Path) -> Result<Opened, Error> {
        fs::create_dir_all(directory).map_err(|source| io_error(directory, source))?;
        let lock = lock(directory)?;
        let path = directory.join("journal");
        let existed = path.exists();
        if !existed {
            replace(directory, &path, &State::default())
                .map_err(|source| io_error(&path, source))?;
        }
        let mut file = open(&path).map_err(|source| io_error(&path, source))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|source| io_error(&path, source))?;
        let (state, good, warnings) = replay(&path, &bytes)?;
        if good < bytes.len() as u64 {
            truncate(&mut file, good).map_err(|source| io_error(&path, source))?;
        }
        let journal = Self {
            directory: directory.to_owned(),
            path,
            file,
            bytes: good,
            snapshot_bytes: good.min(SNAPSHOT_BYTES),
            broken: false,
            _lock: lock,
        };
        Ok(Opened {
            journal,
            state,
            existed,
            warnings,
        })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        step(Step::JournalWrite);
        self.file.write_all(line)?;
        step(Step::JournalSync);
        self.file.sync_data()
    }
}

impl Log for Journal {
    fn append(&mut self, ops: &[Op]) -> io::Result<()> {
        if self.broken {
            self.broken = truncate(&mut self.file, self.bytes).is_err();
        }
        if self.broken {
            let why = "an earlier write failed half-way and could not be undone";
            return Err(named(&self.path, &io::Error::other(why)));
        }
        let line = encode(&Record::Ops(ops.to_vec()))?;
        match self.write(&line) {
            Ok(()) => {
                self.bytes += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a record in the middle would make the whole file unreadable.
                self.broken = truncate(&mut self.file, self.bytes).is_err();
                Err(named(&self.path, &error))
            }
        }
    }

    fn offer(&mut self, state: &State) -> io::Result<()> {
        if self.bytes < self.snapshot_bytes.saturating_mul(2).max(SNAPSHOT_BYTES) {
            return Ok(());
        }
        self.bytes = replace(&self.directory, &self.path, state)?;
        self.snapshot_bytes = self.bytes;
        self.file = open(&self.path)?;
        self.file.seek(SeekFrom::End(0))?;
        self.broken = false;
        Ok(())
    }
}

/// The same error with the file that it met.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}

fn lock(directory: &Path) -> Result<Flock<File>, Error> {
    let path = directory.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| io_error(&path, source))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => Error::Locked(directory.to_owned()),
        other => io_error(&path, other.into()),
    })
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn truncate(file: &mut File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)?;
    file.seek(SeekFrom::Start(bytes))?;
    file.sync_data()
}

/// Replaces the file by one that holds only `state`; returns its size.
fn replace(directory: &Path, path: &Path, state: &State) -> io::Result<u64> {
    let new = path.with_extension("new");
    let mut contents = HEADER.as_bytes().to_vec();
    contents.extend(encode(&Record::Snapshot(Box::new(state.clone())))?);
    step(Step::Snapshot);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    step(Step::Snapshot);
    file.write_all(&contents)?;
    step(Step::Snapshot);
    file.sync_all()?;
    step(Step::Snapshot);
    fs::rename(&new, path)?;
    step(Step::Snapshot);
    File::open(directory)?.sync_all()?;
    Ok(contents.len() as u64)
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(record).map_err(io::Error::other)?;
    Ok(format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).into_bytes())
}

fn decode(line: &[u8]) -> Result<Record, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not text".to_owned())?;
    let (sum, json) = text.split_once(' ').ok_or("it has no checksum")?;
    let sum = u32::from_str_radix(sum, 16).map_err(|_| "it has no checksum".to_owned())?;
    if sum != crc32fast::hash(json.as_bytes()) {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// The state that a journal leads to, how many of its bytes are good, and warnings.
fn replay(path: &Path, bytes: &[u8]) -> Result<(State, u64, Vec<String>), Error> {
    let damaged = |line: usize, why: String| Error::Damaged {
        path: path.to_owned(),
        line,
        why,
    };
    let Some(records) = bytes.strip_prefix(HEADER.as_bytes()) else {
        let first: Vec<u8> = bytes
            .iter()
            .copied()
            .take_while(|byte| *byte != b'\n')
            .take(80)
            .collect();
        let found = String::from_utf8_lossy(&first).into_owned();
        if found.starts_with(HEADER_KIND) {
            return Err(Error::Version {
                path: path.to_owned(),
                found,
            });
        }
        return Err(damaged(1, "it is not a journal of ebb".to_owned()));
    };
    let mut state = State::default();
    let mut good = HEADER.len() as u64;
    let mut warnings = Vec::new();
    let lines: Vec<&[u8]> = records.split_inclusive(|byte| *byte == b'\n').collect();
    for (number, line) in lines.iter().enumerate() {
        let whole = line.strip_suffix(b"\n");
        let record = whole
            .ok_or_else(|| "it is cut off".to_owned())
            .and_then(decode);
        match record {
            Ok(Record::Snapshot(snapshot)) => state = *snapshot,
            Ok(Record::Ops(ops)) => ops.iter().for_each(|op| state.apply(op)),
            Err(why) if number + 1 == lines.len() && whole.is_none() => {
                warnings.push(format!(
                    "{}: the last record is dropped: {why}",
                    path.display()
                ));
                return Ok((state, good, warnings));
            }
            Err(why) => return Err(damaged(number + 2, why)),
        }
        good += line.len() as u64;
    }
    Ok((state, good, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forgotten(id: u32) -> Op {
        Op::ServiceForgotten { id }
    }

    fn state(ids: &[u32]) -> State {
        State {
            retired: ids.iter().copied().collect(),
            ..State::default()
        }
    }

    /// A journal whose snapshot has the ids 1, 2, 3 retired and whose records then forget 1 and 2.
    fn sample(directory: &Path) -> PathBuf {
        let path = directory.join("journal");
        replace(directory, &path, &state(&[1, 2, 3])).unwrap();
        let mut journal = Journal::open(directory).unwrap().journal;
        journal.append(&[forgotten(1)]).unwrap();
        journal.append(&[forgotten(2)]).unwrap();
        path
    }

    #[test]
    fn what_was_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        sample(directory.path());
        let opened = Journal::open(directory.path()).unwrap();
        assert_eq!(opened.state, state(&[3]));
        assert!(opened.existed && opened.warnings.is_empty());
    }

    #[test]
    fn two_daemons_do_not_share_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let first = Journal::open(directory.path()).unwrap();
        assert!(matches!(
            Journal::open(directory.path()),
            Err(Error::Locked(_))
        ));
        drop(first);
        assert!(Journal::open(directory.path()).is_ok());
    }

    #[test]
    fn a_record_cut_off_anywhere_is_dropped_and_the_journal_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = sample(directory.path());
        let whole = fs::read(&path).unwrap();
        let last = whole[..whole.len() - 1]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .unwrap()
            + 1;
        for cut in last + 1..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut opened = Journal::open(directory.path()).unwrap();
            assert_eq!(opened.state, state(&[2, 3]), "cut at {cut}");
            assert_eq!(opened.warnings.len(), 1);
            opened.journal.append(&[forgotten(3)]).unwrap();
            drop(opened);
            assert_eq!(Journal::open(directory.path()).unwrap().state, state(&[2]));
        }
    }

    #[test]
    fn damage_in_the_middle_is_refused_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = sample(directory.path());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("\"id\":1", "\"id\":7", 1)).unwrap();
        let error = Journal::open(directory.path()).unwrap_err();
        assert!(matches!(&error, Error::Damaged { line: 3, .. }), "{error}");
    }

    #[test]
    fn another_format_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("journal"), "ebb journal 9\n").unwrap();
        let error = Journal::open(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("ebb journal 9") && error.contains("ebb journal 1"),
            "{error}"
        );
    }

    #[test]
    fn a_grown_journal_becomes_a_snapshot() {
        let directory = tempfile::tempdir().unwrap();
        let path = sample(directory.path());
        let mut opened = Journal::open(directory.path()).unwrap();
        opened.journal.bytes = SNAPSHOT_BYTES;
        opened.journal.offer(&state(&[5])).unwrap();
        opened.journal.append(&[forgotten(6)]).unwrap();
        drop(opened);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
        assert_eq!(Journal::open(directory.path()).unwrap().state, state(&[5]));
    }
}
