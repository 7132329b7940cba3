//! Preparing a container: the keeper's part and the launcher's.
//!
//! The keeper makes the launcher in new user, mount, ipc, uts and network namespaces, puts it into
//! the cgroups, and maps its ids. The launcher enters a cgroup namespace, makes the stage (see
//! [`root`]), mounts the root there without looking into it, and makes pid 1 in a new pid namespace,
//! which mounts what stands on the stage: a procfs belongs to the pid namespace of who mounts it.
//! Then the launcher drops capabilities, installs the filter, and waits for [`Finish`].

use super::finish::Unfinished;
use super::fuse::minor_of;
use super::root;
use super::{BuildError, Prepared, Step};
use crate::cgroup::Cgroups;
use crate::filter::{self, Cookies};
use crate::frame;
use crate::launcher::inside;
use crate::launcher::script::Base;
use crate::messages::{Finish, Finished};
use crate::network::{self, Handles};
use crate::spec::{ContainerSpec, IdMapping, Network, RootSpec};
use dvs_sys::capability;
use dvs_sys::descriptor::{self, Poll, SocketKind};
use dvs_sys::namespace::{self, IdRange};
use dvs_sys::process::{self, CloneOptions, SingleThreaded};
use dvs_sys::seccomp;
use dvs_sys::untrapped::{self, Untrapped};
use serde::{Deserialize, Serialize};
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest wait for a step of the other side.
const STEP_TIMEOUT: u32 = 15_000;
/// Capabilities of the container's root.
pub(super) const CAPABILITIES: u64 = capability::mask(&[
    capability::CHOWN,
    capability::DAC_OVERRIDE,
    capability::FOWNER,
    capability::FSETID,
    capability::KILL,
    capability::SETGID,
    capability::SETUID,
    capability::SETPCAP,
    capability::NET_BIND_SERVICE,
    capability::SYS_CHROOT,
    capability::MKNOD,
    capability::AUDIT_WRITE,
    capability::SETFCAP,
]);
/// Places of the host on which the stage is mounted; nothing of the host changes, because the mount is
/// in the container's mount namespace.
const MOUNT_POINTS: [&CStr; 5] = [c"/tmp", c"/mnt", c"/var", c"/usr", c"/proc"];

/// Launcher to keeper, while it builds.
#[derive(Debug, Serialize, Deserialize)]
enum FromLauncher {
    /// All is prepared; with the listener, the multiplexer of the container's terminals, the handles of
    /// its network, if it has one of a DC, and, with a FUSE root, its device, whose minor number is
    /// given.
    Done { init: u32, minor: Option<u32>, warnings: Vec<String> },
    /// A step failed.
    Failed { step: String, errno: i32 },
}

/// Pid 1 to launcher.
#[derive(Debug, Serialize, Deserialize)]
enum FromInit {
    /// The stage is furnished; with `ns_last_pid`.
    Done { warnings: Vec<String> },
    /// A step failed.
    Failed { step: String, errno: i32 },
}

/// Prepares the container. `fuse` is set when there is a connection that may have to be aborted.
pub(super) fn prepare(
    alone: SingleThreaded,
    daemon: BorrowedFd<'_>,
    spec: &ContainerSpec,
    cgroups: &Cgroups,
    fuse: &mut Option<u32>,
) -> Result<Prepared, BuildError> {
    let (ours, theirs) = descriptor::socket_pair(SocketKind::Stream).step("make a socket")?;
    let (daemon_end, launcher_end) =
        descriptor::socket_pair(SocketKind::Stream).step("make a socket")?;
    let keeper = process::id();
    let mut flags =
        libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if spec.network != Network::Host {
        flags |= libc::CLONE_NEWNET;
    }
    let options = CloneOptions { flags: flags as u64, ..Default::default() };
    let child = process::fork(alone, options, |_| {
        let context = Context { alone, keeper, spec, socket: theirs.as_fd() };
        context.run(&launcher_end)
    })
    .step("make namespaces (see dvs doctor)")?;
    drop((theirs, launcher_end));

    cgroups.add(child.pid).map_err(|(file, error)| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        BuildError::new(format!("enter the cgroup {}", file.display()), errno)
    })?;
    // Without privilege, groups must be denied before the map may be written.
    let deny_groups = process::effective_ids().0 != 0;
    let (users, groups) = (ranges(&spec.users), ranges(&spec.groups));
    namespace::write_id_maps(child.pid, &users, &groups, deny_groups)
        .step("map user and group ids (more than one id needs root)")?;
    // All files of the child in /proc are written: nobody needs to look at this process any more.
    process::set_dumpable(false).step("become undumpable")?;
    frame::send(ours.as_fd(), &deny_groups, &[]).step("start the launcher")?;

    wait_for(&ours, daemon)?;
    let (message, descriptors) = frame::receive::<FromLauncher>(ours.as_fd())
        .step("the launcher has gone while it built the container")?;
    let mut descriptors = descriptors.into_iter();
    let missing = || BuildError::new("the launcher sent no descriptor", libc::EPROTO);
    match message {
        FromLauncher::Done { init, minor, warnings } => {
            *fuse = minor;
            let listener = descriptors.next().ok_or_else(missing)?;
            let multiplexer = descriptors.next().ok_or_else(missing)?;
            let network = match spec.network {
                Network::Dc(_) => Some(Handles::from(&mut descriptors).ok_or_else(missing)?),
                Network::Loopback | Network::Host => None,
            };
            let init_pidfd = process::pidfd_open(init).step("name pid 1")?;
            Ok(Prepared {
                init,
                init_pidfd,
                launcher: child.pid,
                listener,
                multiplexer,
                network,
                launcher_socket: daemon_end,
                fuse: descriptors.next(),
                warnings,
            })
        }
        FromLauncher::Failed { step, errno } => Err(BuildError { step, errno }),
    }
}

/// Waits for the launcher, and gives up when the daemon goes or the time is over.
fn wait_for(launcher: &OwnedFd, daemon: BorrowedFd<'_>) -> Result<(), BuildError> {
    let mut entries = [Poll::readable(launcher.as_fd()), Poll::readable(daemon)];
    descriptor::poll(&mut entries, Some(STEP_TIMEOUT)).step("wait for the launcher")?;
    match entries.map(|entry| entry.ready != 0) {
        [true, _] => Ok(()),
        [false, true] => Err(BuildError::new("the daemon has gone", libc::ECANCELED)),
        [false, false] => {
            let text = "the launcher did not answer in time";
            Err(BuildError::new(text, libc::ETIMEDOUT))
        }
    }
}

fn ranges(map: &[IdMapping]) -> Vec<IdRange> {
    map.iter()
        .map(|range| IdRange { inside: range.inside, outside: range.outside, count: range.count })
        .collect()
}

/// The launcher while it builds.
struct Context<'a> {
    alone: SingleThreaded,
    keeper: u32,
    spec: &'a ContainerSpec,
    socket: BorrowedFd<'a>,
}

impl Context<'_> {
    fn run(&self, requests: &OwnedFd) -> i32 {
        let prepared = match self.prepare() {
            Ok(prepared) => prepared,
            Err(BuildError { step, errno }) => {
                let _ = frame::send(self.socket, &FromLauncher::Failed { step, errno }, &[]);
                return 1;
            }
        };
        // Without a daemon that asks for it there is nothing to be done: the keeper ends all.
        let Ok((wanted, _)) = frame::receive::<Finish>(requests.as_fd()) else { return 1 };
        let finished = prepared.finish(self.alone, &wanted).and_then(|warnings| {
            frame::send(requests.as_fd(), &Finished::Done(warnings), &[]).step("report")?;
            // The stage goes before any program can be started, and while the daemon does its own
            // part: the kernel waits for all processors here.
            root::drop_stage()?;
            let socket = requests.try_clone().step("take the socket")?;
            prepared.launcher(self.alone, socket)
        });
        match finished {
            Ok(mut launcher) => {
                launcher.run();
                0
            }
            Err(BuildError { step, errno }) => {
                let _ = frame::send(requests.as_fd(), &Finished::Failed { step, errno }, &[]);
                1
            }
        }
    }

    fn prepare(&self) -> Result<Unfinished, BuildError> {
        let spec = self.spec;
        let (groups_denied, _) = frame::receive::<bool>(self.socket).step("wait for the keeper")?;
        let cookie = random_cookie()?;
        // While the host's ids and files can still be used.
        let limit = process::prlimit(0, libc::RLIMIT_NOFILE, None).step("read limits")?;
        process::prlimit(0, libc::RLIMIT_NOFILE, Some((limit.1, limit.1))).step("set limits")?;
        namespace::unshare(libc::CLONE_NEWCGROUP | libc::CLONE_NEWPID)
            .step("make a cgroup and a pid namespace")?;
        let clocks = namespace::open_time_offsets();
        let device = match spec.root {
            // The device must be opened inside the user namespace, by ids that may.
            RootSpec::Fuse { .. } => {
                let file = File::options().read(true).write(true).open("/dev/fuse");
                Some(file.step("open /dev/fuse (see dvs doctor)")?)
            }
            RootSpec::Bind { .. } => None,
        };
        // Of the namespace in which it is opened. Not every user may; there is another way.
        let tun = matches!(spec.network, Network::Dc(_))
            .then(|| File::options().read(true).write(true).open("/dev/net/tun").ok())
            .flatten();
        process::set_group_ids(0, 0, 0).step("become root inside")?;
        if !groups_denied {
            process::set_groups(&[]).step("drop groups")?;
        }
        process::set_user_ids(0, 0, 0).step("become root inside")?;
        process::set_dumpable(false).step("become undumpable")?;
        // After the change of ids, which clears it. The keeper may have died in between.
        process::set_parent_death_signal(libc::SIGKILL).step("bind to the keeper")?;
        if process::parent_id() != self.keeper {
            return Err(BuildError::new("the keeper has gone", libc::ECANCELED));
        }
        let _ = process::set_name(c"dvs-launcher");

        let place = MOUNT_POINTS
            .into_iter()
            .find(|place| Path::new(OsStr::from_bytes(place.to_bytes())).is_dir())
            .ok_or(BuildError::new("find a place to mount the root", libc::ENOENT))?;
        root::set_stage(place, &spec.root, device.as_ref())?;
        let minor = device.as_ref().and_then(|_| {
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            minor_of(&table, &Path::new(OsStr::from_bytes(place.to_bytes())).join(root::ROOT))
        });
        if spec.network != Network::Host {
            namespace::loopback_up().step("bring the loopback device up")?;
        }
        let handles = match &spec.network {
            Network::Dc(network) => Some(network::build(network, tun)?),
            Network::Loopback | Network::Host => None,
        };
        let (init, last_pid, warnings) = self.make_init()?;
        // A daemon outside the user namespace may not walk through the FUSE root, so it is given the
        // device that it makes terminals from.
        let multiplexer = File::options()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open("dev/pts/ptmx")
            .step("open the multiplexer of terminals")?;
        root::leave_host()?;

        let mut groups = process::groups().step("read the groups")?;
        groups.sort_unstable();
        let base = Base {
            calls: Untrapped { cookie },
            capabilities: CAPABILITIES,
            open_files: limit,
            groups,
        };
        for signal in 1..=64 {
            // What the keeper ignored the guest's programs must not find ignored.
            let _ = base.calls.set_ignored(signal, false);
        }
        capability::limit_bounding_set(CAPABILITIES).step("drop capabilities")?;
        let filter = filter::build(&spec.traps, Cookies { ours: cookie, exec: spec.exec_cookie })
            .step("build the filter")?;
        let flags = if spec.wait_killable { seccomp::WAIT_KILLABLE_RECV } else { 0 };
        untrapped::carry(cookie);
        let listener = filter.install_with_listener(flags).step("install the filter")?;
        if let Some(first) = spec.first_pid {
            inside::aim_pids(self.alone, base.calls, &last_pid, Some(first))
                .map_err(|errno| BuildError::new("choose the first pid", errno))?;
        }
        let done = FromLauncher::Done { init, minor, warnings };
        let mut descriptors = vec![listener.as_fd(), multiplexer.as_fd()];
        descriptors.extend(handles.iter().flat_map(Handles::borrow));
        descriptors.extend(device.iter().map(AsFd::as_fd));
        frame::send(self.socket, &done, &descriptors).step("report")?;
        let from_tree = matches!(spec.root, RootSpec::Fuse { .. });
        Ok(Unfinished { base, last_pid, clocks, aimed: spec.first_pid, from_tree })
    }

    /// Makes pid 1 and waits until it has furnished the root: its pid outside, `ns_last_pid`,
    /// warnings.
    fn make_init(&self) -> Result<(u32, File, Vec<String>), BuildError> {
        let (ours, theirs) = descriptor::socket_pair(SocketKind::Stream).step("make a socket")?;
        let child = process::fork(self.alone, CloneOptions::default(), |forked| {
            // The launcher's end of the socket must be closed here, or pid 1 would keep its own
            // connection alive.
            forked.close(ours.as_raw_fd());
            init(forked, self.spec, &theirs)
        })
        .step("make pid 1")?;
        drop(theirs);
        let (message, descriptors) = frame::receive::<FromInit>(ours.as_fd())
            .step("pid 1 has gone while it furnished the stage")?;
        match (message, descriptors.into_iter().next()) {
            (FromInit::Done { warnings }, Some(last_pid)) => {
                // Only now may it forget this connection: until here its end was that of pid 1.
                frame::send(ours.as_fd(), &true, &[]).step("let pid 1 go on")?;
                // It closes its end with everything else that it holds: then it is harmless.
                let _ = frame::receive::<bool>(ours.as_fd());
                Ok((child.pid, File::from(last_pid), warnings))
            }
            (FromInit::Failed { step, errno }, _) => Err(BuildError { step, errno }),
            _ => Err(BuildError::new("pid 1 sent no descriptor", libc::EPROTO)),
        }
    }
}

/// Pid 1: furnishes the stage, then only exists. Children that die are reaped by the kernel, because
/// `SIGCHLD` is ignored, so that no pid stays taken.
fn init(forked: &process::Forked, spec: &ContainerSpec, launcher: &OwnedFd) -> i32 {
    let calls = Untrapped { cookie: 0 };
    let ready = process::set_parent_death_signal(libc::SIGKILL)
        .and_then(|()| calls.set_ignored(libc::SIGCHLD, true))
        .step("become pid 1")
        .and_then(|()| root::furnish(spec));
    match ready {
        Ok((last_pid, warnings)) => {
            let done = FromInit::Done { warnings };
            if frame::send(launcher.as_fd(), &done, &[last_pid.as_fd()]).is_err() {
                return 1;
            }
        }
        Err(BuildError { step, errno }) => {
            let _ = frame::send(launcher.as_fd(), &FromInit::Failed { step, errno }, &[]);
            return 1;
        }
    }
    // The launcher was alive after the death signal was set, or this fails.
    if frame::receive::<bool>(launcher.as_fd()).is_err() {
        return 1;
    }
    let _ = process::set_name(c"init");
    // From where it goes into the new root together with the launcher.
    if std::env::set_current_dir("/").is_err()
        || capability::limit_bounding_set(0).is_err()
        || capability::set(capability::Sets::default(), 0).is_err()
        || forked.close_range(0, u32::MAX).is_err()
    {
        return 1;
    }
    loop {
        // Woken by nothing but signals, all of which are blocked.
        process::pause();
    }
}

fn random_cookie() -> Result<u64, BuildError> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .step("read /dev/urandom")?;
    // 0 would mean that there is none.
    Ok(u64::from_le_bytes(bytes) | 1)
}
