//! FIFOs between nodes: what the file system does for those who bridge them.
//!
//! The kernel joins the ends of a FIFO by its inode, and asks nobody when one is opened. So that a
//! bridge can stand between writers and readers, a thread that looks a FIFO up in order to open it for
//! writing gets another inode of the same appearance, the *writers' end*. And as the last thing before
//! it opens anything the kernel asks for the attributes, since those of a FIFO may not be kept: that is
//! when [`crate::Hooks::fifo_opening`] is called.
//!
//! The bridge itself opens either end from within the container, by a name that is good once.

use dvs_fs::messages::InodeId;
use std::collections::HashMap;

/// What names of FIFOs in the tree's root begin with.
pub const FIFO_PREFIX: &str = ".dvs-fifo-";
/// Most names that wait to be opened.
pub const MAX_FIFO_NAMES: usize = 1024;

/// Names given out and not yet opened.
#[derive(Debug, Default)]
pub(crate) struct FifoNames(HashMap<Vec<u8>, (InodeId, bool)>);

impl FifoNames {
    /// A name for an end of a FIFO.
    pub(crate) fn add(&mut self, fifo: InodeId, writers: bool, random: u128) -> Option<Vec<u8>> {
        if self.0.len() >= MAX_FIFO_NAMES {
            return None;
        }
        let name = format!("{FIFO_PREFIX}{random:032x}").into_bytes();
        self.0.insert(name.clone(), (fifo, writers));
        Some(name)
    }

    /// What a name stands for; it is good once.
    pub(crate) fn take(&mut self, name: &[u8]) -> Option<(InodeId, bool)> {
        self.0.remove(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_good_once_and_names_are_bounded() {
        let fifo = InodeId { number: 7, generation: 1 };
        let mut names = FifoNames::default();
        let name = names.add(fifo, true, 5).unwrap();
        assert!(name.starts_with(FIFO_PREFIX.as_bytes()));
        assert_eq!(names.take(&name), Some((fifo, true)));
        assert_eq!(names.take(&name), None);
        for number in 0..MAX_FIFO_NAMES as u128 {
            assert!(names.add(fifo, false, number).is_some());
        }
        assert_eq!(names.add(fifo, false, u128::MAX), None);
    }
}
