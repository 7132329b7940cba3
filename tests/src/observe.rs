//! Runs one command and keeps everything that a user could see of it.

use crate::tree::{self, Tree};
use anyhow::Context;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Most bytes kept of one stream.
pub const MAX_STREAM: u64 = 64 << 20;
/// Time a command gets to clean up after SIGTERM, when it ran out of its time.
const GRACE: Duration = Duration::from_secs(10);
/// Time that the streams may stay open after the command's end.
const DRAIN: Duration = Duration::from_secs(10);

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this status; a signal counts as 128 and its number, as a shell says it.
    Status(i32),
    /// It did not end in its time.
    TimedOut,
}

/// What could be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// How it ended.
    pub end: End,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Someone kept a stream open after its end.
    pub held_open: bool,
    /// The files in its folder.
    pub files: Tree,
    /// How long it took.
    pub took: Duration,
}

/// Runs a command with no input and watches `folder`. The command leads a group of its own, as
/// those of [`Dvs::session`](crate::command::Dvs::session) do: its time over, the group is ended.
pub fn run(command: &mut Command, folder: &Path, bound: Duration) -> anyhow::Result<Observation> {
    Ok(run_with_pid(command, folder, bound)?.0)
}

/// As [`run`]; also tells the pid that the command had.
pub fn run_with_pid(
    command: &mut Command,
    folder: &Path,
    bound: Duration,
) -> anyhow::Result<(Observation, u32)> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let pid = child.id();
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let end = wait(&mut child, bound)?;
    let took = started.elapsed();
    let mut held_open = false;
    let mut collect =
        |stream: Option<Receiver<Vec<u8>>>| match stream.map(|s| s.recv_timeout(DRAIN)) {
            Some(Ok(bytes)) => bytes,
            Some(Err(RecvTimeoutError::Timeout)) => {
                held_open = true;
                Vec::new()
            }
            Some(Err(RecvTimeoutError::Disconnected)) | None => Vec::new(),
        };
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    let files = tree::read(folder);
    Ok((Observation { end, stdout, stderr, held_open, files, took }, pid))
}

/// Waits for a child, at most `bound`; then ends its group: first kindly, so that a `dvs` cleans up.
pub fn wait(child: &mut Child, bound: Duration) -> anyhow::Result<End> {
    let group = i32::try_from(child.id()).context("a pid")?;
    if let Some(status) = wait_for(child, bound)? {
        return Ok(End::Status(status));
    }
    let _ = dvs_sys::process::kill(-group, libc::SIGTERM);
    if wait_for(child, GRACE)?.is_none() {
        let _ = dvs_sys::process::kill(-group, libc::SIGKILL);
        child.wait()?;
    }
    Ok(End::TimedOut)
}

/// The shell's number for how a child ended, or `None` after `bound`.
pub fn wait_for(child: &mut Child, bound: Duration) -> anyhow::Result<Option<i32>> {
    let pidfd = dvs_sys::process::pidfd_open(child.id())?;
    let milliseconds = u32::try_from(bound.as_millis()).unwrap_or(u32::MAX);
    if !dvs_sys::descriptor::wait_readable(pidfd.as_fd(), Some(milliseconds))? {
        return Ok(None);
    }
    let status = child.wait()?;
    Ok(Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))))
}

fn drain(stream: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.take(MAX_STREAM).read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, bound: Duration) -> Observation {
        let folder = tempfile::tempdir().expect("folder");
        let mut command = Command::new("setsid");
        command
            .args(["sh", "-c", script])
            .env("PATH", crate::case::PATH)
            .current_dir(folder.path());
        run(&mut command, folder.path(), bound).expect("run")
    }

    #[test]
    fn everything_is_seen() {
        let seen = shell("echo out; echo err >&2; echo x > f; kill -9 $$", DEFAULT);
        assert_eq!(seen.end, End::Status(137));
        assert_eq!(
            (seen.stdout.as_slice(), seen.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..])
        );
        assert_eq!(seen.files["f"].content, b"x\n");
    }

    #[test]
    fn a_hang_is_ended() {
        let seen = shell("trap '' INT; sleep 1000", Duration::from_millis(50));
        assert_eq!(seen.end, End::TimedOut);
    }

    const DEFAULT: Duration = Duration::from_secs(30);
}
