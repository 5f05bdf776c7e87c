//! What the data plane has to say at once, from the ring in the kernel to the core.

use std::os::fd::AsFd as _;

use anyhow::Context as _;
use tokio::{io::unix::AsyncFd, sync::mpsc};

use super::core::Event;
use crate::datapath::bpf::BpfDatapath;

/// Has the backends that refuse openings reported as [`Event::Refused`].
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
            let mut refusing = std::collections::BTreeSet::new();
            while let Some(item) = ring.next() {
                refusing.extend(<[u8; 4]>::try_from(&*item).map(u32::from_ne_bytes));
            }
            for backend in refusing {
                if events.send(Event::Refused { backend }).await.is_err() {
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
