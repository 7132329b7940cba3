//! What the tests share: nodes in one process, joined by unix sockets in a temporary folder.
#![allow(dead_code)] // every test file uses a part of it

use dvs_dvk::{Dc, DcId, Node, NodeConfig};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Bound of every wait: long, because it is reached only by a failure.
pub(crate) const LONG: Duration = Duration::from_secs(30);
pub(crate) const CLUSTER: [u8; 16] = [7; 16];
pub(crate) const DC: DcId = DcId(42);

pub(crate) fn config(id: u16) -> NodeConfig {
    // A cut link must not count as a death on a machine that is busy with other tests.
    NodeConfig { reconnect: Duration::from_secs(10), ..NodeConfig::new(id, CLUSTER, 1) }
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) folder: TempDir,
}

impl Cluster {
    /// Nodes 1 to `count`, each connected to each.
    pub(crate) fn new(count: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nodes: Vec<Node> = (1..=count).map(|id| Node::new(config(id))).collect();
        let cluster = Cluster { nodes, folder };
        let _ = cluster.dc(0);
        for (index, node) in cluster.nodes.iter().enumerate() {
            node.listen(cluster.path(index)).unwrap();
            for other in 0..index {
                node.connect(other as u16 + 1, cluster.path(other), LONG).unwrap();
            }
        }
        cluster
    }

    pub(crate) fn path(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("node{}", index + 1))
    }

    /// The container on a node; its home is the first one.
    pub(crate) fn dc(&self, index: usize) -> Dc {
        self.nodes[index].dc(DC, 1)
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
