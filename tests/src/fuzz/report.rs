//! What a run reached and found.

use std::{collections::BTreeMap, fmt, time::Duration};

use comfy_table::{Table, presets};
use lb_common::outcome::Outcome;
use serde::Serialize;

use super::{case::Input, edits::Mutation, runner::Failed, shapes::Shape};

/// How often what became of what.
#[derive(Debug, Clone)]
pub struct Reached {
    /// By shape, whether mutated, and outcome.
    outcomes: Vec<u64>,
    /// By mutation.
    mutations: Vec<u64>,
    /// Inputs that did what they did through at least one mutation.
    inputs: u64,
}

impl Default for Reached {
    fn default() -> Self {
        Self {
            outcomes: vec![0; Shape::ALL.len() * 2 * Outcome::COUNT],
            mutations: vec![0; Mutation::ALL.len()],
            inputs: 0,
        }
    }
}

impl Reached {
    fn index(shape: Shape, mutated: bool, outcome: Outcome) -> usize {
        (shape as usize * 2 + usize::from(mutated)) * Outcome::COUNT + outcome as usize
    }

    /// Notes an input.
    pub fn note(&mut self, input: &Input, outcome: Outcome) {
        self.inputs += 1;
        self.outcomes[Self::index(input.shape, !input.edits.is_empty(), outcome)] += 1;
        for mutation in &input.mutations {
            self.mutations[*mutation as usize] += 1;
        }
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.inputs += other.inputs;
        for (sum, part) in [
            (&mut self.outcomes, &other.outcomes),
            (&mut self.mutations, &other.mutations),
        ] {
            sum.iter_mut()
                .zip(part)
                .for_each(|(sum, part)| *sum += part);
        }
    }

    /// How many inputs there were.
    pub fn inputs(&self) -> u64 {
        self.inputs
    }

    /// How often inputs of this shape, sound or mutated, became this.
    pub fn count(&self, shape: Shape, mutated: bool, outcome: Outcome) -> u64 {
        self.outcomes[Self::index(shape, mutated, outcome)]
    }

    fn total(&self, outcome: Outcome) -> u64 {
        Shape::ALL
            .iter()
            .flat_map(|&shape| [false, true].map(|mutated| self.count(shape, mutated, outcome)))
            .sum()
    }

    /// What must be reached and was not. Empty after a run of 100,000 inputs or more over a sound fuzzer.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for &outcome in Outcome::ALL {
            if !UNREACHABLE.contains(&outcome) && self.total(outcome) == 0 {
                missing.push(format!("no input became {}", outcome.name()));
            }
        }
        for (shape, outcomes) in EXPECTED {
            for outcome in *outcomes {
                if self.count(*shape, false, *outcome) == 0 {
                    missing.push(format!(
                        "no sound {} became {}",
                        shape.name(),
                        outcome.name()
                    ));
                }
            }
        }
        for &shape in Shape::ALL {
            let mutated: u64 = Outcome::ALL
                .iter()
                .map(|&o| self.count(shape, true, o))
                .sum();
            if mutated == 0 {
                missing.push(format!("no {} was mutated", shape.name()));
            }
        }
        for (mutation, count) in Mutation::ALL.iter().zip(&self.mutations) {
            if *count == 0 {
                missing.push(format!("the mutation {} was never made", mutation.name()));
            }
        }
        missing
    }

    /// Shape (`+` when mutated), outcome, count; what is not zero.
    fn rows(&self) -> BTreeMap<String, BTreeMap<&'static str, u64>> {
        let mut rows = BTreeMap::new();
        for &shape in Shape::ALL {
            for mutated in [false, true] {
                let name = format!("{}{}", shape.name(), if mutated { " +" } else { "" });
                let row: BTreeMap<_, _> = Outcome::ALL
                    .iter()
                    .map(|&outcome| (outcome.name(), self.count(shape, mutated, outcome)))
                    .filter(|(_, count)| *count > 0)
                    .collect();
                rows.insert(name, row);
            }
        }
        rows
    }
}

/// Only a node in disorder counts these, or one that is told so.
const UNREACHABLE: &[Outcome] = &[
    Outcome::PassInternal,
    Outcome::DropFragmentEarly,
    Outcome::DropNoHeadroom,
    Outcome::DropNoIdentification,
];

/// What sound frames of a shape must become, among other things. What is missing here is missing in the data plane,
/// or the fuzzer does not look there any more.
const EXPECTED: &[(Shape, &[Outcome])] = &[
    (
        Shape::Open,
        &[
            Outcome::ForwardOpening,
            Outcome::ForwardRetransmit,
            Outcome::ForwardOpeningUnrecorded,
            Outcome::DropOpeningUnrecorded,
            Outcome::DropNoBackend,
            Outcome::DropNoNextHop,
            Outcome::DropTtl,
            Outcome::DropClient,
            Outcome::DropFlowLimit,
            Outcome::DropNoPort,
            Outcome::ForwardDisplacing,
            Outcome::AnswerTooBig,
        ],
    ),
    (
        Shape::Complete,
        &[
            Outcome::ForwardHandshake,
            Outcome::ForwardFlow,
            Outcome::ForwardSteady,
        ],
    ),
    (
        Shape::Established,
        &[
            Outcome::ForwardSteady,
            Outcome::ForwardFlow,
            Outcome::ForwardAdopted,
            Outcome::ForwardBase,
            Outcome::ForwardUnlisted,
            Outcome::ForwardAsking,
            Outcome::ForwardAskingUnlisted,
            Outcome::ForwardOrphan,
            Outcome::ForwardSecondChance,
            Outcome::ResetDeadline,
            Outcome::ResetDead,
            Outcome::DropDeadline,
        ],
    ),
    (Shape::Close, &[Outcome::ForwardSteady]),
    (
        Shape::Options,
        &[
            Outcome::ForwardSteady,
            Outcome::ForwardOpening,
            Outcome::ForwardOptionless,
        ],
    ),
    (
        Shape::Reply,
        &[
            Outcome::ForwardReply,
            Outcome::ForwardReplyKernel,
            Outcome::PassReplyLocal,
            Outcome::DropTtl,
        ],
    ),
    (Shape::Stranger, &[Outcome::PassNoService]),
    (
        Shape::Udp,
        &[
            Outcome::PassNoService,
            Outcome::ForwardOpening,
            Outcome::ForwardOpeningUnrecorded,
            Outcome::ForwardFlow,
            Outcome::DropNoBackend,
        ],
    ),
    (
        Shape::Quic,
        &[
            Outcome::PassNoService,
            Outcome::ForwardOpening,
            Outcome::ForwardFlow,
            Outcome::ForwardServerId,
            Outcome::ForwardServerUnknown,
            Outcome::DropNoBackend,
            Outcome::DropNoNextHop,
            Outcome::DropDeadline,
        ],
    ),
    (
        Shape::Echo,
        &[Outcome::AnswerEcho, Outcome::PassIcmp, Outcome::DropClient],
    ),
    (
        Shape::Error,
        &[
            Outcome::ForwardIcmp,
            Outcome::ForwardIcmpReply,
            Outcome::PassIcmp,
            Outcome::DropNoNextHop,
            Outcome::DropTtl,
        ],
    ),
    (
        Shape::Fragment,
        &[
            Outcome::ForwardFragment,
            Outcome::ForwardSteady,
            Outcome::ForwardReply,
            Outcome::PassFragmentEarly,
            Outcome::PassFragmentTiny,
            Outcome::PassFragment,
        ],
    ),
    (
        Shape::Tagged,
        &[
            Outcome::ForwardOpening,
            Outcome::ForwardSteady,
            Outcome::DropNoReset,
            Outcome::PassNotIp,
        ],
    ),
    (
        Shape::Extensions,
        &[
            Outcome::ForwardOpening,
            Outcome::ForwardSteady,
            Outcome::PassProtocol,
        ],
    ),
    (Shape::Protocol, &[Outcome::PassProtocol]),
    (Shape::NotIp, &[Outcome::PassNotIp]),
    (
        Shape::Noise,
        &[
            Outcome::PassMalformed,
            Outcome::PassTruncated,
            Outcome::PassNotIp,
        ],
    ),
];

/// A run's result.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The run's seed.
    pub seed: u64,
    /// Inputs sent.
    pub inputs: u64,
    /// Threads, each with a loaded program of its own.
    pub threads: usize,
    /// Time taken.
    pub seconds: f64,
    /// Inputs a second.
    pub per_second: f64,
    /// What became of sound frames, and of mutated ones (`+`).
    pub reached: BTreeMap<String, BTreeMap<&'static str, u64>>,
    /// What should have been reached and was not.
    pub missing: Vec<String>,
    /// The first broken rule.
    pub failure: Option<Failure>,
}

/// A broken rule and how to see it again.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// The case's number.
    pub case: u64,
    /// The rule.
    pub broken: String,
    /// Command that runs the case again.
    pub replay: String,
    /// Its inputs after shrinking; the last one breaks the rule.
    pub inputs: Vec<String>,
    /// Bytes of the last one.
    pub input: String,
    /// What came out.
    pub output: String,
    /// What the program returned.
    pub verdict: String,
}

impl Failure {
    /// From a failed run of these inputs.
    pub fn new(seed: u64, case: u64, inputs: &[Input], failed: &Failed) -> Self {
        Self {
            case,
            broken: failed.broken.to_string(),
            replay: format!("cargo xtask fuzz --seed {seed} --case {case}"),
            inputs: inputs
                .iter()
                .map(|input| format!("{input} {:?} {:?}", input.frame, input.edits))
                .collect(),
            input: hex(&failed.seen.input),
            output: hex(&failed.seen.output),
            verdict: format!(
                "{:?}, counted as {:?}",
                failed.seen.verdict, failed.seen.moved
            ),
        }
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Report {
    /// Whether no rule was broken, and all was reached that should be.
    pub fn is_good(&self) -> bool {
        self.failure.is_none() && self.missing.is_empty()
    }

    /// From what was reached.
    pub fn new(
        seed: u64,
        threads: usize,
        took: Duration,
        reached: &Reached,
        failure: Option<Failure>,
    ) -> Self {
        let seconds = took.as_secs_f64();
        // Too few inputs to say anything of what is never reached.
        let says = reached.inputs() >= 100_000 && failure.is_none();
        Self {
            seed,
            inputs: reached.inputs(),
            threads,
            seconds: (seconds * 10.0).round() / 10.0,
            per_second: (reached.inputs() as f64 / seconds).round(),
            reached: reached.rows(),
            missing: if says { reached.missing() } else { Vec::new() },
            failure,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table
            .load_preset(presets::ASCII_MARKDOWN)
            .set_header(["input (+: mutated)", "became"]);
        for (shape, row) in &self.reached {
            let became: Vec<_> = row
                .iter()
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            table.add_row([shape.clone(), became.join(", ")]);
        }
        writeln!(f, "{table}")?;
        for missing in &self.missing {
            writeln!(f, "not reached: {missing}")?;
        }
        if let Some(failure) = &self.failure {
            writeln!(f, "case {}: {}", failure.case, failure.broken)?;
            for input in &failure.inputs {
                writeln!(f, "  sent  {input}")?;
            }
            writeln!(
                f,
                "  in    {}\n  out   {}\n  {}",
                failure.input, failure.output, failure.verdict
            )?;
            writeln!(f, "  again {}", failure.replay)?;
        }
        let result = match (&self.failure, self.missing.is_empty()) {
            (Some(_), _) => "a rule was broken",
            (None, false) => "no rule was broken, but not all was reached",
            (None, true) => "no rule was broken",
        };
        write!(
            f,
            "{} inputs in {} s ({} a second, {} threads), seed {}: {result}",
            self.inputs, self.seconds, self.per_second, self.threads, self.seed
        )
    }
}
