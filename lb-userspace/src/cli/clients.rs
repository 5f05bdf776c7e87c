//! `ebb clients`.

use crate::{api::ClientPrefix, model::spec::ClientAction};

use super::{
    client::{Client, PATIENCE},
    error::{CliError, exit},
    output::Output,
    table::{self, Column},
};

const COLUMNS: [Column; 3] = [("PREFIX", false), ("ACTION", false), ("PACKETS", true)];

/// Lists the prefixes of clients.
pub async fn clients(client: &Client, out: &mut Output) -> Result<u8, CliError> {
    let answer = client.get("/v1/clients", PATIENCE).await?;
    let text = if out.json() {
        answer.text()?.to_owned()
    } else {
        render(&answer.read::<Vec<ClientPrefix>>()?)
    };
    out.print(&text)?;
    Ok(exit::DONE)
}

fn render(prefixes: &[ClientPrefix]) -> String {
    if prefixes.is_empty() {
        return "every client may come: the configuration names no prefixes".to_owned();
    }
    let rows = prefixes.iter().map(|rule| {
        let action = match rule.action {
            ClientAction::Deny => "deny",
            ClientAction::Allow => "allow",
        };
        vec![
            rule.prefix.to_string(),
            action.to_owned(),
            rule.packets.to_string(),
        ]
    });
    table::render(&COLUMNS, rows.collect(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_line() {
        let rule = ClientPrefix {
            prefix: "198.51.100.0/24".parse().expect("a prefix"),
            action: ClientAction::Deny,
            packets: 12,
        };
        let text = render(&[rule]);
        let words: Vec<_> = text
            .lines()
            .last()
            .expect("a row")
            .split_whitespace()
            .collect();
        assert_eq!(words, ["198.51.100.0/24", "deny", "12"]);
        assert!(render(&[]).starts_with("every client"));
    }
}
