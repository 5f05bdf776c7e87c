//! How a drain that is waited for is shown: a bar on a terminal, lines elsewhere. Always on stderr, so that stdout
//! has the receipt alone.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::{api::Drain, model::spec::OnDeadline};

use super::{client::ClientError, drain, human};

/// Time between two pictures of the spinner.
const TICK: Duration = Duration::from_millis(200);

/// Bars that are shown at once; of more drains there is one bar for all of them.
const BARS_MAX: usize = 8;

/// What was last said of a drain: its state, its flows, its terms.
type Said = (String, u64, u64, OnDeadline);

/// Where progress goes.
enum Sink {
    Bars(Vec<ProgressBar>, MultiProgress),
    Lines { last: BTreeMap<u64, Said> },
    Quiet,
}

/// Shows progress.
pub struct Progress {
    sink: Sink,
    away: bool,
}

impl Progress {
    /// Bars when stderr is a terminal, else a line for each change; with `json` only the bars, so that stderr has
    /// nothing but JSON.
    pub fn on_stderr(json: bool) -> Self {
        let sink = if std::io::stderr().is_terminal() {
            Sink::Bars(Vec::new(), MultiProgress::new())
        } else if json {
            Sink::Quiet
        } else {
            Sink::Lines {
                last: BTreeMap::new(),
            }
        };
        Self { sink, away: false }
    }

    /// Shows drains of which some go on.
    pub fn show(&mut self, drains: &[Drain], now_ms: u64) {
        if self.away {
            return;
        }
        match &mut self.sink {
            Sink::Bars(bars, all) => show_bars(bars, all, drains, now_ms),
            Sink::Lines { last } => {
                for drain in drains {
                    let said = (
                        drain.state.clone(),
                        drain::left(drain),
                        drain.deadline_ms,
                        drain.on_deadline,
                    );
                    if last.get(&drain.id) != Some(&said) {
                        last.insert(drain.id, said);
                        say(&line(drain, now_ms));
                    }
                }
            }
            Sink::Quiet => {}
        }
    }

    /// Shows that the daemon is away and is given `left` to come back.
    pub fn away(&mut self, error: &ClientError, left: Duration) {
        let first = !std::mem::replace(&mut self.away, true);
        let text = format!("{error}; trying again for {}", human::duration(left));
        match &mut self.sink {
            Sink::Bars(bars, _) => bars.iter().for_each(|bar| bar.set_message(text.clone())),
            Sink::Lines { .. } if first => say(&text),
            Sink::Lines { .. } | Sink::Quiet => {}
        }
    }

    /// The daemon is back.
    pub fn back(&mut self) {
        self.away = false;
    }

    /// Takes the bars away.
    pub fn close(&mut self) {
        if let Sink::Bars(bars, _) = &self.sink {
            bars.iter().for_each(ProgressBar::finish_and_clear);
        }
    }
}

/// One bar a drain, or one for all of many.
fn show_bars(bars: &mut Vec<ProgressBar>, all: &MultiProgress, drains: &[Drain], now_ms: u64) {
    let rows: Vec<(String, u64, u64, String)> = if drains.len() <= BARS_MAX {
        let row = |drain: &Drain| {
            let left = drain::left(drain);
            let text = if drain.receipt.is_some() {
                drain.state.clone()
            } else {
                bar_text(drain, now_ms)
            };
            (drain.backend.clone(), left, drain.flows.at_start, text)
        };
        drains.iter().map(row).collect()
    } else {
        vec![sum_of(drains)]
    };
    while bars.len() < rows.len() {
        bars.push(all.add(bar()));
    }
    for (bar, (name, left, at_start, text)) in bars.iter().zip(rows) {
        let total = at_start.max(left).max(1);
        bar.set_length(total);
        bar.set_position(total - left);
        bar.set_prefix(name);
        bar.set_message(text);
    }
}

/// Name, flows left, flows at the start and text of the bar for all.
fn sum_of(drains: &[Drain]) -> (String, u64, u64, String) {
    let left: u64 = drains.iter().map(drain::left).sum();
    let at_start = drains.iter().map(|drain| drain.flows.at_start).sum();
    let running = drains.iter().filter(|drain| drain.receipt.is_none());
    let running = running.count();
    let rate: f64 = drains
        .iter()
        .filter_map(|drain| drain.progress?.rate_per_s)
        .sum();
    let text = format!(
        "{} left on {running}, {rate:.1}/s ending",
        human::plural(left, "flow")
    );
    (format!("{} drains", drains.len()), left, at_start, text)
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(1);
    let style = ProgressStyle::with_template("{spinner} {prefix} [{bar:24}] {wide_msg}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// Nobody is left to tell when stderr is closed.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `12 flows left (10 seen, 2 not), 3.2/s ending, deadline in 4m 12s; 90 % gone in 1m 0s, ...`.
fn bar_text(drain: &Drain, now_ms: u64) -> String {
    let mut text = flows(drain);
    if let Some(rate) = drain.progress.and_then(|progress| progress.rate_per_s) {
        text.push_str(&format!(", {rate:.1}/s ending"));
    }
    if drain.state == "resetting" {
        text.push_str(", past its deadline, being cut");
    } else {
        text.push_str(&format!(", {}", human::deadline(drain.deadline_ms, now_ms)));
    }
    with_outlook(text, drain)
}

/// `web/b1 draining: 12 flows left (10 seen, 2 not), deadline in 4m 12s, then the rest is reset; 90 % gone in ...`.
fn line(drain: &Drain, now_ms: u64) -> String {
    let name = &drain.backend;
    if drain.receipt.is_some() {
        return format!("{name} {}", drain.state);
    }
    let time = if drain.state == "resetting" {
        human::deadline(0, now_ms)
    } else {
        format!(
            "{}, then {}",
            human::deadline(drain.deadline_ms, now_ms),
            drain::at_deadline(drain.on_deadline)
        )
    };
    with_outlook(
        format!("{name} {}: {}, {time}", drain.state, flows(drain)),
        drain,
    )
}

fn with_outlook(mut text: String, drain: &Drain) -> String {
    if let Some(outlook) = drain::outlook(drain) {
        text.push_str(&format!("; {outlook}"));
    }
    text
}

fn flows(drain: &Drain) -> String {
    let (listed, unseen) = (drain.flows.listed, drain.flows.unseen);
    let left = human::plural(listed.saturating_add(unseen), "flow");
    if unseen == 0 {
        format!("{left} left")
    } else {
        format!("{left} left ({listed} seen, {unseen} not)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{By, DrainFlows, DrainProgress, Forecast};

    fn drain(state: &str, listed: u64, unseen: u64) -> Drain {
        Drain {
            id: 1,
            by: By::Operator,
            backend: "web/b1".to_owned(),
            state: state.to_owned(),
            since_ms: 0,
            deadline_ms: 252_000,
            on_deadline: OnDeadline::Leave,
            flows: DrainFlows {
                at_start: 20,
                listed,
                unseen,
            },
            ended_ms: None,
            progress: None,
            receipt: None,
        }
    }

    #[test]
    fn lines_say_all_there_is() {
        assert_eq!(
            line(&drain("draining", 10, 2), 0),
            "web/b1 draining: 12 flows left (10 seen, 2 not), deadline in 4m 12s, then the rest \
             goes on"
        );
        assert_eq!(
            line(&drain("resetting", 1, 0), 300_000),
            "web/b1 resetting: 1 flow left, past its deadline"
        );
    }

    #[test]
    fn the_bar_has_rate_and_forecast() {
        let mut drain = drain("draining", 12, 0);
        assert!(!bar_text(&drain, 0).contains("/s"));
        drain.progress = Some(DrainProgress {
            left: 12,
            gone: 8,
            rate_per_s: Some(3.21),
            ages_known: 12,
            forecast: Some(Forecast {
                most_gone_s: Some(60.0),
                outlive: 0,
                seen: 8,
            }),
        });
        assert_eq!(
            bar_text(&drain, 0),
            "12 flows left, 3.2/s ending, deadline in 4m 12s; 90 % gone in 1m 0s, none will \
             outlive the deadline"
        );
    }

    #[test]
    fn many_drains_share_a_bar() {
        let many: Vec<Drain> = (0..9).map(|_| drain("draining", 12, 1)).collect();
        let (name, left, at_start, text) = sum_of(&many);
        assert_eq!((left, at_start), (9 * 13, 9 * 20));
        assert_eq!(name, "9 drains");
        assert!(text.starts_with("117 flows left on 9"), "{text}");
    }
}
