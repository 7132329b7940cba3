//! What a daemon answers those of other nodes: its parts of containers whose home is elsewhere.

use super::{Host, lock};
use crate::dc::member;
use crate::dc::messages::{Answer, Call, Description, decode, encode};
use crate::dc::part::Part;
use crate::{hosts, uplink};
use dvs_dvk::Message;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// A part of a container whose home is elsewhere.
pub(super) enum PartSlot {
    /// Being built for this home.
    Building(u16),
    /// To be ended as soon as it is built.
    Cancelled,
    /// There.
    Ready(Arc<Part>),
}

impl Host {
    /// Another daemon asks. Runs on the link's thread, so everything that waits gets its own.
    pub(super) fn asked(self: &Arc<Self>, mut message: Message) {
        let from = message.source.node.0;
        let Some(reply) = message.take_reply() else { return };
        let call = match decode::<Call>(&message.body) {
            Ok(call) => call,
            Err(sentence) => {
                reply.reply(encode(&Answer::Failed(sentence)));
                return;
            }
        };
        log::debug!("node {from} asks: {call:?}");
        let host = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("asked".into()).spawn(move || {
            reply.reply(encode(&host.answer(from, call)));
        });
        if let Err(error) = spawned {
            log::error!("no thread to answer node {from}: {error}");
        }
    }

    fn answer(self: &Arc<Self>, from: u16, call: Call) -> Answer {
        match call {
            Call::Hello { name, address } => {
                self.name_node(from, name);
                if let Some(membership) = &self.membership {
                    membership.heard(from, address);
                }
                Answer::Done
            }
            Call::Join(description) if description.home == from => self.join(*description),
            Call::Begin { dc, parts } => match self.part_of(dc, from) {
                Some(part) => {
                    part.begin(&parts);
                    Answer::Done
                }
                None => unknown(dc),
            },
            Call::Leave { dc } => self.leave(dc, from),
            Call::Processes { dc } => {
                self.part_of(dc, from).map_or_else(|| unknown(dc), |part| member::processes(&part))
            }
            Call::Roster(_) | Call::Renew { .. } | Call::Renewed | Call::Info => {
                hosts::answer(self, from, call)
            }
            Call::Meet { node, name } if self.streams.is_uplink(from) => {
                match uplink::connect(self, node, &name) {
                    Ok(()) => Answer::Done,
                    Err(failure) => Answer::Failed(failure.message),
                }
            }
            Call::Meet { .. } => {
                Answer::Failed("only a command's own node brings others together".into())
            }
            Call::Freeze { dc, frozen } => self.part_of(dc, from).map_or_else(
                || unknown(dc),
                |part| match part.freeze(frozen) {
                    Ok(()) => Answer::Done,
                    Err(failure) => Answer::Failed(failure.message),
                },
            ),
            Call::Usage { dc } => self
                .part_of(dc, from)
                .map_or_else(|| unknown(dc), |part| Answer::Usage(Box::new(part.usage()))),
            Call::Limit { dc, limits } => self
                .part_of(dc, from)
                .map_or_else(|| unknown(dc), |part| Answer::Limited(part.limit(&limits))),
            Call::Join(_) => Answer::Failed("only a container's home may ask to join it".into()),
        }
    }

    fn part_of(&self, dc: u64, home: u16) -> Option<Arc<Part>> {
        match lock(&self.parts).get(&dc) {
            Some(PartSlot::Ready(part)) if part.description.home == home => Some(Arc::clone(part)),
            _ => None,
        }
    }

    fn join(&self, description: Description) -> Answer {
        let id = description.id;
        match lock(&self.parts).entry(id) {
            // What is there stays: the one who asks may not be the one it belongs to.
            Entry::Occupied(_) => {
                return Answer::Failed(format!("container {id:x} has a part here already"));
            }
            Entry::Vacant(place) => place.insert(PartSlot::Building(description.home)),
        };
        let built = member::join(self, description);
        let mut parts = lock(&self.parts);
        let cancelled = matches!(parts.get(&id), Some(PartSlot::Cancelled) | None);
        match built {
            Ok(part) if !cancelled => {
                self.fill_warm();
                let part = Arc::new(part);
                parts.insert(id, PartSlot::Ready(Arc::clone(&part)));
                Answer::Joined { addresses: part.addresses, warnings: part.warnings.clone() }
            }
            Ok(part) => {
                parts.remove(&id);
                drop(parts);
                part.end();
                Answer::Failed(format!("container {id:x} was ended while its part was built"))
            }
            Err(failure) => {
                parts.remove(&id);
                Answer::Failed(failure.message)
            }
        }
    }

    fn leave(&self, dc: u64, home: u16) -> Answer {
        let part = {
            let mut parts = lock(&self.parts);
            match parts.get(&dc) {
                Some(PartSlot::Ready(part)) if part.description.home == home => Arc::clone(part),
                Some(PartSlot::Building(of)) if *of == home => {
                    parts.insert(dc, PartSlot::Cancelled);
                    return unknown(dc);
                }
                _ => return unknown(dc),
            }
        };
        let statistics = part.end();
        lock(&self.parts).remove(&dc);
        Answer::Left(statistics)
    }

    /// A node is gone: containers at home here go on without it, parts of its containers end.
    pub(super) fn node_lost(self: &Arc<Self>, node: u16) {
        log::warn!("node {node} is gone");
        if self.config.session.is_some() && self.streams.is_uplink(node) {
            self.stop();
        }
        for home in self.running() {
            home.node_lost(node);
        }
        let ending: Vec<(u64, Arc<Part>)> = lock(&self.parts)
            .iter()
            .filter_map(|(id, slot)| match slot {
                PartSlot::Ready(part) if part.description.home == node => {
                    Some((*id, Arc::clone(part)))
                }
                _ => None,
            })
            .collect();
        for (id, part) in ending {
            let host = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("ending".into()).spawn(move || {
                part.end();
                lock(&host.parts).remove(&id);
            });
            if let Err(error) = spawned {
                log::error!("no thread to end a part: {error}");
            }
        }
    }
}

fn unknown(dc: u64) -> Answer {
    Answer::Failed(format!("container {dc:x} has no part here"))
}
