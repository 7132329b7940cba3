//! Looks programs up through the node's client of the DC's file tree.
//!
//! Answers are kept for a moment, because the same few programs are asked for again and again. An
//! outdated answer is harmless: whoever executes the program finds out what is true.

use crate::files::{Files, Probe, Verdict};
use dvs_fs::messages::{Attributes, Credentials, InodeId, Operation, Outcome};
use dvs_fs_client::Client;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Most symbolic links on the way, as Linux has it.
const MAX_LINKS: usize = 40;
/// Most components looked at.
const MAX_COMPONENTS: usize = 1024;
/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(2);
/// Most answers kept.
const MAX_KEPT: usize = 4096;
/// Folders whose content is not the tree's.
const ELSEWHERE: [&[u8]; 3] = [b"proc", b"sys", b"dev"];

/// The programs of a DC's tree.
pub struct TreeFiles {
    client: Arc<Client>,
    kept: Mutex<HashMap<Question, (Instant, Verdict)>>,
}

/// Working directory (for a relative path), path, user.
type Question = (Vec<u8>, Vec<u8>, (u32, u32));

impl TreeFiles {
    /// Asks this client.
    #[must_use]
    pub fn new(client: Arc<Client>) -> Self {
        TreeFiles { client, kept: Mutex::default() }
    }

    fn child(
        &self,
        credentials: Credentials,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Option<Attributes>, i32> {
        let found = self.client.lookup(credentials, parent, name)?;
        if let (true, Some(attributes)) = (found.counted, found.attributes) {
            // The kernel's mount counts references of its own.
            self.client.forget(&[(attributes.inode, 1)]);
        }
        Ok(found.attributes)
    }

    fn find(&self, probe: &Probe<'_>) -> Result<Verdict, i32> {
        let credentials = Credentials { uid: probe.user.0, gid: probe.user.1, pid: 0, umask: 0 };
        let root = self.client.root().ok_or(libc::EIO)?;
        let mut pending: Vec<Vec<u8>> = Vec::new();
        let push = |pending: &mut Vec<Vec<u8>>, path: &[u8]| {
            for component in path.split(|byte| *byte == b'/').rev() {
                if !component.is_empty() && component != b"." {
                    pending.push(component.to_vec());
                }
            }
        };
        push(&mut pending, probe.path);
        if probe.path.first() != Some(&b'/') {
            push(&mut pending, probe.directory);
        }
        // The folders from the root down to where the walk is.
        let mut way = vec![root];
        let mut links = 0;
        let mut components = 0;
        while let Some(name) = pending.pop() {
            components += 1;
            if components > MAX_COMPONENTS || pending.len() > MAX_COMPONENTS {
                return Ok(Verdict::Unknown);
            }
            let here = *way.last().unwrap_or(&root);
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            if way.len() == 1 && ELSEWHERE.contains(&name.as_slice()) {
                return Ok(Verdict::Unknown);
            }
            if here.mode & libc::S_IFMT != libc::S_IFDIR {
                return Ok(Verdict::Absent);
            }
            let Some(found) = self.child(credentials, here.inode, &name)? else {
                return Ok(Verdict::Absent);
            };
            if found.mode & libc::S_IFMT == libc::S_IFLNK {
                links += 1;
                if links > MAX_LINKS {
                    return Ok(Verdict::Absent);
                }
                let read = Operation::ReadLink { inode: found.inode };
                let answer = self.client.perform(credentials, read)?;
                let Outcome::Data(target) = answer.outcome else { return Ok(Verdict::Unknown) };
                let target: &[u8] = target.as_ref();
                if target.first() == Some(&b'/') {
                    way.truncate(1);
                }
                push(&mut pending, target);
                continue;
            }
            way.push(found);
        }
        Ok(verdict(way.last().unwrap_or(&root).mode))
    }
}

fn verdict(mode: u32) -> Verdict {
    if mode & libc::S_IFMT != libc::S_IFREG || mode & 0o111 == 0 {
        Verdict::Absent
    } else if mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
        Verdict::Privileged
    } else {
        Verdict::Ordinary
    }
}

impl Files for TreeFiles {
    fn probe(&self, probe: Probe<'_>) -> Verdict {
        let absolute = probe.path.first() == Some(&b'/');
        let directory = if absolute { Vec::new() } else { probe.directory.to_vec() };
        let question = (directory, probe.path.to_vec(), probe.user);
        if let Some((since, verdict)) = self.kept.lock().unwrap().get(&question)
            && since.elapsed() < KEPT
        {
            return *verdict;
        }
        let verdict = match self.find(&probe) {
            Ok(verdict) => verdict,
            Err(libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ELOOP) => Verdict::Absent,
            Err(_) => return Verdict::Unknown,
        };
        let mut kept = self.kept.lock().unwrap();
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (since, _)| since.elapsed() < KEPT);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(question, (Instant::now(), verdict));
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_decide() {
        assert_eq!(verdict(libc::S_IFREG | 0o755), Verdict::Ordinary);
        assert_eq!(verdict(libc::S_IFREG | 0o4755), Verdict::Privileged);
        assert_eq!(verdict(libc::S_IFREG | 0o2755), Verdict::Privileged);
        assert_eq!(verdict(libc::S_IFREG | 0o644), Verdict::Absent);
        assert_eq!(verdict(libc::S_IFDIR | 0o755), Verdict::Absent);
    }
}
