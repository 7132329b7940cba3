//! Links between hosts: endpoints of two processes over TLS, beside bare rustls, plain TCP and the
//! unix socket of one machine, all in the same two processes and over the loopback.

use crate::Bench;
use crate::figures::{Compare, Report, Series};
use anyhow::{Context, Result, ensure};
use dvs_dvk::tls::{Authority, CERTIFICATE_LIFE, Credentials, NodeKey, node_name};
use dvs_dvk::{Address, DcId, Endpoint, Lane, Node, NodeConfig, NodeId};
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

const CLUSTER: [u8; 16] = [1; 16];
const DC: DcId = DcId(1 << 40);
const LONG: Duration = Duration::from_secs(60);
/// Bytes of a short message.
const SMALL: usize = 64;
/// Bytes of a block.
const BLOCK: usize = 64 << 10;
/// Round trips, calls and blocks of one round.
const TRIPS: usize = 3000;
const CALLS: usize = 60_000;
const BLOCKS: usize = 3000;
/// Calls under way at a time.
const OUTSTANDING: usize = 64;
/// Blocks under way at a time.
const BLOCKS_OUTSTANDING: usize = 16;
/// Set in a length: it is not to be answered, but for the last one.
const ONE_WAY: u32 = 1 << 31;

/// A stream that is written and read in turns.
trait Duplex: Read + Write {}
impl<T: Read + Write> Duplex for T {}

pub(crate) fn measure(bench: &Bench, rounds: u32, report: &mut Report) -> Result<()> {
    let authority = Authority::create(CLUSTER)?;
    let folder = tempfile::tempdir()?;
    for id in [1, 2] {
        store(&authority, id, folder.path())?;
    }
    let own = std::env::current_exe()?;
    let mut command = Command::new(own);
    command.args(["inner", "link-peer"]).arg(folder.path());
    let mut command = bench.pinned(command);
    let mut peer = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("the other process")?;
    let mut lines = BufReader::new(peer.stdout.take().context("its output")?).lines();
    let mut port =
        || -> Result<SocketAddr> { Ok(lines.next().context("the other process ended")??.parse()?) };
    let (link, bare_tls, plain) = (port()?, port()?, port()?);
    let result = compare(rounds, folder.path(), link, bare_tls, plain, report);
    drop(peer.stdin.take());
    peer.wait()?;
    if bench.pin.is_some() {
        report.note("Only the other process is pinned; start this with taskset to pin both.");
    }
    result
}

fn compare(
    rounds: u32,
    folder: &Path,
    link: SocketAddr,
    bare_tls: SocketAddr,
    plain: SocketAddr,
    report: &mut Report,
) -> Result<()> {
    let hosts = Node::new(NodeConfig::new(1, CLUSTER, 1));
    hosts.set_credentials(&load(1, folder)?, None)?;
    hosts.connect(2, link, LONG)?;
    let machine = Node::new(NodeConfig::new(3, CLUSTER, 1));
    machine.connect(2, folder.join("link"), LONG)?;
    let over_tls = Ours::new(&hosts)?;
    let over_unix = Ours::new(&machine)?;
    let mut tls: Box<dyn Duplex> = Box::new(tls_client(folder, bare_tls)?);
    let mut tcp: Box<dyn Duplex> = Box::new(connect(plain)?);
    let mut trips: [Series; 4] = Default::default();
    let mut blocks: [Series; 3] = Default::default();
    let mut rate = [Series::default(), Series::default()];
    for _ in 0..rounds {
        trips[0].0.push(bare_trips(&mut *tls)?);
        trips[1].0.push(over_tls.trips()?);
        trips[2].0.push(bare_trips(&mut *tcp)?);
        trips[3].0.push(over_unix.trips()?);
        blocks[0].0.push(bare_blocks(&mut *tls)?);
        blocks[1].0.push(over_tls.many(Lane::Bulk, BLOCK, BLOCKS, BLOCKS_OUTSTANDING)?);
        blocks[2].0.push(bare_blocks(&mut *tcp)?);
        rate[0].0.push(over_tls.many(Lane::Small, SMALL, CALLS, OUTSTANDING)?);
        rate[1].0.push(over_unix.many(Lane::Small, SMALL, CALLS, OUTSTANDING)?);
    }
    let line = |what: &str, series: &mut Series, goal: Option<&'static str>| {
        (what.to_owned(), std::mem::take(series), goal)
    };
    let [tls_trips, our_trips, tcp_trips, unix_trips] = &mut trips;
    report.group(
        "round trip of 64 bytes between two processes",
        "us",
        Compare::Ratio,
        vec![
            line("bare rustls", tls_trips, None),
            line("endpoints over TLS", our_trips, Some("×1.2 of bare rustls")),
            line("plain TCP", tcp_trips, None),
            line("endpoints over a unix socket", unix_trips, None),
        ],
    );
    let [tls_blocks, our_blocks, tcp_blocks] = &mut blocks;
    report.group(
        "a block of 64 KiB, many under way, each",
        "us",
        Compare::Ratio,
        vec![
            line("bare rustls", tls_blocks, None),
            line("endpoints over TLS", our_blocks, Some("×1.25 of bare rustls")),
            line("plain TCP", tcp_blocks, None),
        ],
    );
    let [tls_rate, unix_rate] = &mut rate;
    report.group(
        "a call of 64 bytes, 64 under way, each",
        "us",
        Compare::Ratio,
        vec![
            line("endpoints over TLS", tls_rate, Some("2 us: 500 k/s")),
            line("endpoints over a unix socket", unix_rate, None),
        ],
    );
    Ok(())
}

/// The other process: serves until its standard input ends.
pub(crate) fn peer(folder: &Path) -> Result<()> {
    let node = Node::new(NodeConfig::new(2, CLUSTER, 1));
    node.set_credentials(&load(2, folder)?, None)?;
    node.listen(folder.join("link"))?;
    let dc = node.dc(DC, 2);
    let echo = dc.bind("echo")?;
    echo.set_handler(|mut message| {
        let body = std::mem::take(&mut message.body);
        // Blocks go one way.
        message.reply(if body.len() == SMALL { body } else { Vec::new() });
    });
    println!("{}", node.listen_tcp("127.0.0.1:0".parse()?)?);
    let config = server_config(folder)?;
    let tls = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", tls.local_addr()?);
    let plain = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", plain.local_addr()?);
    std::thread::spawn(move || -> Result<()> {
        let (socket, _) = tls.accept()?;
        socket.set_nodelay(true)?;
        let connection = ServerConnection::new(config)?;
        answer(&mut rustls::StreamOwned::new(connection, socket))
    });
    std::thread::spawn(move || -> Result<()> {
        let (mut socket, _) = plain.accept()?;
        socket.set_nodelay(true)?;
        answer(&mut socket)
    });
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// The bare echo: a length and as many bytes; the same back, or, for one way, a byte for the last.
fn answer(stream: &mut dyn Duplex) -> Result<()> {
    let mut body = vec![0; BLOCK];
    let mut blocks = 0;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        let size = usize::try_from(length & !ONE_WAY)?;
        ensure!(size <= BLOCK, "a block too long");
        stream.read_exact(body.get_mut(..size).unwrap_or_default())?;
        if length & ONE_WAY == 0 {
            stream.write_all(body.get(..size).unwrap_or_default())?;
        } else {
            blocks += 1;
            if blocks % BLOCKS == 0 {
                stream.write_all(&[1])?;
            }
        }
        stream.flush()?;
    }
}

fn each(start: Instant, count: usize) -> f64 {
    start.elapsed().as_secs_f64() * 1e6 / count as f64
}

fn message(size: usize, flags: u32) -> Result<Vec<u8>> {
    let mut message = (u32::try_from(size)? | flags).to_le_bytes().to_vec();
    message.resize(4 + size, 7);
    Ok(message)
}

fn bare_trips(stream: &mut dyn Duplex) -> Result<f64> {
    let message = message(SMALL, 0)?;
    let mut answer = [0; SMALL];
    let start = Instant::now();
    for _ in 0..TRIPS {
        stream.write_all(&message)?;
        stream.flush()?;
        stream.read_exact(&mut answer)?;
    }
    Ok(each(start, TRIPS))
}

fn bare_blocks(stream: &mut dyn Duplex) -> Result<f64> {
    let message = message(BLOCK, ONE_WAY)?;
    let start = Instant::now();
    for _ in 0..BLOCKS {
        stream.write_all(&message)?;
    }
    stream.flush()?;
    stream.read_exact(&mut [0])?;
    Ok(each(start, BLOCKS))
}

/// An endpoint here and one over there.
struct Ours {
    client: Endpoint,
    echo: Address,
}

impl Ours {
    fn new(node: &Node) -> Result<Ours> {
        let dc = node.dc(DC, 2);
        Ok(Ours { client: dc.endpoint()?, echo: dc.resolve("echo", LONG)? })
    }

    fn trips(&self) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..TRIPS {
            self.client.call(&self.echo, vec![7; SMALL], LONG)?;
        }
        Ok(each(start, TRIPS))
    }

    fn many(&self, lane: Lane, size: usize, count: usize, at_a_time: usize) -> Result<f64> {
        let (finished, end) = channel();
        let flow = Arc::new(Flow {
            client: self.client.clone(),
            to: self.echo,
            lane,
            size,
            left: AtomicUsize::new(count),
            running: AtomicUsize::new(at_a_time),
            finished,
        });
        let start = Instant::now();
        dvs_dvk::batched(|| (0..at_a_time).for_each(|_| Flow::next(&flow)));
        end.recv_timeout(LONG).context("calls that never ended")?;
        Ok(each(start, count))
    }
}

/// Calls of which each is begun by the answer to another.
struct Flow {
    client: Endpoint,
    to: Address,
    lane: Lane,
    size: usize,
    left: AtomicUsize,
    running: AtomicUsize,
    finished: Sender<()>,
}

impl Flow {
    fn next(flow: &Arc<Flow>) {
        let take = |left: usize| left.checked_sub(1);
        if flow.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            if flow.running.fetch_sub(1, Ordering::Relaxed) == 1 {
                // Somebody waits, or has given up.
                let _ = flow.finished.send(());
            }
            return;
        }
        let again = Arc::clone(flow);
        flow.client.call_with(flow.lane, &flow.to, vec![7; flow.size], LONG, move |answer| {
            // A failed one ends its chain, and the measurement by its time.
            if answer.is_ok() {
                Flow::next(&again);
            }
        });
    }
}

fn store(authority: &Authority, id: u16, folder: &Path) -> Result<()> {
    let key = NodeKey::generate()?;
    let issued = authority.issue(NodeId(id), &key.public(), CERTIFICATE_LIFE)?;
    std::fs::write(folder.join(format!("certificate{id}")), issued.certificate)?;
    std::fs::write(folder.join(format!("key{id}")), key.private())?;
    std::fs::write(folder.join("authority"), authority.certificate())?;
    Ok(())
}

fn load(id: u16, folder: &Path) -> Result<Credentials> {
    Ok(Credentials {
        cluster: CLUSTER,
        node: NodeId(id),
        certificate: std::fs::read(folder.join(format!("certificate{id}")))?,
        key: std::fs::read(folder.join(format!("key{id}")))?,
        authority: std::fs::read(folder.join("authority"))?,
    })
}

/// What both bare ends use: the same versions and ciphers as links do.
struct Bare {
    provider: Arc<rustls::crypto::CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Bare {
    fn new(id: u16, folder: &Path) -> Result<Bare> {
        let credentials = load(id, folder)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(credentials.authority))?;
        let cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
        Ok(Bare {
            provider: Arc::new(rustls::crypto::CryptoProvider {
                cipher_suites,
                ..default_provider()
            }),
            roots: Arc::new(roots),
            chain: vec![CertificateDer::from(credentials.certificate)],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(credentials.key)),
        })
    }
}

fn server_config(folder: &Path) -> Result<Arc<ServerConfig>> {
    let Bare { provider, roots, chain, key } = Bare::new(2, folder)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

fn tls_client(
    folder: &Path,
    to: SocketAddr,
) -> Result<rustls::StreamOwned<ClientConnection, TcpStream>> {
    let Bare { provider, roots, chain, key } = Bare::new(1, folder)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    let name = ServerName::try_from(node_name(&CLUSTER, NodeId(2)))?;
    let connection = ClientConnection::new(Arc::new(config), name)?;
    Ok(rustls::StreamOwned::new(connection, connect(to)?))
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(to)?;
    socket.set_nodelay(true)?;
    Ok(socket)
}
