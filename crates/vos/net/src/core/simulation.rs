//! The server and its members over a network that delays and reorders, with nodes that are lost.

use super::routes::Routes;
use super::server::{Command, Event, Server};
use crate::core::claims::exclude;
use crate::messages::{Answer, Ask, Binding, Confirmation, Notice, Protocol};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const STEPS: usize = 400;

/// What is under way.
#[derive(Debug, Clone, Copy)]
enum Flying {
    Event(Event),
    Notice { node: u16, ticket: u64, notice: Notice },
}

/// A socket as its own node knows it.
#[derive(Debug, Clone, Copy)]
struct Socket {
    binding: Binding,
    listens: bool,
}

struct World {
    random: StdRng,
    server: Server,
    members: BTreeMap<u16, Routes>,
    /// Sockets whose claim was granted and that exist.
    sockets: BTreeMap<(u16, u64), Socket>,
    /// Requests without an answer.
    open: BTreeMap<u64, (u16, u64, Socket)>,
    flying: Vec<Flying>,
    next: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        World {
            random: StdRng::seed_from_u64(seed),
            server: Server::new(1..=4),
            members: (1..=4).map(|node| (node, Routes::default())).collect(),
            sockets: BTreeMap::new(),
            open: BTreeMap::new(),
            flying: Vec::new(),
            next: 0,
        }
    }

    fn node(&mut self) -> u16 {
        let place = self.random.random_range(0..self.members.len());
        *self.members.keys().nth(place).expect("one node is left")
    }

    fn claims_something(&mut self) {
        let node = self.node();
        let addresses = ["0.0.0.0", "127.0.0.1", "10.77.0.1", "[::]", "[::1]"];
        let address = addresses[self.random.random_range(0..addresses.len())];
        let port = self.random.random_range(1..4);
        let udp = self.random.random_bool(0.5);
        let binding = Binding {
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            address: format!("{address}:{port}").parse().expect("an address"),
            only_v6: false,
            reuse_address: self.random.random_bool(0.3),
            reuse_port: self.random.random_bool(0.2),
            user: 0,
        };
        let listens = !udp && self.random.random_bool(0.5);
        self.next += 1;
        let (number, socket) = (self.next, self.next);
        // The kernel of the node decides between its own sockets.
        let rivals = self.sockets.iter().filter(|((owner, _), _)| *owner == node);
        if rivals.into_iter().any(|(_, old)| exclude(&old.binding, old.listens, &binding)) {
            return;
        }
        let ask =
            if listens { Ask::Listen { socket, binding } } else { Ask::Bind { socket, binding } };
        self.open.insert(number, (node, socket, Socket { binding, listens }));
        self.flying.push(Flying::Event(Event::Ask { from: node, number, ask }));
    }

    fn closes_something(&mut self) {
        let keys: Vec<_> = self.sockets.keys().copied().collect();
        if keys.is_empty() {
            return;
        }
        let key = keys[self.random.random_range(0..keys.len())];
        self.sockets.remove(&key);
        self.next += 1;
        let ask = Ask::Release { socket: key.1 };
        let event = Event::Ask { from: key.0, number: self.next, ask };
        // News of it may be lost with the events of the kernel.
        if self.random.random_bool(0.8) {
            self.flying.push(Flying::Event(event));
        }
    }

    fn loses_a_node(&mut self) {
        if self.members.len() < 3 {
            return;
        }
        let node = self.node();
        self.members.remove(&node);
        self.sockets.retain(|(owner, _), _| *owner != node);
        self.open.retain(|_, (owner, ..)| *owner != node);
        self.flying.retain(|flying| match flying {
            Flying::Event(Event::Ask { from, .. }) => *from != node,
            Flying::Event(_) => true,
            Flying::Notice { node: to, .. } => *to != node,
        });
        self.flying.push(Flying::Event(Event::NodeLost(node)));
    }

    fn one_arrives(&mut self) {
        if self.flying.is_empty() {
            return;
        }
        let place = self.random.random_range(0..self.flying.len());
        match self.flying.swap_remove(place) {
            Flying::Event(event) => {
                for command in self.server.step(event) {
                    self.command(command);
                }
            }
            Flying::Notice { node, ticket, notice } => {
                let Some(routes) = self.members.get_mut(&node) else { return };
                let confirmation = match notice {
                    Notice::Route { version, key, node } => {
                        routes.apply(version, key, node);
                        Confirmation::Yes
                    }
                    Notice::Verify { socket, .. } => {
                        let waits = self
                            .open
                            .values()
                            .any(|(owner, number, _)| (*owner, *number) == (node, socket));
                        if waits || self.sockets.contains_key(&(node, socket)) {
                            Confirmation::Yes
                        } else {
                            Confirmation::Gone
                        }
                    }
                };
                let confirmation = Some(confirmation);
                self.flying.push(Flying::Event(Event::Confirmed { ticket, confirmation }));
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Tell { node, ticket, notice } => {
                // Notices to a node that is lost go nowhere.
                if self.members.contains_key(&node) {
                    self.flying.push(Flying::Notice { node, ticket, notice });
                }
            }
            Command::Answer { number, answer } => {
                let Some((node, socket, claim)) = self.open.remove(&number) else { return };
                if answer == Answer::Done {
                    self.granted(node, socket, claim);
                }
            }
        }
    }

    fn granted(&mut self, node: u16, socket: u64, claim: Socket) {
        for ((owner, _), old) in &self.sockets {
            assert!(
                *owner == node || !exclude(&old.binding, old.listens, &claim.binding),
                "{claim:?} beside {old:?}"
            );
        }
        self.sockets.insert((node, socket), claim);
        let binding = claim.binding;
        if binding.protocol != Protocol::Udp || binding.reuse_address || binding.reuse_port {
            return;
        }
        let Some(only) = super::claims::datagrams_for(&binding) else { return };
        for (member, routes) in &self.members {
            let to = routes.get((binding.address.port(), only));
            assert_eq!(to, Some(node), "node {member} does not know the way to {binding:?}");
        }
    }
}

#[test]
fn no_port_is_given_twice_and_every_answer_comes() {
    let seeds = std::env::var("DVS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(150);
    let one = std::env::var("DVS_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        println!("DVS_SEED={seed}");
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            match world.random.random_range(0..100) {
                0..25 => world.claims_something(),
                25..40 => world.closes_something(),
                40 if world.random.random_bool(0.3) => world.loses_a_node(),
                _ => world.one_arrives(),
            }
        }
        for _ in 0..100_000 {
            if world.flying.is_empty() {
                break;
            }
            world.one_arrives();
        }
        assert!(world.flying.is_empty() && world.open.is_empty(), "{:?}", world.open);
    }
}
