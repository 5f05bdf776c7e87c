//! Builds the eBPF objects of `lb-ebpf` and lays them into OUT_DIR, with a file of constants that embeds each.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

/// Names a directory of objects built elsewhere, one file a binary of `lb-ebpf`; nothing is built then.
const ENV_OBJECTS: &str = "EBB_EBPF_OBJECT_DIR";

fn main() {
    if let Err(message) = run() {
        // Fails the build. Exiting with a failure on top of it would bury the message under this script's whole output.
        println!("cargo::error={message}");
    }
}

fn run() -> Result<(), String> {
    let manifest_dir = variable("CARGO_MANIFEST_DIR")?;
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let root = Path::new(&manifest_dir).join("..");
    let crate_dir = root.join("lb-ebpf");
    watch(&root);

    let objects = match env::var_os(ENV_OBJECTS) {
        Some(dir) => prebuilt(&crate_dir, Path::new(&dir))?,
        None => built(&crate_dir, &out_dir)?,
    };
    embed(&objects, &out_dir).map_err(|error| format!("storing the eBPF objects: {error}"))
}

fn watch(root: &Path) {
    const INPUTS: [&str; 5] = [
        "lb-ebpf/src",
        "lb-ebpf/Cargo.toml",
        "lb-common/src",
        "lb-common/Cargo.toml",
        "Cargo.lock",
    ];
    for input in INPUTS {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    for name in ebpf::ENVS.into_iter().chain([ENV_OBJECTS]) {
        println!("cargo::rerun-if-env-changed={name}");
    }
}

fn built(crate_dir: &Path, out_dir: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let toolchain = ebpf::find().map_err(|missing| {
        format!("building the eBPF program: {missing}; hint: run `cargo xtask setup`, which finds or installs one")
    })?;
    println!("cargo::rerun-if-changed={}", toolchain.linker.display());
    println!(
        "cargo::rerun-if-changed={}",
        Path::new(&toolchain.rust.rustc[0]).display()
    );
    let job = ebpf::Job {
        crate_dir,
        target_dir: &shared(out_dir),
        arch: &variable("CARGO_CFG_TARGET_ARCH")?,
    };
    ebpf::build(&toolchain, &job)
        .map_err(|error| format!("building the eBPF program with {toolchain}: {error}"))
}

/// Where the objects are compiled: in one place for all profiles, to which they are the same. (`OUT_DIR` is
/// `TARGET/PROFILE/build/PACKAGE/out`, or else it is its own place.)
fn shared(out_dir: &Path) -> PathBuf {
    let target = out_dir.ancestors().nth(4);
    let known = target.filter(|target| target.join("CACHEDIR.TAG").is_file());
    known.unwrap_or(out_dir).join("ebpf")
}

fn prebuilt(crate_dir: &Path, dir: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let manifest = crate_dir.join("Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .map_err(|error| format!("{}: {error}", manifest.display()))?;
    let objects = ebpf::bins(&text).into_iter().map(|name| {
        let path = dir.join(&name);
        if !path.is_file() {
            return Err(format!("{ENV_OBJECTS}: no object {}", path.display()));
        }
        println!("cargo::rerun-if-changed={}", path.display());
        Ok((name, path))
    });
    objects.collect()
}

/// Copies the objects and writes `objects.rs`, which has a constant for each.
fn embed(objects: &[(String, PathBuf)], out_dir: &Path) -> io::Result<()> {
    let mut constants = String::new();
    for (name, path) in objects {
        fs::copy(path, out_dir.join(name))?;
        let constant = name.replace('-', "_").to_uppercase();
        constants += &format!(
            "/// The object `{name}`, aligned as an ELF file.\n\
             pub const {constant}: &[u8] = aya::include_bytes_aligned!(concat!(env!(\"OUT_DIR\"), \"/{name}\"));\n"
        );
    }
    fs::write(out_dir.join("objects.rs"), constants)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
