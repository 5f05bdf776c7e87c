//! `ebb drain`.

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    api::{By, Drain, DrainRequest, DrainsRequest},
    model::spec::OnDeadline,
};

use super::{
    args::{DrainArgs, Named},
    client::Client,
    error::{CliError, exit, io_words},
    human,
    output::Output,
    progress::Progress,
    receipt,
    wait::{News, Wait},
};

/// Starts drains, or finds those that run, and waits for their end when asked to.
pub async fn drain(client: &Client, args: &DrainArgs, out: &mut Output) -> Result<u8, CliError> {
    let begun = match args.targets.named()? {
        Named::One(backend) => {
            let answer = client.post("/v1/drain", &one(backend, args)).await?;
            News::one(&answer)?
        }
        named => {
            let answer = client.post("/v1/drains", &several(named, args)).await?;
            News::several(&answer)?
        }
    };
    if args.wait {
        return wait(client, begun, out).await;
    }
    let text = if out.json() {
        begun.json()
    } else {
        started(&begun.drains()?, human::now_ms())
    };
    out.print(&text)?;
    Ok(exit::DONE)
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn one(backend: String, args: &DrainArgs) -> DrainRequest {
    DrainRequest {
        backend,
        timeout_ms: args.timeout.map(millis),
        on_deadline: args.on_deadline.map(OnDeadline::from),
        force: args.force,
        as_backend: args.as_backend,
    }
}

fn several(named: Named, args: &DrainArgs) -> DrainsRequest {
    let (backends, pools) = match named {
        Named::One(backend) => (vec![backend], Vec::new()),
        Named::Backends(backends) => (backends, Vec::new()),
        Named::Pools(pools) => (Vec::new(), pools),
    };
    DrainsRequest {
        backends,
        pools,
        timeout_ms: args.timeout.map(millis),
        on_deadline: args.on_deadline.map(OnDeadline::from),
        force: args.force,
        as_backend: args.as_backend,
    }
}

/// Waits for the end of all and prints the receipts; Ctrl-C ends the waiting, not the drains.
pub async fn wait(client: &Client, begun: News, out: &mut Output) -> Result<u8, CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| {
        CliError::failed(format!("cannot wait for Ctrl-C: {}", io_words(&error)))
            .hint("the drain goes on; wait for it again with the same command")
    })?;
    let drains = begun.drains()?;
    let mut wait = Wait::new(client, drains, Progress::on_stderr(out.json()));
    let result = tokio::select! {
        result = wait.until_ended(begun) => result,
        _ = interrupt.recv() => Err(interrupted(wait.drains(), human::now_ms())),
    };
    wait.close();
    finish(&result?, out)
}

fn interrupted(drains: &[Drain], now_ms: u64) -> CliError {
    let running: Vec<&Drain> = drains.iter().filter(|d| d.receipt.is_none()).collect();
    let (error, hint) = match running.as_slice() {
        [drain] => {
            let name = &drain.backend;
            let left = remaining(drain, now_ms);
            (
                format!("no longer waiting: the drain of {name} goes on ({left})"),
                format!(
                    "`ebb drain {name} --wait` waits for it again, `ebb undrain {name}` ends it"
                ),
            )
        }
        drains => {
            let left = drains.iter().map(|drain| left(drain)).sum();
            let names: Vec<&str> = drains.iter().map(|drain| drain.backend.as_str()).collect();
            (
                format!(
                    "no longer waiting: the drains of {} go on ({} left)",
                    names.join(", "),
                    human::plural(left, "flow")
                ),
                format!("{} waits for them again", again(drains)),
            )
        }
    };
    CliError::failed(error).hint(hint).exit(exit::INTERRUPTED)
}

/// The command that waits for drains again.
fn again<'d>(drains: impl IntoIterator<Item = &'d &'d Drain>) -> String {
    let ids: Vec<String> = drains
        .into_iter()
        .map(|drain| drain.id.to_string())
        .collect();
    format!("`ebb drains {} --wait`", ids.join(" "))
}

/// Prints the receipts; the exit code that follows from the worst of them.
fn finish(last: &News, out: &mut Output) -> Result<u8, CliError> {
    let mut receipts = Vec::new();
    for drain in last.drains()? {
        let Some(receipt) = drain.receipt else {
            let name = &drain.backend;
            return Err(CliError::failed(format!(
                "the drain of {name} ended without a receipt: it is {}",
                human::clean(&drain.state)
            ))
            .hint("`ebb status` shows the backend, the daemon's log why"));
        };
        receipts.push(receipt);
    }
    let text = if out.json() {
        last.receipts_json()
    } else {
        receipt::render_all(&receipts)
    };
    out.print(&text)?;
    Ok(receipts
        .iter()
        .map(receipt::exit_code)
        .max()
        .unwrap_or(exit::DONE))
}

/// Flows left of a drain.
pub fn left(drain: &Drain) -> u64 {
    drain.flows.listed.saturating_add(drain.flows.unseen)
}

/// `12 flows left, deadline in 4m 12s`.
pub fn remaining(drain: &Drain, now_ms: u64) -> String {
    format!(
        "{} left, {}",
        human::plural(left(drain), "flow"),
        human::deadline(drain.deadline_ms, now_ms)
    )
}

/// `90 % gone in 4m 0s, 12 flows will outlive the deadline`; nothing without a forecast.
pub fn outlook(drain: &Drain) -> Option<String> {
    let forecast = drain.progress?.forecast?;
    let most = match forecast.most_gone_s {
        Some(seconds) if seconds > 0.0 => format!("90 % gone in {}, ", human::seconds(seconds)),
        Some(_) => String::new(),
        None => "90 % not gone within a week, ".to_owned(),
    };
    let rest = match forecast.outlive {
        0 => "none will outlive the deadline".to_owned(),
        count => format!("{} will outlive the deadline", human::plural(count, "flow")),
    };
    Some(format!("{most}{rest}"))
}

/// `, asked for by the backend's answer`; nothing where it was the operator.
pub fn asked_for(by: By) -> String {
    match by {
        By::Operator => String::new(),
        by => format!(", asked for by {}", by.words()),
    }
}

/// What happens at the deadline, after `then`.
pub fn at_deadline(action: OnDeadline) -> &'static str {
    match action {
        OnDeadline::Reset => "the rest is reset",
        OnDeadline::Leave => "the rest goes on",
        OnDeadline::Drop => "the rest is dropped",
    }
}

/// What has begun, and how to wait for it.
fn started(drains: &[Drain], now_ms: u64) -> String {
    let mut lines: Vec<String> = drains.iter().map(|drain| begins(drain, now_ms)).collect();
    let running: Vec<&Drain> = drains.iter().filter(|d| d.receipt.is_none()).collect();
    match running.as_slice() {
        [] => {}
        [drain] => lines.push(format!(
            "`ebb drain {} --wait` waits for its end",
            drain.backend
        )),
        drains => lines.push(format!("{} waits for their end", again(drains))),
    }
    lines.join("\n")
}

fn begins(drain: &Drain, now_ms: u64) -> String {
    let name = &drain.backend;
    match &drain.receipt {
        Some(receipt) => receipt::render(receipt),
        None => format!(
            "{name} takes no new flows; {}, then {}",
            remaining(drain, now_ms),
            at_deadline(drain.on_deadline)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{DrainFlows, DrainProgress, Forecast};

    fn running() -> Drain {
        Drain {
            id: 7,
            backend: "web/b1".to_owned(),
            by: By::Operator,
            state: "draining".to_owned(),
            since_ms: 1_000,
            deadline_ms: 301_000,
            on_deadline: OnDeadline::Reset,
            flows: DrainFlows {
                at_start: 20,
                listed: 10,
                unseen: 2,
            },
            ended_ms: None,
            progress: None,
            receipt: None,
        }
    }

    #[test]
    fn a_started_drain_says_what_comes() {
        assert_eq!(
            started(&[running()], 1_000),
            "web/b1 takes no new flows; 12 flows left, deadline in 5m 0s, then the rest is \
             reset\n`ebb drain web/b1 --wait` waits for its end"
        );
    }

    #[test]
    fn an_interrupted_wait_is_neither_success_nor_failure_of_the_drain() {
        let error = interrupted(&[running()], 1_000);
        assert_eq!(error.exit, exit::INTERRUPTED);
        assert!(error.error.contains("goes on (12 flows left"));
        assert!(error.hint.expect("a hint").contains("drain web/b1 --wait"));
    }

    #[test]
    fn several_are_waited_for_by_their_numbers() {
        let mut other = running();
        (other.id, other.backend) = (9, "web/b2".to_owned());
        let both = [running(), other];
        let text = started(&both, 1_000);
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with("\n`ebb drains 7 9 --wait` waits for their end"));
        let error = interrupted(&both, 1_000);
        assert!(
            error.error.contains("web/b1, web/b2 go on (24 flows left"),
            "{error}"
        );
        assert!(
            error
                .hint
                .expect("a hint")
                .contains("ebb drains 7 9 --wait")
        );
    }

    #[test]
    fn an_outlook_is_what_the_forecast_says() {
        let mut drain = running();
        let mut say = |most_gone_s, outlive| {
            drain.progress = Some(DrainProgress {
                left: 12,
                gone: 8,
                rate_per_s: None,
                ages_known: 0,
                forecast: Some(Forecast {
                    most_gone_s,
                    outlive,
                    seen: 8,
                }),
            });
            outlook(&drain).expect("an outlook")
        };
        assert_eq!(
            say(Some(240.0), 12),
            "90 % gone in 4m 0s, 12 flows will outlive the deadline"
        );
        assert_eq!(say(Some(0.0), 1), "1 flow will outlive the deadline");
        assert_eq!(
            say(None, 0),
            "90 % not gone within a week, none will outlive the deadline"
        );
        assert_eq!(outlook(&running()), None);
    }
}
