//! Connections in a network over nodes: natively, within one node, and between two.

use crate::Bench;
use crate::figures::{Compare, Report, Series};
use crate::programs::{measurer, output};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Bytes of a question and of its answer.
const SMALL: usize = 64;
/// Round trips of one measurement.
const TRIPS: usize = 2000;
/// Connections of one measurement.
const CONNECTIONS: usize = 300;
/// Bytes moved in one measurement.
const BULK: usize = 256 << 20;
const BLOCK: usize = 64 << 10;

/// Runs the comparison.
pub(crate) fn measure(bench: &Bench, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let folder = measurer(bench)?;
    let one = ["--nodes", "1", "--network", "dc"];
    let two = ["--nodes", "2", "--place", "spread", "--network", "dc"];
    let sides: [Option<&[&str]>; 3] = [None, Some(&one), Some(&two)];
    let mut all: BTreeMap<String, [Series; 3]> = BTreeMap::new();
    for round in 0..=rounds {
        for (index, side) in sides.into_iter().enumerate() {
            for line in output(bench, &folder, side, &["connections"])?.lines() {
                let Some((name, value)) = line.split_once('\t') else { continue };
                if let Some(series) = all.entry(name.to_owned()).or_default().get_mut(index)
                    && round > 0
                {
                    series.0.push(value.parse()?);
                }
            }
        }
    }
    for (name, [native, within, between]) in all {
        let lines = vec![
            ("native loopback".to_owned(), native, None),
            ("--network dc, one node".to_owned(), within, Some("×1.1")),
            ("--network dc, two nodes".to_owned(), between, Some("×3")),
        ];
        report.group(&name, "µs", Compare::Ratio, lines);
    }
    Ok(())
}

/// The client: starts its server as a program of its own (which may be placed), and prints medians in
/// microseconds.
pub(crate) fn client() -> std::io::Result<()> {
    let own = std::env::current_exe()?;
    let mut server = Command::new(own)
        .args(["inner", "answers"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(told) = server.stdout.take() {
        BufReader::new(told).read_line(&mut line)?;
    }
    let port: u16 = line.trim().parse().map_err(std::io::Error::other)?;
    let connect = |what: u8| -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.write_all(&[what])?;
        Ok(stream)
    };
    let mut block = vec![7; BLOCK];
    let mut times = Series::default();
    let mut stream = connect(b'e')?;
    for trip in 0..TRIPS + TRIPS / 10 {
        let started = Instant::now();
        stream.write_all(&block[..SMALL])?;
        stream.read_exact(&mut block[..SMALL])?;
        if trip >= TRIPS / 10 {
            times.0.push(started.elapsed().as_secs_f64() * 1e6);
        }
    }
    println!("{SMALL} bytes there and back (medians of {TRIPS})\t{:.1}", times.median());
    drop(stream);
    times = Series::default();
    for _ in 0..CONNECTIONS {
        let started = Instant::now();
        let mut stream = connect(b'c')?;
        stream.read_exact(&mut block[..1])?;
        drop(stream);
        times.0.push(started.elapsed().as_secs_f64() * 1e6);
    }
    println!("connect, one byte, close (medians of {CONNECTIONS})\t{:.1}", times.median());
    let mut stream = connect(b'b')?;
    let started = Instant::now();
    for _ in 0..BULK / BLOCK {
        stream.write_all(&block)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut block[..1])?;
    let each = started.elapsed().as_secs_f64() * 1e6 / (BULK >> 20) as f64;
    println!("one MiB of {}\t{each:.1}", BULK >> 20);
    connect(b'q')?;
    server.wait()?;
    Ok(())
}

/// The server: tells its port, and does what the first byte of each connection says.
pub(crate) fn server() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    std::io::stdout().flush()?;
    let mut block = vec![0; BLOCK];
    loop {
        let mut stream = listener.accept()?.0;
        stream.set_nodelay(true)?;
        stream.read_exact(&mut block[..1])?;
        match block[0] {
            b'e' => {
                while stream.read_exact(&mut block[..SMALL]).is_ok() {
                    stream.write_all(&block[..SMALL])?;
                }
            }
            b'b' => {
                while stream.read(&mut block)? > 0 {}
                stream.write_all(b"x")?;
            }
            b'c' => stream.write_all(b"x")?,
            _ => return Ok(()),
        }
    }
}
