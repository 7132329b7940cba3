//! Keys that leave a container to itself.

use crate::failure::Failure;

/// Finds the keys in what is typed. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them were typed in a row; held back until it is known what they are.
    typed: usize,
}

impl DetachKeys {
    /// `ctrl-p,ctrl-q`, `a,b`, `ctrl-\`; nothing: never.
    ///
    /// # Errors
    /// A sentence that quotes the word.
    pub(crate) fn parse(word: &str) -> Result<DetachKeys, Failure> {
        let wrong = || {
            Failure::new(format!(
                "--detach-keys {word}: give ctrl-LETTER (or @ [ \\ ] ^ _) or single characters, with commas between"
            ))
        };
        let mut keys = Vec::new();
        for part in word.split(',').filter(|_| !word.is_empty()) {
            let key = match (part.as_bytes(), part.strip_prefix("ctrl-").map(str::as_bytes)) {
                ([key], _) => *key,
                (_, Some([key @ (b'a'..=b'z' | b'@' | b'['..=b'_')])) => {
                    key.to_ascii_uppercase() & 0x1f
                }
                _ => return Err(wrong()),
            };
            keys.push(key);
        }
        Ok(DetachKeys { keys, typed: 0 })
    }

    /// What of the input is to be passed on, and whether the keys came.
    pub(crate) fn feed(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(input.len());
        for byte in input {
            if self.keys.get(self.typed) == Some(byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    return (passed, true);
                }
                continue;
            }
            // It was something else after all.
            passed.extend_from_slice(self.keys.get(..self.typed).unwrap_or_default());
            self.typed = usize::from(self.keys.first() == Some(byte));
            if self.typed == 0 {
                passed.push(*byte);
            } else if self.typed == self.keys.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_found_over_several_reads() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.feed(b"ls\n"), (b"ls\n".to_vec(), false));
        assert_eq!(keys.feed(&[0x10]), (vec![], false));
        assert_eq!(keys.feed(b"x"), (vec![0x10, b'x'], false));
        assert_eq!(keys.feed(&[0x10, 0x10]), (vec![0x10], false));
        assert_eq!(keys.feed(&[0x11, b'y']), (vec![], true));
    }

    #[test]
    fn other_keys_can_be_had() {
        let mut one = DetachKeys::parse("ctrl-x").unwrap();
        assert_eq!(one.feed(&[b'a', 0x18]), (vec![b'a'], true));
        let mut never = DetachKeys::parse("").unwrap();
        assert_eq!(never.feed(&[0x10, 0x11]), (vec![0x10, 0x11], false));
        assert_eq!(DetachKeys::parse("ctrl-\\").unwrap().keys, [0x1c]);
        for wrong in ["ctrl-", "ctrl-1", "ab", ","] {
            assert!(DetachKeys::parse(wrong).is_err(), "{wrong}");
        }
    }
}
