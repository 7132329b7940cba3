//! The threads that read the device.
//!
//! A reply must go to the descriptor that the request was read from; each thread has a clone of its
//! own, with a list of requests of its own in the kernel. When all threads are busy one more is
//! started, up to a bound, so that an operation that waits for another node's recall does not stop
//! the write that this recall needs.

use super::kernel::Kernel;
use super::serve::{Answer, Session};
use dvs_fs::messages::MAX_IO;
use dvs_sys::fuse::abi::{self, init};
use dvs_sys::fuse::reply::{Body, Init};
use dvs_sys::fuse::{Device, Operation, Request, device};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Most threads that read the device.
pub const MAX_READERS: usize = 64;
/// How long a device may be served before it is mounted.
pub const MOUNT_WAIT: Duration = Duration::from_secs(30);
/// Pause between two looks whether it is mounted.
const MOUNT_PAUSE: Duration = Duration::from_millis(1);
/// Idle threads kept beyond those that are always there.
const KEEP_IDLE: usize = 6;
/// Bytes of a reader's buffer: the largest write and its headers.
const BUFFER: usize = MAX_IO + 4096;
/// A reader's stack.
const STACK: usize = 1 << 20;
/// Pages of the largest request.
const MAX_PAGES: u16 = 256;
/// Requests in the background (read-ahead, releases).
const MAX_BACKGROUND: u16 = 64;

#[derive(Default)]
struct Count {
    threads: usize,
    idle: usize,
}

/// The readers of one mount.
pub(super) struct Readers {
    session: Arc<Session>,
    first: Arc<Device>,
    always: usize,
    count: Mutex<Count>,
    ended: Condvar,
    ready: AtomicBool,
}

impl Readers {
    /// Starts the first reader, which waits for the mount, answers INIT and starts the others.
    pub(super) fn start(
        session: Arc<Session>,
        device: Device,
        always: usize,
    ) -> std::io::Result<Arc<Readers>> {
        let readers = Arc::new(Readers {
            session,
            first: Arc::new(device),
            always: always.clamp(1, MAX_READERS),
            count: Mutex::default(),
            ended: Condvar::new(),
            ready: AtomicBool::new(false),
        });
        let this = Arc::clone(&readers);
        readers.spawn(move || this.first())?;
        Ok(readers)
    }

    pub(super) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) fn threads(&self) -> usize {
        self.count.lock().unwrap().threads
    }

    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let count = self.count.lock().unwrap();
        let (count, _) =
            self.ended.wait_timeout_while(count, timeout, |count| count.threads > 0).unwrap();
        count.threads == 0
    }

    fn spawn(&self, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.count.lock().unwrap().threads += 1;
        let started = std::thread::Builder::new()
            .name("fs-reader".into())
            .stack_size(STACK)
            .spawn(body)
            .map(drop);
        if started.is_err() {
            self.count.lock().unwrap().threads -= 1;
        }
        started
    }

    /// The thread is about to end.
    fn leave(&self) {
        let mut count = self.count.lock().unwrap();
        count.threads -= 1;
        if count.threads == 0 {
            self.session.end();
            self.ended.notify_all();
        }
    }

    fn first(self: Arc<Self>) {
        let mut buffer = vec![0; BUFFER];
        let device = Arc::clone(&self.first);
        if !self.wait_for_init(&device, &mut buffer) {
            self.leave();
            return;
        }
        let kernel = Kernel::new(&self.session, Arc::clone(&device));
        self.session.client.set_invalidator(Some(Arc::new(kernel)));
        self.ready.store(true, Ordering::Release);
        for _ in 1..self.always {
            self.more();
        }
        self.read(&device, &mut buffer);
        self.leave();
    }

    /// Starts one more reader, if that is possible; if not, the others go on.
    fn more(self: &Arc<Self>) {
        if self.threads() >= MAX_READERS {
            return;
        }
        // Without a clone the first descriptor serves as well, only with more contention.
        let device = self.first.duplicate().map_or_else(|_| Arc::clone(&self.first), Arc::new);
        let this = Arc::clone(self);
        let _ = self.spawn(move || {
            let mut buffer = vec![0; BUFFER];
            this.read(&device, &mut buffer);
            this.leave();
        });
    }

    /// Answers INIT. False: that did not come.
    fn wait_for_init(&self, device: &Device, buffer: &mut [u8]) -> bool {
        let end = Instant::now() + MOUNT_WAIT;
        let mut body = Body::new();
        loop {
            let length = match device.read(buffer) {
                Ok(length) => length,
                Err(error) if error.errno == libc::EPERM && Instant::now() < end => {
                    std::thread::sleep(MOUNT_PAUSE);
                    continue;
                }
                Err(error) if !device::is_over(&error) => continue,
                Err(_) => return false,
            };
            let Some(request) =
                buffer.get(..length).and_then(|bytes| Request::decode(bytes, false))
            else {
                return false;
            };
            let unique = request.header.unique;
            let Some(Operation::Init { major, minor, max_readahead, flags }) = request.operation
            else {
                let _ = device.reply(unique, libc::EIO, &[]);
                continue;
            };
            body.clear();
            if major > abi::MAJOR {
                // The kernel asks again in our version.
                body.init(&Init::default());
                let _ = device.reply(unique, 0, body.bytes());
                continue;
            }
            if major < abi::MAJOR || minor < abi::MIN_MINOR {
                let _ = device.reply(unique, libc::EPROTO, &[]);
                return false;
            }
            let flags = flags & wanted();
            let max_readahead = max_readahead.max(u32::try_from(MAX_IO).unwrap_or(u32::MAX));
            body.init(&Init {
                minor: minor.min(abi::MAX_MINOR),
                max_readahead,
                flags,
                max_background: MAX_BACKGROUND,
                congestion_threshold: MAX_BACKGROUND / 4 * 3,
                max_write: u32::try_from(MAX_IO).unwrap_or(u32::MAX),
                max_pages: MAX_PAGES,
            });
            self.session.agree(flags);
            return device.reply(unique, 0, body.bytes()).is_ok();
        }
    }

    /// Reads, does and answers until the mount is over or this thread is one too many.
    fn read(self: &Arc<Self>, device: &Arc<Device>, buffer: &mut [u8]) {
        let mut body = Body::new();
        let mut exhausted = false;
        while !exhausted {
            {
                let mut count = self.count.lock().unwrap();
                if count.idle >= self.always + KEEP_IDLE {
                    return;
                }
                count.idle += 1;
            }
            let length = device.read(buffer);
            let alone = {
                let mut count = self.count.lock().unwrap();
                count.idle -= 1;
                count.idle == 0 && length.is_ok()
            };
            if alone {
                self.more();
            }
            match length {
                Ok(length) => {
                    self.answer(device, buffer.get(..length).unwrap_or_default(), &mut body);
                }
                Err(error) => exhausted = device::is_over(&error),
            }
        }
    }

    fn answer(&self, device: &Arc<Device>, bytes: &[u8], body: &mut Body) {
        let Some(request) = Request::decode(bytes, self.session.setxattr_extended()) else {
            return;
        };
        let unique = request.header.unique;
        body.clear();
        // A bug in one operation must not take the whole tree away.
        let result = catch_unwind(AssertUnwindSafe(|| self.session.serve(device, request, body)))
            .unwrap_or(Err(libc::EIO));
        // A reply fails when its caller was killed meanwhile, or with the mount: nobody waits then.
        let _ = match result {
            Ok(Answer::Nothing | Answer::Later) => Ok(()),
            Ok(Answer::Body) => device.reply(unique, 0, body.bytes()),
            Ok(Answer::Data(data)) => device.reply(unique, 0, &data),
            Err(errno) => device.reply(unique, errno, &[]),
        };
    }
}

/// What is wanted of the kernel. Never `WRITEBACK_CACHE`: it breaks coherence between nodes.
fn wanted() -> u64 {
    init::ASYNC_READ
        | init::POSIX_LOCKS
        | init::FLOCK_LOCKS
        | init::ATOMIC_O_TRUNC
        | init::BIG_WRITES
        | init::AUTO_INVAL_DATA
        | init::DO_READDIRPLUS
        | init::READDIRPLUS_AUTO
        | init::ASYNC_DIO
        | init::PARALLEL_DIROPS
        | init::ABORT_ERROR
        | init::MAX_PAGES
        // The target of a symbolic link never changes while its inode lives.
        | init::CACHE_SYMLINKS
        | init::HANDLE_KILLPRIV_V2
        | init::SETXATTR_EXT
        | init::INIT_EXT
        | init::DIRECT_IO_ALLOW_MMAP
}
