//! Capabilities of endpoints: who may call one, copy its memory, manage it.
//!
//! They are checked by the exchange that the endpoint lives at, against the source that the DVK
//! vouches for, so that no server's goodwill is needed.

use crate::ids::Address;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most endpoints that one endpoint names in its permissions.
pub const MAX_GRANTS: usize = 4096;

/// A set of rights over one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Rights(u8);

impl Rights {
    /// None.
    pub const NONE: Rights = Rights(0);
    /// To send it anything: post, send, call, notify.
    pub const CALL: Rights = Rights(1);
    /// To copy from and to all regions that it shares, whoever they are granted to.
    pub const COPY: Rights = Rights(2);
    /// To change its permissions, and to end it.
    pub const MANAGE: Rights = Rights(4);
    /// All of them.
    pub const ALL: Rights = Rights(7);

    /// These and others.
    #[must_use]
    pub const fn and(self, others: Rights) -> Rights {
        Rights(self.0 | others.0)
    }

    /// Whether all of `others` are among these.
    #[must_use]
    pub const fn include(self, others: Rights) -> bool {
        self.0 & others.0 == others.0
    }
}

/// A change of an endpoint's permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Permit {
    /// What endpoints that are not named may do.
    Everybody(Rights),
    /// What one endpoint may do, instead of what everybody may.
    One(Address, Rights),
    /// The endpoint is named no more.
    Forget(Address),
}

/// Who may do what with one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permissions {
    everybody: Rights,
    named: BTreeMap<Address, Rights>,
}

impl Default for Permissions {
    /// Everybody in the container may call, nobody may do more.
    fn default() -> Self {
        Permissions { everybody: Rights::CALL, named: BTreeMap::new() }
    }
}

impl Permissions {
    /// Whether an endpoint has rights.
    #[must_use]
    pub fn allow(&self, source: &Address, wanted: Rights) -> bool {
        self.named.get(source).copied().unwrap_or(self.everybody).include(wanted)
    }

    /// Changes them. False: too many endpoints are named, nothing was changed.
    pub fn change(&mut self, permit: Permit) -> bool {
        match permit {
            Permit::Everybody(rights) => self.everybody = rights,
            Permit::Forget(one) => {
                self.named.remove(&one);
            }
            Permit::One(one, rights) => {
                if self.named.len() >= MAX_GRANTS && !self.named.contains_key(&one) {
                    return false;
                }
                self.named.insert(one, rights);
            }
        }
        true
    }

    /// The life of a node is over, and with it the rights of its endpoints.
    pub(crate) fn node_gone(&mut self, is_its: impl Fn(&Address) -> bool) {
        self.named.retain(|address, _| !is_its(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DcId, NodeId};

    fn address(number: u64) -> Address {
        Address { dc: DcId(1), node: NodeId(1), incarnation: 1, number }
    }

    #[test]
    fn the_named_have_their_own_rights_and_the_others_everybodys() {
        let mut permissions = Permissions::default();
        assert!(permissions.allow(&address(1), Rights::CALL));
        assert!(!permissions.allow(&address(1), Rights::COPY));
        assert!(permissions.change(Permit::Everybody(Rights::NONE)));
        assert!(permissions.change(Permit::One(address(2), Rights::CALL.and(Rights::COPY))));
        assert!(!permissions.allow(&address(1), Rights::CALL));
        assert!(permissions.allow(&address(2), Rights::CALL));
        assert!(!permissions.allow(&address(2), Rights::ALL));
        assert!(permissions.change(Permit::Forget(address(2))));
        assert!(!permissions.allow(&address(2), Rights::CALL));
    }

    #[test]
    fn the_named_are_bounded() {
        let mut permissions = Permissions::default();
        for number in 0..MAX_GRANTS as u64 {
            assert!(permissions.change(Permit::One(address(number), Rights::ALL)));
        }
        assert!(!permissions.change(Permit::One(address(u64::MAX), Rights::ALL)));
        assert!(permissions.change(Permit::One(address(0), Rights::NONE)), "a known one");
    }
}
