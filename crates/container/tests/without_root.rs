//! All container tests again as an ordinary user with one mapped id.

mod support;

use dvs_sys::descriptor;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{LIMIT, helper, possible, read_all_within};

const USER: &str = "54321";
/// In mounts of its own: a `/dev/fuse` that everybody may open, as distributions have it, and fusectl.
const WRAPPER: &str = "mount -t tmpfs t /mnt && mknod -m 666 /mnt/fuse c 10 229 && \
    mount --bind /mnt/fuse /dev/fuse && \
    { mount -t fusectl f /sys/fs/fuse/connections 2>/dev/null || true; } && \
    exec setpriv --reuid \"$1\" --regid \"$1\" --clear-groups -- \"$2\" --test-threads 2";

/// The newest test program with this name beside the running one.
fn test_program(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let files = std::fs::read_dir(own.parent()?).ok()?.flatten();
    let newest = files
        .filter(|entry| {
            let file = entry.file_name().to_string_lossy().into_owned();
            file.strip_prefix(name).is_some_and(|rest| rest.starts_with('-') && !rest.contains('.'))
        })
        .max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok())?;
    Some(newest.path())
}

fn run(name: &str) {
    if dvs_sys::process::effective_ids().0 != 0 {
        println!("SKIPPED: needs root to become another user");
        return;
    }
    if !possible() {
        return;
    }
    let Some(program) = test_program(name) else {
        println!("SKIPPED: the test program {name} has not been built");
        return;
    };
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let make_readable = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    make_readable(folder.path());
    let copy = |from: &Path, name: &str| {
        let to = folder.path().join(name);
        std::fs::copy(from, &to).unwrap();
        make_readable(&to);
        to
    };
    let (helper, program) = (copy(&helper(), "helper"), copy(&program, name));
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", WRAPPER, "sh", USER])
        .arg(&program)
        .env("DVS_TEST_HELPER", &helper)
        .env("HOME", "/tmp")
        .env("TMPDIR", "/tmp")
        .current_dir("/")
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let output = read_all_within(child.stdout.take().unwrap().into(), 5 * LIMIT);
    print!("{output}");
    if let Ok(pidfd) = dvs_sys::process::pidfd_open(child.id()) {
        let limit = u32::try_from(LIMIT.as_millis()).unwrap();
        assert!(descriptor::wait_readable(pidfd.as_fd(), Some(limit)).unwrap());
    }
    assert!(child.wait().unwrap().success(), "as an ordinary user");
    assert!(output.contains("test result: ok"), "{output}");
}

#[test]
fn launching_without_root() {
    run("launching");
}

#[test]
fn confinement_without_root() {
    run("confinement");
}

#[test]
fn fuse_root_without_root() {
    run("fuse_root");
}

#[test]
fn network_without_root() {
    run("network");
}
