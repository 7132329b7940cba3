//! What one endpoint may do with another one, beyond sending to it.

use super::{Command, Exchange, Key, REGISTRY};
use crate::core::rights::{Permit, Rights};
use crate::error::CallError;
use crate::ids::Address;
use serde::{Deserialize, Serialize};

/// What is done to an endpoint by one that may manage it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manage {
    /// Its permissions change.
    Permit(Permit),
    /// It ends.
    Close,
}

impl<W> Exchange<W> {
    /// Whether an endpoint has rights over an endpoint of this node. Every one has all over itself.
    ///
    /// # Errors
    /// When not, or when there is no such endpoint here.
    pub fn allows(&self, source: &Address, key: Key, wanted: Rights) -> Result<(), CallError> {
        let address = self.address(key);
        let endpoint = self.endpoints.get(&key).ok_or(CallError::NoEndpoint { address })?;
        // The registry may tell everybody what it has to.
        let registry = source.number == REGISTRY && wanted == Rights::CALL;
        if registry || *source == address || endpoint.permissions.allow(source, wanted) {
            Ok(())
        } else {
            Err(CallError::Denied { address })
        }
    }

    /// Does something to an endpoint of this node, asked for by `source`.
    ///
    /// # Errors
    /// When `source` has no right to, or there is no such endpoint.
    pub fn manage(
        &mut self,
        source: &Address,
        key: Key,
        what: Manage,
        out: &mut Vec<Command<W>>,
    ) -> Result<(), CallError> {
        self.allows(source, key, Rights::MANAGE)?;
        match what {
            Manage::Close => self.unbind(key, out),
            Manage::Permit(permit) => {
                let address = self.address(key);
                if let Some(endpoint) = self.endpoints.get_mut(&key)
                    && !endpoint.permissions.change(permit)
                {
                    return Err(CallError::Busy { address });
                }
            }
        }
        Ok(())
    }
}
