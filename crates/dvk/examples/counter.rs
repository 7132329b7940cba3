//! A shared counter: one server, any number of clients on other nodes.
//!
//! ```sh
//! counter server /tmp/counter.sock &
//! counter client 2 /tmp/counter.sock 1000 &
//! counter client 3 /tmp/counter.sock 1000
//! ```
//! Each client adds one, so many times, and prints the last value that it saw.

use dvs_dvk::typed::{Caller, serve};
use dvs_dvk::{DcId, Node, NodeConfig, NodeId};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

const CLUSTER: [u8; 16] = *b"counter example!";
const DC: DcId = DcId(1);
const SERVER: NodeId = NodeId(1);
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
enum Request {
    Add(u64),
    Get,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["server", socket] => server(socket),
        ["client", node, socket, times] => client(node.parse()?, socket, times.parse()?),
        _ => Err("counter server SOCKET | counter client NODE SOCKET TIMES".into()),
    }
}

fn node(id: NodeId) -> Result<Node, Box<dyn Error>> {
    // Every life of a node needs a higher number than the one before.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let incarnation = u64::try_from(now.as_nanos())?;
    Ok(Node::new(NodeConfig::new(id, CLUSTER, incarnation)))
}

fn server(socket: &str) -> Result<(), Box<dyn Error>> {
    let node = node(SERVER)?;
    let endpoint = node.dc(DC, SERVER).bind("counter")?;
    let counter = AtomicU64::new(0);
    serve(&endpoint, 0, move |_client, request| match request {
        Request::Add(amount) => counter.fetch_add(amount, Ordering::Relaxed) + amount,
        Request::Get => counter.load(Ordering::Relaxed),
    })?;
    node.listen(socket)?;
    println!("ready");
    // Serves until its standard input ends.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn client(id: u16, socket: &str, times: u64) -> Result<(), Box<dyn Error>> {
    let node = node(NodeId(id))?;
    node.connect(SERVER, socket, TIMEOUT)?;
    let dc = node.dc(DC, SERVER);
    let server = dc.resolve("counter", TIMEOUT)?;
    let counter: Caller<Request, u64> = Caller::new(dc.endpoint()?, server);
    for _ in 0..times {
        counter.call(&Request::Add(1), TIMEOUT)?;
    }
    println!("{}", counter.call(&Request::Get, TIMEOUT)?);
    Ok(())
}
