//! Errors about flows of `full-nat` services. Each of what they quote has two other ends on the other side of the node,
//! so both are rewritten, outside and in the quote. The flow must have its port already: an error gives out none, and
//! keeps none longer.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_common::{
    abi::{ServiceRecord, jump},
    full_nat::Handed,
    outcome::Outcome,
};

use super::{
    Message,
    error::{Ends, rewrite_both},
    quote::{self, Quote},
};
use crate::{
    count, drop, end,
    forward::{self, By, Exit},
    full_nat::{self, Asked},
    maps, pass,
};

/// To the program for errors about packets from a service to a client.
#[inline(always)]
pub fn to_backend(ctx: &XdpContext, service: u32, backend: u32, hash: u64) -> u32 {
    let handed = Handed {
        hash,
        service,
        backend,
        ..Handed::default()
    };
    full_nat::jump_to(ctx, handed, jump::FULL_NAT_ERROR)
}

/// The same for errors about packets to a backend.
#[inline(always)]
pub fn to_client(ctx: &XdpContext, service: u32) -> u32 {
    to_backend(ctx, service, 0, 0)
}

/// Takes over an error that has been steered.
#[xdp]
#[inline(always)]
pub fn full_nat_error(ctx: XdpContext) -> u32 {
    let Some(handed) = full_nat::handed() else {
        return pass(&ctx, 0, Outcome::PassInternal);
    };
    let quoted = super::parse(&ctx).and_then(|message| {
        let quote = quote::parse(&message)?;
        Ok((message, quote))
    });
    match quoted {
        // A backend's id is not 0.
        Ok((message, quote)) if handed.backend == 0 => client(&ctx, &message, &quote, handed),
        Ok((message, quote)) => backend(&ctx, &message, &quote, handed),
        Err(refused) => pass(&ctx, handed.service, refused.outcome),
    }
}

#[inline(always)]
fn backend(ctx: &XdpContext, message: &Message, quote: &Quote, handed: &Handed) -> u32 {
    let id = handed.service;
    let (Some(service), Some(backend)) = (maps::service(id), maps::backend(handed.backend)) else {
        return pass(ctx, id, Outcome::PassInternal);
    };
    let asked = Asked {
        client: quote.destination,
        client_port: quote.destination_port,
        service_port: quote.source_port,
        protocol: quote.protocol,
    };
    let flow = full_nat::flow(&asked, handed, service, backend);
    let Some(entry) = full_nat::known(&flow) else {
        return pass(ctx, id, Outcome::PassIcmp);
    };
    let port = flow.backend_port;
    // SAFETY: the table vouches for the entry.
    let (node, node_port) = unsafe {
        let place = entry.as_ptr();
        ((*place).node, (*place).node_port)
    };
    let ends = Ends {
        // The backend might have no route to the router, and take nothing from there.
        outer: (&node, &backend.address),
        quoted: (&backend.address, &node),
        ports: (port, node_port),
    };
    if !rewrite_both(message, quote, &ends, true) {
        return drop(ctx, id, Outcome::DropTtl);
    }
    count::packet_to(handed.backend, message.length);
    let sent = forward::out(ctx, &message.link, &Exit::to(backend));
    end(ctx, id, sent, Outcome::ForwardIcmp, handed.backend)
}

#[inline(always)]
fn client(ctx: &XdpContext, message: &Message, quote: &Quote, handed: &Handed) -> u32 {
    let source = (&quote.destination, quote.destination_port);
    let own = (&quote.source, quote.source_port);
    let Some(owner) = full_nat::reply::owner(source, own, quote.protocol) else {
        return pass(ctx, handed.service, Outcome::PassIcmp);
    };
    let (id, service): (u32, &ServiceRecord) = (owner.id, owner.service);
    let (client, client_port) = owner.client();
    let packet = &message.packet;
    let route = forward::route(ctx, packet.protocol, packet.network, &client, service);
    if route.by == By::Nobody {
        return pass(ctx, id, Outcome::PassReplyLocal);
    }
    let port = forward::service_port(quote.destination_port, service);
    let ends = Ends {
        outer: (&service.vip, &client),
        quoted: (&client, &service.vip),
        ports: (client_port, port),
    };
    if !rewrite_both(message, quote, &ends, route.by == By::Xdp) {
        return drop(ctx, id, Outcome::DropTtl);
    }
    count::reply_from(owner.backend_id, message.length);
    if route.by == By::Kernel {
        return pass(ctx, id, Outcome::ForwardReplyKernel);
    }
    let sent = forward::out(ctx, &message.link, &route.exit);
    end(ctx, id, sent, Outcome::ForwardIcmpReply, owner.backend_id)
}
