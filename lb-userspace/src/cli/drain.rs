//! `ebb drain`.

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    api::{Drain, DrainRequest},
    model::spec::OnDeadline,
};

use super::{
    args::DrainArgs,
    client::{Answer, Client, ClientError},
    error::{CliError, exit, io_words},
    human,
    output::Output,
    progress::Progress,
    receipt,
    wait::Wait,
};

/// Starts a drain, or finds the one that runs, and waits for its end when asked to.
pub async fn drain(client: &Client, args: &DrainArgs, out: &mut Output) -> Result<u8, CliError> {
    let answer = client.post("/v1/drain", &request(args)).await?;
    let drain: Drain = answer.read()?;
    if args.wait {
        let last = wait(client, answer, drain, out).await?;
        return finish(&last, out);
    }
    let text = if out.json() {
        answer.text()?.to_owned()
    } else {
        started(&drain, human::now_ms())
    };
    out.print(&text)?;
    Ok(exit::DONE)
}

fn request(args: &DrainArgs) -> DrainRequest {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    DrainRequest {
        backend: args.backend.to_string(),
        timeout_ms: args.timeout.map(millis),
        on_deadline: args.on_deadline.map(OnDeadline::from),
        force: args.force,
    }
}

/// Waits for the end; Ctrl-C ends the waiting, not the drain.
async fn wait(
    client: &Client,
    first: Answer,
    drain: Drain,
    out: &Output,
) -> Result<Answer, CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| {
        CliError::failed(format!("cannot wait for Ctrl-C: {}", io_words(&error)))
            .hint("the drain goes on; wait for it again with the same command")
    })?;
    let mut wait = Wait::new(client, drain, Progress::on_stderr(out.json()));
    let result = tokio::select! {
        result = wait.until_ended(first) => result,
        _ = interrupt.recv() => Err(interrupted(wait.drain(), human::now_ms())),
    };
    wait.close();
    result
}

fn interrupted(drain: &Drain, now_ms: u64) -> CliError {
    let name = &drain.backend;
    CliError::failed(format!(
        "no longer waiting: the drain of {name} goes on ({})",
        remaining(drain, now_ms)
    ))
    .hint(format!(
        "`ebb drain {name} --wait` waits for it again, `ebb undrain {name}` ends it"
    ))
    .exit(exit::INTERRUPTED)
}

/// Prints the receipt; the exit code that follows from it.
fn finish(last: &Answer, out: &mut Output) -> Result<u8, CliError> {
    let drain: Drain = last.read()?;
    let Some(receipt) = drain.receipt else {
        let name = &drain.backend;
        return Err(CliError::failed(format!(
            "the drain of {name} ended without a receipt: it is {}",
            human::clean(&drain.state)
        ))
        .hint("`ebb status` shows the backend, the daemon's log why"));
    };
    let text = if out.json() {
        raw_receipt(last)?
    } else {
        receipt::render(&receipt)
    };
    out.print(&text)?;
    Ok(receipt::exit_code(&receipt))
}

/// The receipt as the daemon wrote it, with what a newer one may have added.
fn raw_receipt(last: &Answer) -> Result<String, ClientError> {
    let whole: Value = last.read()?;
    Ok(whole.get("receipt").unwrap_or(&Value::Null).to_string())
}

/// `12 flows left, deadline in 4m 12s`.
pub fn remaining(drain: &Drain, now_ms: u64) -> String {
    let left = drain.flows.listed.saturating_add(drain.flows.unseen);
    format!(
        "{} left, {}",
        human::plural(left, "flow"),
        human::deadline(drain.deadline_ms, now_ms)
    )
}

/// What happens at the deadline, after `then`.
pub fn at_deadline(action: OnDeadline) -> &'static str {
    match action {
        OnDeadline::Reset => "the rest is reset",
        OnDeadline::Leave => "the rest goes on",
        OnDeadline::Drop => "the rest is dropped",
    }
}

fn started(drain: &Drain, now_ms: u64) -> String {
    let name = &drain.backend;
    match &drain.receipt {
        Some(receipt) => receipt::render(receipt),
        None => format!(
            "{name} takes no new flows; {}, then {}\n`ebb drain {name} --wait` waits for its end",
            remaining(drain, now_ms),
            at_deadline(drain.on_deadline)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::DrainFlows;

    fn running() -> Drain {
        Drain {
            id: 7,
            backend: "web/b1".to_owned(),
            state: "draining".to_owned(),
            since_ms: 1_000,
            deadline_ms: 301_000,
            on_deadline: OnDeadline::Reset,
            flows: DrainFlows {
                at_start: 20,
                listed: 10,
                unseen: 2,
            },
            receipt: None,
        }
    }

    #[test]
    fn a_started_drain_says_what_comes() {
        assert_eq!(
            started(&running(), 1_000),
            "web/b1 takes no new flows; 12 flows left, deadline in 5m 0s, then the rest is \
             reset\n`ebb drain web/b1 --wait` waits for its end"
        );
    }

    #[test]
    fn an_interrupted_wait_is_neither_success_nor_failure_of_the_drain() {
        let error = interrupted(&running(), 1_000);
        assert_eq!(error.exit, exit::INTERRUPTED);
        assert!(error.error.contains("goes on (12 flows left"));
        assert!(error.hint.expect("a hint").contains("drain web/b1 --wait"));
    }
}
