//! Reading requests from bytes that a peer sent.

use crate::messages::{MAX_IO, MAX_NAME, MAX_XATTR, Operation, Reply, Request};

/// Most bytes of an encoded request: the largest write and its head.
pub const MAX_REQUEST: usize = MAX_IO + 4096;
/// Most bytes of an encoded reply: a full directory page with attributes.
pub const MAX_REPLY: usize = 4 * MAX_IO;
/// Most objects of one `Forget`.
pub const MAX_FORGET: usize = 32768;
/// Most bytes of a symbolic link's target (`PATH_MAX` with its NUL).
pub const MAX_TARGET: usize = 4095;

/// Bytes are no request, or break a limit of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than any request can be.
    #[error("a message of {0} bytes is longer than the protocol allows")]
    TooLong(usize),
    /// Not the protocol's encoding; the peer speaks another version or is broken.
    #[error("the message cannot be decoded: {0}")]
    Malformed(#[from] postcard::Error),
    /// Bytes follow the message.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// A part is larger than the protocol allows.
    #[error("{0} is larger than the protocol allows")]
    Limit(&'static str),
}

/// Decodes a request and checks the limits of its parts.
///
/// # Errors
/// [`DecodeError`]; nothing of the request may then be used.
pub fn decode_request(bytes: &[u8]) -> Result<Request, DecodeError> {
    if bytes.len() > MAX_REQUEST {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    let (request, rest) = postcard::take_from_bytes::<Request>(bytes)?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing(rest.len()));
    }
    check(&request.operation)?;
    Ok(request)
}

/// Decodes a reply.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, DecodeError> {
    if bytes.len() > MAX_REPLY {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    let (reply, rest) = postcard::take_from_bytes::<Reply>(bytes)?;
    if rest.is_empty() { Ok(reply) } else { Err(DecodeError::Trailing(rest.len())) }
}

fn check(operation: &Operation) -> Result<(), DecodeError> {
    let limit = |what, length: usize, most: usize| {
        if length > most { Err(DecodeError::Limit(what)) } else { Ok(()) }
    };
    // One more than the limit is let through for the tree to refuse with the right errno.
    let name = |name: &[u8]| limit("a name", name.len(), MAX_NAME + 1);
    match operation {
        Operation::Lookup { name: n, .. }
        | Operation::MakeNode { name: n, .. }
        | Operation::MakeDirectory { name: n, .. }
        | Operation::Link { name: n, .. }
        | Operation::Unlink { name: n, .. }
        | Operation::RemoveDirectory { name: n, .. }
        | Operation::Create { name: n, .. } => name(n),
        Operation::MakeSymbolicLink { name: n, target, .. } => {
            name(n)?;
            limit("a link's target", target.len(), MAX_TARGET)
        }
        Operation::Rename { name: old, new_name, .. } => {
            name(old)?;
            name(new_name)
        }
        Operation::Read { length, .. } => limit("a read", *length as usize, MAX_IO),
        Operation::Write { data, .. } => limit("a write", data.len(), MAX_IO),
        Operation::GetXattr { name: n, .. } | Operation::RemoveXattr { name: n, .. } => name(n),
        Operation::SetXattr { name: n, value, .. } => {
            name(n)?;
            limit("an attribute's value", value.len(), MAX_XATTR)
        }
        Operation::Forget { inodes } => limit("a list", inodes.len(), MAX_FORGET),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{ClientId, Credentials, ROOT};
    use crate::test_random::Random;

    fn request(operation: Operation) -> Request {
        Request {
            client: ClientId { node: 1, incarnation: 2 },
            sequence: 3,
            answered: 2,
            credentials: Credentials { uid: 0, gid: 0, pid: 0, umask: 0 },
            operation,
        }
    }

    #[test]
    fn requests_survive_the_wire_and_limits_are_kept() {
        let good = request(Operation::Lookup { parent: ROOT, name: vec![b'a'; 255] });
        let bytes = postcard::to_stdvec(&good).expect("encoded");
        assert_eq!(decode_request(&bytes), Ok(good));
        let long = request(Operation::Lookup { parent: ROOT, name: vec![b'a'; 300] });
        let bytes = postcard::to_stdvec(&long).expect("encoded");
        assert_eq!(decode_request(&bytes), Err(DecodeError::Limit("a name")));
        assert!(matches!(decode_request(&vec![0; MAX_REQUEST + 1]), Err(DecodeError::TooLong(_))));
        let mut trailing = postcard::to_stdvec(&request(Operation::Goodbye)).expect("encoded");
        trailing.push(0);
        assert_eq!(decode_request(&trailing), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn hostile_bytes_never_panic() {
        let mut random = Random::from_environment("decode");
        let good = request(Operation::Rename {
            parent: ROOT,
            name: b"a".to_vec(),
            new_parent: ROOT,
            new_name: b"b".to_vec(),
            flags: 1,
        });
        let good = postcard::to_stdvec(&good).expect("encoded");
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..1 + random.below(4) {
                let place = random.below(bytes.len() as u64) as usize;
                bytes[place] = random.next() as u8;
            }
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
            let _ = decode_request(&bytes);
            let _ = decode_reply(&bytes);
        }
    }
}
