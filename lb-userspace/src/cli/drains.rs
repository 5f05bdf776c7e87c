//! `ebb drains`.

use crate::api::{Drain, Receipt};

use super::{
    args::DrainsArgs,
    client::Client,
    drain,
    error::{CliError, exit},
    human,
    names::Drains,
    output::Output,
    receipt,
    table::{self, Column},
    wait::News,
};

/// Receipts that are shown to people unless they ask for all.
const LAST: usize = 20;

/// Longest time to the answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

const RUNNING: [Column; 10] = [
    ("ID", true),
    ("BACKEND", false),
    ("STATE", false),
    ("BY", false),
    ("SINCE", true),
    ("LEFT", true),
    ("RATE", true),
    ("DEADLINE", true),
    ("90% GONE", true),
    ("OUTLIVE", true),
];

const ENDED: [Column; 16] = [
    ("ID", true),
    ("BACKEND", false),
    ("REASON", false),
    ("BY", false),
    ("ENDED", true),
    ("TOOK", true),
    ("FLOWS", true),
    ("FINISHED", true),
    ("IDLE", true),
    ("CUT", true),
    ("DIED", true),
    ("LEFT", true),
    ("P50", true),
    ("P99", true),
    ("LONGEST", true),
    ("AGES", true),
];

/// Lists drains, or waits for them.
pub async fn drains(client: &Client, args: &DrainsArgs, out: &mut Output) -> Result<u8, CliError> {
    let news = ask(client, &args.of).await?;
    if args.wait {
        return wait(client, args, news, out).await;
    }
    let drains = news.drains()?;
    let text = if out.json() {
        news.json()
    } else {
        match (args.of.as_slice(), drains.as_slice()) {
            ([Drains::Id(_)], [drain]) => one(drain, human::now_ms()),
            _ => render(&drains, args.all, human::now_ms()),
        }
    };
    out.print(&text)?;
    Ok(exit::DONE)
}

/// What there is; a single number is answered by one drain.
async fn ask(client: &Client, of: &[Drains]) -> Result<News, CliError> {
    if let [Drains::Id(id)] = of {
        let answer = client.get(&format!("/v1/drains/{id}"), PATIENCE).await?;
        return Ok(News::one(&answer)?);
    }
    let of: Vec<String> = of.iter().map(ToString::to_string).collect();
    let path = if of.is_empty() {
        "/v1/drains".to_owned()
    } else {
        format!("/v1/drains?of={}", of.join(","))
    };
    Ok(News::several(&client.get(&path, PATIENCE).await?)?)
}

/// Waits for those that run, and for each that is asked for by its number.
async fn wait(
    client: &Client,
    args: &DrainsArgs,
    news: News,
    out: &mut Output,
) -> Result<u8, CliError> {
    let named = |id: Option<u64>| {
        let mut of = args.of.iter();
        id.is_some_and(|id| of.any(|one| *one == Drains::Id(id)))
    };
    let news = news.only(|drain| drain["receipt"].is_null() || named(drain["id"].as_u64()));
    if news.drains()?.is_empty() {
        let none = if out.json() {
            "[]"
        } else {
            "no drain is under way"
        };
        out.print(none)?;
        return Ok(exit::DONE);
    }
    drain::wait(client, news, out).await
}

fn one(drain: &Drain, now_ms: u64) -> String {
    let Some(receipt) = &drain.receipt else {
        let mut text = format!(
            "drain {} of {}: {}{}, {}, then {}",
            drain.id,
            drain.backend,
            drain.state,
            drain::asked_for(drain.by),
            drain::remaining(drain, now_ms),
            drain::at_deadline(drain.on_deadline)
        );
        if let Some(outlook) = drain::outlook(drain) {
            text.push_str(&format!("\n  {outlook}"));
        }
        return text;
    };
    format!(
        "drain {}{}: {}",
        drain.id,
        drain::asked_for(drain.by),
        receipt::render(receipt)
    )
}

fn render(drains: &[Drain], all: bool, now_ms: u64) -> String {
    let running: Vec<&Drain> = drains.iter().filter(|d| d.receipt.is_none()).collect();
    let ended: Vec<(&Drain, &Receipt)> = drains
        .iter()
        .filter_map(|drain| Some((drain, drain.receipt.as_ref()?)))
        .collect();
    let mut parts = Vec::new();
    if running.is_empty() {
        parts.push("no drain is under way".to_owned());
    } else {
        let rows = running.iter().map(|drain| running_row(drain, now_ms));
        parts.push(table::render(&RUNNING, rows.collect(), 0));
    }
    let shown = if all { ended.len() } else { LAST };
    if !ended.is_empty() {
        let rows = ended.iter().take(shown);
        let rows = rows.map(|(drain, receipt)| ended_row(drain, receipt, now_ms));
        parts.push(table::render(&ENDED, rows.collect(), 0));
    }
    if ended.len() > shown {
        let more = ended.len() - shown;
        parts.push(format!("{more} older ones: --all shows them"));
    }
    parts.join("\n\n")
}

fn ago(then_ms: u64, now_ms: u64) -> String {
    human::duration(std::time::Duration::from_millis(
        now_ms.saturating_sub(then_ms),
    ))
}

/// A value that may be missing.
fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

fn running_row(drain: &Drain, now_ms: u64) -> Vec<String> {
    let progress = drain.progress;
    let forecast = progress.and_then(|progress| progress.forecast);
    let rate = progress.and_then(|progress| progress.rate_per_s);
    vec![
        drain.id.to_string(),
        drain.backend.clone(),
        drain.state.clone(),
        drain.by.name().to_owned(),
        ago(drain.since_ms, now_ms),
        format!("{} of {}", drain::left(drain), drain.flows.at_start),
        or_dash(rate, |rate| format!("{rate:.1}/s")),
        match drain.deadline_ms.checked_sub(now_ms) {
            Some(left) if left > 0 => human::duration(std::time::Duration::from_millis(left)),
            _ => "past".to_owned(),
        },
        or_dash(forecast, |forecast| {
            or_dash(forecast.most_gone_s, human::seconds)
        }),
        or_dash(forecast, |forecast| forecast.outlive.to_string()),
    ]
}

fn ended_row(drain: &Drain, receipt: &Receipt, now_ms: u64) -> Vec<String> {
    vec![
        drain.id.to_string(),
        drain.backend.clone(),
        human::clean(&receipt.reason),
        drain.by.name().to_owned(),
        or_dash(drain.ended_ms, |ended| {
            format!("{} ago", ago(ended, now_ms))
        }),
        human::seconds(receipt.seconds),
        receipt.flows_at_start.to_string(),
        receipt.finished.to_string(),
        receipt.idle_expired.to_string(),
        receipt.reset.to_string(),
        receipt.died.to_string(),
        receipt.left.to_string(),
        or_dash(receipt.p50_s, human::seconds),
        or_dash(receipt.p99_s, human::seconds),
        human::seconds(receipt.longest_s),
        receipt.ages_known.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{By, DrainFlows, DrainProgress, Forecast},
        model::spec::OnDeadline,
    };

    fn drain(id: u64, receipt: Option<Receipt>) -> Drain {
        let running = receipt.is_none();
        Drain {
            id,
            backend: "web/b1".to_owned(),
            by: By::Operator,
            state: if running { "draining" } else { "drained" }.to_owned(),
            since_ms: 0,
            deadline_ms: 300_000,
            on_deadline: OnDeadline::Reset,
            flows: DrainFlows {
                at_start: 20,
                listed: 12,
                unseen: 0,
            },
            ended_ms: (!running).then_some(40_000),
            progress: running.then_some(DrainProgress {
                left: 12,
                gone: 8,
                rate_per_s: Some(0.25),
                ages_known: 12,
                forecast: Some(Forecast {
                    most_gone_s: Some(240.0),
                    outlive: 3,
                    seen: 8,
                }),
            }),
            receipt,
        }
    }

    fn receipt() -> Receipt {
        Receipt {
            backend: "web/b1".to_owned(),
            reason: "empty".to_owned(),
            flows_at_start: 20,
            finished: 20,
            idle_expired: 0,
            reset: 0,
            died: 0,
            left: 0,
            longest_s: 90.0,
            ages_known: 15,
            p50_s: Some(2.0),
            p99_s: None,
            seconds: 30.0,
        }
    }

    #[test]
    fn running_ones_come_first() {
        let text = render(&[drain(8, None), drain(7, Some(receipt()))], false, 60_000);
        assert_eq!(
            text,
            "\
ID  BACKEND  STATE     BY        SINCE      LEFT   RATE  DEADLINE  90% GONE  OUTLIVE
 8  web/b1   draining  operator  1m 0s  12 of 20  0.2/s     4m 0s     4m 0s        3

ID  BACKEND  REASON  BY          ENDED  TOOK  FLOWS  FINISHED  IDLE  CUT  DIED  LEFT   P50  P99  LONGEST  AGES
 7  web/b1   empty   operator  20s ago   30s     20        20     0    0     0     0  2.0s    -   1m 30s    15"
        );
    }

    #[test]
    fn only_the_last_receipts_are_shown_unless_all_are_wanted() {
        let many: Vec<Drain> = (0..25).map(|id| drain(id, Some(receipt()))).collect();
        let text = render(&many, false, 60_000);
        assert!(text.starts_with("no drain is under way"), "{text}");
        assert!(text.ends_with("5 older ones: --all shows them"), "{text}");
        assert_eq!(render(&many, true, 60_000).matches("web/b1").count(), 25);
    }

    #[test]
    fn one_is_told_whole() {
        let text = one(&drain(8, None), 60_000);
        assert!(
            text.starts_with("drain 8 of web/b1: draining, 12 flows left"),
            "{text}"
        );
        assert!(
            text.ends_with("3 flows will outlive the deadline"),
            "{text}"
        );
        let text = one(&drain(7, Some(receipt())), 60_000);
        assert!(text.starts_with("drain 7: web/b1 is drained"), "{text}");
    }
}
