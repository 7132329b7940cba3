//! What keeps programs together: things that programs of one machine share and that do not reach over
//! nodes yet.
//!
//! The first node on which a program begins to share something by name becomes the node on which all
//! later programs run that could find it; a program that reaches for a thing that lives on another
//! node is ended with a sentence rather than left to wait for ever or to find something else.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most things that are remembered; beyond that programs are kept together, but not ended.
pub const MAX_THINGS: usize = 65_536;
/// Longest name of a thing.
pub const MAX_NAME: usize = 256;

/// Something that programs share.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Thing {
    /// Memory and the like that is found through the file tree or inherited, and FIFOs held open.
    Unnamed,
    /// A TCP port of the loopback addresses.
    Tcp(u16),
    /// A UDP port of the loopback addresses.
    Udp(u16),
    /// A unix socket; the abstract ones begin with NUL.
    Unix(Vec<u8>),
    /// System V shared memory.
    Memory(i32),
    /// A System V set of semaphores.
    Semaphores(i32),
    /// A System V message queue.
    Messages(i32),
    /// A POSIX message queue.
    Queue(Vec<u8>),
}

impl std::fmt::Display for Thing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |name: &[u8]| {
            let shown: Vec<u8> = name.iter().map(|b| if *b == 0 { b'@' } else { *b }).collect();
            String::from_utf8_lossy(&shown).into_owned()
        };
        match self {
            Thing::Unnamed => formatter.write_str("shared memory or a FIFO that is held open"),
            Thing::Tcp(port) => write!(formatter, "TCP port {port} of localhost"),
            Thing::Udp(port) => write!(formatter, "UDP port {port} of localhost"),
            Thing::Unix(name) => write!(formatter, "the unix socket {}", text(name)),
            Thing::Memory(key) => write!(formatter, "the shared memory with key {key:#x}"),
            Thing::Semaphores(key) => write!(formatter, "the semaphores with key {key:#x}"),
            Thing::Messages(key) => write!(formatter, "the message queue with key {key:#x}"),
            Thing::Queue(name) => write!(formatter, "the message queue {}", text(name)),
        }
    }
}

/// Where a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Here, or nowhere.
    Here,
    /// On another node.
    Elsewhere(u16),
}

/// What one node knows of the sharing of its DC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    here: u16,
    together: Option<u16>,
    things: BTreeMap<Thing, u16>,
}

impl Sharing {
    /// Nothing is shared.
    #[must_use]
    pub fn new(here: u16) -> Self {
        Sharing { here, together: None, things: BTreeMap::new() }
    }

    /// A program of a node begins to share something; true if that is new.
    pub fn begins(&mut self, node: u16, thing: Thing) -> bool {
        // Two nodes that begin at the same time agree on the lower one.
        let together = self.together.map_or(node, |now| now.min(node));
        let moved = self.together != Some(together);
        self.together = Some(together);
        if thing == Thing::Unnamed || self.things.contains_key(&thing) {
            return moved;
        }
        if self.things.len() < MAX_THINGS {
            self.things.insert(thing, node);
        }
        true
    }

    /// A program of this node reaches for a thing.
    #[must_use]
    pub fn find(&self, thing: &Thing) -> Found {
        match self.things.get(thing) {
            Some(node) if *node != self.here => Found::Elsewhere(*node),
            _ => Found::Here,
        }
    }

    /// Whether a thing of another node is known.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.things.values().any(|node| *node != self.here)
    }

    /// The node on which programs are kept together.
    #[must_use]
    pub fn together(&self) -> Option<u16> {
        self.together
    }

    /// A node is lost, with all that was shared there.
    pub fn node_lost(&mut self, node: u16) {
        self.things.retain(|_, owner| *owner != node);
        if self.together == Some(node) {
            self.together = self.things.values().min().copied();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_share_gathers_the_others() {
        let mut sharing = Sharing::new(1);
        assert_eq!(sharing.together(), None);
        assert!(sharing.begins(2, Thing::Tcp(80)));
        assert!(!sharing.begins(2, Thing::Tcp(80)));
        assert_eq!(sharing.together(), Some(2));
        assert_eq!(sharing.find(&Thing::Tcp(80)), Found::Elsewhere(2));
        assert_eq!(sharing.find(&Thing::Udp(80)), Found::Here);
        assert!(sharing.begins(1, Thing::Unnamed), "both at once: the lower node");
        assert_eq!(sharing.together(), Some(1));
    }

    #[test]
    fn what_a_lost_node_shared_is_gone() {
        let mut sharing = Sharing::new(1);
        sharing.begins(2, Thing::Memory(7));
        sharing.begins(3, Thing::Queue(b"q".to_vec()));
        sharing.node_lost(2);
        assert_eq!(sharing.find(&Thing::Memory(7)), Found::Here);
        assert_eq!(sharing.together(), Some(3));
        sharing.node_lost(3);
        assert_eq!(sharing.together(), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut sharing = Sharing::new(1);
        for key in 0..(MAX_THINGS as i32 + 5) {
            sharing.begins(2, Thing::Memory(key));
        }
        assert_eq!(sharing.things.len(), MAX_THINGS);
    }
}
