//! Moves what a detached container's first program writes into its [`Output`].

use super::output::Output;
use dvs_sys::clock;
use dvs_sys::descriptor::{self, Poll};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// Bytes moved at a time.
const CHUNK: usize = 16 << 10;

/// Starts moving from descriptors, each with its stream's number, until all are at their end; then the
/// receiver hears of it.
///
/// # Errors
/// When there is no thread.
pub(crate) fn start(
    sources: Vec<(u8, OwnedFd)>,
    output: Arc<Output>,
) -> std::io::Result<Receiver<()>> {
    let (done, end) = channel();
    std::thread::Builder::new().name("output".into()).spawn(move || {
        run(sources, &output);
        // Nobody waits any more where the time was over.
        let _ = done.send(());
    })?;
    Ok(end)
}

fn run(sources: Vec<(u8, OwnedFd)>, output: &Output) {
    let mut sources: Vec<(u8, File)> =
        sources.into_iter().map(|(stream, fd)| (stream, File::from(fd))).collect();
    let mut buffer = vec![0; CHUNK];
    while !sources.is_empty() {
        let mut waits: Vec<Poll<'_>> =
            sources.iter().map(|(_, file)| Poll::readable(file.as_fd())).collect();
        if let Err(error) = descriptor::poll(&mut waits, None) {
            log::error!("waiting for output: {error}");
            return;
        }
        let ready: Vec<bool> = waits.iter().map(|wait| wait.ready != 0).collect();
        let mut index = 0;
        sources.retain_mut(|(stream, file)| {
            let look = ready.get(index).copied().unwrap_or(false);
            index += 1;
            if !look {
                return true;
            }
            match file.read(&mut buffer) {
                // A terminal whose last program is gone says EIO.
                Ok(0) => false,
                Ok(got) => {
                    output.append(*stream, clock::real(), buffer.get(..got).unwrap_or_default());
                    true
                }
                Err(error) => error.kind() == std::io::ErrorKind::Interrupted,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn both_streams_are_kept_until_their_ends() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::open(folder.path()).unwrap();
        let (out, mut to_out) = std::io::pipe().unwrap();
        let (err, mut to_err) = std::io::pipe().unwrap();
        let end = start(vec![(1, out.into()), (2, err.into())], Arc::clone(&output)).unwrap();
        to_out.write_all(b"out").unwrap();
        drop(to_out);
        to_err.write_all(b"err").unwrap();
        assert!(end.try_recv().is_err());
        drop(to_err);
        end.recv_timeout(Duration::from_secs(60)).unwrap();
        let mut kept: Vec<_> =
            output.all(None, None).0.into_iter().map(|piece| (piece.stream, piece.bytes)).collect();
        kept.sort();
        assert_eq!(kept, [(1, b"out".to_vec()), (2, b"err".to_vec())]);
    }
}
