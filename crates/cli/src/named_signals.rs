//! Signals and resource limits by their names.

use crate::failure::Failure;

/// signal(7), the numbers of x86-64 and arm64.
const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// `TERM`, `SIGTERM`, `term`, `15`.
///
/// # Errors
/// A sentence that quotes the word.
pub(crate) fn signal(word: &str) -> Result<i32, Failure> {
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = || word.parse().ok().filter(|number| (1..=64).contains(number));
    named.or_else(number).ok_or_else(|| {
        Failure::new(format!(
            "{word} is no signal: give a name such as TERM, or a number from 1 to 64"
        ))
    })
}

/// getrlimit(2); as docker names them.
const LIMITS: [(&str, u32); 15] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// `nofile=1024:4096`, `core=0`, `stack=unlimited`: resource, soft, hard.
///
/// # Errors
/// A sentence that quotes the word.
pub(crate) fn ulimit(word: &str) -> Result<(u32, u64, u64), Failure> {
    let wrong = |what: &str| Failure::new(format!("--ulimit {word}: {what}"));
    let (name, values) =
        word.split_once('=').ok_or_else(|| wrong("write NAME=SOFT or NAME=SOFT:HARD"))?;
    let resource = LIMITS.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource);
    let resource = resource.ok_or_else(|| {
        let known: Vec<&str> = LIMITS.iter().map(|(name, _)| *name).collect();
        wrong(&format!("no limit is called '{name}'; there are {}", known.join(", ")))
    })?;
    let value = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        digits => digits.parse().map_err(|_| wrong(&format!("'{digits}' is no number"))),
    };
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (value(soft)?, value(hard)?),
        None => (value(values)?, value(values)?),
    };
    if soft > hard {
        return Err(wrong("the soft limit is above the hard one"));
    }
    Ok((resource, soft, hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for word in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(signal(word).unwrap(), libc::SIGTERM, "{word}");
        }
        assert_eq!(signal("KILL").unwrap(), libc::SIGKILL);
        for wrong in ["", "SIG", "FOO", "0", "65", "-9"] {
            assert!(signal(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_are_parsed() {
        assert_eq!(ulimit("nofile=10:20").unwrap(), (libc::RLIMIT_NOFILE, 10, 20));
        assert_eq!(ulimit("core=0").unwrap(), (libc::RLIMIT_CORE, 0, 0));
        assert_eq!(ulimit("stack=unlimited").unwrap().2, u64::MAX);
        for wrong in ["", "nofile", "nofile=", "nofile=x", "nofile=2:1", "files=1"] {
            let message = ulimit(wrong).unwrap_err().message;
            assert!(message.starts_with(&format!("--ulimit {wrong}:")), "{message}");
        }
    }
}
