//! How a drain that is waited for is shown: a bar on a terminal, lines elsewhere. Always on stderr, so that stdout
//! has the receipt alone.

use std::{
    collections::VecDeque,
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::api::Drain;

use super::{client::ClientError, drain, human};

/// Time over which the rate of leaving flows is taken.
const WINDOW: Duration = Duration::from_secs(10);

/// Time between two pictures of the spinner.
const TICK: Duration = Duration::from_millis(200);

/// Flows a second that end, over the last [`WINDOW`].
#[derive(Debug, Default)]
struct Leaving {
    samples: VecDeque<(Instant, u64)>,
}

impl Leaving {
    /// Takes note of the flows left at `now`; the rate once there are two notes.
    fn note(&mut self, left: u64, now: Instant) -> Option<f64> {
        self.samples.push_back((now, left));
        let old = |(then, _): &(Instant, u64)| now.duration_since(*then) > WINDOW;
        while self.samples.len() > 2 && self.samples.front().is_some_and(old) {
            self.samples.pop_front();
        }
        let (then, before) = *self.samples.front()?;
        let over = now.duration_since(then);
        (!over.is_zero()).then(|| human::per_second(before.saturating_sub(left), over))
    }
}

/// Where progress goes.
enum Sink {
    Bar(ProgressBar),
    Lines { last: Option<(String, u64)> },
    Quiet,
}

/// Shows progress.
pub struct Progress {
    sink: Sink,
    leaving: Leaving,
    away: bool,
}

impl Progress {
    /// A bar when stderr is a terminal, else a line for each change; with `json` only the bar, so that stderr has
    /// nothing but JSON.
    pub fn on_stderr(json: bool) -> Self {
        let sink = if std::io::stderr().is_terminal() {
            Sink::Bar(bar())
        } else if json {
            Sink::Quiet
        } else {
            Sink::Lines { last: None }
        };
        Self {
            sink,
            leaving: Leaving::default(),
            away: false,
        }
    }

    /// Shows a drain that goes on.
    pub fn show(&mut self, drain: &Drain, now: Instant, now_ms: u64) {
        if self.away {
            return;
        }
        let left = drain.flows.listed.saturating_add(drain.flows.unseen);
        let rate = self.leaving.note(left, now);
        match &mut self.sink {
            Sink::Bar(bar) => {
                let total = drain.flows.at_start.max(left).max(1);
                bar.set_length(total);
                bar.set_position(total - left);
                bar.set_prefix(drain.backend.clone());
                bar.set_message(bar_text(drain, rate, now_ms));
            }
            Sink::Lines { last } => {
                let state = (drain.state.clone(), left);
                if last.as_ref() != Some(&state) {
                    *last = Some(state);
                    say(&line(drain, now_ms));
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
            Sink::Bar(bar) => bar.set_message(text),
            Sink::Lines { .. } if first => say(&text),
            Sink::Lines { .. } | Sink::Quiet => {}
        }
    }

    /// The daemon is back.
    pub fn back(&mut self) {
        self.away = false;
    }

    /// Takes the bar away.
    pub fn close(&mut self) {
        if let Sink::Bar(bar) = &self.sink {
            bar.finish_and_clear();
        }
    }
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

/// `12 flows left (10 seen, 2 not), 3.2/s ending, deadline in 4m 12s`.
fn bar_text(drain: &Drain, rate: Option<f64>, now_ms: u64) -> String {
    let flows = flows(drain);
    let time = if drain.state == "resetting" {
        "past its deadline, being cut".to_owned()
    } else {
        human::deadline(drain.deadline_ms, now_ms)
    };
    match rate {
        Some(rate) => format!("{flows}, {rate:.1}/s ending, {time}"),
        None => format!("{flows}, {time}"),
    }
}

/// `web/b1 draining: 12 flows left (10 seen, 2 not), deadline in 4m 12s, then the rest is reset`.
fn line(drain: &Drain, now_ms: u64) -> String {
    let time = if drain.state == "resetting" {
        human::deadline(0, now_ms)
    } else {
        format!(
            "{}, then {}",
            human::deadline(drain.deadline_ms, now_ms),
            drain::at_deadline(drain.on_deadline)
        )
    };
    format!(
        "{} {}: {}, {time}",
        drain.backend,
        drain.state,
        flows(drain)
    )
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
    use crate::{api::DrainFlows, model::spec::OnDeadline};

    fn drain(state: &str, listed: u64, unseen: u64) -> Drain {
        Drain {
            id: 1,
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
    fn the_bar_has_the_rate() {
        assert_eq!(
            bar_text(&drain("draining", 12, 0), Some(3.21), 0),
            "12 flows left, 3.2/s ending, deadline in 4m 12s"
        );
        assert!(!bar_text(&drain("draining", 12, 0), None, 0).contains("/s"));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leaving = Leaving::default();
        assert_eq!(leaving.note(100, at(0)), None);
        assert_eq!(leaving.note(80, at(2)), Some(10.0));
        assert_eq!(leaving.note(90, at(2)), Some(5.0));
        // The first notes are too old by now.
        assert_eq!(leaving.note(60, at(14)), Some(2.5));
    }
}
