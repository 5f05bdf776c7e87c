//! What the data plane has to say at once, from the ring in the kernel to the core.

use std::{collections::BTreeSet, net::SocketAddr, os::fd::AsFd as _};

use anyhow::Context as _;
use lb_common::alert::{Alert, kind};
use tokio::{io::unix::AsyncFd, sync::mpsc};

use super::core::Event;
use crate::datapath::bpf::BpfDatapath;

/// Has what the programs say reported as [`Event::Refused`] and [`Event::Cut`].
///
/// # Errors
/// There is no ring, or it can not be waited for.
pub fn start(datapath: &mut BpfDatapath, events: mpsc::Sender<Event>) -> anyhow::Result<()> {
    let mut ring = datapath.take_alerts()?;
    let descriptor = ring.as_fd().try_clone_to_owned()?;
    // SAFETY: the descriptor is owned, and the same for as long as it lives.
    let readable = unsafe { AsyncFd::register(descriptor) }
        .map_err(std::io::Error::from)
        .context("waiting for the ring")?;
    tokio::spawn(async move {
        loop {
            let mut refusing = BTreeSet::new();
            let mut said = Vec::new();
            while let Some(item) = ring.next() {
                match parse(&item) {
                    Some(alert) if alert.kind == kind::REFUSED => {
                        refusing.insert(alert.backend);
                    }
                    Some(alert) if alert.kind == kind::CUT => said.push(cut(&alert)),
                    // Of another version's programs, while they are replaced.
                    Some(_) | None => {}
                }
            }
            let refused = refusing
                .into_iter()
                .map(|backend| Event::Refused { backend });
            for event in refused.chain(said) {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            match readable.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => {
                    return tracing::warn!(
                        "the data plane's alerts are not heard any more: {error}"
                    );
                }
            }
        }
    });
    Ok(())
}

fn parse(item: &[u8]) -> Option<Alert> {
    let is_whole = item.len() == size_of::<Alert>();
    // SAFETY: so many bytes, all of integers; read without a need for alignment.
    is_whole.then(|| unsafe { item.as_ptr().cast::<Alert>().read_unaligned() })
}

fn cut(alert: &Alert) -> Event {
    Event::Cut {
        service: alert.service,
        client: SocketAddr::new(alert.client.into(), u16::from_be(alert.client_port)),
        port: u16::from_be(alert.service_port),
        sequence: alert.sequence,
    }
}
