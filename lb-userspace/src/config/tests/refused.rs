//! What is refused, where the error points, and what it says.

use super::check;

/// A problem as `line:column`, and words of its message and hint.
type Expected<'a> = (&'a str, &'a [&'a str]);

/// Checks that a text has exactly these problems, in this order.
#[track_caller]
fn refuse(text: &str, expected: &[Expected<'_>]) {
    let error = check(text).expect_err(text);
    let places: Vec<String> = error
        .problems
        .iter()
        .map(|p| format!("{}:{}", p.line, p.column))
        .collect();
    let wanted: Vec<&str> = expected.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, wanted, "\n{text}\n---\n{error}");
    for (problem, (_, words)) in error.problems.iter().zip(expected) {
        let hint = problem.hint.as_deref().expect("every problem has a hint");
        let said = format!("{} -> {hint}", problem.message);
        assert!(!said.contains('\n'), "one line: {said}");
        for word in *words {
            assert!(said.contains(word), "no {word:?} in {said:?}, of\n{text}");
        }
    }
}

/// A valid file around lines of `[service.web]`, which are lines 3 and following. The lines may give their own
/// `listen` and pools.
fn service(lines: &str) -> String {
    let mut text = format!("interfaces = [\"eth0\"]\n[service.web]\n{lines}\n");
    if !lines.contains("listen") {
        text += "listen = \"203.0.113.10:443\"\n";
    }
    if !lines.contains("pool.") {
        text += "pool.blue.backends = { b1 = \"10.0.0.11:8443\" }\n";
    }
    text
}

/// Rows of lines of a service with one problem each.
fn refuse_in_service(rows: &[(&str, &str, &[&str])]) {
    assert!(check(&service("")).is_ok());
    for (lines, place, words) in rows {
        refuse(&service(lines), &[(place, words)]);
    }
}

#[test]
#[rustfmt::skip] // A row a line.
fn keys_of_the_node() {
    let long = format!("interfaces = [\"{}\"]", "x".repeat(16));
    let rows: &[(&str, &str, &[&str])] = &[
        ("", "1:1", &["lacks `interfaces`", "eth0"]),
        ("interfaces = []", "1:14", &["is empty", "at least one"]),
        ("interfaces = \"eth0\"", "1:14", &["must be a list, not a text", "[\"eth0\"]"]),
        ("interfaces = [\"eth0\", 1]", "1:23", &["list of texts", "not an integer"]),
        ("interfaces = [\"eth0\", \"eth1\", \"eth0\"]", "1:31", &["`eth0` is named twice"]),
        (&long, "1:15", &["longer than 15 bytes"]),
        ("interfaces = [\"\"]", "1:15", &["is empty"]),
        ("interfaces = [\"a b\"]", "1:15", &["contains ` `"]),
        ("interfaces = [\"a/b\"]", "1:15", &["contains `/`"]),
        ("interfaces = [\"..\"]", "1:15", &["is no name"]),
        ("interface = [\"eth0\"]\ninterfaces = [\"eth0\"]", "1:1", &["unknown key `interface`", "did you mean `interfaces`?"]),
        ("interfaces = [\"eth0\"]\ncolour = 1", "2:1", &["unknown key `colour` in the file", "known keys are `interfaces`"]),
        ("interfaces = [\"eth0\"]\nxdp_mode = \"nativ\"", "2:12", &["cannot be `nativ`", "did you mean `native`?"]),
        ("interfaces = [\"eth0\"]\nxdp_mode = \"offload\"", "2:12", &["choices are `auto`, `native`, `generic`"]),
        ("interfaces = [\"eth0\"]\nxdp_mode = true", "2:12", &["must be a text in quotes", "xdp_mode = \"auto\""]),
        ("interfaces = [\"eth0\"]\nhash_seed_file = \"seed\"", "2:18", &["absolute path", "/etc/ebb/seed"]),
        ("interfaces = [\"eth0\"]\nhash_seed_file = \"/etc/ebb/\"", "2:18", &["absolute path of a file"]),
        ("interfaces = [\"eth0\"]\nhash_seed_file = \"\"", "2:18", &["absolute path"]),
        ("interfaces = [\"eth0\"]\n[share]\npeers = [\"10.0.0.2:9651\"]", "2:2", &["lacks `listen`", "listen = \"192.0.2.1:9651\""]),
        ("interfaces = [\"eth0\"]\n[share]\nlisten = \"10.0.0.1\"\npeers = [\"10.0.0.2:9651\"]", "3:10", &["is not the address and port of one node"]),
        ("interfaces = [\"eth0\"]\n[share]\nlisten = \"10.0.0.1:9651\"\npeers = []", "4:9", &["names 0 nodes", "name 1 to 16"]),
        ("interfaces = [\"eth0\"]\n[share]\nlisten = \"10.0.0.1:9651\"\npeers = [\"10.0.0.1:9651\"]", "4:10", &["this node's own address"]),
        ("interfaces = [\"eth0\"]\n[share]\nlisten = \"10.0.0.1:9651\"\npeers = [\"10.0.0.2:9651\", \"10.0.0.2:9651\"]", "4:27", &["named twice"]),
        ("interfaces = [\"eth0\"]\n[share]\nlisten = \"10.0.0.1:9651\"\npeers = [\"[fd00::2]:9651\"]", "4:10", &["other family", "one family"]),
        ("interfaces = [\"eth0\"]\nicmp_echo = \"yes\"", "2:13", &["must be true or false", "icmp_echo = true"]),
        ("interfaces = [\"eth0\"]\nfragments_out_of_order = \"dorp\"", "2:26", &["cannot be `dorp`", "did you mean `drop`?"]),
        ("interfaces = [\"eth0\"]\nservice = 1", "2:11", &["`service` must be a table", "[service.NAME]"]),
        ("interfaces = [\"eth0\"]\n[[service]]", "2:3", &["must be a table, not a list"]),
        ("interfaces = [\"eth0\"]\n[services.web]", "2:2", &["did you mean `service`?"]),
    ];
    for (text, place, words) in rows {
        refuse(text, &[(place, words)]);
    }
}

#[test]
#[rustfmt::skip] // A row a line.
fn capacity() {
    let rows: &[(&str, &str, &[&str])] = &[
        ("flows = 1000000", "3:9", &["not a power of two", "use 524288 or 1048576"]),
        ("handshakes = 65537", "3:14", &["not a power of two", "65536 or 131072"]),
        ("flows = 512", "3:9", &["out of range", "from 1024 to 67108864"]),
        ("flows = 134217728", "3:9", &["out of range"]),
        ("services = 0", "3:12", &["out of range: `0`", "from 1 to 65536"]),
        ("backends = -1", "3:12", &["out of range: `-1`"]),
        ("slots = 99999999999999999999", "3:9", &["out of range"]),
        ("slots = 1.5", "3:9", &["must be an integer, not a number with a fraction"]),
        ("backend = 5", "3:1", &["unknown key `backend` in [capacity]", "did you mean `backends`?"]),
    ];
    for (line, place, words) in rows {
        refuse(
            &format!("interfaces = [\"eth0\"]\n[capacity]\n{line}\n"),
            &[(place, words)],
        );
    }
    refuse(
        "interfaces = [\"eth0\"]\ncapacity = { services = 1, backends = 2, slots = 2019 }\n\
         [service.b]\nlisten = \"203.0.113.1:80\"\nslots = 1013\npool.p.backends = { b1 = \"10.0.0.1:80\", b2 = \"10.0.0.2:80\" }\n\
         [service.a]\nlisten = \"203.0.113.2:80\"\npool.p.backends = { a1 = \"10.0.0.3:80\" }\n",
        &[
            ("5:9", &["1013 is more than half of the node's 2019 slots", "capacity.slots"]),
            ("7:10", &["2 services are more than the 1", "set capacity.services to 2"]),
            ("9:21", &["3 backends are more than the 2", "set capacity.backends to 3"]),
        ],
    );
}

#[test]
#[rustfmt::skip] // A row a line.
fn listen() {
    refuse(
        "interfaces = [\"e\"]\n[service.web]\npool.p.backends = { a = \"10.0.0.1:80\" }",
        &[("2:10", &["[service.web] lacks `listen`"])],
    );
    refuse_in_service(&[
        ("listen = 443", "3:10", &["must be a text in quotes"]),
        ("listen = \"203.0.113.10:443/udp\"", "2:10", &["a UDP service lacks `health`", "health = \"none\""]),
        ("listen = \"203.0.113.10:443/quic\"", "3:10", &["`quic` for a protocol", "quic = {}"]),
        ("listen = \"203.0.113.10:443/tpc\"", "3:10", &["`tpc` for a protocol", "/tcp"]),
        ("listen = \"203.0.113.10:8100-8000\"", "3:10", &["not the lesser", "FIRST-LAST"]),
        ("listen = \"203.0.113.10:80,443\"", "3:10", &["a list of ports", "not supported yet"]),
        ("listen = \"2001:db8::10\"", "3:10", &["lacks a port", "write [2001:db8::10]:443"]),
        ("listen = \"2001:db8::10:443\"", "3:10", &["lacks a port", "[2001:db8::10:443]:443"]),
        ("listen = \"[2001:db8::10]\"", "3:10", &["lacks a port", "write [2001:db8::10]:443"]),
        ("listen = \"[::ffff:203.0.113.10]:443\"", "3:10", &["IPv4 address written as IPv6", "write 203.0.113.10:443"]),
        ("listen = \"[203.0.113.10]:443\"", "3:10", &["no IPv6 address", "[2001:db8::10]:443"]),
        ("listen = \"[fe80::1]:443\"", "3:10", &["link-local"]),
        ("listen = \"[fe80::1%eth0]:443\"", "3:10", &["no IPv6 address"]),
        ("listen = \"[::]:443\"", "3:10", &["unspecified"]),
        ("listen = \"203.0.113.10\"", "3:10", &["lacks a port", "203.0.113.10:443"]),
        ("listen = \"203.0.113.10:0\"", "3:10", &["`0` for a port", "1 to 65535"]),
        ("listen = \"203.0.113.10:70000\"", "3:10", &["`70000` for a port"]),
        ("listen = \"www.example.com:443\"", "3:10", &["does not begin with an IP address", "not resolved"]),
        ("listen = \"203.0.113.256:443\"", "3:10", &["does not begin with an IP address", "0 to 255"]),
        ("listen = \":443\"", "3:10", &["names no address"]),
        ("listen = \"127.0.0.1:443\"", "3:10", &["loopback"]),
        ("listen = \"0.0.0.0:443\"", "3:10", &["unspecified"]),
        ("listen = \"0.1.2.3:443\"", "3:10", &["this network"]),
        ("listen = \"224.0.0.1:443\"", "3:10", &["multicast"]),
        ("listen = \"255.255.255.255:443\"", "3:10", &["broadcast"]),
        ("listen = \"[::1]:443\"", "3:10", &["loopback"]),
        ("listen = \"[ff02::1]:443\"", "3:10", &["multicast"]),
    ]);
}

#[test]
#[rustfmt::skip] // A row a line.
fn words_and_numbers_of_a_service() {
    refuse_in_service(&[
        ("forward = \"full-nat\"\nclient_address_option = 34", "4:25", &["out of range", "from 35 to 254"]),
        ("forward = \"full-nat\"\nclient_address_option = \"yes\"", "4:25", &["must be true or false"]),
        ("client_address_option = true", "3:1", &["no meaning with `nat`", "full-nat"]),
        ("forward = \"full-nat\"\npool.blue.backends = { a = \"10.0.0.1\" }", "4:28", &["lacks a port, which `full-nat` needs"]),
        ("forward = \"full-nat\"\npool.blue.backends = { a = \"[fd00::1]:80\" }", "4:28", &["`full-nat` cannot change the family"]),
        ("tunnel_port = 6080", "3:1", &["`tunnel_port` has no meaning with `nat`", "forward = \"gue\""]),
        ("forward = \"ipip\"\ntunnel_port = 6080\npool.blue.backends = { a = \"10.0.0.1\" }", "4:1", &["no meaning with `ipip`"]),
        ("forward = \"l2\"\ntunnel_source = \"10.0.0.1\"\npool.blue.backends = { a = \"10.0.0.1\" }", "4:1", &["no meaning with `l2`", "\"ipip\" or \"gue\""]),
        ("decap = \"ebb\"", "3:1", &["`decap` has no meaning with `nat`", "forward = \"ipip\" or \"gue\""]),
        ("forward = \"ipip\"\ndecap = \"ebp\"\npool.blue.backends = { a = \"10.0.0.1\" }", "4:9", &["ebb"]),
        ("forward = \"gue\"\ntunnel_port = 0\npool.blue.backends = { a = \"10.0.0.1\" }", "4:15", &["out of range"]),
        ("forward = \"gue\"\ntunnel_port = 65536\npool.blue.backends = { a = \"10.0.0.1\" }", "4:15", &["out of range"]),
        ("forward = \"gue\"\ntunnel_source = \"10.0.0.1:80\"\npool.blue.backends = { a = \"10.0.0.1\" }", "4:17", &["is no address"]),
        ("forward = \"gue\"\ntunnel_source = \"127.0.0.1\"\npool.blue.backends = { a = \"10.0.0.1\" }", "4:17", &["loopback"]),
        ("forward = \"gue\"\ntunnel_source = [\"10.0.0.1\", \"10.0.0.2\"]\npool.blue.backends = { a = \"10.0.0.1\" }", "4:30", &["second IPv4 address", "one of each family"]),
        ("forward = \"ipip\"\npool.blue.backends = { a = \"10.0.0.1:8443\" }", "4:28", &["port 8443", "`ipip` cannot rewrite"]),
        ("forward = \"fullnat\"", "3:11", &["did you mean `full-nat`?"]),
        ("forward = \"L2\"", "3:11", &["cannot be `L2`", "did you mean `l2`?"]),
        ("affinity = { client = 33 }", "3:23", &["out of range", "from 1 to 32"]),
        ("affinity = {}", "3:1", &["lacks `client`", "client = 24"]),
        ("affinity = \"clients\"", "3:12", &["did you mean `client`?"]),
        ("tracking = \"none\"", "3:12", &["choices are `moved`, `full`"]),
        ("min_available = 2", "3:17", &["`min_available` is 2", "`blue` has 1 backend", "min_available = 1"]),
        ("min_available = -1", "3:17", &["out of range"]),
        ("icmp_echo = 1", "3:13", &["must be true or false"]),
        ("slots = 65536", "3:9", &["not a prime", "65521 or 65537"]),
        ("slots = 97", "3:9", &["out of range", "from 101 to 1048573"]),
        ("slots = 1048583", "3:9", &["out of range"]),
        ("lisen = 1", "3:1", &["unknown key `lisen` in [service.web]", "did you mean `listen`?"]),
        ("  xdp_mode = \"auto\"", "3:3", &["unknown key `xdp_mode`", "before the first [section]"]),
        ("slow_start = \"30s\"", "3:1", &["`slow_start` is not supported yet"]),
        ("active_pool = \"bleu\"", "3:15", &["`bleu` is no pool", "did you mean `blue`?"]),
        ("active_pool = 1", "3:15", &["must be a text"]),
    ]);
}

#[test]
#[rustfmt::skip] // A row a line.
fn durations() {
    refuse_in_service(&[
        ("idle_timeout = 350", "3:16", &["must be a text", "\"30s\""]),
        ("idle_timeout = \"350\"", "3:16", &["not a duration", "30s"]),
        ("idle_timeout = \"\"", "3:16", &["not a duration"]),
        ("idle_timeout = \"-1s\"", "3:16", &["not a duration"]),
        ("idle_timeout = \"0s\"", "3:16", &["too short", "from 1s to 7days"]),
        ("idle_timeout = \"100years\"", "3:16", &["too long", "from 1s to 7days"]),
        ("idle_timeout = \"1s 1500us\"", "3:16", &["whole number of milliseconds"]),
        ("idle_timeout = \"99999999999999999999s\"", "3:16", &["not a duration"]),
        ("drain = { timeout = \"0s\" }", "3:21", &["too short", "from 100ms to 7days"]),
        ("drain = { timeout = \"8days\" }", "3:21", &["too long"]),
        ("drain = { spread = \"2h\" }", "3:20", &["too long", "from 0s to 1h"]),
        ("on_death = \"drop\"", "3:12", &["cannot be `drop`", "choices are `reset`, `resteer`, `leave`"]),
        ("drain = { on_deadline = \"restart\" }", "3:25", &["cannot be `restart`", "choices are `reset`, `leave`, `drop`"]),
        ("drain = { on_dead = \"reset\" }", "3:11", &["unknown key `on_dead` in [service.web.drain]"]),
        ("drain = \"300s\"", "3:9", &["must be a table"]),
    ]);
}

#[test]
#[rustfmt::skip] // A row a line.
fn health() {
    refuse_in_service(&[
        ("health = \"off\"", "3:10", &["cannot be `off`", "`none`"]),
        ("health = true", "3:10", &["must be a table"]),
        ("health = {}", "3:1", &["lists no check", "health = \"none\""]),
        ("health = { ready = { tcp = true } }", "3:12", &["unknown key `ready` in [service.web.health]"]),
        ("health = { readyness = { tcp = true } }", "3:12", &["did you mean `readiness`?"]),
        ("health = { readiness = {} }", "3:12", &["neither `tcp` nor `http`"]),
        ("health = { readiness = { tcp = true, http = \"/\" } }", "3:12", &["both `tcp` and `http`"]),
        ("health = { readiness = { tcp = false } }", "3:32", &["says nothing"]),
        ("health = { readiness = { tcp = \"yes\" } }", "3:32", &["must be true or false", "tcp = true"]),
        ("health = { readiness = { tcp = true, host = \"a\" } }", "3:38", &["`host` is for HTTP"]),
        ("health = { readiness = { http = \"health\" } }", "3:33", &["does not begin with `/`"]),
        ("health = { readiness = { http = \"/a b\" } }", "3:33", &["contains ` `"]),
        ("health = { readiness = { http = \"/a\\r\\nX: y\" } }", "3:33", &["contains `\\r`"]),
        ("health = { readiness = { http = \"/\", host = \"a b\" } }", "3:45", &["cannot be a host name"]),
        ("health = { readiness = { http = \"/\", host = \"\" } }", "3:45", &["cannot be a host name"]),
        ("health = { readiness = { tcp = true, port = 0 } }", "3:45", &["from 1 to 65535"]),
        ("health = { readiness = { tcp = true, port = 65536 } }", "3:45", &["from 1 to 65535"]),
        ("health = { readiness = { tcp = true, period = \"1ms\" } }", "3:47", &["too short", "from 100ms to 1h"]),
        ("health = { readiness = { tcp = true, timeout = \"2s\" } }", "3:48", &["longer than the period of 1s"]),
        ("health = { readiness = { tcp = true, timeout = \"0s\" } }", "3:48", &["too short", "from 10ms to 1m"]),
        ("health = { readiness = { tcp = true, rise = 0 } }", "3:45", &["from 1 to 1000"]),
        ("health = { readiness = { tcp = true, fall = 0 } }", "3:45", &["from 1 to 1000"]),
        ("health = { readiness = { tcp = true, fall = 3, fail = 3 } }", "3:48", &["another word for `fall`"]),
        ("health = { readiness = { tcp = true, interval = \"1s\" } }", "3:38", &["unknown key `interval` in [service.web.health.readiness]"]),
    ]);
}

#[test]
#[rustfmt::skip] // A row a line.
fn pools_and_backends() {
    refuse(
        "interfaces = [\"e\"]\n[service.web]\nlisten = \"203.0.113.10:443\"\n",
        &[("2:10", &["lacks `pool`", "[service.web.pool.NAME]"])],
    );
    refuse_in_service(&[
        ("pool.blue = {}", "3:6", &["[service.web.pool.blue] lacks `backends`"]),
        ("pool.blue = \"10.0.0.1:80\"", "3:13", &["must be a table", "[service.web.pool.blue]"]),
        ("pool.blue.backends = [\"10.0.0.1:80\"]", "3:22", &["must be a table, not a list"]),
        ("pool.blue.backends = {}", "3:11", &["`min_available` is 1", "no backend", "min_available = 0"]),
        ("pool.blue = { backend = {}, backends = { a = \"10.0.0.1:80\" } }", "3:15", &["did you mean `backends`?"]),
        ("pool.blue = { version = \"\", backends = { a = \"10.0.0.1:80\" } }", "3:25", &["version label"]),
        ("pool.blue = { version = 1, backends = { a = \"10.0.0.1:80\" } }", "3:25", &["must be a text"]),
        ("pool.a.backends = { x = \"10.0.0.1:80\" }\npool.b.backends = { y = \"10.0.0.2:80\" }", "2:10", &["2 pools and no `active_pool`", "active_pool = \"a\""]),
        ("pool.blue.backends = { a = 1 }", "3:28", &["must be a text in quotes or a table", "a = \"10.0.0.11:8443\""]),
        ("pool.blue.backends = { a = { weight = 1 } }", "3:24", &["[service.web.pool.blue.backends.a] lacks `address`"]),
        ("pool.blue.backends = { a = { address = \"10.0.0.1:80\", weight = 1001 } }", "3:64", &["out of range", "from 0 to 1000"]),
        ("pool.blue.backends = { a = { address = \"10.0.0.1:80\", wieght = 1 } }", "3:55", &["did you mean `weight`?"]),
        ("pool.blue.backends = { a = { address = 1 } }", "3:40", &["must be a text"]),
        ("pool.blue.backends = { a = \"10.0.0.1\" }", "3:28", &["lacks a port, which `nat` needs", "10.0.0.1:443"]),
        ("pool.blue.backends = { a = \"10.0.0.1:0\" }", "3:28", &["`0` for a port"]),
        ("pool.blue.backends = { a = \"10.0.0.1:80-90\" }", "3:28", &["more than one port"]),
        ("pool.blue.backends = { a = \"10.0.0.1:80/tcp\" }", "3:28", &["`80/tcp` for a port"]),
        ("pool.blue.backends = { a = \"db1:80\" }", "3:28", &["not resolved"]),
        ("pool.blue.backends = { a = \"127.0.0.1:80\" }", "3:28", &["loopback"]),
        ("pool.blue.backends = { a = \"0.0.0.0:80\" }", "3:28", &["unspecified"]),
        ("pool.blue.backends = { a = \"239.1.1.1:80\" }", "3:28", &["multicast"]),
        ("pool.blue.backends = { a = \"[2001:db8::1]:80\" }", "3:28", &["is IPv6 and the service is IPv4", "`nat` cannot change the family", "backend's IPv4 address", "tunnel"]),
        ("listen = \"[2001:db8::10]:443\"\npool.blue.backends = { a = \"10.0.0.1:80\" }", "4:28", &["is IPv4 and the service is IPv6", "backend's IPv6 address"]),
        ("listen = \"[2001:db8::10]:443\"\nforward = \"l2\"\npool.blue.backends = { a = \"10.0.0.1\" }", "5:28", &["`l2` cannot change the family"]),
        ("listen = \"[2001:db8::10]:443\"\npool.blue.backends = { a = \"2001:db8::1\" }", "4:28", &["lacks a port, which `nat` needs", "write [2001:db8::1]:443"]),
        ("listen = \"[2001:db8::10]:443\"\npool.blue.backends = { a = \"[fe80::1]:80\" }", "4:28", &["link-local"]),
        ("listen = \"[2001:db8::10]:443\"\npool.blue.backends = { a = \"[2001:db8::10]:80\" }", "4:28", &["address of its own service"]),
        ("listen = \"[2001:db8::10]:443\"\npool.blue.backends = { a = \"[2001:db8::1]:80\", b = \"[2001:db8:0::0:1]:80\" }", "4:52", &["address of backend `a` (line 4)"]),
        ("pool.blue.backends = { a = \"[::ffff:10.0.0.1]:80\" }", "3:28", &["IPv4 address written as IPv6", "10.0.0.1"]),
        ("forward = \"l2\"\npool.blue.backends = { a = \"10.0.0.1:8443\" }", "4:28", &["port 8443", "`l2` cannot rewrite", "443", "write 10.0.0.1"]),
        ("pool.blue.backends = { a = \"10.0.0.1:80\", b = \"10.0.0.1:80\" }", "3:47", &["address of backend `a` (line 3)"]),
        ("active_pool = \"a\"\npool.a.backends = { x = \"10.0.0.1:80\" }\npool.b.backends = { y = \"10.0.0.1:80\" }", "5:25", &["address of backend `x` (line 4)"]),
        ("active_pool = \"a\"\npool.a.backends = { x = \"10.0.0.1:80\" }\npool.b.backends = { x = \"10.0.0.2:80\" }", "5:21", &["already has a backend `x` (line 4)"]),
        ("forward = \"l2\"\npool.a.backends = { x = \"10.0.0.1\", y = \"10.0.0.1:443\" }", "4:41", &["address of backend `x`"]),
        ("pool.a.backends = { x = \"203.0.113.10:80\" }", "3:25", &["address of its own service"]),
        ("forward = \"l2\"\npool.a.backends = { x = \"203.0.113.10\" }", "4:25", &["address of its own service", "loopback interface"]),
    ]);
}

#[test]
fn names() {
    let long = "n".repeat(64);
    for (name, words) in [
        ("\"\"", "is empty"),
        ("\"a b\"", "contains ` `"),
        ("\"a/b\"", "contains `/`"),
        ("\"é\"", "contains `é`"),
        ("\"a\\nb\"", "contains `\\n`"),
        ("-a", "begins with neither"),
        ("\"..\"", "begins with neither"),
        (long.as_str(), "longer than 63"),
    ] {
        let tail = "listen = \"203.0.113.10:443\"\npool.p.backends = { a = \"10.0.0.1:80\" }";
        refuse(
            &format!("interfaces = [\"e\"]\n[service.{name}]\n{tail}"),
            &[("2:10", &["service name", words])],
        );
        refuse(
            &service(&format!("pool.{name}.backends = {{ a = \"10.0.0.1:80\" }}")),
            &[("3:6", &["pool name", words])],
        );
        refuse(
            &service(&format!("pool.p.backends = {{ {name} = \"10.0.0.1:80\" }}")),
            &[("3:21", &["backend name", words])],
        );
    }
    let longest = "n".repeat(63);
    let text = service(&format!(
        "pool.{longest}.backends = {{ 1a-_ = \"10.0.0.1:80\", \"Z.\" = \"10.0.0.2:80\" }}"
    ));
    assert!(check(&text).is_ok());
}

/// Two services with a line each: lines 3 and 4 are the first, 6 and 7 the second.
fn two(first: [&str; 2], second: [&str; 2]) -> String {
    let [[l1, b1], [l2, b2]] = [first, second];
    format!(
        "interfaces = [\"e\"]\n[service.a]\nlisten = \"{l1}\"\npool.p.backends = {{ x = \"{b1}\" }}\n\
         [service.b]\nlisten = \"{l2}\"\npool.p.backends = {{ x = \"{b2}\" }}\n"
    )
}

#[test]
#[rustfmt::skip] // A row a line.
fn between_services() {
    let rows: &[([&str; 2], [&str; 2], &[Expected<'_>])] = &[
        (["203.0.113.1:80", "10.0.0.1:80"], ["203.0.113.1:80/tcp", "10.0.0.2:80"],
            &[("6:10", &["`203.0.113.1:80` is already where service `a` listens (line 3)", "service `b`"])]),
        (["[::ffff:203.0.113.1]:80", "10.0.0.1:80"], ["203.0.113.1:80", "10.0.0.2:80"],
            &[("3:10", &["IPv4 address written as IPv6"]), ("6:10", &["already where service `a` listens (line 3)"])]),
        (["203.0.113.1:80/udp", "10.0.0.1:80"], ["203.0.113.1:80/tcp", "10.0.0.1:80"],
            &[("2:10", &["a UDP service lacks `health`"])]),
        (["203.0.113.1:80", "10.0.0.1:80"], ["203.0.113.2:80", "10.0.0.1:80"],
            &[("7:25", &["`nat` backend of service `a` too (line 4)", "could not be told apart"])]),
        (["203.0.113.1:80", "203.0.113.2:80"], ["203.0.113.2:80", "10.0.0.1:80"],
            &[("4:25", &["where service `b` listens", "chained"])]),
    ];
    assert!(check(&two(["203.0.113.1:80", "10.0.0.1:80"], ["203.0.113.1:81", "10.0.0.1:81"])).is_ok());
    for (first, second, expected) in rows {
        refuse(&two(*first, *second), expected);
    }
}

#[test]
fn the_later_of_two_in_the_file_is_reported_whatever_section_began_first() {
    let text = "interfaces = [\"e\"]\n[service]\na.forward = \"nat\"\n\
                b.listen = \"203.0.113.1:80\"\nb.pool.p.backends = { x = \"10.0.0.1:80\" }\n\
                a.listen = \"203.0.113.1:80\"\na.pool.p.backends = { x = \"10.0.0.1:80\" }\n";
    refuse(
        text,
        &[
            ("6:12", &["already where service `b` listens (line 4)"]),
            ("7:27", &["`nat` backend of service `b` too (line 5)"]),
        ],
    );
}

#[test]
fn fewer_slots_than_backends() {
    let backends: String = (0..1010)
        .map(|n| format!("b{n} = \"10.1.{}.{}:80\"\n", n / 256, n % 256))
        .collect();
    refuse(
        &service(&format!(
            "listen = \"203.0.113.10:443\"\nslots = 1009\n[service.web.pool.blue.backends]\n{backends}"
        )),
        &[("4:9", &["1009 is less than the 1010 backends of a pool"])],
    );
}

#[test]
fn all_problems_at_once_in_the_order_of_the_file() {
    let text = "interfaces = [\"eth0\", \"eth0\"]\nxdp_mode = \"fast\"\n\n[service.web]\nlisten = \"203.0.113.10\"\n\
                forward = \"full-net\"\n\tdrain = { timeout = \"0s\", spred = \"1s\" }\nhealth = { readiness = { http = \"x\", rise = 0 } }\n\
                [service.web.pool.blue.backends]\nb1 = \"10.0.0.11\"\n\"b 2\" = { address = \"10.0.0.12:80\", weight = 5000 }\n\
                b3 = \"10.0.0.12:80\"\n[capacity]\nflows = 3000\n[extra]\n";
    refuse(
        text,
        &[
            ("1:23", &["named twice"]),
            ("2:12", &["cannot be `fast`"]),
            ("5:10", &["lacks a port"]),
            ("6:11", &["did you mean `full-nat`?"]),
            ("7:22", &["too short"]),
            ("7:28", &["did you mean `spread`?"]),
            ("8:33", &["begin with `/`"]),
            ("8:45", &["out of range"]),
            ("11:1", &["contains ` `"]),
            ("11:46", &["out of range"]),
            ("12:6", &["address of backend `b 2` (line 11)"]),
            ("14:9", &["power of two", "2048 or 4096"]),
            ("15:2", &["unknown key `extra`"]),
        ],
    );
}

#[test]
fn text_that_is_not_toml() {
    let rows: &[(&str, &[Expected<'_>])] = &[
        (
            "interfaces = [eth0]",
            &[("1:15", &["not TOML", "in quotes"])],
        ),
        (
            "a = 1\n[service.web]\nlisten = 203.0.113.10:443\nx = 300s",
            &[("3:15", &["not TOML"]), ("4:5", &["in quotes"])],
        ),
        (
            "[a]\nb = 1\nb = 2\n",
            &[("3:1", &["duplicate key", "once"])],
        ),
        (
            "[service.web]\n[service.web]\n",
            &[("2:10", &["duplicate key", "once"])],
        ),
        (
            "x = \"abc\ny = 1\n",
            &[("1:9", &["not TOML", "ends on its line"])],
        ),
        ("[service.web\n", &[("1:13", &["unclosed table"])]),
    ];
    for (text, expected) in rows {
        refuse(text, expected);
    }
}

#[test]
fn errors_as_people_and_programs_see_them() {
    let error = check("interfaces = [\"eth0\"]\n\nxdp-mode = \"auto\"\nservice = 1\n")
        .expect_err("two problems");
    assert_eq!(
        error.to_string(),
        "ebb.toml:3:1: error: unknown key `xdp-mode` in the file\n  hint: did you mean `xdp_mode`?\n\
         ebb.toml:4:11: error: `service` must be a table, not an integer\n  hint: for example: [service.NAME]"
    );
    let json = serde_json::to_value(&error).expect("plain data");
    assert_eq!(json["path"], "ebb.toml");
    assert_eq!(json["problems"][0]["line"], 3);
    assert_eq!(json["problems"][1]["column"], 11);
    assert_eq!(json["problems"][0]["hint"], "did you mean `xdp_mode`?");
}

#[test]
#[rustfmt::skip] // A row a line.
fn several_ports() {
    let rows: &[([&str; 2], [&str; 2], &[Expected<'_>])] = &[
        (["203.0.113.1:80-90", "10.0.0.1"], ["203.0.113.1:90-99", "10.0.0.2"],
            &[("7:10", &["`203.0.113.1:90-99` is already where service `a` listens (line 3)"])]),
        (["203.0.113.1:80-90", "10.0.0.1"], ["203.0.113.2:85", "10.0.0.1:85"],
            &[("8:25", &["`nat` backend of service `a` too (line 4)"])]),
        (["203.0.113.1:80-90", "10.0.0.1:80"], ["203.0.113.2:85", "10.0.0.1:85"],
            &[("4:25", &["keeps the one that a client chose", "write 10.0.0.1"])]),
        (["203.0.113.1:80-90", "203.0.113.2"], ["203.0.113.2:85", "10.0.0.1:85"],
            &[("4:25", &["where service `b` listens"])]),
    ];
    for ([l1, b1], [l2, b2], expected) in rows {
        let text = format!(
            "interfaces = [\"e\"]\n[service.a]\nlisten = \"{l1}\"\npool.p.backends = {{ x = \"{b1}\" }}\nhealth = \"none\"\n\
             [service.b]\nlisten = \"{l2}\"\npool.p.backends = {{ x = \"{b2}\" }}\nhealth = \"none\"\n"
        );
        refuse(&text, expected);
    }
    refuse_in_service(&[
        ("listen = \"203.0.113.1:*\"\nhealth.readiness = { tcp = true }\npool.p.backends = { a = \"10.0.0.1\" }", "4:8",
            &["`readiness` lacks `port`", "port = 8080"]),
        ("listen = \"203.0.113.1:*\"\npool.p.backends = { a = \"10.0.0.1\" }", "2:10",
            &["a service on several ports lacks `health`"]),
        ("listen = \"203.0.113.1:53/udp\"\nhealth = \"none\"\ntracking = \"moved\"", "5:12",
            &["cannot be `moved` in a UDP service"]),
    ]);
}

#[test]
#[rustfmt::skip] // A row a line.
fn addresses_and_ports_of_full_nat() {
    let rows: [(&str, &str, &[&str]); 10] = [
        ("nat_addresses = [\"10.0.0.1:80\"]", "2:18", &["is no address"]),
        ("nat_addresses = \"10.0.0.1\"", "2:17", &["must be a list"]),
        ("nat_addresses = [\"127.0.0.1\"]", "2:18", &["loopback"]),
        ("nat_addresses = [\"10.0.0.1\", \"10.0.0.1\"]", "2:30", &["listed twice"]),
        ("nat_ports = 1024", "2:13", &["must be a text"]),
        ("nat_ports = \"1024\"", "2:13", &["is no range of ports", "1024-32767"]),
        ("nat_ports = \"2000-1000\"", "2:13", &["is no range of ports"]),
        ("nat_ports = \"0-1000\"", "2:13", &["is no range of ports"]),
        ("nat_ports = \"1000-70000\"", "2:13", &["is no range of ports"]),
        ("nat_ports = \"1001-1064\"", "2:13", &["too short a range", "at least 64"]),
    ];
    for (line, place, words) in rows {
        refuse(&format!("interfaces = [\"eth0\"]\n{line}\n"), &[(place, words)]);
    }
    let services = "[service.a]\nlisten = \"10.0.0.1:2000\"\npool.p.backends = { a = \"10.0.0.9:80\" }\n\
                    [service.b]\nlisten = \"10.0.0.3:80\"\nforward = \"full-nat\"\npool.p.backends = { b = \"10.0.0.8:80\" }\n";
    refuse(
        &format!("interfaces = [\"eth0\"]\nnat_addresses = [\"10.0.0.1\"]\n{services}"),
        &[("2:17", &["service `a` listens on a port of `nat_addresses`"])],
    );
    refuse(
        "interfaces = [\"eth0\"]\n\
         [service.a]\nlisten = \"10.0.0.1:80\"\npool.p.backends = { a = \"10.0.0.9:80\" }\n\
         [service.b]\nlisten = \"10.0.0.3:80\"\nforward = \"full-nat\"\npool.p.backends = { b = \"10.0.0.9:80\" }\n",
        &[("8:25", &["is a `nat` backend of service `a` too"])],
    );
}
