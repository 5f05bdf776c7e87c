//! Makes a failing case smaller while it still fails.

use anyhow::Result;

use super::{
    case::{Case, Input},
    frame::{Frame, Network, Transport},
    runner::{Failed, Runner, Watch},
};

/// Runs that shrinking may take.
const RUNS_MAX: usize = 3000;

/// The smallest case found that fails, and how it fails. `None`: it fails no more when run alone.
///
/// # Errors
/// The kernel's.
pub fn shrink(runner: &mut Runner, case: &Case) -> Result<Option<(Case, Failed)>> {
    let Some(mut failed) = fails(runner, case)? else {
        return Ok(None);
    };
    let mut best = case.clone();
    best.inputs.truncate(failed.at + 1);
    let mut runs = 0;
    'again: loop {
        for smaller in candidates(&best) {
            runs += 1;
            if runs > RUNS_MAX {
                break 'again;
            }
            if let Some(still) = fails(runner, &smaller)? {
                best = smaller;
                best.inputs.truncate(still.at + 1);
                failed = still;
                continue 'again;
            }
        }
        break;
    }
    Ok(Some((best, failed)))
}

fn fails(runner: &mut Runner, case: &Case) -> Result<Option<Failed>> {
    runner.run(case, Watch::Close, |_, _, _| {})
}

/// Cases that are one step simpler, the largest steps first.
fn candidates(case: &Case) -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |inputs: Vec<Input>| {
        all.push(Case {
            inputs,
            ..case.clone()
        })
    };
    let count = case.inputs.len();
    if count > 2 {
        add(case.inputs[count / 2..].to_vec());
    }
    for at in 0..count {
        let mut inputs = case.inputs.clone();
        inputs.remove(at);
        add(inputs);
    }
    for at in 0..count {
        for simpler in simpler(&case.inputs[at]) {
            let mut inputs = case.inputs.clone();
            inputs[at] = simpler;
            add(inputs);
        }
    }
    all
}

fn simpler(input: &Input) -> Vec<Input> {
    let mut all = Vec::new();
    for at in 0..input.edits.len() {
        let mut copy = input.clone();
        copy.edits.remove(at);
        all.push(copy);
    }
    for simplify in SIMPLIFY {
        let mut frame = input.frame.clone();
        simplify(&mut frame);
        if frame != input.frame {
            all.push(Input {
                frame,
                ..input.clone()
            });
        }
    }
    all
}

/// Ways to make a frame simpler. Each must leave a frame alone that is simple already.
const SIMPLIFY: &[fn(&mut Frame)] = &[
    |frame| frame.data.clear(),
    |frame| frame.data.truncate(frame.data.len() / 2),
    |frame| {
        frame.data.pop();
    },
    |frame| frame.data.fill(0),
    |frame| frame.trailer.clear(),
    |frame| frame.tags.clear(),
    |frame| {
        frame.tags.pop();
    },
    |frame| {
        if let Network::V4(header) = &mut frame.network {
            header.options.clear();
        }
    },
    |frame| {
        if let Network::V4(header) = &mut frame.network {
            header.options.fill(1);
        }
    },
    |frame| {
        if let Network::V4(header) = &mut frame.network {
            (header.tos, header.id, header.ttl) = (0, 1, 64);
        }
    },
    |frame| {
        if let Network::V6(header) = &mut frame.network {
            header.extensions.pop();
        }
    },
    |frame| {
        if let Network::V6(header) = &mut frame.network {
            (header.class_and_label, header.hops) = (0, 64);
        }
    },
    |frame| {
        if let Transport::Tcp(tcp) = &mut frame.transport {
            tcp.options.clear();
        }
    },
    |frame| {
        if let Transport::Tcp(tcp) = &mut frame.transport {
            (tcp.window, tcp.urgent) = (64_240, 0);
        }
    },
    |frame| {
        if let Transport::Tcp(tcp) = &mut frame.transport {
            (tcp.sequence, tcp.acknowledged) = (1000, 0);
        }
    },
];
