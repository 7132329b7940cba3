//! The scripts, and checks that need more than a script.

use crate::cluster::Cluster;
use crate::folder;
use dvs_pm::placement::Policy;

/// Scripts for bash: name, text.
pub(crate) const SCRIPTS: &[(&str, &str)] = &[
    ("true", "/bin/true; echo $?"),
    ("status", "for i in 0 1 7 127 255; do bash -c \"exit $i\"; echo $?; done"),
    (
        "signal-status",
        "for s in TERM INT KILL ABRT USR1; do sh -c \"kill -$s \\$\\$\"; echo $?; done 2>/dev/null",
    ),
    ("arguments", "/usr/bin/printf '%s|' a '' 'b c' $'d\\ne'; /usr/bin/env -i A=1 'B=x y' env"),
    (
        "umask-cwd-limits",
        "umask 027; ulimit -n 123; cd /usr; exec sh -c 'umask; pwd; ulimit -n; /bin/pwd'",
    ),
    ("ids", "id; id -G"),
    (
        "not-found",
        "/nonexistent/x; echo $?; nosuchcommand; echo $?; /etc/passwd; echo $?; /usr; echo $?",
    ),
    (
        "interpreter",
        "printf '#!/bin/sh\\necho script $0 $1\\n' > s; chmod 755 s; ./s one; printf '#!/no/such\\n' > t; chmod 755 t; ./t; echo $?",
    ),
    ("pipeline", "cat /etc/passwd | sort | md5sum"),
    ("pipe-status", "yes | head -1; echo ${PIPESTATUS[@]}"),
    ("read-loop", "seq 5 | while read x; do /bin/echo l$x; /bin/true; done"),
    ("read-one", "/bin/echo abc | (read x; /bin/echo got $x)"),
    ("background", "for i in 1 2 3; do (sleep 0.1; /bin/echo bg$i | cat) & done | sort; wait"),
    ("big-pipe", "head -c 3000000 /dev/zero | tr '\\0' 'x' | wc -c"),
    ("substitution", "x=$(/bin/echo hello); /bin/echo $x; cat <(/bin/echo one) <(/bin/echo two)"),
    ("dd", "dd if=/dev/zero bs=1000 count=5 2>/dev/null | dd bs=1000 2>/dev/null | wc -c"),
    ("order", "for i in 1 2 3 4 5; do /bin/echo out$i; /bin/echo err$i >&2; done"),
    (
        "kill-wait",
        "sleep 60 & p=$!; kill -TERM $p; wait $p; echo $?; sleep 60 & p=$!; sleep 0.1; kill -9 $p; wait $p 2>/dev/null; echo $?",
    ),
    (
        "trap",
        "bash -c 'trap \"echo got; exit 5\" TERM; echo ready; while :; do sleep 0.05; done' > f & p=$!; until grep -q ready f 2>/dev/null; do sleep 0.02; done; kill -TERM $p; wait $p; echo $?; cat f",
    ),
    ("ignored", "trap '' INT; sh -c 'kill -INT $$; echo alive'"),
    (
        "parent",
        "sh -c 'test $PPID = '$$' && echo same'; bash -c 'sh -c \"echo \\$PPID\" | { read x; test $x = $$ && echo mine; }'",
    ),
    (
        "groups",
        "set -m; sh -c 'test $(ps -o pgid= -p $$) -ge 0; echo ok'; python3 -c 'import os; print(os.getpgrp()==os.getpid(), os.getsid(0)!=0)'",
    ),
    (
        "group-kill",
        "set -m; (sleep 60 & sleep 60 & wait) & sleep 0.2; kill -TERM -- -$!; wait $!; echo $?",
    ),
    (
        "stop-continue",
        "sleep 0.4 & p=$!; kill -STOP $p; sleep 0.1; kill -CONT $p; wait $p; echo $?",
    ),
    (
        "python-tree",
        "python3 -c 'import subprocess; print(subprocess.run([\"sh\",\"-c\",\"exit 3\"]).returncode, subprocess.check_output([\"echo\",\"x\"]))'",
    ),
    (
        "sender",
        "python3 -c '\nimport os,signal,subprocess,sys\nsignal.pthread_sigmask(signal.SIG_BLOCK,[signal.SIGUSR1])\np=subprocess.Popen([sys.executable,\"-c\",\"import signal,os;signal.pthread_sigmask(signal.SIG_BLOCK,[10]);print(1,flush=True);i=signal.sigwaitinfo([10]);print(i.si_pid==os.getppid())\"],stdout=subprocess.PIPE,text=True)\np.stdout.readline();os.kill(p.pid,signal.SIGUSR1);print(p.stdout.read().strip(),p.wait())'",
    ),
    (
        "make",
        "printf 'a:\\n\\techo A\\nb:\\n\\techo B\\nc: a b\\n\\techo C\\n' > mk; make -s -j4 -f mk c | sort",
    ),
    (
        "vfork",
        "python3 -c 'import os; print(os.posix_spawn(\"/bin/true\",[\"true\"],{})>0, os.wait()[1])'",
    ),
    (
        "threads-exec",
        "python3 -c '\nimport os,threading,time\nfor i in range(5):\n  p=os.fork()\n  if p==0:\n    for k in range(3): threading.Thread(target=lambda: os.execv(\"/bin/true\",[\"true\"])).start()\n    time.sleep(20)\n  print(os.waitpid(p,0)[1])'",
    ),
    (
        "deep",
        "f() { if [ $1 -gt 0 ]; then bash -c \"$(declare -f f); f $(($1-1))\"; else /bin/echo bottom; fi; }; f 6",
    ),
    ("append", "for i in 1 2 3; do /bin/echo line$i >> f; done; cat f"),
    (
        "environment-size",
        "export BIG=$(head -c 100000 /dev/zero | tr '\\0' x); sh -c 'echo ${#BIG}'",
    ),
    ("too-big", "/bin/true \"$(head -c 140000 /dev/zero | tr '\\0' x)\"; echo $?"),
    ("nohup-nice", "nice -n 5 nice; nohup /bin/echo n 2>/dev/null"),
    (
        "alarm",
        r#"(python3 -c 'import signal,os; signal.alarm(1); os.execv("/bin/sleep",["sleep","20"])'; echo $?) 2>/dev/null"#,
    ),
];

type Check = fn();

/// Checks by name.
pub(crate) const CHECKS: &[(&str, Check)] = &[
    ("three-hundred-at-once", three_hundred),
    ("kills-around-exec", kills_around_exec),
    ("node-lost", node_lost),
    ("figures", figures),
];

fn three_hundred() {
    let cluster = Cluster::start(3, Policy::Spread);
    let folder = folder();
    let script = "for i in $(seq 300); do sh -c \"sleep 0.5; exit $((i % 7))\" & p[$i]=$!; done; \
                  bad=0; for i in $(seq 300); do wait ${p[$i]}; [ $? = $((i % 7)) ] || bad=$((bad+1)); done; echo bad $bad";
    let outcome = crate::bounded("three-hundred-at-once", || cluster.run(script, folder.path()));
    assert_eq!(outcome.output.0, "bad 0\n", "{outcome:?}");
    assert!(crate::mostly_placed(&cluster));
}

fn kills_around_exec() {
    let cluster = Cluster::start(2, Policy::Spread);
    let folder = folder();
    let script = r#"
import os, random, signal, time
random.seed(7)
# Before any fork: a signal that meets Python's own handler in a child would be lost natively, too.
signal.signal(signal.SIGINT, signal.SIG_DFL)
wrong = 0
for i in range(300):
    sig = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[i % 3]
    p = os.fork()
    if p == 0:
        os.execv("/bin/sleep", ["sleep", "7777"])
    time.sleep(random.random() * 0.004)
    os.kill(p, sig)
    s = os.waitpid(p, 0)[1]
    if not (os.WIFSIGNALED(s) and os.WTERMSIG(s) == sig):
        wrong += 1
        print("signal", sig, "status", s)
print("wrong", wrong)
"#;
    std::fs::write(folder.path().join("kills.py"), script).unwrap();
    let outcome =
        crate::bounded("kills-around-exec", || cluster.run("python3 kills.py", folder.path()));
    assert_eq!(outcome.output.0, "wrong 0\n", "{outcome:?}");
    // Nothing of them is left on the other node.
    for _ in 0..100 {
        let left: Vec<String> = cluster
            .nodes
            .iter()
            .flat_map(|node| node.personality.processes())
            .map(|process| process.command)
            .filter(|command| command.contains("7777"))
            .collect();
        if left.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("programs are left");
}

fn node_lost() {
    let mut cluster = Cluster::start(2, Policy::Spread);
    let folder = folder();
    let script = "sleep 77 & echo started; wait $!; echo $?; /bin/echo after; echo $?";
    let (read, write) = dvs_sys::descriptor::pipe().unwrap();
    let null = || std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let program = cluster.begin(0, script, folder.path(), vec![null(), write, null()]);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(std::fs::File::from(read)));
    assert_eq!(lines.next().unwrap().unwrap(), "started");
    let placed = || cluster.statistics()[0].placed.values().sum::<u64>() == 1;
    for _ in 0..200 {
        if placed() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(placed(), "{:?}", cluster.statistics());
    cluster.lose(2);
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(rest, ["137", "after", "0"]);
    assert_eq!(program.wait().status, 0);
}

fn figures() {
    let folder = folder();
    let script = r#"
import os, time
def spawn():
    p = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(p, 0)
times = []
for i in range(220):
    t = time.perf_counter(); spawn(); times.append((time.perf_counter() - t) * 1e6)
times = sorted(times[20:])
print("min %.0f median %.0f p90 %.0f us" % (times[0], times[100], times[180]))
"#;
    std::fs::write(folder.path().join("bench.py"), script).unwrap();
    let spread = Cluster::start(2, Policy::Spread);
    let home = Cluster::start(2, Policy::Home);
    for round in 0..2 {
        let run = |cluster: &Cluster| cluster.run("python3 bench.py", folder.path()).output.0;
        let native = crate::cluster::native("python3 bench.py", folder.path()).output.0;
        print!("round {round}: native {native}");
        print!("round {round}: local exec {}", run(&home));
        print!("round {round}: placed {}", run(&spread));
    }
}
