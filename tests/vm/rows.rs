//! Every packet test in one program, for virtual machines: there a processor is emulated, the kernel's verifier takes
//! the better part of a minute for all of the balancer's programs, and each process has it look at them anew.

#[path = "../tests/packet.rs"]
mod packet;
#[path = "../tests/packet_asked.rs"]
mod packet_asked;
#[path = "../tests/packet_datagrams.rs"]
mod packet_datagrams;
#[path = "../tests/packet_decap.rs"]
mod packet_decap;
#[path = "../tests/packet_fragments.rs"]
mod packet_fragments;
#[path = "../tests/packet_full_nat.rs"]
mod packet_full_nat;
#[path = "../tests/packet_full_nat_fragments.rs"]
mod packet_full_nat_fragments;
#[path = "../tests/packet_icmp.rs"]
mod packet_icmp;
#[path = "../tests/packet_quic.rs"]
mod packet_quic;
#[path = "../tests/packet_ranges.rs"]
mod packet_ranges;
#[path = "../tests/packet_second_chance.rs"]
mod packet_second_chance;
#[path = "../tests/packet_trace.rs"]
mod packet_trace;
#[path = "../tests/packet_tunnel.rs"]
mod packet_tunnel;
#[path = "../tests/packet_vlan.rs"]
mod packet_vlan;
