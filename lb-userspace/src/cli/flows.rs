//! `ebb flows`.

use crate::api::Flow;

use super::{
    client::{Client, PATIENCE},
    error::{CliError, exit},
    human,
    names::Scope,
    output::Output,
    table::{self, Column},
};

const COLUMNS: [Column; 8] = [
    ("SERVICE", false),
    ("BACKEND", false),
    ("CLIENT", false),
    ("PORT", true),
    ("PHASE", false),
    ("AGE", true),
    ("IDLE", true),
    ("KEPT BY", false),
];

/// Lists flows.
pub async fn flows(client: &Client, of: Option<&Scope>, out: &mut Output) -> Result<u8, CliError> {
    let answer = client.get(&path(of), PATIENCE).await?;
    let text = if out.json() {
        answer.text()?.to_owned()
    } else {
        render(answer.read()?)
    };
    out.print(&text)?;
    Ok(exit::DONE)
}

/// Names need no escaping: they have no character that means anything in a URL.
fn path(of: Option<&Scope>) -> String {
    match of {
        None => "/v1/flows".to_owned(),
        Some(Scope {
            service,
            backend: None,
        }) => format!("/v1/flows?service={service}"),
        Some(Scope {
            service,
            backend: Some(backend),
        }) => format!("/v1/flows?service={service}&backend={backend}"),
    }
}

fn render(flows: Vec<Flow>) -> String {
    if flows.is_empty() {
        return "no flows listed (those that the steering table alone keeps need no entry)"
            .to_owned();
    }
    let rows = flows.into_iter().map(|flow| {
        let kept_by = if flow.exceptional { "entry" } else { "table" };
        vec![
            flow.service,
            flow.backend,
            flow.client.to_string(),
            flow.service_port.to_string(),
            flow.phase,
            human::seconds(flow.age_s),
            human::seconds(flow.idle_s),
            kept_by.to_owned(),
        ]
    });
    table::render(&COLUMNS, rows.collect(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(path(None), "/v1/flows");
        let scope = |text: &str| text.parse::<Scope>().expect(text);
        assert_eq!(path(Some(&scope("web"))), "/v1/flows?service=web");
        assert_eq!(
            path(Some(&scope("web/b1"))),
            "/v1/flows?service=web&backend=b1"
        );
    }

    #[test]
    fn a_flow_is_a_line() {
        let flow = Flow {
            service: "web".to_owned(),
            backend: "b1".to_owned(),
            client: "[2001:db8::7]:40000".parse().expect("an address"),
            service_port: 443,
            phase: "established".to_owned(),
            age_s: 252.0,
            idle_s: 0.84,
            exceptional: true,
        };
        let text = render(vec![flow]);
        let words: Vec<_> = text.lines().last().expect("a row").split("  ").collect();
        let words: Vec<_> = words
            .iter()
            .map(|w| w.trim())
            .filter(|w| !w.is_empty())
            .collect();
        assert_eq!(
            words,
            [
                "web",
                "b1",
                "[2001:db8::7]:40000",
                "443",
                "established",
                "4m 12s",
                "0.8s",
                "entry"
            ]
        );
        assert!(render(Vec::new()).starts_with("no flows listed"));
    }
}
