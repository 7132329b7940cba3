//! What certificates say, and to whom they say it.

use super::*;
use std::time::Duration;

const CLUSTER: [u8; 16] = [3; 16];

fn credentials(authority: &Authority, node: u16) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let issued = authority.issue(NodeId(node), &key.public(), CERTIFICATE_LIFE).unwrap();
    Credentials {
        cluster: CLUSTER,
        node: NodeId(node),
        certificate: issued.certificate,
        key: key.private(),
        authority: authority.certificate().to_vec(),
    }
}

#[test]
fn an_authority_is_stored_and_signs_as_before() {
    let first = Authority::create(CLUSTER).unwrap();
    let again =
        Authority::load(CLUSTER, first.certificate().to_vec(), first.key().to_vec()).unwrap();
    assert_eq!(first.certificate(), again.certificate());
    Tls::new(&credentials(&again, 2), None).unwrap();
    let one = credentials(&first, 2);
    let two = credentials(&first, 2);
    assert_ne!(fingerprint(&one.certificate), fingerprint(&two.certificate));
}

#[test]
fn what_is_no_key_is_refused() {
    let authority = Authority::create(CLUSTER).unwrap();
    for bad in [0, 31, 33, 4096] {
        let error = authority.issue(NodeId(2), &vec![1; bad], Duration::from_secs(60)).unwrap_err();
        assert!(error.to_string().contains(&bad.to_string()), "{error}");
    }
    assert!(Authority::load(CLUSTER, authority.certificate().to_vec(), vec![1, 2, 3]).is_err());
    let mut mixed = credentials(&authority, 2);
    mixed.key = NodeKey::generate().unwrap().private();
    assert!(Tls::new(&mixed, None).is_err(), "a key of another certificate");
}

#[test]
fn secrets_do_not_repeat_and_are_not_shown() {
    assert_ne!(secret::<16>(), secret::<16>());
    let authority = Authority::create(CLUSTER).unwrap();
    let shown = format!("{:?}", credentials(&authority, 2));
    assert!(!shown.contains("key"), "{shown}");
}
