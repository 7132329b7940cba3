//! Folders of DVS on one host: who runs here is read from them, and what a crash left is found and
//! removed by them.
//!
//! ```text
//! RUN/                      0700; $XDG_RUNTIME_DIR/dvs, /run/dvs for root, else /tmp/dvs-UID
//!   nodes/NAME/             one daemon that stays: lock, control, link (sockets), log
//!   sessions/ID/            one `dvs run` with nothing running: lock
//!     nodes/NAME/           its daemons
//! STATE/                    0700; /var/lib/dvs for root, else $XDG_STATE_HOME/dvs
//!   dc-ID/                  files of one container: lock, upper
//!   kept/NODE/ID/           a detached container, also ended: record, output
//! ```
//!
//! Every folder's owner holds a lock on its file `lock`, which the kernel drops however the
//! owner ends. A folder whose lock can be taken is stale. `RUN` and `STATE` lie apart because the
//! first is often a small memory file system, and a container's files can be large.

use crate::protocol::Failure;
use dvs_sys::filelock;
use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Environment variable that moves `RUN`.
pub const RUN_VARIABLE: &str = "DVS_RUN_DIR";
/// Environment variable that moves `STATE`.
pub const STATE_VARIABLE: &str = "DVS_STATE_DIR";
/// Longest path of a unix socket, the closing NUL not counted (`unix(7)`).
const MAX_SOCKET_PATH: usize = 107;
/// How often a folder that others remove at the same time is made anew.
const MAX_TRIES: usize = 100;
/// Pause while a member removes the folder of a session that another one joins.
const LEAVING: std::time::Duration = std::time::Duration::from_millis(2);
/// Most daemons looked at in one folder.
pub const MAX_NODES: usize = 256;

/// Where everything of one user is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// Sockets and locks.
    pub run: PathBuf,
    /// Containers' files.
    pub state: PathBuf,
}

/// What decides the folders; taken from the process by [`Folders::of_process`].
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Effective user id.
    pub uid: u32,
    /// `DVS_RUN_DIR`.
    pub run: Option<PathBuf>,
    /// `DVS_STATE_DIR`.
    pub state: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub xdg_state: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
}

impl Folders {
    /// The folders that a user's surroundings lead to. Nothing is made. Relative paths in variables
    /// are ignored, as the XDG specification wants it.
    #[must_use]
    pub fn of(surroundings: &Surroundings) -> Self {
        let absolute = |path: &Option<PathBuf>| path.clone().filter(|path| path.is_absolute());
        let root = surroundings.uid == 0;
        let temporary = || PathBuf::from(format!("/tmp/dvs-{}", surroundings.uid));
        let run = absolute(&surroundings.run).unwrap_or_else(|| {
            if root {
                return PathBuf::from("/run/dvs");
            }
            let runtime = absolute(&surroundings.xdg_runtime).filter(|path| path.is_dir());
            runtime.map_or_else(temporary, |path| path.join("dvs"))
        });
        let state = absolute(&surroundings.state).unwrap_or_else(|| {
            if root {
                return PathBuf::from("/var/lib/dvs");
            }
            let home = || absolute(&surroundings.home).map(|home| home.join(".local/state"));
            let base = absolute(&surroundings.xdg_state).or_else(home);
            base.map_or_else(|| temporary().join("state"), |base| base.join("dvs"))
        });
        Folders { run, state }
    }

    /// The folders of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        Folders::of(&Surroundings {
            uid: own_uid(),
            run: variable(RUN_VARIABLE),
            state: variable(STATE_VARIABLE),
            xdg_runtime: variable("XDG_RUNTIME_DIR"),
            xdg_state: variable("XDG_STATE_HOME"),
            home: variable("HOME"),
        })
    }

    /// Makes `RUN` and its sub-folders, private to this user.
    ///
    /// # Errors
    /// When a folder belongs to somebody else, is open to others or cannot be made.
    pub fn prepare(&self) -> Result<(), Failure> {
        // A command that ends may remove empty ones at the same time.
        let mut last = Ok(());
        for _ in 0..MAX_TRIES {
            let folders = [self.run.clone(), self.nodes(), self.sessions()];
            last = folders.iter().try_for_each(|folder| private_folder(folder));
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Folder of the daemons that stay.
    #[must_use]
    pub fn nodes(&self) -> PathBuf {
        self.run.join("nodes")
    }

    /// Folder of the sessions.
    #[must_use]
    pub fn sessions(&self) -> PathBuf {
        self.run.join("sessions")
    }

    /// Folders of the daemons that stay and are alive, by name.
    #[must_use]
    pub fn live_nodes(&self) -> Vec<PathBuf> {
        live(&self.nodes())
    }

    /// Folders of the daemons of all live sessions.
    #[must_use]
    pub fn live_session_nodes(&self) -> Vec<PathBuf> {
        live(&self.sessions()).iter().flat_map(|session| live(&session.join("nodes"))).collect()
    }

    /// The folder of a new session, which does not exist yet: its daemons make it, so that nothing is
    /// left of a command that is killed before they run.
    #[must_use]
    pub fn new_session(&self) -> PathBuf {
        // Two commands would have to choose the same of 2^48 numbers; then one fails: its names of
        // nodes are taken.
        self.sessions().join(format!("{:012x}", fresh_number(0) >> 16))
    }

    /// The folders that a session's folder lies in.
    #[must_use]
    pub fn of_session(session: &Path, state: &Path) -> Self {
        let run = session.ancestors().nth(2).unwrap_or(Path::new("/"));
        Folders { run: run.to_owned(), state: state.to_owned() }
    }

    /// Removes the folders that hold nothing, so that after the last command nothing is left.
    pub fn tidy(&self) {
        for folder in [self.nodes(), self.sessions(), self.state.clone()] {
            if folder.exists() {
                tidy(&folder);
            }
        }
        // Not empty: somebody else runs.
        let removed = std::fs::remove_dir(&self.run);
        log::trace!("removing {}: {removed:?}", self.run.display());
    }

    /// Removes what crashed daemons, sessions and containers have left. Errors are logged only: the
    /// next command tries again.
    pub fn clean_stale(&self) {
        clean_below(&self.nodes(), |_| true);
        clean_below(&self.sessions(), |_| true);
        clean_below(&self.state, |name| name.starts_with("dc-"));
    }
}

/// Membership in one `dvs run` with nothing running: its folder stays while there is a member.
#[derive(Debug)]
pub struct Session {
    path: PathBuf,
    lock: Option<File>,
}

impl Session {
    /// Makes the folder of a session, unless another member has, and holds its lock.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn join(path: &Path) -> Result<Session, Failure> {
        let _guard = guard(path.parent().unwrap_or(Path::new("/")))?;
        for _ in 0..MAX_TRIES {
            private_folder(path)?;
            // A member that leaves as the last one, for the moment, removes the folder with its lock.
            let Ok(Some(lock)) = take_lock(path, LockKind::Shared) else {
                std::thread::sleep(LEAVING);
                continue;
            };
            if is_at(&lock, &path.join("lock")) {
                return Ok(Session { path: path.to_owned(), lock: Some(lock) });
            }
        }
        Err(Failure::new(format!("{} cannot be locked; what else uses it?", path.display())))
    }

    /// Removes the folder if nobody else of the session is alive: the last one to leave does it.
    pub fn leave(mut self) {
        self.lock.take();
        leave_session(&self.path);
    }
}

/// See [`Session::leave`]; for the command, which is no member: its daemons may have been killed.
pub fn leave_session(path: &Path) {
    if !path.exists() {
        return;
    }
    match take_lock(path, LockKind::Exclusive) {
        Ok(Some(_lock)) => remove_tree_logged(path),
        Ok(None) => {}
        Err(failure) => log::debug!("leaving {}: {failure}", path.display()),
    }
}

/// A folder with its lock held: nobody takes it for stale. Removed with all that is in it when it is
/// dropped.
#[derive(Debug)]
pub struct OwnedFolder {
    /// The folder.
    pub path: PathBuf,
    _lock: File,
}

impl OwnedFolder {
    /// Makes a folder and takes its lock. `None`: somebody alive has it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(path: &Path) -> Result<Option<OwnedFolder>, Failure> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let _guard = guard(parent)?;
        private_folder(path)?;
        let lock = take_lock(path, LockKind::Exclusive)?;
        Ok(lock.map(|lock| OwnedFolder { path: path.to_owned(), _lock: lock }))
    }
}

impl Drop for OwnedFolder {
    fn drop(&mut self) {
        remove_tree_logged(&self.path);
    }
}

/// Socket of a daemon for the command line.
#[must_use]
pub fn control_socket(node: &Path) -> PathBuf {
    node.join("control")
}

/// Socket of a daemon for other daemons.
#[must_use]
pub fn link_socket(node: &Path) -> PathBuf {
    node.join("link")
}

/// Refuses a socket path that the kernel would refuse with an unclear error.
///
/// # Errors
/// A sentence that says what to do.
pub fn check_socket_path(path: &Path) -> Result<(), Failure> {
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the socket path {} is longer than {MAX_SOCKET_PATH} bytes; set {RUN_VARIABLE} to a shorter folder",
        path.display()
    )))
}

/// User id of this process.
#[must_use]
pub fn own_uid() -> u32 {
    dvs_sys::process::effective_ids().0
}

/// A number that was most likely not given before: time and pid mixed. Not a secret.
#[must_use]
pub fn fresh_number(salt: u64) -> u64 {
    let time = u64::try_from(dvs_sys::clock::real()).unwrap_or(0);
    let mut mixed = time ^ (u64::from(std::process::id()) << 40) ^ salt.wrapping_mul(0x9e37_79b9);
    // splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Makes a folder (and its parents) that only this user may enter, or checks the one that is there.
///
/// # Errors
/// When it is a link, somebody else's, open to others or cannot be made.
pub fn private_folder(path: &Path) -> Result<(), Failure> {
    for _ in 0..MAX_TRIES {
        match DirBuilder::new().recursive(true).mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failure("make the folder", path, &error)),
        }
        match std::fs::symlink_metadata(path) {
            Ok(metadata) => return check_private(path, &metadata, own_uid()),
            // The last member of a session has removed it since it was found: make it anew.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failure("look at the folder", path, &error)),
        }
    }
    Err(Failure::new(format!("{} is removed again and again; what else uses it?", path.display())))
}

fn check_private(path: &Path, metadata: &Metadata, uid: u32) -> Result<(), Failure> {
    let shown = path.display();
    if !metadata.is_dir() {
        return Err(Failure::new(format!(
            "{shown} is not a folder; remove it or set {RUN_VARIABLE}"
        )));
    }
    if metadata.uid() != uid {
        return Err(Failure::new(format!(
            "{shown} belongs to user {}, not to you; remove it or set {RUN_VARIABLE}",
            metadata.uid()
        )));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(Failure::new(format!(
            "{shown} is open to other users; run: chmod 700 {shown}"
        )));
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LockKind {
    Shared,
    Exclusive,
}

/// Takes the lock of a folder; `None`: it is held by somebody else.
fn take_lock(folder: &Path, kind: LockKind) -> Result<Option<File>, Failure> {
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.map_err(|error| failure("open", &path, &error))?;
    let taken = match kind {
        LockKind::Shared => filelock::try_shared(&file),
        LockKind::Exclusive => filelock::try_exclusive(&file),
    };
    match taken {
        Ok(true) => Ok(Some(file)),
        Ok(false) => Ok(None),
        Err(error) => Err(failure("lock", &path, &error.into())),
    }
}

fn live(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = entries(folder).filter(|path| is_live(path)).collect();
    found.sort();
    found
}

/// Whether somebody holds the lock of a folder.
fn is_live(folder: &Path) -> bool {
    open_lock(folder).is_ok_and(|lock| matches!(filelock::is_held(&lock), Ok(true)))
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).take(MAX_NODES)
}

fn clean_below(folder: &Path, ours: impl Fn(&str) -> bool) {
    let Ok(guard) = open_guard(folder) else { return };
    // Somebody is making an entry right now: leave the cleaning to the next command.
    if !matches!(filelock::try_exclusive(&guard), Ok(true)) {
        return;
    }
    for path in entries(folder) {
        let named = path.file_name().and_then(|name| name.to_str()).is_some_and(&ours);
        if named && matches!(take_lock(&path, LockKind::Exclusive), Ok(Some(_))) {
            log::info!("removing what a crash left: {}", path.display());
            remove_tree_logged(&path);
        }
    }
}

fn open_lock(folder: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(folder.join("lock"))
}

fn open_guard(parent: &Path) -> io::Result<File> {
    let path = parent.join("guard");
    File::options().create(true).truncate(false).read(true).write(true).open(path)
}

/// Held (shared) while an entry of a folder and its lock come into being, so that no cleaner (who
/// holds it alone) sees the one without the other. Makes the folder.
fn guard(parent: &Path) -> Result<File, Failure> {
    // A command that ends removes an empty folder with its guard; then it is made anew.
    let mut last =
        Failure::new(format!("{} vanishes again and again; what removes it?", parent.display()));
    for _ in 0..MAX_TRIES {
        if let Err(failure) = private_folder(parent) {
            last = failure;
            continue;
        }
        let Ok(guard) = open_guard(parent) else { continue };
        filelock::shared(&guard).map_err(|error| failure("lock", parent, &error.into()))?;
        if is_at(&guard, &parent.join("guard")) {
            return Ok(guard);
        }
    }
    Err(last)
}

/// Whether an open file is the one that a path leads to now.
fn is_at(file: &File, path: &Path) -> bool {
    let (ours, there) = (file.metadata(), std::fs::metadata(path));
    matches!((ours, there), (Ok(ours), Ok(there))
        if (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
}

/// Removes a folder that holds nothing but its guard.
fn tidy(folder: &Path) {
    if let Ok(guard) = open_guard(folder)
        && matches!(filelock::try_exclusive(&guard), Ok(true))
        && std::fs::read_dir(folder).is_ok_and(|entries| entries.count() == 1)
    {
        let removed =
            std::fs::remove_file(folder.join("guard")).and_then(|()| std::fs::remove_dir(folder));
        log::trace!("removing {}: {removed:?}", folder.display());
    }
}

fn failure(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {}", path.display(), reason(error)))
}

/// The system's words for an error without the "(os error n)" that std appends.
#[must_use]
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn remove_tree_logged(path: &Path) {
    if let Err(error) = remove_tree(path) {
        log::warn!("cannot remove {}: {error}", path.display());
    }
}

/// How often a folder is gone through: a request of a guest that was killed may be half done, and what
/// it makes after its folder was read keeps that folder from being removed.
const REMOVALS: u32 = 16;

/// Removes a folder with all below it, following no links, also where a guest has taken its own
/// permissions away.
///
/// # Errors
/// The first error of the system; a folder that is not there is none.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let mut last = Ok(());
    for _ in 0..REMOVALS {
        last = std::fs::remove_dir_all(path);
        match &last {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => open_up(path)?,
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            _ => break,
        }
    }
    last
}

/// Gives the owner all rights on the folders of a tree.
fn open_up(path: &Path) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(());
    }
    if metadata.permissions().mode() & 0o700 != 0o700 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    for entry in std::fs::read_dir(path)? {
        open_up(&entry?.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!(
            "dvs-folders-{name}-{}-{:x}",
            std::process::id(),
            fresh_number(1)
        ));
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        path
    }

    fn folders(root: &Path) -> Folders {
        Folders { run: root.join("run"), state: root.join("state") }
    }

    #[test]
    fn surroundings_decide() {
        let ordinary = Surroundings {
            uid: 1000,
            xdg_runtime: Some("/tmp".into()),
            home: Some("/home/u".into()),
            ..Surroundings::default()
        };
        let folders = Folders::of(&ordinary);
        assert_eq!(folders.run, Path::new("/tmp/dvs"));
        assert_eq!(folders.state, Path::new("/home/u/.local/state/dvs"));
        let bare = Folders::of(&Surroundings { uid: 1000, ..Surroundings::default() });
        assert_eq!(bare.run, Path::new("/tmp/dvs-1000"));
        let root = Surroundings { uid: 0, xdg_runtime: Some("/tmp".into()), ..ordinary };
        assert_eq!(Folders::of(&root).run, Path::new("/run/dvs"));
        let relative = Surroundings { uid: 0, run: Some("x".into()), ..Surroundings::default() };
        assert_eq!(Folders::of(&relative).run, Path::new("/run/dvs"));
    }

    #[test]
    fn a_session_is_removed_by_its_last_member() {
        let root = scratch("session");
        let folders = folders(&root);
        folders.prepare().unwrap();
        let path = folders.new_session();
        assert!(!path.exists(), "its members make it");
        let (first, second) = (Session::join(&path).unwrap(), Session::join(&path).unwrap());
        folders.clean_stale();
        first.leave();
        assert!(path.exists(), "a member is alive");
        leave_session(&path);
        assert!(path.exists(), "also for the command");
        second.leave();
        assert!(!path.exists());
        assert_eq!(Folders::of_session(&path, &folders.state), folders);
        folders.tidy();
        assert!(!folders.run.exists(), "nothing is left");
        remove_tree(&root).unwrap();
    }

    #[test]
    fn sessions_come_and_go_at_the_same_time() {
        let root = scratch("racing");
        let folders = folders(&root);
        folders.prepare().unwrap();
        let shared = folders.new_session();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        Session::join(&folders.new_session()).unwrap().leave();
                        Session::join(&shared).unwrap().leave();
                        folders.tidy();
                    }
                });
            }
        });
        leave_session(&shared);
        folders.tidy();
        assert!(!folders.run.exists());
        remove_tree(&root).unwrap();
    }

    #[test]
    fn stale_folders_are_found_and_live_ones_kept() {
        let root = scratch("stale");
        let folders = folders(&root);
        folders.prepare().unwrap();
        let dead = folders.nodes().join("dead");
        private_folder(&dead).unwrap();
        drop(take_lock(&dead, LockKind::Exclusive).unwrap().unwrap());
        let live = OwnedFolder::make(&folders.nodes().join("live")).unwrap().unwrap();
        assert!(OwnedFolder::make(&live.path).unwrap().is_none(), "it is taken");
        let other = folders.state.join("precious");
        private_folder(&other).unwrap();
        assert_eq!(folders.live_nodes(), vec![live.path.clone()]);
        folders.clean_stale();
        assert!(!dead.exists() && live.path.exists() && other.exists());
        drop(live);
        assert_eq!(folders.live_nodes(), Vec::<PathBuf>::new());
        remove_tree(&root).unwrap();
    }

    #[test]
    fn folders_of_others_are_refused() {
        let root = scratch("open");
        let open = root.join("open");
        private_folder(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(private_folder(&open).unwrap_err().message.contains("chmod 700"));
        let link = root.join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(private_folder(&link).unwrap_err().message.contains("not a folder"));
        let metadata = std::fs::symlink_metadata(&root).unwrap();
        let somebody = check_private(&root, &metadata, metadata.uid() + 1).unwrap_err();
        assert!(somebody.message.contains("belongs to user"));
        remove_tree(&root).unwrap();
    }

    #[test]
    fn trees_without_permissions_are_removed() {
        let root = scratch("closed");
        let inner = root.join("a/b");
        private_folder(&inner).unwrap();
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o000)).unwrap();
        std::fs::set_permissions(root.join("a"), std::fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        remove_tree(&root).unwrap();
    }

    #[test]
    fn long_socket_paths_are_refused_with_advice() {
        let long = PathBuf::from(format!("/{}", "x".repeat(200)));
        assert!(check_socket_path(&long).unwrap_err().message.contains(RUN_VARIABLE));
        check_socket_path(Path::new("/run/dvs/nodes/n1/control")).unwrap();
    }
}
