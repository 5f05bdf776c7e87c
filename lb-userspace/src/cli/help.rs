//! The longer texts of `--help`.

/// `ebb --help`.
pub const EBB: &str = "\
ebb is a layer-4 load balancer in XDP whose drains break no connection: a backend that is drained keeps the \
connections it has, and takes no new ones from the moment the command returns.

`ebb run` is the daemon. Every other command asks it over its control socket, which speaks HTTP and JSON \
(`curl --unix-socket` works too), except `check`, `pass` and `decap`, which need no daemon.";

/// Below `ebb --help`.
pub const EBB_AFTER: &str = "\
Exit codes:
    0  done
    1  refused or failed
    3  drain --wait: the deadline passed with flows left, or they were cut at it
    4  drain --wait: the backend died
   64  the command line was wrong
  130  Ctrl-C while waiting; what was waited for goes on

Environment:
  EBB_SOCKET     control socket of the daemon        [/run/ebb/ebb.sock]
  EBB_CONFIG     configuration file (run)            [/etc/ebb/ebb.toml]
  EBB_PINS       directory of the pinned maps (run)  [/sys/fs/bpf/ebb]
  EBB_STATE_DIR  directory of the journal (run)      [/var/lib/ebb]

Output:
  Results go to stdout, progress and errors to stderr. An error is a line
  `error: what failed: why` and mostly a line `hint: what to do`.
  With --json a result is the control API's JSON on one line, and an error one
  object {\"error\", \"hint\"} on stderr, where `hint` may be null.

Examples:
  ebb check ebb.toml && ebb reload --dry-run
  ebb status web --watch
  ebb drain web/b1 --wait && update-backend b1 && ebb undrain web/b1";

/// `ebb run --help`.
pub const RUN: &str = "\
Runs the daemon in the foreground, until it is told to end.

It loads the XDP program, attaches it to the interfaces of the configuration and serves the control socket. The maps \
and the program are pinned: when the daemon ends or is killed, forwarding goes on, and the next `ebb run` takes over \
where it was, drains and their deadlines included. Several daemons run side by side on one machine when each has a \
socket, a directory of pins and a state directory of its own.";

/// `ebb check --help`.
pub const CHECK: &str = "\
Validates a configuration file without touching anything; needs neither root nor a daemon.

Every problem is shown at once, each as FILE:LINE:COLUMN with a hint. With --json a valid file is printed as the \
daemon understands it, all defaults filled in.";

/// `ebb status --help`.
pub const STATUS: &str = "\
Shows services, pools and backends.

ADMIN is what the operator wants (active, draining, drained, maintenance, removed), HEALTH what the probes found \
(starting, up, down, unchecked), NEW whether new flows may go there right now. FLOWS are those known to be open, \
PACKETS and BYTES went to the backend since its counters began. The pool marked * takes the new flows.";

/// Below `ebb status --help`.
pub const STATUS_AFTER: &str = "\
Examples:
  ebb status                  the whole node
  ebb status web --watch      one service, redrawn each second, with rates
  ebb status --json           the answer of GET /v1/status
  ebb status --json --watch   one such object a line, each second";

/// `ebb drain --help`.
pub const DRAIN: &str = "\
Takes backends out of service without breaking a connection.

When the command returns, no new flow goes to them; the flows they have stay where they are until they end, or until \
the deadline. What happens to the rest then is --on-deadline:

  reset  the client's next packet is answered with a reset
  leave  they go on
  drop   their packets are dropped

Several backends, or all of a pool, are drained at once or not at all: where one can not be, or where fewer than \
min_available of a service would be left by all of them together, nothing is done and every reason is named. --force \
drains below min_available. Of a pool, what is drained already stays as it is.

Without options the service's own settings hold. Draining a backend that is being drained already changes only what \
the options say; without any it is the same drain, so that `ebb drain SERVICE/BACKEND --wait` waits for it again.

A drain belongs to whoever asked for it: the operator, the configuration that the backend has left, the backend's unit \
(--as-backend), or the backend itself in the answer to a health check. A backend's own side takes back its own only; \
one that the operator asks for as well is the operator's from then on. With --as-backend a backend that somebody else \
drains already is no error.";

/// Below `ebb drain --help`.
pub const DRAIN_AFTER: &str = "\
The receipt at the end accounts for every flow:
  flows at the start = finished + idle + cut + died + left
and tells their ages as they ended, as far as ebb saw them open. It is kept:
see `ebb drains`.

Exit codes with --wait (of several drains the worst: 4, then 3, 1, 0):
    0  every flow ended by itself or went idle, or the drain was undone
    1  refused (fewer than min_available would be left, say) or failed
    3  the deadline passed with flows left, or they were cut at it
    4  the backend died
  130  Ctrl-C; the drains go on

A daemon that restarts goes on with its drains; --wait survives that for 30 seconds.

Examples:
  ebb drain web/b1                 start, and return at once
  ebb drain web/b1 web/b2 api/x    several, or none
  ebb drain web --pool blue        every backend of a pool
  ebb drain web/b1 --timeout 10m --wait
                                   wait, with a progress bar on a terminal
  ebb drain web/b1 --timeout 0s --on-deadline reset
                                   cut all its flows now
  ebb drain web/b1 --wait --json | jq .finished
                                   stdout has only the receipt (of several: an
                                   array of receipts)";

/// `ebb drains --help`.
pub const DRAINS: &str = "\
Lists drains: those that run, with the flows left, how fast they leave and a forecast, and those that have ended, with \
their receipts, the last one first. The last 1000 receipts are kept, for 30 days, over restarts too.

RATE is that of the last ten seconds. The forecast takes the rates at which flows of each age have left so far: 90% \
GONE says when nine in ten of the flows at the start will have left, OUTLIVE how many will be there at the deadline. \
P50, P99 and LONGEST are the ages of flows as they ended or were left; AGES says of how many the age is known (ebb saw \
them open, and listed them): of the others only that they ended.";

/// Below `ebb drains --help`.
pub const DRAINS_AFTER: &str = "\
With --json it is an array of drains, the same objects as in `ebb status --json`; of a single number the one object;
with --wait an array of receipts (of a single number the one receipt). Exit codes with --wait are those of `ebb drain`.

Examples:
  ebb drains                 all that run, and the last receipts
  ebb drains web/b1          those of one backend
  ebb drains 7               one, by its number
  ebb drains 7 8 --wait      wait for these two again
  ebb drains --wait          wait for all that run";

/// `ebb undrain --help`.
pub const UNDRAIN: &str = "\
Ends drains: the backends take new flows again as soon as they are healthy. Flows that they kept stay on them; flows \
that began elsewhere meanwhile stay where they are. Several, or all of a pool, at once or not at all.

A backend that was in maintenance before its drain is in maintenance again; `ebb activate` ends both.";

/// Below `ebb undrain --help`.
pub const UNDRAIN_AFTER: &str = "\
With --as-backend it is the backend's own side that asks, as its systemd unit does each time that its service starts:
a drain that an operator or the configuration asked for stays, and that is no error.

Examples:
  ebb undrain web/b1 web/b2
  ebb undrain web --pool blue";

/// `ebb weight --help`.
pub const WEIGHT: &str = "\
Sets the share of new flows that backends take, relative to the others of their pool. Open flows stay where they are. \
It holds over reloads and restarts until `ebb weight SERVICE/BACKEND default`: then the weight of the configuration \
(or of `ebb add`) holds again. `ebb status` shows which weights are set by hand.

With weight 0 a backend takes no new flows and keeps those that it has. Where fewer than min_available backends would \
be left, that is refused unless forced. Several, or all of a pool, at once or not at all.";

/// Below `ebb weight --help`.
pub const WEIGHT_AFTER: &str = "\
Examples:
  ebb weight web/b1 5             five times the share of a backend of weight 1
  ebb weight web/b1 web/b2 0      no new flows to these two
  ebb weight web --pool blue default";

/// `ebb maintenance --help`.
pub const MAINTENANCE: &str = "\
Puts backends aside: when the command returns, no new flow goes to them. The flows that they have stay, and no \
deadline ends them; a drain that is under way is taken back. Health goes on being checked and shown, but a backend in \
maintenance is not taken for dead: its flows are left alone while somebody works on it.

It holds over reloads and restarts until `ebb activate`. A backend in maintenance can be drained; `ebb undrain` \
returns it to maintenance. Refused where fewer than min_available backends would be left, unless forced. Several, or \
all of a pool, at once or not at all.";

/// Below `ebb maintenance --help`.
pub const MAINTENANCE_AFTER: &str = "\
Examples:
  ebb maintenance web/b1
  ebb maintenance web/b1 && ebb drain web/b1 --wait   empty it, and keep it aside
  ebb maintenance web --pool green";

/// `ebb activate --help`.
pub const ACTIVATE: &str = "\
Has backends take new flows again as soon as they are healthy, whatever they did before: maintenance and drains end. \
Flows that they kept stay on them; flows that began elsewhere meanwhile stay where they are. Several, or all of a \
pool, at once or not at all. A weight that was set by hand stays.";

/// Below `ebb activate --help`.
pub const ACTIVATE_AFTER: &str = "\
Examples:
  ebb activate web/b1 web/b2
  ebb activate web --pool blue";

/// `ebb add --help`.
pub const ADD: &str = "\
Adds a backend to a pool. It takes its share of the new flows once its health check has succeeded; open flows stay \
where they are.";

/// Below `ebb add --help`.
pub const ADD_AFTER: &str = "\
Examples:
  ebb add web/blue/b4 10.0.0.14:8443
  ebb add web/blue/b4 10.0.0.14:8443 --weight 2   twice the share of a backend of weight 1
  ebb add web/blue/b5 '[2001:db8::15]:8443'";

/// `ebb remove --help`.
pub const REMOVE: &str = "\
Removes a backend. Refused while it has flows (drain it first) or when too few would be left; --force removes it all \
the same, and breaks the flows it has.";

/// `ebb switch --help`.
pub const SWITCH: &str = "\
Sends the new flows of a service to another of its pools (blue-green). Open flows stay on the backends they have; \
switching back is the same command with the old pool. Refused when fewer than min_available backends of the pool are \
up, unless forced.";

/// `ebb reload --help`.
pub const RELOAD: &str = "\
Reads the configuration file again and applies all of it or nothing. A backend that left the file is drained, not \
dropped. With --dry-run only the steps are shown.";

/// `ebb flows --help`.
pub const FLOWS: &str = "\
Lists the flows in the flow table: those whose slot a change has moved, or all of them in a service with \
`tracking = \"full\"`. Flows that the steering table alone keeps on their backend need no entry and are not listed; \
`ebb status` counts them.";

/// Below `ebb flows --help`.
pub const FLOWS_AFTER: &str = "\
Examples:
  ebb flows
  ebb flows web/b1 --json | jq -r '.[].client'";

/// `ebb clients --help`.
pub const CLIENTS: &str = "\
Lists the prefixes of clients that the configuration denies or allows ([clients]), with the packets that each decided \
on since the list was loaded. The longest prefix that a client is in decides; who is in none may come.";

/// `ebb explain --help`.
pub const EXPLAIN: &str = "\
Says where the packets of a client go, and why. The answer is the loaded XDP program's own, for a packet that opens a \
connection and for one of a connection that is open, or for a datagram; the question leaves no trace. Of a service on \
several ports, --port says which is meant. Of a QUIC service, --cid asks for a packet with this connection id.";

/// Below `ebb explain --help`.
pub const EXPLAIN_AFTER: &str = "\
Examples:
  ebb explain web --from 198.51.100.7:40000
  ebb explain web --from '[2001:db8::7]:40000' --json
  ebb explain web3 --from 198.51.100.7:40000 --cid 0b0a00000b5a5a5a5a";

/// `ebb trace --help`.
pub const TRACE: &str = "\
Shows what becomes of packets, a line each:

  TIME INTERFACE[>EXIT] SOURCE > DESTINATION PROTOCOL FLAGS SERVICE/BACKEND OUTCOME LENGTH

TIME is UTC, addresses and LENGTH are those of the packet as it came, EXIT is the interface that it was sent out by \
where that is another one. FLAGS are as in tcpdump (of ICMP: type and code). All that is given of the filter must hold; \
--client and --port look at either end, so that answers are shown too. Without --all or --outcome only packets that \
belong to a service are shown.

While a trace runs, a tracing program stands in place of the plain one; flows, counters and decisions are the same \
for both. Packets that do not match its client, port and protocol go on to the plain program; those that match cost \
about a microsecond more each. Afterwards the plain program is back, also when the command is killed or the daemon \
starts again. One trace runs at a time. Who reads too slowly loses packets, which are counted; nobody waits.

With --pcap the packets are written to a file, each as it came and, where it was sent on (XDP_TX or a redirect), as it \
left: tcpdump on the interface sees neither. --frames in or out writes one of the two. The file is pcapng (tcpdump -r, \
tshark, Wireshark), has nanoseconds, both directions, the interfaces' names, and in each packet's comment its line.";

/// Below `ebb trace --help`.
pub const TRACE_AFTER: &str = "\
Ctrl-C ends a trace, with exit code 0, and says how many packets were shown and how many were lost. With --json each \
packet is an object on stdout, and that summary one on stderr.

Examples:
  ebb trace web --client 198.51.100.7
  ebb trace --dropped --count 20
  ebb trace web/b1 --protocol tcp --json | jq .outcome
  ebb trace web --seconds 10 --pcap web.pcapng
  ebb trace web --pcap - | tcpdump -n -r -";

/// `ebb version --help`.
pub const VERSION: &str = "\
Shows the versions of this program and of the daemon. Works without a daemon, too.";

/// `ebb stop --help`.
pub const STOP: &str = "\
Ends the daemon. Forwarding goes on without it: the program stays attached and keeps every flow where it is, but \
nobody checks backends or ends drains until the next `ebb run`. With --detach the program is taken off the interfaces \
and the pinned maps are removed: forwarding ends, and with it the flows.";

/// `ebb verify --help`.
pub const VERIFY: &str = "\
Loads the XDP program into this machine's kernel without attaching it, and removes it again: whether the kernel's \
verifier takes it, and how many instructions it had to look at. Needs root and no daemon; one that runs is not touched.";

/// `ebb pass --help`.
pub const PASS: &str = "\
Attaches an XDP program that passes every packet to the far end of a veth pair, or takes it off again.

A veth takes frames from XDP_TX or a redirect only when its peer runs an XDP program too (or GRO, from Linux 5.13 on). \
Run this in the namespace of a backend or client that is connected to the load balancer by a veth; real NICs need no \
such thing. Needs root and no daemon.";

/// Below `ebb pass --help`.
pub const PASS_AFTER: &str = "\
Examples:
  ip netns exec backend1 ebb pass eth0
  ip netns exec backend1 ebb pass eth0 --detach";

/// `ebb decap --help`.
pub const DECAP: &str = "\
Runs on a backend. Attaches an XDP program that takes the outer headers of ebb's tunnels (`forward = \"ipip\"` and \
`\"gue\"`, over IPv4 and IPv6) off and hands the packet inside to the kernel, for backends whose kernel has no module for \
them (ipip, ip6_tunnel, sit, fou). It stays until it is taken off or the interface is gone.

Only packets for an address of this host come out of a tunnel; where the host forwards nothing, the kernel drops the \
others by itself. Whoever can send to this host could put packets with any source inside: say with --from where the \
load balancers are. Tunnels from elsewhere are dropped and counted. Needs root and no daemon.

Where a service says `decap = \"ebb\"`, the load balancer can ask with a packet whether its connection is here. If no socket \
takes it, it is sent back (`sent_back` in --counts), and goes to another backend.";

/// Below `ebb decap --help`.
pub const DECAP_AFTER: &str = "\
Examples:
  ebb decap --interface eth0 --from 10.0.0.0/28
  ebb decap --interface eth0 --port 6081 --mode generic
  ebb decap --interface eth0 --counts
  ebb decap --interface eth0 --detach

The services' addresses belong on the loopback interface of the backend, see \"Backends behind a tunnel\" in \
docs/configuration.md.";
