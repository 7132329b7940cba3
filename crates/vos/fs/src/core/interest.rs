//! Who may cache what, and until when.
//!
//! Attributes and names are kept by clients for a time (their kernel forgets them by itself), content is
//! kept without one: pages stay until the client is told. So content is remembered as *held* from a
//! client's first read (or write) after the last recall, as long as it has the file open, and for the
//! length of a lease after its last close, so that opening it again can keep the pages.

use crate::messages::{ClientId, InodeId, Stale};
use crate::tree::Version;
use std::collections::HashMap;

/// A point in time, milliseconds of the server's monotonic clock.
pub type Instant = u64;
/// Later than everything.
pub const NEVER: Instant = u64::MAX;

/// Most names, attributes and contents that one client can hold; beyond it nothing may be cached.
pub const MAX_INTERESTS: usize = 1 << 20;

#[derive(Debug, Clone, Copy)]
struct Held {
    client: ClientId,
    until: Instant,
    /// The last recall that covers it; it ends when that one is answered.
    recall: u64,
    /// The client's kernel may have it, and needs the directory's lock to give it up.
    in_kernel: bool,
}

#[derive(Debug, Clone, Copy)]
struct Content {
    client: ClientId,
    /// Open files of the client.
    opens: u32,
    /// Whether pages may be there.
    cached: bool,
    /// After the last close.
    until: Instant,
    recall: u64,
    version: Version,
}

/// What one client must give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Who holds it.
    pub client: ClientId,
    /// What.
    pub stale: Stale,
    /// When the client forgets it by itself; [`NEVER`] for pages and images.
    pub until: Instant,
    /// Whether the client's kernel needs the directory's lock to give it up.
    pub needs_lock: bool,
}

/// All interests of a DC's clients.
#[derive(Debug, Default)]
pub struct Interests {
    attributes: HashMap<InodeId, Vec<Held>>,
    names: HashMap<InodeId, HashMap<Vec<u8>, Vec<Held>>>,
    content: HashMap<InodeId, Vec<Content>>,
    counts: HashMap<ClientId, usize>,
}

fn hold(list: &mut Vec<Held>, client: ClientId, until: Instant, in_kernel: bool) -> bool {
    if let Some(held) = list.iter_mut().find(|held| held.client == client) {
        held.until = held.until.max(until);
        held.recall = 0;
        held.in_kernel |= in_kernel;
        false
    } else {
        list.push(Held { client, until, recall: 0, in_kernel });
        true
    }
}

impl Interests {
    /// Whether the client can be given one more.
    #[must_use]
    pub fn has_room(&self, client: ClientId) -> bool {
        self.counts.get(&client).is_none_or(|count| *count < MAX_INTERESTS)
    }

    /// The client may cache attributes.
    pub fn hold_attributes(&mut self, client: ClientId, inode: InodeId, until: Instant) {
        if hold(self.attributes.entry(inode).or_default(), client, until, false) {
            *self.counts.entry(client).or_default() += 1;
        }
    }

    /// The client may cache a name, and its kernel too (`in_kernel`).
    pub fn hold_name(
        &mut self,
        client: ClientId,
        parent: InodeId,
        name: &[u8],
        until: Instant,
        in_kernel: bool,
    ) {
        let names = self.names.entry(parent).or_default();
        let new = match names.get_mut(name) {
            Some(list) => hold(list, client, until, in_kernel),
            None => hold(names.entry(name.to_vec()).or_default(), client, until, in_kernel),
        };
        if new {
            *self.counts.entry(client).or_default() += 1;
        }
    }

    /// The client's kernel moves what it keeps of a name to another one. What that is, is not known here
    /// for sure (an answer about the old name can be under way), so it is taken to be something until
    /// `least`, or longer if the old name is held longer.
    pub fn move_name(
        &mut self,
        client: ClientId,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        least: Instant,
    ) {
        let list = self.names.get(&from.0).and_then(|names| names.get(from.1));
        let held = list.into_iter().flatten().find(|held| held.client == client);
        let until = held.map_or(least, |held| held.until.max(least));
        self.hold_name(client, to.0, to.1, until, true);
    }

    /// The client has opened a file. Whether it may keep the pages that it has: it has them under an
    /// interest that never ended, and (`check_version`) the file is as it was.
    pub fn open_content(
        &mut self,
        client: ClientId,
        inode: InodeId,
        now: Instant,
        version: Version,
        check_version: bool,
    ) -> bool {
        let list = self.content.entry(inode).or_default();
        if let Some(held) = list.iter_mut().find(|held| held.client == client) {
            let unbroken = held.opens > 0 || now < held.until;
            let keep = unbroken && held.recall == 0 && (!check_version || held.version == version);
            held.opens += 1;
            // A kernel that may not keep its pages drops them at this opening.
            held.cached = held.cached && (keep || held.opens > 1);
            held.version = version;
            keep
        } else {
            let (cached, recall) = (false, 0);
            list.push(Content { client, opens: 1, cached, until: 0, recall, version });
            *self.counts.entry(client).or_default() += 1;
            false
        }
    }

    /// The client reads or writes: pages may be there from now on.
    pub fn touch_content(&mut self, client: ClientId, inode: InodeId) {
        if let Some(held) = self.content_of(client, inode) {
            held.cached = true;
            // What is read after a recall was sent is not covered by its answer.
            held.recall = 0;
        }
    }

    /// The client itself has changed the content.
    pub fn own_change(&mut self, client: ClientId, inode: InodeId, version: Version) {
        if let Some(held) = self.content_of(client, inode) {
            held.version = version;
        }
    }

    /// The client has closed an open file.
    pub fn close_content(&mut self, client: ClientId, inode: InodeId, until: Instant) {
        if let Some(held) = self.content_of(client, inode) {
            held.opens = held.opens.saturating_sub(1);
            held.until = until;
        }
    }

    fn content_of(&mut self, client: ClientId, inode: InodeId) -> Option<&mut Content> {
        self.content.get_mut(&inode)?.iter_mut().find(|held| held.client == client)
    }

    /// What clients other than `but` hold of something that has changed.
    #[must_use]
    pub fn conflicts(&self, stale: &Stale, but: ClientId, now: Instant) -> Vec<Conflict> {
        let mut found = Vec::new();
        let held = |list: Option<&Vec<Held>>, stale: Stale, found: &mut Vec<Conflict>| {
            for held in list.into_iter().flatten() {
                if held.client != but && now < held.until {
                    let (stale, needs_lock) = (stale.clone(), held.in_kernel);
                    let (client, until) = (held.client, held.until);
                    found.push(Conflict { client, stale, until, needs_lock });
                }
            }
        };
        match stale {
            Stale::Attributes(inode) => {
                held(self.attributes.get(inode), stale.clone(), &mut found);
            }
            Stale::Name(parent, name) => {
                let list = self.names.get(parent).and_then(|names| names.get(name));
                held(list, stale.clone(), &mut found);
            }
            Stale::Content(inode) => {
                held(self.attributes.get(inode), Stale::Attributes(*inode), &mut found);
                for held in self.content.get(inode).into_iter().flatten() {
                    let kept = held.opens > 0 || now < held.until;
                    if held.client == but || !held.cached || !kept {
                        continue;
                    }
                    // Content covers the attributes.
                    found.retain(|conflict| conflict.client != held.client);
                    // A closed file's pages are reached only through an opening that asks here.
                    let until = if held.opens > 0 { NEVER } else { held.until };
                    let (client, stale) = (held.client, stale.clone());
                    found.push(Conflict { client, stale, until, needs_lock: true });
                }
            }
        }
        found
    }

    /// A recall of this has been sent to the client.
    pub fn recalled(&mut self, client: ClientId, stale: &Stale, number: u64) {
        match stale {
            Stale::Attributes(inode) => mark(self.attributes.get_mut(inode), client, number),
            Stale::Name(parent, name) => mark(
                self.names.get_mut(parent).and_then(|names| names.get_mut(name)),
                client,
                number,
            ),
            Stale::Content(inode) => {
                mark(self.attributes.get_mut(inode), client, number);
                if let Some(held) = self.content_of(client, *inode) {
                    held.recall = number;
                }
            }
        }
    }

    /// The client has answered that recall: what was granted or read since is still held.
    pub fn given_up(&mut self, client: ClientId, stale: &Stale, number: u64) {
        let removed = match stale {
            Stale::Attributes(inode) => drop_from(&mut self.attributes, inode, client, number),
            Stale::Name(parent, name) => {
                let Some(names) = self.names.get_mut(parent) else { return };
                let removed = drop_from(names, name, client, number);
                if names.is_empty() {
                    self.names.remove(parent);
                }
                removed
            }
            Stale::Content(inode) => {
                if let Some(held) = self.content_of(client, *inode)
                    && held.recall == number
                {
                    held.cached = false;
                    held.recall = 0;
                }
                drop_from(&mut self.attributes, inode, client, number)
            }
        };
        self.uncount(client, removed);
    }

    /// The client's kernel has forgotten the object: nothing of it is cached there.
    pub fn forget(&mut self, client: ClientId, inode: InodeId) {
        let mut removed = 0;
        if let Some(list) = self.attributes.get_mut(&inode) {
            let before = list.len();
            list.retain(|held| held.client != client);
            removed += before - list.len();
            if list.is_empty() {
                self.attributes.remove(&inode);
            }
        }
        if let Some(list) = self.content.get_mut(&inode) {
            let before = list.len();
            list.retain(|held| held.client != client || held.opens > 0);
            removed += before - list.len();
            if list.is_empty() {
                self.content.remove(&inode);
            }
        }
        // Names in a forgotten directory cannot be reached.
        if let Some(names) = self.names.get_mut(&inode) {
            names.retain(|_, list| {
                let before = list.len();
                list.retain(|held| held.client != client);
                removed += before - list.len();
                !list.is_empty()
            });
            if names.is_empty() {
                self.names.remove(&inode);
            }
        }
        self.uncount(client, removed);
    }

    /// Everything of a client ends.
    pub fn end_client(&mut self, client: ClientId) {
        self.retain(|held| held.client != client, |held| held.client != client);
        self.counts.remove(&client);
    }

    /// Drops what is over.
    pub fn expire(&mut self, now: Instant) {
        self.retain(|held| now < held.until, |held| held.opens > 0 || now < held.until);
        let mut counts: HashMap<ClientId, usize> = HashMap::new();
        for held in self.attributes.values().flatten() {
            *counts.entry(held.client).or_default() += 1;
        }
        for held in self.names.values().flat_map(HashMap::values).flatten() {
            *counts.entry(held.client).or_default() += 1;
        }
        for held in self.content.values().flatten() {
            *counts.entry(held.client).or_default() += 1;
        }
        self.counts = counts;
    }

    /// How many interests there are.
    #[must_use]
    pub fn load(&self) -> usize {
        self.counts.values().sum()
    }

    fn retain(&mut self, held: impl Fn(&Held) -> bool, content: impl Fn(&Content) -> bool) {
        let keep = |list: &mut Vec<Held>| {
            list.retain(&held);
            !list.is_empty()
        };
        self.attributes.retain(|_, list| keep(list));
        self.names.retain(|_, names| {
            names.retain(|_, list| keep(list));
            !names.is_empty()
        });
        self.content.retain(|_, list| {
            list.retain(&content);
            !list.is_empty()
        });
    }

    fn uncount(&mut self, client: ClientId, number: usize) {
        if let Some(count) = self.counts.get_mut(&client) {
            *count = count.saturating_sub(number);
        }
    }
}

fn mark(list: Option<&mut Vec<Held>>, client: ClientId, number: u64) {
    if let Some(held) = list.into_iter().flatten().find(|held| held.client == client) {
        held.recall = number;
    }
}

fn drop_from<K: std::hash::Hash + Eq + Clone>(
    map: &mut HashMap<K, Vec<Held>>,
    key: &K,
    client: ClientId,
    number: u64,
) -> usize {
    let Some(list) = map.get_mut(key) else { return 0 };
    let before = list.len();
    list.retain(|held| held.client != client || held.recall != number);
    let removed = before - list.len();
    if list.is_empty() {
        map.remove(key);
    }
    removed
}
