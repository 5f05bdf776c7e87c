//! Limits and defaults of the configuration file, in one place. `docs/configuration.md` lists the same.

use std::{ops::RangeInclusive, time::Duration};

/// Largest configuration file.
pub const FILE_MAX_BYTES: u32 = 16 << 20;
/// Longest name of a service, pool or backend, in characters.
pub const NAME_MAX_CHARS: usize = 63;
/// Longest interface name: the kernel's `IFNAMSIZ` less the final zero.
pub const INTERFACE_NAME_MAX_BYTES: usize = 15;
/// Longest version label, in characters.
pub const VERSION_MAX_CHARS: usize = 128;
/// Longest path of an HTTP check.
pub const HTTP_PATH_MAX_BYTES: usize = 1024;
/// Longest `Host:` of an HTTP check: a full DNS name, brackets and a port.
pub const HTTP_HOST_MAX_BYTES: usize = 263;

/// Where the seed of the flow hash is unless told otherwise.
pub const HASH_SEED_FILE: &str = "/etc/ebb/seed";

/// Services of the map.
pub const CAPACITY_SERVICES: RangeInclusive<u32> = 1..=65_536;
/// Backends of the map.
pub const CAPACITY_BACKENDS: RangeInclusive<u32> = 1..=1 << 20;
/// Slots of the maps together; the least is an old and a new table of the smallest size.
pub const CAPACITY_SLOTS: RangeInclusive<u32> = 2 * 101..=1 << 27;
/// Flow entries; a power of two.
pub const CAPACITY_FLOWS: RangeInclusive<u32> = 1024..=1 << 26;
/// Handshake entries; a power of two.
pub const CAPACITY_HANDSHAKES: RangeInclusive<u32> = 1024..=1 << 26;

/// Ports given to flows of `full-nat` services at the same time; a power of two.
pub const CAPACITY_PORTS: RangeInclusive<u32> = 1024..=1 << 26;

/// Slots of one service; a prime (both ends are).
pub const SLOTS: RangeInclusive<u32> = 101..=1_048_573;
/// Backends that a drain must leave.
pub const MIN_AVAILABLE: RangeInclusive<u32> = 0..=1 << 20;
/// `min_available` unless told otherwise.
pub const MIN_AVAILABLE_DEFAULT: u32 = 1;
/// Weight of a backend.
pub const WEIGHT: RangeInclusive<u32> = 0..=1000;
/// Weight unless told otherwise.
pub const WEIGHT_DEFAULT: u32 = 1;

/// Time from a drain's command to its deadline.
pub const DRAIN_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(7 * DAY_SECS);
/// `drain.timeout` unless told otherwise.
pub const DRAIN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// Time over which flows are reset at a drain's deadline.
pub const DRAIN_SPREAD: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// `drain.spread` unless told otherwise.
pub const DRAIN_SPREAD_DEFAULT: Duration = Duration::from_secs(30);
/// Time after which an unseen flow has ended.
pub const IDLE_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * DAY_SECS);
/// `idle_timeout` unless told otherwise.
pub const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(350);
/// The same for UDP, where nothing else ends a flow.
pub const IDLE_TIMEOUT_UDP_DEFAULT: Duration = Duration::from_secs(30);

/// Flows that a core lets begin in a second.
pub const NEW_FLOWS_PER_CORE: RangeInclusive<u32> = 1..=lb_common::protect::RATE_MAX;
/// Prefixes of clients, denied and allowed ones together.
pub const CLIENT_PREFIXES_MAX: usize = 65_536;

/// Time between the starts of two probes.
pub const PROBE_PERIOD: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
/// `period` unless told otherwise.
pub const PROBE_PERIOD_DEFAULT: Duration = Duration::from_secs(1);
/// Time within which an answer counts; never more than the period.
pub const PROBE_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(60);
/// `timeout` unless told otherwise, or the period where that is shorter.
pub const PROBE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
/// Consecutive answers that count, of either kind.
pub const PROBE_COUNT: RangeInclusive<u32> = 1..=1000;
/// `rise` of readiness and liveness unless told otherwise.
pub const PROBE_RISE_DEFAULT: u32 = 2;
/// `rise` of startup unless told otherwise.
pub const PROBE_STARTUP_RISE_DEFAULT: u32 = 1;
/// Bytes of what an agent is sent, and of a header or text that asks for a drain.
pub const SPEECH_MAX_BYTES: usize = 256;
/// `fall` unless told otherwise.
pub const PROBE_FALL_DEFAULT: u32 = 3;
/// `period` of the liveness check that a service gets which says nothing about its health.
pub const LIVENESS_PERIOD_DEFAULT: Duration = Duration::from_millis(500);
/// `timeout` of that check.
pub const LIVENESS_TIMEOUT_DEFAULT: Duration = Duration::from_millis(250);

/// Ports that flows of `full-nat` services are given out of, in whole blocks.
pub const NAT_PORTS_MIN: u32 = 64;
/// Kinds of TCP options that the kernel of a backend gives no meaning to: above multipath TCP and TCP fast open.
pub const OPTION_KIND: RangeInclusive<u32> = 35..=254;

/// UDP port of a tunnel.
pub const TUNNEL_PORT: RangeInclusive<u32> = 1..=65_535;

const DAY_SECS: u64 = 24 * 3600;

/// Most other nodes that a node shares flows with.
pub const SHARE_PEERS: usize = 16;
