//! Two or three containers of this machine as the nodes of one DC, joined in memory.

use dvs_carry::memory::{Delivery, MemoryNetwork};
use dvs_carry::{AttachRequest, Attacher, Carrier, CarrierConfig};
use dvs_container::launch::{
    Bytes, DescriptorSource, DescriptorSpec, LaunchCredentials, LaunchSpec, SessionSpec,
};
use dvs_container::{Container, ContainerEvent, ContainerSpec, KeeperProgram, RootSpec};
use dvs_linux::adapters::ContainerLauncher;
use dvs_linux::files::NoFiles;
use dvs_linux::ports::{PeerError, Peers, Pids};
use dvs_linux::{Config, Parts, Personality, ProgramRef, Statistics};
use dvs_pm::blocks::{Block, PidBlocks};
use dvs_pm::messages::Load;
use dvs_pm::placement::Policy;
use dvs_sys::seccomp::Listener;
use std::collections::HashMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

/// What a script did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Wait status.
    pub(crate) status: i32,
    /// Output, errors.
    pub(crate) output: (String, String),
}

/// The regular files of these tests are the same on all nodes: opened by their path.
#[derive(Debug)]
struct ByPath;

impl Attacher for ByPath {
    fn attach(&self, request: AttachRequest) -> Result<Vec<u8>, i32> {
        Ok(request.path)
    }
}

type Message = (u16, Vec<u8>);
type Inbox = (Weak<Personality>, Sender<Message>);

#[derive(Default)]
struct Network {
    nodes: Mutex<HashMap<u16, Inbox>>,
}

struct Port {
    node: u16,
    network: Arc<Network>,
}

impl Peers for Port {
    fn call(&self, to: u16, message: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, PeerError> {
        let personality = {
            let nodes = self.network.nodes.lock().unwrap();
            nodes.get(&to).and_then(|(node, _)| node.upgrade()).ok_or(PeerError::Gone(to))?
        };
        let (sender, receiver) = channel();
        let reply = Box::new(move |bytes| {
            let _ = sender.send(bytes);
        });
        personality.handle_call(self.node, &message, reply);
        receiver.recv_timeout(deadline).map_err(|_| PeerError::TimedOut(to))
    }

    fn post(&self, to: u16, message: Vec<u8>) -> Result<(), PeerError> {
        let nodes = self.network.nodes.lock().unwrap();
        let (_, inbox) = nodes.get(&to).ok_or(PeerError::Gone(to))?;
        inbox.send((self.node, message)).map_err(|_| PeerError::Gone(to))
    }
}

struct Leases {
    node: u16,
    blocks: Arc<Mutex<PidBlocks>>,
    network: Arc<Network>,
}

impl Pids for Leases {
    fn lease(&self) -> Option<Block> {
        let block = self.blocks.lock().unwrap().lease(self.node).ok()?;
        let others: Vec<_> = {
            let nodes = self.network.nodes.lock().unwrap();
            nodes.values().filter_map(|(node, _)| node.upgrade()).collect()
        };
        for other in others {
            other.block_leased(block, self.node);
        }
        Some(block)
    }
}

/// One node.
pub(crate) struct Node {
    pub(crate) container: Container,
    pub(crate) personality: Arc<Personality>,
    pub(crate) carrier: Arc<Carrier>,
    number: u16,
}

/// All nodes.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    network: Arc<Network>,
    carry: Arc<MemoryNetwork>,
}

impl Cluster {
    /// Starts nodes 1 to `count`.
    pub(crate) fn start(count: u16, policy: Policy) -> Cluster {
        let network = Arc::new(Network::default());
        let carry = MemoryNetwork::new(Delivery::Threaded);
        let blocks = Arc::new(Mutex::new(PidBlocks::new()));
        let mut nodes = Vec::new();
        for number in 1..=count {
            nodes.push(start_node(number, policy, &network, &carry, &blocks));
        }
        for node in &nodes {
            for other in 1..=count {
                let load = Load { runnable: 0, millicpus: 2000 };
                node.personality.node_load(other, load);
                for block in blocks.lock().unwrap().of_node(other) {
                    node.personality.block_leased(block, other);
                }
            }
        }
        Cluster { nodes, network, carry }
    }

    /// Runs a shell script as the first program of node 1.
    pub(crate) fn run(&self, script: &str, directory: &Path) -> Outcome {
        self.run_on(0, script, directory)
    }

    pub(crate) fn run_on(&self, node: usize, script: &str, directory: &Path) -> Outcome {
        let (out_read, out_write) = dvs_sys::descriptor::pipe().unwrap();
        let (err_read, err_write) = dvs_sys::descriptor::pipe().unwrap();
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let program = self.begin(node, script, directory, vec![null, out_write, err_write]);
        let read = |fd: OwnedFd| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                std::fs::File::from(fd).read_to_end(&mut text).unwrap();
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let (output, errors) = (read(out_read), read(err_read));
        let status = program.wait().status;
        Outcome { status, output: (output.join().unwrap(), errors.join().unwrap()) }
    }

    pub(crate) fn begin(
        &self,
        node: usize,
        script: &str,
        directory: &Path,
        descriptors: Vec<OwnedFd>,
    ) -> ProgramRef {
        let bytes = |text: &str| Bytes::from(text);
        let spec = LaunchSpec {
            pid: None,
            path: bytes("/bin/bash"),
            search_path: false,
            arguments: vec![bytes("/bin/bash"), bytes("-c"), bytes(script)],
            environment: vec![bytes("PATH=/usr/bin:/bin"), bytes("LC_ALL=C")],
            directory: bytes(directory.to_str().unwrap()),
            umask: 0o022,
            limits: Vec::new(),
            credentials: LaunchCredentials { groups: Some(Vec::new()), ..Default::default() },
            blocked_signals: 0,
            ignored_signals: 0,
            nice: 0,
            affinity: None,
            session: SessionSpec::New { terminal: None },
            descriptors: (0..descriptors.len())
                .map(|index| DescriptorSpec {
                    number: index as i32,
                    source: DescriptorSource::Passed(index as u16),
                })
                .collect(),
            hold: false,
            no_new_privileges: false,
            oom_score_adjust: None,
        };
        self.nodes[node].personality.run_program(spec, descriptors).expect("launch")
    }

    /// Takes a node away as if its daemon had been killed.
    pub(crate) fn lose(&mut self, number: u16) {
        self.network.nodes.lock().unwrap().remove(&number);
        self.carry.kill(number);
        let index = self.nodes.iter().position(|node| node.number == number).unwrap();
        let lost = self.nodes.remove(index);
        lost.container.end().expect("end");
        for node in &self.nodes {
            node.personality.node_lost(number);
        }
        lost.personality.container_gone();
        lost.personality.stop();
    }

    pub(crate) fn statistics(&self) -> Vec<Statistics> {
        self.nodes.iter().map(|node| node.personality.statistics()).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Err(error) = node.container.end() {
                eprintln!("node {}: {error}", node.number);
            }
            node.personality.container_gone();
            node.personality.stop();
            node.carrier.stop();
        }
    }
}

fn start_node(
    number: u16,
    policy: Policy,
    network: &Arc<Network>,
    carry: &Arc<MemoryNetwork>,
    blocks: &Arc<Mutex<PidBlocks>>,
) -> Node {
    let block = blocks.lock().unwrap().lease(number).unwrap();
    let root = RootSpec::Bind { path: "/".into(), writable: true };
    let name = format!("linux-test-{}-{number}", std::process::id());
    let mut spec = ContainerSpec::new(&name, root).with_id_range(100_000);
    spec.traps = dvs_linux::traps::numbers();
    spec.exec_cookie = 0x00d7_5e1e;
    spec.first_pid = Some(block.first);
    let place: Arc<OnceLock<Weak<Personality>>> = Arc::default();
    let target = Arc::clone(&place);
    let events = Box::new(move |event| {
        let Some(personality) = target.get().and_then(Weak::upgrade) else { return };
        match event {
            ContainerEvent::Program(event) => personality.launcher_event(&event),
            ContainerEvent::Gone => personality.container_gone(),
        }
    });
    let keeper = KeeperProgram::own().expect("own binary");
    let container = Container::start(&spec, &keeper, |_| {}, events).expect("container");
    let carrier = Arc::new(
        Carrier::start(
            CarrierConfig {
                multiplexer: format!("/proc/{}/root/dev/pts/ptmx", container.init).into(),
                ..CarrierConfig::new(number)
            },
            carry.port(number),
            Arc::new(ByPath),
        )
        .expect("carrier"),
    );
    carry.join(number, &carrier);
    let listener = Listener::from(container.listener.as_fd().try_clone_to_owned().unwrap());
    let personality = Personality::start(
        Config { node: number, first_placement: 1, policy, exec_cookie: spec.exec_cookie },
        Parts {
            listener,
            init: container.init,
            launcher: Arc::new(ContainerLauncher {
                launcher: container.launcher.clone(),
                init: container.init,
                launcher_pid: container.launcher_pid,
            }),
            carry: Arc::clone(&carrier) as Arc<dyn dvs_linux::ports::Carry>,
            peers: Arc::new(Port { node: number, network: Arc::clone(network) }),
            pids: Arc::new(Leases {
                node: number,
                blocks: Arc::clone(blocks),
                network: Arc::clone(network),
            }),
            files: Arc::new(NoFiles),
            network: None,
        },
    )
    .expect("personality");
    let _ = place.set(Arc::downgrade(&personality));
    let (inbox, messages) = channel::<Message>();
    let receiver = Arc::downgrade(&personality);
    std::thread::spawn(move || {
        for (from, bytes) in messages {
            let Some(personality) = receiver.upgrade() else { return };
            personality.handle_post(from, &bytes);
        }
    });
    network.nodes.lock().unwrap().insert(number, (Arc::downgrade(&personality), inbox));
    Node { container, personality, carrier, number }
}

/// The same script on the host itself.
pub(crate) fn native(script: &str, directory: &Path) -> Outcome {
    use std::os::unix::process::ExitStatusExt;
    let done = Command::new("/usr/bin/setsid")
        .args(["/bin/bash", "-c", script])
        .env_clear()
        .envs([("PATH", "/usr/bin:/bin"), ("LC_ALL", "C")])
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Outcome {
        status: done.status.into_raw(),
        output: (
            String::from_utf8_lossy(&done.stdout).into_owned(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        ),
    }
}
