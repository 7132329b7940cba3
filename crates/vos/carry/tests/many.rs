//! Many streams at once. One test alone in its process: it counts the process's descriptors.

mod support;

use std::io::Write;

use dvs_carry::memory::Delivery;
use dvs_carry::{Counts, DrainOutcome};
use dvs_sys::pipe as pipes;
use support::*;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn many_streams_neither_mix_nor_leak() {
    let before = descriptors();
    {
        let pair = Pair::new(Delivery::Threaded);
        atomic_writers(&pair);
        thousands(&pair);
        aborted(&pair);
        until("all streams end", || pair.home.counts() == Counts::default());
        until("all streams end", || pair.away.counts() == Counts::default());
    }
    // The engine's threads end soon after their carrier.
    until("every descriptor is closed", || descriptors() == before);
}

/// Writes of at most a page are never mixed, whoever else writes into the same pipe.
fn atomic_writers(pair: &Pair) {
    let (output_read, output_write) = pipe();
    let mut bodies = Vec::new();
    for who in 0..4 {
        let program = Pair::program();
        let locals =
            pair.carry(program, vec![inherited(1, output_write.try_clone().unwrap())]).unwrap();
        // One write for each line, of all sizes up to a page.
        let script = format!(
            "i=0; while [ $i -lt 150 ]; do printf '{who} %0*d\\n' $((i * 27 + 1)) 0; i=$((i+1)); done"
        );
        bodies.push((program, spawn(&script, locals)));
    }
    let mut own = std::fs::File::from(output_write.try_clone().unwrap());
    let home = std::thread::spawn(move || {
        for i in 0..150 {
            own.write_all(format!("9 {:0>1$}\n", 0, i * 27 + 1).as_bytes()).unwrap();
        }
    });
    drop(output_write);
    let output = collect(output_read);
    for (program, mut body) in bodies {
        assert_eq!(wait(&mut body), 0);
        pair.end(program);
    }
    home.join().unwrap();
    let text = String::from_utf8(soon(&output)).unwrap();
    let mut next = [0usize; 10];
    for line in text.lines() {
        let (who, zeros) = line.split_once(' ').unwrap();
        let who: usize = who.parse().unwrap();
        assert!(zeros.bytes().all(|byte| byte == b'0'), "mixed: {line}");
        assert_eq!(zeros.len(), next[who] * 27 + 1, "writer {who}");
        next[who] += 1;
    }
    assert_eq!(next, [150, 150, 150, 150, 0, 0, 0, 0, 0, 150]);
}

/// Many bodies alive at once, each with input and output.
fn thousands(pair: &Pair) {
    const BODIES: usize = 1000;
    let mut alive = Vec::new();
    for index in 0..BODIES {
        let (input_read, input_write) = pipe();
        let (output_read, output_write) = pipe();
        let program = Pair::program();
        let descriptors = vec![inherited(0, input_read), inherited(1, output_write)];
        let mut locals = pair.carry(program, descriptors).unwrap();
        let mut take = || match locals.remove(0).what {
            dvs_carry::Local::Fd(fd) => fd,
            other => panic!("{other:?}"),
        };
        let body = (take(), take());
        pipes::write(&input_write, format!("{index}\n").as_bytes()).unwrap();
        alive.push((program, body, input_write, output_read));
    }
    assert_eq!(pair.home.counts().exported, 2 * BODIES);
    for (_, (input, output), _, _) in &alive {
        let mut buffer = [0; 64];
        let count = pipes::read(input, &mut buffer).unwrap();
        pipes::write(output, &buffer[..count]).unwrap();
    }
    for (index, (program, body, input_write, output_read)) in alive.into_iter().enumerate() {
        drop(body);
        assert_eq!(pair.end(program), DrainOutcome::Drained);
        let mut buffer = [0; 64];
        let count = pipes::read(&output_read, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], format!("{index}\n").as_bytes());
        assert_eq!(pipes::read(&output_read, &mut buffer).unwrap(), 0);
        assert_eq!(pipes::write(&input_write, b"x").unwrap_err().errno, libc::EPIPE);
    }
}

/// Placements that fail at every stage.
fn aborted(pair: &Pair) {
    for turn in 0..200 {
        let (input_read, _input_write) = pipe();
        let (_output_read, output_write) = pipe();
        let program = Pair::program();
        let file = tempfile::tempfile().unwrap();
        let descriptors =
            vec![inherited(0, input_read), inherited(1, output_write), inherited(3, file)];
        let carried = pair.home.exporter().export(AWAY, program, descriptors).unwrap();
        if turn % 2 == 0 {
            let locals = pair.away.importer().import(HOME, program, carried).unwrap();
            pair.away.importer().abort(program);
            drop(locals);
            pair.attached.requests.lock().unwrap().clear();
        }
        pair.home.exporter().abort(program);
    }
}
