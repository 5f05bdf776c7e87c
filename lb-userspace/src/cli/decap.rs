//! `ebb decap`.

use serde::Serialize;

use crate::datapath::decap::{self, DecapError, Settings};

use super::{
    adapters::json_line,
    args::DecapArgs,
    error::{CliError, exit},
    output::Output,
};

/// Attaches the program, takes it off, or shows its counters.
pub fn decap(args: &DecapArgs, out: &mut Output) -> Result<u8, CliError> {
    let interface = &args.interface;
    let ifindex = nix::net::if_::if_nametoindex(interface.as_str()).map_err(|error| {
        CliError::failed(format!(
            "decap on {interface}: {}",
            error.desc().to_lowercase()
        ))
        .hint("`ip link` shows the interfaces of this network namespace")
    })?;
    let failed = |error: DecapError| {
        CliError::failed(format!("decap on {interface}: {error}")).hint(hint(&error))
    };
    if args.counts {
        return show_counts(interface, decap::counts(ifindex).map_err(failed)?, out);
    }
    let done = if args.detach {
        if decap::detach(ifindex).map_err(failed)? {
            format!("no decapsulation on {interface} any more")
        } else {
            format!("there was no decapsulation on {interface}")
        }
    } else {
        let settings = Settings {
            port: args.port,
            sources: args.from.clone(),
            mode: args.mode.into(),
        };
        let mode = if decap::attach(ifindex, &settings).map_err(failed)? {
            "native"
        } else {
            "generic"
        };
        format!(
            "decapsulates ipip, and gue on port {}, on {interface} ({mode}); `ebb decap --interface {interface} --detach` ends it",
            args.port
        )
    };
    print(out, &crate::api::Done { done: done.clone() }, &done)
}

fn hint(error: &DecapError) -> &'static str {
    match error {
        DecapError::Load(_) => {
            "it needs root (or CAP_BPF and CAP_NET_ADMIN) and Linux 5.15 or later"
        }
        DecapError::Interface { .. } => {
            "no other XDP program may be on the interface; without native XDP use --mode generic"
        }
        DecapError::Counts(_) => "it needs root",
    }
}

/// The counters in JSON.
#[derive(Serialize)]
struct Counts {
    interface: String,
    packets: std::collections::BTreeMap<&'static str, u64>,
}

fn show_counts(
    interface: &str,
    counts: Option<Vec<(&'static str, u64)>>,
    out: &mut Output,
) -> Result<u8, CliError> {
    let Some(counts) = counts else {
        return Err(
            CliError::failed(format!("decap on {interface}: it does not run there"))
                .hint(format!("start it with `ebb decap --interface {interface}`")),
        );
    };
    let lines: Vec<String> = counts
        .iter()
        .map(|(name, count)| format!("{name:<16}{count:>14}"))
        .collect();
    let json = Counts {
        interface: interface.to_owned(),
        packets: counts.into_iter().collect(),
    };
    print(out, &json, &lines.join("\n"))
}

fn print<T: Serialize>(out: &mut Output, json: &T, words: &str) -> Result<u8, CliError> {
    let text = if out.json() {
        json_line(json)?
    } else {
        words.to_owned()
    };
    out.print(&text)?;
    Ok(exit::DONE)
}
