//! Shared open file descriptions: kept at home, used from away.
//!
//! Every read and write of the body is done at home, by `read` and `write` on a duplicate of the very
//! descriptor that it inherited. So the shared position, `O_APPEND` and the atomicity of reads and
//! writes among all who share the description are the kernel's own. They may block (a disk, a file
//! system that is served elsewhere), so bounded workers do them.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use crate::CarrierConfig;
use crate::engine::Engine;
use crate::messages::{
    DescriptionId, DescriptionOperation, DescriptionOutcome, FileAttributes, MAX_PAYLOAD, Position,
};

/// Most threads that do operations at home.
pub const MAX_WORKERS: usize = 16;
/// Most `flock` calls that wait for a lock, each in a thread of its own; further ones get `ENOLCK`.
pub const MAX_LOCK_WAITERS: usize = 256;
/// Most operations that wait for one; further ones are answered `EAGAIN`.
pub const MAX_QUEUE: usize = 4096;

/// Away: an open file description that lives at home. Dropping it closes it there.
#[derive(Debug)]
pub struct SharedDescription {
    engine: Weak<Engine>,
    home: u16,
    pub(crate) description: DescriptionId,
    /// Where the local file's offset is if the program has not sought.
    local_offset: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// Calls that can be interrupted, by the caller's number.
#[derive(Debug, Default)]
struct Waiting {
    running: HashMap<u64, Running>,
    /// Interrupts that came before their call, the oldest first.
    early: VecDeque<u64>,
}

#[derive(Debug)]
struct Running {
    request: u64,
    /// The request is on its way, so that a cancel comes after it.
    posted: bool,
    interrupted: bool,
}

/// Most interrupts kept for calls that have not come yet (or are over).
const MAX_EARLY: usize = 64;

impl SharedDescription {
    pub(crate) fn new(
        engine: Weak<Engine>,
        home: u16,
        description: DescriptionId,
        position: u64,
    ) -> Self {
        let local_offset = AtomicU64::new(position);
        SharedDescription { engine, home, description, local_offset, waiting: Mutex::default() }
    }

    /// Told by the file system after each read or write, before it is answered: where the local
    /// file's own offset is then. At the program's end another one means that it has sought.
    pub fn set_local_offset(&self, offset: u64) {
        self.local_offset.store(offset, Ordering::SeqCst);
    }

    pub(crate) fn local_offset(&self) -> u64 {
        self.local_offset.load(Ordering::SeqCst)
    }

    /// Reads at most `length` bytes (at most [`MAX_PAYLOAD`]): the bytes and the position afterwards.
    /// Waits as long as the read at home does; `EIO` when the home is gone.
    pub fn read(&self, position: Position, length: usize) -> Result<(Vec<u8>, u64), i32> {
        let length = u32::try_from(length.min(MAX_PAYLOAD)).unwrap_or(u32::MAX);
        match self.call(DescriptionOperation::Read { position, length })? {
            DescriptionOutcome::Data { data, position } if data.len() <= length as usize => {
                Ok((data, position))
            }
            _ => Err(libc::EPROTO),
        }
    }

    /// Writes the first [`MAX_PAYLOAD`] bytes of `data`: how many were taken, and the position
    /// afterwards.
    pub fn write(&self, position: Position, data: &[u8]) -> Result<(usize, u64), i32> {
        let data = data.get(..MAX_PAYLOAD).unwrap_or(data).to_vec();
        let most = data.len();
        match self.call(DescriptionOperation::Write { position, data })? {
            DescriptionOutcome::Written { length, position } if length as usize <= most => {
                Ok((length as usize, position))
            }
            _ => Err(libc::EPROTO),
        }
    }

    /// `fstat` now.
    pub fn attributes(&self) -> Result<FileAttributes, i32> {
        match self.call(DescriptionOperation::Attributes)? {
            DescriptionOutcome::Attributes(attributes) => Ok(attributes),
            _ => Err(libc::EPROTO),
        }
    }

    /// `ftruncate`.
    pub fn truncate(&self, length: u64) -> Result<(), i32> {
        self.done(DescriptionOperation::Truncate { length })
    }

    /// `fsync` or `fdatasync`.
    pub fn sync(&self, data_only: bool) -> Result<(), i32> {
        self.done(DescriptionOperation::Sync { data_only })
    }

    /// `lseek` with `SEEK_DATA` or `SEEK_HOLE`; the shared position stays.
    pub fn seek(&self, offset: u64, whence: u32) -> Result<u64, i32> {
        match self.call(DescriptionOperation::Seek { offset, whence })? {
            DescriptionOutcome::Offset(offset) => Ok(offset),
            _ => Err(libc::EPROTO),
        }
    }

    /// `flock` on the description: `LOCK_SH`, `LOCK_EX` or `LOCK_UN`, with `LOCK_NB`. Without it, it
    /// waits for the lock, or until [`SharedDescription::interrupt`] names `call`; then `EINTR`.
    pub fn lock(&self, call: u64, operation: i32) -> Result<(), i32> {
        let engine = self.engine.upgrade().ok_or(libc::EIO)?;
        let request = engine.request_number();
        {
            let mut waiting = self.waiting.lock().unwrap();
            if let Some(index) = waiting.early.iter().position(|&early| early == call) {
                waiting.early.remove(index);
                return Err(libc::EINTR);
            }
            waiting.running.insert(call, Running { request, posted: false, interrupted: false });
        }
        let operation = DescriptionOperation::Lock { operation };
        let reply = engine.ask(self.home, request, self.description, operation);
        let interrupted = {
            let mut waiting = self.waiting.lock().unwrap();
            waiting.running.get_mut(&call).is_some_and(|running| {
                running.posted = true;
                running.interrupted
            })
        };
        if interrupted {
            engine.cancel(self.home, request);
        }
        let result = reply.and_then(|reply| reply.recv().unwrap_or(Err(libc::EIO)));
        self.waiting.lock().unwrap().running.remove(&call);
        match result? {
            DescriptionOutcome::Done => Ok(()),
            _ => Err(libc::EPROTO),
        }
    }

    /// The call is not wanted any more; it may be over, or not have begun.
    pub fn interrupt(&self, call: u64) {
        let request = {
            let mut waiting = self.waiting.lock().unwrap();
            match waiting.running.get_mut(&call) {
                Some(running) if running.posted => Some(running.request),
                Some(running) => {
                    running.interrupted = true;
                    None
                }
                None => {
                    if waiting.early.len() >= MAX_EARLY {
                        waiting.early.pop_front();
                    }
                    waiting.early.push_back(call);
                    None
                }
            }
        };
        if let (Some(request), Some(engine)) = (request, self.engine.upgrade()) {
            engine.cancel(self.home, request);
        }
    }

    fn done(&self, operation: DescriptionOperation) -> Result<(), i32> {
        match self.call(operation)? {
            DescriptionOutcome::Done => Ok(()),
            _ => Err(libc::EPROTO),
        }
    }

    fn call(&self, operation: DescriptionOperation) -> Result<DescriptionOutcome, i32> {
        let engine = self.engine.upgrade().ok_or(libc::EIO)?;
        let reply = engine.ask(self.home, engine.request_number(), self.description, operation)?;
        // Ends with the reply, with the home's node, or with this carrier.
        reply.recv().unwrap_or(Err(libc::EIO))
    }
}

impl Drop for SharedDescription {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.description_dropped(self.home, self.description);
        }
    }
}

/// Does one operation on the duplicate.
pub(crate) fn perform(
    file: &File,
    operation: DescriptionOperation,
    attributes: &dyn Fn(&File) -> Result<FileAttributes, i32>,
) -> Result<DescriptionOutcome, i32> {
    let mut file = file;
    match operation {
        DescriptionOperation::Read { position, length } => {
            seek_to(file, position)?;
            let mut data = vec![0; usize::try_from(length).unwrap_or(0).min(MAX_PAYLOAD)];
            let count = retry(|| file.read(&mut data))?;
            data.truncate(count);
            Ok(DescriptionOutcome::Data { data, position: told(file) })
        }
        DescriptionOperation::Write { position, data } => {
            seek_to(file, position)?;
            let count = retry(|| file.write(&data))?;
            let length = u32::try_from(count).map_err(|_| libc::EOVERFLOW)?;
            Ok(DescriptionOutcome::Written { length, position: told(file) })
        }
        DescriptionOperation::Attributes => attributes(file).map(DescriptionOutcome::Attributes),
        DescriptionOperation::Truncate { length } => {
            retry(|| file.set_len(length))?;
            Ok(DescriptionOutcome::Done)
        }
        DescriptionOperation::Sync { data_only } => {
            retry(|| if data_only { file.sync_data() } else { file.sync_all() })?;
            Ok(DescriptionOutcome::Done)
        }
        // Belongs to the description's lock, which its keeper has.
        DescriptionOperation::Lock { .. } => Err(libc::EINVAL),
        DescriptionOperation::Seek { offset, whence } => {
            let whence = i32::try_from(whence).map_err(|_| libc::EINVAL)?;
            if whence != libc::SEEK_DATA && whence != libc::SEEK_HOLE {
                return Err(libc::EINVAL);
            }
            // On a description of its own, so that the shared position is not disturbed.
            let own = dvs_sys::pipe::reopen(file, libc::O_RDONLY).map_err(|error| error.errno)?;
            let found = dvs_sys::pipe::seek(&own, offset, whence).map_err(|error| error.errno)?;
            Ok(DescriptionOutcome::Offset(found))
        }
    }
}

pub(crate) fn seek_to(mut file: &File, position: Position) -> Result<(), i32> {
    if let Position::At(offset) = position {
        file.seek(SeekFrom::Start(offset)).map_err(|error| errno(&error))?;
    }
    Ok(())
}

fn told(mut file: &File) -> u64 {
    file.stream_position().unwrap_or(0)
}

fn retry<T>(mut call: impl FnMut() -> std::io::Result<T>) -> Result<T, i32> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result.map_err(|error| errno(&error)),
        }
    }
}

fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// One thing to do.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Threads that do what may block; they appear when needed and stay.
pub(crate) struct Workers {
    config: CarrierConfig,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    stopped: bool,
}

impl Workers {
    pub(crate) fn new(config: CarrierConfig) -> Arc<Self> {
        Arc::new(Workers { config, queue: Mutex::default(), wake: Condvar::new() })
    }

    /// Gives the job to a worker, or back when there is no room for it.
    pub(crate) fn submit(self: &Arc<Self>, job: Job) -> Result<(), Job> {
        self.accept(job, MAX_QUEUE)
    }

    /// Gives a worker something to close; the number of open descriptions bounds these. Without any
    /// worker it is done here.
    pub(crate) fn close(self: &Arc<Self>, job: Job) {
        if let Err(job) = self.accept(job, usize::MAX) {
            job();
        }
    }

    fn accept(self: &Arc<Self>, job: Job, most: usize) -> Result<(), Job> {
        let mut queue = self.queue.lock().unwrap();
        if queue.stopped || queue.jobs.len() >= most {
            return Err(job);
        }
        if queue.idle <= queue.jobs.len() && queue.threads < MAX_WORKERS {
            let workers = Arc::clone(self);
            let started = std::thread::Builder::new()
                .name("carry-files".into())
                .spawn(move || workers.work());
            match started {
                Ok(_) => queue.threads += 1,
                Err(_) if queue.threads == 0 => return Err(job),
                Err(_) => {}
            }
        }
        queue.jobs.push_back(job);
        self.wake.notify_one();
        Ok(())
    }

    /// Ends the threads once they have nothing to do; what waits is dropped.
    pub(crate) fn stop(&self) {
        let mut queue = self.queue.lock().unwrap();
        queue.stopped = true;
        queue.jobs.clear();
        self.wake.notify_all();
    }

    fn work(&self) {
        self.config.enter();
        let mut queue = self.queue.lock().unwrap();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.queue.lock().unwrap();
            } else if queue.stopped {
                queue.threads -= 1;
                return;
            } else {
                queue.idle += 1;
                queue = self.wake.wait(queue).unwrap();
                queue.idle -= 1;
            }
        }
    }
}
