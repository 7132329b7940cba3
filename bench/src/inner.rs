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
    /// Microseconds of calls on files in the working directory: the name and the least of some batches.
    Files,
    /// Runs a shell line, then times another one; prints the milliseconds.
    Timed {
        /// Not timed.
        prepare: String,
        /// Timed.
        command: String,
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
        Inner::Files => ended(files()),
        Inner::Timed { prepare, command } => ended(timed(prepare, command)),
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

/// Batches of each call on files.
const FILE_BATCHES: u32 = 20;
/// Calls in a batch; few enough that a batch is shorter than a lease.
const FILE_BATCH: u32 = 200;

fn files() -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    std::fs::create_dir_all("calls/below")?;
    std::fs::write("calls/below/file", vec![b'x'; 64 << 10])?;
    std::fs::copy("/bin/true", "calls/below/program")?;
    let file = std::fs::File::open("calls/below/file")?;
    let mut page = [0u8; 4096];
    least_of_files("stat", || std::fs::metadata("calls/below/file").map(|_| ()))?;
    least_of_files("stat of no file", || match std::fs::metadata("calls/below/none") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(std::io::Error::other("a file that nobody made")),
    })?;
    least_of_files("read 4 KiB", || file.read_exact_at(&mut page, 8192))?;
    least_of_files("open and close", || std::fs::File::open("calls/below/file").map(|_| ()))?;
    least_of_files("open, read and close", || {
        std::fs::File::open("calls/below/file")?.read_exact_at(&mut page, 8192)
    })?;
    least_of_files("open and close in an image", || {
        std::fs::File::open("/usr/bin/env").map(|_| ())
    })?;
    let number = std::process::id();
    let name = format!("calls/below/new{number}");
    least_of_files("create and unlink", || {
        std::fs::File::create(&name)?;
        std::fs::remove_file(&name)
    })?;
    let written = std::fs::File::create(format!("calls/below/written{number}"))?;
    least_of_files("write 4 KiB", || written.write_all_at(&page, 0))?;
    let mut least = f64::INFINITY;
    for _ in 0..100 {
        let started = Instant::now();
        let status = Command::new("calls/below/program").stdin(Stdio::null()).status()?;
        if !status.success() {
            return Err(std::io::Error::other(status.to_string()));
        }
        least = least.min(started.elapsed().as_secs_f64() * 1e6);
    }
    println!("exec\t{least:.1}");
    std::fs::remove_dir_all("calls")
}

fn least_of_files(
    name: &str,
    mut call: impl FnMut() -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut least = f64::INFINITY;
    for _ in 0..FILE_BATCHES {
        let started = Instant::now();
        for _ in 0..FILE_BATCH {
            call()?;
        }
        least = least.min(started.elapsed().as_secs_f64() * 1e6 / f64::from(FILE_BATCH));
    }
    println!("{name}\t{least:.3}");
    Ok(())
}

fn timed(prepare: &str, command: &str) -> std::io::Result<()> {
    let shell = |line: &str| {
        let status = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(std::io::Error::other(format!("{line}: {status}")))
        }
    };
    shell(prepare)?;
    let started = Instant::now();
    shell(command)?;
    println!("{:.2}", started.elapsed().as_secs_f64() * 1e3);
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
