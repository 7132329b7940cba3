//! A member's copy of the routes for datagrams.

use super::server::MAX_ROUTES;
use crate::messages::RouteKey;
use std::collections::BTreeMap;

/// What a member has to change in its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Datagrams for the key no longer go to this node.
    Remove(RouteKey, u16),
    /// They go to this one.
    Add(RouteKey, u16),
}

/// Most keys whose versions are remembered; the oldest without a route are forgotten first. A notice
/// that is so late does not exist: the server waits for each to be confirmed within its deadline.
const MAX_REMEMBERED: usize = 4 * MAX_ROUTES;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    known: BTreeMap<RouteKey, (u64, Option<u16>)>,
}

impl Routes {
    /// News from the server; what is to be done, in order.
    pub fn apply(&mut self, version: u64, key: RouteKey, node: Option<u16>) -> Vec<Change> {
        let old = self.known.get(&key).copied();
        if old.is_some_and(|(known, _)| known >= version) {
            return Vec::new();
        }
        self.known.insert(key, (version, node));
        self.forget();
        let before = old.and_then(|(_, node)| node);
        if before == node {
            return Vec::new();
        }
        let removed = before.map(|node| Change::Remove(key, node));
        removed.into_iter().chain(node.map(|node| Change::Add(key, node))).collect()
    }

    /// The node that a key leads to.
    #[must_use]
    pub fn get(&self, key: RouteKey) -> Option<u16> {
        self.known.get(&key).and_then(|(_, node)| *node)
    }

    fn forget(&mut self) {
        if self.known.len() <= MAX_REMEMBERED {
            return;
        }
        let unused = self.known.iter().filter(|(_, (_, node))| node.is_none());
        if let Some(key) = unused.min_by_key(|(_, (version, _))| *version).map(|(key, _)| *key) {
            self.known.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_versions_win() {
        let mut routes = Routes::default();
        let key = (53, None);
        assert_eq!(routes.apply(2, key, Some(1)), [Change::Add(key, 1)]);
        assert_eq!(routes.apply(1, key, Some(3)), []);
        assert_eq!(routes.apply(2, key, None), []);
        assert_eq!(routes.apply(3, key, Some(1)), []);
        let moved = [Change::Remove(key, 1), Change::Add(key, 2)];
        assert_eq!(routes.apply(4, key, Some(2)), moved);
        assert_eq!(routes.apply(5, key, None), [Change::Remove(key, 2)]);
        assert_eq!(routes.get(key), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut routes = Routes::default();
        for number in 0..(MAX_REMEMBERED as u64 + 50) {
            let key = ((number % 65_536) as u16, None);
            routes.apply(number + 1, key, None);
        }
        assert!(routes.known.len() <= MAX_REMEMBERED);
    }
}
