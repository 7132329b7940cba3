//! Amounts on the command line: CPUs, memory, restarts.

use crate::failure::Failure;
use dvs_node::managing::RestartPolicy;

/// Most CPUs that can be asked for.
const MAX_CPUS: f64 = 4096.0;
/// Least memory a container can start in.
const MIN_MEMORY: u64 = 4 << 20;

/// `0.5`, `2`: thousandths of a CPU.
///
/// # Errors
/// A sentence that quotes the word.
pub(crate) fn millicpus(word: &str) -> Result<u32, Failure> {
    let cpus: Option<f64> = word.parse().ok().filter(|cpus| (0.01..=MAX_CPUS).contains(cpus));
    let cpus = cpus.ok_or_else(|| {
        Failure::new(format!(
            "--cpus {word}: give a number of CPUs between 0.01 and {MAX_CPUS}, such as 0.5 or 2"
        ))
    })?;
    // In range by the filter above.
    Ok((cpus * 1000.0).round() as u32)
}

/// `512m`, `2g`, `1048576`: bytes.
///
/// # Errors
/// A sentence that quotes the word.
pub(crate) fn memory(word: &str) -> Result<u64, Failure> {
    let wrong = || {
        Failure::new(format!(
            "--memory {word}: give bytes, or a number with k, m, g or t, at least 4m"
        ))
    };
    let lower = word.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let factor: u64 = match lower.get(digits.len()..).unwrap_or_default() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|bytes| *bytes >= MIN_MEMORY).ok_or_else(wrong)
}

/// A time in seconds: a number, with `s`, `m`, `h` or `d` behind it if wanted.
pub(crate) fn seconds(word: &str) -> Result<u64, Failure> {
    let wrong = || {
        Failure::new(format!(
            "{word:?} is no time; give seconds, or a number with s, m, h or d: 15m"
        ))
    };
    let (number, unit) = match word.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(number) => (number, word.get(number.len()..).unwrap_or_default()),
        None => (word, "s"),
    };
    let factor = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => 1,
    };
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    number.checked_mul(factor).ok_or_else(wrong)
}

/// `no`, `on-failure:3`, `always`, `unless-stopped`.
///
/// # Errors
/// A sentence that quotes the word.
pub(crate) fn restart(word: &str) -> Result<RestartPolicy, Failure> {
    word.parse().map_err(|what| Failure::new(format!("--restart {word}: {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_parsed() {
        assert_eq!(millicpus("0.5").unwrap(), 500);
        assert_eq!(millicpus("2").unwrap(), 2000);
        assert_eq!(memory("512m").unwrap(), 512 << 20);
        assert_eq!(memory("2G").unwrap(), 2 << 30);
        assert_eq!(memory("8388608").unwrap(), 8 << 20);
        for word in ["", "0", "-1", "nan", "inf", "x", "1e9"] {
            assert!(millicpus(word).unwrap_err().message.contains(&format!("--cpus {word}:")));
        }
        for word in ["", "m", "1", "1.5g", "99999999999t", "5x"] {
            assert!(memory(word).unwrap_err().message.contains(&format!("--memory {word}:")));
        }
    }

    #[test]
    fn times_are_read() {
        for (word, seconds) in [("0", 0), ("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200)] {
            assert_eq!(super::seconds(word).unwrap(), seconds);
        }
        for wrong in ["", "m", "1x", "-1", "+1", "1.5h", "1 m", "99999999999999999d"] {
            assert!(super::seconds(wrong).unwrap_err().message.contains("15m"), "{wrong}");
        }
    }
}
