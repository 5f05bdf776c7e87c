//! QUIC servers whose connection ids name them, and clients that move.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use ebb_tests::{
    lab::{Lab, Netns},
    pattern,
    scenario::LIMIT,
};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    RecvStream, ServerConfig, TokioRuntime, TransportConfig, VarInt,
    rustls::{
        RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
};
use rand::Rng as _;

const NAME: &str = "ebb.example";
/// Bytes of a short answer.
const SHORT: u32 = 20 << 10;
/// Bytes that a client takes without having read what came before.
const WINDOW: u32 = 64 << 10;
/// Bytes that a client reads of a long answer before it moves.
const BEGINNING: u32 = 32 << 10;
/// Bytes of a long one, which is not done before the client has read on.
const LONG: u32 = 4 * (BEGINNING + WINDOW);

/// Connection ids as `quic = {}` wants them: configuration 0, four bytes of server id, eight bytes that say nothing.
struct Ids([u8; 4]);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id: [u8; 13] = rand::rng().random();
        id[0] &= 0x1f;
        id[1..5].copy_from_slice(&self.0);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        13
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What a backend with this address goes by: an IPv4 address, or what tells the lab's IPv6 networks apart, whose hosts all
/// end alike.
pub fn server_id(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [_, _, a, b, c, d, ..] = v6.octets();
            [a, b, c, d]
        }
    }
}

/// A connection as its server sees it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The addresses that it was seen to come from.
    pub peers: BTreeSet<SocketAddr>,
}

/// The connections of a server.
pub type Log = Arc<Mutex<Vec<Seen>>>;

/// A server's certificate, which clients trust.
pub struct Certificate {
    chain: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Certificate {
    pub fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
        Ok(Self {
            chain: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
        })
    }
}

/// A server in the backend's namespace at `listen`, with `id` in its connection ids. It ends with the process.
pub fn serve(
    netns: &Netns,
    name: &str,
    listen: SocketAddr,
    id: [u8; 4],
    certificate: &Certificate,
) -> Result<Log> {
    let key = PrivateKeyDer::try_from(certificate.key.clone()).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::with_single_cert(vec![certificate.chain.clone()], key)?;
    let (netns, name) = (netns.clone(), name.to_owned());
    let log = Log::default();
    let (seen, (tell, told)) = (Arc::clone(&log), mpsc::channel());
    thread::spawn(move || -> Result<()> {
        netns.enter()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async move {
            let mut endpoint = EndpointConfig::default();
            endpoint.cid_generator(move || Box::new(Ids(id)));
            let socket = UdpSocket::bind(listen)?;
            let endpoint = Endpoint::new(endpoint, Some(config), socket, Arc::new(TokioRuntime))?;
            tell.send(())?;
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(answer(incoming, name.clone(), Arc::clone(&seen)));
            }
            Ok(())
        })
    });
    told.recv().context("the QUIC server does not start")?;
    Ok(log)
}

/// Answers each stream of a connection with this server's name and the bytes of the pattern that it asks for.
async fn answer(incoming: quinn::Incoming, name: String, log: Log) -> Result<()> {
    let connection = incoming.await?;
    let number = {
        let mut log = log.lock().expect("nobody panics with it");
        log.push(Seen::default());
        log.len() - 1
    };
    let see = || {
        let mut log = log.lock().expect("nobody panics with it");
        log[number].peers.insert(connection.remote_address());
    };
    loop {
        let (mut send, mut receive) = connection.accept_bi().await?;
        see();
        let (mut seed, mut length) = ([0; 8], [0; 4]);
        receive.read_exact(&mut seed).await?;
        receive.read_exact(&mut length).await?;
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        pattern::fill(u64::from_be_bytes(seed), 0, &mut bytes);
        send.write_all(&[u8::try_from(name.len())?]).await?;
        send.write_all(name.as_bytes()).await?;
        send.write_all(&bytes).await?;
        send.finish()?;
        see();
    }
}

/// A connection from a socket of its own.
pub struct User {
    endpoint: Endpoint,
    connection: Connection,
    /// Who answered first.
    pub server: String,
    asked: u64,
}

impl User {
    /// Connects from this address, and has an answer.
    pub async fn connect(
        from: IpAddr,
        target: SocketAddr,
        certificate: &Certificate,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.chain.clone())?;
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        let mut transport = TransportConfig::default();
        // A connection that is in use is never silent for as long as an idle timeout.
        transport.keep_alive_interval(Some(Duration::from_secs(1)));
        transport.stream_receive_window(VarInt::from_u32(WINDOW));
        config.transport_config(Arc::new(transport));
        let mut endpoint = Endpoint::client(SocketAddr::new(from, 0))?;
        endpoint.set_default_client_config(config);
        let connection = soon("connect", async {
            Ok(endpoint.connect(target, NAME)?.await?)
        })
        .await?;
        let mut user = Self {
            endpoint,
            connection,
            server: String::new(),
            asked: 0,
        };
        let mut answer = user.ask(SHORT).await?;
        answer.rest().await?;
        user.server = answer.server;
        Ok(user)
    }

    /// Asks for so many bytes; the answer has begun.
    async fn ask(&mut self, length: u32) -> Result<Answer> {
        let seed = self.asked;
        self.asked += 1;
        soon("ask", async {
            let (mut send, mut receive) = self.connection.open_bi().await?;
            send.write_all(&seed.to_be_bytes()).await?;
            send.write_all(&length.to_be_bytes()).await?;
            send.finish()?;
            let mut count = [0];
            receive.read_exact(&mut count).await?;
            let mut name = vec![0; count[0].into()];
            receive.read_exact(&mut name).await?;
            Ok(Answer {
                server: String::from_utf8(name)?,
                receive,
                seed,
                read: 0,
                length,
            })
        })
        .await
    }

    /// A whole answer, which must be of the same server as ever.
    pub async fn same(&mut self) -> Result<()> {
        let mut answer = self.ask(SHORT).await?;
        self.is_same(&answer)?;
        answer.rest().await
    }

    /// A long answer, of which the beginning has come.
    pub async fn begin(&mut self) -> Result<Answer> {
        let mut answer = self.ask(LONG).await?;
        self.is_same(&answer)?;
        answer.read(BEGINNING).await?;
        Ok(answer)
    }

    fn is_same(&self, answer: &Answer) -> Result<()> {
        let (own, other) = (&self.server, &answer.server);
        ensure!(own == other, "{other} instead of {own}");
        Ok(())
    }

    /// Goes on from another port of this address.
    pub fn migrate(&self, to: IpAddr) -> Result<()> {
        Ok(self
            .endpoint
            .rebind(UdpSocket::bind(SocketAddr::new(to, 0))?)?)
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.connection.close(VarInt::from_u32(0), b"done");
    }
}

/// An answer on its way.
pub struct Answer {
    server: String,
    receive: RecvStream,
    seed: u64,
    read: u32,
    length: u32,
}

impl Answer {
    /// Reads so many more bytes, and checks every one.
    async fn read(&mut self, count: u32) -> Result<()> {
        let mut bytes = vec![0; count as usize];
        let what = format!("{}'s bytes from {}", self.server, self.read);
        soon(&what, async {
            Ok(self.receive.read_exact(&mut bytes).await?)
        })
        .await?;
        pattern::check(self.seed, self.read.into(), &bytes)
            .map_err(|wrong| anyhow!("{what}: {wrong}"))?;
        self.read += count;
        Ok(())
    }

    /// Reads all that is left, and checks that nothing follows.
    pub async fn rest(&mut self) -> Result<()> {
        self.read(self.length - self.read).await?;
        let after = soon("the end", async { Ok(self.receive.read(&mut [0]).await?) }).await?;
        ensure!(after.is_none(), "more than {} bytes", self.length);
        Ok(())
    }
}

async fn soon<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let done = tokio::time::timeout(LIMIT, work).await;
    done.with_context(|| format!("{what}: not within {LIMIT:?}"))?
        .with_context(|| what.to_owned())
}

/// A second address of the lab's client, as another network would give it.
pub fn move_in(lab: &Lab, address: IpAddr, bits: u8) -> Result<()> {
    let mut command = lab.command("client", "ip");
    command.args(["addr", "add", &format!("{address}/{bits}"), "dev", "eth0"]);
    if address.is_ipv6() {
        command.arg("nodad");
    }
    let status = command.status().context("running ip (iproute2)")?;
    ensure!(status.success(), "ip addr add {address}: {status}");
    Ok(())
}
