//! Lets the tree do one operation.

use crate::core::Done;
use crate::messages::{Credentials, MAX_DIRECTORY_ENTRIES, MAX_IO, MAX_XATTR, Operation, Time};
use crate::tree::{Caller, FileToken, Make, Tree, check_name};

/// Most bytes that a client can ask a directory page to have.
const MAX_PAGE: u32 = 1 << 16;

/// Does an operation; `files` are the open files that it names.
pub(crate) fn run(
    tree: &dyn Tree,
    credentials: Credentials,
    now: Time,
    operation: &Operation,
    files: [Option<FileToken>; 2],
) -> Result<Done, i32> {
    let caller = Caller { credentials, now };
    let file = || files[0].ok_or(libc::EBADF);
    Ok(match operation {
        Operation::Hello { .. } => Done::Found(tree.root()?),
        Operation::Lookup { parent, name } => Done::Looked(tree.lookup(*parent, name)?),
        Operation::GetAttributes { inode } => Done::Found(tree.attributes(*inode)?),
        Operation::SetAttributes { inode, changes, .. } => {
            Done::Found(tree.set_attributes(&caller, *inode, files[0], changes)?)
        }
        Operation::ReadLink { inode } => Done::Data(tree.read_link(*inode)?),
        Operation::MakeNode { parent, name, mode, rdev } => {
            Done::Found(tree.make(&caller, *parent, name, Make::Node(*mode, *rdev))?)
        }
        Operation::MakeDirectory { parent, name, mode } => {
            Done::Found(tree.make(&caller, *parent, name, Make::Directory(*mode))?)
        }
        Operation::MakeSymbolicLink { parent, name, target } => {
            Done::Found(tree.make(&caller, *parent, name, Make::Link(target))?)
        }
        Operation::Link { inode, parent, name } => {
            Done::Found(tree.link(&caller, *inode, *parent, name)?)
        }
        Operation::Unlink { parent, name } => Done::Removed(tree.unlink(&caller, *parent, name)?),
        Operation::RemoveDirectory { parent, name } => {
            Done::Removed(tree.remove_directory(&caller, *parent, name)?)
        }
        Operation::Rename { parent, name, new_parent, new_name, flags } => {
            Done::Renamed(tree.rename(&caller, *parent, name, *new_parent, new_name, *flags)?)
        }
        Operation::Open { inode, flags } => Done::Opened(tree.open(&caller, *inode, *flags)?),
        Operation::Create { parent, name, mode, flags } => {
            Done::Opened(tree.create(&caller, *parent, name, *mode, *flags)?)
        }
        Operation::CreateUnnamed { parent, mode, flags } => {
            Done::Opened(tree.create_unnamed(&caller, *parent, *mode, *flags)?)
        }
        Operation::Read { offset, length, .. } => {
            Done::Data(tree.read(file()?, *offset, (*length).min(MAX_IO as u32))?)
        }
        Operation::Write { offset, append, kill_privileges, data, .. } => {
            if data.len() > MAX_IO {
                return Err(libc::EINVAL);
            }
            let offset = (!append).then_some(*offset);
            Done::Wrote(tree.write(&caller, file()?, offset, *kill_privileges, data)?)
        }
        Operation::Fsync { data_only, .. } => {
            tree.sync(file()?, *data_only)?;
            Done::Nothing
        }
        Operation::ReadDirectory { inode, cookie, bytes, plus, .. } => {
            let page = tree.read_directory(file()?, *cookie, (*bytes).min(MAX_PAGE))?;
            let looked = |name: &[u8]| {
                // What has gone meanwhile, or cannot be seen, is listed without attributes.
                let wanted = *plus && check_name(name).is_ok();
                if wanted { tree.lookup(*inode, name).ok() } else { None }
            };
            Done::Directory(
                page.into_iter()
                    .take(MAX_DIRECTORY_ENTRIES)
                    .map(|entry| {
                        let looked = looked(&entry.name);
                        (entry, looked)
                    })
                    .collect(),
            )
        }
        Operation::StatFileSystem { inode } => Done::Capacity(tree.capacity(*inode)?),
        Operation::GetXattr { inode, name } => Done::Data(tree.get_xattr(*inode, name)?),
        Operation::ListXattr { inode } => Done::Data(tree.list_xattrs(*inode)?),
        Operation::SetXattr { inode, name, value, flags } => {
            if value.len() > MAX_XATTR {
                return Err(libc::E2BIG);
            }
            tree.set_xattr(*inode, name, value, *flags)?;
            Done::Nothing
        }
        Operation::RemoveXattr { inode, name } => {
            tree.remove_xattr(*inode, name)?;
            Done::Nothing
        }
        Operation::Allocate { offset, length, mode, .. } => {
            let file = file()?;
            tree.allocate(&caller, file, *offset, *length, *mode)?;
            Done::Nothing
        }
        Operation::Seek { offset, whence, .. } => {
            Done::Offset(tree.seek(file()?, *offset, *whence)?)
        }
        Operation::CopyRange { from, to, length } => {
            let (source, target) = (file()?, files[1].ok_or(libc::EBADF)?);
            Done::Wrote(tree.copy_range(&caller, (source, from.2), (target, to.2), *length)?)
        }
        // The core answers these itself.
        Operation::Goodbye
        | Operation::Forget { .. }
        | Operation::Flush { .. }
        | Operation::Release { .. }
        | Operation::TestLock { .. }
        | Operation::SetLock { .. }
        | Operation::Cancel { .. }
        | Operation::RecallDone { .. } => return Err(libc::ENOSYS),
    })
}
