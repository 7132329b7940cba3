//! Users and groups by name, from the image's own `/etc/passwd` and `/etc/group`.
//!
//! The files belong to the image and may be hostile: they are read up to a bound, as regular files
//! only, and nothing but numbers and a home's path is taken from them.

use crate::protocol::Failure;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most bytes read of each file.
const MAX_FILE: u64 = 4 << 20;
/// Most supplementary groups (`NGROUPS_MAX` is 65536; a launch message holds fewer).
const MAX_GROUPS: usize = 1024;

/// Who a program runs as, inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Home folder.
    pub(crate) home: PathBuf,
}

/// Resolves `USER[:GROUP]`; nothing: root.
///
/// # Errors
/// When a name is not known.
pub(crate) fn resolve(word: Option<&str>, image: &Path) -> Result<Identity, Failure> {
    let passwd = read(&image.join("etc/passwd"));
    let group = read(&image.join("etc/group"));
    resolve_in(word.unwrap_or("0"), &passwd, &group)
}

fn resolve_in(word: &str, passwd: &str, group: &str) -> Result<Identity, Failure> {
    let (user, wanted_group) = match word.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (word, None),
    };
    let entry = entries(passwd).find(|entry| entry.matches(user));
    let uid = entry.as_ref().map(|entry| entry.number).or_else(|| user.parse().ok());
    let uid = uid.ok_or_else(|| {
        Failure::new(format!(
            "-u {word}: no user is called {user} in the image's /etc/passwd; give a number"
        ))
    })?;
    let gid = match wanted_group {
        Some(wanted) => {
            let found = entries(group).find(|entry| entry.matches(wanted));
            found.map(|entry| entry.number).or_else(|| wanted.parse().ok()).ok_or_else(|| {
                Failure::new(format!(
                    "-u {word}: no group is called {wanted} in the image's /etc/group; give a number"
                ))
            })?
        }
        None => entry.as_ref().and_then(|entry| entry.field(3)?.parse().ok()).unwrap_or(0),
    };
    let mut groups = match (&entry, wanted_group) {
        (Some(entry), None) => memberships(group, entry.name),
        _ => Vec::new(),
    };
    groups.truncate(MAX_GROUPS);
    let home = entry.as_ref().and_then(|entry| entry.field(5)).filter(|home| home.starts_with('/'));
    Ok(Identity { uid, gid, groups, home: home.unwrap_or("/").into() })
}

struct Entry<'a> {
    name: &'a str,
    number: u32,
    line: &'a str,
}

impl<'a> Entry<'a> {
    fn matches(&self, word: &str) -> bool {
        self.name == word || word.parse() == Ok(self.number)
    }

    fn field(&self, index: usize) -> Option<&'a str> {
        self.line.split(':').nth(index)
    }
}

/// Lines of either file: both begin with name, password, number.
fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let number = fields.nth(1)?.parse().ok()?;
        Some(Entry { name, number, line })
    })
}

fn memberships(group: &str, user: &str) -> Vec<u32> {
    entries(group)
        .filter(|entry| {
            entry.field(3).is_some_and(|members| members.split(',').any(|name| name == user))
        })
        .map(|entry| entry.number)
        .collect()
}

fn read(path: &Path) -> String {
    let Ok(metadata) = std::fs::metadata(path) else { return String::new() };
    // A FIFO would be waited for.
    if !metadata.is_file() {
        return String::new();
    }
    let mut bytes = Vec::new();
    let taken =
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    match taken {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            log::debug!("{}: {error}", path.display());
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\nbad\n";
    const GROUP: &str = "root:x:0:\nuser:x:1000:\naudio:x:29:user,other\nvideo:x:44:other\n";

    fn resolve(word: &str) -> Result<Identity, Failure> {
        resolve_in(word, PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers_are_found() {
        let user = resolve("user").unwrap();
        assert_eq!((user.uid, user.gid, user.groups.as_slice()), (1000, 1000, &[29][..]));
        assert_eq!(user.home, Path::new("/home/user"));
        assert_eq!(resolve("1000").unwrap(), user);
        let mixed = resolve("user:video").unwrap();
        assert_eq!((mixed.uid, mixed.gid, mixed.groups.len()), (1000, 44, 0));
        let unknown = resolve("4711:4712").unwrap();
        assert_eq!((unknown.uid, unknown.gid, unknown.home.to_str()), (4711, 4712, Some("/")));
        assert_eq!(resolve("0").unwrap().home, Path::new("/root"));
    }

    #[test]
    fn unknown_names_are_said() {
        assert!(resolve("nobody-here").unwrap_err().message.contains("nobody-here"));
        assert!(resolve("user:nogroup-here").unwrap_err().message.contains("nogroup-here"));
        assert!(resolve_in("root", "", "").is_err());
        assert_eq!(resolve_in("0", "", "").unwrap().home, Path::new("/"));
    }
}
