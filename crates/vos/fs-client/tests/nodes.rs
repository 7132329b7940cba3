//! Two nodes on one server: what one has done, the other sees.

mod common;

use common::{Pair, in_child, pairs};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn no_timeouts(pair: &Pair) {
    assert!((pair.obeyed)(), "a recall was not obeyed");
}

#[test]
fn what_one_writes_the_other_reads() {
    in_child("what_one_writes_the_other_reads", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("f"), "start").unwrap();
            let mut watch = b.start("watch", "f", &[]);
            for round in 0..300 {
                let text = format!("{round:08}");
                let (from, to) = if round % 3 == 2 { (b, a) } else { (a, b) };
                // Same length, in place: nothing but the content changes.
                if round % 2 == 0 {
                    fs::write(from.at("f"), &text).unwrap();
                } else {
                    use std::os::unix::fs::FileExt;
                    let file = fs::OpenOptions::new().write(true).open(from.at("f")).unwrap();
                    file.write_all_at(text.as_bytes(), 0).unwrap();
                }
                assert_eq!(fs::read_to_string(to.at("f")).unwrap(), text);
                assert_eq!(fs::metadata(to.at("f")).unwrap().size(), 8);
                // A descriptor that was open all the time.
                watch.poke();
                assert_eq!(watch.line(), text);
            }
            assert_eq!(watch.finish(), 0);
            no_timeouts(&pair);
        }
    });
}

#[test]
fn sizes_modes_and_times_are_never_stale() {
    in_child("sizes_modes_and_times_are_never_stale", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("f"), "").unwrap();
            for round in 0..300u32 {
                let size = u64::from(round * 37 % 500);
                let file = fs::OpenOptions::new().write(true).open(a.at("f")).unwrap();
                file.set_len(size).unwrap();
                assert_eq!(fs::metadata(b.at("f")).unwrap().size(), size);
                let mode = 0o600 | (round % 0o77);
                fs::set_permissions(b.at("f"), fs::Permissions::from_mode(mode)).unwrap();
                assert_eq!(fs::metadata(a.at("f")).unwrap().mode() & 0o777, mode);
            }
            no_timeouts(&pair);
        }
    });
}

#[test]
fn names_are_never_stale() {
    in_child("names_are_never_stale", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            for directory in ["d", "e"] {
                fs::create_dir(a.at(directory)).unwrap();
            }
            for round in 0..300 {
                let (from, to) = if round % 2 == 0 { (a, b) } else { (b, a) };
                // Absent on both, and known to be.
                assert!(!from.at("d/n").exists() && !to.at("d/n").exists());
                fs::write(from.at("d/n"), format!("{round}")).unwrap();
                assert_eq!(fs::read_to_string(to.at("d/n")).unwrap(), format!("{round}"));
                fs::rename(to.at("d/n"), to.at("e/m")).unwrap();
                assert!(!from.at("d/n").exists());
                assert_eq!(fs::read_to_string(from.at("e/m")).unwrap(), format!("{round}"));
                let listed = fs::read_dir(from.at("e")).unwrap().count();
                assert_eq!((listed, fs::read_dir(to.at("d")).unwrap().count()), (1, 0));
                // Replaced by another file.
                fs::write(from.at("d/r"), "replaced").unwrap();
                fs::rename(from.at("d/r"), from.at("e/m")).unwrap();
                assert_eq!(fs::read_to_string(to.at("e/m")).unwrap(), "replaced");
                fs::hard_link(to.at("e/m"), to.at("d/l")).unwrap();
                assert_eq!(fs::metadata(from.at("e/m")).unwrap().nlink(), 2);
                fs::remove_file(from.at("e/m")).unwrap();
                assert!(!to.at("e/m").exists());
                assert_eq!(fs::metadata(to.at("d/l")).unwrap().nlink(), 1);
                fs::remove_file(to.at("d/l")).unwrap();
            }
            no_timeouts(&pair);
        }
    });
}

#[test]
fn a_program_just_written_runs_on_the_other_node() {
    in_child("a_program_just_written_runs_on_the_other_node", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            for round in 0..60 {
                let (from, to) = if round % 2 == 0 { (a, b) } else { (b, a) };
                fs::write(from.at("p"), format!("#!/bin/sh\necho {round}\n")).unwrap();
                fs::set_permissions(from.at("p"), fs::Permissions::from_mode(0o755)).unwrap();
                assert_eq!(to.shell("./p"), round.to_string());
                from.shell(if round % 2 == 0 { "cp /bin/true t" } else { "cp /bin/false t" });
                assert_eq!(to.shell("./t && echo yes || echo no"), ["yes", "no"][round % 2]);
                from.shell("rm t");
                assert_eq!(to.shell("test -e t || echo gone"), "gone");
            }
            no_timeouts(&pair);
        }
    });
}

#[test]
fn appended_lines_of_two_nodes_stay_whole() {
    in_child("appended_lines_of_two_nodes_stay_whole", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            const LINES: usize = 300;
            let times = LINES.to_string();
            let running: Vec<_> = [a, b, a, b]
                .iter()
                .enumerate()
                .map(|(at, node)| node.start("append", "log", &[&format!("writer-{at}"), &times]))
                .collect();
            for writer in running {
                assert_eq!(writer.finish(), 0);
            }
            for node in [a, b] {
                let text = fs::read_to_string(node.at("log")).unwrap();
                assert_eq!(text.lines().count(), 4 * LINES);
                for at in 0..4 {
                    let own = format!("writer-{at} ");
                    let numbers: Vec<usize> = text
                        .lines()
                        .filter_map(|line| line.strip_prefix(&own)?.parse().ok())
                        .collect();
                    assert_eq!(numbers, (0..LINES).collect::<Vec<_>>(), "writer {at}");
                }
            }
            no_timeouts(&pair);
        }
    });
}

#[test]
fn two_nodes_that_change_one_directory_do_not_wait_for_each_other() {
    in_child("two_nodes_that_change_one_directory_do_not_wait_for_each_other", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::create_dir(a.at("d")).unwrap();
            std::thread::scope(|scope| {
                for (at, node) in [a, b, a, b].into_iter().enumerate() {
                    scope.spawn(move || {
                        for round in 0..150 {
                            let name = format!("d/{at}-{}", round % 5);
                            fs::write(node.at(&name), "x").unwrap();
                            let _ =
                                fs::metadata(node.at(&format!("d/{}-{}", (at + 1) % 4, round % 5)));
                            fs::rename(node.at(&name), node.at(&format!("{name}-moved"))).unwrap();
                            fs::remove_file(node.at(&format!("{name}-moved"))).unwrap();
                        }
                    });
                }
            });
            assert_eq!(fs::read_dir(a.at("d")).unwrap().count(), 0);
            assert_eq!(fs::read_dir(b.at("d")).unwrap().count(), 0);
            no_timeouts(&pair);
        }
    });
}

#[test]
fn two_nodes_that_write_one_file_do_not_wait_for_each_other() {
    in_child("two_nodes_that_write_one_file_do_not_wait_for_each_other", || {
        use std::os::unix::fs::FileExt;
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("f"), vec![0; 8192]).unwrap();
            std::thread::scope(|scope| {
                for (at, node) in [a, b, a, b].into_iter().enumerate() {
                    scope.spawn(move || {
                        let options = fs::OpenOptions::new().read(true).write(true).clone();
                        let file = options.open(node.at("f")).unwrap();
                        let own = (at * 1000 + 17) as u64;
                        for round in 0..200u32 {
                            file.write_all_at(&round.to_ne_bytes(), own).unwrap();
                            let mut bytes = [0; 4];
                            file.read_exact_at(&mut bytes, own).unwrap();
                            assert_eq!(u32::from_ne_bytes(bytes), round);
                            assert_eq!(fs::read(node.at("f")).unwrap().len(), 8192);
                        }
                    });
                }
            });
            for node in [a, b] {
                let data = fs::read(node.at("f")).unwrap();
                for at in 0..4 {
                    let own = at * 1000 + 17;
                    assert_eq!(data[own..own + 4], 199u32.to_ne_bytes());
                }
            }
            no_timeouts(&pair);
        }
    });
}

#[test]
fn mapped_writes_reach_the_other_node() {
    in_child("mapped_writes_reach_the_other_node", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("m"), vec![b'.'; 10_000]).unwrap();
            for round in 0..20 {
                let (from, to) = if round % 2 == 0 { (a, b) } else { (b, a) };
                let text = format!("mapped-{round:03}");
                from.helper("map-write", "m", &["4990", &text]);
                assert_eq!(to.helper("map-read", "m", &["4990", "10"]), text);
                assert_eq!(&fs::read(to.at("m")).unwrap()[4990..5000], text.as_bytes());
            }
            no_timeouts(&pair);
        }
    });
}

#[test]
fn a_recall_waits_for_no_reader_that_waits() {
    in_child("a_recall_waits_for_no_reader_that_waits", || {
        // Everything at once, for the one thing that must not happen: a hang.
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::create_dir(a.at("d")).unwrap();
            std::thread::scope(|scope| {
                for (at, node) in [a, b].into_iter().enumerate() {
                    scope.spawn(move || {
                    for round in 0..40 {
                        node.shell(&format!(
                            "echo {round} > d/f{at}; {{ cat d/*; ls -l d; }} > /dev/null 2>&1 || true
                             cp /bin/true d/t{at}; d/t{at}; echo x >> d/log; mv d/t{at} d/t"
                        ));
                    }
                });
                }
            });
            assert_eq!(fs::read(a.at("d/log")).unwrap().len(), 160);
            no_timeouts(&pair);
        }
    });
}
