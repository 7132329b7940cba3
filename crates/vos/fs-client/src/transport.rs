//! How requests reach the server; the node implements it over DVK endpoints.

use dvs_fs::messages::{Reply, Request};

/// Why a request got no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The link was cut while the request or its reply was under way. The same request may be sent
    /// again: the server answers a repeated one from its reply cache.
    #[error("the link to the file-system server was cut; the request will be repeated")]
    Lost,
    /// The server is gone for good, or refuses this client for good.
    #[error("the file-system server is gone for good; end the container and start it again")]
    Gone,
}

/// A way to the server of one DC.
pub trait FsTransport: Send + Sync {
    /// Sends a request and waits for its reply. Waits as long as the server works on it, but not
    /// unboundedly for a link that is down.
    ///
    /// # Errors
    /// See [`TransportError`].
    fn call(&self, request: Request) -> Result<Reply, TransportError>;

    /// Sends a request whose reply nobody waits for. Never blocks for long; the request may be lost
    /// with the link. Posts keep their order.
    fn post(&self, request: Request);
}
