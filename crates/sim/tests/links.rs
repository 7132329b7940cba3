//! Posts between endpoints of three nodes over links that are cut all the time.

use dvs_dvk::core::exchange::{Key, Submission};
use dvs_dvk::core::inbox::{MessageKind, Taken};
use dvs_dvk::core::link::DownReason;
use dvs_dvk::{Address, CallError, Lane, NodeId};
use dvs_sim::invariants::order::Order;
use dvs_sim::node::{Application, DvkNode, Port};
use dvs_sim::seeds;
use dvs_sim::world::{Faults, MILLISECOND, Time, World};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::cell::RefCell;
use std::rc::Rc;

const NODES: u16 = 3;
const FOREVER: Time = u64::MAX / 4;
const POSTS: u32 = 150;

#[derive(Default)]
struct Shared {
    order: Order,
    ends: Vec<Address>,
}

/// Posts to random endpoints of all nodes now and then.
struct Poster {
    shared: Rc<RefCell<Shared>>,
    ends: Vec<Key>,
    left: u32,
}

impl Application for Poster {
    fn start(&mut self, port: &mut Port<'_, '_>) {
        for _ in 0..2 {
            let key = port.bind();
            self.ends.push(key);
            let address = port.node.exchange.address(key);
            self.shared.borrow_mut().ends.push(address);
        }
        port.timer(MILLISECOND, 0);
    }

    fn timer(&mut self, _: u64, port: &mut Port<'_, '_>) {
        if self.left == 0 {
            return;
        }
        let mut shared = self.shared.borrow_mut();
        let source = *self.ends.choose(port.context.random).unwrap();
        let to = *shared.ends.choose(port.context.random).unwrap();
        let lane = *Lane::ALL.choose(port.context.random).unwrap();
        let flow = (port.node.exchange.address(source), to, lane);
        let number = shared.order.send(flow);
        let mut body = vec![lane.index() as u8];
        body.extend(number.to_le_bytes());
        body.resize(9 + port.context.random.random_range(0..3000), 0);
        let kind = MessageKind::Post;
        match port.submit(Submission { source, to, kind, lane, body, deadline: 0 }, None) {
            Ok(()) => self.left -= 1,
            Err(CallError::NotConnected { .. } | CallError::Busy { .. }) => {
                shared.order.unsend(flow);
            }
            Err(error) => panic!("{error}"),
        }
        let pause = port.context.random.random_range(1..3 * MILLISECOND);
        port.timer(pause, 0);
    }

    fn message(&mut self, at: Key, message: Taken, port: &mut Port<'_, '_>) {
        let lane = Lane::at(usize::from(message.body[0])).unwrap();
        let number = u64::from_le_bytes(message.body[1..9].try_into().unwrap());
        let flow = (message.source, port.node.exchange.address(at), lane);
        self.shared.borrow_mut().order.receive(flow, number);
    }

    fn finished(&mut self, _: u64, _: Result<Vec<u8>, CallError>, _: &mut Port<'_, '_>) {}

    fn peer(&mut self, peer: NodeId, _: u64, down: Option<DownReason>, _: &mut Port<'_, '_>) {
        assert_eq!(down, None, "node {peer} was given up");
    }
}

fn world(seed: u64, faults: Faults) -> (World<DvkNode<Poster>>, Rc<RefCell<Shared>>) {
    let shared = Rc::new(RefCell::new(Shared::default()));
    let mut world = World::new(seed, faults);
    for id in 1..=NODES {
        let poster = Poster { shared: Rc::clone(&shared), ends: Vec::new(), left: POSTS };
        world.add(DvkNode::new(id, 1, NODES, FOREVER, poster));
    }
    (world, shared)
}

#[test]
fn cut_links_lose_double_and_reorder_nothing() {
    seeds::run("cut_links_lose_double_and_reorder_nothing", 60, |seed| {
        let faults = Faults { cut: 0.03, ..Faults::NONE };
        let (mut world, shared) = world(seed, faults);
        for _ in 0..60 {
            world.run_until(world.now() + 10 * MILLISECOND);
            match world.random().random_range(0..8) {
                0 => {
                    let one = world.random().random_range(0..3);
                    world.separate(&[one], &[0, 1, 2]);
                }
                1 | 2 => world.heal(),
                3 => world.cut_any(),
                _ => {}
            }
        }
        world.heal();
        world.faults.cut = 0.0;
        world.run_until(world.now() + 5000 * MILLISECOND);
        let shared = shared.borrow();
        shared.order.complete();
        assert_eq!(shared.order.received(), u64::from(NODES) * u64::from(POSTS));
        let resent: u64 = (1..=NODES)
            .flat_map(|peer| Lane::ALL.map(|lane| (peer, lane)))
            .filter_map(|(peer, lane)| world.actor(0)?.core.link(NodeId(peer)).map(|l| (l, lane)))
            .map(|(link, lane)| link.statistics(lane).resent)
            .sum();
        assert!(resent > 0, "the faults hit the traffic");
    });
}
