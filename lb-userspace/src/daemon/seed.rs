//! The secret seed of the hashes: the same file on every node gives the same tables and the same slots.

use std::{
    fs::{self, File, OpenOptions},
    hash::Hasher,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::step::{Step, step};

/// Fewest bytes of a seed file.
const BYTES_MIN: usize = 16;

/// Reads the seed, or makes a file with a random one.
pub fn read_or_make(path: &Path) -> io::Result<[u8; 16]> {
    match fs::read(path) {
        Ok(bytes) => digest(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => digest(&make(path)?),
        Err(error) => Err(error),
    }
}

/// Makes the file. It has its name only once it is whole: one that a crash or a full disk has left short would be refused
/// for ever.
fn make(path: &Path) -> io::Result<Vec<u8>> {
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let random: [u8; 32] = rand::random();
    let mut text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    let new = path.with_extension("new");
    step(Step::Seed);
    // Whatever a crash has left there goes, and with it the permissions that it had.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    step(Step::Seed);
    file.write_all(text.as_bytes())?;
    step(Step::Seed);
    file.sync_all()?;
    step(Step::Seed);
    fs::rename(&new, path)?;
    step(Step::Seed);
    File::open(directory)?.sync_all()?;
    // Another daemon may have made it at the same moment: both are to have the one that stands.
    fs::read(path)
}

fn digest(bytes: &[u8]) -> io::Result<[u8; 16]> {
    if bytes.len() < BYTES_MIN {
        let why = format!(
            "it has {} bytes, at least {BYTES_MIN} are needed",
            bytes.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    Ok(hasher.finish128().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn made_once_and_then_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/seed");
        let first = read_or_make(&path).unwrap();
        assert_eq!(read_or_make(&path).unwrap(), first);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let other = read_or_make(&directory.path().join("other")).unwrap();
        assert_ne!(first, other);
    }

    #[test]
    fn what_a_crash_has_left_is_no_seed() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("seed.new"), "half of").unwrap();
        let path = directory.path().join("seed");
        let first = read_or_make(&path).unwrap();
        assert_eq!(read_or_make(&path).unwrap(), first);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_short_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seed");
        fs::write(&path, "short").unwrap();
        assert!(read_or_make(&path).is_err());
    }
}
