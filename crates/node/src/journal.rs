//! The debug log: off unless `DVS_LOG` says a level; to a file of the node's folder, or to standard
//! error. Off, a line costs one comparison.

use log::{LevelFilter, Log, Metadata, Record};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Environment variable with the level: `error`, `warn`, `info`, `debug`, `trace`.
pub const VARIABLE: &str = "DVS_LOG";

static JOURNAL: Journal = Journal(Mutex::new(Output { name: String::new(), file: None }));

struct Journal(Mutex<Output>);

struct Output {
    /// Who logs.
    name: String,
    /// Where to; none: standard error.
    file: Option<File>,
}

/// Starts logging to the file `log` of a folder, if the variable says a level. In a forked child it
/// takes over from the parent's log.
pub fn start(name: &str, folder: &Path) {
    let Some(level) = wanted().filter(|level| *level != LevelFilter::Off) else {
        log::set_max_level(LevelFilter::Off);
        return;
    };
    let file = File::options().create(true).append(true).open(folder.join("log"));
    begin(name, file.ok(), level);
}

/// Starts logging to standard error, at the variable's level or `debug`.
pub fn start_to_standard_error(name: &str) {
    begin(name, None, wanted().unwrap_or(LevelFilter::Debug));
}

fn wanted() -> Option<LevelFilter> {
    std::env::var(VARIABLE).ok()?.parse().ok()
}

fn begin(name: &str, file: Option<File>, level: LevelFilter) {
    *JOURNAL.0.lock().unwrap_or_else(PoisonError::into_inner) =
        Output { name: name.to_owned(), file };
    // It fails when it was set before, which is what is wanted.
    let _ = log::set_logger(&JOURNAL);
    log::set_max_level(level);
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = dvs_sys::clock::real();
        let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = format!(
            "{}.{:06} {} {:5} {}: {}\n",
            now / 1_000_000_000 % 100_000,
            now / 1000 % 1_000_000,
            output.name,
            record.level(),
            record.target(),
            record.args()
        );
        // A log that cannot be written must not stop what it tells about.
        let _ = match &mut output.file {
            Some(file) => file.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}
