//! `ebb status`.

mod render;

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::Status;

use super::{
    args::StatusArgs,
    client::{Answer, Client, PATIENCE},
    error::{CliError, exit, io_words},
    human,
    names::Service,
    output::Output,
};

/// Time between two pictures of `--watch`.
const PERIOD: Duration = Duration::from_secs(1);

/// Cursor home, and the screen empty from there on.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows the status, once or until Ctrl-C.
pub async fn status(client: &Client, args: &StatusArgs, out: &mut Output) -> Result<u8, CliError> {
    let mut picture = Picture::new(client, args.service.as_ref());
    if !args.watch {
        let text = picture.take(out.json()).await?;
        out.print(&text)?;
        return Ok(exit::DONE);
    }
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| {
        CliError::failed(format!("cannot wait for Ctrl-C: {}", io_words(&error)))
            .hint("leave --watch out")
    })?;
    tokio::select! {
        result = watch(&mut picture, out) => result.map(|()| exit::DONE),
        _ = interrupt.recv() => Ok(exit::DONE),
    }
}

/// Pictures until nobody looks any more. A daemon that goes away later is waited for: that is when people watch.
async fn watch(picture: &mut Picture<'_>, out: &mut Output) -> Result<(), CliError> {
    let clear = !out.json() && std::io::stdout().is_terminal();
    let mut clock = tokio::time::interval(PERIOD);
    let mut seen = false;
    while !out.closed() {
        clock.tick().await;
        let text = match picture.take(out.json()).await {
            Ok(text) => text,
            Err(error) if seen && !out.json() => format!("{error}; trying again"),
            Err(error) if seen => {
                error.report(true, &mut std::io::stderr());
                continue;
            }
            Err(error) => return Err(error),
        };
        seen = true;
        match (clear, out.json()) {
            (true, _) => out.print(&format!("{CLEAR}{text}"))?,
            (false, true) => out.print(&text)?,
            (false, false) => out.print(&format!("{text}\n\n"))?,
        }
    }
    Ok(())
}

/// Takes one status after the other, and keeps the last for the rates.
struct Picture<'a> {
    client: &'a Client,
    only: Option<&'a Service>,
    last: Option<(Instant, Status)>,
}

impl<'a> Picture<'a> {
    fn new(client: &'a Client, only: Option<&'a Service>) -> Self {
        Self {
            client,
            only,
            last: None,
        }
    }

    /// The next one, as text or as the API's JSON.
    async fn take(&mut self, json: bool) -> Result<String, CliError> {
        let answer = self.client.get("/v1/status", PATIENCE).await?;
        let now = Instant::now();
        if json {
            return match self.only {
                None => Ok(answer.text()?.to_owned()),
                Some(only) => raw_service(&answer, only),
            };
        }
        let mut status: Status = answer.read()?;
        if let Some(only) = self.only {
            let names = status.services.iter().map(|service| service.name.as_str());
            found(only, names)?;
            status.services.retain(|service| service.name == only.0);
        }
        let before = self.last.take();
        let before = before
            .as_ref()
            .map(|(then, status)| (status, now.duration_since(*then)));
        let text = render::render(&status, before, human::now_ms());
        self.last = Some((now, status));
        Ok(text)
    }
}

/// The answer with one service left in it, and all that a newer daemon may say.
fn raw_service(answer: &Answer, only: &Service) -> Result<String, CliError> {
    let mut whole: Value = answer.read()?;
    let name = |service: &Value| {
        let name = service.get("name").and_then(Value::as_str);
        name.unwrap_or_default().to_owned()
    };
    if let Some(services) = whole.get_mut("services").and_then(Value::as_array_mut) {
        let names: Vec<String> = services.iter().map(name).collect();
        found(only, names.iter().map(String::as_str))?;
        services.retain(|service| name(service) == only.0);
    }
    Ok(whole.to_string())
}

fn found<'n>(
    only: &Service,
    mut names: impl Iterator<Item = &'n str> + Clone,
) -> Result<(), CliError> {
    if names.clone().any(|name| name == only.0) {
        return Ok(());
    }
    let error = CliError::failed(format!(
        "cannot show service {}: there is none of this name",
        only.0
    ));
    let first = names.next();
    Err(match first {
        None => error.hint("the daemon has no services; look at its configuration"),
        Some(first) => error.hint(format!(
            "the services are: {}",
            names.fold(first.to_owned(), |list, name| list + ", " + name)
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_not_there() {
        let only = Service("wbe".to_owned());
        let error = found(&only, ["api", "web"].into_iter()).expect_err("not there");
        assert_eq!(error.exit, exit::FAILED);
        assert_eq!(error.hint.as_deref(), Some("the services are: api, web"));
        let error = found(&only, std::iter::empty()).expect_err("not there");
        assert!(error.hint.expect("a hint").contains("no services"));
    }
}
