//! A kernel's modules: which one needs which, and their contents in an order in which they can be loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

/// The modules of a kernel.
#[derive(Debug, Clone)]
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module that can be loaded.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// The ELF object, not compressed.
    pub object: Vec<u8>,
}

impl Modules {
    /// Finds what is in a kernel's directory (`/lib/modules/RELEASE`).
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(directory: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        find(&directory.join("kernel"), &mut files)?;
        let list = directory.join("modules.builtin");
        let list = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
        let builtin = list.lines().filter_map(|line| name(Path::new(line)));
        Ok(Self {
            files,
            builtin: builtin.collect(),
        })
    }

    /// These modules with all that they need, in an order in which they can be loaded; without what is built in.
    ///
    /// # Errors
    /// The kernel has no such module, or it cannot be read.
    pub fn with_needs(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut modules = Vec::new();
        for name in wanted {
            self.add(name, &mut modules)
                .with_context(|| format!("module {name}"))?;
        }
        Ok(modules)
    }

    fn add(&self, name: &str, modules: &mut Vec<Module>) -> Result<()> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) || modules.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let path = self.files.get(&name);
        let path = path.with_context(|| format!("this kernel has no module {name}"))?;
        let object = decompressed(path)?;
        for need in needs(&object).with_context(|| format!("read {}", path.display()))? {
            self.add(&need, modules)?;
        }
        modules.push(Module { name, object });
        Ok(())
    }
}

fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else if let Some(name) = name(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// The module in a file `net/NAME.ko`, perhaps compressed. The kernel takes a dash for an underscore.
fn name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn decompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|ending| ending.to_str()) {
        Some("ko") => {
            return fs::read(path).with_context(|| format!("read {}", path.display()));
        }
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        other => bail!("{}: compressed how? ({other:?})", path.display()),
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} -dc {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

/// What a module says that it depends on: the field `depends` of its section `.modinfo`, whose entries end with zero.
fn needs(module: &[u8]) -> Result<Vec<String>> {
    let object = object::File::parse(module)?;
    let section = object.section_by_name(".modinfo");
    let info = section.context("no section .modinfo")?.data()?;
    let depends = info
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .unwrap_or_default();
    let depends = std::str::from_utf8(depends)?;
    Ok(depends
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_is_the_modules() {
        let of = |path: &str| name(Path::new(path));
        assert_eq!(
            of("kernel/net/ipv6/ip6_tunnel.ko").as_deref(),
            Some("ip6_tunnel")
        );
        assert_eq!(of("a/virtio-pci.ko.xz").as_deref(), Some("virtio_pci"));
        assert_eq!(of("modules.builtin"), None);
    }

    #[test]
    fn what_is_built_in_is_not_loaded_and_what_is_missing_is_said() {
        let modules = Modules {
            files: BTreeMap::new(),
            builtin: ["virtio_pci".to_owned()].into(),
        };
        assert!(modules.with_needs(&["virtio-pci"]).unwrap().is_empty());
        let error = modules.with_needs(&["veth"]).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "module veth: this kernel has no module veth"
        );
    }
}
