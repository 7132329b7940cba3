//! What a single program's end does not show: when the ends of pipes are seen, and who outlives whom.

mod support;

use std::os::fd::OwnedFd;

use dvs_carry::memory::Delivery;
use dvs_carry::{Carried, Counts, DrainOutcome, Refusal};
use dvs_sys::pipe::{self as pipes, PAGE};
use support::*;

fn null() -> OwnedFd {
    std::fs::File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

#[test]
fn the_writer_gets_epipe_when_the_body_closes_its_input() {
    let pair = Pair::new(Delivery::Threaded);
    let (input_read, input_write) = pipe();
    let (go_read, go_write) = pipe();
    let program = Pair::program();
    // Its output is another's: the body waits for `go` there.
    let mut locals = pair.carry(program, vec![inherited(0, input_read)]).unwrap();
    locals.push(dvs_carry::LocalDescriptor { number: 1, what: dvs_carry::Local::Fd(go_read) });
    let mut body = spawn("exec 3<&1; read x; exec <&-; read y <&3; exit 9", locals);
    let stopped_by = soon(&produce(input_write, vec![b'\n'; 300_000]));
    assert_eq!(stopped_by, Some(libc::EPIPE), "while the body lives");
    pipes::write(&go_write, b"go\n").unwrap();
    assert_eq!(wait(&mut body), 9);
    assert_eq!(pair.end(program), DrainOutcome::Drained);
}

#[test]
fn what_a_body_leaves_is_for_the_next_one() {
    let pair = Pair::new(Delivery::Threaded);
    let (input_read, input_write) = pipe();
    let producer =
        produce(input_write, (1..=9).flat_map(|n| format!("{n}\n").into_bytes()).collect());
    // As a shell does: `while read` here and a program there, in turns, on one pipe.
    for turn in 0..9 {
        let (output_read, output_write) = pipe();
        let program = Pair::program();
        let input = input_read.try_clone().unwrap();
        let descriptors = vec![inherited(0, input), inherited(1, output_write)];
        let mut body = spawn("read x; echo $x", pair.carry(program, descriptors).unwrap());
        let output = collect(output_read);
        assert_eq!(wait(&mut body), 0);
        pair.end(program);
        assert_eq!(soon(&output), format!("{}\n", turn + 1).into_bytes());
        // A child of another test of this process may hold a copy between its fork and its exec.
        until("the input stream ends", || pair.home.counts().exported == 0);
    }
    assert_eq!(soon(&producer), None);
    assert_eq!(soon(&collect(input_read)), b"", "all taken, nothing lost");
}

#[test]
fn the_reader_sees_the_end_before_the_body_ends() {
    let pair = Pair::new(Delivery::Threaded);
    let (output_read, output_write) = pipe();
    let (input_read, input_write) = pipe();
    let program = Pair::program();
    let descriptors = vec![inherited(0, input_read), inherited(1, output_write)];
    let locals = pair.carry(program, descriptors).unwrap();
    let mut body = spawn("echo a; exec >&-; read x; exit 4", locals);
    assert_eq!(soon(&collect(output_read)), b"a\n", "and the end, while the body waits for input");
    pipes::write(&input_write, b"x\n").unwrap();
    assert_eq!(wait(&mut body), 4);
    pair.end(program);
}

#[test]
fn a_child_that_stays_keeps_the_stream_but_not_the_drain() {
    let pair = Pair::new(Delivery::Threaded);
    let (output_read, output_write) = pipe();
    let (input_read, input_write) = pipe();
    let program = Pair::program();
    let descriptors = vec![inherited(0, input_read), inherited(1, output_write)];
    let locals = pair.carry(program, descriptors).unwrap();
    let mut body = spawn("echo first; exec 3<&0; (read x <&3; echo second) & exit 0", locals);
    assert_eq!(wait(&mut body), 0);
    assert_eq!(pair.end(program), DrainOutcome::Drained);
    let mut buffer = [0; 100];
    let count = pipes::read(&output_read, &mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"first\n", "there at once: it was drained");
    assert_eq!(pair.home.counts().exported, 2, "the child's streams live");
    pipes::write(&input_write, b"go\n").unwrap();
    assert_eq!(soon(&collect(output_read)), b"second\n");
    drop(input_write);
    until("the child's streams end", || pair.home.counts() == Counts::default());
}

#[test]
fn one_pipe_as_output_and_error_keeps_the_order() {
    let pair = Pair::new(Delivery::Threaded);
    let (output_read, output_write) = pipe();
    let program = Pair::program();
    let again = output_write.try_clone().unwrap();
    let other = pipes::reopen(&output_write, libc::O_WRONLY).unwrap();
    for (second, expected) in [(again, "1\n2\n3\n"), (other, "1\n2\n3\n")] {
        let first = output_write.try_clone().unwrap();
        let descriptors = vec![inherited(1, first), inherited(2, second)];
        let carried = pair.home.exporter().export(AWAY, program, descriptors).unwrap();
        assert!(matches!(carried[1].what, Carried::DuplicateOf(1)));
        let locals = pair.away.importer().import(HOME, program, carried).unwrap();
        let mut body = spawn("echo 1; echo 2 >&2; echo 3", locals);
        assert_eq!(wait(&mut body), 0);
        pair.end(program);
        let mut buffer = [0; 100];
        let count = pipes::read(&output_read, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], expected.as_bytes());
    }
}

#[test]
fn programs_one_after_the_other_write_in_order() {
    let pair = Pair::new(Delivery::Threaded);
    let (output_read, output_write) = pipe();
    let output = collect(output_read);
    let mut expected = Vec::new();
    for turn in 0..40 {
        let program = Pair::program();
        let first = output_write.try_clone().unwrap();
        let locals = pair.carry(program, vec![inherited(1, first)]).unwrap();
        let mut body = spawn(&format!("echo {turn}"), locals);
        wait(&mut body);
        pair.end(program);
        // Home's own write follows a placed program's.
        pipes::write(&output_write, b"home\n").unwrap();
        expected.extend(format!("{turn}\nhome\n").into_bytes());
    }
    drop(output_write);
    assert_eq!(soon(&output), expected);
}

#[test]
fn held_output_and_its_end_wait_for_the_last_release() {
    // Inline: what is sent has arrived.
    let pair = Pair::new(Delivery::Inline);
    let (output_read, output_write) = pipe();
    let program = Pair::program();
    let locals = pair.carry(program, vec![inherited(1, output_write)]).unwrap();
    let exporter = pair.home.exporter();
    exporter.hold(program);
    exporter.hold(program);
    let mut body = spawn("echo late", locals);
    assert_eq!(wait(&mut body), 0);
    let drained = pair.drain(program);
    let (sender, sent) = std::sync::mpsc::channel();
    pair.away.importer().body_ended(program, move || sender.send(()).unwrap());
    soon(&sent);
    exporter.release(program);
    let ready = dvs_sys::poll::one(&output_read, libc::POLLIN, Some(std::time::Duration::ZERO));
    assert_eq!(ready.unwrap(), 0, "neither output nor its end");
    assert!(drained.try_recv().is_err());
    exporter.release(program);
    assert_eq!(soon(&drained), DrainOutcome::Drained);
    assert_eq!(soon(&collect(output_read)), b"late\n");
    // One too many does no harm.
    exporter.release(program);
}

#[test]
fn a_write_of_some_pages_arrives_as_one() {
    let pair = Pair::new(Delivery::Threaded);
    for size in [1, 4096, 5000, 8192, 10_000, 16_384] {
        let (output_read, output_write) = pipe();
        let program = Pair::program();
        let mut locals = pair.carry(program, vec![inherited(1, output_write)]).unwrap();
        let dvs_carry::Local::Fd(body) = locals.remove(0).what else { unreachable!() };
        assert_eq!(pipes::write(&body, &vec![1; size]).unwrap(), size);
        let mut buffer = vec![0; 65536];
        assert_eq!(pipes::read(&output_read, &mut buffer).unwrap(), size);
        drop(body);
        pair.end(program);
    }
}

#[test]
fn a_pipe_that_nobody_reads_gives_sigpipe_at_once() {
    let pair = Pair::new(Delivery::Threaded);
    let (output_read, output_write) = pipe();
    drop(output_read);
    let program = Pair::program();
    let locals = pair.carry(program, vec![inherited(1, output_write)]).unwrap();
    assert_eq!(wait(&mut spawn("echo x; exit 0", locals)), 128 + libc::SIGPIPE);
    assert_eq!(pair.end(program), DrainOutcome::Drained);
}

#[test]
fn a_pipe_at_its_end_may_be_shared() {
    let pair = Pair::new(Delivery::Threaded);
    // GNU make gives such a pipe to all but one of its jobs.
    let (input_read, input_write) = pipe();
    drop(input_write);
    for number in [0, 0, 5] {
        let again = input_read.try_clone().unwrap();
        let carried =
            pair.home.exporter().export(AWAY, Pair::program(), vec![inherited(number, again)]);
        assert!(matches!(carried.unwrap()[0].what, Carried::Input { stream: None, .. }));
    }
    let program = Pair::program();
    let locals = pair.carry(program, vec![inherited(0, input_read)]).unwrap();
    assert_eq!(wait(&mut spawn("read x; exit $?", locals)), 1, "the end at once");
    pair.end(program);
}

#[test]
fn shared_readers_stay_at_home() {
    let pair = Pair::new(Delivery::Threaded);
    let exporter = pair.home.exporter();
    let (read, write) = pipe();
    let clone = || read.try_clone().unwrap();
    let refused = exporter.export(AWAY, Pair::program(), vec![inherited(3, clone())]);
    assert_eq!(refused, Err(Refusal::SharedReader { number: 3 }), "a jobserver");
    let first = Pair::program();
    exporter.export(AWAY, first, vec![inherited(0, clone())]).unwrap();
    let refused = exporter.export(AWAY, Pair::program(), vec![inherited(0, clone())]);
    assert_eq!(refused, Err(Refusal::SharedReader { number: 0 }), "the second placed reader");
    exporter.abort(first);
    let again = Pair::program();
    exporter.export(AWAY, again, vec![inherited(0, clone())]).unwrap();
    exporter.abort(again);
    assert_eq!(pair.home.counts(), Counts::default());
    drop(write);
}

#[test]
fn an_abort_leaves_the_pipes_as_they_were() {
    let pair = Pair::new(Delivery::Threaded);
    let (input_read, input_write) = pipe();
    let (output_read, output_write) = pipe();
    pipes::write(&input_write, b"untouched").unwrap();
    let program = Pair::program();
    let descriptors = vec![
        inherited(0, input_read.try_clone().unwrap()),
        inherited(1, output_write.try_clone().unwrap()),
    ];
    let locals = pair.carry(program, descriptors).unwrap();
    until("the input was copied", || match &locals[0].what {
        dvs_carry::Local::Fd(fd) => pipes::available(fd).unwrap() == 9,
        _ => unreachable!(),
    });
    drop(locals);
    pair.home.exporter().abort(program);
    pair.away.importer().abort(program);
    assert_eq!(pair.home.counts(), Counts::default());
    assert_eq!(pair.away.counts(), Counts::default());
    drop(input_write);
    assert_eq!(soon(&collect(input_read)), b"untouched");
    drop(output_write);
    assert_eq!(soon(&collect(output_read)), b"");
}

#[test]
fn a_slow_reader_holds_the_writer_back() {
    let pair = Pair::new(Delivery::Threaded);
    let (output_read, output_write) = pipe();
    let program = Pair::program();
    let mut locals = pair.carry(program, vec![inherited(1, output_write)]).unwrap();
    let Some(dvs_carry::LocalDescriptor { what: dvs_carry::Local::Fd(body), .. }) = locals.pop()
    else {
        unreachable!()
    };
    dvs_sys::descriptor::set_nonblocking(std::os::fd::AsFd::as_fd(&body), true).unwrap();
    let (mut written, mut refusals) = (0, 0);
    while refusals < 100 {
        match pipes::write(&body, &[7; PAGE]) {
            Ok(count) => {
                written += count;
                refusals = 0;
            }
            Err(_) => {
                refusals += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        // Home's pipe, and one page here: so `seq | head` ends as natively.
        assert!(written <= 16 * PAGE + PAGE, "{written} bytes ahead of the reader");
    }
    let output = collect(output_read);
    drop(body);
    assert_eq!(pair.end(program), DrainOutcome::Drained);
    assert_eq!(soon(&output).len(), written);
}

#[test]
fn a_drain_waits_until_the_reader_has_room() {
    let pair = Pair::new(Delivery::Threaded);
    let (output_read, output_write) = pipe();
    // Home's pipe is full: what the body writes has to wait outside.
    let (full, mut left) = (vec![1; 16 * PAGE], 16 * PAGE);
    pipes::write(&output_write, &full).unwrap();
    let program = Pair::program();
    let locals = pair.carry(program, vec![inherited(1, output_write)]).unwrap();
    let mut body = spawn("echo x", locals);
    assert_eq!(wait(&mut body), 0);
    let drained = pair.drain(program);
    pair.away.importer().body_ended(program, || {});
    let early = drained.recv_timeout(std::time::Duration::from_millis(50));
    assert!(early.is_err(), "drained although nothing could be written");
    let mut buffer = vec![0; PAGE];
    while left > 0 {
        left -= pipes::read(&output_read, &mut buffer).unwrap();
    }
    assert_eq!(soon(&drained), DrainOutcome::Drained);
    assert_eq!(soon(&collect(output_read)), b"x\n");
}

#[test]
fn the_death_of_the_other_node_ends_its_streams() {
    let pair = Pair::new(Delivery::Threaded);
    let (input_read, input_write) = pipe();
    let (output_read, output_write) = pipe();
    let program = Pair::program();
    let descriptors =
        vec![inherited(0, input_read.try_clone().unwrap()), inherited(1, output_write)];
    let locals = pair.carry(program, descriptors).unwrap();
    pipes::write(&input_write, b"one\ntwo\n").unwrap();
    let mut body = spawn("read x; echo $x; read y; exec sleep 1000", locals);
    let mut buffer = [0; 100];
    let count = pipes::read(&output_read, &mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"one\n");
    let drained = pair.drain(program);
    pair.network.kill(AWAY);
    assert_eq!(soon(&drained), DrainOutcome::Lost);
    assert_eq!(soon(&collect(output_read)), b"", "the end");
    assert_eq!(pair.home.counts(), Counts::default());
    body.kill().unwrap();
    wait(&mut body);
    drop(input_write);
    let rest = soon(&collect(input_read));
    assert!(b"one\ntwo\n".ends_with(&rest), "{rest:?}");
}

#[test]
fn the_death_of_home_ends_the_bodies_streams() {
    let pair = Pair::new(Delivery::Threaded);
    let (input_read, _input_write) = pipe();
    let (output_read, output_write) = pipe();
    let program = Pair::program();
    let descriptors = vec![inherited(0, input_read), inherited(1, output_write)];
    let locals = pair.carry(program, descriptors).unwrap();
    let mut body = spawn("cat; echo x; exit 0", locals);
    pair.network.kill(HOME);
    assert_eq!(wait(&mut body), 128 + libc::SIGPIPE);
    assert_eq!(pair.away.counts(), Counts::default());
    drop(output_read);
}

#[test]
fn devices_and_directories_are_opened_anew() {
    let pair = Pair::new(Delivery::Threaded);
    let folder = tempfile::tempdir().unwrap();
    let directory = std::fs::File::open(folder.path()).unwrap();
    let descriptors = vec![inherited(0, null()), inherited(1, null()), inherited(7, directory)];
    let carried = pair.home.exporter().export(AWAY, Pair::program(), descriptors).unwrap();
    let path = |index: usize| match &carried[index].what {
        Carried::Path { path, flags, .. } => (path.clone(), flags.cast_signed()),
        other => panic!("{other:?}"),
    };
    assert_eq!(path(0).0, b"/dev/null");
    assert_eq!(path(0).1 & libc::O_ACCMODE, libc::O_RDWR);
    assert_eq!(path(2).0, folder.path().as_os_str().as_encoded_bytes());
}

#[test]
fn sockets_and_the_like_stay_at_home_and_nothing_is_kept() {
    let pair = Pair::new(Delivery::Threaded);
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let (_output_read, output_write) = pipe();
    let descriptors = vec![inherited(1, output_write), inherited(5, socket)];
    let refused = pair.home.exporter().export(AWAY, Pair::program(), descriptors).unwrap_err();
    assert_eq!(refused.to_string(), "descriptor 5 is a socket, which cannot be carried");
    assert_eq!(pair.home.counts(), Counts::default());
}

#[test]
fn hostile_messages_change_nothing() {
    use dvs_carry::CarryMessage::*;
    use dvs_carry::{DescriptionId, DescriptionOperation, Position, ProgramKey, StreamId};
    let pair = Pair::new(Delivery::Threaded);
    let (output_read, output_write) = pipe();
    let (input_read, _input_write) = pipe();
    let program = Pair::program();
    let descriptors = vec![inherited(0, input_read), inherited(1, output_write)];
    let locals = pair.carry(program, descriptors).unwrap();
    for stream in (0..20).map(StreamId) {
        for message in [
            StreamReady { stream },
            StreamData { stream, records: vec![], bytes: b"forged".to_vec() },
            StreamCredit { stream, total: u64::MAX },
            StreamEnd { stream },
            StreamBroken { stream, consumed: u64::MAX },
            Consumed { stream, total: u64::MAX },
            DescriptionRequest {
                request: 1,
                description: DescriptionId(stream.0),
                operation: DescriptionOperation::Read {
                    position: Position::Sequential,
                    length: 10,
                },
            },
            DescriptionDropped { description: DescriptionId(stream.0) },
            Drained { program },
            Drained { program: ProgramKey { home: 9, number: 1 } },
        ] {
            // From a third node, which has nothing to do with these streams.
            pair.home.deliver(3, message.clone());
            pair.away.deliver(3, message);
        }
    }
    assert_eq!(pair.home.counts().exported, 2);
    assert_eq!(pair.away.counts().imported, 2);
    let mut body = spawn("echo real", locals);
    let output = collect(output_read);
    wait(&mut body);
    pair.end(program);
    assert_eq!(soon(&output), b"real\n");
}

/// A body's own child is placed on a third node: what it inherits are stand-ins.
#[test]
fn stand_ins_are_carried_on() {
    let pair = Pair::new(Delivery::Threaded);
    let third = pair.network.carrier(3);
    for (script, input, rest) in [
        ("cat", "one\ntwo\n".repeat(20_000), String::new()),
        ("read x; echo $x", "one\ntwo\n".into(), "two\n".into()),
        ("exec <&-; echo closed", "one\n".into(), "one\n".into()),
    ] {
        let (input_read, input_write) = pipe();
        let (output_read, output_write) = pipe();
        let left = input_read.try_clone().unwrap();
        let producer = produce(input_write, input.clone().into_bytes());
        let output = collect(output_read);
        let outer = Pair::program();
        let descriptors = vec![inherited(0, input_read), inherited(1, output_write)];
        let locals = pair.carry(outer, descriptors).unwrap();
        let again = locals
            .into_iter()
            .map(|local| match local.what {
                dvs_carry::Local::Fd(fd) => inherited(local.number, fd),
                other => panic!("{other:?}"),
            })
            .collect();
        let inner = dvs_carry::ProgramKey { home: AWAY, number: outer.number };
        let carried = pair.away.exporter().export(3, inner, again).unwrap();
        let locals = third.importer().import(AWAY, inner, carried).unwrap();
        let mut body = spawn(script, locals);
        assert_eq!(wait(&mut body), 0, "{script}");
        let (sender, drained) = std::sync::mpsc::channel();
        pair.away.exporter().drain(inner, move |outcome| sender.send(outcome).unwrap());
        third.importer().body_ended(inner, || {});
        assert_eq!(soon(&drained), DrainOutcome::Drained);
        assert_eq!(pair.end(outer), DrainOutcome::Drained);
        let expected = match script {
            "cat" => input.clone(),
            "read x; echo $x" => "one\n".into(),
            _ => "closed\n".into(),
        };
        assert_eq!(soon(&output), expected.into_bytes(), "{script}");
        assert_eq!(soon(&collect(left)), rest.into_bytes(), "{script}");
        assert_eq!(soon(&producer), None);
    }
    until("everything ends", || {
        [&pair.home, &pair.away, &third].iter().all(|carrier| carrier.counts() == Counts::default())
    });
}

#[test]
fn ends_are_seen_through_two_nodes() {
    let pair = Pair::new(Delivery::Threaded);
    let third = pair.network.carrier(3);
    let (input_read, input_write) = pipe();
    let (output_read, output_write) = pipe();
    let outer = Pair::program();
    let descriptors = vec![inherited(0, input_read), inherited(1, output_write)];
    let locals = pair.carry(outer, descriptors).unwrap();
    let again = locals
        .into_iter()
        .map(|local| match local.what {
            dvs_carry::Local::Fd(fd) => inherited(local.number, fd),
            other => panic!("{other:?}"),
        })
        .collect();
    let inner = dvs_carry::ProgramKey { home: AWAY, number: outer.number };
    let carried = pair.away.exporter().export(3, inner, again).unwrap();
    let locals = third.importer().import(AWAY, inner, carried).unwrap();
    let mut body = spawn("yes", locals);
    let mut buffer = [0; 1000];
    pipes::read(&output_read, &mut buffer).unwrap();
    drop(output_read);
    assert_eq!(wait(&mut body), 128 + libc::SIGPIPE);
    assert_eq!(soon(&produce(input_write, vec![1; 300_000])), Some(libc::EPIPE));
}
