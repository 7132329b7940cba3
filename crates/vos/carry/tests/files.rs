//! Shared open file descriptions: one offset for all who inherited it, on whatever node.

mod support;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use dvs_carry::memory::Delivery;
use dvs_carry::{
    AttachRequest, Carried, CarryMessage, Counts, DrainOutcome, Local, Position, ProgramKey,
    SharedDescription,
};
use support::*;

/// Carries a file as standard output; what the file system's mount would get.
fn attach(pair: &Pair, file: &File) -> AttachRequest {
    let program = Pair::program();
    let descriptors = vec![inherited(1, file.try_clone().unwrap())];
    let locals = pair.carry(program, descriptors).unwrap();
    assert!(matches!(&locals[0].what, Local::Open { path, .. } if path == b"/attached"));
    pair.attached.requests.lock().unwrap().pop().unwrap()
}

#[test]
fn reads_share_the_offset_with_home() {
    let pair = Pair::new(Delivery::Threaded);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"one\ntwo\nthree\nfour\n").unwrap();
    file.seek(SeekFrom::Start(4)).unwrap();
    let request = attach(&pair, &file);
    assert_eq!(request.position, 4);
    assert_eq!(request.attributes.size, 19);
    let shared = request.description;
    assert_eq!(shared.read(Position::Sequential, 4).unwrap(), (b"two\n".to_vec(), 8));
    let mut line = [0; 6];
    file.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"three\n", "home goes on where the other node stopped");
    assert_eq!(shared.read(Position::Sequential, 100).unwrap(), (b"four\n".to_vec(), 19));
    assert_eq!(shared.read(Position::Sequential, 100).unwrap(), (vec![], 19), "the end");
    assert_eq!(shared.read(Position::At(0), 3).unwrap(), (b"one".to_vec(), 3));
    assert_eq!(file.stream_position().unwrap(), 3, "a seek moves it for all");
}

#[test]
fn writers_on_both_nodes_never_overwrite_each_other() {
    let pair = Arc::new(Pair::new(Delivery::Threaded));
    for append in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let file = OpenOptions::new().create(true).append(append).write(true).open(&path).unwrap();
        let remote: Vec<Arc<SharedDescription>> =
            (0..3).map(|_| attach(&pair, &file).description).collect();
        let mut threads = Vec::new();
        for (who, shared) in remote.into_iter().enumerate() {
            threads.push(std::thread::spawn(move || {
                for turn in 0..300 {
                    let line = format!("away {who} {turn} {}\n", "x".repeat(turn % 70));
                    let (length, _) = shared.write(Position::Sequential, line.as_bytes()).unwrap();
                    assert_eq!(length, line.len());
                }
            }));
        }
        let mut own = file.try_clone().unwrap();
        threads.push(std::thread::spawn(move || {
            for turn in 0..300 {
                own.write_all(format!("home 0 {turn} {}\n", "y".repeat(turn % 50)).as_bytes())
                    .unwrap();
            }
        }));
        for thread in threads {
            thread.join().unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mut next = std::collections::HashMap::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            let who = (words.next().unwrap(), words.next().unwrap());
            let turn: usize = words.next().unwrap().parse().unwrap();
            let expected = next.entry(who).or_insert(0);
            assert_eq!(turn, *expected, "{line}");
            *expected += 1;
            let filling = words.next().unwrap();
            let (letter, modulus) = if who.0 == "home" { ("y", 50) } else { ("x", 70) };
            assert_eq!(filling, letter.repeat(turn % modulus), "{line}");
        }
        assert_eq!(next.len(), 4);
        assert!(next.values().all(|&count| count == 300), "{next:?}");
    }
}

#[test]
fn attributes_length_and_errors_are_those_of_home() {
    let pair = Pair::new(Delivery::Threaded);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "0123456789").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let shared = attach(&pair, &file).description;
    shared.truncate(4).unwrap();
    shared.sync(true).unwrap();
    assert_eq!(shared.attributes().unwrap().size, 4);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(shared.attributes().unwrap().links, 0, "deleted and still open");
    assert_eq!(shared.read(Position::At(0), 10).unwrap().0, b"0123");
    assert_eq!(shared.seek(0, libc::SEEK_HOLE as u32).unwrap(), 4);
    assert_eq!(shared.seek(9, libc::SEEK_DATA as u32).unwrap_err(), libc::ENXIO);
    let read_only = File::open("/etc/passwd").unwrap();
    let shared = attach(&pair, &read_only).description;
    assert_eq!(shared.write(Position::Sequential, b"x").unwrap_err(), libc::EBADF);
}

#[test]
fn offsets_that_cannot_be_are_refused_as_by_the_kernel() {
    let pair = Pair::new(Delivery::Threaded);
    let file = tempfile::tempfile().unwrap();
    let shared = attach(&pair, &file).description;
    for offset in [i64::MAX as u64, u64::MAX] {
        let result = shared.write(Position::At(offset), b"xx");
        assert_eq!(result.unwrap_err(), libc::EINVAL);
    }
    assert_eq!(shared.attributes().unwrap().size, 0);
}

#[test]
fn large_reads_and_writes_come_in_one_piece() {
    let pair = Pair::new(Delivery::Threaded);
    let file = tempfile::tempfile().unwrap();
    let shared = attach(&pair, &file).description;
    let data: Vec<u8> = (0..dvs_carry::MAX_PAYLOAD).map(|i| (i % 253) as u8).collect();
    assert_eq!(shared.write(Position::Sequential, &data).unwrap().0, data.len());
    let (back, position) = shared.read(Position::At(0), usize::MAX).unwrap();
    assert_eq!((back.len(), position), (data.len(), data.len() as u64));
    assert_eq!(back, data);
}

#[test]
fn duplicates_stay_duplicates_and_equal_files_do_not_become_ones() {
    let pair = Pair::new(Delivery::Threaded);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let one = File::create(&path).unwrap();
    let two = OpenOptions::new().write(true).open(&path).unwrap();
    let descriptors =
        vec![inherited(1, one.try_clone().unwrap()), inherited(2, one), inherited(3, two)];
    let carried = pair.home.exporter().export(AWAY, Pair::program(), descriptors).unwrap();
    assert!(matches!(carried[0].what, Carried::Description { .. }));
    assert!(matches!(carried[1].what, Carried::DuplicateOf(1)));
    assert!(matches!(carried[2].what, Carried::Description { .. }));
}

#[test]
fn descriptions_end_with_their_last_user_or_their_node() {
    let pair = Pair::new(Delivery::Threaded);
    let file = tempfile::tempfile().unwrap();
    let request = attach(&pair, &file);
    assert_eq!(pair.home.counts().descriptions, 1);
    drop(request);
    until("it is closed at home", || pair.home.counts() == Counts::default());
    let request = attach(&pair, &file);
    pair.network.kill(AWAY);
    assert_eq!(pair.home.counts(), Counts::default());
    drop(request);
    let pair = Pair::new(Delivery::Threaded);
    let request = attach(&pair, &file);
    pair.network.kill(HOME);
    assert_eq!(request.description.read(Position::Sequential, 1).unwrap_err(), libc::EIO);
}

#[test]
fn locks_belong_to_the_description_and_can_be_given_up() {
    use dvs_sys::flock::flock;
    let pair = Pair::new(Delivery::Threaded);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let file = File::create(&path).unwrap();
    let other = File::create(&path).unwrap();
    let shared = attach(&pair, &file).description;
    shared.lock(1, libc::LOCK_EX).unwrap();
    let free = |file: &File| flock(file, libc::LOCK_EX | libc::LOCK_NB).is_ok();
    assert!(!free(&other), "held by the description at home");
    assert!(free(&file), "by this very one");
    shared.lock(2, libc::LOCK_UN).unwrap();
    assert!(free(&other));
    assert_eq!(shared.lock(3, libc::LOCK_SH | libc::LOCK_NB), Err(libc::EWOULDBLOCK));

    // Given up while it waits: the lock is not taken later.
    for call in 100..200 {
        let waiting = lock_in_thread(&shared, call);
        shared.interrupt(call);
        assert_eq!(soon(&waiting), Err(libc::EINTR));
    }
    flock(&other, libc::LOCK_UN).unwrap();
    until("the late lock is given back", || {
        let third = File::create(&path).unwrap();
        free(&third)
    });

    // Waits until it is free.
    flock(&other, libc::LOCK_EX).unwrap();
    let waiting = lock_in_thread(&shared, 5);
    flock(&other, libc::LOCK_UN).unwrap();
    assert_eq!(soon(&waiting), Ok(()));
    assert!(!free(&other));
    // Interrupted before it began; an interrupt of a call that is over is forgotten in time.
    shared.interrupt(6);
    assert_eq!(shared.lock(6, libc::LOCK_EX), Err(libc::EINTR));
}

fn lock_in_thread(
    shared: &Arc<SharedDescription>,
    call: u64,
) -> std::sync::mpsc::Receiver<Result<(), i32>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let shared = Arc::clone(shared);
    std::thread::spawn(move || sender.send(shared.lock(call, libc::LOCK_EX)));
    receiver
}

/// Carries a file and gives its stand-in, as if it had been opened in the tree.
fn opened(pair: &Pair, program: ProgramKey, file: &File, local: &File) -> Arc<SharedDescription> {
    let descriptors = vec![inherited(0, file.try_clone().unwrap())];
    pair.carry(program, descriptors).unwrap();
    let request = pair.attached.requests.lock().unwrap().pop().unwrap();
    let duplicate = |number| (number == 0).then(|| local.try_clone().unwrap().into());
    assert!(pair.away.importer().body_ready(program, duplicate));
    request.description
}

#[test]
fn a_program_that_seeks_back_leaves_the_offset_there() {
    let pair = Pair::new(Delivery::Threaded);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"one\ntwo\nthree\n").unwrap();
    file.rewind().unwrap();
    // What the kernel away has for it: only its offset matters here.
    let mut local = tempfile::tempfile().unwrap();
    for (sought, expected) in [(Some(4), 4), (None, 14)] {
        let program = Pair::program();
        let shared = opened(&pair, program, &file, &local);
        let start = local.stream_position().unwrap();
        let (bytes, _) = shared.read(Position::Sequential, 100).unwrap();
        shared.set_local_offset(start + bytes.len() as u64);
        local.seek(SeekFrom::Current(i64::try_from(bytes.len()).unwrap())).unwrap();
        if let Some(position) = sought {
            local.seek(SeekFrom::Start(position)).unwrap();
        }
        // The open file holds it, here as in the tree.
        assert_eq!(pair.end(program), DrainOutcome::Drained);
        drop(shared);
        assert_eq!(file.stream_position().unwrap(), expected);
    }
    until("descriptions to be closed", || pair.home.counts().descriptions == 0);
}

#[test]
fn a_program_whose_files_cannot_be_watched_is_not_to_run() {
    let pair = Pair::new(Delivery::Threaded);
    let program = Pair::program();
    let file = tempfile::tempfile().unwrap();
    pair.carry(program, vec![inherited(0, file)]).unwrap();
    pair.attached.requests.lock().unwrap().clear();
    assert!(!pair.away.importer().body_ready(program, |_| None));
    pair.away.importer().abort(program);
    until("the description to be dropped", || pair.home.counts().descriptions == 0);
}

#[test]
fn offsets_of_other_programs_and_nodes_are_not_touched() {
    let pair = Pair::new(Delivery::Inline);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"12345").unwrap();
    let program = Pair::program();
    let carried = pair.home.exporter();
    let carried = carried.export(AWAY, program, vec![inherited(0, file.try_clone().unwrap())]);
    let Carried::Description { description, .. } = carried.unwrap()[0].what else { panic!() };
    for (from, whose) in [(AWAY, Pair::program()), (AWAY + 1, program)] {
        let message = CarryMessage::DescriptionMoved { program: whose, description, position: 1 };
        pair.home.deliver(from, message);
    }
    // Far beyond what any file can have: not done, but the drain goes on.
    let position = u64::MAX;
    pair.home.deliver(AWAY, CarryMessage::DescriptionMoved { program, description, position });
    let drained = pair.drain(program);
    pair.home.deliver(AWAY, CarryMessage::Drained { program });
    assert_eq!(soon(&drained), DrainOutcome::Drained);
    assert_eq!(file.stream_position().unwrap(), 5);
}
