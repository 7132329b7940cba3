//! What an operation is about, as far as caching goes: kept while the operation runs at the tree.

use crate::messages::{Handle, InodeId, Operation, Stale};
use crate::tree::{Effect, Renamed};

/// The part of an operation that the core needs after the tree has done it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// `Hello`.
    Root,
    /// A name is asked for.
    Lookup(InodeId, Vec<u8>),
    /// Attributes are asked for.
    Look(InodeId),
    /// Attributes are changed; content too?
    Change(InodeId, bool),
    /// A name is made.
    Make(InodeId, Vec<u8>),
    /// A second name is made.
    Link(InodeId, InodeId, Vec<u8>),
    /// A name is removed.
    Remove(InodeId, Vec<u8>),
    /// A name moves.
    Rename(InodeId, Vec<u8>, InodeId, Vec<u8>),
    /// An object is opened (flags).
    Open(InodeId, u32),
    /// A file is made and opened (flags).
    Create(InodeId, Vec<u8>, u32),
    /// A nameless file is made (flags).
    CreateUnnamed(InodeId, u32),
    /// A file is read.
    Read(InodeId),
    /// A file's content is changed.
    Write(InodeId),
    /// A directory is read, with attributes?
    ReadDirectory(InodeId, bool),
    /// Extended attributes are changed.
    ChangeXattr(InodeId),
    /// Nothing that anybody caches.
    Other,
}

impl Subject {
    /// Of an operation that the tree is to do.
    #[must_use]
    pub fn of(operation: &Operation) -> Self {
        match operation {
            Operation::Hello { .. } => Subject::Root,
            Operation::Lookup { parent, name } => Subject::Lookup(*parent, name.clone()),
            Operation::GetAttributes { inode } => Subject::Look(*inode),
            Operation::SetAttributes { inode, changes, .. } => {
                Subject::Change(*inode, changes.size.is_some())
            }
            Operation::MakeNode { parent, name, .. }
            | Operation::MakeDirectory { parent, name, .. }
            | Operation::MakeSymbolicLink { parent, name, .. } => {
                Subject::Make(*parent, name.clone())
            }
            Operation::Link { inode, parent, name } => Subject::Link(*inode, *parent, name.clone()),
            Operation::Unlink { parent, name } | Operation::RemoveDirectory { parent, name } => {
                Subject::Remove(*parent, name.clone())
            }
            Operation::Rename { parent, name, new_parent, new_name, .. } => {
                Subject::Rename(*parent, name.clone(), *new_parent, new_name.clone())
            }
            Operation::Open { inode, flags } => Subject::Open(*inode, *flags),
            Operation::Create { parent, name, flags, .. } => {
                Subject::Create(*parent, name.clone(), *flags)
            }
            Operation::CreateUnnamed { parent, flags, .. } => {
                Subject::CreateUnnamed(*parent, *flags)
            }
            Operation::Read { inode, .. } => Subject::Read(*inode),
            Operation::Write { inode, .. } | Operation::Allocate { inode, .. } => {
                Subject::Write(*inode)
            }
            Operation::CopyRange { to, .. } => Subject::Write(to.0),
            Operation::ReadDirectory { inode, plus, .. } => Subject::ReadDirectory(*inode, *plus),
            Operation::SetXattr { inode, .. } | Operation::RemoveXattr { inode, .. } => {
                Subject::ChangeXattr(*inode)
            }
            _ => Subject::Other,
        }
    }

    /// The open files that an operation needs: of which handle, and of which object it must be.
    #[must_use]
    pub fn handles(operation: &Operation) -> [Option<(Handle, InodeId)>; 2] {
        match operation {
            Operation::SetAttributes { inode, handle, .. } => {
                [handle.map(|handle| (handle, *inode)), None]
            }
            Operation::Read { inode, handle, .. }
            | Operation::Write { inode, handle, .. }
            | Operation::Fsync { inode, handle, .. }
            | Operation::ReadDirectory { inode, handle, .. }
            | Operation::Allocate { inode, handle, .. }
            | Operation::Seek { inode, handle, .. } => [Some((*handle, *inode)), None],
            Operation::CopyRange { from, to, .. } => [Some((from.1, from.0)), Some((to.1, to.0))],
            _ => [None, None],
        }
    }

    /// What the finished operation has made stale for other clients.
    #[must_use]
    pub fn stale(&self, effects: &[Effect], renamed: Option<&Renamed>) -> Vec<Stale> {
        let mut stale = match self {
            Subject::Change(inode, true) | Subject::Write(inode) => vec![Stale::Content(*inode)],
            Subject::Change(inode, false) | Subject::ChangeXattr(inode) => {
                vec![Stale::Attributes(*inode)]
            }
            Subject::Make(parent, name)
            | Subject::Create(parent, name, _)
            | Subject::Remove(parent, name) => {
                vec![Stale::Name(*parent, name.clone()), Stale::Attributes(*parent)]
            }
            Subject::Link(inode, parent, name) => vec![
                Stale::Name(*parent, name.clone()),
                Stale::Attributes(*parent),
                Stale::Attributes(*inode),
            ],
            Subject::Rename(parent, name, new_parent, new_name) => vec![
                Stale::Name(*parent, name.clone()),
                Stale::Name(*new_parent, new_name.clone()),
                Stale::Attributes(*parent),
                Stale::Attributes(*new_parent),
            ],
            _ => Vec::new(),
        };
        stale.extend(effects.iter().map(|effect| match effect {
            Effect::Attributes(inode) => Stale::Attributes(*inode),
            Effect::Content(inode) => Stale::Content(*inode),
        }));
        if let Some(renamed) = renamed {
            stale.extend(
                [renamed.moved, renamed.other].into_iter().flatten().map(Stale::Attributes),
            );
        }
        stale.sort();
        stale.dedup();
        stale
    }

    /// Whether the kernel of the client that asked holds a lock, until it has the answer, that giving
    /// this up needs as well: the directory's lock for its names, a page's lock for its content.
    #[must_use]
    pub fn blocks(&self, stale: &Stale) -> bool {
        match (self, stale) {
            (
                Subject::Make(parent, _)
                | Subject::Create(parent, ..)
                | Subject::Remove(parent, _)
                | Subject::Link(_, parent, _),
                Stale::Name(directory, _),
            ) => parent == directory,
            (Subject::Rename(parent, _, new_parent, _), Stale::Name(directory, _)) => {
                parent == directory || new_parent == directory
            }
            (Subject::Write(inode) | Subject::Change(inode, _), Stale::Content(file)) => {
                inode == file
            }
            _ => false,
        }
    }
}
