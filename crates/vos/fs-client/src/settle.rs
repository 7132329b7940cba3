//! What a reply teaches the cache, and what an own operation makes stale in it.

use crate::cache::{Cache, KeptName, Mark, Until};
use crate::client::Answer;
use dvs_fs::messages::{Attributes, Entry, InodeId, Lease, Operation, Outcome, Stale};

/// Puts what an operation changed and what its reply says into the cache.
pub(crate) fn settle(
    cache: &mut Cache,
    mark: Mark,
    sent: u64,
    operation: &Operation,
    result: Result<Outcome, i32>,
) -> Result<Answer, i32> {
    // Judged by what was recalled since the request began; own changes come only then, since the
    // reply is newer than they are.
    let told =
        result.as_ref().map_or_else(|_| Told::default(), |outcome| Told::of(operation, outcome));
    let name_until = told.name.as_ref().map_or(Until::Never, |told| {
        if cache.name_is_stale(mark, told.parent, told.name) {
            Until::Never
        } else {
            Until::from_lease(told.entry.name_lease, sent)
        }
    });
    let in_kernel = told.name.as_ref().is_some_and(|told| told.entry.in_kernel);
    let attributes_until = told.attributes.map_or(Until::Never, |(attributes, lease)| {
        if cache.attributes_are_stale(mark, attributes.inode) {
            Until::Never
        } else {
            Until::from_lease(lease, sent)
        }
    });
    note_changes(cache, operation);
    let now = cache.mark();
    if let Some(TellsName { parent, name, entry }) = told.name {
        let inode = entry.attributes.map(|attributes| attributes.inode);
        cache.learn_name(now, parent, name, KeptName { inode, until: name_until, in_kernel });
    }
    if let Some((attributes, _)) = told.attributes {
        cache.learn_attributes(now, attributes, attributes_until);
    }
    if let (Ok(Outcome::Directory(entries)), Operation::ReadDirectory { inode, .. }) =
        (&result, operation)
    {
        for (name, entry) in entries.iter().filter_map(|one| Some((&one.name, one.entry?))) {
            let until = Until::from_lease(entry.name_lease, sent);
            let object = entry.attributes.map(|attributes| attributes.inode);
            let kept = KeptName { inode: object, until, in_kernel: entry.in_kernel };
            cache.learn_name(mark, *inode, name, kept);
            if let Some(attributes) = entry.attributes {
                let until = Until::from_lease(entry.attributes_lease, sent);
                cache.learn_attributes(mark, attributes, until);
            }
        }
    }
    Ok(Answer {
        outcome: result?,
        name: name_until,
        in_kernel,
        attributes: attributes_until,
        // Each entry of a listing is judged by itself, from when it was asked for.
        mark: if matches!(operation, Operation::ReadDirectory { .. }) { mark } else { now },
    })
}

/// What a reply says that can be kept.
#[derive(Default)]
struct Told<'a> {
    name: Option<TellsName<'a>>,
    attributes: Option<(Attributes, Lease)>,
}

struct TellsName<'a> {
    parent: InodeId,
    name: &'a [u8],
    entry: &'a Entry,
}

impl<'a> Told<'a> {
    fn of(operation: &'a Operation, outcome: &'a Outcome) -> Told<'a> {
        match outcome {
            Outcome::Entry(entry) | Outcome::Created { entry, .. } => Told {
                name: place(operation).map(|(parent, name)| TellsName { parent, name, entry }),
                attributes: entry.attributes.map(|it| (it, entry.attributes_lease)),
            },
            Outcome::Attributes(attributes, lease) => {
                Told { name: None, attributes: Some((*attributes, *lease)) }
            }
            _ => Told::default(),
        }
    }
}

/// The name that an operation looks up, makes or removes.
fn place(operation: &Operation) -> Option<(InodeId, &[u8])> {
    match operation {
        Operation::Lookup { parent, name }
        | Operation::MakeNode { parent, name, .. }
        | Operation::MakeDirectory { parent, name, .. }
        | Operation::MakeSymbolicLink { parent, name, .. }
        | Operation::Link { parent, name, .. }
        | Operation::Create { parent, name, .. }
        | Operation::Unlink { parent, name }
        | Operation::RemoveDirectory { parent, name } => Some((*parent, name)),
        _ => None,
    }
}

/// What an own operation makes stale; the server recalls it from the others only. Noted also where
/// the operation failed, since it may have been done in part.
fn note_changes(cache: &mut Cache, operation: &Operation) {
    match operation {
        Operation::MakeNode { parent, name, .. }
        | Operation::MakeDirectory { parent, name, .. }
        | Operation::MakeSymbolicLink { parent, name, .. }
        | Operation::Create { parent, name, .. } => {
            object_of_name_stale(cache, *parent, name, false);
            name_stale(cache, *parent, name);
        }
        Operation::Link { inode, parent, name } => {
            name_stale(cache, *parent, name);
            cache.stale(Stale::Attributes(*inode));
        }
        Operation::Unlink { parent, name } | Operation::RemoveDirectory { parent, name } => {
            object_of_name_stale(cache, *parent, name, true);
            name_stale(cache, *parent, name);
        }
        Operation::Rename { parent, name, new_parent, new_name, .. } => {
            object_of_name_stale(cache, *parent, name, true);
            object_of_name_stale(cache, *new_parent, new_name, true);
            name_stale(cache, *parent, name);
            name_stale(cache, *new_parent, new_name);
        }
        Operation::SetAttributes { inode, .. }
        | Operation::Write { inode, .. }
        | Operation::Allocate { inode, .. }
        | Operation::SetXattr { inode, .. }
        | Operation::RemoveXattr { inode, .. }
        | Operation::CopyRange { to: (inode, ..), .. } => cache.stale(Stale::Attributes(*inode)),
        Operation::Open { inode, flags } if flags & libc::O_TRUNC.cast_unsigned() != 0 => {
            cache.stale(Stale::Attributes(*inode));
        }
        _ => {}
    }
}

fn name_stale(cache: &mut Cache, parent: InodeId, name: &[u8]) {
    cache.stale(Stale::Name(parent, name.to_vec()));
    cache.stale(Stale::Attributes(parent));
}

/// The attributes of what a name means change (its links, its times). Where the name is not known
/// here, `surely` says whether there must be such an object.
fn object_of_name_stale(cache: &mut Cache, parent: InodeId, name: &[u8], surely: bool) {
    match cache.last_known(parent, name) {
        Some(Some(inode)) => cache.stale(Stale::Attributes(inode)),
        None if surely => cache.all_attributes_stale(),
        _ => {}
    }
}
