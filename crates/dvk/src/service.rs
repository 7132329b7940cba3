//! The DVK's own endpoint in every container on every node: does there what endpoints of other nodes
//! ask for. Who asks is vouched for by the DVK as for any message, and checked by the exchange.

use crate::core::exchange::{Key, Manage, SERVICE};
use crate::core::inbox::MessageKind;
use crate::dc::DcShared;
use crate::endpoint::call;
use crate::error::CallError;
use crate::here::Here;
use crate::ids::{Address, Lane};
use crate::message::Message;
use crate::node::Shared;
use crate::port::Port;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};
use std::time::Duration;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ServiceRequest {
    /// Do something to an endpoint of the service's node.
    Manage { number: u64, what: Manage },
}

/// What the service answers.
pub(crate) type ServiceReply = Result<(), CallError>;

/// Answers the questions of other nodes.
pub(crate) fn answer(shared: &Weak<Shared>, dc: &Weak<DcShared>, mut message: Message) {
    let (Some(shared), Some(dc)) = (shared.upgrade(), dc.upgrade()) else { return };
    let Some(reply) = message.take_reply() else { return };
    // Without an answer the asker hears that its request was dropped.
    let Ok(request) = postcard::from_bytes(&message.body) else { return };
    let result: ServiceReply = match request {
        ServiceRequest::Manage { number, what } => {
            manage_here(&shared, &message.source, Key { dc: dc.id(), number }, what)
        }
    };
    reply.reply(postcard::to_stdvec(&result).unwrap_or_default());
}

fn manage_here(
    shared: &Arc<Shared>,
    source: &Address,
    key: Key,
    what: Manage,
) -> Result<(), CallError> {
    let mut commands = Vec::new();
    let result = shared.exchange.lock().unwrap().manage(source, key, what, &mut commands);
    if result.is_ok() && what == Manage::Close {
        let handler = shared.handlers.write().unwrap().remove(&key);
        drop(handler);
    }
    shared.run(commands);
    result
}

/// Does something to an endpoint, wherever it is, as the endpoint of a port.
pub(crate) fn manage(
    port: &Here,
    of: &Address,
    what: Manage,
    timeout: Duration,
) -> Result<(), CallError> {
    let own = port.address();
    if of.dc != own.dc {
        return Err(CallError::OtherDc { from: own.dc, to: of.dc });
    }
    if (of.node, of.incarnation) == (own.node, own.incarnation) {
        return manage_here(&port.shared, &own, Key { dc: of.dc, number: of.number }, what);
    }
    let service = Address { number: SERVICE, ..*of };
    let request = ServiceRequest::Manage { number: of.number, what };
    let body = postcard::to_stdvec(&request).map_err(|_| CallError::Malformed)?;
    let reply = call(port, MessageKind::Call, Lane::Small, &service, body, timeout)?;
    postcard::from_bytes::<ServiceReply>(&reply).map_err(|_| CallError::Malformed)?
}
