//! `ebb explain`.

use crate::api::{Answer, ExplainRequest, Explained};

use super::{
    client::Client,
    error::{CliError, exit},
    output::Output,
};

/// Asks where a client's packets go.
pub async fn explain(
    client: &Client,
    request: &ExplainRequest,
    out: &mut Output,
) -> Result<u8, CliError> {
    let answer = client.post("/v1/explain", request).await?;
    let text = if out.json() {
        answer.text()?.to_owned()
    } else {
        render(&answer.read()?)
    };
    out.print(&text)?;
    Ok(exit::DONE)
}

fn render(explained: &Explained) -> String {
    let name = |backend: &Option<String>| backend.clone().unwrap_or_else(|| "none".to_owned());
    let (current, base) = (name(&explained.current), name(&explained.base));
    let slot = if current == base {
        format!("{} of {current}", explained.slot)
    } else {
        format!(
            "{}: new flows to {current}, older ones are {base}'s",
            explained.slot
        )
    };
    let slot = match &explained.formers[..] {
        [] => slot,
        formers => format!("{slot}; {} had it in between", formers.join(" and ")),
    };
    let head = format!("{} from {}", explained.service, explained.from);
    let opening = answer(&explained.opening);
    if explained.quic {
        let nameless = answer(&explained.established);
        let named = explained.named.as_ref().map_or_else(
            || "the backend that it names (ask with --cid HEX)".to_owned(),
            answer,
        );
        return format!(
            "{head}\n  slot              {slot}\n  a new connection  {opening}\n  an id of a server {named}\n  another id        {nameless}"
        );
    }
    if explained.protocol == "udp" {
        return format!("{head}\n  slot              {slot}\n  a datagram        {opening}");
    }
    let established = answer(&explained.established);
    format!(
        "{head}\n  slot              {slot}\n  a new connection  {opening}\n  an open one       {established}"
    )
}

fn answer(answer: &Answer) -> String {
    let to = answer.backend.as_deref().unwrap_or("no backend");
    format!("{to}: {} ({})", answer.why, answer.outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_packets_are_answered() {
        let answer = |outcome: &str, backend: Option<&str>, why: &str| Answer {
            outcome: outcome.to_owned(),
            backend: backend.map(str::to_owned),
            why: why.to_owned(),
        };
        let mut explained = Explained {
            service: "web".to_owned(),
            protocol: "tcp".to_owned(),
            from: "198.51.100.7:40000".parse().expect("an address"),
            slot: 42,
            current: Some("b2".to_owned()),
            base: Some("b1".to_owned()),
            formers: Vec::new(),
            opening: answer("forward_opening", Some("b2"), "takes new flows"),
            established: answer("forward_base", None, "nobody"),
            named: None,
            quic: false,
        };
        let text = render(&explained);
        for part in [
            "42: new flows to b2, older ones are b1's",
            "a new connection  b2: takes new flows (forward_opening)",
            "an open one       no backend: nobody (forward_base)",
        ] {
            assert!(text.contains(part), "{text}");
        }
        explained.formers = vec!["b3".to_owned(), "b4".to_owned()];
        assert!(render(&explained).contains("b1's; b3 and b4 had it in between\n"));
        explained.formers.clear();
        explained.base = Some("b2".to_owned());
        assert!(render(&explained).contains("slot              42 of b2\n"));
        explained.protocol = "udp".to_owned();
        let text = render(&explained);
        assert!(text.contains("a datagram        b2"), "{text}");
        assert!(!text.contains("an open one"), "{text}");
        explained.quic = true;
        let text = render(&explained);
        for part in ["a new connection  b2", "--cid HEX", "another id        no"] {
            assert!(text.contains(part), "{text}");
        }
        explained.named = Some(answer("forward_server_id", Some("b3"), "names b3"));
        let text = render(&explained);
        assert!(text.contains("an id of a server b3: names b3"), "{text}");
    }
}
