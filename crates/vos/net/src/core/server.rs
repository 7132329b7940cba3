//! The authority over the ports of one DC: which socket has which port on which node.
//!
//! A claim that conflicts with one of another node is not refused at once: news of a closed socket
//! may still be on its way, so the other node is asked whether its socket exists. A claim on a UDP
//! port is granted when every node has confirmed its new way for datagrams, so that whoever hears of
//! the port afterwards reaches it.

use super::claims::{datagrams_for, exclude, fits, takes_v4};
use crate::messages::{Answer, Ask, Binding, Confirmation, Notice, Place, Protocol, RouteKey};
use dvs_container::network::ephemeral_ports;
use std::collections::{BTreeMap, BTreeSet};

/// Most sockets with a claim.
pub const MAX_SOCKETS: usize = 65_536;
/// Most UDP ports with a way of their own: each is one or two rules that every packet may meet.
pub const MAX_ROUTES: usize = 1024;
/// Most requests that wait for other nodes.
pub const MAX_PENDING: usize = 4096;

/// A socket, anywhere in the DC.
type SocketKey = (u16, u64);

/// What happens to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A member asks; `number` names the request in the answer.
    Ask {
        /// Who.
        from: u16,
        /// The request's number, new for each.
        number: u64,
        /// What.
        ask: Ask,
    },
    /// A member confirmed a notice, or will not (it did not answer in time: it is about to be lost).
    Confirmed {
        /// The notice's ticket.
        ticket: u64,
        /// What it said; `None`: nothing.
        confirmation: Option<Confirmation>,
    },
    /// A node is gone.
    NodeLost(u16),
}

/// What the server wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Answer a request.
    Answer {
        /// Its number.
        number: u64,
        /// The answer.
        answer: Answer,
    },
    /// Tell a member; its confirmation comes back as an event with this ticket, or none does.
    Tell {
        /// The member.
        node: u16,
        /// Names the notice.
        ticket: u64,
        /// What.
        notice: Notice,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    binding: Binding,
    listens: bool,
    /// Grows with every claim: datagrams go to the youngest socket that takes them.
    age: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pending {
    from: u16,
    ask: Ask,
    /// Tickets that it waits for.
    waits: BTreeSet<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Ticket {
    node: u16,
    about: About,
    /// Requests that wait for it.
    requests: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// A way for datagrams.
    Route(RouteKey),
    /// Whether a socket exists.
    Socket(SocketKey),
}

/// State of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// All nodes that there ever were, which have their parts of the ephemeral ports for ever.
    parts: Vec<u16>,
    members: BTreeSet<u16>,
    claims: BTreeMap<SocketKey, Claim>,
    by_port: BTreeMap<(Protocol, u16), BTreeSet<SocketKey>>,
    routes: BTreeMap<RouteKey, u16>,
    pending: BTreeMap<u64, Pending>,
    tickets: BTreeMap<u64, Ticket>,
    next: u64,
    version: u64,
}

impl Server {
    /// A DC over these nodes, in which nothing is bound.
    #[must_use]
    pub fn new(members: impl IntoIterator<Item = u16>) -> Self {
        let members: BTreeSet<u16> = members.into_iter().collect();
        Server { parts: members.iter().copied().collect(), members, ..Server::default() }
    }

    /// One event; the commands are to be carried out in order.
    pub fn step(&mut self, event: Event) -> Vec<Command> {
        let mut commands = Vec::new();
        match event {
            Event::Ask { from, .. } if !self.members.contains(&from) => {}
            Event::Ask { from, number, ask } => self.ask(from, number, ask, &mut commands),
            Event::Confirmed { ticket, confirmation } => {
                self.confirmed(ticket, confirmation, &mut commands);
            }
            Event::NodeLost(node) => self.lost(node, &mut commands),
        }
        commands
    }

    /// How many sockets have a claim.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.claims.len()
    }

    fn ask(&mut self, from: u16, number: u64, ask: Ask, commands: &mut Vec<Command>) {
        let answer = match ask {
            Ask::Bind { .. } | Ask::Listen { .. } if self.pending.len() >= MAX_PENDING => {
                Some(Answer::Full)
            }
            Ask::Bind { socket, binding } => {
                self.claim(from, number, ask, socket, binding, commands)
            }
            Ask::Listen { socket, binding } => {
                self.claim(from, number, ask, socket, binding, commands)
            }
            Ask::Release { socket } => {
                self.release((from, socket), commands);
                None
            }
            Ask::Find { protocol, target } => Some(Answer::At(self.find(from, protocol, target))),
        };
        if let Some(answer) = answer {
            commands.push(Command::Answer { number, answer });
        }
    }

    /// The answer, or `None` when other nodes have to be waited for.
    fn claim(
        &mut self,
        from: u16,
        number: u64,
        ask: Ask,
        socket: u64,
        binding: Binding,
        commands: &mut Vec<Command>,
    ) -> Option<Answer> {
        let key = (from, socket);
        if !self.claims.contains_key(&key) && self.claims.len() >= MAX_SOCKETS {
            return Some(Answer::Full);
        }
        if let Some((rival, protocol)) = self.rival(from, &binding) {
            let ticket = self.ticket(rival.0, About::Socket(rival), Some(number));
            let waits = BTreeSet::from([ticket]);
            self.pending.insert(number, Pending { from, ask, waits });
            let notice = Notice::Verify { socket: rival.1, protocol };
            commands.push(Command::Tell { node: rival.0, ticket, notice });
            return None;
        }
        let old = self.claims.get(&key).copied();
        if let Some(old) = old {
            self.unlist(key, &old.binding);
        }
        let listens = matches!(ask, Ask::Listen { .. });
        let age = self.number();
        self.claims.insert(key, Claim { binding, listens, age });
        let port = (binding.protocol, binding.address.port());
        self.by_port.entry(port).or_default().insert(key);
        let bindings = old.into_iter().map(|old| old.binding).chain([binding]);
        let keys: BTreeSet<RouteKey> =
            bindings.filter_map(|binding| self.route_key(from, &binding)).collect();
        let waits = self.reroute(keys, Some(number), commands);
        if self.routes.len() > MAX_ROUTES {
            self.release(key, commands);
            return Some(Answer::Full);
        }
        if waits.is_empty() {
            return Some(Answer::Done);
        }
        self.pending.insert(number, Pending { from, ask, waits });
        None
    }

    /// A socket of another node that excludes this claim.
    fn rival(&self, from: u16, binding: &Binding) -> Option<(SocketKey, Protocol)> {
        let sockets = self.by_port.get(&(binding.protocol, binding.address.port()))?;
        // The kernel decides between the sockets of one node.
        let after = from.checked_add(1).map(|next| sockets.range((next, 0)..));
        let others = sockets.range(..(from, 0)).chain(after.into_iter().flatten());
        let mut claims = others.filter_map(|key| Some((*key, self.claims.get(key)?)));
        claims
            .find(|(_, claim)| exclude(&claim.binding, claim.listens, binding))
            .map(|(key, claim)| (key, claim.binding.protocol))
    }

    fn find(&self, from: u16, protocol: Protocol, target: std::net::SocketAddr) -> Option<Place> {
        let sockets = self.by_port.get(&(protocol, target.port()))?;
        let fitting = sockets.iter().filter_map(|key| {
            let claim = self.claims.get(key)?;
            if protocol == Protocol::Tcp && !claim.listens {
                return None;
            }
            let fit = fits(&claim.binding, protocol, target)?;
            // The best fit; among equals the own node's, which costs nothing to reach, then the
            // youngest.
            Some(((fit, key.0 == from, claim.age), key.0, claim.binding))
        });
        let (_, node, binding) = fitting.max_by_key(|(rank, ..)| *rank)?;
        Some(Place { node, takes_v4: takes_v4(&binding) })
    }

    fn confirmed(
        &mut self,
        ticket: u64,
        confirmation: Option<Confirmation>,
        commands: &mut Vec<Command>,
    ) {
        let Some(Ticket { about, requests, .. }) = self.tickets.remove(&ticket) else { return };
        if let About::Socket(rival) = about
            && confirmation == Some(Confirmation::Gone)
        {
            self.release(rival, commands);
        }
        for number in requests {
            let Some(pending) = self.pending.get_mut(&number) else { continue };
            pending.waits.remove(&ticket);
            if !pending.waits.is_empty() {
                continue;
            }
            let Some(pending) = self.pending.remove(&number) else { continue };
            match about {
                About::Route(_) => commands.push(Command::Answer { number, answer: Answer::Done }),
                About::Socket(rival) if self.claims.contains_key(&rival) => {
                    commands.push(Command::Answer { number, answer: Answer::InUse });
                }
                // The rival is gone: there may be another.
                About::Socket(_) => self.ask(pending.from, number, pending.ask, commands),
            }
        }
    }

    fn lost(&mut self, node: u16, commands: &mut Vec<Command>) {
        self.members.remove(&node);
        // What it asked is answered to nobody.
        self.pending.retain(|_, pending| pending.from != node);
        let gone: Vec<SocketKey> =
            self.claims.range((node, 0)..=(node, u64::MAX)).map(|(key, _)| *key).collect();
        for key in gone {
            self.release(key, commands);
        }
        let unanswered: Vec<u64> = self
            .tickets
            .iter()
            .filter(|(_, ticket)| ticket.node == node)
            .map(|(number, _)| *number)
            .collect();
        for ticket in unanswered {
            self.confirmed(ticket, None, commands);
        }
    }

    fn release(&mut self, key: SocketKey, commands: &mut Vec<Command>) {
        let Some(claim) = self.claims.remove(&key) else { return };
        self.unlist(key, &claim.binding);
        self.reroute(self.route_key(key.0, &claim.binding), None, commands);
    }

    fn unlist(&mut self, key: SocketKey, binding: &Binding) {
        let port = (binding.protocol, binding.address.port());
        if let Some(sockets) = self.by_port.get_mut(&port) {
            sockets.remove(&key);
            if sockets.is_empty() {
                self.by_port.remove(&port);
            }
        }
    }

    /// Brings routes up to date; the tickets of those who are told, or were told before and have not
    /// confirmed yet.
    fn reroute(
        &mut self,
        keys: impl IntoIterator<Item = RouteKey>,
        request: Option<u64>,
        commands: &mut Vec<Command>,
    ) -> BTreeSet<u64> {
        let mut waits = BTreeSet::new();
        for key in keys {
            let sockets = self.by_port.get(&(Protocol::Udp, key.0)).into_iter().flatten();
            let takers = sockets.filter_map(|socket| {
                let claim = self.claims.get(socket)?;
                let its = self.route_key(socket.0, &claim.binding);
                (its == Some(key)).then_some((claim.age, socket.0))
            });
            let node = takers.max().map(|(_, node)| node);
            if self.routes.get(&key).copied() == node {
                let Some(number) = request else { continue };
                for (ticket, told) in &mut self.tickets {
                    if told.about == About::Route(key) {
                        told.requests.push(number);
                        waits.insert(*ticket);
                    }
                }
                continue;
            }
            match node {
                Some(node) => self.routes.insert(key, node),
                None => self.routes.remove(&key),
            };
            self.version += 1;
            let notice = Notice::Route { version: self.version, key, node };
            for member in self.members.clone() {
                let ticket = self.ticket(member, About::Route(key), request);
                waits.insert(ticket);
                commands.push(Command::Tell { node: member, ticket, notice });
            }
        }
        waits
    }

    /// The way for datagrams that a node's claim needs; none if the port is in the node's own part of
    /// the ephemeral ports, to which the way is known.
    fn route_key(&self, node: u16, binding: &Binding) -> Option<RouteKey> {
        let only = (binding.protocol == Protocol::Udp).then(|| datagrams_for(binding)).flatten()?;
        let port = binding.address.port();
        let (first, last) = ephemeral_ports(&self.parts, node);
        (!(first..=last).contains(&port)).then_some((port, only))
    }

    fn ticket(&mut self, node: u16, about: About, request: Option<u64>) -> u64 {
        let number = self.number();
        let requests = request.into_iter().collect();
        self.tickets.insert(number, Ticket { node, about, requests });
        number
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(protocol: Protocol, text: &str) -> Binding {
        Binding {
            protocol,
            address: text.parse().unwrap(),
            only_v6: false,
            reuse_address: false,
            reuse_port: false,
            user: 0,
        }
    }

    /// Asks, and confirms all that is told; notices of existence with this.
    fn ask(server: &mut Server, from: u16, number: u64, ask: Ask, exists: bool) -> Option<Answer> {
        let mut commands = server.step(Event::Ask { from, number, ask });
        let mut answer = None;
        while let Some(command) = commands.pop() {
            match command {
                Command::Answer { number: which, answer: given } => {
                    assert_eq!((which, answer), (number, None));
                    answer = Some(given);
                }
                Command::Tell { ticket, notice, .. } => {
                    let verify = matches!(notice, Notice::Verify { .. });
                    let confirmation =
                        if verify && !exists { Confirmation::Gone } else { Confirmation::Yes };
                    let confirmation = Some(confirmation);
                    commands.extend(server.step(Event::Confirmed { ticket, confirmation }));
                }
            }
        }
        answer
    }

    fn find(server: &mut Server, from: u16, target: &str) -> Option<u16> {
        let ask_ = Ask::Find { protocol: Protocol::Tcp, target: target.parse().unwrap() };
        match ask(server, from, 999, ask_, true) {
            Some(Answer::At(place)) => place.map(|place| place.node),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn listeners_are_found_until_they_go() {
        let mut server = Server::new([1, 2, 3]);
        let binding = claim(Protocol::Tcp, "0.0.0.0:80");
        let bind = Ask::Bind { socket: 7, binding };
        assert_eq!(ask(&mut server, 1, 1, bind, true), Some(Answer::Done));
        assert_eq!(find(&mut server, 2, "127.0.0.1:80"), None, "not before it listens");
        let listen = Ask::Listen { socket: 7, binding };
        assert_eq!(ask(&mut server, 1, 2, listen, true), Some(Answer::Done));
        assert_eq!(ask(&mut server, 1, 3, listen, true), Some(Answer::Done), "again");
        assert_eq!(find(&mut server, 2, "127.0.0.1:80"), Some(1));
        assert_eq!(find(&mut server, 2, "127.0.0.1:81"), None);
        // Another node's claim: refused while the socket exists, granted when it is gone after all.
        let rival = Ask::Bind { socket: 8, binding };
        assert_eq!(ask(&mut server, 2, 4, rival, true), Some(Answer::InUse));
        assert_eq!(ask(&mut server, 2, 5, rival, false), Some(Answer::Done));
        assert_eq!(find(&mut server, 3, "127.0.0.1:80"), None);
        assert_eq!(ask(&mut server, 2, 6, Ask::Release { socket: 8 }, true), None);
        assert_eq!(server.sockets(), 0);
        // Strangers are not heard.
        assert_eq!(ask(&mut server, 9, 7, bind, true), None);
    }

    #[test]
    fn the_own_node_comes_first_among_equals() {
        let mut server = Server::new([1, 2, 3]);
        let binding = Binding { reuse_port: true, ..claim(Protocol::Tcp, "0.0.0.0:80") };
        for node in [1, 2] {
            let listen = Ask::Listen { socket: 7, binding };
            let number = u64::from(node);
            assert_eq!(ask(&mut server, node, number, listen, true), Some(Answer::Done));
        }
        assert_eq!(find(&mut server, 1, "127.0.0.1:80"), Some(1));
        assert_eq!(find(&mut server, 2, "127.0.0.1:80"), Some(2));
        assert!(find(&mut server, 3, "127.0.0.1:80").is_some());
        server.step(Event::NodeLost(1));
        assert_eq!(find(&mut server, 3, "127.0.0.1:80"), Some(2));
    }

    #[test]
    fn a_udp_port_is_granted_when_all_know_the_way() {
        let mut server = Server::new([1, 2, 3]);
        let binding = claim(Protocol::Udp, "127.0.0.1:53");
        let bind = Ask::Bind { socket: 7, binding };
        let commands = server.step(Event::Ask { from: 2, number: 1, ask: bind });
        let tickets: Vec<u64> = commands
            .iter()
            .filter_map(|command| match command {
                Command::Tell { ticket, notice: Notice::Route { node: Some(2), .. }, .. } => {
                    Some(*ticket)
                }
                _ => None,
            })
            .collect();
        assert_eq!((commands.len(), tickets.len()), (3, 3));
        let yes = Some(Confirmation::Yes);
        for ticket in &tickets[..2] {
            let event = Event::Confirmed { ticket: *ticket, confirmation: yes };
            assert_eq!(server.step(event), []);
        }
        // The third node is lost instead of confirming.
        let done = [Command::Answer { number: 1, answer: Answer::Done }];
        assert_eq!(server.step(Event::NodeLost(3)), done);
        // Release takes the way back.
        let commands =
            server.step(Event::Ask { from: 2, number: 2, ask: Ask::Release { socket: 7 } });
        assert_eq!(commands.len(), 2);
    }

    #[test]
    fn tables_are_bounded() {
        let mut server = Server::new([1]);
        for port in 1..=MAX_ROUTES as u16 + 1 {
            let binding = claim(Protocol::Udp, &format!("0.0.0.0:{port}"));
            let bind = Ask::Bind { socket: u64::from(port), binding };
            let expected = if usize::from(port) > MAX_ROUTES { Answer::Full } else { Answer::Done };
            let answer = ask(&mut server, 1, u64::from(port), bind, true);
            assert_eq!(answer, Some(expected), "{port}");
        }
        assert_eq!(server.sockets(), MAX_ROUTES);
        let mut server = Server::new([1]);
        let binding = claim(Protocol::Tcp, "0.0.0.0:80");
        for socket in 0..MAX_SOCKETS as u64 + 1 {
            let answer = ask(&mut server, 1, socket, Ask::Bind { socket, binding }, true);
            let full = socket == MAX_SOCKETS as u64;
            assert_eq!(answer, Some(if full { Answer::Full } else { Answer::Done }));
        }
        // Requests that wait for a rival's node.
        let mut server = Server::new([1, 2]);
        ask(&mut server, 1, 0, Ask::Listen { socket: 0, binding }, true);
        for number in 1..=MAX_PENDING as u64 + 1 {
            let bind = Ask::Bind { socket: number, binding };
            let commands = server.step(Event::Ask { from: 2, number, ask: bind });
            let full = Command::Answer { number, answer: Answer::Full };
            assert_eq!(commands == [full], number > MAX_PENDING as u64);
        }
    }
}
