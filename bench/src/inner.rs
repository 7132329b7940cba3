//! The measuring programs: each prints one number a line.

use clap::Subcommand;
use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

#[derive(Debug, Subcommand)]
pub(crate) enum Inner {
    /// Starts and awaits a program so many times; prints the microseconds of each.
    Spawn {
        /// How often.
        times: u32,
        /// Which.
        program: String,
    },
    /// Nanoseconds of system calls: the name and the least of some batches.
    Calls,
    /// Connections to a server that it starts.
    Connections,
    /// That server.
    Answers,
    /// The other process of `dvs-bench link`.
    LinkPeer {
        /// Where its certificate is.
        folder: std::path::PathBuf,
    },
}

/// Batches of each call; the least counts, so that a disturbance does not.
const BATCHES: u32 = 40;
/// Calls in a batch.
const BATCH: u32 = 2000;

pub(crate) fn run(what: &Inner) -> ExitCode {
    match what {
        Inner::Spawn { times, program } => {
            for _ in 0..*times {
                let started = Instant::now();
                let status = Command::new(program).stdin(Stdio::null()).status();
                let took = started.elapsed();
                match status {
                    Ok(status) if status.success() => {
                        println!("{:.1}", took.as_secs_f64() * 1e6);
                    }
                    Ok(status) => return failed(&format!("{program}: {status}")),
                    Err(error) => return failed(&format!("{program}: {error}")),
                }
            }
            ExitCode::SUCCESS
        }
        Inner::LinkPeer { folder } => match crate::link::peer(folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&format!("{error:#}")),
        },
        Inner::Calls => ended(calls()),
        Inner::Connections => ended(crate::network::client()),
        Inner::Answers => ended(crate::network::server()),
    }
}

fn ended(result: std::io::Result<()>) -> ExitCode {
    result.map_or_else(|error| failed(&error.to_string()), |()| ExitCode::SUCCESS)
}

fn failed(reason: &str) -> ExitCode {
    eprintln!("dvs-bench: {reason}");
    ExitCode::FAILURE
}

fn calls() -> std::io::Result<()> {
    let mut zero = std::fs::File::open("/dev/zero")?;
    let null = std::fs::File::open("/dev/null")?;
    let mut byte = [0u8; 1];
    least("effective ids", || {
        black_box(dvs_sys::process::effective_ids());
        Ok(())
    })?;
    least("read 1 B of /dev/zero", || zero.read_exact(&mut byte))?;
    least("lseek", || (&null).seek(SeekFrom::Start(0)).map(|_| ()))?;
    least("fstat", || null.metadata().map(|_| ()))?;
    least("stat /", || std::fs::symlink_metadata("/").map(|_| ()))?;
    Ok(())
}

fn least(name: &str, mut call: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    let mut least = f64::INFINITY;
    for _ in 0..BATCHES {
        let started = Instant::now();
        for _ in 0..BATCH {
            call()?;
        }
        least = least.min(started.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH));
    }
    println!("{name}\t{least:.1}");
    Ok(())
}
