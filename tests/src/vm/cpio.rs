//! Writing cpio archives of the "new ASCII" format, which the kernel unpacks as its first file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Path, PathBuf},
};

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// Ends the archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive being written. All in it belongs to root.
#[derive(Debug)]
pub struct Cpio<W> {
    to: W,
    /// The entries so far: a directory is written once.
    have: BTreeSet<PathBuf>,
}

impl<W: Write> Cpio<W> {
    /// An empty archive.
    pub fn new(to: W) -> Self {
        Self {
            to,
            have: BTreeSet::new(),
        }
    }

    /// Adds a file with these permissions, and the directories above it. Whether it was not there yet.
    ///
    /// # Errors
    /// It cannot be written, or is larger than 4 GiB.
    pub fn file(&mut self, path: &Path, permissions: u32, content: &[u8]) -> io::Result<bool> {
        self.parents(path)?;
        self.add(path, REGULAR | permissions, (0, 0), content)
    }

    /// Adds a directory and those above it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.parents(path)?;
        self.add(path, DIRECTORY | 0o755, (0, 0), &[]).map(drop)
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn device(&mut self, path: &Path, major: u32, minor: u32) -> io::Result<()> {
        self.parents(path)?;
        self.add(path, CHARACTER_DEVICE | 0o600, (major, minor), &[])
            .map(drop)
    }

    /// Ends the archive and returns where it went.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.add(Path::new(TRAILER), 0, (0, 0), &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        for directory in above.into_iter().rev() {
            self.add(directory, DIRECTORY | 0o755, (0, 0), &[])?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        path: &Path,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<bool> {
        // Names are relative to the root.
        let name = path.strip_prefix("/").unwrap_or(path);
        if name.as_os_str().is_empty() || !self.have.insert(name.to_owned()) {
            return Ok(false);
        }
        let name = name.as_os_str().as_encoded_bytes();
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let inode = u32::try_from(self.have.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        // inode, mode, user, group, links, time, size, device (2), device that it stands for (2), name's size, checksum
        let fields = [
            inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        let mut header = b"070701".to_vec();
        for field in fields {
            header.extend(format!("{field:08x}").bytes());
        }
        header.extend(name);
        header.push(0);
        pad(&mut header);
        self.to.write_all(&header)?;
        self.to.write_all(content)?;
        let mut rest = vec![0; content.len() % 4];
        pad(&mut rest);
        self.to.write_all(&rest[content.len() % 4..])?;
        Ok(true)
    }
}

/// To a multiple of four bytes.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_header_name_and_content_each_padded() -> io::Result<()> {
        let mut cpio = Cpio::new(Vec::new());
        assert!(cpio.file(Path::new("/a"), 0o755, b"12345")?);
        let bytes = cpio.finish()?;
        let header = "070701\
                      00000001\
                      000081ed\
                      00000000\
                      00000000\
                      00000001\
                      00000000\
                      00000005\
                      00000000\
                      00000000\
                      00000000\
                      00000000\
                      00000002\
                      00000000";
        assert_eq!(&bytes[..110], header.as_bytes());
        assert_eq!(&bytes[110..120], b"a\x0012345\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len(), 120 + 110 + 11 + 3);
        Ok(())
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_once() -> io::Result<()> {
        let mut cpio = Cpio::new(Vec::new());
        cpio.file(Path::new("/a/b/one"), 0o644, b"1")?;
        cpio.file(Path::new("/a/b/two"), 0o644, b"2")?;
        assert!(!cpio.file(Path::new("/a/b/two"), 0o644, b"2")?);
        let bytes = cpio.finish()?;
        let names: Vec<String> = bytes
            .chunks(4)
            .enumerate()
            .filter(|(_, chunk)| *chunk == b"0707")
            .map(|(n, _)| {
                let name = &bytes[n * 4 + 110..];
                let end = name.iter().position(|byte| *byte == 0);
                String::from_utf8_lossy(&name[..end.unwrap_or(0)]).into_owned()
            })
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two", TRAILER]);
        Ok(())
    }
}
