//! Requests to the kernel: lookups, dumps, and "resolve this neighbour".

use std::{collections::HashMap, io, net::IpAddr, time::Duration};

use futures_util::StreamExt;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_REQUEST,
        NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::LinkMessage,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
    },
};
use tokio::{task::JoinHandle, time::timeout};

use super::{
    Reason, decode,
    table::{Link, Neighbour, NeighbourKey, Route},
};

/// The kernel answers within microseconds; an answer this late was dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// Times a dump is repeated that a concurrent change made inconsistent. The notifications make up for the last one.
const DUMP_TRIES: usize = 3;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel refused it.
    #[error("the kernel refused it: {0}")]
    Refused(#[source] io::Error),
    /// The socket is closed.
    #[error("the netlink socket is closed")]
    Closed,
    /// No answer.
    #[error("no answer within {PATIENCE:?}")]
    NoAnswer,
}

/// The socket for requests.
#[derive(Debug)]
pub struct Kernel {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Kernel {
    /// Opens it, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the socket.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// All links by index.
    ///
    /// # Errors
    ///
    /// When the request fails.
    pub async fn links(&self) -> Result<HashMap<u32, Link>, KernelError> {
        let answers = self
            .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
            .await?;
        let links = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => decode::link(message),
            _ => None,
        });
        Ok(links.collect())
    }

    /// All neighbours, of both families.
    ///
    /// # Errors
    ///
    /// When the request fails.
    pub async fn neighbours(&self) -> Result<HashMap<NeighbourKey, Neighbour>, KernelError> {
        let mut neighbours = HashMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let answers = self
                .dump(RouteNetlinkMessage::GetNeighbour(message))
                .await?;
            neighbours.extend(answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => decode::neighbour(message),
                _ => None,
            }));
        }
        Ok(neighbours)
    }

    /// The route a packet of this node to `address` would take.
    ///
    /// # Errors
    ///
    /// When the request fails for another reason than that there is no route.
    pub async fn route(&self, address: IpAddr) -> Result<Route, KernelError> {
        let message = match address {
            IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        match self
            .request(RouteNetlinkMessage::GetRoute(message), NLM_F_REQUEST)
            .await
        {
            Ok((answers, _)) => Ok(answers
                .iter()
                .find_map(|answer| match answer {
                    RouteNetlinkMessage::NewRoute(message) => Some(decode::route(message, address)),
                    _ => None,
                })
                .unwrap_or(Route::None(Reason::NoRoute))),
            Err(KernelError::Refused(error)) if !is_shortage(&error) => {
                Ok(Route::None(Reason::NoRoute))
            }
            Err(error) => Err(error),
        }
    }

    /// Has the kernel resolve a neighbour, or confirm a stale one, as it does when a packet of its own needs it.
    ///
    /// Not to be used on a permanent entry: it would no longer be one.
    ///
    /// # Errors
    ///
    /// When the request fails.
    pub async fn resolve(&self, key: NeighbourKey) -> Result<(), KernelError> {
        let mut message = neighbour_message(key);
        message.header.flags = NeighbourFlags::Use;
        self.request(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
        .map(drop)
    }

    /// Has the kernel check a neighbour it believes reachable, starting with the MAC address it knows.
    ///
    /// # Errors
    ///
    /// When the request fails; also when there is no such neighbour any more.
    pub async fn verify(&self, key: NeighbourKey) -> Result<(), KernelError> {
        let mut message = neighbour_message(key);
        message.header.state = NeighbourState::Probe;
        self.request(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE,
        )
        .await
        .map(drop)
    }

    async fn dump(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        let mut answers = Vec::new();
        for _ in 0..DUMP_TRIES {
            let interrupted;
            (answers, interrupted) = self
                .request(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)
                .await?;
            if !interrupted {
                break;
            }
        }
        Ok(answers)
    }

    /// All answers, and whether a change interrupted them.
    async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), KernelError> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        let mut stream = self
            .handle
            .clone()
            .request(message)
            .map_err(|_| KernelError::Closed)?;
        let collect = async {
            let mut answers = Vec::new();
            let mut interrupted = false;
            while let Some(answer) = stream.next().await {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(KernelError::Refused(error.to_io()));
                    }
                    _ => {}
                }
            }
            Ok((answers, interrupted))
        };
        timeout(PATIENCE, collect)
            .await
            .map_err(|_| KernelError::NoAnswer)?
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn neighbour_message(key: NeighbourKey) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = key.ifindex;
    let destination = match key.address {
        IpAddr::V4(address) => {
            message.header.family = AddressFamily::Inet;
            NeighbourAddress::Inet(address)
        }
        IpAddr::V6(address) => {
            message.header.family = AddressFamily::Inet6;
            NeighbourAddress::Inet6(address)
        }
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    message
}

/// Errors that say nothing about a route.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::ENOBUFS | libc::EINTR | libc::EPERM)
    )
}
