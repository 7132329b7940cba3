//! Calls between nodes that crash and restart: each is executed once at most, and ends.

use dvs_dvk::core::exchange::{Key, Submission};
use dvs_dvk::core::inbox::{MessageKind, ReplyToken, Taken};
use dvs_dvk::core::link::DownReason;
use dvs_dvk::{Address, CallError, Lane, NodeId};
use dvs_sim::invariants::calls_end::CallsEnd;
use dvs_sim::invariants::once::Once;
use dvs_sim::node::{Application, DvkNode, Port, TICK};
use dvs_sim::seeds;
use dvs_sim::world::{Faults, MILLISECOND, Time, World};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const NODES: u16 = 3;
const RECONNECT: Time = 200 * MILLISECOND;

#[derive(Default)]
struct Shared {
    once: Once,
    ends: CallsEnd,
    /// Endpoints of the nodes' present lives.
    servers: BTreeMap<NodeId, Address>,
    failed: u64,
    fenced: Vec<NodeId>,
}

/// Calls random nodes, and answers calls, some at once and some later.
struct Peer {
    shared: Rc<RefCell<Shared>>,
    endpoint: Option<Key>,
    next: u64,
    late: Vec<ReplyToken>,
}

const CALL: u64 = 0;
const ANSWER: u64 = 1;

impl Peer {
    fn call(&mut self, port: &mut Port<'_, '_>) {
        let mut shared = self.shared.borrow_mut();
        let Some(source) = self.endpoint else { return };
        let servers: Vec<Address> = shared.servers.values().copied().collect();
        let Some(to) = servers.choose(port.context.random).copied() else { return };
        let number = self.next;
        self.next += 1;
        let deadline = port.context.now + port.context.random.random_range(1..500) * MILLISECOND;
        let own = port.node.exchange.address(source);
        let lane = *Lane::ALL.choose(port.context.random).unwrap();
        let kind = if port.context.random.random_bool(0.2) {
            MessageKind::Send
        } else {
            MessageKind::Call
        };
        let body = number.to_le_bytes().to_vec();
        let submission = Submission { source, to, kind, lane, body, deadline };
        shared.ends.begin(own, number, deadline);
        if port.submit(submission, Some(number)).is_err() {
            shared.ends.end(own, number);
        }
    }
}

impl Application for Peer {
    fn start(&mut self, port: &mut Port<'_, '_>) {
        let key = port.bind();
        self.endpoint = Some(key);
        let address = port.node.exchange.address(key);
        self.shared.borrow_mut().servers.insert(address.node, address);
        port.timer(MILLISECOND, CALL);
    }

    fn timer(&mut self, id: u64, port: &mut Port<'_, '_>) {
        if id == ANSWER {
            if let Some(token) = self.late.pop() {
                let mut commands = Vec::new();
                port.node.exchange.reply(token, Ok(vec![1]), &mut commands);
                port.carry(commands);
            }
            return;
        }
        self.call(port);
        let pause = port.context.random.random_range(1..5 * MILLISECOND);
        port.timer(pause, CALL);
    }

    fn message(&mut self, _: Key, message: Taken, port: &mut Port<'_, '_>) {
        let number = u64::from_le_bytes(message.body[..8].try_into().unwrap());
        self.shared.borrow_mut().once.execute((message.source, number));
        let Some(token) = message.reply else { return };
        if port.context.random.random_bool(0.3) {
            self.late.push(token);
            let after = port.context.random.random_range(1..100 * MILLISECOND);
            port.timer(after, ANSWER);
        } else {
            let mut commands = Vec::new();
            port.node.exchange.reply(token, Ok(vec![0]), &mut commands);
            port.carry(commands);
        }
    }

    fn finished(&mut self, call: u64, result: Result<Vec<u8>, CallError>, port: &mut Port<'_, '_>) {
        let Some(key) = self.endpoint else { return };
        let own = port.node.exchange.address(key);
        let mut shared = self.shared.borrow_mut();
        shared.ends.end(own, call);
        match result {
            Ok(_) => shared.once.answer((own, call)),
            Err(_) => shared.failed += 1,
        }
    }

    fn peer(&mut self, _: NodeId, _: u64, down: Option<DownReason>, port: &mut Port<'_, '_>) {
        if down == Some(DownReason::GivenUp) {
            // Others gave this life up: it must start anew.
            self.shared.borrow_mut().fenced.push(port.node.id);
        }
    }
}

fn node(id: u16, incarnation: u64, shared: &Rc<RefCell<Shared>>) -> DvkNode<Peer> {
    let shared = Rc::clone(shared);
    let peer = Peer { shared, endpoint: None, next: 0, late: Vec::new() };
    DvkNode::new(id, incarnation, NODES, RECONNECT, peer)
}

#[test]
fn calls_are_executed_once_at_most_and_end() {
    seeds::run("calls_are_executed_once_at_most_and_end", 30, |seed| {
        let shared = Rc::new(RefCell::new(Shared::default()));
        let mut world = World::new(seed, Faults { cut: 0.01, ..Faults::NONE });
        let mut lives = [1u64; NODES as usize];
        for id in 1..=NODES {
            world.add(node(id, 1, &shared));
        }
        let restart = |world: &mut World<DvkNode<Peer>>, lives: &mut [u64], at: usize| {
            if let Some(dead) = world.crash(at) {
                let mut shared = shared.borrow_mut();
                let own = dead.application.endpoint.map(|key| dead.core.exchange.address(key));
                if let Some(own) = own {
                    shared.ends.caller_died(own);
                }
                shared.servers.remove(&dead.core.id);
            }
            lives[at] += 1;
            let id = u16::try_from(at + 1).unwrap();
            world.restart(at, node(id, lives[at], &shared));
        };
        for _ in 0..100 {
            world.run_until(world.now() + 20 * MILLISECOND);
            shared.borrow().ends.check(world.now(), TICK);
            match world.random().random_range(0..16) {
                0 => {
                    let at = world.random().random_range(0..usize::from(NODES));
                    restart(&mut world, &mut lives, at);
                }
                1 => {
                    let one = world.random().random_range(0..usize::from(NODES));
                    world.separate(&[one], &[0, 1, 2]);
                }
                2..4 => world.heal(),
                4..6 => world.cut_any(),
                _ => {}
            }
            let fenced = std::mem::take(&mut shared.borrow_mut().fenced);
            for id in fenced {
                restart(&mut world, &mut lives, usize::from(id.0) - 1);
            }
        }
        world.heal();
        world.run_until(world.now() + 1000 * MILLISECOND);
        let shared = shared.borrow();
        shared.ends.check(world.now(), TICK);
        assert!(shared.once.answered() > 100, "{} answered", shared.once.answered());
        assert!(shared.failed > 0, "the faults hit the calls");
    });
}
