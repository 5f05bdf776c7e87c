//! What is accepted, and what it means.

use std::{path::Path, time::Duration};

use super::check;
use crate::model::spec::{
    Affinity, BackendSpec, Capacity, Decap, DrainSigns, Forward, HeaderSign, HealthSpec,
    OnDeadline, OnDeath, OutOfOrder, ProbeKind, ProbeSpec, Protocol, ServiceSpec, Tracking,
    XdpMode,
};

/// The service `web` of a file that has these lines in its section.
#[track_caller]
fn web(lines: &str) -> ServiceSpec {
    let text =
        format!("interfaces = [\"eth0\"]\n[service.web]\nlisten = \"203.0.113.10:443\"\n{lines}");
    let mut spec = check(&text).unwrap_or_else(|error| panic!("{error}"));
    spec.services.remove("web").expect("the only service")
}

const POOL: &str = "pool.blue.backends = { b1 = \"10.0.0.11:8443\" }\n";

/// What an HTTP check listens for unless told otherwise.
fn signs() -> DrainSigns {
    DrainSigns {
        header: Some(HeaderSign {
            name: "ebb-state".to_owned(),
            value: Some("drain".to_owned()),
        }),
        body: None,
    }
}

fn tcp() -> ProbeSpec {
    let second = Duration::from_secs(1);
    ProbeSpec {
        kind: ProbeKind::Tcp,
        port: None,
        period: second,
        timeout: second,
        rise: 2,
        fall: 3,
    }
}

#[test]
fn a_node_without_services_and_its_defaults() {
    let spec = check("interfaces = [\"eth0\"]").expect("valid");
    assert!(spec.services.is_empty());
    assert_eq!(spec.node.interfaces, ["eth0"]);
    assert_eq!(spec.node.xdp_mode, XdpMode::Auto);
    assert_eq!(spec.node.hash_seed_file, Path::new("/etc/ebb/seed"));
    assert_eq!(spec.node.capacity, Capacity::default());
}

#[test]
fn capacity_keeps_the_defaults_of_what_it_leaves_out() {
    let spec = check("interfaces = [\"eth0\"]\ncapacity = { flows = 1_024, slots = 0x10000 }")
        .expect("valid");
    assert_eq!(
        spec.node.capacity,
        Capacity {
            flows: 1024,
            slots: 65536,
            ..Capacity::default()
        }
    );
}

#[test]
fn defaults_of_a_service() {
    let web = web(POOL);
    assert_eq!(web.name, "web");
    assert_eq!(
        (web.listen.address.to_string().as_str(), web.listen.port),
        ("203.0.113.10", 443)
    );
    assert_eq!(web.listen.protocol, Protocol::Tcp);
    assert_eq!(
        (web.forward, web.affinity, web.tracking),
        (Forward::Nat, Affinity::Flow, Tracking::Moved)
    );
    assert_eq!(
        (web.min_available, web.slots, web.active_pool.as_str()),
        (1, None, "blue")
    );
    assert_eq!(web.idle_timeout, Duration::from_secs(350));
    assert_eq!(web.drain.timeout, Duration::from_secs(300));
    assert_eq!(
        (web.drain.on_deadline, web.drain.spread),
        (OnDeadline::Reset, Duration::from_secs(30))
    );
    assert_eq!(
        web.health,
        HealthSpec {
            startup: None,
            readiness: Some(tcp()),
            liveness: Some(ProbeSpec {
                period: Duration::from_millis(500),
                timeout: Duration::from_millis(250),
                ..tcp()
            }),
            agent: None,
        }
    );
    assert_eq!(web.on_death, OnDeath::Reset);
    for (text, expected) in [
        ("leave", OnDeath::Leave),
        ("resteer", OnDeath::Resteer),
        ("reset", OnDeath::Reset),
    ] {
        let web = self::web(&format!("{POOL}on_death = \"{text}\""));
        assert_eq!(web.on_death, expected);
    }
    assert_eq!(web.pools["blue"].version, None);
    let address = "10.0.0.11:8443".parse().expect("an address");
    assert_eq!(
        web.pools["blue"].backends["b1"],
        BackendSpec {
            address,
            weight: 1,
            server_id: None
        }
    );
}

#[test]
fn drain_keeps_the_defaults_of_what_it_leaves_out() {
    let web = web(&format!(
        "{POOL}drain = {{ on_deadline = \"leave\", spread = \"0s\" }}"
    ));
    assert_eq!(web.drain.timeout, Duration::from_secs(300));
    assert_eq!(
        (web.drain.on_deadline, web.drain.spread),
        (OnDeadline::Leave, Duration::ZERO)
    );
}

#[test]
fn health_makes_exactly_the_checks_it_lists() {
    let none = HealthSpec {
        startup: None,
        readiness: None,
        liveness: None,
        agent: None,
    };
    assert_eq!(web(&format!("{POOL}health = \"none\"")).health, none);

    let only_liveness = web(&format!("{POOL}health = {{ liveness = {{ tcp = true }} }}")).health;
    assert_eq!(
        only_liveness,
        HealthSpec {
            liveness: Some(tcp()),
            ..none
        }
    );

    let health = web(&format!(
        "{POOL}[service.web.health]\nstartup = {{ http = \"/up?a=1\", host = \"a.example:80\", period = \"5s\", fail = 30 }}\n\
         readiness = {{ tcp = true, port = 81, period = \"200ms\", rise = 4, fall = 5 }}\n"
    ))
    .health;
    let kind = ProbeKind::Http {
        path: "/up?a=1".to_owned(),
        host: Some("a.example:80".to_owned()),
        drain: signs(),
    };
    let period = Duration::from_secs(5);
    assert_eq!(
        health.startup,
        Some(ProbeSpec {
            kind,
            period,
            rise: 1,
            fall: 30,
            ..tcp()
        })
    );
    let period = Duration::from_millis(200);
    let readiness = ProbeSpec {
        port: Some(81),
        period,
        timeout: period,
        rise: 4,
        fall: 5,
        ..tcp()
    };
    assert_eq!(
        health.readiness,
        Some(readiness),
        "a timeout is never longer than its period"
    );
    assert_eq!(health.liveness, None);
}

#[test]
fn l2_backends_have_the_port_of_their_service() {
    let web = web(
        "forward = \"l2\"\npool.p.backends = { a = \"10.0.0.1\", b = { address = \"10.0.0.2:443\", weight = 0 } }",
    );
    assert_eq!(web.pools["p"].backends["a"].address.port(), 443);
    assert_eq!(web.pools["p"].backends["b"].address.port(), 443);
    assert_eq!(web.pools["p"].backends["b"].weight, 0);
}

#[test]
fn one_l2_backend_may_serve_several_services() {
    let text = |forward: &str| {
        format!(
            "interfaces = [\"e\"]\n[service.a]\nlisten = \"203.0.113.1:80\"\nforward = \"{forward}\"\n\
             pool.p.backends = {{ x = \"10.0.0.1:80\" }}\n[service.b]\nlisten = \"203.0.113.2:80\"\nforward = \"l2\"\n\
             pool.p.backends = {{ x = \"10.0.0.1\" }}\n"
        )
    };
    assert!(check(&text("l2")).is_ok());
    assert!(
        check(&text("nat")).is_ok(),
        "an l2 answer has the service's own address"
    );
}

#[test]
fn ipv6_services_and_backends() {
    let spec = check(
        "interfaces = [\"eth0\"]\n[service.web]\nlisten = \"[2001:db8::10]:443/tcp\"\n\
         pool.p.backends = { a = \"[2001:db8:1::11]:8443\", b = { address = \"[fd00::12]:8443\" } }\n\
         [service.mail]\nlisten = \"[2001:db8::25]:25\"\nforward = \"l2\"\n\
         pool.p.backends = { a = \"2001:db8:1::11\", b = \"[2001:db8:1::12]\", c = \"[2001:db8:1::13]:25\" }",
    )
    .unwrap_or_else(|error| panic!("{error}"));
    let (web, mail) = (&spec.services["web"], &spec.services["mail"]);
    assert_eq!(
        (web.listen.address.to_string().as_str(), web.listen.port),
        ("2001:db8::10", 443)
    );
    let addresses = |service: &ServiceSpec| -> Vec<String> {
        let backends = service.pools["p"].backends.values();
        backends
            .map(|backend| backend.address.to_string())
            .collect()
    };
    assert_eq!(addresses(web), ["[2001:db8:1::11]:8443", "[fd00::12]:8443"]);
    assert_eq!(
        addresses(mail),
        [
            "[2001:db8:1::11]:25",
            "[2001:db8:1::12]:25",
            "[2001:db8:1::13]:25"
        ]
    );
}

#[test]
fn an_empty_pool_where_nothing_needs_it() {
    web("active_pool = \"a\"\npool.a.backends = { x = \"10.0.0.1:80\" }\npool.b.backends = {}");
    web("min_available = 0\npool.a.backends = {}");
}

#[test]
fn as_many_backends_as_there_is_room_for() {
    let backends: String = (0..16_384)
        .map(|n| format!("b{n} = \"10.1.{}.{}:80\"\n", n / 256, n % 256))
        .collect();
    let web = web(&format!("[service.web.pool.p.backends]\n{backends}"));
    assert_eq!(web.pools["p"].backends.len(), 16_384);
}

#[test]
fn a_specification_goes_through_json_and_back() {
    let spec = check(include_str!("../../../../docs/ebb.example.toml")).expect("valid");
    let json = serde_json::to_string(&spec).expect("plain data");
    assert_eq!(
        serde_json::from_str::<crate::model::spec::Spec>(&json).expect("the same shape"),
        spec
    );
}

#[test]
fn echo_requests_are_answered_unless_the_node_or_the_service_says_no() {
    let two = |node: &str, service: &str| {
        let spec = check(&format!(
            "interfaces = [\"eth0\"]\n{node}\n\
             [service.a]\n{service}\nlisten = \"203.0.113.10:80\"\npool.p.backends = {{ x = \"10.0.0.1:80\" }}\n\
             [service.b]\nlisten = \"203.0.113.10:81\"\npool.p.backends = {{ x = \"10.0.0.1:81\" }}\n"
        ))
        .unwrap_or_else(|error| panic!("{error}"));
        (spec.services["a"].icmp_echo, spec.services["b"].icmp_echo)
    };
    assert_eq!(two("", ""), (true, true));
    assert_eq!(two("icmp_echo = false", ""), (false, false));
    assert_eq!(two("icmp_echo = false", "icmp_echo = true"), (true, false));
    assert_eq!(two("", "icmp_echo = false"), (false, true));
}

#[test]
fn fragments_out_of_order_are_passed_or_dropped() {
    let what = |line: &str| {
        let spec = check(&format!("interfaces = [\"eth0\"]\n{line}\n"));
        spec.unwrap_or_else(|error| panic!("{error}"))
            .fragments_out_of_order
    };
    assert_eq!(what(""), OutOfOrder::Pass);
    assert_eq!(what("fragments_out_of_order = \"pass\""), OutOfOrder::Pass);
    assert_eq!(what("fragments_out_of_order = \"drop\""), OutOfOrder::Drop);
}

#[test]
fn tunnels_mix_families_and_take_the_nodes_source() {
    let spec = check(
        "interfaces = [\"eth0\"]\ntunnel_source = [\"10.0.0.5\", \"fd00::5\"]\n\
         [service.a]\nlisten = \"[2001:db8::10]:443\"\nforward = \"ipip\"\npool.p.backends = { x = \"10.0.0.1\", y = \"[fd00::1]:443\" }\n\
         [service.b]\nlisten = \"203.0.113.1:80\"\nforward = \"gue\"\ntunnel_source = \"10.0.0.6\"\ntunnel_port = 5555\ndecap = \"ebb\"\npool.p.backends = { x = \"fd00::1\" }\n\
         [service.c]\nlisten = \"203.0.113.1:81\"\npool.p.backends = { x = \"10.0.0.9:80\" }",
    )
    .unwrap_or_else(|error| panic!("{error}"));
    let tunnel = |name: &str| spec.services[name].tunnel;
    let source = |name: &str, backend: &str| {
        let source = tunnel(name).source_for(backend.parse().unwrap());
        source.map(|address| address.to_string())
    };
    assert_eq!(source("a", "10.0.0.1").as_deref(), Some("10.0.0.5"));
    assert_eq!(source("a", "fd00::1").as_deref(), Some("fd00::5"));
    assert_eq!(source("b", "10.0.0.1").as_deref(), Some("10.0.0.6"));
    assert_eq!(source("b", "fd00::1").as_deref(), Some("fd00::5"));
    assert_eq!((tunnel("a").port, tunnel("b").port), (6080, 5555));
    assert_eq!(
        (tunnel("a").decap, tunnel("b").decap),
        (Decap::Any, Decap::Ebb)
    );
    assert_eq!(source("c", "10.0.0.1"), None);
    let b = &spec.services["b"].pools["p"].backends["x"].address;
    assert_eq!(b.to_string(), "[fd00::1]:80");
}

#[test]
fn udp_services() {
    let spec = check(
        "interfaces = [\"eth0\"]\n[service.dns]\nlisten = \"203.0.113.53:53/udp\"\nhealth.readiness = { tcp = true }\n\
         pool.p.backends = { a = \"10.0.0.1:5353\" }\n\
         [service.dns-tcp]\nlisten = \"203.0.113.53:53\"\npool.p.backends = { a = \"10.0.0.1:5353\" }\n",
    )
    .unwrap_or_else(|error| panic!("{error}"));
    let dns = &spec.services["dns"];
    assert_eq!(dns.listen.to_string(), "203.0.113.53:53/udp");
    assert_eq!(dns.tracking, Tracking::Full);
    assert_eq!(dns.idle_timeout, Duration::from_secs(30));
    assert_eq!(
        spec.services["dns-tcp"].idle_timeout,
        Duration::from_secs(350)
    );
}

#[test]
fn several_ports() {
    let service = |name: &str, listen: &str, backend: &str| {
        format!(
            "[service.{name}]\nlisten = \"{listen}\"\nhealth = \"none\"\npool.p.backends = {{ a = \"{backend}\" }}\n"
        )
    };
    let text = String::from("interfaces = [\"eth0\"]\n")
        + &service("exact", "203.0.113.10:8080", "10.0.0.1:80")
        + &service("range", "203.0.113.10:8000-8999", "10.0.0.2")
        + &service("next", "203.0.113.10:9000-9001/tcp", "10.0.0.2")
        + &service("every", "203.0.113.10:*", "10.0.0.3")
        + &service("every-udp", "203.0.113.10:*/udp", "10.0.0.3")
        + &service("six", "[2001:db8::10]:*/udp", "fd00::3");
    let spec = check(&text).unwrap_or_else(|error| panic!("{error}"));
    for (name, listen, backend) in [
        ("range", "203.0.113.10:8000-8999/tcp", "10.0.0.2:0"),
        ("every", "203.0.113.10:*/tcp", "10.0.0.3:0"),
        ("six", "[2001:db8::10]:*/udp", "[fd00::3]:0"),
    ] {
        let service = &spec.services[name];
        assert_eq!(service.listen.to_string(), listen);
        let address = service.pools["p"].backends["a"].address;
        assert_eq!(address.to_string(), backend);
    }
}

#[test]
fn affinity_by_a_prefix() {
    let prefix = |listen: &str, affinity: &str, backend: &str| {
        let text = format!(
            "interfaces = [\"eth0\"]\n[service.web]\nlisten = \"{listen}\"\naffinity = {affinity}\n\
             pool.p.backends = {{ a = \"{backend}\" }}\n"
        );
        let spec = check(&text).unwrap_or_else(|error| panic!("{error}"));
        spec.services["web"].affinity
    };
    let (v4, v6) = ("203.0.113.10:80", "[2001:db8::10]:80");
    let (b4, b6) = ("10.0.0.1:80", "[fd00::1]:80");
    for (listen, affinity, backend, bits) in [
        (v4, "\"client\"", b4, 32),
        (v4, "{ client = 24 }", b4, 24),
        (v6, "\"client\"", b6, 128),
        (v6, "{ client = 56 }", b6, 56),
    ] {
        let wanted = Affinity::Client { prefix: bits };
        assert_eq!(prefix(listen, affinity, backend), wanted);
    }
}

#[test]
fn full_nat_and_its_addresses() {
    let spec = check(
        "interfaces = [\"eth0\"]\nnat_addresses = [\"10.0.0.5\", \"10.0.0.6\", \"fd00::5\"]\nnat_ports = \"2000-2999\"\n\
         [service.a]\nlisten = \"203.0.113.1:80\"\nforward = \"full-nat\"\nclient_address_option = true\npool.p.backends = { x = \"10.0.0.9:80\" }\n\
         [service.b]\nlisten = \"203.0.113.2:80\"\nforward = \"full-nat\"\nclient_address_option = 200\npool.p.backends = { x = \"10.0.0.9:80\" }\n\
         [service.c]\nlisten = \"203.0.113.3:80\"\nforward = \"full-nat\"\npool.p.backends = { x = \"10.0.0.9:80\" }\n",
    )
    .expect("they may share a backend");
    assert_eq!(
        (spec.nat.addresses.len(), spec.nat.ports.to_string()),
        (3, "2000-2999".into())
    );
    let options = spec.services.values().map(|service| service.client_option);
    assert_eq!(options.collect::<Vec<_>>(), [254, 200, 0]);
}

/// What the answers of a readiness check with these keys ask for a drain by.
#[track_caller]
fn signs_of(keys: &str) -> DrainSigns {
    let lines = format!("{POOL}health.readiness = {{ http = \"/up\"{keys} }}\n");
    match web(&lines).health.readiness.expect("a check").kind {
        ProbeKind::Http { drain, .. } => drain,
        other => panic!("{other:?}"),
    }
}

#[test]
fn answers_that_ask_for_a_drain() {
    assert_eq!(signs_of(""), signs());
    let none = signs_of(", drain_header = \"none\"");
    assert_eq!(none, DrainSigns::default());
    let any = signs_of(", drain_header = \"X-Envoy-Immediate-Health-Check-Fail\"");
    let header = any.header.expect("a header");
    assert_eq!((header.name.len(), header.value), (35, None));
    let both = signs_of(", drain_header = \"X-State:going down\", drain_body = \"bye\"");
    let header = both.header.expect("a header");
    let parts = (&*header.name, header.value.as_deref(), both.body.as_deref());
    assert_eq!(parts, ("x-state", Some("going down"), Some("bye")));
}

#[test]
fn an_agent_has_a_port() {
    let health = web(&format!(
        "{POOL}health = {{ agent = {{ port = 8088, period = \"500ms\", send = \"b1\\n\" }} }}\n"
    ))
    .health;
    let agent = health.agent.expect("an agent");
    let send = "b1\n".to_owned();
    assert_eq!(agent.kind, ProbeKind::Agent { send });
    let half = Duration::from_millis(500);
    assert_eq!(
        (agent.port, agent.period, agent.timeout),
        (Some(8088), half, half)
    );
    assert_eq!(health.readiness, None, "the table lists it alone");
}
