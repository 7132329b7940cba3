//! Programs in a container: started, held, released, aborted; statuses, descriptors, attributes.

mod support;

use dvs_container::ContainerEvent;
use dvs_container::launch::{
    DescriptorSource, DescriptorSpec, LaunchCredentials, LaunchSpec, LaunchStep, LauncherEvent,
    SessionSpec,
};
use dvs_sys::descriptor;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use support::{LIMIT, is_running, output_spec, possible, read_all, spec, start};

#[test]
fn programs_run_and_their_ends_are_reported() {
    if !possible() {
        return;
    }
    let running = start(&spec("ends"));
    assert_eq!(running.run(&["true"]), (0, String::new()));
    assert_eq!(running.sh("echo out; echo err >&2; exit 7"), (7 << 8, "out\nerr\n".into()));
    assert_eq!(running.sh("kill -KILL $$").0, libc::SIGKILL);
    assert_eq!(running.sh("kill -TERM $$").0, libc::SIGTERM);
    let (status, output) = running.sh("echo $$; cat /proc/1/comm; hostname");
    assert_eq!(status, 0);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[1..], ["init", "test-ends"]);
    assert!(lines[0].parse::<u32>().unwrap() >= 8192, "{output}");
    running.finish();
}

#[test]
fn failures_tell_their_step_and_errno() {
    if !possible() {
        return;
    }
    let running = start(&spec("failures"));
    let fail = |change: &dyn Fn(&mut LaunchSpec)| {
        let mut spec = output_spec(&["true"], &[1]);
        change(&mut spec);
        let error = running.run_spec(spec, &[]).unwrap_err();
        (error.step, error.errno)
    };
    assert_eq!(fail(&|s| s.path = "no-such-program".into()), (LaunchStep::Exec, libc::ENOENT));
    assert_eq!(fail(&|s| s.path = "/etc".into()), (LaunchStep::Exec, libc::EACCES));
    assert_eq!(fail(&|s| s.path = "/etc/passwd".into()), (LaunchStep::Exec, libc::EACCES));
    assert_eq!(fail(&|s| s.directory = "/no/such".into()), (LaunchStep::Directory, libc::ENOENT));
    let missing = DescriptorSource::Open { path: "/no/such".into(), flags: 0, offset: None };
    let missing = DescriptorSpec { number: 5, source: missing };
    let failed = fail(&|s| s.descriptors.push(missing.clone()));
    assert_eq!(failed, (LaunchStep::Descriptor, libc::ENOENT));
    assert_eq!(fail(&|s| s.credentials.uids = [77_777_777; 3]), (LaunchStep::Setup, libc::EINVAL));
    assert_eq!(fail(&|s| s.arguments.clear()), (LaunchStep::Request, libc::EINVAL));
    assert_eq!(fail(&|s| s.pid = Some(1)), (LaunchStep::Request, libc::EINVAL));
    for hold in [true, false] {
        let failed = fail(&|s| {
            s.path = "no-such".into();
            s.hold = hold;
        });
        assert_eq!(failed, (LaunchStep::Exec, libc::ENOENT));
    }
    // Nothing of the failed ones is left, and the next one works.
    assert_eq!(running.run(&["true"]).0, 0);
    assert_eq!(running.container.processes().unwrap().len(), 1, "pid 1 alone");
    running.finish();
}

#[test]
fn a_held_program_runs_when_released_and_never_when_aborted() {
    if !possible() {
        return;
    }
    let running = start(&spec("hold"));
    let launcher = &running.container.launcher;
    for release in [true, false] {
        let (read, write) = descriptor::pipe().unwrap();
        let mut spec = output_spec(&["sh", "-c", "echo ran; exit 3"], &[1]);
        spec.hold = true;
        spec.pid = Some(10_000);
        let launched = launcher.launch(spec, &[write.as_fd()]).unwrap();
        assert_eq!(launched.pid, 10_000);
        drop(write);
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", launched.host_pid)).unwrap();
        assert!(status.contains("State:\tt"), "held at a ptrace stop: {status}");
        assert!(!descriptor::wait_readable(read.as_fd(), Some(20)).unwrap(), "it must not run");
        if release {
            launcher.release(launched.id);
            assert_eq!(read_all(read), "ran\n");
            assert_eq!(running.exit_of(launched.id), 3 << 8);
        } else {
            launcher.abort(launched.id);
            assert_eq!(read_all(read), "", "an aborted program must not run");
        }
    }
    // No event of the aborted one came: the next exit is the next program's.
    assert_eq!(running.run(&["true"]).0, 0);
    running.finish();
}

#[test]
fn a_pid_is_given_once() {
    if !possible() {
        return;
    }
    let running = start(&spec("pids"));
    let launcher = &running.container.launcher;
    let mut spec = output_spec(&["sleep", "1000"], &[]);
    spec.pid = Some(9_999);
    let first = launcher.launch(spec.clone(), &[]).unwrap();
    let error = launcher.launch(spec, &[]).unwrap_err();
    assert_eq!((error.step, error.errno), (LaunchStep::Clone, libc::EEXIST));
    assert_eq!(launcher.aim_pids(20_000).map(|last| last >= 8191), Ok(true));
    let next = launcher.launch(output_spec(&["sleep", "1000"], &[]), &[]).unwrap();
    assert_eq!(next.pid, 20_000);
    assert_eq!(launcher.last_pid(), Ok(20_000));
    assert_eq!(launcher.aim_pids(0), Err(libc::EINVAL));
    let mut processes = running.container.processes().unwrap();
    processes.retain(|(outside, _)| *outside != running.container.init);
    let mut expected = vec![(first.host_pid, 9_999), (next.host_pid, 20_000)];
    expected.sort_unstable();
    assert_eq!(processes, expected);
    running.finish();
}

#[test]
fn descriptors_get_their_numbers_and_no_other_is_open() {
    if !possible() {
        return;
    }
    let running = start(&spec("descriptors"));
    let files: Vec<_> = (0..40).map(|_| tempfile::tempfile().unwrap()).collect();
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    // Numbers that collide with whatever the launcher and its child use themselves.
    for base in [2, 3, 7, 20, 100, 1000] {
        let mut spec = output_spec(&["ls", "/proc/self/fd"], &[1]);
        let mut expected: Vec<i32> = vec![0, 1];
        for index in 0..40_u16 {
            let number = base + i32::from(index) * 2;
            expected.push(number);
            let source = DescriptorSource::Passed(2 + index);
            spec.descriptors.insert(0, DescriptorSpec { number, source });
        }
        let (status, output) = running.run_spec(spec, &fds).unwrap();
        let mut numbers: Vec<i32> = output.lines().map(|line| line.parse().unwrap()).collect();
        numbers.sort_unstable();
        // `ls` itself opens one more, the folder.
        assert_eq!((status, numbers.len()), (0, expected.len() + 1));
        assert!(expected.iter().all(|number| numbers.contains(number)), "{numbers:?}");
    }
    // Swapped, duplicated, opened with an offset.
    let script = "cat <&3; echo via4 >&4; echo via9 >&9";
    let mut spec = output_spec(&["sh", "-c", script], &[1]);
    let path = "/etc/passwd";
    let open = DescriptorSource::Open { path: path.into(), flags: 0, offset: Some(5) };
    spec.descriptors.push(DescriptorSpec { number: 9, source: DescriptorSource::DuplicateOf(4) });
    spec.descriptors.push(DescriptorSpec { number: 4, source: DescriptorSource::DuplicateOf(1) });
    spec.descriptors.push(DescriptorSpec { number: 3, source: open });
    let (status, output) = running.run_spec(spec, &[]).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!((status, output), (0, format!("{}via4\nvia9\n", &text[5..])));
    running.finish();
}

#[test]
fn a_program_finds_the_attributes_that_were_asked_for() {
    if !possible() {
        return;
    }
    let root = dvs_sys::process::effective_ids().0 == 0;
    let running = start(&spec("attributes"));
    let script = "umask; pwd; ulimit -n; ulimit -c; nice; cat /proc/self/oom_score_adj; echo $A; ps -o sid=,pgid= -p $$ | tr -s ' '; echo $$";
    let mut spec = output_spec(&["sh", "-c", script], &[1, 2]);
    spec.umask = 0o027;
    spec.directory = "/usr".into();
    spec.limits = vec![(libc::RLIMIT_NOFILE, 77, 88), (libc::RLIMIT_CORE, 0, 0)];
    spec.nice = 5;
    spec.environment.push("A=b c".into());
    spec.blocked_signals = 1 << (libc::SIGUSR1 - 1);
    spec.ignored_signals = 1 << (libc::SIGUSR2 - 1) | 1 << (libc::SIGPIPE - 1);
    spec.oom_score_adjust = Some(321);
    spec.session = SessionSpec::New { terminal: None };
    if root {
        spec.credentials = LaunchCredentials {
            uids: [1000, 1000, 1000],
            gids: [1001, 1001, 1001],
            groups: Some(vec![1001, 27]),
            capabilities: None,
        };
    }
    let (status, output) = running.run_spec(spec.clone(), &[]).unwrap();
    assert_eq!(status, 0, "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..5], ["0027", "/usr", "77", "0", "5"]);
    let rest = &lines[lines.len() - 4..];
    assert_eq!(rest[..2], ["321", "b c"]);
    let own = rest[3];
    assert_eq!(rest[2].split_whitespace().collect::<Vec<_>>(), [own, own]);
    // The same for one that is not traced on its way. (A shell would change its signals.)
    for oom_score_adjust in [Some(321), None] {
        spec.path = "cat".into();
        spec.arguments = vec!["cat".into(), "/proc/self/status".into()];
        spec.oom_score_adjust = oom_score_adjust;
        let (_, output) = running.run_spec(spec.clone(), &[]).unwrap();
        check_status(&output, root);
    }
    running.finish();
}

fn check_status(output: &str, root: bool) {
    let field = |name: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {output}")).trim().replace('\t', " ")
    };
    if root {
        assert_eq!(field("Uid:"), "1000 1000 1000 1000");
        assert_eq!(field("Gid:"), "1001 1001 1001 1001");
        assert_eq!(field("Groups:"), "27 1001");
        assert_eq!(field("CapEff:"), "0000000000000000");
    } else {
        assert_eq!(field("Uid:"), "0 0 0 0");
    }
    assert_eq!(field("CapBnd:"), "00000000a80405fb");
    assert_eq!(field("SigBlk:"), "0000000000000200");
    assert_eq!(field("SigIgn:"), "0000000000001800");
    assert_eq!(field("NoNewPrivs:"), "0");
    assert_eq!(field("Seccomp_filters:"), "1");
}

#[test]
fn root_inside_has_the_containers_capabilities_and_no_others() {
    if !possible() {
        return;
    }
    let running = start(&spec("capabilities"));
    let (_, output) = running.sh("grep ^Cap /proc/self/status | tr '\\t' ' '");
    let expected = "CapInh: 0000000000000000\nCapPrm: 00000000a80405fb\nCapEff: 00000000a80405fb\n\
                    CapBnd: 00000000a80405fb\nCapAmb: 0000000000000000\n";
    assert_eq!(output, expected);
    // Sets of its own, as a placed program brings them.
    let mut spec = output_spec(&["grep", "^Cap", "/proc/self/status"], &[1]);
    let bind = 1 << 10;
    spec.credentials.capabilities = Some([0, bind, bind, bind, bind | 1]);
    let (_, output) = running.run_spec(spec.clone(), &[]).unwrap();
    assert!(output.contains("CapBnd:\t0000000000000401"), "{output}");
    assert!(output.contains("CapAmb:\t0000000000000400"), "{output}");
    spec.credentials.capabilities = Some([0, 1 << 21, 0, 0, 0]);
    let error = running.run_spec(spec, &[]).unwrap_err();
    assert_eq!((error.step, error.errno), (LaunchStep::Setup, libc::EPERM));
    running.finish();
}

#[test]
fn three_hundred_at_once() {
    if !possible() {
        return;
    }
    let running = start(&spec("many"));
    let launcher = &running.container.launcher;
    let mut expected = std::collections::HashMap::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..10)
            .map(|thread| {
                scope.spawn(move || {
                    (0..30)
                        .map(|number| {
                            let code = (thread * 30 + number) % 100;
                            let script = format!("exec 0</dev/null; read x; exit {code}");
                            let mut spec = output_spec(&["sh", "-c", &script], &[]);
                            spec.hold = number % 2 == 0;
                            let id = launcher.next_id();
                            let launched = launcher.launch_as(id, spec, &[]).unwrap();
                            (launched, code)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        for thread in threads {
            for (launched, code) in thread.join().unwrap() {
                launcher.release(launched.id);
                expected.insert(launched.id, code);
            }
        }
    });
    assert_eq!(expected.len(), 300);
    while !expected.is_empty() {
        let ContainerEvent::Program(LauncherEvent::Exited { id, status, .. }) = running.event()
        else {
            panic!("an exit was expected");
        };
        assert_eq!(expected.remove(&id), Some(status >> 8));
    }
    running.finish();
}

#[test]
fn a_launcher_survives_what_makes_no_sense() {
    if !possible() {
        return;
    }
    let running = start(&spec("malformed"));
    let launcher = &running.container.launcher;
    let file = std::fs::File::open("/dev/null").unwrap();
    launcher.send_raw(&[0xff; 100], &[file.as_fd()]).unwrap();
    launcher.send_raw(&[], &[]).unwrap();
    launcher.send_raw(&[0], &[]).unwrap();
    // A launch that is cut off in the middle.
    launcher.send_raw(&[0, 1, 1, 0xff, 0xff, 0xff, 0xff], &[file.as_fd(); 253]).unwrap();
    launcher.release(dvs_container::launch::LaunchId(123_456));
    launcher.abort(dvs_container::launch::LaunchId(123_456));
    let mut spec = output_spec(&["true"], &[]);
    let source = DescriptorSource::Passed(9);
    spec.descriptors.push(DescriptorSpec { number: 1, source });
    let error = launcher.launch(spec.clone(), &[]).unwrap_err();
    assert_eq!((error.step, error.errno), (LaunchStep::Request, libc::EBADF));
    spec.descriptors.clear();
    spec.environment = vec![vec![b'x'; 3 << 20].into()];
    assert_eq!(launcher.launch(spec.clone(), &[]).unwrap_err().errno, libc::E2BIG);
    spec.environment = vec![vec![b'x'; 5 << 20].into()];
    assert_eq!(launcher.launch(spec, &[]).unwrap_err().errno, libc::E2BIG);
    let many = vec![file.as_fd(); 254];
    let error = launcher.launch(output_spec(&["true"], &[]), &many).unwrap_err();
    assert_eq!(error.errno, libc::E2BIG);
    // The same number twice.
    let id = launcher.next_id();
    launcher.launch_as(id, output_spec(&["sleep", "1000"], &[]), &[]).unwrap();
    let error = launcher.launch_as(id, output_spec(&["true"], &[]), &[]).unwrap_err();
    assert_eq!((error.step, error.errno), (LaunchStep::Request, libc::EEXIST));
    assert_eq!(running.run(&["true"]).0, 0);
    running.finish();
}

#[test]
fn large_arguments_arrive_whole() {
    if !possible() {
        return;
    }
    let running = start(&spec("large"));
    let long = "x".repeat(100_000);
    let mut argv = vec!["sh", "-c", "echo $# ${#1} ${#12}", "sh"];
    argv.extend(std::iter::repeat_n(long.as_str(), 12));
    let (status, output) = running.run(&argv);
    assert_eq!((status, output.as_str()), (0, "12 100000 100000\n"));
    running.finish();
}

#[test]
fn a_blocked_launch_blocks_no_other_and_can_be_aborted() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let fifo = folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // The root is the host's; a folder of its own makes the FIFO visible in it.
    let root = dvs_container::RootSpec::Bind { path: folder.path().into(), writable: false };
    for name in ["proc", "dev", "sys", "bin"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    set_mode(folder.path(), 0o755);
    set_mode(&fifo, 0o644);
    let running = start(&support::spec_with("blocked", root));
    let launcher = &running.container.launcher;
    let mut spec = LaunchSpec::new("/bin/true", &["true"]);
    let open = DescriptorSource::Open { path: "/fifo".into(), flags: 0, offset: None };
    spec.descriptors = vec![DescriptorSpec { number: 0, source: open }];
    let id = launcher.next_id();
    let (sender, receiver) = std::sync::mpsc::channel();
    launcher.launch_then(id, spec, &[], move |result| sender.send(result).unwrap());
    // Another is answered meanwhile (there is no such program in that root).
    let error = launcher.launch(LaunchSpec::new("/bin/no", &["no"]), &[]).unwrap_err();
    assert_eq!((error.step, error.errno), (LaunchStep::Exec, libc::ENOENT));
    assert!(receiver.try_recv().is_err(), "the first still waits for a writer of the FIFO");
    launcher.abort(id);
    assert_eq!(receiver.recv_timeout(LIMIT).unwrap().unwrap_err().errno, libc::ECANCELED);
    support::eventually("the aborted child's end", || {
        running.container.processes().unwrap().len() == 1
    });
    running.finish();
}

#[test]
fn files_of_the_tree_are_opened_without_waiting() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for name in ["proc", "dev", "sys"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    set_mode(folder.path(), 0o755);
    set_mode(&fifo, 0o666);
    let root = dvs_container::RootSpec::Bind { path: folder.path().into(), writable: false };
    let running = start(&support::spec_with("opened", root));
    let launcher = &running.container.launcher;
    let open = |path: &[u8], flags| launcher.open(path, flags);
    assert_eq!(open(b"/fifo", libc::O_WRONLY).unwrap_err(), libc::ENXIO, "nobody reads");
    let mut reader = std::fs::File::from(open(b"/fifo", libc::O_RDONLY).unwrap());
    let mut writer = std::fs::File::from(open(b"/fifo", libc::O_WRONLY).unwrap());
    writer.write_all(b"through").unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
    assert_eq!(open(b"/none", libc::O_RDONLY).unwrap_err(), libc::ENOENT);
    assert_eq!(open(b"fifo", libc::O_RDONLY).unwrap_err(), libc::EINVAL);
    running.finish();
}

#[test]
fn groups_are_joined_and_stops_reported() {
    if !possible() {
        return;
    }
    let running = start(&spec("groups"));
    let launcher = &running.container.launcher;
    let mut leader = output_spec(&["sleep", "1000"], &[]);
    leader.session = SessionSpec::OwnGroup;
    let leader = launcher.launch(leader, &[]).unwrap();
    let mut member = output_spec(&["sleep", "1000"], &[]);
    member.session = SessionSpec::GroupOf { leader: leader.pid };
    let member = launcher.launch(member, &[]).unwrap();
    let mut wrong = output_spec(&["sleep", "1000"], &[]);
    wrong.session = SessionSpec::GroupOf { leader: 0 };
    assert_eq!(launcher.launch(wrong, &[]).unwrap_err().step, LaunchStep::Setup);
    let group = -(leader.pid as i32);
    launcher.signal(group, libc::SIGSTOP, None).unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(running.event());
    }
    for launched in [leader, member] {
        let stopped = LauncherEvent::Stopped { id: launched.id, signal: libc::SIGSTOP, order: 0 };
        assert!(seen.contains(&ContainerEvent::Program(stopped)));
    }
    launcher.signal(group, libc::SIGCONT, None).unwrap();
    for _ in 0..2 {
        let event = running.event();
        assert!(matches!(event, ContainerEvent::Program(LauncherEvent::Continued { .. })));
    }
    launcher.signal(group, libc::SIGTERM, None).unwrap();
    let mut ended = 0;
    while ended < 2 {
        if let ContainerEvent::Program(LauncherEvent::Exited { status, .. }) = running.event() {
            assert_eq!(status, libc::SIGTERM);
            ended += 1;
        }
    }
    assert!(!is_running(leader.host_pid) && !is_running(member.host_pid));
    assert_eq!(launcher.signal(leader.pid as i32, libc::SIGTERM, None), Err(libc::ESRCH));
    running.finish();
}

fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
