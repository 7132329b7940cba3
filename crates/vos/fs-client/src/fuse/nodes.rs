//! The kernel's node ids and the objects they stand for. Pure.
//!
//! An id is never used twice, so the generation that the kernel wants beside it is always 0.

use crate::cache::Until;
use dvs_fs::messages::{InodeId, ROOT};
use dvs_sys::fuse::abi::ROOT_ID;
use std::collections::HashMap;

/// Where in the tree an object was looked up, as far as that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Root,
    Dev,
    /// `/dev/shm` and all below.
    SharedMemory,
    Elsewhere,
}

impl Place {
    /// The place of `name` in a directory that is here.
    pub(super) fn below(self, name: &[u8]) -> Place {
        match (self, name) {
            (Place::Root, b"dev") => Place::Dev,
            (Place::Dev, b"shm") | (Place::SharedMemory, _) => Place::SharedMemory,
            _ => Place::Elsewhere,
        }
    }
}

/// What the kernel knows under one id.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// The object; `None`: an attached description outside the tree.
    pub(super) inode: Option<InodeId>,
    /// Whether it stands for an attached description.
    pub(super) attached: bool,
    /// Whether it is the writers' end of a FIFO.
    pub(super) writers: bool,
    /// The kernel's references.
    pub(super) lookups: u64,
    /// The server's count of this client's references.
    pub(super) references: u64,
    /// Where it was looked up.
    pub(super) place: Place,
    /// Whether a record lock was ever asked for here; closing then must be told to the server.
    pub(super) locked: bool,
    /// Until when the kernel may keep names of this directory.
    pub(super) keeps_names: Until,
}

/// The table.
#[derive(Debug)]
pub(super) struct Nodes {
    by_id: HashMap<u64, Node>,
    by_inode: HashMap<InodeId, u64>,
    attached: HashMap<InodeId, Vec<u64>>,
    /// Writers' ends of FIFOs.
    writers: HashMap<InodeId, u64>,
    last: u64,
}

impl Nodes {
    /// With the root alone.
    pub(super) fn new() -> Nodes {
        let root = Node::new(Some(ROOT), Place::Root);
        Nodes {
            by_id: HashMap::from([(ROOT_ID, root)]),
            by_inode: HashMap::from([(ROOT, ROOT_ID)]),
            attached: HashMap::new(),
            writers: HashMap::new(),
            last: ROOT_ID,
        }
    }

    /// The object of an id that a request named.
    pub(super) fn get(&mut self, id: u64) -> Option<&mut Node> {
        self.by_id.get_mut(&id)
    }

    /// The ids of an object: its own, and those of attached descriptions of it.
    pub(super) fn ids(&self, inode: InodeId) -> Vec<u64> {
        let attached = self.attached.get(&inode).into_iter().flatten();
        let own = self.by_inode.get(&inode).into_iter().chain(self.writers.get(&inode));
        own.chain(attached).copied().collect()
    }

    /// The node of an object, without the kernel having named it.
    pub(super) fn of(&mut self, inode: InodeId) -> Option<&mut Node> {
        self.by_id.get_mut(self.by_inode.get(&inode)?)
    }

    /// The kernel gets a reference to an object; `counted`: the server has counted one too. Without
    /// that the object must be known here already (`None` otherwise).
    pub(super) fn enter(&mut self, inode: InodeId, place: Place, counted: bool) -> Option<u64> {
        let id = match self.by_inode.get(&inode) {
            Some(id) => *id,
            None if counted => self.insert(Node::new(Some(inode), place)),
            None => return None,
        };
        let node = self.by_id.get_mut(&id)?;
        node.lookups += 1;
        node.references += u64::from(counted);
        // Two ways to one object: the one that matters wins.
        if place == Place::SharedMemory {
            node.place = place;
        }
        Some(id)
    }

    /// An id of its own for an attached description, whether its file is in the tree or not: so it
    /// can be opened with the rights of the description, not of the file.
    pub(super) fn enter_attached(&mut self, inode: Option<InodeId>) -> u64 {
        self.last += 1;
        let node = Node { lookups: 1, attached: true, ..Node::new(inode, Place::Elsewhere) };
        self.by_id.insert(self.last, node);
        if let Some(inode) = inode {
            self.attached.entry(inode).or_default().push(self.last);
        }
        self.last
    }

    /// The kernel gets a reference to the writers' end of a FIFO; as [`Nodes::enter`].
    pub(super) fn enter_writers(&mut self, inode: InodeId, counted: bool) -> Option<u64> {
        let id = match self.writers.get(&inode) {
            Some(id) => *id,
            None if counted => {
                self.last += 1;
                let node = Node { writers: true, ..Node::new(Some(inode), Place::Elsewhere) };
                self.by_id.insert(self.last, node);
                self.writers.insert(inode, self.last);
                self.last
            }
            None => return None,
        };
        let node = self.by_id.get_mut(&id)?;
        node.lookups += 1;
        node.references += u64::from(counted);
        Some(id)
    }

    /// The kernel drops references. The answer: the object, if that was the last of them, and how
    /// many references the server has counted.
    pub(super) fn forget(&mut self, id: u64, count: u64) -> Option<(InodeId, u64)> {
        if id == ROOT_ID {
            return None;
        }
        let node = self.by_id.get_mut(&id)?;
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 {
            return None;
        }
        let node = self.by_id.remove(&id)?;
        let inode = node.inode?;
        if node.attached {
            if let Some(ids) = self.attached.get_mut(&inode) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.attached.remove(&inode);
                }
            }
            return None;
        }
        let ids = if node.writers { &mut self.writers } else { &mut self.by_inode };
        ids.remove(&inode);
        Some((inode, node.references))
    }

    fn insert(&mut self, node: Node) -> u64 {
        self.last += 1;
        if let Some(inode) = node.inode {
            self.by_inode.insert(inode, self.last);
        }
        self.by_id.insert(self.last, node);
        self.last
    }
}

impl Node {
    fn new(inode: Option<InodeId>, place: Place) -> Node {
        Node {
            inode,
            attached: false,
            writers: false,
            lookups: 0,
            references: 0,
            place,
            locked: false,
            keeps_names: Until::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(number: u64) -> InodeId {
        InodeId { number, generation: 0 }
    }

    #[test]
    fn references_of_kernel_and_server_are_counted_apart() {
        let mut nodes = Nodes::new();
        assert_eq!(nodes.enter(inode(5), Place::Elsewhere, false), None);
        let id = nodes.enter(inode(5), Place::Elsewhere, true).unwrap();
        assert_eq!(nodes.enter(inode(5), Place::Elsewhere, false), Some(id));
        assert_eq!(nodes.enter(inode(5), Place::Elsewhere, true), Some(id));
        assert_eq!(nodes.forget(id, 2), None);
        assert_eq!(nodes.forget(id, 1), Some((inode(5), 2)));
        assert!(nodes.ids(inode(5)).is_empty());
        let again = nodes.enter(inode(5), Place::Elsewhere, true).unwrap();
        assert_ne!(again, id, "an id is never used twice");
    }

    #[test]
    fn forgetting_too_much_or_the_root_does_no_harm() {
        let mut nodes = Nodes::new();
        assert_eq!(nodes.forget(ROOT_ID, u64::MAX), None);
        assert_eq!(nodes.ids(ROOT), [ROOT_ID]);
        let id = nodes.enter(inode(5), Place::Elsewhere, true).unwrap();
        assert_eq!(nodes.forget(id, u64::MAX), Some((inode(5), 1)));
        assert_eq!(nodes.forget(id, 1), None);
        let foreign = nodes.enter_attached(None);
        assert_eq!(nodes.forget(foreign, 1), None);
        assert!(nodes.get(foreign).is_none());
    }

    #[test]
    fn an_attached_description_has_an_id_of_its_own() {
        let mut nodes = Nodes::new();
        let id = nodes.enter(inode(5), Place::Elsewhere, true).unwrap();
        let attached = nodes.enter_attached(Some(inode(5)));
        assert_eq!(nodes.ids(inode(5)), [id, attached]);
        assert_eq!(nodes.forget(attached, 1), None, "the server has counted nothing");
        assert_eq!(nodes.ids(inode(5)), [id]);
        assert_eq!(nodes.enter(inode(5), Place::Elsewhere, false), Some(id));
    }

    #[test]
    fn the_writers_end_of_a_fifo_is_a_node_of_its_own() {
        let mut nodes = Nodes::new();
        let id = nodes.enter(inode(5), Place::Elsewhere, true).unwrap();
        assert_eq!(nodes.enter_writers(inode(5), false), None, "it holds its own reference");
        let writers = nodes.enter_writers(inode(5), true).unwrap();
        assert_eq!(nodes.enter_writers(inode(5), false), Some(writers));
        assert_eq!(nodes.ids(inode(5)), [id, writers]);
        assert_eq!(nodes.forget(id, 1), Some((inode(5), 1)));
        assert_eq!(nodes.forget(writers, 2), Some((inode(5), 1)));
        assert!(nodes.ids(inode(5)).is_empty());
    }

    #[test]
    fn shared_memory_is_known_by_its_path() {
        let shm = Place::Root.below(b"dev").below(b"shm");
        assert_eq!(shm, Place::SharedMemory);
        assert_eq!(shm.below(b"segment"), Place::SharedMemory);
        assert_eq!(Place::Root.below(b"shm"), Place::Elsewhere);
        assert_eq!(Place::Elsewhere.below(b"dev").below(b"shm"), Place::Elsewhere);
    }
}
