//! The first file system of a virtual machine: process 1, programs of this machine with their shared libraries, modules.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{Kernel, cpio::Cpio};
use crate::lab::find_binary;

/// Where programs are; the guest's PATH.
pub const PROGRAMS: &str = "/bin";
/// Where modules are, in files whose names sort in the order of loading.
pub const MODULES: &str = "/modules";

/// An image being made.
#[derive(Debug)]
pub struct Image {
    cpio: Cpio<BufWriter<File>>,
    path: PathBuf,
}

impl Image {
    /// An image in the file `path` with the guest's process 1, `ip`, and these modules with all that they need.
    ///
    /// # Errors
    /// A program or module is missing, or the file cannot be written.
    pub fn new(path: &Path, kernel: &Kernel, modules: &[&str]) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        let mut image = Self {
            cpio: Cpio::new(BufWriter::new(file)),
            path: path.to_owned(),
        };
        for directory in ["/proc", "/sys", "/dev", "/run", "/tmp", "/root", MODULES] {
            image.cpio.directory(Path::new(directory))?;
        }
        // Before /dev is mounted, the kernel gives process 1 this as its standard output.
        image.cpio.device(Path::new("/dev/console"), 5, 1)?;
        for (n, module) in kernel.modules.with_needs(modules)?.iter().enumerate() {
            let path = format!("{MODULES}/{n:03}-{}.ko", module.name);
            image.cpio.file(Path::new(&path), 0o644, &module.object)?;
        }
        let guest = find_binary("ebb-vm", "EBB_VM_BIN")?;
        image.add(Path::new("/init"), &guest)?;
        image.program("ip")?;
        Ok(image)
    }

    /// Adds a program: by its path, or from PATH. It will be in the guest's PATH by its file name.
    ///
    /// # Errors
    /// There is no such program, or it cannot be read.
    pub fn program(&mut self, program: &str) -> Result<()> {
        let path = look_up(program)?;
        let name = path.file_name().unwrap_or_default();
        let inside = Path::new(PROGRAMS).join(name);
        self.add(&inside, &path)
    }

    /// Ends the image and returns its file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> Result<PathBuf> {
        self.cpio
            .finish()
            .with_context(|| format!("write {}", self.path.display()))?;
        Ok(self.path)
    }

    fn add(&mut self, inside: &Path, program: &Path) -> Result<()> {
        let content = stripped(program)?;
        if self.cpio.file(inside, 0o755, &content)? {
            for library in libraries(program)? {
                let content = read(&library)?;
                self.cpio.file(&library, 0o755, &content)?;
            }
        }
        Ok(())
    }
}

fn look_up(program: &str) -> Result<PathBuf> {
    if program.contains('/') {
        return Ok(program.into());
    }
    // `ip` and others are where only root's PATH leads.
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(usual)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("no program {program} in PATH"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// A program without what only a debugger reads: nine tenths of ours, which the guest would have to keep in memory.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    // Not to a pipe: strip seeks in what it writes.
    let to = tempfile::NamedTempFile::new().context("a temporary file")?;
    let status = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .args([to.path(), program])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => read(to.path()),
        // Large, but it works.
        _ => read(program),
    }
}

/// The shared libraries of a program and its loader, by the paths where the loader looks.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("run ldd (libc-bin)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // It fails for a static program.
    parse_ldd(&text).with_context(|| format!("shared libraries of {}", program.display()))
}

fn parse_ldd(text: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        ensure!(!line.ends_with("not found"), "{line}");
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        if let Some((path, _)) = path.split_once(" (")
            && path.starts_with('/')
        {
            libraries.push(path.into());
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_ldd_found() -> Result<()> {
        let text = "\tlinux-vdso.so.1 (0x00007f9912da7000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f991201e000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f9912da9000)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse_ldd(text)?, expected.map(PathBuf::from));
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
        assert!(parse_ldd("\tstatically linked\n")?.is_empty());
        Ok(())
    }
}
