//! The process manager over a network that loses, doubles and reorders, with nodes that crash.

use dvs_pm::blocks::BLOCK;
use dvs_pm::core::{Command, Event as PmEvent, Manager};
use dvs_pm::messages::{Answer, Ask, Client, Notice, PROTOCOL, Refusal, Request};
use dvs_sim::invariants::disjoint_blocks::DisjointBlocks;
use dvs_sim::seeds;
use dvs_sim::world::{Actor, Context, Event, Faults, MILLISECOND, World};
use rand::Rng;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

const NODES: u16 = 4;
const LEASES: u64 = 12;
const REPEAT: u64 = 15 * MILLISECOND;

#[derive(Clone)]
enum Message {
    Request(Request),
    /// To one life of a node, as links carry it: another life must not take it for its own.
    Answer(Client, u64, Answer),
    Notice(Notice),
    /// What a failure detector says to the manager.
    Lost(u16),
}

/// Actor 0 is the manager, the others are the nodes of the same number.
enum Party {
    Manager(Box<Manager>),
    Node(Node),
}

struct Node {
    client: Client,
    sequence: u64,
    asked: Option<Request>,
    blocks: Rc<RefCell<DisjointBlocks>>,
    leased: BTreeSet<u32>,
    over: bool,
}

impl Node {
    fn ask(&mut self, body: Ask, context: &mut Context<'_, Message>) {
        self.sequence += 1;
        let request = Request { client: self.client, sequence: self.sequence, body };
        self.asked = Some(request.clone());
        context.send(0, Message::Request(request));
    }

    fn answered(&mut self, sequence: u64, answer: Answer, context: &mut Context<'_, Message>) {
        let current = self.asked.as_ref().is_some_and(|request| request.sequence == sequence);
        if !current {
            return; // A repeated answer.
        }
        self.asked = None;
        match answer {
            Answer::Joined { block, .. } | Answer::Block(block) => {
                assert!(self.leased.insert(block.first), "each lease gives another block");
                self.blocks.borrow_mut().takes(block, self.client.node, self.client.incarnation);
                if self.sequence <= LEASES {
                    self.ask(Ask::LeaseBlock, context);
                }
            }
            Answer::Refused(Refusal::NotAMember(node)) => {
                assert_eq!(node, self.client.node);
                self.over = true;
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Actor for Party {
    type Message = Message;

    fn on_event(&mut self, event: Event<Message>, context: &mut Context<'_, Message>) {
        match (self, event) {
            (Party::Manager(manager), Event::Message { message, .. }) => {
                let event = match message {
                    Message::Request(request) => PmEvent::Request(request),
                    Message::Lost(node) => PmEvent::NodeLost(node),
                    _ => return,
                };
                for command in manager.step(event) {
                    match command {
                        Command::Reply { to, sequence, answer } => {
                            let answer = Message::Answer(to, sequence, answer);
                            context.send(usize::from(to.node), answer);
                        }
                        Command::Tell { node, notice } => {
                            context.send(usize::from(node), Message::Notice(notice));
                        }
                    }
                }
            }
            (Party::Node(node), Event::Start) => {
                node.ask(Ask::Join { protocol: PROTOCOL, millicpus: 1000 }, context);
                context.timer(REPEAT, 0);
            }
            (Party::Node(node), Event::Timer(_)) => {
                if let Some(request) = &node.asked {
                    context.send(0, Message::Request(request.clone()));
                }
                context.timer(REPEAT, 0);
            }
            (
                Party::Node(node),
                Event::Message { message: Message::Answer(to, sequence, answer), .. },
            ) if to == node.client => node.answered(sequence, answer, context),
            (
                Party::Node(node),
                Event::Message { message: Message::Notice(Notice::Leased(block, to)), .. },
            ) => {
                assert_eq!(block.first % BLOCK, 0);
                let ours = node.leased.contains(&block.first);
                assert!(!ours || to == node.client.node, "a block of ours went to node {to}");
            }
            _ => {}
        }
    }
}

fn node(number: u16, incarnation: u64, blocks: &Rc<RefCell<DisjointBlocks>>) -> Party {
    Party::Node(Node {
        client: Client { node: number, incarnation },
        sequence: 0,
        asked: None,
        blocks: Rc::clone(blocks),
        leased: BTreeSet::new(),
        over: false,
    })
}

#[test]
fn no_pid_belongs_to_two_nodes() {
    seeds::run("no_pid_belongs_to_two_nodes", 200, |seed| {
        let blocks = Rc::new(RefCell::new(DisjointBlocks::default()));
        let faults =
            Faults { delay: 1000..20 * MILLISECOND, loss: 0.2, duplication: 0.3, ..Faults::NONE };
        let mut world = World::new(seed, faults);
        world.add(Party::Manager(Box::new(Manager::new())));
        for number in 1..=NODES {
            world.add(node(number, 1, &blocks));
        }
        let mut lives = [1; NODES as usize + 1];
        for _ in 0..12 {
            let pause = world.random().random_range(1..60) * MILLISECOND;
            world.run_until(world.now() + pause);
            let at = world.random().random_range(1..=usize::from(NODES));
            world.crash(at);
            // Sometimes the failure detector speaks before the next life, sometimes never.
            if world.random().random_bool(0.5) {
                let lost = u16::try_from(at).unwrap();
                world.with(0, |_, context| context.send(0, Message::Lost(lost)));
                let pause = world.random().random_range(1..40) * MILLISECOND;
                world.run_until(world.now() + pause);
            }
            lives[at] += 1;
            world.restart(at, node(u16::try_from(at).unwrap(), lives[at], &blocks));
        }
        world.run_until(world.now() + 8000 * MILLISECOND);
        let Some(Party::Manager(manager)) = world.actor(0) else { panic!() };
        for number in 1..=NODES {
            let Some(Party::Node(node)) = world.actor(usize::from(number)) else { panic!() };
            let held: BTreeSet<u32> =
                manager.blocks().of_node(number).map(|block| block.first).collect();
            if node.over {
                continue; // A late word of the failure detector met the new life.
            }
            assert_eq!(node.leased, held, "node and manager agree in the end");
            assert_eq!(held.len() as u64, LEASES + 1);
        }
        assert!(blocks.borrow().len() as u64 > LEASES);
    });
}
