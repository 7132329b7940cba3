//! How the tests call `dvs`: which binary, as whom, in which private folders.

use anyhow::{Context, bail};
use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Placement and number of nodes of a run.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Number of nodes.
    pub nodes: u16,
    /// `--place`, if given.
    pub place: Option<String>,
}

/// A user to run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl User {
    /// From a name of `/etc/passwd`, or a number (which needs no entry).
    pub fn find(name: &str) -> anyhow::Result<User> {
        let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry = text
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&name) || fields.get(2) == Some(&name));
        let number = |fields: &[&str], at: usize| fields.get(at).and_then(|f| f.parse().ok());
        if let Some(fields) = entry {
            let ids = (number(&fields, 2), number(&fields, 3));
            if let (Some(uid), Some(gid)) = ids {
                return Ok(User { uid, gid });
            }
        }
        match name.parse() {
            Ok(id) => Ok(User { uid: id, gid: id }),
            Err(_) => bail!("there is no user {name}; give a name of /etc/passwd or a number"),
        }
    }
}

/// A `dvs` with folders of its own: it meets no daemon of anyone else.
#[derive(Debug)]
pub struct Dvs {
    binary: PathBuf,
    user: Option<User>,
    folder: tempfile::TempDir,
}

impl Dvs {
    /// Takes the given binary, or `$DVS_BIN`, or the one beside this program.
    pub fn new(binary: Option<&Path>, user: Option<User>) -> anyhow::Result<Dvs> {
        let binary = match binary {
            Some(path) => path.to_owned(),
            None => match std::env::var_os("DVS_BIN") {
                Some(path) => path.into(),
                None => beside()?,
            },
        };
        let binary = std::fs::canonicalize(&binary)
            .with_context(|| format!("no dvs at {}: cargo build -p dvs-cli", binary.display()))?;
        let folder = tempfile::Builder::new()
            .prefix("dvs-t-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .context("cannot make a folder for the test")?;
        let mut dvs = Dvs { binary, user, folder };
        for name in ["run", "state", "home"] {
            let path = dvs.own_folder(name)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
        }
        if user.is_some() {
            // An ordinary user may not be let into the folder of the build.
            let copy = dvs.folder.path().join("dvs");
            std::fs::copy(&dvs.binary, &copy).context("cannot copy dvs for the user")?;
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
            dvs.binary = copy;
        }
        Ok(dvs)
    }

    /// The binary.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The folder of this test.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where its daemons' sockets are.
    #[must_use]
    pub fn run_folder(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Where its containers' files are.
    #[must_use]
    pub fn state_folder(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Makes a folder below that of the test, owned by the user that programs run as.
    pub fn own_folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        // Not the caller's umask: what a case sees must not depend on it.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        if let Some(user) = self.user {
            chown(&path, Some(user.uid), Some(user.gid))
                .context("running as another user needs root")?;
        }
        Ok(path)
    }

    /// A native command in the environment that every test gives, native and inside.
    #[must_use]
    pub fn native(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", crate::case::PATH)
            .env("HOME", self.folder.path().join("home"))
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("DVS_RUN_DIR", self.run_folder())
            .env("DVS_STATE_DIR", self.state_folder());
        for name in ["DVS_LOG", "DVS_MARK"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// The same in a session of its own (setsid(1) becomes the program, with the same pid). There the
    /// program's process group is an orphaned one, as it is in a container. It is told to end when the
    /// test is killed.
    #[must_use]
    pub fn session(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.native("setpriv");
        command.args(["--pdeathsig", "TERM", "setsid"]).arg(program);
        command
    }

    /// A `dvs` command in that environment.
    #[must_use]
    pub fn dvs(&self) -> Command {
        self.native(&self.binary)
    }

    /// `dvs run` with the options of a cluster, up to and without the `--`; in its own session.
    #[must_use]
    pub fn run(&self, cluster: &Cluster) -> Command {
        let mut command = self.session(&self.binary);
        command.args(["run", "--nodes", &cluster.nodes.to_string()]);
        if let Some(place) = &cluster.place {
            command.args(["--place", place]);
        }
        command
    }
}

/// `dvs` in the folder of this program, or one above it (cargo puts tests into `deps`).
fn beside() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where is this program?")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("dvs"))
        .find(|path| path.is_file())
        .context("no dvs beside this program: cargo build -p dvs-cli, or set DVS_BIN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(User::find("root").expect("root"), User { uid: 0, gid: 0 });
        assert_eq!(User::find("54321").expect("number"), User { uid: 54321, gid: 54321 });
        assert!(User::find("no such user").is_err());
    }
}
