//! Terminals as standard output of a placed program.

mod support;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use dvs_carry::memory::Delivery;
use dvs_carry::{DrainOutcome, Refusal};
use dvs_sys::terminal::{self, WindowSize};
use support::*;

fn terminal() -> (OwnedFd, OwnedFd) {
    terminal::open_pair(Path::new(terminal::PTMX)).unwrap()
}

/// Reads a master until a word has been seen.
fn read_until(master: &OwnedFd, word: &str) -> String {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (master, wanted) = (master.try_clone().unwrap(), word.to_owned());
    std::thread::spawn(move || {
        let mut seen = String::new();
        let mut buffer = [0; 4096];
        while !seen.contains(&wanted) {
            match dvs_sys::pipe::read(&master, &mut buffer) {
                Ok(count) if count > 0 => seen.push_str(&String::from_utf8_lossy(&buffer[..count])),
                _ => break,
            }
        }
        let _ = sender.send(seen);
    });
    soon(&receiver)
}

#[test]
fn a_program_sees_a_terminal_and_home_processes_its_output() {
    let pair = Pair::new(Delivery::Threaded);
    let (master, slave) = terminal();
    let size = WindowSize { rows: 33, columns: 99, width: 0, height: 0 };
    terminal::set_window_size(&slave, size).unwrap();
    let program = Pair::program();
    let descriptors =
        vec![inherited(1, slave.try_clone().unwrap()), inherited(2, slave.try_clone().unwrap())];
    let locals = pair.carry(program, descriptors).unwrap();
    let script = "[ -t 1 ] && [ -t 2 ] && echo terminal; stty size <&1; echo error >&2; echo end";
    let mut body = spawn(script, locals);
    assert_eq!(wait(&mut body), 0);
    assert_eq!(pair.end(program), DrainOutcome::Drained);
    assert_eq!(read_until(&master, "end\r\n"), "terminal\r\n33 99\r\nerror\r\nend\r\n");
}

#[test]
fn much_output_arrives_whole() {
    let pair = Pair::new(Delivery::Threaded);
    let (master, slave) = terminal();
    let program = Pair::program();
    let locals = pair.carry(program, vec![inherited(1, slave)]).unwrap();
    let mut body = spawn("seq 30000; echo finished", locals);
    let seen = read_until(&master, "finished\r\n");
    let expected: String = (1..=30_000).map(|n| format!("{n}\r\n")).collect();
    assert_eq!(seen, expected + "finished\r\n");
    assert_eq!(wait(&mut body), 0);
    assert_eq!(pair.end(program), DrainOutcome::Drained);
}

#[test]
fn a_child_that_stays_does_not_hold_the_drain() {
    let pair = Pair::new(Delivery::Threaded);
    let (master, slave) = terminal();
    let (input_read, input_write) = pipe();
    let program = Pair::program();
    let write_only = dvs_sys::pipe::reopen(&slave, libc::O_WRONLY).unwrap();
    let descriptors = vec![inherited(0, input_read), inherited(1, write_only)];
    let locals = pair.carry(program, descriptors).unwrap();
    let mut body = spawn("exec 3<&0; (read x <&3; echo late) & echo early; exit 0", locals);
    assert_eq!(wait(&mut body), 0);
    assert_eq!(pair.end(program), DrainOutcome::Drained);
    assert_eq!(read_until(&master, "early\r\n"), "early\r\n");
    dvs_sys::pipe::write(&input_write, b"go\n").unwrap();
    assert_eq!(read_until(&master, "late\r\n"), "late\r\n");
}

#[test]
fn a_new_size_is_told() {
    let pair = Pair::new(Delivery::Threaded);
    let (master, slave) = terminal();
    let program = Pair::program();
    let locals = pair.carry(program, vec![inherited(1, slave)]).unwrap();
    let dvs_carry::Local::Fd(stand_in) = &locals[0].what else { unreachable!() };
    let size = WindowSize { rows: 11, columns: 22, width: 0, height: 0 };
    terminal::set_window_size(&master, size).unwrap();
    pair.home.exporter().window_changed(program);
    until("the stand-in has it", || terminal::window_size(stand_in).unwrap() == size);
}

#[test]
fn a_terminal_that_hangs_up_ends_the_stand_in() {
    let pair = Pair::new(Delivery::Threaded);
    let (master, slave) = terminal();
    let program = Pair::program();
    let locals = pair.carry(program, vec![inherited(1, slave)]).unwrap();
    drop(master);
    let mut body = spawn("while echo x 2>/dev/null; do :; done; exit 6", locals);
    assert_eq!(wait(&mut body), 6);
    assert_eq!(pair.end(program), DrainOutcome::Drained);
}

#[test]
fn terminal_input_stays_at_home() {
    let pair = Pair::new(Delivery::Threaded);
    let (_master, slave) = terminal();
    let clone = || slave.try_clone().unwrap();
    let descriptors = vec![inherited(0, clone()), inherited(1, clone())];
    let refused = pair.home.exporter().export(AWAY, Pair::program(), descriptors);
    assert_eq!(refused, Err(Refusal::TerminalInput { number: 0 }));
    let (input, _writer) = pipe();
    let descriptors = vec![inherited(0, input), inherited(2, clone())];
    let refused = pair.home.exporter().export(AWAY, Pair::program(), descriptors);
    assert_eq!(refused, Err(Refusal::TerminalInput { number: 2 }), "a pager");
    let (ended, _) = pipe();
    let descriptors = vec![inherited(0, ended), inherited(2, clone())];
    pair.home.exporter().export(AWAY, Pair::program(), descriptors).unwrap();
    let null = File::open("/dev/null").unwrap();
    let descriptors = vec![inherited(0, null), inherited(1, clone())];
    pair.home.exporter().export(AWAY, Pair::program(), descriptors).unwrap();
}
