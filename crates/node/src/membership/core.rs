//! Who belongs to a cluster of hosts, and who may come to: the pure part.
//!
//! One node, the registrar, decides; it made the cluster and has its authority's key. Every other
//! node keeps a copy of the roster and follows newer ones of the registrar alone. A node's number is
//! given once and never again, so that a removed node cannot be mistaken for a later one.

use dvs_dvk::tls::Fingerprint;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Most members of a cluster.
pub(crate) const MAX_MEMBERS: usize = 256;
/// Most tokens that are valid at a time.
pub(crate) const MAX_TOKENS: usize = 64;
/// Most revoked certificates that are remembered; older ones have ended by themselves before.
pub(crate) const MAX_REVOKED: usize = 4096;
/// Longest life of a token, seconds: a week.
pub(crate) const MAX_TOKEN_LIFE: u64 = 7 * 24 * 3600;
/// Most uses of one token.
pub(crate) const MAX_TOKEN_USES: u32 = 256;

/// One node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Its number.
    pub(crate) node: u16,
    /// Its name.
    pub(crate) name: String,
    /// Where it listens, once it has said so.
    pub(crate) address: Option<SocketAddr>,
    /// Its certificate's.
    pub(crate) fingerprint: Fingerprint,
    /// When that ends, seconds since 1970.
    pub(crate) ends: u64,
}

/// The members, as the registrar has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Roster {
    /// Grows with every change by the registrar.
    pub(crate) version: u64,
    /// By number.
    pub(crate) members: Vec<Member>,
    /// Certificates that are valid no more, and when they would have ended.
    pub(crate) revoked: Vec<(Fingerprint, u64)>,
}

impl Roster {
    /// A member by its name.
    pub(crate) fn named(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    /// A member by its number.
    pub(crate) fn member(&self, node: u16) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node)
    }

    fn member_mut(&mut self, node: u16) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.node == node)
    }

    /// A member says where it listens. True if that is news.
    pub(crate) fn moved(&mut self, node: u16, address: SocketAddr) -> bool {
        match self.member_mut(node) {
            Some(member) if member.address != Some(address) => {
                member.address = Some(address);
                true
            }
            _ => false,
        }
    }

    /// Takes the registrar's roster over if it is newer and within bounds. Addresses that it does not
    /// know are kept.
    pub(crate) fn follow(&mut self, newer: Roster) -> bool {
        if newer.version <= self.version
            || newer.members.len() > MAX_MEMBERS
            || newer.revoked.len() > MAX_REVOKED
        {
            return false;
        }
        let old = std::mem::replace(self, newer);
        for member in &mut self.members {
            let known = old.member(member.node).and_then(|old| old.address);
            member.address = member.address.or(known);
        }
        true
    }
}

/// A right to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    /// SHA-256 of its secret: whoever reads the file gains nothing.
    digest: Fingerprint,
    /// When it ends, seconds since 1970.
    ends: u64,
    /// How many nodes it still lets in.
    uses: u32,
}

/// Why a node does not come in, or a change is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// Unknown, used, or too old: which of them is nobody's business.
    #[error(
        "the token is not valid: it was used, is too old, or was never given; make a new one: dvs node token"
    )]
    Token,
    /// Taken.
    #[error("a node of the cluster is called {0} already; choose another name: --name")]
    Name(String),
    /// Not a name.
    #[error("{0:?} cannot be a node's name")]
    BadName(String),
    /// Bound.
    #[error(
        "the cluster has {MAX_MEMBERS} nodes, which is the limit; remove some: dvs node rm NODE"
    )]
    Full,
    /// Bound.
    #[error(
        "{MAX_TOKENS} tokens are valid, which is the limit; wait until some are used or too old"
    )]
    TooManyTokens,
    /// Out of range.
    #[error("a token is valid for 1 second to a week, and for 1 to {MAX_TOKEN_USES} nodes")]
    BadToken,
    /// No such member.
    #[error("no node of the cluster is called {0}; its nodes: dvs node ls")]
    Unknown(String),
    /// The registrar itself.
    #[error("{0} keeps the cluster's authority and cannot be removed from it")]
    Registrar(String),
    /// Versions.
    #[error("the other side runs another version of dvs; run the same on all hosts")]
    Version,
    /// The key or certificate.
    #[error("{0}")]
    Certificate(String),
}

/// The registrar's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registrar {
    pub(crate) roster: Roster,
    /// The number that the next node gets.
    next: u16,
    tokens: Vec<Token>,
    /// Certificates that have a successor: valid until their node says that it shows the new one
    /// everywhere, so that no link is lost in between.
    replaced: Vec<(u16, Fingerprint, u64)>,
}

impl Registrar {
    /// Of a new cluster, whose first node this is.
    pub(crate) fn new(first: Member) -> Self {
        let next = first.node.saturating_add(1);
        let roster = Roster { version: 1, members: vec![first], revoked: Vec::new() };
        Registrar { roster, next, tokens: Vec::new(), replaced: Vec::new() }
    }

    fn own(&self) -> u16 {
        self.roster.members.first().map_or(0, |member| member.node)
    }

    /// A token is given out.
    pub(crate) fn add_token(
        &mut self,
        digest: Fingerprint,
        now: u64,
        life: u64,
        uses: u32,
    ) -> Result<(), Refusal> {
        if !(1..=MAX_TOKEN_LIFE).contains(&life) || !(1..=MAX_TOKEN_USES).contains(&uses) {
            return Err(Refusal::BadToken);
        }
        self.tokens.retain(|token| token.ends > now);
        if self.tokens.len() >= MAX_TOKENS {
            return Err(Refusal::TooManyTokens);
        }
        self.tokens.push(Token { digest, ends: now.saturating_add(life), uses });
        Ok(())
    }

    /// Somebody wants to join. The number and name that it gets; the token is used up by it.
    pub(crate) fn admit(
        &mut self,
        digest: &Fingerprint,
        name: Option<&str>,
        now: u64,
    ) -> Result<(u16, String), Refusal> {
        let token = self.tokens.iter_mut().find(|token| token.digest == *digest);
        let token = token.filter(|token| token.ends > now && token.uses > 0);
        let Some(token) = token else { return Err(Refusal::Token) };
        if self.roster.members.len() >= MAX_MEMBERS || self.next == u16::MAX {
            return Err(Refusal::Full);
        }
        let name = match name {
            Some(name) => {
                if crate::names::check("node", name).is_err() {
                    return Err(Refusal::BadName(name.chars().take(80).collect()));
                }
                if self.roster.named(name).is_some() {
                    return Err(Refusal::Name(name.to_owned()));
                }
                name.to_owned()
            }
            None => format!("n{}", self.next),
        };
        token.uses -= 1;
        self.tokens.retain(|token| token.uses > 0);
        let node = self.next;
        self.next += 1;
        Ok((node, name))
    }

    /// Who was admitted is a member from now on.
    pub(crate) fn enter(&mut self, member: Member) {
        self.roster.members.push(member);
        self.roster.version += 1;
    }

    /// A member has a new certificate.
    pub(crate) fn renewed(&mut self, node: u16, fingerprint: Fingerprint, ends: u64, now: u64) {
        let Some(member) = self.roster.member_mut(node) else { return };
        let old = (node, member.fingerprint, member.ends);
        (member.fingerprint, member.ends) = (fingerprint, ends);
        self.roster.version += 1;
        self.replaced.retain(|(_, _, ends)| *ends > now);
        if self.replaced.len() >= MAX_REVOKED {
            self.replaced.remove(0);
        }
        self.replaced.push(old);
    }

    /// A member shows its new certificate everywhere: those before it are valid no more.
    pub(crate) fn retire(&mut self, node: u16, now: u64) {
        let (old, kept) = self.replaced.drain(..).partition(|(of, _, _)| *of == node);
        self.replaced = kept;
        let old: Vec<(u16, Fingerprint, u64)> = old;
        old.into_iter().for_each(|(_, fingerprint, ends)| self.revoke((fingerprint, ends), now));
    }

    /// Removes a member for good.
    pub(crate) fn remove(&mut self, name: &str, now: u64) -> Result<u16, Refusal> {
        let found = self.roster.named(name).ok_or_else(|| Refusal::Unknown(name.to_owned()))?;
        if found.node == self.own() {
            return Err(Refusal::Registrar(name.to_owned()));
        }
        let (node, old) = (found.node, (found.fingerprint, found.ends));
        self.roster.members.retain(|member| member.node != node);
        self.retire(node, now);
        self.revoke(old, now);
        Ok(node)
    }

    fn revoke(&mut self, old: (Fingerprint, u64), now: u64) {
        let revoked = &mut self.roster.revoked;
        revoked.retain(|(_, ends)| *ends > now);
        if revoked.len() >= MAX_REVOKED {
            revoked.remove(0);
        }
        revoked.push(old);
        self.roster.version += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u16, name: &str) -> Member {
        let fingerprint = [u8::try_from(node).unwrap(); 32];
        Member { node, name: name.into(), address: None, fingerprint, ends: 1000 }
    }

    fn registrar() -> Registrar {
        Registrar::new(member(1, "n1"))
    }

    #[test]
    fn a_token_lets_in_as_many_as_it_says_and_no_longer_than_it_says() {
        let mut registrar = registrar();
        registrar.add_token([1; 32], 100, 50, 1).unwrap();
        registrar.add_token([2; 32], 100, 50, 2).unwrap();
        assert_eq!(registrar.admit(&[9; 32], None, 110), Err(Refusal::Token));
        assert_eq!(registrar.admit(&[1; 32], None, 150), Err(Refusal::Token), "too old");
        assert_eq!(registrar.admit(&[1; 32], None, 149), Ok((2, "n2".into())));
        assert_eq!(registrar.admit(&[1; 32], None, 149), Err(Refusal::Token), "used");
        assert_eq!(registrar.admit(&[2; 32], Some("b"), 110), Ok((3, "b".into())));
        assert_eq!(registrar.admit(&[2; 32], None, 110), Ok((4, "n4".into())));
        assert_eq!(registrar.admit(&[2; 32], None, 110), Err(Refusal::Token));
    }

    #[test]
    fn a_wrong_name_does_not_use_the_token_up() {
        let mut registrar = registrar();
        registrar.add_token([1; 32], 0, 50, 1).unwrap();
        assert_eq!(registrar.admit(&[1; 32], Some("n1"), 1), Err(Refusal::Name("n1".into())));
        assert!(matches!(registrar.admit(&[1; 32], Some("a/b"), 1), Err(Refusal::BadName(_))));
        assert!(registrar.admit(&[1; 32], Some("ok"), 1).is_ok());
    }

    #[test]
    fn tokens_and_members_are_bounded() {
        let mut registrar = registrar();
        for (life, uses) in [(0, 1), (MAX_TOKEN_LIFE + 1, 1), (1, 0), (1, MAX_TOKEN_USES + 1)] {
            assert_eq!(registrar.add_token([0; 32], 0, life, uses), Err(Refusal::BadToken));
        }
        for number in 0..MAX_TOKENS {
            registrar.add_token([u8::try_from(number).unwrap(); 32], 0, 10, 200).unwrap();
        }
        assert_eq!(registrar.add_token([99; 32], 9, 10, 1), Err(Refusal::TooManyTokens));
        registrar.add_token([99; 32], 10, 10, MAX_TOKEN_USES).unwrap();
        while registrar.roster.members.len() < MAX_MEMBERS {
            let (node, name) = registrar.admit(&[99; 32], None, 11).unwrap();
            registrar.enter(Member { node, name, ..member(1, "") });
        }
        assert_eq!(registrar.admit(&[99; 32], None, 11), Err(Refusal::Full));
    }

    #[test]
    fn who_is_removed_is_revoked_and_its_number_is_not_given_again() {
        let mut registrar = registrar();
        registrar.add_token([1; 32], 0, 50, 9).unwrap();
        let (node, name) = registrar.admit(&[1; 32], None, 1).unwrap();
        registrar.enter(member(node, &name));
        let version = registrar.roster.version;
        assert_eq!(registrar.remove("n2", 1), Ok(2));
        assert!(registrar.roster.version > version);
        assert_eq!(registrar.roster.revoked, [([2; 32], 1000)]);
        assert_eq!(registrar.remove("n2", 1), Err(Refusal::Unknown("n2".into())));
        assert_eq!(registrar.remove("n1", 1), Err(Refusal::Registrar("n1".into())));
        assert_eq!(registrar.admit(&[1; 32], None, 1), Ok((3, "n3".into())));
        // What has ended by itself need not be remembered.
        registrar.enter(member(3, "n3"));
        registrar.remove("n3", 1000).unwrap();
        assert_eq!(registrar.roster.revoked, [([3; 32], 1000)]);
    }

    #[test]
    fn a_new_certificate_replaces_the_old_one() {
        let mut registrar = registrar();
        registrar.renewed(1, [7; 32], 2000, 5);
        let own = registrar.roster.member(1).unwrap();
        assert_eq!((own.fingerprint, own.ends), ([7; 32], 2000));
        assert_eq!(registrar.roster.revoked, [], "links still show it");
        registrar.retire(2, 5);
        assert_eq!(registrar.roster.revoked, [], "another node's word");
        registrar.retire(1, 5);
        assert_eq!(registrar.roster.revoked, [([1; 32], 1000)]);
        registrar.renewed(9, [8; 32], 2000, 5);
        registrar.retire(9, 5);
        assert_eq!(registrar.roster.revoked.len(), 1, "nobody has number 9");
    }

    #[test]
    fn a_removed_nodes_former_certificates_are_revoked_too() {
        let mut registrar = registrar();
        registrar.enter(member(2, "n2"));
        registrar.renewed(2, [7; 32], 2000, 5);
        registrar.remove("n2", 5).unwrap();
        assert_eq!(registrar.roster.revoked, [([2; 32], 1000), ([7; 32], 2000)]);
    }

    #[test]
    fn rosters_are_followed_if_newer_and_sane() {
        let address: SocketAddr = "10.0.0.2:7".parse().unwrap();
        let mut own = Roster { version: 3, members: vec![member(2, "n2")], revoked: vec![] };
        assert!(own.moved(2, address) && !own.moved(2, address) && !own.moved(9, address));
        assert!(!own.follow(Roster { version: 3, ..Roster::default() }));
        let flood = vec![member(1, "x"); MAX_MEMBERS + 1];
        assert!(!own.follow(Roster { version: 9, members: flood, revoked: vec![] }));
        assert!(!own.follow(Roster {
            version: 9,
            members: vec![],
            revoked: vec![([0; 32], 0); MAX_REVOKED + 1]
        }));
        let newer =
            Roster { version: 4, members: vec![member(2, "n2"), member(3, "n3")], ..own.clone() };
        assert!(own.follow(newer));
        assert_eq!(own.member(2).unwrap().address, Some(address), "kept");
        assert_eq!(own.members.len(), 2);
    }
}
