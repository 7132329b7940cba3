//! The authority for the nodes and pid blocks of one DC, as a deterministic state machine.

use crate::blocks::PidBlocks;
use crate::messages::{
    Answer, Ask, Client, Load, MAX_MEMBERS, Member, Notice, PROTOCOL, Refusal, Request,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What happens to the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node asks.
    Request(Request),
    /// The failure detector gave a node up.
    NodeLost(u16),
    /// Every node has confirmed that nothing of a lost node is left.
    NodeForgotten(u16),
}

/// What the manager wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Answer a request.
    Reply {
        /// To whom.
        to: Client,
        /// Its number.
        sequence: u64,
        /// The answer.
        answer: Answer,
    },
    /// Tell one node.
    Tell {
        /// The node.
        node: u16,
        /// What.
        notice: Notice,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Node {
    incarnation: u64,
    load: Load,
    last_sequence: u64,
    last_answer: Answer,
}

/// State of the manager of one DC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manager {
    nodes: BTreeMap<u16, Node>,
    /// Highest incarnation seen of nodes that are gone: an old life never comes back.
    ended: BTreeMap<u16, u64>,
    blocks: PidBlocks,
}

impl Manager {
    /// A DC without nodes.
    #[must_use]
    pub fn new() -> Self {
        Manager { blocks: PidBlocks::new(), ..Manager::default() }
    }

    /// One event; the commands are to be carried out in order.
    pub fn step(&mut self, event: Event) -> Vec<Command> {
        match event {
            Event::Request(request) => self.request(request),
            Event::NodeLost(node) => self.lost(node),
            Event::NodeForgotten(node) => {
                self.blocks.forget(node);
                Vec::new()
            }
        }
    }

    /// The nodes that take part.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.nodes.iter().map(|(node, state)| member(*node, state))
    }

    /// The pid blocks.
    #[must_use]
    pub fn blocks(&self) -> &PidBlocks {
        &self.blocks
    }

    fn request(&mut self, request: Request) -> Vec<Command> {
        let Request { client, sequence, body } = request;
        let reply = |answer| Command::Reply { to: client, sequence, answer };
        if self.ended.get(&client.node).is_some_and(|ended| client.incarnation <= *ended) {
            return vec![reply(Answer::Refused(Refusal::NotAMember(client.node)))];
        }
        let known = self.nodes.get(&client.node).map(|node| node.incarnation);
        let joins = matches!(body, Ask::Join { .. });
        let mut commands = Vec::new();
        match known {
            Some(incarnation) if incarnation == client.incarnation => {
                let node = &self.nodes[&client.node];
                if sequence == node.last_sequence {
                    return vec![reply(node.last_answer.clone())];
                }
                if sequence < node.last_sequence {
                    return vec![reply(Answer::Refused(Refusal::Outdated(sequence)))];
                }
            }
            Some(incarnation) if incarnation < client.incarnation && joins => {
                commands.extend(self.lost(client.node));
            }
            None if joins => {}
            _ => return vec![reply(Answer::Refused(Refusal::NotAMember(client.node)))],
        }
        let (answer, notices) = self.execute(client, &body);
        if let Some(node) = self.nodes.get_mut(&client.node) {
            node.last_sequence = sequence;
            node.last_answer = answer.clone();
        }
        commands.push(reply(answer));
        for notice in notices {
            commands.extend(self.tell_others(client.node, &notice));
        }
        commands
    }

    fn execute(&mut self, client: Client, body: &Ask) -> (Answer, Vec<Notice>) {
        match body {
            Ask::Join { protocol, millicpus } => self.join(client, *protocol, *millicpus),
            Ask::LeaseBlock => match self.blocks.lease(client.node) {
                Ok(block) => (Answer::Block(block), vec![Notice::Leased(block, client.node)]),
                Err(error) => (Answer::NoBlock(error), Vec::new()),
            },
            Ask::GiveBack(block) => {
                self.blocks.give_back(client.node, *block);
                (Answer::Done, Vec::new())
            }
            Ask::Report(load) => {
                if let Some(node) = self.nodes.get_mut(&client.node) {
                    node.load = *load;
                }
                (Answer::Done, vec![Notice::Load(client.node, *load)])
            }
            Ask::Leave => {
                let notices = self.remove(client.node);
                (Answer::Done, notices)
            }
        }
    }

    fn join(&mut self, client: Client, protocol: u32, millicpus: u32) -> (Answer, Vec<Notice>) {
        if protocol != PROTOCOL {
            let refusal = Refusal::Protocol { node: client.node, ours: PROTOCOL, theirs: protocol };
            return (Answer::Refused(refusal), Vec::new());
        }
        if self.nodes.len() >= MAX_MEMBERS && !self.nodes.contains_key(&client.node) {
            return (Answer::Refused(Refusal::TooManyMembers), Vec::new());
        }
        let block = match self.blocks.lease(client.node) {
            Ok(block) => block,
            Err(error) => return (Answer::NoBlock(error), Vec::new()),
        };
        let node = Node {
            incarnation: client.incarnation,
            load: Load { runnable: 0, millicpus },
            last_sequence: 0,
            last_answer: Answer::Done,
        };
        let joined = member(client.node, &node);
        self.nodes.insert(client.node, node);
        let answer = Answer::Joined {
            block,
            members: self.members().collect(),
            blocks: self.blocks.leases().collect(),
        };
        (answer, vec![Notice::Joined(joined), Notice::Leased(block, client.node)])
    }

    fn lost(&mut self, node: u16) -> Vec<Command> {
        let notices = self.remove(node);
        notices.iter().flat_map(|notice| self.tell_others(node, notice)).collect()
    }

    fn remove(&mut self, node: u16) -> Vec<Notice> {
        let Some(state) = self.nodes.remove(&node) else { return Vec::new() };
        self.ended.insert(node, state.incarnation);
        self.blocks.node_lost(node);
        vec![Notice::Gone(Client { node, incarnation: state.incarnation })]
    }

    fn tell_others(&self, except: u16, notice: &Notice) -> Vec<Command> {
        self.nodes
            .keys()
            .filter(|node| **node != except)
            .map(|node| Command::Tell { node: *node, notice: notice.clone() })
            .collect()
    }
}

fn member(node: u16, state: &Node) -> Member {
    Member { client: Client { node, incarnation: state.incarnation }, load: state.load }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::Block;

    fn client(node: u16) -> Client {
        Client { node, incarnation: 1 }
    }

    fn ask(client: Client, sequence: u64, body: Ask) -> Event {
        Event::Request(Request { client, sequence, body })
    }

    fn join(manager: &mut Manager, client: Client) -> Vec<Command> {
        manager.step(ask(client, 1, Ask::Join { protocol: PROTOCOL, millicpus: 2000 }))
    }

    fn answer(commands: &[Command]) -> &Answer {
        commands
            .iter()
            .find_map(|command| match command {
                Command::Reply { answer, .. } => Some(answer),
                Command::Tell { .. } => None,
            })
            .expect("an answer")
    }

    #[test]
    fn a_repeated_request_is_answered_and_not_done_again() {
        let mut manager = Manager::new();
        join(&mut manager, client(1));
        let first = manager.step(ask(client(1), 2, Ask::LeaseBlock));
        let again = manager.step(ask(client(1), 2, Ask::LeaseBlock));
        assert_eq!(answer(&first), answer(&again));
        assert_eq!(manager.blocks().of_node(1).count(), 2, "join and one lease");
        let old = manager.step(ask(client(1), 1, Ask::LeaseBlock));
        assert_eq!(answer(&old), &Answer::Refused(Refusal::Outdated(1)));
    }

    #[test]
    fn nodes_hear_of_each_other() {
        let mut manager = Manager::new();
        join(&mut manager, client(1));
        let commands = join(&mut manager, client(2));
        let Answer::Joined { members, blocks, .. } = answer(&commands) else { panic!() };
        assert_eq!(members.len(), 2);
        assert_eq!(blocks.len(), 2);
        assert!(commands.iter().any(|command| matches!(
            command,
            Command::Tell {
                node: 1,
                notice: Notice::Joined(Member { client: Client { node: 2, .. }, .. })
            }
        )));
    }

    #[test]
    fn an_ended_life_stays_ended() {
        let mut manager = Manager::new();
        join(&mut manager, client(1));
        join(&mut manager, client(2));
        let commands = manager.step(Event::NodeLost(2));
        assert_eq!(commands, vec![Command::Tell { node: 1, notice: Notice::Gone(client(2)) }]);
        let refused = manager.step(ask(client(2), 2, Ask::LeaseBlock));
        assert_eq!(answer(&refused), &Answer::Refused(Refusal::NotAMember(2)));
        let again = Client { node: 2, incarnation: 2 };
        assert!(matches!(answer(&join(&mut manager, again)), Answer::Joined { .. }));
        assert!(manager.blocks().owner(Block { first: 8192 }.first) == Some(1));
    }

    #[test]
    fn a_newer_life_replaces_the_older_one() {
        let mut manager = Manager::new();
        join(&mut manager, client(1));
        join(&mut manager, client(2));
        let newer = Client { node: 2, incarnation: 7 };
        let commands = join(&mut manager, newer);
        assert!(commands.contains(&Command::Tell { node: 1, notice: Notice::Gone(client(2)) }));
        assert!(matches!(answer(&commands), Answer::Joined { .. }));
    }

    #[test]
    fn other_versions_are_refused_by_name() {
        let mut manager = Manager::new();
        let commands = manager.step(ask(client(1), 1, Ask::Join { protocol: 99, millicpus: 1 }));
        assert!(matches!(answer(&commands), Answer::Refused(Refusal::Protocol { theirs: 99, .. })));
        assert_eq!(manager.members().count(), 0);
    }
}
