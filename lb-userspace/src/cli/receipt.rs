//! A drain's receipt: its exit code and how it is shown.

use crate::api::Receipt;

use super::{error::exit, human};

/// Exit code of a wait for this drain.
pub fn exit_code(receipt: &Receipt) -> u8 {
    match receipt.reason.as_str() {
        "empty" | "undrained" => exit::DONE,
        "deadline" if receipt.left > 0 || receipt.reset > 0 => exit::DEADLINE,
        "deadline" => exit::DONE,
        "died" => exit::DIED,
        _ => exit::FAILED,
    }
}

/// For people: a headline and where every flow went.
pub fn render(receipt: &Receipt) -> String {
    let mut text = headline(receipt);
    let rows = [
        ("flows at the start", receipt.flows_at_start),
        ("finished", receipt.finished),
        ("went idle", receipt.idle_expired),
        ("cut at the deadline", receipt.reset),
        ("died with it", receipt.died),
        ("left to go on", receipt.left),
    ];
    let width = rows.iter().map(|(_, count)| count.to_string().len()).max();
    let width = width.unwrap_or(1);
    for (what, count) in rows {
        text.push_str(&format!("\n  {what:<20} {count:>width$}"));
    }
    text.push_str(&format!(
        "\n  it took {}, the oldest flow was {} old",
        human::seconds(receipt.seconds),
        human::seconds(receipt.longest_s)
    ));
    if let (Some(p50), Some(p99)) = (receipt.p50_s, receipt.p99_s) {
        text.push_str(&format!(
            "\n  age at the end: p50 {}, p99 {}, known of {} of {}",
            human::seconds(p50),
            human::seconds(p99),
            receipt.ages_known,
            human::plural(receipt.flows_at_start, "flow")
        ));
    }
    text
}

/// Several receipts, with their sum below.
pub fn render_all(receipts: &[Receipt]) -> String {
    let mut parts: Vec<String> = receipts.iter().map(render).collect();
    if receipts.len() > 1 {
        parts.push(sum(receipts));
    }
    parts.join("\n")
}

/// `3 drains: 120 flows at the start, 118 finished, 0 went idle, 2 cut, 0 died, 0 left to go on`.
fn sum(receipts: &[Receipt]) -> String {
    let of = |part: fn(&Receipt) -> u64| receipts.iter().map(part).sum::<u64>();
    format!(
        "{} drains: {} at the start, {} finished, {} went idle, {} cut, {} died, {} left to go on",
        receipts.len(),
        human::plural(of(|receipt| receipt.flows_at_start), "flow"),
        of(|receipt| receipt.finished),
        of(|receipt| receipt.idle_expired),
        of(|receipt| receipt.reset),
        of(|receipt| receipt.died),
        of(|receipt| receipt.left),
    )
}

fn headline(receipt: &Receipt) -> String {
    let name = &receipt.backend;
    let flows = |count| human::plural(count, "flow");
    match receipt.reason.as_str() {
        "empty" if receipt.flows_at_start == 0 => format!("{name} is drained: it had no flows"),
        "empty" if receipt.idle_expired == 0 => {
            format!("{name} is drained: every flow ended by itself")
        }
        "empty" => format!("{name} is drained: every flow ended by itself or went idle"),
        "undrained" => format!("{name} is no longer drained: it was undrained"),
        "died" => format!("{name} died: {} died with it", flows(receipt.died)),
        "deadline" => {
            let rest = match (receipt.reset, receipt.left) {
                (0, 0) => "no flow was left".to_owned(),
                (reset, 0) => format!("{} cut", flows(reset)),
                (0, left) => format!("{} left to go on", flows(left)),
                (reset, left) => format!("{} cut, {} left to go on", flows(reset), flows(left)),
            };
            format!("{name}: the deadline passed, {rest}")
        }
        other => format!("{name}: the drain ended ({})", human::clean(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(reason: &str, reset: u64, left: u64) -> Receipt {
        Receipt {
            backend: "web/b1".to_owned(),
            reason: reason.to_owned(),
            flows_at_start: 100 + reset + left,
            finished: 96,
            idle_expired: 4,
            reset,
            died: 0,
            left,
            longest_s: 783.0,
            ages_known: 90,
            p50_s: Some(12.0),
            p99_s: Some(600.0),
            seconds: 252.0,
        }
    }

    #[test]
    fn exit_codes() {
        let rows = [
            ("empty", 0, 0, 0),
            ("undrained", 0, 5, 0),
            ("deadline", 0, 0, 0),
            ("deadline", 1, 0, 3),
            ("deadline", 0, 1, 3),
            ("died", 0, 0, 4),
            ("something new", 0, 0, 1),
        ];
        for (reason, reset, left, code) in rows {
            let receipt = receipt(reason, reset, left);
            assert_eq!(exit_code(&receipt), code, "{reason} {reset} {left}");
        }
    }

    #[test]
    fn every_flow_is_accounted_for() {
        let text = render(&receipt("deadline", 2, 0));
        for part in [
            "web/b1: the deadline passed, 2 flows cut",
            "flows at the start   102",
            "finished              96",
            "it took 4m 12s, the oldest flow was 13m 3s old",
            "p50 12s, p99 10m 0s, known of 90 of 102 flows",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn several_have_a_sum() {
        let text = render_all(&[receipt("deadline", 2, 0), receipt("empty", 0, 0)]);
        let last = text.lines().last().unwrap_or_default();
        assert_eq!(
            last,
            "2 drains: 202 flows at the start, 192 finished, 8 went idle, 2 cut, 0 died, 0 left to go on"
        );
        assert!(!render_all(&[receipt("empty", 0, 0)]).contains("drains:"));
    }

    #[test]
    fn headlines() {
        let rows = [
            (receipt("empty", 0, 0), "ended by itself or went idle"),
            (receipt("undrained", 0, 0), "undrained"),
            (receipt("died", 0, 0), "0 flows died with it"),
            (receipt("deadline", 0, 1), "1 flow left to go on"),
            (receipt("deadline", 1, 1), "1 flow cut, 1 flow left"),
        ];
        for (receipt, part) in rows {
            let text = headline(&receipt);
            assert!(text.contains(part), "{text}");
        }
    }
}
