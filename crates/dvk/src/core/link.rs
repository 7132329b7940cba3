//! The link to one other node: handshake, session, lanes, failure detection.
//!
//! A session joins one life of the one node with one life of the other. It survives cuts of its
//! connections. It ends for good when the peer restarts, leaves, is silent or away too long, or
//! breaks the rules; a life that was given up can never come back, so that no node can act for two.

use super::frame::{Frame, Kind};
use super::hello::{FEATURES, Hello, HelloError, MAGIC, PROTOCOL};
use super::lane::{Accepted, Lane as LaneState, LaneError, Packet};
use crate::ids::{Lane, NodeId};
use std::sync::Arc;

/// Why a node says goodbye.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Goodbye {
    /// It ends.
    Leaving = 1,
    /// It has given the other side's life up.
    Ended = 2,
    /// The other side broke the protocol.
    Protocol = 3,
    /// The other side's certificate is revoked.
    Revoked = 4,
}

/// Constant properties of the own end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkConfig {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The own node.
    pub node: NodeId,
    /// Its life.
    pub incarnation: u64,
    /// Proof of identity that both sides show; empty where the transport knows the peer.
    pub proof: Vec<u8>,
    /// Something is written at least this often, ns.
    pub heartbeat: u64,
    /// A connection on which nothing was heard for so long is made anew, ns: where a network can
    /// lose a connection without a word, another one may get through. `u64::MAX`: never.
    pub stale: u64,
    /// A peer that was silent on a connection for so long is given up, ns.
    pub silence: u64,
    /// A peer that has not come back so long after a cut is given up, ns.
    pub reconnect: u64,
}

/// Why a peer was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// It said goodbye.
    Left,
    /// A newer life of it is there.
    Restarted,
    /// Its connections were cut, and it did not come back in time.
    Cut,
    /// Nothing was heard of it for too long.
    Silent,
    /// It takes nothing, and our buffers are full.
    Overrun,
    /// It has given our own life up: this node must start anew.
    GivenUp,
    /// It broke the protocol.
    Protocol,
    /// Its certificate was revoked, or ours was, as it says.
    Revoked,
    /// The own node ends.
    Closed,
    /// The user of the own node gave it up.
    Asked,
}

/// What the runtime has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A session with this life of the peer began.
    Up {
        /// Its life.
        incarnation: u64,
    },
    /// The session with this life of the peer ended.
    Down {
        /// Its life.
        incarnation: u64,
        /// Why.
        reason: DownReason,
    },
    /// Something is there to be written: call [`Link::take_batch`].
    Write(Lane),
    /// The connection is of no use any more. What is due is to be written first.
    Close {
        /// Its lane.
        lane: Lane,
        /// Number that the runtime gave it.
        connection: u64,
    },
}

/// What a frame brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// A message for the exchange.
    pub frame: Option<Frame>,
    /// What to do before it is delivered.
    pub outputs: Vec<Output>,
}

/// Why a connection must end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// In the handshake.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// Afterwards.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// Another connection has taken its place.
    #[error("another connection has taken the place of this one")]
    Superseded,
}

/// Figures of a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneStatistics {
    /// Whether a connection is open.
    pub open: bool,
    /// Connections that were open, one after the other.
    pub connections: u64,
    /// Data frames written, repeated ones included.
    pub sent_frames: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Data frames delivered.
    pub delivered: u64,
    /// Bytes of them.
    pub delivered_bytes: u64,
    /// Data frames that came twice and were dropped.
    pub duplicates: u64,
    /// Data frames written again after a cut.
    pub resent: u64,
    /// Frames that wait for their acknowledgement.
    pub buffered_frames: usize,
    /// Bytes of them.
    pub buffered_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No session; lives up to this one are over (0: none was there).
    Away { ended: u64 },
    /// A session with this life.
    Up { incarnation: u64 },
}

/// State machine of the link to one node.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    peer: NodeId,
    state: State,
    lanes: [LaneState; Lane::ALL.len()],
}

impl Link {
    /// A link that never had a connection.
    #[must_use]
    pub fn new(config: LinkConfig, peer: NodeId) -> Self {
        Link { config, peer, state: State::Away { ended: 0 }, lanes: Default::default() }
    }

    /// The life of the peer that there is a session with.
    #[must_use]
    pub fn incarnation(&self) -> Option<u64> {
        match self.state {
            State::Up { incarnation } => Some(incarnation),
            State::Away { .. } => None,
        }
    }

    /// Whether a lane has an open connection.
    #[must_use]
    pub fn is_open(&self, lane: Lane) -> bool {
        self.lane(lane).open
    }

    /// Whether posts and calls may be sent.
    #[must_use]
    pub fn has_room(&self, lane: Lane) -> bool {
        self.lane(lane).has_room()
    }

    /// A connection that we made: our handshake becomes due, the peer's is waited for.
    pub fn connected(&mut self, lane: Lane, connection: u64, now: u64) -> Vec<Output> {
        let mut outputs = self.attach(lane, connection, true, now);
        outputs.push(Output::Write(lane));
        outputs
    }

    /// A connection that the peer made, and the handshake that came by it (checked for cluster,
    /// nodes and proof by the caller, who needed it to find this link).
    ///
    /// # Errors
    /// When the peer's life is over, or our own connection of this lane has precedence (if both
    /// sides connect, the lower node's connection stays). The runtime ends the connection.
    pub fn accepted(
        &mut self,
        connection: u64,
        hello: &Hello,
        now: u64,
    ) -> Result<Vec<Output>, LinkError> {
        self.check_life(hello)?;
        let lane = self.lane(hello.lane);
        if lane.connection.is_some() && lane.ours && self.config.node < self.peer {
            return Err(LinkError::Superseded);
        }
        let mut outputs = self.attach(hello.lane, connection, false, now);
        outputs.extend(self.greeted(hello.lane, hello, now)?);
        outputs.push(Output::Write(hello.lane));
        Ok(outputs)
    }

    /// A frame from a connection.
    ///
    /// # Errors
    /// When the connection must end; the runtime then calls [`Link::closed`].
    pub fn received(
        &mut self,
        lane: Lane,
        connection: u64,
        frame: Frame,
        now: u64,
    ) -> Result<Received, LinkError> {
        if self.lane(lane).connection != Some(connection) {
            return Err(LinkError::Superseded);
        }
        if frame.header.kind == Kind::Goodbye {
            let (reason, error) = match frame.header.status {
                status if status == Goodbye::Ended as u8 => {
                    (DownReason::GivenUp, Some(HelloError::Ended { node: self.config.node }))
                }
                status if status == Goodbye::Protocol as u8 => (DownReason::Protocol, None),
                status if status == Goodbye::Revoked as u8 => {
                    (DownReason::Revoked, Some(HelloError::Revoked { node: self.config.node }))
                }
                _ => (DownReason::Left, None),
            };
            let opened = self.lane(lane).open;
            let outputs = self.down(reason, now);
            return match error {
                Some(error) if !opened && outputs.is_empty() => Err(error.into()),
                _ => Ok(Received { frame: None, outputs }),
            };
        }
        if !self.lane(lane).open {
            let hello = Hello::parse(&frame)?;
            hello.check(&self.config.cluster, self.config.node, &self.config.proof)?;
            if hello.node != self.peer {
                let error = HelloError::Node { expected: self.peer, found: hello.node };
                return Err(error.into());
            }
            if hello.lane != lane {
                return Err(HelloError::NotALink.into());
            }
            self.check_life(&hello)?;
            let mut outputs = self.greeted(lane, &hello, now)?;
            outputs.push(Output::Write(lane));
            return Ok(Received { frame: None, outputs });
        }
        let state = self.lane_mut(lane);
        let accepted = state.accept(frame, now)?;
        // Only what this frame made due: other frames may be held back by a batch.
        let outputs = if state.owes_ack() { vec![Output::Write(lane)] } else { Vec::new() };
        Ok(match accepted {
            Accepted::Data(frame) => Received { frame: Some(frame), outputs },
            Accepted::Nothing => Received { frame: None, outputs },
        })
    }

    /// A connection ended. True if it was the lane's current one, and the session goes on.
    pub fn closed(&mut self, lane: Lane, connection: u64, now: u64) -> bool {
        let up = self.incarnation().is_some();
        let state = self.lane_mut(lane);
        if state.connection != Some(connection) {
            return false;
        }
        state.detach(now);
        up
    }

    /// Takes a data frame over. True if the runtime should write.
    ///
    /// # Errors
    /// Without a session.
    pub fn send(&mut self, lane: Lane, frame: Frame) -> Result<bool, Frame> {
        if self.incarnation().is_none() {
            return Err(frame);
        }
        let state = self.lane_mut(lane);
        state.push(frame);
        Ok(state.open)
    }

    /// What to write next on a lane, and the connection to write it to. None: nothing to write.
    pub fn take_batch(&mut self, lane: Lane, now: u64) -> Option<(u64, Vec<Arc<Packet>>)> {
        let state = self.lane_mut(lane);
        let connection = state.connection?;
        if !state.has_output() {
            return None;
        }
        Some((connection, state.take_batch(now)))
    }

    /// Time goes on.
    pub fn tick(&mut self, now: u64) -> Vec<Output> {
        if self.incarnation().is_none() {
            return Vec::new();
        }
        let LinkConfig { heartbeat, stale, silence, reconnect, .. } = self.config;
        let mut outputs = Vec::new();
        for lane in Lane::ALL {
            let state = self.lane_mut(lane);
            let lost = |since: u64| now.saturating_sub(since) >= reconnect;
            let reason = if state.lost_since.is_some_and(lost) {
                DownReason::Cut
            } else if state.open && now.saturating_sub(state.last_heard) >= silence {
                DownReason::Silent
            } else if state.is_overrun() {
                DownReason::Overrun
            } else {
                if let Some(connection) = state.connection
                    && now.saturating_sub(state.last_heard) >= stale
                {
                    state.detach(now);
                    outputs.push(Output::Close { lane, connection });
                } else if state.tick(now, heartbeat) {
                    outputs.push(Output::Write(lane));
                }
                continue;
            };
            return self.down(reason, now);
        }
        outputs
    }

    /// The own node ends: goodbye becomes due on every lane. To be followed by writing, then
    /// [`Link::give_up`].
    pub fn leave(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        for lane in Lane::ALL {
            let state = self.lane_mut(lane);
            if state.connection.is_some() {
                state.say_goodbye(Goodbye::Leaving as u8);
                outputs.push(Output::Write(lane));
            }
        }
        outputs
    }

    /// Ends the session, for example because a failure detector elsewhere says so.
    pub fn give_up(&mut self, reason: DownReason, now: u64) -> Vec<Output> {
        self.down(reason, now)
    }

    /// Figures of a lane.
    #[must_use]
    pub fn statistics(&self, lane: Lane) -> LaneStatistics {
        let state = self.lane(lane);
        let (buffered_frames, buffered_bytes) = state.buffered();
        LaneStatistics {
            open: state.open,
            connections: state.connections,
            sent_frames: state.sent_frames,
            sent_bytes: state.sent_bytes,
            delivered: state.delivered,
            delivered_bytes: state.delivered_bytes,
            duplicates: state.duplicates,
            resent: state.resent,
            buffered_frames,
            buffered_bytes,
        }
    }

    fn lane(&self, lane: Lane) -> &LaneState {
        &self.lanes[lane.index()]
    }

    fn lane_mut(&mut self, lane: Lane) -> &mut LaneState {
        &mut self.lanes[lane.index()]
    }

    fn attach(&mut self, lane: Lane, connection: u64, ours: bool, now: u64) -> Vec<Output> {
        let before = self.lane(lane).connection;
        self.lane_mut(lane).attach(connection, ours, now);
        let hello = Hello {
            magic: MAGIC,
            protocol: PROTOCOL,
            features: FEATURES,
            cluster: self.config.cluster,
            node: self.config.node,
            incarnation: self.config.incarnation,
            peer: self.peer,
            peer_incarnation: self.incarnation().unwrap_or(0),
            lane,
            received: self.lane(lane).received_so_far(),
            proof: self.config.proof.clone(),
        };
        self.lane_mut(lane).greet(hello);
        before.map(|connection| Output::Close { lane, connection }).into_iter().collect()
    }

    fn check_life(&self, hello: &Hello) -> Result<(), HelloError> {
        let over = match self.state {
            State::Away { ended } => hello.incarnation <= ended,
            State::Up { incarnation } => hello.incarnation < incarnation,
        };
        if over { Err(HelloError::Ended { node: self.peer }) } else { Ok(()) }
    }

    /// The peer's handshake, already checked.
    fn greeted(&mut self, lane: Lane, hello: &Hello, now: u64) -> Result<Vec<Output>, LinkError> {
        let mut outputs = Vec::new();
        if self.incarnation().is_some_and(|incarnation| incarnation != hello.incarnation) {
            outputs.extend(self.session_ends(DownReason::Restarted, lane, now));
        }
        if self.incarnation().is_none() {
            self.state = State::Up { incarnation: hello.incarnation };
            outputs.push(Output::Up { incarnation: hello.incarnation });
        }
        // What a peer received in a session with another life of ours counts for nothing.
        let same = hello.peer_incarnation == self.config.incarnation;
        let received = if same { hello.received } else { 0 };
        self.lane_mut(lane).resume(received, now)?;
        Ok(outputs)
    }

    fn down(&mut self, reason: DownReason, now: u64) -> Vec<Output> {
        let State::Up { incarnation } = self.state else { return Vec::new() };
        let mut outputs = vec![Output::Down { incarnation, reason }];
        let tell = match reason {
            DownReason::Left | DownReason::GivenUp | DownReason::Closed => None,
            DownReason::Protocol => Some(Goodbye::Protocol),
            DownReason::Revoked => Some(Goodbye::Revoked),
            _ => Some(Goodbye::Ended),
        };
        self.state = State::Away { ended: incarnation };
        for lane in Lane::ALL {
            let old = std::mem::replace(self.lane_mut(lane), LaneState::new(now));
            let Some(connection) = old.connection else { continue };
            if let Some(goodbye) = tell {
                // The farewell goes out by a lane of its own, so that nothing else does.
                let state = self.lane_mut(lane);
                state.connection = Some(connection);
                state.say_goodbye(goodbye as u8);
                outputs.push(Output::Write(lane));
            }
            outputs.push(Output::Close { lane, connection });
        }
        outputs
    }

    /// Like `down`, but the connection of `keep` lives on in the next session.
    fn session_ends(&mut self, reason: DownReason, keep: Lane, now: u64) -> Vec<Output> {
        let State::Up { incarnation } = self.state else { return Vec::new() };
        let mut outputs = vec![Output::Down { incarnation, reason }];
        self.state = State::Away { ended: incarnation };
        for lane in Lane::ALL {
            let mut fresh = LaneState::new(now);
            if lane == keep {
                self.lane_mut(lane).hand_over(&mut fresh);
            } else if let Some(connection) = self.lane(lane).connection {
                outputs.push(Output::Close { lane, connection });
            }
            *self.lane_mut(lane) = fresh;
        }
        outputs
    }
}
