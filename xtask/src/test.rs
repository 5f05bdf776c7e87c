//! `cargo xtask test`: every test, in stages.

use std::{
    env,
    ffi::OsString,
    fmt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    build,
    setup::{self, Purpose},
    shell::{self, Root},
    vm,
};

/// The kernel of the stage with virtual machines: one is enough to see that older verifiers were not forgotten. Each
/// takes minutes; `cargo xtask vm` has all.
const VM_KERNEL: &str = "6.1";

/// Tests that this stage leaves out: they load programs for themselves again and again, which takes as long as all others
/// together. `packet::verifier_budget_is_kept` has the verifier look at those of traces,
/// `packet_decap::what_goes_in_comes_out` at the one of `ebb decap`. Of `packet_asked` what the kernel has a part in is left.
const VM_SKIPS: [&str; 9] = [
    "packet_trace::",
    "packet_asked::a_",
    "packet_asked::only",
    "packet_asked::several",
    "packet_asked::where",
    "packet_asked::whoever_is",
    "packet_asked::without",
    "packet_decap::what_is_no",
    "packet_decap::congestion",
];

/// The packet tests, as patterns of `cargo test --test`.
const PACKET_TESTS: [&str; 1] = ["packet*"];
/// The other test programs of `ebb-tests`.
const LAB_TESTS: [&str; 4] = ["bench", "fuzz", "lab_*", "scenarios"];

/// Arguments of `test`.
#[derive(clap::Args)]
pub struct Args {
    /// Only this stage (can be given several times)
    #[arg(long = "stage", value_enum)]
    stages: Vec<Stage>,
    /// Fail instead of installing what is missing
    #[arg(long)]
    no_install: bool,
    /// Passed on to the test programs, such as a part of a test's name
    #[arg(last = true)]
    filter: Vec<OsString>,
}

/// A part of the tests, in the order in which they run: what fails fast comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// Formatting
    Fmt,
    /// Lints
    Clippy,
    /// Unit and documentation tests, on the host
    Host,
    /// Ten million events of the simulator, optimised
    Simulate,
    /// The loaded program, packet by packet; needs root
    Packet,
    /// Lab and command-line tests, in network namespaces; need root
    Lab,
    /// The packet tests on an older kernel, in a virtual machine; only when named
    Vm,
    /// The demo, whose exit code says whether a connection broke; needs root
    Demo,
}

impl Stage {
    fn command(self, filter: &[OsString]) -> Command {
        let mut cargo = shell::cargo();
        cargo.current_dir(shell::repository());
        match self {
            Self::Fmt => cargo.args(["fmt", "--all", "--check"]),
            // lb-ebpf only compiles for BPF, and the compiler that does has no clippy.
            Self::Clippy => cargo
                .args(["clippy", "--workspace", "--exclude", "lb-ebpf"])
                .args(["--all-targets", "--", "-D", "warnings"]),
            Self::Host => cargo
                .args(["test", "--no-fail-fast", "-p", "lb-common"])
                .args(["-p", "lb-userspace", "-p", "xtask", "--"])
                .args(filter),
            // The selection of packages is that of `build::daemon_and_lab`: for another one cargo would build most of them anew.
            Self::Simulate => cargo
                .args(["test", "--release", "-p", "lb-userspace", "-p", "ebb-tests"])
                .args(["--test", "simulator", "ten_million"])
                .args(["--", "--ignored", "--nocapture"])
                .args(filter),
            // Each loads programs of its own in a namespace of its own, and the kernel's verifier takes most of the time.
            Self::Packet => live_tests(&mut cargo, &PACKET_TESTS)
                .args(["--", "--test-threads=2"])
                .args(filter),
            Self::Lab => live_tests(&mut cargo, &LAB_TESTS)
                .args(["--lib", "--bins", "--", "--test-threads=2"])
                .args(filter),
            Self::Vm => cargo
                .args(["run", "--quiet", "-p", "xtask", "--", "vm"])
                .args(["--no-install", "--kernel", VM_KERNEL])
                .args(VM_SKIPS.iter().flat_map(|part| ["--skip", part])),
            Self::Demo => cargo
                .args(["run", "--release", "--quiet", "-p", "ebb-tests"])
                .args(["--bin", "ebb-lab", "--", "demo", "--no-tty"]),
        };
        cargo
    }

    /// Whether it runs when no stage is named. A virtual machine without the processor's help takes many minutes.
    fn is_usual(self) -> bool {
        self != Self::Vm
    }

    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// `cargo test` of these test programs of `ebb-tests`.
fn live_tests<'a>(cargo: &'a mut Command, patterns: &[&str]) -> &'a mut Command {
    cargo
        .args(["test", "--no-fail-fast", "--release", "-p", "ebb-tests"])
        .args(patterns.iter().flat_map(|pattern| ["--test", pattern]))
}

/// How a stage ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    /// It could not run; why.
    Skipped(String),
}

/// A stage that is over.
struct Done {
    stage: Stage,
    took: Duration,
    outcome: Outcome,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.stage.name();
        let seconds = self.took.as_secs_f64();
        write!(f, "{name:<8}{seconds:>7.1} s  ")?;
        match &self.outcome {
            Outcome::Passed => f.write_str("passed"),
            Outcome::Failed(why) => write!(f, "FAILED: {why}"),
            Outcome::Skipped(why) => write!(f, "skipped: {why}"),
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    setup::ready(Purpose::Test, !args.no_install)?;
    let stages = if args.stages.is_empty() {
        Stage::value_variants()
            .iter()
            .copied()
            .filter(|stage| stage.is_usual())
            .collect()
    } else {
        args.stages.clone()
    };
    let done: Vec<Done> = stages
        .into_iter()
        .map(|stage| {
            println!("== {}", stage.name());
            let start = Instant::now();
            let outcome = run_stage(stage, &args.filter);
            let took = start.elapsed();
            let done = Done {
                stage,
                took,
                outcome,
            };
            println!("== {done}\n");
            done
        })
        .collect();
    println!("stages:");
    for stage in &done {
        println!("  {stage}");
    }
    judge(&done, is_true(env::var("CI").ok().as_deref()))
}

fn run_stage(stage: Stage, filter: &[OsString]) -> Outcome {
    let mut command = stage.command(filter);
    if let Err(why) = possible(stage) {
        return Outcome::Skipped(why);
    }
    if matches!(stage, Stage::Packet | Stage::Lab | Stage::Demo) {
        // The command-line tests start the daemon that a user would.
        let prepared = build::daemon_and_lab().and_then(|()| shell::run_as_root(&mut command));
        if let Err(error) = prepared {
            return Outcome::Failed(format!("{error:#}"));
        }
    }
    println!("+ {}", shell::show(&command));
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Outcome::Passed,
        Ok(status) => Outcome::Failed(status.to_string()),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// Whether this machine can run the stage; if not, why.
fn possible(stage: Stage) -> Result<(), String> {
    match (stage, shell::root()) {
        (Stage::Packet | Stage::Lab | Stage::Demo, Root::No(why)) => Err(why.to_owned()),
        (Stage::Vm, _) => vm::possible(),
        _ => Ok(()),
    }
}

fn is_true(ci: Option<&str>) -> bool {
    ci.is_some_and(|ci| !matches!(ci, "" | "0" | "false"))
}

/// Whether the whole passed. On a CI machine nothing may be skipped: it would go unseen.
fn judge(done: &[Done], ci: bool) -> Result<()> {
    let bad: Vec<String> = done
        .iter()
        .filter(|done| match done.outcome {
            Outcome::Passed => false,
            Outcome::Failed(_) => true,
            Outcome::Skipped(_) => ci,
        })
        .map(|done| done.stage.name())
        .collect();
    if !bad.is_empty() {
        bail!("tests: not passed: {}", bad.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(stage: Stage, outcome: Outcome) -> Done {
        Done {
            stage,
            took: Duration::from_millis(1234),
            outcome,
        }
    }

    #[test]
    fn a_failure_fails_the_whole() {
        let stages = [
            done(Stage::Fmt, Outcome::Failed("exit status: 1".into())),
            done(Stage::Host, Outcome::Passed),
        ];
        let error = judge(&stages, false).unwrap_err().to_string();
        assert_eq!(error, "tests: not passed: fmt");
    }

    #[test]
    fn a_skip_fails_only_on_ci() {
        let stages = [done(Stage::Lab, Outcome::Skipped("not root".into()))];
        assert!(judge(&stages, false).is_ok());
        assert!(judge(&stages, true).is_err());
        assert!(judge(&[done(Stage::Lab, Outcome::Passed)], true).is_ok());
    }

    #[test]
    fn ci_is_what_ci_machines_set() {
        assert!(is_true(Some("true")) && is_true(Some("1")));
        assert!(!is_true(None) && !is_true(Some("")) && !is_true(Some("false")));
    }

    #[test]
    fn a_line_has_name_time_and_reason() {
        let line = done(Stage::Lab, Outcome::Skipped("not root".into())).to_string();
        assert_eq!(line, "lab         1.2 s  skipped: not root");
    }

    #[test]
    fn filters_reach_the_test_programs() {
        let shown = shell::show(&Stage::Lab.command(&["drain".into()]));
        assert!(
            shown.ends_with("--lib --bins -- --test-threads=2 drain"),
            "{shown}"
        );
    }

    #[test]
    fn every_test_program_belongs_to_one_stage() {
        let directory = shell::repository().join("tests").join("tests");
        for entry in std::fs::read_dir(directory).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let name = name.trim_end_matches(".rs");
            let belongs = |patterns: &[&str]| {
                patterns
                    .iter()
                    .any(|pattern| match pattern.strip_suffix('*') {
                        Some(start) => name.starts_with(start),
                        None => name == *pattern,
                    })
            };
            assert!(belongs(&PACKET_TESTS) != belongs(&LAB_TESTS), "{name}");
        }
    }
}
