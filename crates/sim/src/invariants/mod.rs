//! What must hold in every run, one idea per file.

pub mod calls_end;
pub mod disjoint_blocks;
pub mod once;
pub mod order;
