//! What the program's standard input, output and error are.
//!
//! Pipes, files, sockets and `/dev/null` are handed over as they are: the host kernel's own path, no
//! byte is copied. A terminal is never handed over, because a program inside could read from it,
//! change it or type into it: its output is copied by this command, its input only with `-i`. Folders
//! and devices are refused: a folder's descriptor would lead out of the container.

use crate::failure::Failure;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// What a descriptor of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A terminal.
    Terminal,
    /// A pipe, regular file, socket or harmless device.
    Harmless,
    /// A folder, disk or other device, by its name.
    Refused(&'static str),
}

/// What the program gets in place of one of our descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Ours.
    Pass,
    /// `/dev/null`.
    Null,
    /// A pipe that this command copies.
    Copy,
    /// The same pipe as standard output, so that the order of lines stays.
    AsOutput,
}

/// Decides for input, output and error.
///
/// # Errors
/// For what cannot be handed over.
pub(crate) fn plan(
    kinds: [Kind; 3],
    interactive: bool,
    same_terminal: bool,
) -> Result<[Plan; 3], Failure> {
    const NAMES: [&str; 3] = ["input", "output", "error"];
    for (kind, name) in kinds.iter().zip(NAMES) {
        if let Kind::Refused(what) = kind {
            return Err(Failure::new(format!(
                "standard {name} is {what}, which cannot be handed to a container; put a pipe between (cat)"
            )));
        }
    }
    let input = match kinds[0] {
        Kind::Terminal if interactive => Plan::Copy,
        Kind::Terminal => Plan::Null,
        _ => Plan::Pass,
    };
    let output = if kinds[1] == Kind::Terminal { Plan::Copy } else { Plan::Pass };
    let error = match kinds[2] {
        Kind::Terminal if output == Plan::Copy && same_terminal => Plan::AsOutput,
        Kind::Terminal => Plan::Copy,
        _ => Plan::Pass,
    };
    Ok([input, output, error])
}

/// What a descriptor is.
///
/// # Errors
/// When it is not open.
pub(crate) fn kind(fd: BorrowedFd<'_>) -> std::io::Result<Kind> {
    use std::io::IsTerminal;
    if fd.is_terminal() {
        return Ok(Kind::Terminal);
    }
    let file = File::from(fd.try_clone_to_owned()?);
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Ok(Kind::Refused("a folder"));
    }
    if kind.is_block_device() {
        return Ok(Kind::Refused("a disk"));
    }
    if kind.is_char_device() && !harmless_device(metadata.rdev()) {
        return Ok(Kind::Refused("a device"));
    }
    Ok(Kind::Harmless)
}

/// null, zero, full, random, urandom: `Documentation/admin-guide/devices.txt` of Linux.
fn harmless_device(device: u64) -> bool {
    libc::major(device) == 1 && matches!(libc::minor(device), 3 | 5 | 7 | 8 | 9)
}

/// Descriptors for the program, and our ends of the pipes to copy.
#[derive(Debug)]
pub(crate) struct Stdio {
    /// Input, output, error of the program.
    pub(crate) program: Vec<OwnedFd>,
    /// To be filled from our standard input.
    pub(crate) input: Option<OwnedFd>,
    /// To be copied to our standard output, and to our standard error.
    pub(crate) outputs: Vec<(OwnedFd, Target)>,
}

/// Where a copied output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// Makes the descriptors for a program without a terminal.
///
/// # Errors
/// For what cannot be handed over, or when there are no descriptors left.
pub(crate) fn arrange(interactive: bool) -> Result<Stdio, Failure> {
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let ours = [input.as_fd(), output.as_fd(), error.as_fd()];
    let io = |error: std::io::Error| {
        Failure::new(format!("standard input and output: {}", dvs_node::folders::reason(&error)))
    };
    let mut kinds = [Kind::Harmless; 3];
    for (kind_of, fd) in kinds.iter_mut().zip(ours) {
        *kind_of = kind(fd).map_err(io)?;
    }
    let same = same_file(ours[1], ours[2]).unwrap_or(false);
    let plans = plan(kinds, interactive, same)?;
    let mut made = Stdio { program: Vec::new(), input: None, outputs: Vec::new() };
    for (index, (plan, fd)) in plans.into_iter().zip(ours).enumerate() {
        let pass = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(io);
        let given = match plan {
            Plan::Pass => pass(fd)?,
            Plan::Null => OwnedFd::from(File::open("/dev/null").map_err(io)?),
            Plan::AsOutput => {
                let output = made.program.get(1).ok_or_else(|| Failure::new("no output"))?;
                pass(output.as_fd())?
            }
            Plan::Copy => {
                let (reader, writer) = std::io::pipe().map_err(io)?;
                if index == 0 {
                    made.input = Some(writer.into());
                    reader.into()
                } else {
                    let target = if index == 1 { Target::Output } else { Target::Error };
                    made.outputs.push((reader.into(), target));
                    writer.into()
                }
            }
        };
        made.program.push(given);
    }
    log::debug!("standard descriptors {:?}: {plans:?}", ours.map(|fd| fd.as_raw_fd()));
    Ok(made)
}

fn same_file(left: BorrowedFd<'_>, right: BorrowedFd<'_>) -> std::io::Result<bool> {
    let identity = |fd: BorrowedFd<'_>| -> std::io::Result<(u64, u64)> {
        let metadata = File::from(fd.try_clone_to_owned()?).metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    };
    Ok(identity(left)? == identity(right)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_pass_and_terminals_do_not() {
        let all = |kind| [kind; 3];
        assert_eq!(plan(all(Kind::Harmless), false, false).unwrap(), [Plan::Pass; 3]);
        assert_eq!(
            plan(all(Kind::Terminal), false, true).unwrap(),
            [Plan::Null, Plan::Copy, Plan::AsOutput]
        );
        assert_eq!(
            plan(all(Kind::Terminal), true, false).unwrap(),
            [Plan::Copy, Plan::Copy, Plan::Copy]
        );
        let mixed = [Kind::Harmless, Kind::Harmless, Kind::Terminal];
        assert_eq!(plan(mixed, false, false).unwrap(), [Plan::Pass, Plan::Pass, Plan::Copy]);
    }

    #[test]
    fn folders_and_devices_are_refused() {
        let folder = File::open("/").unwrap();
        let Kind::Refused(what) = kind(folder.as_fd()).unwrap() else { panic!("a folder passed") };
        let kinds = [Kind::Refused(what), Kind::Harmless, Kind::Harmless];
        let message = plan(kinds, true, false).unwrap_err().message;
        assert!(message.contains("standard input is a folder"), "{message}");
        let null = File::open("/dev/null").unwrap();
        assert_eq!(kind(null.as_fd()).unwrap(), Kind::Harmless);
    }
}
