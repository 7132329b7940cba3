//! Making a cluster, and joining one: both are done by the command, before the daemon starts.

use super::core::{Member, Refusal, Registrar, Roster};
use super::store::{Identity, Office, Store};
use super::token::Token;
use crate::protocol::Failure;
use dvs_dvk::NodeId;
use dvs_dvk::tls::{Authority, AuthorityError, CERTIFICATE_LIFE, NodeKey, ask, secret};
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};

/// Version of the question and its answer.
const VERSION: u16 = 1;
/// Number of a cluster's first node.
const FIRST: u16 = 1;

/// What somebody who wants to join says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    /// The token's.
    pub(crate) secret: [u8; 16],
    /// The key that is to be certified.
    pub(crate) public: Vec<u8>,
    /// The name that is wanted.
    pub(crate) name: Option<String>,
}

impl Question {
    /// `None`: not a question of our version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Question> {
        decode(bytes)
    }
}

/// What who is let in gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Admission {
    pub(crate) node: u16,
    pub(crate) name: String,
    pub(crate) registrar: u16,
    pub(crate) certificate: Vec<u8>,
    pub(crate) ends: u64,
    pub(crate) roster: Roster,
}

pub(crate) fn encode<T: Serialize>(what: &T) -> Vec<u8> {
    // Plain data into memory: it cannot fail.
    postcard::to_extend(what, VERSION.to_le_bytes().to_vec()).unwrap_or_default()
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (version, body) = bytes.split_first_chunk::<2>()?;
    if u16::from_le_bytes(*version) != VERSION {
        return None;
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Some(message),
        _ => None,
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn no_key(error: AuthorityError) -> Failure {
    Failure::new(format!("making a key: {error}"))
}

/// Makes a cluster, of which this host is the first node and the registrar.
///
/// # Errors
/// When the files cannot be written.
pub fn create(
    store: &Store,
    name: Option<&str>,
    listen: SocketAddr,
    advertise: Option<SocketAddr>,
) -> Result<Identity, Failure> {
    let advertise = reachable(listen, advertise)?;
    let cluster = secret();
    let name = name.map_or_else(|| format!("n{FIRST}"), str::to_owned);
    crate::names::check("node", &name)?;
    let authority = Authority::create(cluster).map_err(no_key)?;
    let key = NodeKey::generate().map_err(no_key)?;
    let issued = authority.issue(NodeId(FIRST), &key.public(), CERTIFICATE_LIFE).map_err(no_key)?;
    let registrar = Registrar::new(Member {
        node: FIRST,
        name: name.clone(),
        address: None,
        fingerprint: issued.fingerprint,
        ends: issued.ends,
    });
    let identity = Identity {
        cluster,
        node: FIRST,
        name,
        registrar: FIRST,
        listen,
        advertise,
        certificate: issued.certificate,
        key: key.private(),
        ends: issued.ends,
        authority: authority.certificate().to_vec(),
    };
    store.set_office(&Office {
        registrar,
        certificate: authority.certificate().to_vec(),
        key: authority.key().to_vec(),
    })?;
    store.set_identity(&identity)?;
    Ok(identity)
}

/// Joins a cluster by a token. `at`: where its first node is reached, if not where the token says.
///
/// # Errors
/// When it cannot be reached, refuses, or the files cannot be written.
pub fn join(
    store: &Store,
    token: &Token,
    at: Option<SocketAddr>,
    name: Option<&str>,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
) -> Result<Identity, Failure> {
    let address = at.unwrap_or(token.address);
    let listen = match listen {
        Some(listen) => listen,
        None => SocketAddr::new(own_address(address)?, 0),
    };
    let advertise = reachable(listen, advertise)?;
    let key = NodeKey::generate().map_err(no_key)?;
    let question =
        Question { secret: token.secret, public: key.public(), name: name.map(str::to_owned) };
    let (answer, authority) = ask(address, &token.invitation(), &encode(&question)).map_err(
        |error| {
            Failure::new(format!(
                "the cluster's first node does not let this one in: {error}; is it up (dvs node ls there), can it be reached from here, and is the token new?"
            ))
        },
    )?;
    let admitted: Result<Admission, Refusal> =
        decode(&answer).ok_or_else(|| Failure::new(Refusal::Version.to_string()))?;
    let admission = admitted.map_err(|refusal| Failure::new(refusal.to_string()))?;
    let mut roster = admission.roster;
    // How it was reached just now is how it is reached.
    roster.moved(admission.registrar, address);
    let identity = Identity {
        cluster: token.cluster,
        node: admission.node,
        name: admission.name,
        registrar: admission.registrar,
        listen,
        advertise,
        certificate: admission.certificate,
        key: key.private(),
        ends: admission.ends,
        authority,
    };
    store.set_roster(&roster)?;
    store.set_identity(&identity)?;
    Ok(identity)
}

/// An address that others can connect to is needed where the one listened at names none.
pub(super) fn reachable(
    listen: SocketAddr,
    advertise: Option<SocketAddr>,
) -> Result<Option<SocketAddr>, Failure> {
    if advertise.is_none() && listen.ip().is_unspecified() {
        return Err(Failure::new(format!(
            "{listen} names no address that other hosts can connect to; listen at one address of this host, or add --advertise IP:PORT"
        )));
    }
    if advertise.is_some_and(|address| address.ip().is_unspecified() || address.port() == 0) {
        return Err(Failure::new(
            "--advertise needs an address and a port that others can connect to",
        ));
    }
    Ok(advertise)
}

/// The own address that packets to another one come from. Nothing is sent.
fn own_address(to: SocketAddr) -> Result<std::net::IpAddr, Failure> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let found = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(to)?;
        socket.local_addr()
    });
    found.map(|address| address.ip()).map_err(|error| {
        Failure::new(format!(
            "{to} cannot be reached from here: {}",
            crate::folders::reason(&error)
        ))
    })
}

/// An address from a command line: IP or host name, with or without a port.
///
/// # Errors
/// When it is none, or the name is not known.
pub fn resolve(word: &str, default_port: u16) -> Result<SocketAddr, Failure> {
    if let Ok(address) = word.parse() {
        return Ok(address);
    }
    if let Ok(ip) = word.trim_matches(['[', ']']).parse() {
        return Ok(SocketAddr::new(ip, default_port));
    }
    let with_port =
        if word.contains(':') { word.to_owned() } else { format!("{word}:{default_port}") };
    let wrong = |why: String| {
        Failure::new(format!("{word:?} is no address: {why}; give IP:PORT, such as 10.0.0.1:7117"))
    };
    let found =
        with_port.to_socket_addrs().map_err(|error| wrong(crate::folders::reason(&error)))?;
    found.into_iter().next().ok_or_else(|| wrong("the name has no address".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let read = |word: &str| resolve(word, 7).map(|address| address.to_string());
        assert_eq!(read("10.0.0.1:9").unwrap(), "10.0.0.1:9");
        assert_eq!(read("10.0.0.1").unwrap(), "10.0.0.1:7");
        assert_eq!(read("::1").unwrap(), "[::1]:7");
        assert_eq!(read("[::1]:9").unwrap(), "[::1]:9");
        for wrong in ["", "10.0.0.1:", "10.0.0.1:x", "a b", "1.2.3.4:99999"] {
            let message = read(wrong).unwrap_err().message;
            assert!(message.contains("IP:PORT"), "{message}");
        }
    }

    #[test]
    fn an_address_that_nobody_can_reach_is_refused() {
        let any = "0.0.0.0:7117".parse().unwrap();
        let good = "10.0.0.1:7117".parse().unwrap();
        assert!(reachable(any, None).unwrap_err().message.contains("--advertise"));
        assert_eq!(reachable(any, Some(good)).unwrap(), Some(good));
        assert_eq!(reachable(good, None).unwrap(), None);
        assert!(reachable(good, Some(any)).is_err());
        assert!(reachable(good, Some("10.0.0.1:0".parse().unwrap())).is_err());
    }

    #[test]
    fn questions_are_whole_and_of_our_version() {
        let question = Question { secret: [1; 16], public: vec![2; 32], name: None };
        let bytes = encode(&question);
        assert!(Question::decode(&bytes) == Some(question));
        for end in 0..bytes.len() {
            assert!(Question::decode(&bytes[..end]).is_none());
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Question::decode(&longer).is_none());
        let mut other = bytes;
        other[0] = 9;
        assert!(Question::decode(&other).is_none());
    }
}
