//! Which folders of the host a container shows, and where: the working directory and `-v`.

use crate::failure::Failure;
use dvs_node::folders::reason;
use dvs_node::protocol::{MAX_SHARES, ShareMode, ShareOption};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Folders that hold the system: shared as a whole only when named by `-v`.
const SYSTEM: [&str; 15] = [
    "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/run", "/sbin",
    "/srv", "/sys", "/usr", "/var",
];
/// Places that are the kernel's: nothing of the host can be shown in or below them.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The working directory as a share, and as the program's own.
///
/// # Errors
/// For `/` and folders of the system.
pub(crate) fn working_directory(current: &Path, isolated: bool) -> Result<ShareOption, Failure> {
    let system = SYSTEM.iter().any(|folder| current == Path::new(folder));
    let kernel = KERNEL.iter().any(|folder| current.starts_with(folder));
    if current == Path::new("/") || kernel || (system && !isolated) {
        return Err(Failure::new(format!(
            "the current folder would be shared with the container, and {} is the system's; change to a folder of your own, or give -w DIR and share with -v what is needed",
            current.display()
        )));
    }
    let mode = if isolated { ShareMode::CopyOnWrite } else { ShareMode::ReadWrite };
    Ok(ShareOption { host: current.to_owned(), path: current.to_owned(), mode })
}

/// One `-v HOST[:PATH][:MODE]`; `HOST` may be relative to `current`.
///
/// # Errors
/// A sentence that quotes the word.
pub(crate) fn volume(word: &OsStr, current: &Path) -> Result<ShareOption, Failure> {
    let wrong = |what: &str| Failure::new(format!("-v {}: {what}", word.to_string_lossy()));
    let mut parts: Vec<&OsStr> =
        word.as_bytes().split(|byte| *byte == b':').map(OsStr::from_bytes).collect();
    let mode = match parts.last().and_then(|last| last.to_str()) {
        Some("ro") if parts.len() > 1 => Some(ShareMode::ReadOnly),
        Some("rw") if parts.len() > 1 => Some(ShareMode::ReadWrite),
        Some("cow") if parts.len() > 1 => Some(ShareMode::CopyOnWrite),
        _ => None,
    };
    if mode.is_some() {
        parts.pop();
    }
    let (host, path) = match parts.as_slice() {
        [host] if !host.is_empty() => (*host, None),
        [host, path] if !host.is_empty() && !path.is_empty() => (*host, Some(*path)),
        _ => return Err(wrong("write HOST, HOST:PATH or HOST:PATH:ro")),
    };
    let host = current.join(host);
    let real = host
        .canonicalize()
        .map_err(|error| wrong(&format!("{}: {}", host.display(), reason(&error))))?;
    if !real.is_dir() {
        return Err(wrong(&format!("{} is not a folder; share the one it is in", real.display())));
    }
    if real == Path::new("/") {
        return Err(wrong(
            "the whole of / cannot be shared; the host's files are shown read-only anyway",
        ));
    }
    // Without PATH the folder appears where the user named it, links and all.
    let shown = path.map_or_else(|| clean(&host), |path| clean(Path::new(path)));
    let shown = shown.ok_or_else(|| wrong("the path inside must be absolute, without '..'"))?;
    let kernel = KERNEL.iter().any(|folder| shown.starts_with(folder));
    if shown == Path::new("/") || kernel {
        return Err(wrong(&format!("nothing can be shown at {}", shown.display())));
    }
    Ok(ShareOption { host: real, path: shown, mode: mode.unwrap_or(ShareMode::ReadWrite) })
}

/// All shares, outer before inner, each path once: later ones of the command line win.
///
/// # Errors
/// When there are too many.
pub(crate) fn ordered(shares: Vec<ShareOption>) -> Result<Vec<ShareOption>, Failure> {
    let mut kept: Vec<ShareOption> = Vec::new();
    for share in shares {
        kept.retain(|other| other.path != share.path);
        kept.push(share);
    }
    if kept.len() > MAX_SHARES {
        return Err(Failure::new(format!(
            "more than {MAX_SHARES} folders shared; share their parent"
        )));
    }
    kept.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(kept)
}

/// Whether a path of the host is seen inside, at the same place.
pub(crate) fn shows(shares: &[ShareOption], path: &Path) -> bool {
    shares.iter().any(|share| share.host == share.path && path.starts_with(&share.path))
}

/// An absolute path without `.` and doubled slashes; `None`: relative or with `..`.
fn clean(path: &Path) -> Option<PathBuf> {
    if !path.is_absolute() {
        return None;
    }
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(cleaned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(word: &str) -> Result<ShareOption, Failure> {
        volume(OsStr::new(word), Path::new("/usr"))
    }

    #[test]
    fn volumes_are_parsed() {
        let share = parse("/usr/share:/data:ro").unwrap();
        assert_eq!((share.host.to_str(), share.path.to_str()), (Some("/usr/share"), Some("/data")));
        assert_eq!(share.mode, ShareMode::ReadOnly);
        let share = parse("share").unwrap();
        assert_eq!((share.path.to_str(), share.mode), (Some("/usr/share"), ShareMode::ReadWrite));
        assert_eq!(parse("/usr/share:cow").unwrap().mode, ShareMode::CopyOnWrite);
        assert_eq!(parse("/usr/share:/x//y/.").unwrap().path, Path::new("/x/y"));
    }

    #[test]
    fn wrong_volumes_are_refused_with_the_word() {
        for word in [
            "",
            ":",
            "/usr:",
            "/usr:x",
            "/usr:/a/../b",
            "/usr:/",
            "/usr:/proc/x",
            "/no/such/folder",
            "/etc/passwd",
            "/",
            "/usr:/a:/b:ro",
        ] {
            let message = parse(word).unwrap_err().message;
            assert!(message.starts_with(&format!("-v {word}:")), "{message}");
        }
    }

    #[test]
    fn the_system_is_not_shared_by_accident() {
        for folder in ["/", "/usr", "/etc", "/proc/self", "/dev/shm"] {
            let message = working_directory(Path::new(folder), false).unwrap_err().message;
            assert!(message.contains(folder) && message.contains("-w"), "{message}");
        }
        assert_eq!(
            working_directory(Path::new("/usr"), true).unwrap().mode,
            ShareMode::CopyOnWrite
        );
        assert!(working_directory(Path::new("/home/u/p"), false).is_ok());
    }

    #[test]
    fn shares_are_ordered_and_unique() {
        let share = |path: &str, mode| ShareOption { host: "/usr".into(), path: path.into(), mode };
        let shares = vec![
            share("/b/c", ShareMode::ReadWrite),
            share("/b", ShareMode::ReadWrite),
            share("/b/c", ShareMode::ReadOnly),
        ];
        let ordered = ordered(shares).unwrap();
        assert_eq!(ordered.len(), 2);
        assert_eq!(ordered[0].path, Path::new("/b"));
        assert_eq!(ordered[1].mode, ShareMode::ReadOnly);
    }
}
