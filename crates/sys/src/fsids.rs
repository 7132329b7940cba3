//! File-system user and group of one thread (`setfsuid(2)`, `setfsgid(2)`).

use crate::error::{Result, SysError};

/// Gives the calling thread, and no other, these ids for its file operations. The process counts as
/// non-dumpable afterwards. `EPERM`: not allowed, nothing or only the group was changed.
pub fn set_thread_file_ids(uid: u32, gid: u32) -> Result<()> {
    set(libc::SYS_setfsgid, "setfsgid", gid)?;
    set(libc::SYS_setfsuid, "setfsuid", uid)
}

fn set(call: libc::c_long, name: &'static str, id: u32) -> Result<()> {
    // SAFETY: takes a plain number and changes only the calling thread's own id.
    unsafe { libc::syscall(call, libc::c_long::from(id)) };
    // The calls report no error; an impossible id changes nothing and tells the one in force.
    // SAFETY: as above.
    let now = unsafe { libc::syscall(call, libc::c_long::from(u32::MAX)) };
    if now == libc::c_long::from(id) { Ok(()) } else { Err(SysError::new(name, libc::EPERM)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn ids_are_those_of_one_thread() {
        if crate::process::effective_ids().0 != 0 {
            eprintln!("SKIPPED: file ids of others need root");
            return;
        }
        let owner = std::thread::spawn(|| {
            set_thread_file_ids(12345, 54321).unwrap();
            let file = crate::descriptor::memory_file(c"ids").unwrap();
            let data = std::fs::File::from(file).metadata().unwrap();
            (data.uid(), data.gid())
        });
        assert_eq!(owner.join().unwrap(), (12345, 54321));
        let own = crate::descriptor::memory_file(c"own").unwrap();
        assert_eq!(std::fs::File::from(own).metadata().unwrap().uid(), 0);
    }
}
