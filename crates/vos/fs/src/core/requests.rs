//! The core's way with requests: admission, what it answers itself, and the making of answers.

use super::session::{Admission, Open};
use super::{
    Command, Core, Done, MAX_CLIENTS, PRIVATE_LEASE, Running, SHARED_LEASE, Subject, Waiting,
};
use crate::core::interest::{Instant, NEVER};
use crate::core::locks::Answer;
use crate::messages::{
    ClientId, DirectoryEntry, Entry, InodeId, Lease, LockFamily, Operation, Outcome, PROTOCOL,
    Reply, Request,
};
use crate::tree::{Found, Life, Looked, Opened};

impl Core {
    pub(super) fn request(&mut self, now: Instant, request: Request, out: &mut Vec<Command>) {
        let Request { client, sequence, answered, credentials, operation } = request;
        if let Operation::Hello { protocol } = &operation
            && !self.sessions.contains_key(&client)
        {
            let refused = if *protocol != PROTOCOL {
                Some(libc::EPROTO)
            } else if self.ended.contains(&client) {
                Some(libc::ESTALE)
            } else if self.sessions.len() >= MAX_CLIENTS {
                Some(libc::EUSERS)
            } else {
                None
            };
            if let Some(errno) = refused {
                out.push(Command::Reply(client, Reply { sequence, result: Err(errno) }));
                return;
            }
            self.sessions.insert(client, super::Session::default());
            self.one_client &= self.sessions.len() == 1;
        }
        let Some(session) = self.sessions.get_mut(&client) else {
            out.push(Command::Reply(client, Reply { sequence, result: Err(libc::ESTALE) }));
            return;
        };
        match session.admit(sequence, answered) {
            Admission::New => {}
            Admission::UnderWay => return,
            Admission::Old => {
                out.push(Command::Reply(client, Reply { sequence, result: Err(libc::EIO) }));
                return;
            }
            Admission::Answered(reply) => {
                out.push(Command::Reply(client, *reply));
                return;
            }
            Admission::Full => {
                out.push(Command::Reply(client, Reply { sequence, result: Err(libc::EBUSY) }));
                return;
            }
        }
        match operation {
            Operation::Goodbye => {
                out.push(Command::Reply(client, Reply { sequence, result: Ok(Outcome::Done) }));
                self.end_client(now, client, out);
            }
            Operation::Forget { inodes } => {
                for (inode, count) in inodes {
                    self.forget(client, inode, count, out);
                }
                self.reply(client, sequence, Ok(Outcome::Done), true, out);
            }
            Operation::RecallDone { notice } => {
                // Only its own: a client cannot answer for another one.
                if self.recalls.get(&notice).is_some_and(|recall| recall.client == client) {
                    self.settle(now, notice, out);
                }
                self.reply(client, sequence, Ok(Outcome::Done), true, out);
            }
            Operation::Cancel { sequence: other } => {
                let blocked = self
                    .blocked
                    .iter()
                    .find(|(_, blocked)| **blocked == (client, other))
                    .map(|(ticket, _)| *ticket);
                if let Some(ticket) = blocked {
                    self.blocked.remove(&ticket);
                    self.locks.cancel(ticket);
                    self.reply(client, other, Err(libc::EINTR), true, out);
                }
                self.reply(client, sequence, Ok(Outcome::Done), true, out);
            }
            Operation::TestLock { inode, handle, owner, lock } => {
                let result = self
                    .check_open(client, handle, inode)
                    .map(|_| Outcome::Lock(self.locks.test(inode, (client, owner), &lock)));
                self.reply(client, sequence, result, false, out);
            }
            Operation::SetLock { inode, handle, owner, family, lock, wait } => {
                if let Err(errno) = self.check_open(client, handle, inode) {
                    return self.reply(client, sequence, Err(errno), true, out);
                }
                self.next_ticket += 1;
                let ticket = self.next_ticket;
                let owner = (client, owner);
                let (answer, granted) = self.locks.set(ticket, inode, family, owner, lock, wait);
                match answer {
                    Answer::Granted => {
                        self.reply(client, sequence, Ok(Outcome::Done), true, out);
                    }
                    Answer::Refused(errno) => {
                        self.reply(client, sequence, Err(errno), true, out);
                    }
                    Answer::Waits => {
                        self.blocked.insert(ticket, (client, sequence));
                    }
                }
                self.grant_locks(granted, out);
            }
            Operation::Flush { inode, handle, owner } => {
                let result = self.check_open(client, handle, inode).map(|_| Outcome::Done);
                if result.is_ok() {
                    let owner = (client, owner);
                    let granted = self.locks.release(inode, LockFamily::Record, owner);
                    self.grant_locks(granted, out);
                }
                self.reply(client, sequence, result, true, out);
            }
            Operation::Release { inode, handle, owner } => {
                let result = self.release(now, client, inode, handle, owner, out);
                self.reply(client, sequence, result, true, out);
            }
            operation => {
                let mut files = [None, None];
                for (file, wanted) in files.iter_mut().zip(Subject::handles(&operation)) {
                    let Some((handle, inode)) = wanted else { continue };
                    match self.check_open(client, handle, inode) {
                        Ok(open) => *file = Some(open.file),
                        Err(errno) => return self.reply(client, sequence, Err(errno), true, out),
                    }
                }
                let subject = Subject::of(&operation);
                // From now on, since others' changes of the new name must not be missed.
                self.note_move(now, client, &subject);
                if let Subject::Read(inode) | Subject::Write(inode) = &subject {
                    self.interests.touch_content(client, *inode);
                }
                self.next_ticket += 1;
                let ticket = self.next_ticket;
                let stamp = self.changes;
                self.running.insert(ticket, Running { client, sequence, subject, stamp });
                out.push(Command::Execute { ticket, credentials, operation, files });
            }
        }
    }

    /// The kernel of the client that renames moves what it keeps of the names. (Also the other way, as
    /// an exchange does; a hold too many costs one more recall.)
    fn note_move(&mut self, now: Instant, client: ClientId, subject: &Subject) {
        let Subject::Rename(parent, name, new_parent, new_name) = subject else { return };
        let (from, to) = ((*parent, name.as_slice()), (*new_parent, new_name.as_slice()));
        let least = now + Instant::from(PRIVATE_LEASE);
        self.interests.move_name(client, from, to, least);
        self.interests.move_name(client, to, from, least);
    }

    fn check_open(
        &self,
        client: ClientId,
        handle: crate::messages::Handle,
        inode: InodeId,
    ) -> Result<Open, i32> {
        let open = self.sessions.get(&client).and_then(|session| session.open.get(&handle));
        open.copied().filter(|open| open.inode == inode).ok_or(libc::EBADF)
    }

    fn release(
        &mut self,
        now: Instant,
        client: ClientId,
        inode: InodeId,
        handle: crate::messages::Handle,
        owner: Option<crate::messages::LockOwner>,
        out: &mut Vec<Command>,
    ) -> Result<Outcome, i32> {
        let open = self.check_open(client, handle, inode)?;
        let mut last = true;
        if let Some(session) = self.sessions.get_mut(&client) {
            session.open.remove(&handle);
            // Directories have no locks worth a search.
            last = !open.directory && !session.open.values().any(|other| other.inode == inode);
        }
        if let Some(owner) = owner {
            let granted = self.locks.release(inode, LockFamily::Flock, (client, owner));
            self.grant_locks(granted, out);
        }
        if last {
            let granted = self.locks.release_inode(inode, client);
            self.grant_locks(granted, out);
        }
        if !open.directory {
            let until = match open.life {
                Life::Image => NEVER,
                Life::Private => now + Instant::from(PRIVATE_LEASE),
                Life::Shared => now + Instant::from(SHARED_LEASE),
            };
            self.interests.close_content(client, inode, until);
        }
        self.close(client, &open, out);
        Ok(Outcome::Done)
    }

    fn forget(&mut self, client: ClientId, inode: InodeId, count: u64, out: &mut Vec<Command>) {
        let Some(session) = self.sessions.get_mut(&client) else { return };
        let Some(held) = session.references.get_mut(&inode) else { return };
        *held = held.saturating_sub(count);
        if *held == 0 {
            session.references.remove(&inode);
            self.interests.forget(client, inode);
            self.forget_if_unused(inode, out);
        }
    }

    /// Answers a request of a client that is still there.
    pub(super) fn reply(
        &mut self,
        client: ClientId,
        sequence: u64,
        result: Result<Outcome, i32>,
        keep: bool,
        out: &mut Vec<Command>,
    ) {
        if let Some(session) = self.sessions.get_mut(&client) {
            let reply = Reply { sequence, result };
            session.answer(&reply, keep);
            out.push(Command::Reply(client, reply));
        }
    }

    /// Makes the answer of an operation that is done and recalled, with what may be cached of it.
    pub(super) fn finish(&mut self, now: Instant, mut waiting: Waiting, out: &mut Vec<Command>) {
        let client = waiting.running.client;
        let result = std::mem::replace(&mut waiting.result, Err(libc::EIO));
        let done = match result {
            Ok(done) => done,
            Err(errno) => {
                return self.reply(client, waiting.running.sequence, Err(errno), true, out);
            }
        };
        if !self.sessions.contains_key(&client) {
            return discard(&waiting.running.subject, done, out);
        }
        // What changes nothing may run again: its answers, which can be large, are not kept.
        let keep =
            !matches!(waiting.running.subject, Subject::Read(_) | Subject::ReadDirectory(_, false));
        let result = self.outcome(now, &waiting, done, out);
        self.reply(client, waiting.running.sequence, result, keep, out);
    }

    fn outcome(
        &mut self,
        now: Instant,
        waiting: &Waiting,
        done: Done,
        out: &mut Vec<Command>,
    ) -> Result<Outcome, i32> {
        let client = waiting.running.client;
        let subject = &waiting.running.subject;
        Ok(match (subject, done) {
            (Subject::Root, Done::Found(found)) => {
                let attributes_lease = self.grant_attributes(now, waiting, &found);
                let attributes = Some(found.attributes);
                let (name_lease, in_kernel) = (Lease::FOREVER, true);
                let root = Entry { attributes, name_lease, in_kernel, attributes_lease };
                Outcome::Welcome { root, server_incarnation: self.incarnation }
            }
            (Subject::Lookup(parent, name), Done::Looked(looked)) => {
                Outcome::Entry(self.entry(now, waiting, *parent, name, looked))
            }
            (Subject::Make(parent, name) | Subject::Link(_, parent, name), Done::Found(found)) => {
                let looked = Looked { found: Some(found), name_life: found.life };
                Outcome::Entry(self.entry(now, waiting, *parent, name, looked))
            }
            (Subject::Look(_) | Subject::Change(..), Done::Found(found)) => {
                if let Subject::Change(inode, _) = subject {
                    self.interests.own_change(client, *inode, (&found.attributes).into());
                }
                let lease = self.grant_attributes(now, waiting, &found);
                Outcome::Attributes(found.attributes, lease)
            }
            (Subject::Open(_, flags), Done::Opened(opened)) => {
                let (handle, content) = self.add_open(now, waiting, &opened, *flags, out)?;
                Outcome::Opened { handle, content }
            }
            (
                Subject::Create(_, _, flags) | Subject::CreateUnnamed(_, flags),
                Done::Opened(opened),
            ) => {
                let found = opened.found;
                let opening = self.add_open(now, waiting, &opened, *flags, out);
                let (handle, content) = match opening {
                    Ok(opening) => opening,
                    Err(errno) => {
                        out.push(Command::Forget(found.attributes.inode, 1));
                        return Err(errno);
                    }
                };
                let entry = if let Subject::Create(parent, name, _) = subject {
                    let looked = Looked { found: Some(found), name_life: found.life };
                    self.entry(now, waiting, *parent, name, looked)
                } else {
                    self.refer(client, found.attributes.inode);
                    let attributes_lease = self.grant_attributes(now, waiting, &found);
                    let attributes = Some(found.attributes);
                    let (name_lease, in_kernel) = (Lease::NONE, false);
                    Entry { attributes, name_lease, in_kernel, attributes_lease }
                };
                Outcome::Created { entry, handle, content }
            }
            (Subject::Write(inode), Done::Wrote(wrote)) => {
                self.interests.own_change(client, *inode, wrote.version);
                Outcome::Written { length: wrote.length, size: wrote.size }
            }
            (Subject::ReadDirectory(parent, _), Done::Directory(entries)) => {
                let list = entries.into_iter().map(|(entry, looked)| DirectoryEntry {
                    entry: looked
                        .map(|looked| self.entry(now, waiting, *parent, &entry.name, looked)),
                    ..entry
                });
                Outcome::Directory(list.collect())
            }
            (Subject::Rename(..), Done::Renamed(_)) => {
                // Once more: an answer about the old name may have gone out meanwhile.
                self.note_move(now, client, subject);
                Outcome::Done
            }
            (_, Done::Data(data)) => Outcome::Data(data),
            (_, Done::Offset(offset)) => Outcome::Offset(offset),
            (_, Done::Capacity(c)) => Outcome::FileSystem {
                block_size: c.block_size,
                blocks: c.blocks,
                free: c.free,
                available: c.available,
                files: c.files,
                files_free: c.files_free,
            },
            (_, Done::Nothing | Done::Removed(_) | Done::Renamed(_)) => Outcome::Done,
            // The edge answers each operation with its own kind of result.
            (_, _) => return Err(libc::EIO),
        })
    }

    fn refer(&mut self, client: ClientId, inode: InodeId) {
        if let Some(session) = self.sessions.get_mut(&client) {
            *session.references.entry(inode).or_default() += 1;
            *self.tree_references.entry(inode).or_default() += 1;
        }
    }

    fn entry(
        &mut self,
        now: Instant,
        waiting: &Waiting,
        parent: InodeId,
        name: &[u8],
        looked: Looked,
    ) -> Entry {
        let (name_lease, in_kernel) = self.grant_name(now, waiting, parent, name, looked.name_life);
        let Some(found) = looked.found else {
            let (attributes, attributes_lease) = (None, Lease::NONE);
            return Entry { attributes, name_lease, in_kernel, attributes_lease };
        };
        self.refer(waiting.running.client, found.attributes.inode);
        let attributes_lease = self.grant_attributes(now, waiting, &found);
        Entry { attributes: Some(found.attributes), name_lease, in_kernel, attributes_lease }
    }

    fn add_open(
        &mut self,
        now: Instant,
        waiting: &Waiting,
        opened: &Opened,
        flags: u32,
        out: &mut Vec<Command>,
    ) -> Result<(crate::messages::Handle, Lease), i32> {
        let Found { attributes, life } = opened.found;
        let writes = flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        let directory = attributes.mode & libc::S_IFMT == libc::S_IFDIR;
        let (inode, file) = (attributes.inode, opened.file);
        let open = Open { inode, file, directory, writes: writes && !directory, life };
        let session = self.sessions.get_mut(&waiting.running.client).ok_or(libc::ESTALE)?;
        let Some(handle) = session.add_open(open) else {
            out.push(Command::Close(opened.file));
            return Err(libc::ENFILE);
        };
        Ok((handle, self.grant_content(now, waiting, &opened.found, open.writes)))
    }
}

/// Gives back what the tree gave for a client that is gone.
fn discard(subject: &Subject, done: Done, out: &mut Vec<Command>) {
    match (subject, done) {
        (Subject::Lookup(..), Done::Looked(Looked { found: Some(found), .. }))
        | (Subject::Make(..) | Subject::Link(..), Done::Found(found)) => {
            out.push(Command::Forget(found.attributes.inode, 1));
        }
        (Subject::Create(..) | Subject::CreateUnnamed(..), Done::Opened(opened)) => {
            out.push(Command::Close(opened.file));
            out.push(Command::Forget(opened.found.attributes.inode, 1));
        }
        (_, Done::Opened(opened)) => out.push(Command::Close(opened.file)),
        (_, Done::Directory(entries)) => {
            for found in entries.iter().filter_map(|(_, looked)| looked.as_ref()?.found) {
                out.push(Command::Forget(found.attributes.inode, 1));
            }
        }
        _ => {}
    }
}
