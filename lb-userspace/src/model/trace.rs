//! What a trace is asked for, as the data plane's filter.

use lb_common::{
    Addr,
    outcome::Outcome,
    trace::{FRAME_MAX, TraceFilter, filter_flags},
};

use super::{
    command::{self, Result},
    refused::Refused,
    spec::Prefix,
    state::State,
};

/// Protocols that can be asked for.
const PROTOCOLS: [(&str, u8); 3] = [("tcp", 6), ("udp", 17), ("icmp", 1)];

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// `SERVICE` or `SERVICE/BACKEND`.
    pub of: Option<&'a str>,
    /// Prefix that either end lies in.
    pub client: Option<Prefix>,
    /// Port of either end.
    pub port: Option<u16>,
    /// A protocol's name.
    pub protocol: Option<&'a str>,
    /// Names of outcomes, or of kinds of them.
    pub outcomes: &'a [String],
    /// Also what belongs to no service.
    pub all: bool,
    /// Bytes of each frame as it came.
    pub snap_in: u32,
    /// Bytes of each frame as it left.
    pub snap_out: u32,
}

/// The filter for it.
///
/// # Errors
/// A name that there is not.
pub fn filter(state: &State, wanted: &Wanted<'_>) -> Result<TraceFilter> {
    let (service, backend) = match wanted.of {
        None => (0, 0),
        Some(path) if path.contains('/') => {
            let target = command::find(state, path)?;
            (target.service.id, target.id)
        }
        Some(name) => (command::find_service(state, name)?.1.id, 0),
    };
    let protocol = wanted.protocol.map_or(Ok(0), protocol)?;
    let (prefix, mask, is_v6) = wanted.client.map_or_else(Default::default, prefix_of);
    let mut flags = 0;
    if is_v6 {
        flags |= filter_flags::PREFIX_V6;
    }
    // Who names outcomes means them, also those that no service's packets have.
    if !wanted.all && wanted.outcomes.is_empty() {
        flags |= filter_flags::SERVED;
    }
    Ok(TraceFilter {
        outcomes: outcomes(wanted.outcomes)?,
        prefix,
        mask,
        service,
        backend,
        flags,
        snap_came: wanted.snap_in.min(FRAME_MAX as u32),
        snap_left: wanted.snap_out.min(FRAME_MAX as u32),
        port: wanted.port.unwrap_or(0).to_be(),
        protocol,
        reserved: 0,
    })
}

fn protocol(name: &str) -> Result<u8> {
    let known = PROTOCOLS.iter().find(|(known, _)| *known == name);
    known
        .map(|(_, number)| *number)
        .ok_or_else(|| Refused::unknown_name("protocol", name, PROTOCOLS.map(|(name, _)| name)))
}

/// Address, mask, and whether it is one of IPv6.
fn prefix_of(prefix: Prefix) -> (Addr, Addr, bool) {
    let is_v6 = prefix.address().is_ipv6();
    let mapped = if is_v6 { 0 } else { 96 };
    let mask = Addr::prefix_mask(mapped + prefix.length());
    (Addr::from(prefix.address()), mask, is_v6)
}

/// A bit for each outcome that one of these words names, or whose name begins with it.
fn outcomes(words: &[String]) -> Result<u64> {
    if words.is_empty() {
        return Ok(u64::MAX);
    }
    let mut bits = 0;
    for word in words {
        let named = Outcome::ALL.iter().filter(|outcome| {
            let name = outcome.name();
            name == word || name.split('_').next() == Some(word)
        });
        let found = named.fold(0, |bits, outcome| bits | 1_u64 << *outcome as u32);
        if found == 0 {
            let names = Outcome::ALL.iter().map(|outcome| outcome.name());
            let kinds = ["forward", "answer", "drop", "reset", "pass"];
            return Err(Refused::unknown_name(
                "outcome",
                word,
                kinds.into_iter().chain(names),
            ));
        }
        bits |= found;
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Wanted<'_> = Wanted {
        of: None,
        client: None,
        port: None,
        protocol: None,
        outcomes: &[],
        all: false,
        snap_in: 0,
        snap_out: 0,
    };

    fn of(wanted: &Wanted<'_>) -> Result<TraceFilter> {
        filter(&State::default(), wanted)
    }

    #[test]
    fn without_a_wish_every_packet_of_a_service_is_wanted() {
        let filter = of(&NOTHING).expect("a filter");
        let served = TraceFilter {
            flags: filter_flags::SERVED,
            ..TraceFilter::ALL
        };
        assert_eq!(filter, served);
        let all = of(&Wanted {
            all: true,
            ..NOTHING
        });
        assert_eq!(all, Ok(TraceFilter::ALL));
    }

    #[test]
    fn outcomes_go_by_name_and_by_kind() {
        let bit = |outcome: Outcome| 1_u64 << outcome as u32;
        let bits = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            outcomes(&words)
        };
        assert_eq!(bits(&["drop_ttl"]), Ok(bit(Outcome::DropTtl)));
        let dropped = bits(&["drop"]).expect("a kind");
        for outcome in Outcome::ALL {
            assert_eq!(
                dropped & bit(*outcome) != 0,
                outcome.name().starts_with("drop_"),
                "{outcome:?}"
            );
        }
        let both = bits(&["reset", "answer_echo"]);
        assert_eq!(
            both,
            Ok(bit(Outcome::ResetDeadline) | bit(Outcome::ResetDead) | bit(Outcome::AnswerEcho))
        );
        let refused = bits(&["drop_tll"]).expect_err("no such outcome");
        assert_eq!(refused.hint.as_deref(), Some("did you mean drop_ttl?"));
        // A part of a word is no kind.
        assert!(bits(&["dro"]).is_err() && bits(&["drop_no"]).is_err());
    }

    #[test]
    fn prefixes_ports_and_protocols() {
        let prefix = |text: &str| {
            let (address, length) = text.split_once('/').expect("a prefix");
            let address = address.parse().expect("an address");
            Prefix::new(address, length.parse().expect("a number")).expect("a prefix")
        };
        let filter = of(&Wanted {
            client: Some(prefix("192.0.2.0/24")),
            port: Some(443),
            protocol: Some("icmp"),
            ..NOTHING
        })
        .expect("a filter");
        assert_eq!(filter.prefix, Addr::from_v4([192, 0, 2, 0]));
        assert_eq!(filter.mask, Addr::prefix_mask(120));
        assert_eq!((filter.port, filter.protocol), (443_u16.to_be(), 1));
        let v6 = of(&Wanted {
            client: Some(prefix("::/0")),
            ..NOTHING
        });
        let flags = v6.expect("a filter").flags;
        assert_eq!(flags, filter_flags::PREFIX_V6 | filter_flags::SERVED);
        let sctp = of(&Wanted {
            protocol: Some("sctp"),
            ..NOTHING
        });
        assert_eq!(sctp.expect_err("unknown").error, "no protocol \"sctp\"");
    }

    #[test]
    fn frames_are_bounded() {
        let filter = of(&Wanted {
            snap_in: u32::MAX,
            snap_out: 96,
            ..NOTHING
        })
        .expect("a filter");
        assert_eq!((filter.snap_came, filter.snap_left), (FRAME_MAX as u32, 96));
    }

    #[test]
    fn services_must_exist() {
        for of in ["web", "web/b1"] {
            let refused = super::filter(
                &State::default(),
                &Wanted {
                    of: Some(of),
                    ..NOTHING
                },
            );
            assert_eq!(refused.expect_err("unknown").error, "no service \"web\"");
        }
    }
}
