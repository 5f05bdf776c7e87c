//! The calls from the command line into the rest of the crate, one function each.

use std::{io::IsTerminal as _, path::Path};

use serde::Serialize;

use crate::{
    api::Refusal,
    config::{self, ConfigError},
    daemon::assemble::{NodeOptions, run_node},
    datapath::{bpf, pass},
    model::spec::Spec,
};

use super::{
    error::{CliError, exit},
    human,
    output::Output,
};

/// `ebb run`: until the daemon is told to stop.
pub fn run_daemon(options: &NodeOptions) -> Result<u8, CliError> {
    start_log();
    match run_node(options) {
        Ok(()) => Ok(exit::DONE),
        Err(error) => Err(not_started(options, &error)),
    }
}

/// Log lines go to standard error; `RUST_LOG` says which.
pub fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Only a second subscriber in one process is refused.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// Why the daemon did not start, with the problems of its configuration where that is the reason.
fn not_started(options: &NodeOptions, error: &anyhow::Error) -> CliError {
    if error.downcast_ref::<Refusal>().is_some()
        && let Err(error) = load_config(&options.config)
    {
        return error;
    }
    let failed = CliError::failed(format!("cannot run the daemon: {error:#}"));
    let hint = if !nix::unistd::geteuid().is_root() {
        Some("it needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON".to_owned())
    } else {
        error
            .downcast_ref::<Refusal>()
            .and_then(|refusal| refusal.hint.clone())
    };
    CliError { hint, ..failed }
}

/// Reads and validates a configuration file.
fn load_config(path: &Path) -> Result<Spec, CliError> {
    config::load(path).map_err(|error| invalid(path, &error))
}

/// Puts the pass program on an interface or takes it off; what was done, one line for people.
fn set_pass(interface: &str, attach: bool) -> Result<String, CliError> {
    let failed = |why: String| {
        CliError::failed(format!("pass program on {interface}: {why}")).hint(
            "the interface must be in this network namespace, its driver have native XDP, no other program be on it",
        )
    };
    let ifindex = nix::net::if_::if_nametoindex(interface)
        .map_err(|error| failed(error.desc().to_lowercase()))?;
    if attach {
        pass::attach_pass_for_good(ifindex).map_err(|error| failed(error.to_string()))?;
        return Ok(format!(
            "pass program on {interface}; `ebb pass {interface} --detach` takes it off"
        ));
    }
    let was_there = pass::detach_pass(ifindex).map_err(|error| failed(error.to_string()))?;
    Ok(if was_there {
        format!("no pass program on {interface} any more")
    } else {
        format!("there was no pass program on {interface}")
    })
}

/// A configuration file with problems: each with its place and hint, then how many. A file that could not even be read
/// is one error like any other.
fn invalid(path: &Path, error: &ConfigError) -> CliError {
    if let [problem] = error.problems.as_slice()
        && problem.line == 0
    {
        return CliError {
            hint: problem.hint.clone(),
            ..CliError::failed(format!("{}: {}", path.display(), problem.message))
        };
    }
    let json = serde_json::to_value(error).unwrap_or_default();
    let count = u64::try_from(error.problems.len()).unwrap_or(u64::MAX);
    let count = human::plural(count, "problem");
    CliError::failed(format!("{} is not valid: {count}", path.display()))
        .details(error.to_string(), json)
}

/// What the kernel's verifier says of the program, or why it refuses it, with its log.
pub fn verified() -> Result<Vec<bpf::Verified>, String> {
    bpf::try_out().map_err(|error| error.to_string())
}

/// `ebb check`.
pub fn check(path: &Path, out: &mut Output) -> Result<u8, CliError> {
    let spec = load_config(path)?;
    out.print(&if out.json() {
        json_line(&spec)?
    } else {
        summary(path, &spec)
    })?;
    Ok(exit::DONE)
}

/// `FILE is valid: 2 services, 3 pools, 7 backends`.
fn summary(path: &Path, spec: &Spec) -> String {
    let services = spec.services.values();
    let pools: Vec<_> = services
        .flat_map(|service| service.pools.values())
        .collect();
    let backends = pools.iter().map(|pool| pool.backends.len()).sum();
    let plural = |count: usize, what| human::plural(count as u64, what);
    format!(
        "{} is valid: {}, {}, {}",
        path.display(),
        plural(spec.services.len(), "service"),
        plural(pools.len(), "pool"),
        plural(backends, "backend")
    )
}

/// `ebb pass`.
pub fn pass(interface: &str, detach: bool, out: &mut Output) -> Result<u8, CliError> {
    let done = set_pass(interface, !detach)?;
    out.print(&if out.json() {
        json_line(&crate::api::Done { done })?
    } else {
        done
    })?;
    Ok(exit::DONE)
}

/// A value as one line of JSON.
pub fn json_line<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_json::to_string(value)
        .map_err(|error| CliError::failed(format!("cannot write the answer as JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use crate::model::spec::{Capacity, NodeSpec, XdpMode};

    use super::*;

    #[test]
    fn problems_of_a_file_are_all_shown() {
        let path = Path::new("f.toml");
        let error = config::parse(path, "interfaces = 1\nodd = 2\n").expect_err("not valid");
        let count = error.problems.len();
        assert!(count > 1);
        let error = invalid(path, &error);
        assert_eq!(
            error.to_string(),
            format!("f.toml is not valid: {count} problems")
        );
        let details = error.details.expect("details");
        assert!(details.text.contains("f.toml:1:"), "{}", details.text);
        assert!(details.text.contains("f.toml:2:"), "{}", details.text);
        assert_eq!(
            details.json["problems"].as_array().map(Vec::len),
            Some(count)
        );
    }

    #[test]
    fn a_valid_file_is_summed_up() {
        let node = NodeSpec {
            interfaces: vec!["eth0".to_owned()],
            xdp_mode: XdpMode::Auto,
            hash_seed_file: PathBuf::from("/seed"),
            capacity: Capacity::default(),
            share: None,
        };
        let spec = Spec {
            nat: Default::default(),
            node,
            services: BTreeMap::new(),
            clients: Default::default(),
            new_flows_per_core: 0,
            fragments_out_of_order: Default::default(),
        };
        assert_eq!(
            summary(Path::new("f.toml"), &spec),
            "f.toml is valid: 0 services, 0 pools, 0 backends"
        );
    }
}
