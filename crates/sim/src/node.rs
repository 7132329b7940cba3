//! A node of the DVK in the simulated world: the real cores of links, exchange and registry, driven
//! as the runtime drives them, but without threads and sockets.

use crate::world::{Actor, ActorId, Context, Event, MILLISECOND, StreamId, Time};
use dvs_dvk::core::exchange::{Command, Exchange, Key, Rejected, Submission};
use dvs_dvk::core::frame::{Decoder, Frame, Kind};
use dvs_dvk::core::hello::{Hello, HelloError};
use dvs_dvk::core::inbox::Taken;
use dvs_dvk::core::link::{DownReason, Goodbye, Link, LinkConfig, LinkError, Output};
use dvs_dvk::{CallError, DcId, Lane, NodeId};
use std::collections::BTreeMap;

/// Links and deadlines are looked at this often.
pub const TICK: Time = 20 * MILLISECOND;
/// A cut connection is made again after this time.
const AGAIN: Time = 5 * MILLISECOND;
/// The container of all endpoints.
pub const DC: DcId = DcId(1);

const TIMER_TICK: u64 = 0;
/// Timers that dial: this plus the peer's number twice, plus the lane.
const TIMER_DIAL: u64 = 1;
/// Timers from here on are the application's.
const TIMER_APPLICATION: u64 = 1 << 32;

/// What runs on a node and uses its endpoints.
pub trait Application {
    /// The node begins to live.
    fn start(&mut self, port: &mut Port<'_, '_>);
    /// A timer that it set.
    fn timer(&mut self, id: u64, port: &mut Port<'_, '_>);
    /// A message at one of its endpoints; all have handlers.
    fn message(&mut self, at: Key, message: Taken, port: &mut Port<'_, '_>);
    /// A call or send ended.
    fn finished(&mut self, call: u64, result: Result<Vec<u8>, CallError>, port: &mut Port<'_, '_>);
    /// A session with a life of another node began or (with a reason) ended.
    fn peer(&mut self, peer: NodeId, life: u64, down: Option<DownReason>, port: &mut Port<'_, '_>);
}

/// What an application may do.
pub struct Port<'a, 'b> {
    /// Its node.
    pub node: &'a mut Core,
    /// Its world.
    pub context: &'a mut Context<'b, ()>,
}

impl Port<'_, '_> {
    /// Makes an endpoint, whose messages come to [`Application::message`].
    ///
    /// # Panics
    /// When the exchange has no room, which no run comes near to.
    pub fn bind(&mut self) -> Key {
        let key = self.node.exchange.bind(DC).expect("an endpoint");
        self.node.exchange.set_handler(key, &mut self.node.commands);
        key
    }

    /// Ends an endpoint.
    pub fn unbind(&mut self, key: Key) {
        self.node.exchange.unbind(key, &mut self.node.commands);
    }

    /// Sends a message; `call` names it to [`Application::finished`], posts have none.
    ///
    /// # Errors
    /// When the exchange did not take it.
    pub fn submit(&mut self, submission: Submission, call: Option<u64>) -> Result<(), CallError> {
        let room = self
            .node
            .links
            .get(&submission.to.node)
            .is_none_or(|link| link.has_room(submission.lane));
        let result = self.node.exchange.submit(submission, call, room, &mut self.node.commands);
        result.map(|_| ()).map_err(|Rejected { error, .. }| error)
    }

    /// Has the exchange's commands carried out after this event.
    pub fn carry(&mut self, commands: Vec<Command<u64>>) {
        self.node.commands.extend(commands);
    }

    /// Sets a timer.
    pub fn timer(&mut self, after: Time, id: u64) {
        self.context.timer(after, TIMER_APPLICATION + id);
    }
}

#[derive(Debug)]
struct Connection {
    actor: ActorId,
    ours: Option<(NodeId, Lane)>,
    /// Set once it belongs to a link.
    attached: Option<(NodeId, Lane)>,
    decoder: Decoder,
}

/// The cores of one life of a node.
#[derive(Debug)]
pub struct Core {
    /// The node.
    pub id: NodeId,
    /// This life.
    pub incarnation: u64,
    /// Its exchange.
    pub exchange: Exchange<u64>,
    links: BTreeMap<NodeId, Link>,
    connections: BTreeMap<StreamId, Connection>,
    commands: Vec<Command<u64>>,
    events: Vec<(NodeId, u64, Option<DownReason>)>,
    peers: u16,
    reconnect: Time,
}

/// A node as an actor. Its number is that of its actor, plus one.
#[derive(Debug)]
pub struct DvkNode<A> {
    /// The cores.
    pub core: Core,
    /// What runs on it.
    pub application: A,
}

impl<A> DvkNode<A> {
    /// A life of the node `id` among `peers` nodes; cut links are given up after `reconnect`.
    pub fn new(id: u16, incarnation: u64, peers: u16, reconnect: Time, application: A) -> Self {
        let mut exchange = Exchange::new(NodeId(id), incarnation);
        exchange.open_dc(DC);
        let core = Core {
            id: NodeId(id),
            incarnation,
            exchange,
            links: BTreeMap::new(),
            connections: BTreeMap::new(),
            commands: Vec::new(),
            events: Vec::new(),
            peers,
            reconnect,
        };
        DvkNode { core, application }
    }
}

impl Core {
    /// The life of a peer that there is a session with.
    #[must_use]
    pub fn session(&self, peer: NodeId) -> Option<u64> {
        self.links.get(&peer)?.incarnation()
    }

    /// The link to a peer.
    #[must_use]
    pub fn link(&self, peer: NodeId) -> Option<&Link> {
        self.links.get(&peer)
    }

    fn config(&self) -> LinkConfig {
        LinkConfig {
            cluster: [3; 16],
            node: self.id,
            incarnation: self.incarnation,
            proof: Vec::new(),
            heartbeat: 100 * MILLISECOND,
            stale: u64::MAX,
            silence: self.reconnect,
            reconnect: self.reconnect,
        }
    }

    fn link_or_new(&mut self, peer: NodeId) -> &mut Link {
        let config = self.config();
        self.links.entry(peer).or_insert_with(|| Link::new(config, peer))
    }

    fn dial(&mut self, peer: NodeId, lane: Lane, context: &mut Context<'_, ()>) {
        let (id, incarnation) = (self.id, self.incarnation);
        debug_assert!(peer < id && incarnation > 0);
        let actor = usize::from(peer.0) - 1;
        let stream = context.open(actor);
        let ours = Some((peer, lane));
        let connection = Connection { actor, ours, attached: None, decoder: Decoder::default() };
        self.connections.insert(stream, connection);
    }

    fn opened(&mut self, stream: StreamId, actor: ActorId, context: &mut Context<'_, ()>) {
        let known = self.connections.get_mut(&stream).and_then(|connection| connection.ours);
        if let Some((peer, lane)) = known {
            if let Some(connection) = self.connections.get_mut(&stream) {
                connection.attached = Some((peer, lane));
            }
            let outputs = self.link_or_new(peer).connected(lane, stream, context.now);
            self.apply(peer, outputs, context);
        } else {
            let connection =
                Connection { actor, ours: None, attached: None, decoder: Decoder::default() };
            self.connections.insert(stream, connection);
        }
    }

    fn data(&mut self, stream: StreamId, bytes: &[u8], context: &mut Context<'_, ()>) {
        let mut input = bytes;
        loop {
            let Some(connection) = self.connections.get_mut(&stream) else { return };
            let frame = connection.decoder.next(&mut input).expect("frames of our own making");
            let Some(frame) = frame else { return };
            let attached = connection.attached;
            let result = match attached {
                Some((peer, lane)) => self.frame(peer, lane, stream, frame, context),
                None => self.greeting(stream, &frame, context),
            };
            if let Err(error) = result {
                if matches!(error, LinkError::Hello(HelloError::Ended { .. })) {
                    let farewell =
                        Frame::control(Kind::Goodbye, Goodbye::Ended as u8, 0, Vec::new());
                    context.write(stream, farewell.encode());
                }
                assert!(
                    matches!(error, LinkError::Hello(_) | LinkError::Superseded),
                    "node {}: {error}",
                    self.id
                );
                context.close(stream);
                return;
            }
        }
    }

    fn greeting(
        &mut self,
        stream: StreamId,
        frame: &Frame,
        context: &mut Context<'_, ()>,
    ) -> Result<(), LinkError> {
        let hello = Hello::parse(frame)?;
        hello.check(&[3; 16], self.id, &[])?;
        let outputs = self.link_or_new(hello.node).accepted(stream, &hello, context.now)?;
        if let Some(connection) = self.connections.get_mut(&stream) {
            assert_eq!(connection.actor, usize::from(hello.node.0) - 1);
            connection.attached = Some((hello.node, hello.lane));
        }
        self.apply(hello.node, outputs, context);
        Ok(())
    }

    fn frame(
        &mut self,
        peer: NodeId,
        lane: Lane,
        stream: StreamId,
        frame: Frame,
        context: &mut Context<'_, ()>,
    ) -> Result<(), LinkError> {
        let link = self.link_or_new(peer);
        let received = link.received(lane, stream, frame, context.now)?;
        let incarnation = link.incarnation();
        self.apply(peer, received.outputs, context);
        if let (Some(frame), Some(incarnation)) = (received.frame, incarnation) {
            self.exchange.remote(peer, incarnation, lane, frame, &mut self.commands);
        }
        Ok(())
    }

    fn closed(&mut self, stream: StreamId, context: &mut Context<'_, ()>) {
        let Some(connection) = self.connections.remove(&stream) else { return };
        if let Some((peer, lane)) = connection.attached
            && let Some(link) = self.links.get_mut(&peer)
        {
            link.closed(lane, stream, context.now);
        }
        if let Some((peer, lane)) = connection.ours {
            let id = TIMER_DIAL + u64::from(peer.0) * 2 + lane.index() as u64;
            context.timer(AGAIN, id);
        }
    }

    fn apply(&mut self, peer: NodeId, outputs: Vec<Output>, context: &mut Context<'_, ()>) {
        for output in outputs {
            match output {
                Output::Up { incarnation } => {
                    self.exchange.peer_up(peer, incarnation);
                    self.events.push((peer, incarnation, None));
                }
                Output::Down { incarnation, reason } => {
                    self.exchange.peer_down(peer, incarnation, &mut self.commands);
                    self.events.push((peer, incarnation, Some(reason)));
                }
                Output::Write(lane) => self.pump(peer, lane, context),
                Output::Close { connection, .. } => context.close(connection),
            }
        }
    }

    fn pump(&mut self, peer: NodeId, lane: Lane, context: &mut Context<'_, ()>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        while let Some((connection, batch)) = link.take_batch(lane, context.now) {
            let mut bytes = Vec::new();
            for packet in batch {
                bytes.extend_from_slice(&packet.header);
                bytes.extend_from_slice(&packet.body);
            }
            context.write(connection, bytes);
        }
    }

    fn tick(&mut self, context: &mut Context<'_, ()>) {
        self.exchange.tick(context.now, &mut self.commands);
        let peers: Vec<NodeId> = self.links.keys().copied().collect();
        for peer in peers {
            let outputs = self.link_or_new(peer).tick(context.now);
            self.apply(peer, outputs, context);
        }
        context.timer(TICK, TIMER_TICK);
    }
}

impl<A: Application> DvkNode<A> {
    /// Carries out what the cores want, until they want nothing more.
    fn settle(&mut self, context: &mut Context<'_, ()>) {
        loop {
            let events = std::mem::take(&mut self.core.events);
            let commands = std::mem::take(&mut self.core.commands);
            if events.is_empty() && commands.is_empty() {
                return;
            }
            for (peer, life, down) in events {
                let mut port = Port { node: &mut self.core, context };
                self.application.peer(peer, life, down, &mut port);
            }
            for command in commands {
                self.carry_out(command, context);
            }
        }
    }

    fn carry_out(&mut self, command: Command<u64>, context: &mut Context<'_, ()>) {
        match command {
            Command::Transmit { node, incarnation, lane, frame } => {
                if let Some(link) = self.core.links.get_mut(&node)
                    && link.incarnation() == Some(incarnation)
                    && link.send(lane, frame).unwrap_or(false)
                {
                    self.core.pump(node, lane, context);
                }
            }
            Command::Finish { waiter, result } => {
                let mut port = Port { node: &mut self.core, context };
                self.application.finished(waiter, result, &mut port);
            }
            Command::Drain(key) => {
                while let Some(taken) =
                    self.core.exchange.next_for_handler(key, &mut self.core.commands)
                {
                    let mut port = Port { node: &mut self.core, context };
                    self.application.message(key, taken, &mut port);
                }
            }
            Command::Received { .. } => unreachable!("all endpoints have handlers"),
            Command::Stale(_) => {}
        }
    }

    /// Lets the application do something now.
    pub fn act(
        &mut self,
        context: &mut Context<'_, ()>,
        act: impl FnOnce(&mut A, &mut Port<'_, '_>),
    ) {
        act(&mut self.application, &mut Port { node: &mut self.core, context });
        self.settle(context);
    }
}

impl<A: Application> Actor for DvkNode<A> {
    type Message = ();

    fn on_event(&mut self, event: Event<()>, context: &mut Context<'_, ()>) {
        match event {
            Event::Start => {
                context.timer(TICK, TIMER_TICK);
                for peer in 1..self.core.id.0.min(self.core.peers + 1) {
                    for lane in Lane::ALL {
                        self.core.dial(NodeId(peer), lane, context);
                    }
                }
                let mut port = Port { node: &mut self.core, context };
                self.application.start(&mut port);
            }
            Event::Timer(TIMER_TICK) => self.core.tick(context),
            Event::Timer(id) if id >= TIMER_APPLICATION => {
                let mut port = Port { node: &mut self.core, context };
                self.application.timer(id - TIMER_APPLICATION, &mut port);
            }
            Event::Timer(id) => {
                let (peer, lane) = ((id - TIMER_DIAL) / 2, (id - TIMER_DIAL) % 2);
                let peer = NodeId(u16::try_from(peer).unwrap_or(0));
                let lane = Lane::at(usize::try_from(lane).unwrap_or(0)).unwrap_or_default();
                self.core.dial(peer, lane, context);
            }
            Event::Message { .. } => {}
            Event::Opened { stream, peer, .. } => self.core.opened(stream, peer, context),
            Event::Data { stream, bytes } => self.core.data(stream, &bytes, context),
            Event::Closed { stream } => self.core.closed(stream, context),
        }
        self.settle(context);
    }
}
