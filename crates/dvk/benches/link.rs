//! Messages between two processes over a unix link, beside a bare unix stream socket.
//!
//! `cargo bench -p dvs-dvk`. Ours and the bare socket run in turns, in the same two processes; the
//! median of the turns' medians and the ratio are printed.

use dvs_dvk::{Address, DcId, Endpoint, Lane, Node, NodeConfig};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

const CLUSTER: [u8; 16] = [1; 16];
const DC: DcId = DcId(1);
const LONG: Duration = Duration::from_secs(60);
const TURNS: usize = 7;
const ROUND_TRIPS: usize = 10_000;
const MESSAGES: usize = 200_000;
const OUTSTANDING: usize = 64;
const BLOCK: usize = 1 << 20;
const BLOCKS: usize = 500;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("child") => child(Path::new(&arguments[2])),
        _ if arguments.iter().any(|argument| argument == "--bench") => parent(),
        _ => println!("SKIPPED: runs with cargo bench -p dvs-dvk"),
    }
}

fn child(folder: &Path) {
    let node = Node::new(NodeConfig::new(2, CLUSTER, 1));
    node.connect(1, folder.join("link"), LONG).unwrap();
    let dc = node.dc(DC, 1);
    let echo = dc.bind("echo").unwrap();
    echo.set_handler(|mut message| {
        let body = std::mem::take(&mut message.body);
        message.reply(body);
    });
    let sink = dc.bind("sink").unwrap();
    sink.set_handler(|message| message.reply(Vec::new()));
    // The bare echo; blocks are answered by one byte each.
    let mut stream = UnixStream::connect(folder.join("bare")).unwrap();
    let mut block = vec![0; BLOCK];
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let length = u32::from_le_bytes(length) as usize;
        stream.read_exact(&mut block[..length]).unwrap();
        let answer = if length == BLOCK { 1 } else { length };
        stream.write_all(&block[..answer]).unwrap();
    }
}

struct Bench {
    client: Endpoint,
    echo: Address,
    sink: Address,
    bare: UnixStream,
}

fn parent() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::new(NodeConfig::new(1, CLUSTER, 1));
    node.listen(folder.path().join("link")).unwrap();
    let dc = node.dc(DC, 1);
    let listener = UnixListener::bind(folder.path().join("bare")).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("child")
        .arg(folder.path())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let (bare, _) = listener.accept().unwrap();
    let mut bench = Bench {
        client: dc.endpoint().unwrap(),
        echo: dc.resolve("echo", LONG).unwrap(),
        sink: dc.resolve("sink", LONG).unwrap(),
        bare,
    };
    // `cargo bench -p dvs-dvk --bench link -- rate` measures one figure alone.
    let wanted = |name: &str| {
        let known = ["small", "block", "rate", "local"];
        let mut named = known.iter().filter(|name| std::env::args().any(|arg| arg == **name));
        named.clone().count() == 0 || named.any(|named| *named == name)
    };
    if wanted("small") {
        let what = "round trip of 64 bytes";
        bench.compare(what, Bench::our_round_trip, Bench::bare_round_trip);
    }
    if wanted("block") {
        bench.compare("block of 1 MiB, one at a time", Bench::our_block, Bench::bare_block);
    }
    if wanted("rate") {
        let rate = median((0..TURNS).map(|_| bench.our_rate()).collect());
        println!("calls of 64 bytes, {OUTSTANDING} outstanding: {rate:.0} k/s");
    }
    if wanted("local") {
        let local = dc.endpoint().unwrap();
        local.set_handler(|message| message.reply(Vec::new()));
        let to = local.address();
        let local = median((0..TURNS).map(|_| bench.round_trips(&to)).collect());
        println!("round trip inside the process: {local:.2} us");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn times(count: usize, mut once: impl FnMut()) -> f64 {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        once();
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    median(times)
}

impl Bench {
    fn compare(&mut self, what: &str, ours: fn(&mut Bench) -> f64, bare: fn(&mut Bench) -> f64) {
        let (mut our, mut other) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            our.push(ours(self));
            other.push(bare(self));
        }
        let (our, other) = (median(our), median(other));
        println!("{what}: link {our:.1} us, bare socket {other:.1} us, ratio {:.2}", our / other);
    }

    fn round_trips(&mut self, to: &Address) -> f64 {
        let client = &self.client;
        times(ROUND_TRIPS, || {
            client.call(to, vec![7; 64], LONG).unwrap();
        })
    }

    fn our_round_trip(&mut self) -> f64 {
        let to = self.echo;
        self.round_trips(&to)
    }

    fn bare_round_trip(&mut self) -> f64 {
        let mut message = vec![7; 68];
        message[..4].copy_from_slice(&64u32.to_le_bytes());
        let mut answer = [0; 64];
        let stream = &mut self.bare;
        times(ROUND_TRIPS, || {
            stream.write_all(&message).unwrap();
            stream.read_exact(&mut answer).unwrap();
        })
    }

    fn our_block(&mut self) -> f64 {
        let (client, sink) = (&self.client, self.sink);
        let block = vec![1; BLOCK];
        times(BLOCKS, || {
            client.call_on(Lane::Bulk, &sink, block.clone(), LONG).unwrap();
        })
    }

    fn bare_block(&mut self) -> f64 {
        let mut message = vec![1; BLOCK + 4];
        message[..4].copy_from_slice(&u32::try_from(BLOCK).unwrap().to_le_bytes());
        let stream = &mut self.bare;
        times(BLOCKS, || {
            stream.write_all(&message.clone()).unwrap();
            stream.read_exact(&mut [0]).unwrap();
        })
    }

    /// Thousand calls per second with many in flight, each begun by the answer to another.
    fn our_rate(&mut self) -> f64 {
        let (finished, end) = channel();
        let flow = Arc::new(Flow {
            client: self.client.clone(),
            to: self.echo,
            left: AtomicUsize::new(MESSAGES),
            running: AtomicUsize::new(OUTSTANDING),
            finished,
        });
        let start = Instant::now();
        dvs_dvk::batched(|| {
            for _ in 0..OUTSTANDING {
                Flow::next(&flow);
            }
        });
        end.recv_timeout(LONG).unwrap();
        MESSAGES as f64 / start.elapsed().as_secs_f64() / 1e3
    }
}

struct Flow {
    client: Endpoint,
    to: Address,
    left: AtomicUsize,
    running: AtomicUsize,
    finished: Sender<()>,
}

impl Flow {
    fn next(flow: &Arc<Flow>) {
        let take = |left: usize| left.checked_sub(1);
        if flow.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            if flow.running.fetch_sub(1, Ordering::Relaxed) == 1 {
                flow.finished.send(()).unwrap();
            }
            return;
        }
        let again = Arc::clone(flow);
        flow.client.call_with(Lane::Small, &flow.to, vec![7; 64], LONG, move |answer| {
            answer.unwrap();
            Flow::next(&again);
        });
    }
}
