//! The file-system server: the one authority for the tree of a DC.

pub mod messages;
