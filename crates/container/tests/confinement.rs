//! What holds a container together and apart from everything else: signals, deaths, limits, the
//! filter, clocks, and a hostile guest; as root and as an ordinary user.

mod support;

use dvs_container::launch::{
    DescriptorSource, DescriptorSpec, LaunchSpec, LauncherEvent, SignalSender,
};
use dvs_container::{
    ClockOffsets, Container, ContainerEvent, Limits, Network, RootSpec, StartError,
};
use dvs_sys::descriptor;
use dvs_sys::seccomp::Reception;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use support::{
    LIMIT, eventually, helper, is_running, keeper, output_spec, possible, read_all, spec,
    spec_with, start,
};

fn is_root() -> bool {
    dvs_sys::process::effective_ids().0 == 0
}

/// A launch of the test helper, passed as descriptor 100, because the guest may not see its folder.
fn helper_spec(arguments: &[&str]) -> LaunchSpec {
    let mut spec = output_spec(&["helper"], &[1, 2]);
    spec.path = "/proc/self/fd/100".into();
    spec.arguments.extend(arguments.iter().map(|argument| (*argument).into()));
    let source = DescriptorSource::Passed(2);
    spec.descriptors.push(DescriptorSpec { number: 100, source });
    spec
}

#[test]
fn signals_show_their_true_sender() {
    if !possible() {
        return;
    }
    let running = start(&spec("senders"));
    let launcher = &running.container.launcher;
    let binary = std::fs::File::open(helper()).unwrap();
    let queued = SignalSender { pid: 12_345, uid: 0, code: libc::SI_QUEUE, value: 99 };
    let plain = SignalSender { code: 0, ..queued };
    let message_queue = SignalSender { code: -3, ..queued };
    // A sender whose number is taken here (as by its ghost): only its queued form can be shown.
    let taken = launcher.launch(output_spec(&["sleep", "1000"], &[]), &[]).unwrap();
    let ghost = SignalSender { pid: taken.pid, code: 0, ..queued };
    for (sender, code, pid) in [
        (queued, libc::SI_QUEUE, 12_345),
        (plain, libc::SI_USER, 12_345),
        (message_queue, -3, 12_345),
        (ghost, libc::SI_QUEUE, taken.pid),
    ] {
        let (read, write) = descriptor::pipe().unwrap();
        let mut spec = helper_spec(&["sender", "12"]);
        spec.blocked_signals = 1 << (libc::SIGUSR2 - 1);
        spec.descriptors.retain(|descriptor| descriptor.number != 2);
        let fds = [write.as_fd(), write.as_fd(), binary.as_fd()];
        let launched = launcher.launch(spec, &fds).unwrap();
        drop(write);
        launcher.signal(launched.pid as i32, libc::SIGUSR2, Some(sender)).unwrap();
        assert_eq!(read_all(read), format!("ready\n12 {code} {pid}\n"));
        assert_eq!(running.exit_of(launched.id), 0);
    }
    assert_eq!(launcher.signal(30_000, 0, None), Err(libc::ESRCH));
    assert_eq!(launcher.signal(30_000, 0, Some(queued)), Err(libc::ESRCH));
    assert_eq!(launcher.signal(taken.pid as i32, 0, None), Ok(()));
    assert_eq!(launcher.signal(taken.pid as i32, 99, None), Err(libc::EINVAL));
    launcher.signal(-1, libc::SIGKILL, None).unwrap();
    assert_eq!(running.exit_of(taken.id), libc::SIGKILL);
    running.finish();
}

#[test]
fn a_hostile_guest_gets_nothing() {
    if !possible() {
        return;
    }
    // The root is a folder, so that there is something of the host outside it.
    let root = RootSpec::Bind { path: "/".into(), writable: false };
    let marker = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    // The guest's /tmp is the host's here, so the marker must be hidden from it: by its folder.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let hidden = folder.path().join("marker");
    std::fs::copy(marker.path(), &hidden).unwrap();
    let mut users = vec![([0; 3], "root")];
    if is_root() {
        users.push(([1000; 3], "user 1000"));
    }
    for (ids, who) in users {
        let running = start(&spec_with("hostile", root.clone()));
        let binary = std::fs::File::open(helper()).unwrap();
        let mut spec = helper_spec(&["attack", hidden.to_str().unwrap()]);
        spec.credentials.uids = ids;
        spec.credentials.gids = ids;
        let (status, output) = running.run_spec(spec, &[binary.as_fd()]).unwrap();
        assert!(!output.contains("GAVE"), "as {who}: {output}");
        assert!(
            output.contains("held memory") || output.contains("held writing memory"),
            "{output}"
        );
        assert!(output.ends_with("done\n") && status == 0, "as {who}, {status}: {output}");
        // Pid 1 and the launcher are as they were.
        assert!(running.container.is_alive());
        let (_, output) = running.sh("echo still here");
        assert_eq!(output, "still here\n");
        let limits =
            std::fs::read_to_string(format!("/proc/{}/limits", running.container.launcher_pid));
        if let Ok(limits) = limits {
            assert!(!limits.lines().any(|line| line.starts_with("Max open files            1 ")));
        }
        running.finish();
    }
}

#[test]
fn a_child_before_its_exec_gives_nothing_either() {
    if !possible() {
        return;
    }
    let running = start(&spec("starting"));
    let launcher = &running.container.launcher;
    // It waits for a writer of a FIFO that the guest can see.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg("-m").arg("666").arg(&fifo).status().unwrap().success());
    assert!(Command::new("chmod").arg("755").arg(folder.path()).status().unwrap().success());
    let mut waiting = LaunchSpec::new("/bin/true", &["true"]);
    waiting.pid = Some(30_000);
    let path = fifo.to_str().unwrap().into();
    let source = DescriptorSource::Open { path, flags: 0, offset: None };
    waiting.descriptors = vec![DescriptorSpec { number: 0, source }];
    let id = launcher.next_id();
    let (sender, receiver) = std::sync::mpsc::channel();
    launcher.launch_then(id, waiting, &[], move |result| sender.send(result).unwrap());
    eventually("the waiting child", || {
        running.container.processes().unwrap().iter().any(|(_, inside)| *inside == 30_000)
    });
    let binary = std::fs::File::open(helper()).unwrap();
    let attack = helper_spec(&["attack-starting", "30000"]);
    let (status, output) = running.run_spec(attack, &[binary.as_fd()]).unwrap();
    assert!(!output.contains("GAVE") && output.contains("held tracing"), "{output}");
    assert_eq!(status, 0, "{output}");
    launcher.abort(id);
    assert!(receiver.recv_timeout(LIMIT).unwrap().is_err());
    running.finish();
}

#[test]
fn nested_containers_can_mount_their_proc() {
    if !possible() {
        return;
    }
    let running = start(&spec("nested"));
    let script = "unshare --user --map-root-user --mount --pid --fork \
                  sh -c 'mount -t proc proc /proc && cat /proc/1/comm && ls /proc | grep -c ^[0-9]'";
    let (status, output) = running.sh(script);
    assert_eq!((status, output.lines().next()), (0, Some("sh")), "{output}");
    running.finish();
}

#[test]
fn the_root_has_what_programs_expect() {
    if !possible() {
        return;
    }
    let running = start(&spec("root"));
    let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
                  echo x > /dev/null && head -c 3 /dev/zero | wc -c; echo y > /dev/shm/f && cat /dev/shm/f; \
                  test -c /dev/pts/ptmx && test -c /dev/ptmx || echo no ptmx; test -d /dev/mqueue || echo no mqueue; \
                  test -e /dev/fd/0 && test -e /dev/stdin || echo no stdin; \
                  cat /sys/class/net/lo/operstate; ls /sys/class/net; \
                  test -w /proc/sys/kernel/hostname && echo writable; \
                  wc -c < /proc/timer_list";
    let (status, output) = running.sh(script);
    assert_eq!((status, output.as_str()), (0, "3\ny\nunknown\nlo\n0\n"));
    // A connection over the loopback device.
    let python = "python3 -c 'import socket; s=socket.create_server((\"127.0.0.1\",0)); c=socket.create_connection(s.getsockname()); print(\"connected\")'";
    let (status, output) = running.sh(python);
    if status >> 8 != 127 {
        assert_eq!((status, output.as_str()), (0, "connected\n"));
    }
    running.finish();
}

#[test]
fn a_terminal_can_be_the_controlling_one() {
    if !possible() {
        return;
    }
    let running = start(&spec("terminal"));
    let script = "import os,sys\nm,s=os.openpty()\nprint(os.ttyname(s))";
    let (status, output) = running.run(&["/usr/bin/env", "python3", "-c", script]);
    if status >> 8 == 127 {
        println!("SKIPPED: no python3 here");
    } else {
        assert_eq!((status, output.as_str()), (0, "/dev/pts/0\n"));
    }
    running.finish();
}

#[test]
fn traps_reach_the_listener_and_denials_do_not() {
    if !possible() {
        return;
    }
    let mut spec = spec("traps");
    spec.traps =
        vec![libc::SYS_execve as u32, libc::SYS_kill as u32, libc::SYS_setpgid as u32, 8000];
    spec.exec_cookie = 0x5eed_0001;
    let running = start(&spec);
    let listener = &running.container.listener;
    listener.set_sync_wake_up().unwrap();
    // The launcher's own exec, setsid, kill are not trapped, held or not: nobody answers yet.
    let mut held = output_spec(&["sleep", "1000"], &[]);
    held.hold = true;
    let held = running.container.launcher.launch(held, &[]).unwrap();
    running.container.launcher.signal(held.pid as i32, 0, None).unwrap();
    running.container.launcher.abort(held.id);
    let (status, output) = std::thread::scope(|scope| {
        let answers = scope.spawn(|| {
            let mut calls = Vec::new();
            loop {
                assert!(descriptor::wait_readable(listener.as_fd(), Some(60_000)).unwrap());
                let Reception::Call(call) = listener.receive().unwrap() else { break };
                calls.push(call.number);
                assert!(listener.is_valid(call.id));
                match i64::from(call.number) {
                    libc::SYS_kill => {
                        listener.answer(call.id, 0).unwrap();
                        break;
                    }
                    _ => listener.proceed(call.id).unwrap(),
                }
            }
            calls
        });
        let result = running.sh("/bin/true && /bin/echo traced; kill -KILL $$; echo alive");
        let calls = answers.join().unwrap();
        let execs = calls.iter().filter(|call| i64::from(**call) == libc::SYS_execve).count();
        assert_eq!((execs, calls.len()), (2, 3), "{calls:?}");
        result
    });
    assert_eq!((status, output.as_str()), (0, "traced\nalive\n"));
    running.finish();
}

#[test]
fn denied_calls_fail_as_the_table_says() {
    if !possible() {
        return;
    }
    let running = start(&spec("denied"));
    let calls: Vec<String> = dvs_container::filter::DENIALS
        .iter()
        .map(|denial| format!("{}:{}", denial.number, denial.errno))
        .collect();
    let script = format!(
        "import ctypes,sys\nlibc=ctypes.CDLL(None,use_errno=True)\n\
         for item in '{}'.split():\n  n,e=map(int,item.split(':'))\n  ctypes.set_errno(0)\n  \
         r=libc.syscall(n,0,0,0,0,0,0)\n  \
         if r!=-1 or ctypes.get_errno()!=e: print(n,r,ctypes.get_errno())\nprint('done')",
        calls.join(" ")
    );
    let (status, output) = running.run(&["/usr/bin/env", "python3", "-c", &script]);
    if status >> 8 == 127 {
        println!("SKIPPED: no python3 here");
    } else {
        assert_eq!((status, output.as_str()), (0, "done\n"));
    }
    running.finish();
}

#[test]
fn clocks_are_the_containers_own() {
    if !possible() {
        return;
    }
    let day = 86_400_000_000_000;
    let mut spec = spec("clocks");
    spec.clocks = ClockOffsets { monotonic: 10 * day, boot: 20 * day };
    let running = start(&spec);
    let (_, output) = running.sh("cut -d. -f1 /proc/uptime");
    let inside: i64 = output.trim().parse().unwrap();
    let outside = dvs_sys::clock::boot() / 1_000_000_000;
    let ahead = inside - outside;
    assert!((20 * 86_400 - 60..20 * 86_400 + 60).contains(&ahead), "{ahead}");
    running.finish();
}

#[test]
fn sysctls_and_networks_are_as_asked() {
    if !possible() {
        return;
    }
    let mut own = spec("network");
    own.sysctls = vec![
        ("net.ipv4.ip_local_port_range".into(), "40000 40100".into()),
        ("kernel.no_such_thing".into(), "1".into()),
    ];
    let running = start(&own);
    assert_eq!(running.container.warnings.len(), 1, "{:?}", running.container.warnings);
    let (_, output) = running.sh("cat /proc/sys/net/ipv4/ip_local_port_range");
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["40000", "40100"]);
    running.finish();
    let mut host = spec("host-network");
    host.network = Network::Host;
    let running = start(&host);
    let (_, inside) = running.sh("ls /sys/class/net");
    let outside = Command::new("ls").arg("/sys/class/net").output().unwrap().stdout;
    assert_eq!(inside, String::from_utf8_lossy(&outside));
    running.finish();
}

#[test]
fn limits_hold_or_are_warned_about() {
    if !possible() {
        return;
    }
    let mut spec = spec("limits");
    spec.limits = Limits { milli_cpus: Some(500), memory: Some(64 << 20), pids: Some(20) };
    let running = start(&spec);
    let count = "i=0; while [ $i -lt 60 ]; do sleep 1000 >/dev/null 2>&1 & i=$((i+1)); done 2>/dev/null; echo forked";
    if running.container.cgroups.is_empty() {
        assert!(!running.container.warnings.is_empty());
        println!("SKIPPED: no cgroups here: {:?}", running.container.warnings);
    } else if running.container.warnings.is_empty() {
        let (_, output) = running.sh(count);
        let processes = running.container.processes().unwrap().len();
        assert!(processes <= 20, "{processes} processes: {output}");
        // There may be no room for the process that would send a signal; programs are reached.
        let sent = running.container.launcher.signal(-1, libc::SIGKILL, None);
        assert!(matches!(sent, Ok(()) | Err(libc::EAGAIN)), "{sent:?}");
        let cgroup = |name: &str| {
            let folders = &running.container.cgroups;
            folders
                .iter()
                .find_map(|folder| std::fs::read_to_string(Path::new(folder).join(name)).ok())
        };
        let memory = cgroup("memory.limit_in_bytes").or(cgroup("memory.max")).unwrap();
        assert_eq!(memory.trim(), (64 << 20).to_string());
        let cpu = cgroup("cpu.cfs_quota_us").or(cgroup("cpu.max")).unwrap();
        assert!(cpu.starts_with("50000"), "{cpu}");
    } else {
        println!("SKIPPED: {:?}", running.container.warnings);
    }
    running.finish();
}

/// CPU time of a process and of all that were its children, clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.to_owned();
    fields.split_whitespace().nth(11).unwrap().parse().unwrap()
}

#[test]
fn a_frozen_container_stands_still_and_still_ends() {
    if !possible() {
        return;
    }
    // With limits there is a freezer (where this user may make one), without there are signals.
    for limits in [Limits { pids: Some(1000), ..Default::default() }, Limits::default()] {
        let mut spec = spec("freeze");
        spec.limits = limits;
        let running = start(&spec);
        let mut busy = output_spec(&["sh", "-c", "while :; do :; done"], &[]);
        busy.nice = 10;
        let busy = running.container.launcher.launch(busy, &[]).unwrap().host_pid;
        eventually("some work", || ticks(busy) > 0);
        running.container.freeze(true).unwrap();
        // It stands still once two readings with a pause are the same.
        eventually("standstill", || {
            let before = ticks(busy);
            std::thread::sleep(std::time::Duration::from_millis(50));
            ticks(busy) == before
        });
        let stopped = ticks(busy);
        running.container.freeze(false).unwrap();
        eventually("work again", || ticks(busy) > stopped);
        running.container.freeze(true).unwrap();
        running.finish();
    }
}

#[test]
fn a_killed_keeper_takes_its_container_along() {
    if !possible() {
        return;
    }
    let running = start(&spec("keeper-death"));
    let sleep =
        running.container.launcher.launch(output_spec(&["sleep", "1000"], &[]), &[]).unwrap();
    let mut held = output_spec(&["sleep", "1000"], &[]);
    held.hold = true;
    let held = running.container.launcher.launch(held, &[]).unwrap();
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", running.container.launcher_pid));
    let status = status.unwrap();
    let keeper = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
    dvs_sys::process::kill(keeper.parse().unwrap(), libc::SIGKILL).unwrap();
    loop {
        if running.event() == ContainerEvent::Gone {
            break;
        }
    }
    eventually("the end of the container", || {
        !running.container.is_alive() && !is_running(sleep.host_pid) && !is_running(held.host_pid)
    });
    let error = running.container.launcher.launch(output_spec(&["true"], &[]), &[]).unwrap_err();
    assert_eq!(error.errno, libc::ESHUTDOWN);
    assert_eq!(running.container.launcher.signal(-1, 0, None), Err(libc::ESHUTDOWN));
    running.finish();
}

#[test]
fn a_killed_launcher_or_pid_1_ends_the_container() {
    if !possible() {
        return;
    }
    for kill_launcher in [true, false] {
        let running = start(&spec("launcher-death"));
        let sleep =
            running.container.launcher.launch(output_spec(&["sleep", "1000"], &[]), &[]).unwrap();
        let victim =
            if kill_launcher { running.container.launcher_pid } else { running.container.init };
        dvs_sys::process::kill(victim as i32, libc::SIGKILL).unwrap();
        while running.event() != ContainerEvent::Gone {}
        eventually("the end of the container", || {
            !running.container.is_alive() && !is_running(sleep.host_pid)
        });
        running.finish();
    }
}

#[test]
fn a_killed_daemon_leaves_nothing() {
    if !possible() {
        return;
    }
    let base = if is_root() { "400000000" } else { "0" };
    let mut daemon = Command::new(helper())
        .args(["daemon", base])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut parts = line.trim_end().split('\t');
    let pids: Vec<u32> = parts.next().unwrap().split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 4, "{line}");
    assert!(pids.iter().all(|pid| is_running(*pid)));
    let cgroups: Vec<&str> = parts.filter(|path| !path.is_empty()).collect();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    for pid in pids {
        eventually("the end of all processes", || !is_running(pid));
    }
    for cgroup in cgroups {
        eventually("the removal of the cgroups", || !Path::new(cgroup).exists());
    }
}

#[test]
fn what_cannot_be_built_says_why_and_leaves_nothing() {
    if !possible() {
        return;
    }
    let fail = |spec| Container::start(&spec, &keeper(), |_| {}, Box::new(|_| {})).unwrap_err();
    let error =
        fail(spec_with("no-root", RootSpec::Bind { path: "/no/such".into(), writable: true }));
    let StartError::Build { step, errno } = &error else { panic!("{error}") };
    assert!(step.contains("root") && *errno == libc::ENOENT, "{error}");
    // A root without the folders that a container needs.
    let empty = tempfile::tempdir().unwrap();
    let root = RootSpec::Bind { path: empty.path().into(), writable: false };
    assert!(matches!(fail(spec_with("empty", root)), StartError::Build { .. }));
    let mut odd = spec("odd");
    odd.name = "a/b".into();
    assert!(matches!(fail(odd), StartError::Spec(_)));
    if !is_root() {
        let two = spec("two").with_id_range(100_000);
        assert!(fail(two).to_string().contains("needs root"));
    }
    let mut program = keeper();
    program.arguments = vec!["nonsense".into()];
    let result = Container::start(&spec("nonsense"), &program, |_| {}, Box::new(|_| {}));
    assert!(matches!(result.unwrap_err(), StartError::Lost(_)));
}

#[test]
fn two_containers_do_not_see_each_other() {
    if !possible() {
        return;
    }
    let (one, other) = (start(&spec("one")), start(&spec("other")));
    let sleep = one.container.launcher.launch(output_spec(&["sleep", "1000"], &[]), &[]).unwrap();
    let (_, output) = other.sh("ps ax -o pid=,args= | grep -v 'ps ax' | grep -c 'sleep 1000$'");
    assert_eq!(output.trim(), "0");
    let kill = format!("kill -KILL {} {} 2>/dev/null || echo refused", sleep.pid, sleep.host_pid);
    assert_eq!(other.sh(&kill).1, "refused\n");
    assert!(is_running(sleep.host_pid));
    let pids: Vec<u32> = one.container.processes().unwrap().iter().map(|p| p.0).collect();
    assert!(pids.contains(&sleep.host_pid));
    let others = other.container.processes().unwrap();
    assert!(others.iter().all(|(pid, _)| !pids.contains(pid)));
    other.finish();
    assert!(one.container.is_alive());
    one.finish();
}

#[test]
fn ends_are_reported_with_what_was_used() {
    if !possible() {
        return;
    }
    let running = start(&spec("usage"));
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    running.container.launcher.launch(output_spec(&["sh", "-c", script], &[]), &[]).unwrap();
    let ContainerEvent::Program(LauncherEvent::Exited { cpu, max_resident, status, .. }) =
        running.event()
    else {
        panic!("an exit was expected");
    };
    assert!(status == 0 && cpu.0 > 0 && max_resident > 100, "{cpu:?} {max_resident}");
    running.finish();
}
