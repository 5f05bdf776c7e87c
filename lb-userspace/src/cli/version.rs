//! `ebb version`.

use std::time::Duration;

use lb_common::limits::ABI_VERSION;
use serde_json::{Value, json};

use crate::api::Version;

use super::{
    client::{Client, ClientError},
    error::{CliError, exit},
    output::Output,
};

/// The version of this build.
const OURS: &str = env!("CARGO_PKG_VERSION");

/// Time that a daemon has to answer: nobody wants to wait for a version.
const PATIENCE: Duration = Duration::from_secs(3);

/// Shows both versions; a daemon that does not answer is no error.
pub async fn version(client: &Client, out: &mut Output) -> Result<u8, CliError> {
    let daemon = ask(client).await;
    let text = if out.json() {
        let daemon = daemon.map_or(Value::Null, |(raw, _)| raw);
        json!({ "ebb": OURS, "map_layout": ABI_VERSION, "daemon": daemon }).to_string()
    } else {
        render(&daemon)
    };
    out.print(&text)?;
    Ok(exit::DONE)
}

async fn ask(client: &Client) -> Result<(Value, Version), ClientError> {
    let answer = client.get("/v1/version", PATIENCE).await?;
    Ok((answer.read()?, answer.read()?))
}

fn render(daemon: &Result<(Value, Version), ClientError>) -> String {
    let ours = format!("ebb {OURS} (map layout {ABI_VERSION})");
    match daemon {
        Ok((_, theirs)) => format!(
            "{ours}\ndaemon {} (map layout {}, Linux {})",
            theirs.ebb, theirs.map_layout, theirs.kernel
        ),
        Err(error) => format!("{ours}\nno daemon: {error}"),
    }
}
