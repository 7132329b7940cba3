//! What a client may keep: names and attributes under leases, and the log by which a late reply is
//! told from a fresh one. Pure: time is a number that the caller gives.
//!
//! A reply that was under way while its object was recalled must not be kept. Which object a lookup
//! answers with is known only afterwards, so requests are not marked; instead every staleness goes
//! into a bounded log, and a reply is kept only if nothing it speaks of is in the log since its
//! request began (or if the log no longer reaches back so far).

use dvs_fs::messages::{Attributes, InodeId, Lease, Stale};
use std::collections::{HashMap, HashSet, VecDeque};

/// Most names kept.
pub const MAX_NAMES: usize = 65_536;
/// Most attributes kept.
pub const MAX_ATTRIBUTES: usize = 65_536;
/// Most files whose content is granted for ever.
pub const MAX_CONTENTS: usize = 65_536;
/// How far back the log reaches.
pub const MAX_LOG: usize = 1024;

/// Extended attributes that are asked for again and again (by each exec, by `ls -l`) and that hardly
/// any file has. Setting one makes the attributes stale, so their absence is kept with these.
const RARE_XATTRS: [&[u8]; 4] = [
    b"security.capability",
    b"security.selinux",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
];

/// Until when something may be kept, in milliseconds of the client's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Until {
    /// Not at all.
    Never,
    /// Until then, if not recalled before.
    At(u64),
    /// For ever.
    Always,
}

impl Until {
    /// What a lease allows whose request was sent at `sent`. The server counts from a later moment,
    /// so this errs on the safe side.
    #[must_use]
    pub fn from_lease(lease: Lease, sent: u64) -> Until {
        match lease.milliseconds {
            0 => Until::Never,
            u32::MAX => Until::Always,
            time => Until::At(sent.saturating_add(u64::from(time))),
        }
    }

    /// Whether it is over at `now`.
    #[must_use]
    pub fn is_over(self, now: u64) -> bool {
        match self {
            Until::Never => true,
            Until::At(time) => now >= time,
            Until::Always => false,
        }
    }
}

/// When a request began, as the log counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

/// What the log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Logged {
    One(Stale),
    AllAttributes,
}

/// What a name means, and until when that may be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptName {
    /// The object; `None`: there is none.
    pub inode: Option<InodeId>,
    /// Until when.
    pub until: Until,
    /// Whether the kernel may keep it as well.
    pub in_kernel: bool,
}

/// Attributes, until when they may be relied on, and for which of [`RARE_XATTRS`] the server said that
/// the object has none.
#[derive(Debug)]
struct KeptAttributes {
    attributes: Attributes,
    until: Until,
    absent: [Option<i32>; RARE_XATTRS.len()],
}

/// The cache.
#[derive(Debug, Default)]
pub struct Cache {
    names: HashMap<InodeId, HashMap<Vec<u8>, KeptName>>,
    name_count: usize,
    attributes: HashMap<InodeId, KeptAttributes>,
    contents: HashSet<InodeId>,
    log: VecDeque<Logged>,
    logged: u64,
}

impl Cache {
    /// An empty one.
    #[must_use]
    pub fn new() -> Cache {
        Cache::default()
    }

    /// Call it before a request is sent; its reply is judged by the mark.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.logged)
    }

    /// A kept name.
    #[must_use]
    pub fn name(&self, now: u64, parent: InodeId, name: &[u8]) -> Option<KeptName> {
        let kept = *self.names.get(&parent)?.get(name)?;
        (!kept.until.is_over(now)).then_some(kept)
    }

    /// The object that a name was last known to mean, even if that may not be relied on any more.
    #[must_use]
    pub fn last_known(&self, parent: InodeId, name: &[u8]) -> Option<Option<InodeId>> {
        Some(self.names.get(&parent)?.get(name)?.inode)
    }

    /// Kept attributes.
    #[must_use]
    pub fn attributes(&self, now: u64, inode: InodeId) -> Option<(Attributes, Until)> {
        let kept = self.attributes.get(&inode)?;
        (!kept.until.is_over(now)).then_some((kept.attributes, kept.until))
    }

    /// The errno that says that an object does not have an extended attribute, if that is kept.
    #[must_use]
    pub fn absent_xattr(&self, now: u64, inode: InodeId, name: &[u8]) -> Option<i32> {
        let at = RARE_XATTRS.iter().position(|rare| *rare == name)?;
        let kept = self.attributes.get(&inode)?;
        if kept.until.is_over(now) { None } else { *kept.absent.get(at)? }
    }

    /// Learns that an object does not have an extended attribute.
    pub fn learn_absent_xattr(&mut self, mark: Mark, inode: InodeId, name: &[u8], errno: i32) {
        if self.attributes_are_stale(mark, inode) {
            return;
        }
        if let Some(at) = RARE_XATTRS.iter().position(|rare| *rare == name)
            && let Some(kept) = self.attributes.get_mut(&inode)
            && let Some(absent) = kept.absent.get_mut(at)
        {
            *absent = Some(errno);
        }
    }

    /// Learns a name from a reply; returns until when it may be kept.
    pub fn learn_name(
        &mut self,
        mark: Mark,
        parent: InodeId,
        name: &[u8],
        kept: KeptName,
    ) -> Until {
        if self.name_is_stale(mark, parent, name) || kept.until == Until::Never {
            self.drop_name(parent, name);
            return Until::Never;
        }
        if self.name_count >= MAX_NAMES {
            self.names.clear();
            self.name_count = 0;
        }
        let before = self.names.entry(parent).or_default().insert(name.to_vec(), kept);
        self.name_count += usize::from(before.is_none());
        kept.until
    }

    /// Learns attributes from a reply; returns until when they may be kept.
    pub fn learn_attributes(&mut self, mark: Mark, attributes: Attributes, until: Until) -> Until {
        let inode = attributes.inode;
        if self.attributes_are_stale(mark, inode) || until == Until::Never {
            self.attributes.remove(&inode);
            return Until::Never;
        }
        if self.attributes.len() >= MAX_ATTRIBUTES {
            self.attributes.clear();
        }
        let absent = [None; RARE_XATTRS.len()];
        self.attributes.insert(inode, KeptAttributes { attributes, until, absent });
        until
    }

    /// The server granted the content of a file for ever: it does not change before it is recalled.
    pub fn learn_content(&mut self, mark: Mark, inode: InodeId) {
        if self.attributes_are_stale(mark, inode) {
            return;
        }
        if self.contents.len() >= MAX_CONTENTS {
            self.contents.clear();
        }
        self.contents.insert(inode);
    }

    /// Whether the content of a file is granted for ever.
    #[must_use]
    pub fn has_content(&self, inode: InodeId) -> bool {
        self.contents.contains(&inode)
    }

    /// Whether a name became stale since the mark.
    #[must_use]
    pub fn name_is_stale(&self, mark: Mark, parent: InodeId, name: &[u8]) -> bool {
        self.since(mark, |logged| {
            matches!(logged, Logged::One(Stale::Name(at, which)) if *at == parent && which == name)
        })
    }

    /// Whether the attributes of `inode` became stale since the mark.
    #[must_use]
    pub fn attributes_are_stale(&self, mark: Mark, inode: InodeId) -> bool {
        self.since(mark, |logged| match logged {
            Logged::One(Stale::Attributes(which) | Stale::Content(which)) => *which == inode,
            Logged::One(Stale::Name(..)) => false,
            Logged::AllAttributes => true,
        })
    }

    /// Something must not be kept any longer, nor be learned from replies under way.
    pub fn stale(&mut self, what: Stale) {
        match &what {
            Stale::Attributes(inode) | Stale::Content(inode) => {
                self.attributes.remove(inode);
                self.contents.remove(inode);
            }
            Stale::Name(parent, name) => self.drop_name(*parent, name),
        }
        self.push(Logged::One(what));
    }

    /// The attributes of an object that is not known here are stale.
    pub fn all_attributes_stale(&mut self) {
        self.attributes.clear();
        self.push(Logged::AllAttributes);
    }

    /// The kernel dropped its last reference to an object.
    pub fn forget(&mut self, inode: InodeId) {
        self.attributes.remove(&inode);
        self.contents.remove(&inode);
        if let Some(names) = self.names.remove(&inode) {
            self.name_count -= names.len();
        }
    }

    fn drop_name(&mut self, parent: InodeId, name: &[u8]) {
        if let Some(names) = self.names.get_mut(&parent)
            && names.remove(name).is_some()
        {
            self.name_count -= 1;
        }
    }

    fn push(&mut self, what: Logged) {
        if self.log.len() == MAX_LOG {
            self.log.pop_front();
        }
        self.log.push_back(what);
        self.logged += 1;
    }

    /// Whether anything since the mark is `concerned`, or might be.
    fn since(&self, mark: Mark, concerned: impl Fn(&Logged) -> bool) -> bool {
        let count = usize::try_from(self.logged.saturating_sub(mark.0)).unwrap_or(usize::MAX);
        count > self.log.len() || self.log.iter().rev().take(count).any(concerned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvs_fs::messages::{ROOT, Time};

    fn inode(number: u64) -> InodeId {
        InodeId { number, generation: 0 }
    }

    fn kept(inode: Option<InodeId>, until: Until) -> KeptName {
        KeptName { inode, until, in_kernel: false }
    }

    fn attributes(number: u64) -> Attributes {
        Attributes {
            inode: inode(number),
            mode: 0o100_644,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            accessed: Time::default(),
            modified: Time::default(),
            changed: Time::default(),
        }
    }

    #[test]
    fn a_lease_counts_from_the_sending() {
        let lease = Lease { milliseconds: 30, epoch: 1 };
        assert_eq!(Until::from_lease(lease, 100), Until::At(130));
        assert_eq!(Until::from_lease(Lease::NONE, 100), Until::Never);
        assert_eq!(Until::from_lease(Lease::FOREVER, 100), Until::Always);
        assert!(!Until::At(130).is_over(129));
        assert!(Until::At(130).is_over(130));
    }

    #[test]
    fn kept_until_the_lease_is_over() {
        let mut cache = Cache::new();
        let mark = cache.mark();
        cache.learn_name(mark, ROOT, b"a", kept(Some(inode(2)), Until::At(10)));
        cache.learn_attributes(mark, attributes(2), Until::At(20));
        cache.learn_name(mark, ROOT, b"none", kept(None, Until::At(10)));
        assert_eq!(cache.name(9, ROOT, b"a"), Some(kept(Some(inode(2)), Until::At(10))));
        assert_eq!(cache.name(9, ROOT, b"none"), Some(kept(None, Until::At(10))));
        assert_eq!(cache.name(10, ROOT, b"a"), None);
        assert!(cache.attributes(19, inode(2)).is_some());
        assert!(cache.attributes(20, inode(2)).is_none());
    }

    #[test]
    fn a_recall_drops_what_is_kept_and_what_is_under_way() {
        let mut cache = Cache::new();
        let before = cache.mark();
        cache.learn_attributes(before, attributes(2), Until::Always);
        cache.stale(Stale::Attributes(inode(2)));
        assert!(cache.attributes(0, inode(2)).is_none());
        assert_eq!(cache.learn_attributes(before, attributes(2), Until::Always), Until::Never);
        assert!(cache.attributes(0, inode(2)).is_none());
        // Another object's reply under way is not concerned, nor is a later reply.
        assert_eq!(cache.learn_attributes(before, attributes(3), Until::Always), Until::Always);
        let after = cache.mark();
        assert_eq!(cache.learn_attributes(after, attributes(2), Until::Always), Until::Always);
    }

    #[test]
    fn a_recalled_name_under_way_is_not_kept() {
        let mut cache = Cache::new();
        let mark = cache.mark();
        cache.stale(Stale::Name(ROOT, b"a".to_vec()));
        assert_eq!(cache.learn_name(mark, ROOT, b"a", kept(None, Until::Always)), Until::Never);
        assert_eq!(cache.learn_name(mark, ROOT, b"b", kept(None, Until::Always)), Until::Always);
        assert_eq!(cache.name(0, ROOT, b"a"), None);
    }

    #[test]
    fn a_reply_older_than_the_log_is_not_kept() {
        let mut cache = Cache::new();
        let mark = cache.mark();
        for number in 0..=MAX_LOG as u64 {
            cache.stale(Stale::Attributes(inode(1000 + number)));
        }
        assert_eq!(cache.log.len(), MAX_LOG);
        assert_eq!(cache.learn_name(mark, ROOT, b"a", kept(None, Until::Always)), Until::Never);
        assert_eq!(cache.learn_attributes(mark, attributes(2), Until::Always), Until::Never);
    }

    #[test]
    fn an_absent_attribute_is_kept_with_the_others() {
        let mut cache = Cache::new();
        let (mark, name) = (cache.mark(), b"security.capability");
        cache.learn_absent_xattr(mark, inode(2), name, libc::ENODATA);
        assert_eq!(cache.absent_xattr(0, inode(2), name), None, "no lease to keep it under");
        cache.learn_attributes(mark, attributes(2), Until::At(10));
        cache.learn_absent_xattr(mark, inode(2), name, libc::ENODATA);
        cache.learn_absent_xattr(mark, inode(2), b"user.other", libc::ENODATA);
        assert_eq!(cache.absent_xattr(9, inode(2), name), Some(libc::ENODATA));
        assert_eq!(cache.absent_xattr(10, inode(2), name), None);
        assert_eq!(cache.absent_xattr(9, inode(2), b"user.other"), None);
        cache.stale(Stale::Attributes(inode(2)));
        assert_eq!(cache.absent_xattr(9, inode(2), name), None);
        let now = cache.mark();
        cache.learn_attributes(now, attributes(2), Until::At(10));
        cache.learn_absent_xattr(mark, inode(2), name, libc::ENODATA);
        assert_eq!(cache.absent_xattr(9, inode(2), name), None, "asked before it was set");
    }

    #[test]
    fn content_is_granted_until_it_is_recalled() {
        let mut cache = Cache::new();
        let before = cache.mark();
        cache.learn_content(before, inode(2));
        assert!(cache.has_content(inode(2)));
        cache.stale(Stale::Content(inode(2)));
        assert!(!cache.has_content(inode(2)));
        cache.learn_content(before, inode(2));
        assert!(!cache.has_content(inode(2)), "granted before it was recalled");
        let now = cache.mark();
        cache.learn_content(now, inode(2));
        cache.forget(inode(2));
        assert!(!cache.has_content(inode(2)));
        for number in 0..MAX_CONTENTS as u64 + 10 {
            cache.learn_content(now, inode(number));
        }
        assert!(cache.contents.len() <= MAX_CONTENTS);
    }

    #[test]
    fn both_tables_are_bounded() {
        let mut cache = Cache::new();
        let mark = cache.mark();
        for number in 0..MAX_NAMES as u64 + 10 {
            cache.learn_name(
                mark,
                inode(number % 7),
                &number.to_ne_bytes(),
                kept(None, Until::Always),
            );
            cache.learn_attributes(mark, attributes(number), Until::Always);
        }
        assert!(cache.name_count <= MAX_NAMES);
        assert_eq!(cache.name_count, cache.names.values().map(HashMap::len).sum::<usize>());
        assert!(cache.attributes.len() <= MAX_ATTRIBUTES);
        for number in 0..7 {
            cache.forget(inode(number));
        }
        assert_eq!(cache.name_count, 0);
    }
}
