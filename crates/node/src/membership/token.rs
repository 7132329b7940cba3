//! What is given to somebody who is to join: where to, whom to trust, and the secret.
//!
//! One word of letters and digits, so that it survives every way of passing it on.

use crate::protocol::Failure;
use dvs_dvk::NodeId;
use dvs_dvk::tls::{Fingerprint, Invitation};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What a token begins with; the digit is its version.
const PREFIX: &str = "dvs1";
/// Longest token looked at.
const MAX_TOKEN: usize = 1024;

/// See the module.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Where the registrar listens.
    pub address: SocketAddr,
    /// The cluster.
    pub cluster: [u8; 16],
    /// The registrar.
    pub node: u16,
    /// Fingerprint of the cluster's authority.
    pub authority: Fingerprint,
    /// What proves that the token was given.
    pub secret: [u8; 16],
}

impl std::fmt::Debug for Token {
    /// Without the secret.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Token").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Token {
    /// As a word.
    #[must_use]
    pub fn word(&self) -> String {
        // Plain data into memory: it cannot fail.
        let bytes = postcard::to_stdvec(self).unwrap_or_default();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{PREFIX}{hex}")
    }

    /// From a word; white space around it does not matter.
    ///
    /// # Errors
    /// When it is no token.
    pub fn parse(word: &str) -> Result<Token, Failure> {
        let wrong = || {
            Failure::new(
                "this is no token; print one on the cluster's first node: dvs node token (a token is one word that begins with dvs1)",
            )
        };
        let hex = word.trim().strip_prefix(PREFIX).ok_or_else(wrong)?;
        if hex.len() > MAX_TOKEN || hex.len() % 2 != 0 || !hex.is_ascii() {
            return Err(wrong());
        }
        let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
        match postcard::take_from_bytes(&bytes.ok_or_else(wrong)?) {
            Ok((token, [])) => Ok(token),
            _ => Err(wrong()),
        }
    }

    /// Whom to ask.
    #[must_use]
    pub fn invitation(&self) -> Invitation {
        Invitation { cluster: self.cluster, node: NodeId(self.node), authority: self.authority }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_words_and_come_back() {
        let token = Token {
            address: "[2001:db8::1]:7117".parse().unwrap(),
            cluster: [1; 16],
            node: 1,
            authority: [2; 32],
            secret: [0xab; 16],
        };
        let word = token.word();
        assert!(word.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{word}");
        assert_eq!(Token::parse(&format!(" {word}\n")).unwrap(), token);
        let longer = format!("{word}00");
        let odd = format!("{word}0");
        let wrong =
            ["", "dvs1", "dvs1zz", "dvs2ab", &word[..word.len() - 2], &longer, &odd, "dvs1é"];
        for wrong in wrong {
            assert!(Token::parse(wrong).unwrap_err().message.contains("dvs node token"), "{wrong}");
        }
        assert!(!format!("{token:?}").contains("171"), "the secret is not shown");
    }
}
