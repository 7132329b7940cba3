//! Distributed containers: the parts of one on every node, and its home.

pub(crate) mod adapters;
pub(crate) mod files;
pub(crate) mod home;
pub(crate) mod limits;
pub(crate) mod links;
pub(crate) mod load;
pub(crate) mod manager;
pub(crate) mod member;
pub(crate) mod messages;
pub(crate) mod network;
pub(crate) mod part;
pub(crate) mod post;
pub(crate) mod program;
pub(crate) mod usage;
pub(crate) mod users;
