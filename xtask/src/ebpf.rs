//! Finds a Rust toolchain that compiles for BPF, and builds the crate `lb-ebpf` with it.
//!
//! Two ways are known, tried in this order:
//!
//! - **distribution**: a stable `rustc` whose sysroot already has `core` for BPF (Debian's `rustc-web` with
//!   `libstd-rust-web-dev-bpf`). The one unstable feature needed is opened for the crates that use it alone.
//! - **nightly**: rustup's nightly with `rust-src`, which compiles `core` itself (`-Z build-std=core`).
//!
//! Both link with `bpf-linker`, which reads LLVM bitcode: its LLVM must not be older than the compiler's.
//!
//! `lb-userspace/build.rs` includes this file by path, so it uses nothing but `std`.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Names the directory of a `rustc` and `cargo` that have `core` for BPF; `/usr/bin` unless set.
pub const ENV_RUST: &str = "EBB_EBPF_RUST";
/// Names the rustup toolchain of the nightly way; `nightly` unless set.
pub const ENV_NIGHTLY: &str = "EBB_EBPF_NIGHTLY";
/// Names the `bpf-linker` to use; searched for in PATH and in cargo's directory unless set.
pub const ENV_LINKER: &str = "EBB_BPF_LINKER";
/// Every variable that changes what [`find`] returns.
pub const ENVS: [&str; 3] = [ENV_RUST, ENV_NIGHTLY, ENV_LINKER];

/// How the compiler comes by `core` for BPF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A stable compiler that ships it.
    Distribution,
    /// A nightly that compiles it.
    Nightly,
}

/// A compiler that can make BPF objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rust {
    /// How it does so.
    pub way: Way,
    /// Words before the arguments that start its `rustc`.
    pub rustc: Vec<OsString>,
    /// Words before the arguments that start its `cargo`.
    pub cargo: Vec<OsString>,
    /// Its versions.
    pub version: Version,
}

/// What `rustc -vV` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Such as `1.96.0`.
    pub release: String,
    /// LLVM's major version.
    pub llvm: u32,
    /// Target triple of the machine.
    pub host: String,
}

/// A compiler with a linker that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler.
    pub rust: Rust,
    /// Path of `bpf-linker`.
    pub linker: PathBuf,
}

/// What each way lacks on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The distribution's way.
    pub distribution: String,
    /// The nightly way.
    pub nightly: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no eBPF toolchain ({}; {})",
            self.distribution, self.nightly
        )
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { release, llvm, .. } = &self.rust.version;
        let way = match self.rust.way {
            Way::Distribution => "the distribution's rustc",
            Way::Nightly => "rustup's nightly rustc with rust-src",
        };
        let linker = self.linker.display();
        write!(f, "{way} {release} (LLVM {llvm}), {linker}")
    }
}

/// Finds a complete toolchain, the distribution's before the nightly.
///
/// # Errors
///
/// What each way lacks.
pub fn find() -> Result<Toolchain, Missing> {
    let distribution = match distribution_rust().and_then(with_linker) {
        Ok(toolchain) => return Ok(toolchain),
        Err(lack) => lack,
    };
    nightly_rust()
        .and_then(with_linker)
        .map_err(|nightly| Missing {
            distribution,
            nightly,
        })
}

fn with_linker(rust: Rust) -> Result<Toolchain, String> {
    let linker = linker(rust.version.llvm)?;
    Ok(Toolchain { rust, linker })
}

/// The compiler of the distribution's way.
///
/// # Errors
///
/// Why there is none, as a phrase.
pub fn distribution_rust() -> Result<Rust, String> {
    let dir = env::var_os(ENV_RUST).map_or_else(|| PathBuf::from("/usr/bin"), PathBuf::from);
    let rustc = dir.join("rustc");
    if !rustc.exists() {
        return Err(format!("{} does not exist", rustc.display()));
    }
    let cargo = dir.join("cargo");
    if !cargo.exists() {
        return Err(format!("{} does not exist", cargo.display()));
    }
    let rust = rust(
        Way::Distribution,
        vec![rustc.clone().into()],
        vec![cargo.into()],
    )?;
    let target = target_of(&rust.version.host);
    let core = sysroot(&rust)?.join("lib/rustlib").join(target).join("lib");
    if core.is_dir() {
        Ok(rust)
    } else {
        Err(format!("{} has no core for {target}", rustc.display()))
    }
}

/// The compiler of the nightly way.
///
/// # Errors
///
/// Why there is none, as a phrase.
pub fn nightly_rust() -> Result<Rust, String> {
    let rustup = program("rustup").ok_or("rustup is not installed")?;
    let toolchain = nightly_name();
    let run = |tool: &str| {
        [
            rustup.as_os_str(),
            "run".as_ref(),
            &toolchain,
            tool.as_ref(),
        ]
        .map(OsString::from)
    };
    let rust = rust(Way::Nightly, run("rustc").into(), run("cargo").into())
        .map_err(|_| format!("rustup has no toolchain {}", toolchain.display()))?;
    if sysroot(&rust)?
        .join("lib/rustlib/src/rust/library/core")
        .is_dir()
    {
        Ok(rust)
    } else {
        let toolchain = toolchain.display();
        Err(format!("rustup's {toolchain} has no rust-src"))
    }
}

/// Name of the rustup toolchain of the nightly way.
pub fn nightly_name() -> OsString {
    env::var_os(ENV_NIGHTLY).unwrap_or_else(|| "nightly".into())
}

fn rust(way: Way, rustc: Vec<OsString>, cargo: Vec<OsString>) -> Result<Rust, String> {
    let text = output(clean(&rustc).arg("-vV"))?;
    let version = parse_version(&text).ok_or("rustc -vV: not understood")?;
    Ok(Rust {
        way,
        rustc,
        cargo,
        version,
    })
}

fn sysroot(rust: &Rust) -> Result<PathBuf, String> {
    let path = output(clean(&rust.rustc).args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(path.trim_end()))
}

/// Reads what `rustc -vV` printed.
pub fn parse_version(text: &str) -> Option<Version> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    Some(Version {
        release: field("release")?.to_owned(),
        llvm: leading_number(field("LLVM version")?)?,
        host: field("host")?.to_owned(),
    })
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end].parse().ok()
}

/// Finds a `bpf-linker` that reads what a compiler with this LLVM (major version) writes.
///
/// # Errors
///
/// Why there is none, as a phrase.
pub fn linker(llvm: u32) -> Result<PathBuf, String> {
    let linker = match env::var_os(ENV_LINKER) {
        Some(path) => PathBuf::from(path),
        None => program("bpf-linker").ok_or("bpf-linker is not installed")?,
    };
    let shown = linker.display();
    let bytes = fs::read(&linker).map_err(|error| format!("{shown}: {error}"))?;
    match linked_llvm(&bytes) {
        Some(own) if own < llvm => Err(format!(
            "{shown} has LLVM {own}, which cannot read what rustc's LLVM {llvm} writes"
        )),
        Some(own) if !shared_llvm_loads(&linker) => {
            Err(format!("{shown} does not start (it wants LLVM {own})"))
        }
        // Linked statically: only linking shows whether it fits.
        Some(_) | None => Ok(linker),
    }
}

/// The shared library may have been removed since the linker was built.
fn shared_llvm_loads(linker: &Path) -> bool {
    output(Command::new(linker).arg("--version")).is_ok()
}

/// Major version of the LLVM library that an executable wants at run time; `None` if it wants none.
///
/// The name is `libLLVM.so.22.1` since LLVM 18 and was `libLLVM-17.so` before.
pub fn linked_llvm(executable: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"libLLVM";
    executable
        .windows(NAME.len())
        .enumerate()
        .filter(|(_, window)| *window == NAME)
        .find_map(|(at, _)| {
            let rest = &executable[at + NAME.len()..];
            let rest = rest
                .strip_prefix(b".so.")
                .or_else(|| rest.strip_prefix(b"-"))?;
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
        })
}

/// Path of a program: in PATH, in cargo's directory, or among the system's (a user's PATH may lack sbin).
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    env::split_paths(&path)
        .chain(
            [cargo_home, home]
                .into_iter()
                .flatten()
                .map(|d| d.join("bin")),
        )
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// BPF target of the byte order that a machine with this triple or architecture has.
pub fn target_of(host: &str) -> &'static str {
    let arch = host.split('-').next().unwrap_or(host);
    let big = matches!(arch, "s390x" | "powerpc64" | "powerpc" | "mips" | "mips64")
        || arch.ends_with("_be")
        || arch.ends_with("eb");
    if big {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    }
}

/// What to build.
#[derive(Debug)]
pub struct Job<'a> {
    /// Directory of the crate `lb-ebpf`.
    pub crate_dir: &'a Path,
    /// Where cargo keeps its intermediate files. Not the outer cargo's: that one is locked.
    pub target_dir: &'a Path,
    /// Architecture whose kernel will run the program, such as `x86_64`.
    pub arch: &'a str,
}

/// Builds every binary of `lb-ebpf` in release mode: `(name, path of the object)`.
///
/// # Errors
///
/// Cargo could not be started or failed; what it had to say went to standard error.
pub fn build(toolchain: &Toolchain, job: &Job<'_>) -> io::Result<Vec<(String, PathBuf)>> {
    let manifest = job.crate_dir.join("Cargo.toml");
    let bins = bins(&fs::read_to_string(&manifest)?);
    let mut command = command(toolchain, job, &bins);
    let output = command
        .arg("--manifest-path")
        .arg(&manifest)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("cargo: {}", output.status)));
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

fn command(toolchain: &Toolchain, job: &Job<'_>, bins: &[String]) -> Command {
    let target = target_of(job.arch);
    let mut command = clean(&toolchain.rust.cargo);
    command
        .args(["build", "--release", "--bins", "--locked"])
        .args(["--message-format=json-render-diagnostics", "--target"])
        .arg(target)
        .arg("--target-dir")
        .arg(job.target_dir)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            flags(toolchain.rust.version.llvm).join("\x1f"),
        )
        .env(linker_variable(target), &toolchain.linker)
        .env("AYA_BPF_TARGET_ARCH", job.arch);
    match toolchain.rust.way {
        Way::Distribution => {
            // Only these crates may use unstable features; all others see a stable compiler.
            let opened: Vec<String> = ["aya_ebpf", "lb_common", "lb_ebpf"]
                .into_iter()
                .map(str::to_owned)
                .chain(bins.iter().map(|bin| bin.replace('-', "_")))
                .collect();
            command
                .env("RUSTC", &toolchain.rust.rustc[0])
                .env("RUSTC_BOOTSTRAP", opened.join(","));
        }
        Way::Nightly => {
            command.args(["-Z", "build-std=core"]);
        }
    }
    command
}

/// Debug information is what BTF is made from. CPU v3 has 32-bit arithmetic and jumps: fewer instructions, and a
/// verifier that sees the bounds of 32-bit values (kernel 5.1, d7b4f1cb0ef5). rustc passes it on to the linker.
const FLAGS: [&str; 3] = ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3"];

/// Headers lie at odd places; the kernel lets programs load their words whole where the machine does. LLVM believes
/// it from version 22 on and takes them byte by byte otherwise, which is right as well but costs some 4 ns a packet.
const FLAG_WHOLE_WORDS: &str = "-Clink-arg=--cpu-features=+allows-misaligned-mem-access";

/// The version of LLVM that knows [`FLAG_WHOLE_WORDS`].
const LLVM_WHOLE_WORDS: u32 = 22;

/// What rustc is told, for this version of LLVM.
fn flags(llvm: u32) -> Vec<&'static str> {
    let whole_words =
        (llvm >= LLVM_WHOLE_WORDS && cfg!(target_arch = "x86_64")).then_some(FLAG_WHOLE_WORDS);
    FLAGS.into_iter().chain(whole_words).collect()
}

fn linker_variable(target: &str) -> String {
    let target = target.replace('-', "_").to_uppercase();
    format!("CARGO_TARGET_{target}_LINKER")
}

/// A command without what an outer cargo, rustup or clippy has put into the environment for its own children.
fn clean(words: &[OsString]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_outer) {
            command.env_remove(name);
        }
    }
    command
}

fn is_outer(name: &str) -> bool {
    // What says where crates come from holds for every cargo.
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const SET_BY_CARGO: [&str; 8] = [
        "OUT_DIR",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
        "MAKEFLAGS",
    ];
    if name == "CARGO" || name.starts_with("CARGO_") {
        return !KEPT.iter().any(|kept| name.starts_with(kept));
    }
    name == "RUSTUP_TOOLCHAIN"
        || (name.starts_with("RUST") && !name.starts_with("RUSTUP_") && name != "RUST_BACKTRACE")
        || name == "CLIPPY_ARGS"
        || SET_BY_CARGO.contains(&name)
}

/// Names of the `[[bin]]` tables of a manifest that is written one `key = "value"` a line.
pub fn bins(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[[bin]]";
        } else if let Some((key, value)) = line.split_once('=')
            && inside
            && key.trim() == "name"
        {
            names.push(value.trim().trim_matches('"').to_owned());
        }
    }
    names
}

/// The executables named in cargo's JSON messages, with the names of their targets.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    messages
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(r#""executable":""#)?;
            let path = PathBuf::from(json_string(rest)?);
            let name = path.file_name().and_then(OsStr::to_str)?.to_owned();
            Some((name, path))
        })
        .collect()
}

/// A JSON string up to its closing quote, with the escapes that occur in paths undone.
fn json_string(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some(value),
            '\\' => value.push(chars.next().filter(|c| matches!(c, '"' | '\\' | '/'))?),
            c => value.push(c),
        }
    }
}

fn output(command: &mut Command) -> Result<String, String> {
    let shown = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{shown}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{shown}: {}", output.status));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{shown}: answer is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
        binary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn version_is_read() {
        let version = parse_version(DEBIAN).unwrap();
        assert_eq!(version.release, "1.96.0");
        assert_eq!(version.llvm, 22);
        assert_eq!(version.host, "x86_64-unknown-linux-gnu");
        let nightly = DEBIAN.replace("1.96.0\n", "1.97.0-nightly\n");
        assert_eq!(parse_version(&nightly).unwrap().release, "1.97.0-nightly");
    }

    #[test]
    fn whole_words_are_only_asked_of_an_llvm_that_knows_them() {
        assert!(!flags(21).contains(&FLAG_WHOLE_WORDS));
        assert_eq!(
            flags(22).contains(&FLAG_WHOLE_WORDS),
            cfg!(target_arch = "x86_64")
        );
    }

    #[test]
    fn version_without_llvm_is_refused() {
        assert_eq!(parse_version("release: 1.96.0\nhost: a-b-c\n"), None);
        assert_eq!(parse_version(&DEBIAN.replace("22.1.8", "none of it")), None);
    }

    #[test]
    fn llvm_of_a_linker_is_read_from_its_libraries() {
        assert_eq!(linked_llvm(b"\0libc.so.6\0libLLVM.so.22.1\0x"), Some(22));
        assert_eq!(linked_llvm(b"\0libLLVM-17.so.1\0"), Some(17));
        assert_eq!(
            linked_llvm(b"loading libLLVM failed\0libLLVM.so.21.1"),
            Some(21)
        );
        assert_eq!(linked_llvm(b"static"), None);
        assert_eq!(linked_llvm(b"libLLVM"), None);
    }

    #[test]
    fn byte_order_follows_the_machine() {
        for little in [
            "x86_64-unknown-linux-gnu",
            "aarch64",
            "riscv64gc-unknown-linux-gnu",
            "powerpc64le",
        ] {
            assert_eq!(target_of(little), "bpfel-unknown-none", "{little}");
        }
        for big in ["s390x-unknown-linux-gnu", "aarch64_be", "powerpc64"] {
            assert_eq!(target_of(big), "bpfeb-unknown-none", "{big}");
        }
    }

    #[test]
    fn bins_are_those_of_bin_tables() {
        let manifest = "[package]\nname = \"lb-ebpf\"\n[[bin]]\nname = \"ebb-xdp\"\npath = \"a\"\n\
            [[bin]]\npath = \"b\"\nname=\"ebb-bench\"\n[lints]\nname = \"no\"\n";
        assert_eq!(bins(manifest), ["ebb-xdp", "ebb-bench"]);
    }

    #[test]
    fn executables_are_found_among_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"x"},"executable":null,"fresh":true}"#,
            "\n",
            r#"{"reason":"compiler-artifact","executable":"/t/a \"b\"/ebb-xdp","fresh":true}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let found = executables(messages);
        assert_eq!(
            found,
            [("ebb-xdp".to_owned(), PathBuf::from("/t/a \"b\"/ebb-xdp"))]
        );
    }

    #[test]
    fn only_the_outer_cargos_variables_go() {
        for gone in [
            "CARGO",
            "CARGO_PKG_NAME",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTFLAGS",
            "RUSTC",
            "RUSTUP_TOOLCHAIN",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_TARGET_DIR",
            "OUT_DIR",
            "CARGO_MAKEFLAGS",
            "CARGO_BUILD_TARGET",
        ] {
            assert!(is_outer(gone), "{gone}");
        }
        for kept in [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "RUSTUP_HOME",
            "CARGO_NET_OFFLINE",
            "HTTPS_PROXY",
        ] {
            assert!(!is_outer(kept), "{kept}");
        }
    }

    #[test]
    fn the_distributions_compiler_is_opened_for_named_crates_only() {
        let toolchain = toolchain(Way::Distribution);
        let command = command(&toolchain, &job(), &["ebb-xdp".into(), "ebb-bench".into()]);
        let value = |name: &str| {
            command
                .get_envs()
                .find_map(|(key, value)| (key == name).then_some(value?.to_str()?))
        };
        assert_eq!(
            value("RUSTC_BOOTSTRAP"),
            Some("aya_ebpf,lb_common,lb_ebpf,ebb_xdp,ebb_bench")
        );
        assert_eq!(
            value("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER"),
            Some("/l/bpf-linker")
        );
        assert!(!command.get_args().any(|arg| arg == "build-std=core"));
    }

    #[test]
    fn the_nightly_compiles_core() {
        let command = command(&toolchain(Way::Nightly), &job(), &[]);
        assert!(command.get_args().any(|arg| arg == "build-std=core"));
        assert!(
            !command
                .get_envs()
                .any(|(key, value)| { key == "RUSTC_BOOTSTRAP" && value.is_some() })
        );
    }

    fn toolchain(way: Way) -> Toolchain {
        let rust = Rust {
            way,
            rustc: vec!["/r/rustc".into()],
            cargo: vec!["/r/cargo".into()],
            version: parse_version(DEBIAN).unwrap(),
        };
        Toolchain {
            rust,
            linker: "/l/bpf-linker".into(),
        }
    }

    fn job() -> Job<'static> {
        Job {
            crate_dir: Path::new("/c"),
            target_dir: Path::new("/t"),
            arch: "x86_64",
        }
    }
}
