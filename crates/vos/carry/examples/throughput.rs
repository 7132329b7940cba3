//! Carried pipes beside native ones, in turns, in one process: bulk in both directions, and the time
//! from a program's end to its drain. Messages go through memory: this is the carrier's own cost.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use dvs_carry::memory::{Delivery, MemoryNetwork};
use dvs_carry::{InheritedDescriptor, Local, ProgramKey};
use dvs_sys::pipe::{self, PipeFlags};

const ROUNDS: usize = 7;
const BULK: usize = 32 << 20;

fn inherited(number: i32, fd: OwnedFd) -> InheritedDescriptor {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    let path = path.into_os_string().into_encoded_bytes();
    InheritedDescriptor { number, fd, flags: 0, position: 0, path }
}

fn move_bytes(reader: OwnedFd, writer: OwnedFd, size: usize, end: impl FnOnce()) -> Duration {
    let start = Instant::now();
    let writing = std::thread::spawn(move || {
        let mut file = std::fs::File::from(writer);
        let block = vec![7; size];
        for _ in 0..BULK / size {
            file.write_all(&block).unwrap();
        }
    });
    let mut file = std::fs::File::from(reader);
    let mut buffer = vec![0; 65536];
    let mut total = 0;
    while total < BULK / size * size {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            count => total += count,
        }
    }
    let time = start.elapsed();
    writing.join().unwrap();
    end();
    assert_eq!(total, BULK / size * size);
    time
}

fn main() {
    let network = MemoryNetwork::new(Delivery::Threaded);
    let (home, away) = (network.carrier(1), network.carrier(2));
    let mut number = 0;
    let mut carry = |which: i32, fd: OwnedFd| {
        number += 1;
        let program = ProgramKey { home: 1, number };
        let carried = home.exporter().export(2, program, vec![inherited(which, fd)]).unwrap();
        let mut locals = away.importer().import(1, program, carried).unwrap();
        let Local::Fd(fd) = locals.remove(0).what else { unreachable!() };
        (program, fd)
    };
    let new = || pipe::pair(PipeFlags::default()).unwrap();
    for size in [65536, 4096, 512] {
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            let (reader, writer) = new();
            times[0].push(move_bytes(reader, writer, size, || {}));
            let (reader, writer) = new();
            let (_, body) = carry(1, writer);
            times[1].push(move_bytes(reader, body, size, || {}));
            let (reader, writer) = new();
            let (program, body) = carry(0, reader);
            times[2].push(move_bytes(body, writer, size, || home.exporter().finished(program)));
        }
        let rate = |times: &mut Vec<Duration>| {
            times.sort();
            BULK as f64 / times[ROUNDS / 2].as_secs_f64() / 1e6
        };
        let [native, output, input] = &mut times;
        let (native, output, input) = (rate(native), rate(output), rate(input));
        println!(
            "writes of {size:5}: native {native:6.0} MB/s, output {output:6.0} (x{:.1}), input {input:6.0} (x{:.1})",
            native / output,
            native / input
        );
    }
    let mut lines = Vec::new();
    for _ in 0..500 {
        let (reader, writer) = new();
        let (program, body) = carry(1, writer);
        let start = Instant::now();
        pipe::write(&body, b"hello\n").unwrap();
        drop(body);
        let (sender, receiver) = channel();
        home.exporter().drain(program, move |_| sender.send(()).unwrap());
        away.importer().body_ended(program, || {});
        receiver.recv().unwrap();
        lines.push(start.elapsed());
        drop(reader);
    }
    lines.sort();
    println!("one line, end and drain: min {:?}, median {:?}", lines[0], lines[250]);
}
