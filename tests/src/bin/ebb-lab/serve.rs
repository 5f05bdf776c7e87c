//! `ebb-lab serve`.

use std::{io::Write as _, net::SocketAddr, process::ExitCode};

use anyhow::{Context as _, Result};
use ebb_tests::{client::raise_open_files, datagram::EchoServer, server::Server};
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `ebb-lab serve`.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Name in every answer's X-Backend header
    #[arg(long)]
    name: String,
    /// Address and port to listen on; may be given several times
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// Address and port to echo datagrams at; may be given several times
    #[arg(long)]
    udp: Vec<SocketAddr>,
}

impl Serve {
    /// Serves until SIGTERM or SIGINT. Says `listening ADDRESS...` once it does.
    pub fn run(self) -> Result<ExitCode> {
        raise_open_files()?;
        // One thread: a server has little to do, and the lab has many of them.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> Result<ExitCode> {
        let server = Server::bind(&self.name, &self.listen)
            .with_context(|| format!("listen on {:?}", self.listen))?;
        let echo = EchoServer::bind(&self.name, &self.udp)
            .with_context(|| format!("take datagrams on {:?}", self.udp))?;
        let addresses: Vec<_> = server
            .addresses()?
            .iter()
            .map(SocketAddr::to_string)
            .collect();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        println!("listening {}", addresses.join(" "));
        std::io::stdout().flush()?;
        tokio::select! {
            ended = server.run() => ended.context("accept connections")?,
            ended = echo.run() => ended.context("take datagrams")?,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}
