//! `cargo xtask setup`: finds what building, showing and testing ebb needs, and installs what is missing.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    apt,
    choose::{self, Facts, Plan},
    ebpf::{self, Toolchain, Way},
    nightly,
    shell::{self, failure},
    tools,
};

/// Arguments of `setup`.
#[derive(clap::Args)]
pub struct Args {
    /// Only look; fail if something is missing
    #[arg(long)]
    no_install: bool,
    /// Everything that the tests need as well
    #[arg(long, conflicts_with = "purpose")]
    all: bool,
    /// What to make ready for
    #[arg(long = "for", value_enum, default_value_t = Purpose::Build)]
    purpose: Purpose,
}

/// What the machine is made ready for; each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Purpose {
    /// Building the daemon with its eBPF object
    Build,
    /// The demo, the lab and the benchmarks
    Demo,
    /// Virtual machines with other kernels
    Vm,
    /// The tests
    Test,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let purpose = if args.all {
        Purpose::Test
    } else {
        args.purpose
    };
    ready(purpose, !args.no_install)
}

/// Makes the machine ready.
///
/// # Errors
///
/// Something is missing, and it must not or cannot be installed.
pub fn ready(purpose: Purpose, install: bool) -> Result<()> {
    if env::var_os("EBB_EBPF_OBJECT_DIR").is_some() {
        eprintln!("setup: EBB_EBPF_OBJECT_DIR names eBPF objects built elsewhere");
    } else {
        eprintln!("setup: eBPF toolchain: {}", toolchain(install)?);
    }
    tools::ready(purpose, install)
}

fn toolchain(install: bool) -> Result<Toolchain> {
    let missing = match ebpf::find() {
        Ok(toolchain) => return Ok(toolchain),
        Err(missing) => missing,
    };
    if !install {
        return Err(failure(
            missing.to_string(),
            "run `cargo xtask setup` without --no-install",
        ));
    }
    eprintln!("setup: {missing}");
    complete(plan()?)?;
    ebpf::find().map_err(|missing| {
        failure(
            format!("still incomplete after the installation: {missing}"),
            "the commands above show what was tried",
        )
    })
}

fn plan() -> Result<Plan> {
    let facts = Facts {
        distribution: ebpf::distribution_rust().is_ok(),
        nightly: ebpf::nightly_rust().is_ok(),
        family: packages()?,
        rustup: ebpf::program("rustup").is_some(),
    };
    choose::plan(facts).ok_or_else(|| {
        failure(
            "no way to an eBPF toolchain: this system has no Rust packages with core for BPF, and rustup is not installed",
            "install rustup (https://rustup.rs), then run `cargo xtask setup` again",
        )
    })
}

/// The packages that could be installed; none where the compiler is named by hand or there is no way to be root.
fn packages() -> Result<Option<apt::Family>> {
    let by_hand = env::var_os(ebpf::ENV_RUST).is_some();
    let possible = !by_hand && apt::present() && !matches!(shell::root(), shell::Root::No(_));
    if !possible || ebpf::distribution_rust().is_ok() {
        return Ok(None);
    }
    if let Some(family) = apt::family() {
        return Ok(Some(family));
    }
    // A fresh machine has no package lists.
    apt::update()?;
    Ok(apt::family())
}

fn complete(plan: Plan) -> Result<()> {
    let way = match plan {
        Plan::Linker(way) => way,
        Plan::Packages(family) => {
            eprintln!("setup: taking the distribution's way, with its packages");
            apt::update()?;
            apt::install(&[family.rustc, family.cargo, family.core])?;
            Way::Distribution
        }
        Plan::Rustup => {
            eprintln!("setup: taking the nightly way, with rustup");
            nightly::install()?;
            Way::Nightly
        }
    };
    let rust = match way {
        Way::Distribution => ebpf::distribution_rust(),
        Way::Nightly => ebpf::nightly_rust(),
    };
    let llvm = rust.map_err(anyhow::Error::msg)?.version.llvm;
    match ebpf::linker(llvm) {
        Ok(_) => Ok(()),
        Err(why) => {
            eprintln!("setup: {why}");
            install_linker(llvm)
        }
    }
}

fn install_linker(compiler: u32) -> Result<()> {
    if env::var_os(ebpf::ENV_LINKER).is_some() {
        bail!(failure(
            format!("{} names a linker that does not fit", ebpf::ENV_LINKER),
            "unset it, so that a fitting bpf-linker is built",
        ));
    }
    let (llvm, bin) = llvm(compiler)?;
    let mut command = shell::cargo();
    command
        .args(["install", "bpf-linker", "--version", choose::LINKER])
        .args(["--locked", "--force", "--no-default-features"])
        .arg(format!("--features=llvm-{llvm}"))
        .env("PATH", with_first(&bin)?);
    shell::run(&mut command)
}

/// A fitting LLVM with what is needed to link against it: `(major version, directory of llvm-config)`.
fn llvm(compiler: u32) -> Result<(u32, PathBuf)> {
    if let Some(found) = choose::llvms(compiler).find_map(installed_llvm) {
        return Ok(found);
    }
    let names: Vec<String> = choose::llvms(compiler)
        .map(|llvm| format!("llvm-{llvm}-dev"))
        .collect();
    if apt::present() && !names.is_empty() {
        if apt::first_available(&names).is_none() {
            apt::update()?;
        }
        if let Some(package) = apt::first_available(&names) {
            apt::install(&[package])?;
        }
    }
    choose::llvms(compiler)
        .find_map(installed_llvm)
        .ok_or_else(|| {
            failure(
                format!("bpf-linker: no LLVM {compiler} or newer to build it with"),
                "install LLVM's development files (https://apt.llvm.org has them for Debian and Ubuntu), or a ready-made \
                 bpf-linker from its releases, then run `cargo xtask setup` again",
            )
        })
}

fn installed_llvm(llvm: u32) -> Option<(u32, PathBuf)> {
    let distribution = PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin/llvm-config"));
    let config = [Some(distribution), ebpf::program("llvm-config")]
        .into_iter()
        .flatten()
        .find(|config| fits(config, llvm))?;
    Some((llvm, config.parent()?.to_owned()))
}

/// Whether this `llvm-config` is of that version and can have programs linked against its library.
fn fits(config: &Path, llvm: u32) -> bool {
    let says = |arg: &str| shell::answer(config, &[arg]).unwrap_or_default();
    says("--version").starts_with(&format!("{llvm}."))
        && Path::new(says("--libdir").trim())
            .join("libLLVM.so")
            .exists()
}

fn with_first(dir: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = [dir.to_owned()].into_iter().chain(env::split_paths(&path));
    Ok(env::join_paths(dirs)?)
}
