//! The handshake: the first frame that each side sends on a connection.

use super::frame::{Frame, FrameError, Kind};
use crate::ids::{Lane, NodeId};
use serde::{Deserialize, Serialize};

/// First bytes of a handshake, so that a stray client is known at once.
pub const MAGIC: [u8; 4] = *b"DVSL";
/// Version of the link protocol. Sides with different versions refuse each other by name.
pub const PROTOCOL: u16 = 1;
/// Features that this version knows; what is used on a link is the intersection.
pub const FEATURES: u64 = 0;
/// Most bytes of a proof of identity.
pub const MAX_PROOF: usize = 128;

/// What a node says of itself, and of what it has received so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// [`FEATURES`].
    pub features: u64,
    /// The cluster that the node belongs to.
    pub cluster: [u8; 16],
    /// The node.
    pub node: NodeId,
    /// Its life; every start of a node has a higher one.
    pub incarnation: u64,
    /// The node that it wants to speak to.
    pub peer: NodeId,
    /// The life of that node that it has a session with; 0 for none.
    pub peer_incarnation: u64,
    /// The lane that the connection is for.
    pub lane: Lane,
    /// Last sequence number received in that session on this lane.
    pub received: u64,
    /// Room for a proof of identity where the transport gives none. Unix sockets give the peer's
    /// credentials, so it is empty there.
    pub proof: Vec<u8>,
}

/// Why two nodes do not speak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The first frame was not a handshake.
    #[error("the other side does not speak the link protocol")]
    NotALink,
    /// The bytes are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Versions differ.
    #[error("the other side speaks link protocol {theirs}, we {PROTOCOL}; run the same version")]
    Protocol {
        /// The other side's version.
        theirs: u16,
    },
    /// Another cluster.
    #[error("the other side belongs to another cluster")]
    Cluster,
    /// It is not the node that was called, or it wants another than us.
    #[error("node {expected} was called, node {found} is there")]
    Node {
        /// Who was called.
        expected: NodeId,
        /// Who is there.
        found: NodeId,
    },
    /// Proof missing or wrong.
    #[error("the other side's proof of identity is not valid")]
    Proof,
    /// A life that was declared ended. It must come back with a new one.
    #[error("node {node} was given up; it must start anew before it can return")]
    Ended {
        /// The node.
        node: NodeId,
    },
    /// A certificate is not valid any more.
    #[error("the certificate of node {node} was revoked; it has to join the cluster anew")]
    Revoked {
        /// Whose.
        node: NodeId,
    },
    /// Two ends claim the same node number.
    #[error("the other side has our own node number {0}")]
    Ourselves(NodeId),
}

impl Hello {
    /// As a frame.
    #[must_use]
    pub fn frame(&self) -> Frame {
        let body = postcard::to_stdvec(self).unwrap_or_default();
        Frame::control(Kind::Hello, 0, 0, body)
    }

    /// From the first frame of a connection.
    ///
    /// # Errors
    /// When it is not a handshake of this protocol.
    pub fn parse(frame: &Frame) -> Result<Hello, HelloError> {
        if frame.header.kind != Kind::Hello {
            return Err(HelloError::NotALink);
        }
        // The first two fields keep their form in every version, so that versions can be named.
        let ((magic, theirs), _) = postcard::take_from_bytes::<([u8; 4], u16)>(&frame.body)
            .map_err(|_| HelloError::NotALink)?;
        if magic != MAGIC {
            return Err(HelloError::NotALink);
        }
        if theirs != PROTOCOL {
            return Err(HelloError::Protocol { theirs });
        }
        let hello: Hello = postcard::from_bytes(&frame.body).map_err(|_| HelloError::NotALink)?;
        if hello.proof.len() > MAX_PROOF {
            return Err(HelloError::NotALink);
        }
        Ok(hello)
    }

    /// Whether the sender belongs to our cluster, means us, and is not ourselves.
    ///
    /// # Errors
    /// When not.
    pub fn check(&self, cluster: &[u8; 16], us: NodeId, proof: &[u8]) -> Result<(), HelloError> {
        if self.cluster != *cluster {
            return Err(HelloError::Cluster);
        }
        if self.peer != us {
            return Err(HelloError::Node { expected: self.peer, found: us });
        }
        if self.node == us {
            return Err(HelloError::Ourselves(us));
        }
        // Every byte is looked at, so that the time taken says nothing about where it differs.
        let differing =
            self.proof.iter().zip(proof).fold(0, |differing, (a, b)| differing | (a ^ b));
        if self.proof.len() != proof.len() || differing != 0 {
            return Err(HelloError::Proof);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            magic: MAGIC,
            protocol: PROTOCOL,
            features: FEATURES,
            cluster: [9; 16],
            node: NodeId(1),
            incarnation: 5,
            peer: NodeId(2),
            peer_incarnation: 0,
            lane: Lane::Bulk,
            received: 0,
            proof: vec![1, 2],
        }
    }

    #[test]
    fn a_handshake_is_read_back_and_checked() {
        let parsed = Hello::parse(&hello().frame()).unwrap();
        assert_eq!(parsed, hello());
        assert_eq!(parsed.check(&[9; 16], NodeId(2), &[1, 2]), Ok(()));
        assert_eq!(parsed.check(&[8; 16], NodeId(2), &[1, 2]), Err(HelloError::Cluster));
        assert_eq!(parsed.check(&[9; 16], NodeId(2), &[1, 3]), Err(HelloError::Proof));
        assert_eq!(parsed.check(&[9; 16], NodeId(2), &[]), Err(HelloError::Proof));
        assert!(matches!(parsed.check(&[9; 16], NodeId(3), &[1, 2]), Err(HelloError::Node { .. })));
        let itself = Hello { node: NodeId(2), ..hello() };
        assert!(matches!(
            itself.check(&[9; 16], NodeId(2), &[1, 2]),
            Err(HelloError::Ourselves(_))
        ));
    }

    #[test]
    fn strangers_are_told_apart() {
        let other = Frame::control(Kind::Ack, 0, 1, vec![]);
        assert_eq!(Hello::parse(&other), Err(HelloError::NotALink));
        let magic = Hello { magic: *b"HTTP", ..hello() };
        assert_eq!(Hello::parse(&magic.frame()), Err(HelloError::NotALink));
        let version = Hello { protocol: 9, ..hello() };
        assert_eq!(Hello::parse(&version.frame()), Err(HelloError::Protocol { theirs: 9 }));
        let proof = Hello { proof: vec![0; MAX_PROOF + 1], ..hello() };
        assert_eq!(Hello::parse(&proof.frame()), Err(HelloError::NotALink));
    }
}
