//! Real programs, carried and native: the same status, the same output, the same rest of the input.

mod support;

use std::os::fd::OwnedFd;

use dvs_carry::DrainOutcome;
use dvs_carry::memory::Delivery;
use dvs_sys::pipe as pipes;
use support::*;

struct Case {
    name: &'static str,
    script: &'static str,
    input: Vec<u8>,
    /// Close standard output after so many bytes.
    read_only: Option<usize>,
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: i32,
    output: Vec<u8>,
    /// What the program left in the pipe.
    rest: Vec<u8>,
}

fn lines(count: usize) -> Vec<u8> {
    (1..=count).flat_map(|n| format!("line {n}\n").into_bytes()).collect()
}

fn cases() -> Vec<Case> {
    let case = |name, script| Case { name, script, input: Vec::new(), read_only: None };
    let with = |name, script, input| Case { name, script, input, read_only: None };
    let cut = |name, script, bytes| Case { name, script, input: vec![], read_only: Some(bytes) };
    vec![
        case("echo", "echo hello"),
        case("nothing", "exit 3"),
        case("no newline", "printf abc"),
        case("killed", "echo first; kill -9 $$"),
        case("terminated", "echo first; kill -TERM $$; sleep 10"),
        case("status", "echo a; exit 42"),
        case("two programs", "echo a; echo b; (echo c); /bin/echo d"),
        case("late writer", "sleep 0.1; echo late"),
        case("megabyte", "head -c 1000000 /dev/zero | tr '\\0' x"),
        case(
            "megabyte in bytes",
            "dd if=/dev/zero bs=1 count=20000 2>&1 | tr '\\0' y | head -c 20000",
        ),
        case(
            "small unbuffered writes",
            "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done",
        ),
        case(
            "odd sizes",
            "for n in 1 4095 4096 4097 8191 65535 65536 65537; do head -c $n /dev/zero; done",
        ),
        case("seq", "seq 200000"),
        case("closed output", "exec >&-; echo x 2>/dev/null; exit 5"),
        case("background child ends first", "(echo child) & wait; echo parent"),
        case("pipeline inside", "seq 1000 | sort -n | tail -1"),
        with("cat", "cat", lines(3)),
        with("cat much", "cat", lines(100_000)),
        with("no input", "cat", vec![]),
        with("one line of three", "read x; echo $x", lines(3)),
        with("two lines of five", "read x; read y; echo $x $y", lines(5)),
        with("nothing of three", "echo hi", lines(3)),
        with("all but last", "for i in 1 2 3 4; do read x; done; echo $x", lines(5)),
        with("dd takes ten", "dd bs=10 count=1 2>/dev/null", lines(9)),
        with("dd takes bytes one by one", "dd bs=1 count=5000 2>/dev/null | cksum", lines(1500)),
        with(
            "dd takes pages",
            "dd bs=4096 count=3 iflag=fullblock 2>/dev/null | cksum",
            lines(7000),
        ),
        with(
            "dd takes a lot",
            "dd bs=100000 count=2 iflag=fullblock 2>/dev/null | cksum",
            lines(50_000),
        ),
        with("one large read", "dd bs=65536 count=1 2>/dev/null | wc -c", vec![b'x'; 50_000]),
        with(
            "one large read and the rest",
            "dd bs=9000 count=1 2>/dev/null | cksum; cksum",
            lines(3000),
        ),
        with("head of bytes", "head -c 4096 >/dev/null; echo done", lines(400)),
        with("sort", "sort -r", lines(5000)),
        with("wc", "wc", lines(60_000)),
        with("tee", "tee /dev/null | tail -2", lines(20_000)),
        with("closes input early", "exec <&-; echo closed", lines(4)),
        with("reads, then closes", "read x; exec <&-; echo $x", lines(4)),
        with("child reads", "(read x; echo child $x); read y; echo parent $y", lines(4)),
        with("children in turns", "for i in 1 2 3; do sh -c 'read x; echo got $x'; done", lines(6)),
        with("while read", "while read a b; do echo $b; done", lines(500)),
        with("read until a word", "while read a b; do [ $b = 7 ] && exit 7; done", lines(20)),
        cut("yes", "yes", 10),
        cut("sigpipe of seq", "seq 100000", 1),
        cut("sigpipe just over the pipe", "seq 15000", 8192),
        cut("ignored sigpipe", "trap '' PIPE; seq 100000 2>/dev/null; exit $?", 1),
        cut("sigpipe in the middle", "seq 300000", 300_000),
        cut("pipe status", "yes | cat", 1),
    ]
}

/// Runs a case; `pair`: between nodes, otherwise natively.
fn run(case: &Case, pair: Option<&Pair>) -> Seen {
    let (input_read, input_write) = pipe();
    let (output_read, output_write) = pipe();
    // The writer must not end before the program: what is left would not be seen.
    let rest_of_input = input_read.try_clone().unwrap();
    let producer = produce(input_write, case.input.clone());
    let reader = match case.read_only {
        None => collect(output_read),
        Some(bytes) => read_some(output_read, bytes),
    };
    let null: OwnedFd = std::fs::File::options().write(true).open("/dev/null").unwrap().into();
    let (mut child, program) = match pair {
        Some(pair) => {
            let program = Pair::program();
            let locals = pair
                .carry(
                    program,
                    vec![inherited(0, input_read), inherited(1, output_write), inherited(2, null)],
                )
                .unwrap();
            (spawn(case.script, locals), Some(program))
        }
        None => {
            let local =
                |number, fd| dvs_carry::LocalDescriptor { number, what: dvs_carry::Local::Fd(fd) };
            let locals = vec![local(0, input_read), local(1, output_write), local(2, null)];
            (spawn(case.script, locals), None)
        }
    };
    let status = wait(&mut child);
    if let (Some(pair), Some(program)) = (pair, program) {
        assert_eq!(pair.end(program), DrainOutcome::Drained, "{}", case.name);
    }
    let output = soon(&reader);
    let rest = soon(&collect(rest_of_input));
    assert_eq!(soon(&producer), None, "{}: all input was taken or is left", case.name);
    let output = if case.read_only.is_some() { Vec::new() } else { output };
    Seen { status, output, rest }
}

fn read_some(fd: OwnedFd, bytes: usize) -> std::sync::mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut taken = 0;
        let mut buffer = [0; 4096];
        while taken < bytes {
            let most = buffer.len().min(bytes - taken);
            match pipes::read(&fd, &mut buffer[..most]).unwrap() {
                0 => break,
                count => taken += count,
            }
        }
        drop(fd);
        sender.send(Vec::new()).unwrap();
    });
    receiver
}

fn compare(delivery: Delivery) {
    let pair = Pair::new(delivery);
    let mut differences = Vec::new();
    for case in cases() {
        let native = run(&case, None);
        let carried = run(&case, Some(&pair));
        if native != carried {
            let short = |seen: &Seen| {
                format!(
                    "status {} output {} bytes {:?} rest {} bytes {:?}",
                    seen.status,
                    seen.output.len(),
                    String::from_utf8_lossy(&seen.output[..seen.output.len().min(60)]),
                    seen.rest.len(),
                    String::from_utf8_lossy(&seen.rest[..seen.rest.len().min(60)]),
                )
            };
            differences.push(format!(
                "{}:\n  native  {}\n  carried {}",
                case.name,
                short(&native),
                short(&carried)
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    until("every stream ends", || pair.home.counts() == dvs_carry::Counts::default());
    until("every stream ends", || pair.away.counts() == dvs_carry::Counts::default());
}

#[test]
fn programs_behave_as_natively() {
    compare(Delivery::Threaded);
}

#[test]
fn programs_behave_as_natively_with_inline_delivery() {
    compare(Delivery::Inline);
}
