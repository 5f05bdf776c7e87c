//! What operators do, with live TCP through the real daemon and its native XDP program, judged by clients and
//! backends. One lab at a time: `--test-threads=1`.

mod affinity;
mod changes;
mod clients;
mod configuration;
mod datagrams;
mod death;
mod disk;
mod drain;
mod drains;
mod every_step;
mod flood;
mod full_nat;
mod health;
mod icmp;
mod interfaces;
mod kernel_tunnels;
mod memory;
mod narrow;
mod nginx;
mod nodes;
mod overlap;
mod ports;
mod promptness;
mod quic;
mod restart;
mod soak;
mod speech;
mod systemd;
mod tables_lost;
mod third;
mod trace;
mod truth;
mod tunnel;
mod upgrade;
mod vlan;
