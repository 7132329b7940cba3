//! The whole server with threads: requests in, replies and notices out.

use super::*;
use crate::messages::{
    Credentials, Handle, InodeId, Lease, LockFamily, LockKind, LockOwner, LockRange, Outcome,
    PROTOCOL, ROOT, Stale,
};
use crate::tree::Life;
use crate::tree::memory::MemoryTree;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};

/// The longest that anything here may take; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time that stands still unless a test moves it.
#[derive(Default)]
struct StillClock(AtomicU64);

impl Clock for StillClock {
    fn monotonic(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn real(&self) -> Time {
        Time { seconds: 1_000, nanoseconds: 0 }
    }
}

struct Notices(Mutex<Sender<(ClientId, Notice)>>, AtomicU64);

impl Notifier for Notices {
    fn notify(&self, client: ClientId, notice: Notice) {
        let _ = lock(&self.0).send((client, notice));
    }

    fn fenced(&self, _client: ClientId) {
        self.1.fetch_add(1, Relaxed);
    }
}

struct World {
    server: Arc<FileServer>,
    clock: Arc<StillClock>,
    notices: Mutex<Receiver<(ClientId, Notice)>>,
    notifier: Arc<Notices>,
}

fn world() -> World {
    let (sender, notices) = channel();
    let clock = Arc::new(StillClock::default());
    let notifier = Arc::new(Notices(Mutex::new(sender), AtomicU64::new(0)));
    let tree = Arc::new(MemoryTree::new(Life::Private));
    let server = FileServer::with_tree(tree, clock.clone(), notifier.clone());
    World { server: Arc::new(server), clock, notices: Mutex::new(notices), notifier }
}

impl World {
    /// Answers the recalls that are there, in the name of those whom they are for.
    fn answer_recalls(&self) {
        static SEQUENCE: AtomicU64 = AtomicU64::new(1 << 32);
        loop {
            let notice = lock(&self.notices).try_recv();
            let Ok((id, Notice::Recall { number, .. })) = notice else { return };
            let sequence = SEQUENCE.fetch_add(1, Relaxed);
            let mut client = Client { world: self, id, sequence };
            client.send(Operation::RecallDone { notice: number });
        }
    }
}

struct Client<'a> {
    world: &'a World,
    id: ClientId,
    sequence: u64,
}

impl Client<'_> {
    fn request(&mut self, operation: Operation) -> Request {
        self.sequence += 1;
        let credentials = Credentials { uid: 0, gid: 0, pid: 1, umask: 0 };
        let answered = self.sequence - 1;
        let (client, sequence) = (self.id, self.sequence);
        // What still waits for its answer here is always younger than what has one.
        Request { client, sequence, answered: answered.min(1), credentials, operation }
    }

    fn send(&mut self, operation: Operation) -> Receiver<Reply> {
        let request = self.request(operation);
        self.repeat(request)
    }

    fn repeat(&self, request: Request) -> Receiver<Reply> {
        let (sender, receiver) = channel();
        let sink = Box::new(move |reply| {
            let _ = sender.send(reply);
        });
        self.world.server.handle(request, sink);
        receiver
    }

    /// Asks, and lets everybody give up what is recalled meanwhile.
    fn call(&mut self, operation: Operation) -> Result<Outcome, i32> {
        let answer = self.send(operation);
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            match answer.recv_timeout(Duration::from_millis(1)) {
                Ok(reply) => return reply.result,
                Err(_) if std::time::Instant::now() > end => panic!("no answer"),
                Err(_) => self.world.answer_recalls(),
            }
        }
    }

    fn create(&mut self, name: &[u8]) -> (InodeId, Handle) {
        let (name, flags) = (name.to_vec(), libc::O_RDWR as u32);
        match self.call(Operation::Create { parent: ROOT, name, mode: 0o644, flags }) {
            Ok(Outcome::Created { entry, handle, .. }) => {
                (entry.attributes.expect("made").inode, handle)
            }
            other => panic!("{other:?}"),
        }
    }

    fn lookup(&mut self, name: &[u8]) -> crate::messages::Entry {
        match self.call(Operation::Lookup { parent: ROOT, name: name.to_vec() }) {
            Ok(Outcome::Entry(entry)) => entry,
            other => panic!("{other:?}"),
        }
    }

    fn open(&mut self, inode: InodeId, flags: i32) -> (Handle, Lease) {
        match self.call(Operation::Open { inode, flags: flags as u32 }) {
            Ok(Outcome::Opened { handle, content }) => (handle, content),
            other => panic!("{other:?}"),
        }
    }

    fn lock_operation(
        &self,
        (inode, handle): (InodeId, Handle),
        owner: u64,
        kind: LockKind,
    ) -> Operation {
        Operation::SetLock {
            inode,
            handle,
            owner: LockOwner(owner),
            family: LockFamily::Record,
            lock: LockRange { start: 0, end: 9, kind, pid: 1 },
            wait: true,
        }
    }
}

fn client(world: &World, node: u16) -> Client<'_> {
    let mut client = Client { world, id: ClientId { node, incarnation: 1 }, sequence: 0 };
    let welcome = client.call(Operation::Hello { protocol: PROTOCOL });
    assert!(matches!(welcome, Ok(Outcome::Welcome { .. })), "{welcome:?}");
    client
}

fn write(inode: InodeId, handle: Handle, data: &[u8]) -> Operation {
    let (append, kill_privileges, data) = (false, false, data.to_vec());
    Operation::Write { inode, handle, offset: 0, append, kill_privileges, data }
}

#[test]
fn a_change_waits_for_the_recall_of_what_others_keep() {
    let world = world();
    let (mut one, mut two) = (client(&world, 1), client(&world, 2));
    let absent = two.lookup(b"file");
    assert!(absent.attributes.is_none() && absent.name_lease.milliseconds > 0);
    let creation = one.send(Operation::Create {
        parent: ROOT,
        name: b"file".to_vec(),
        mode: 0o644,
        flags: libc::O_RDWR as u32,
    });
    let (to, Notice::Recall { number, stale }) =
        lock(&world.notices).recv_timeout(PATIENCE).expect("a recall");
    assert_eq!(to, two.id);
    assert!(stale.contains(&Stale::Name(ROOT, b"file".to_vec())), "{stale:?}");
    assert!(creation.try_recv().is_err(), "answered before the other has forgotten");
    // While it is pending nothing is granted about it, and another one cannot answer for it.
    let seen = two.lookup(b"file");
    assert!(seen.attributes.is_some());
    assert_eq!(seen.name_lease, Lease::NONE);
    assert_eq!(one.call(Operation::RecallDone { notice: number }), Ok(Outcome::Done));
    assert!(creation.try_recv().is_err());
    assert_eq!(two.call(Operation::RecallDone { notice: number }), Ok(Outcome::Done));
    assert!(creation.recv_timeout(PATIENCE).expect("an answer").result.is_ok());
    assert!(two.lookup(b"file").name_lease.milliseconds > 0);
}

#[test]
fn a_silent_reader_of_an_open_file_is_fenced() {
    let world = world();
    let (mut one, mut two) = (client(&world, 1), client(&world, 2));
    let (inode, handle) = one.create(b"file");
    two.lookup(b"file");
    let (reading, _) = two.open(inode, libc::O_RDONLY);
    two.call(Operation::Read { inode, handle: reading, offset: 0, length: 8 }).expect("read");
    let writing = one.send(write(inode, handle, b"new"));
    lock(&world.notices).recv_timeout(PATIENCE).expect("a recall");
    assert!(writing.try_recv().is_err());
    world.clock.0.fetch_add(crate::core::FENCE_AFTER, Relaxed);
    // Any event wakes the timer's work up; here it is done at once.
    step(&world.server.shared, &world.server.pool, Event::Tick);
    assert!(writing.recv_timeout(PATIENCE).expect("an answer").result.is_ok());
    assert_eq!(world.notifier.1.load(Relaxed), 1);
    let late = two.call(Operation::GetAttributes { inode });
    assert_eq!(late, Err(libc::ESTALE), "a fenced client is out");
    let hello = two.call(Operation::Hello { protocol: PROTOCOL });
    assert_eq!(hello, Err(libc::ESTALE), "and stays out");
}

#[test]
fn repeated_requests_run_once() {
    let world = world();
    let mut one = client(&world, 1);
    let name = b"file".to_vec();
    let request = one.request(Operation::MakeDirectory { parent: ROOT, name, mode: 0o755 });
    let first = one.repeat(request.clone()).recv_timeout(PATIENCE).expect("an answer");
    let second = one.repeat(request).recv_timeout(PATIENCE).expect("an answer");
    assert!(first.result.is_ok());
    assert_eq!(first, second);
}

#[test]
fn waiting_locks_are_granted_cancelled_and_end_with_their_client() {
    let world = world();
    let (mut one, mut two, mut three) = (client(&world, 1), client(&world, 2), client(&world, 3));
    let file = one.create(b"file");
    let opened = |client: &mut Client<'_>| {
        client.lookup(b"file");
        (file.0, client.open(file.0, libc::O_RDWR).0)
    };
    let (two_file, three_file) = (opened(&mut two), opened(&mut three));
    let operation = one.lock_operation(file, 1, LockKind::Write);
    assert_eq!(one.call(operation), Ok(Outcome::Done));
    let wish = two.lock_operation(two_file, 1, LockKind::Write);
    let two_waits = two.send(wish);
    let waiting_sequence = two.sequence;
    let wish = three.lock_operation(three_file, 1, LockKind::Write);
    let three_waits = three.send(wish);
    // Many more waiters hold nobody up.
    let mut many = Vec::new();
    for owner in 100..164 {
        let wish = three.lock_operation(three_file, owner, LockKind::Write);
        many.push(three.send(wish));
    }
    assert!(one.lookup(b"file").attributes.is_some());
    assert!(two_waits.try_recv().is_err() && three_waits.try_recv().is_err());
    two.call(Operation::Cancel { sequence: waiting_sequence }).expect("cancelled");
    let cancelled = two_waits.recv_timeout(PATIENCE).expect("an answer").result;
    assert_eq!(cancelled, Err(libc::EINTR));
    // A client that dies lets go.
    world.server.client_gone(one.id);
    let granted = three_waits.recv_timeout(PATIENCE).expect("an answer").result;
    assert_eq!(granted, Ok(Outcome::Done));
    // Closing any descriptor of the file releases the owner's locks: the next one's turn.
    let (inode, handle) = three_file;
    three.call(Operation::Flush { inode, handle, owner: LockOwner(1) }).expect("closed");
    let next = many.remove(0).recv_timeout(PATIENCE).expect("an answer").result;
    assert_eq!(next, Ok(Outcome::Done));
    assert!(many.iter().all(|waiter| waiter.try_recv().is_err()));
    world.server.client_gone(three.id);
    world.server.client_gone(two.id);
    assert_eq!(world.server.load(), Load::default());
}

#[test]
fn a_second_writer_is_told_to_bypass_its_cache() {
    let world = world();
    let (mut one, mut two) = (client(&world, 1), client(&world, 2));
    let (inode, _) = one.create(b"file");
    two.lookup(b"file");
    assert_eq!(two.open(inode, libc::O_RDWR).1, Lease::DIRECT);
    assert_ne!(two.open(inode, libc::O_RDONLY).1, Lease::DIRECT);
    // Neither may the first one add to what it already writes through its cache.
    assert_eq!(one.open(inode, libc::O_RDWR).1, Lease::DIRECT);
}

#[test]
fn wrong_requests_are_refused() {
    let world = world();
    let mut old = Client { world: &world, id: ClientId { node: 9, incarnation: 1 }, sequence: 0 };
    assert_eq!(old.call(Operation::Hello { protocol: PROTOCOL + 1 }), Err(libc::EPROTO));
    assert_eq!(old.call(Operation::GetAttributes { inode: ROOT }), Err(libc::ESTALE));
    let mut one = client(&world, 1);
    let (inode, handle) = one.create(b"file");
    let other = InodeId { number: inode.number + 1, generation: 0 };
    assert_eq!(one.call(write(other, handle, b"x")), Err(libc::EBADF));
    assert_eq!(one.call(write(inode, Handle(handle.0 + 1), b"x")), Err(libc::EBADF));
    let mut two = client(&world, 2);
    assert_eq!(
        two.call(write(inode, handle, b"x")),
        Err(libc::EBADF),
        "handles are a client's own"
    );
    let read_only = one.open(inode, libc::O_RDONLY).0;
    assert_eq!(one.call(write(inode, read_only, b"x")), Err(libc::EBADF));
    one.call(Operation::Goodbye).expect("ended");
    assert_eq!(one.call(Operation::GetAttributes { inode: ROOT }), Err(libc::ESTALE));
}

#[test]
fn slow_work_and_its_threads_end_with_the_server() {
    let world = world();
    let mut one = client(&world, 1);
    let (inode, handle) = one.create(b"file");
    let mut answers = Vec::new();
    for _ in 0..200 {
        answers.push(one.send(Operation::Fsync { inode, handle, data_only: true }));
    }
    for answer in answers {
        let answer = answer.recv_timeout(PATIENCE).expect("an answer");
        assert_eq!(answer.result, Ok(Outcome::Done));
    }
    assert!(lock(&world.server.shared.sinks).is_empty());
    let shared = Arc::downgrade(&world.server.shared);
    drop(world);
    assert!(shared.upgrade().is_none(), "threads are left");
}

#[test]
fn appends_of_many_clients_never_overlap() {
    const NODES: u16 = 4;
    const TIMES: usize = 100;
    let world = world();
    let (inode, handle, id) = {
        let mut first = client(&world, 1);
        let (inode, handle) = first.create(b"log");
        (inode, handle, first.id)
    };
    std::thread::scope(|scope| {
        let world = &world;
        let writers: Vec<_> = (0..NODES)
            .map(|node| {
                scope.spawn(move || {
                    let mut own = client(world, 2 + node);
                    own.lookup(b"log");
                    let (handle, _) = own.open(inode, libc::O_WRONLY);
                    for _ in 0..TIMES {
                        let data = vec![b'0' + node as u8; 7];
                        let (append, kill_privileges) = (true, false);
                        let operation = Operation::Write {
                            inode,
                            handle,
                            offset: 0,
                            append,
                            kill_privileges,
                            data,
                        };
                        let written = own.call(operation);
                        assert!(
                            matches!(written, Ok(Outcome::Written { length: 7, .. })),
                            "{written:?}"
                        );
                    }
                })
            })
            .collect();
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        assert!(results.iter().all(Result::is_ok));
    });
    let mut first = Client { world: &world, id, sequence: 100 };
    let read = Operation::Read { inode, handle, offset: 0, length: 1 << 20 };
    let Ok(Outcome::Data(data)) = first.call(read) else { panic!("not read") };
    assert_eq!(data.len(), usize::from(NODES) * TIMES * 7);
    assert!(data.chunks(7).all(|line| line.iter().all(|byte| *byte == line[0])));
}

#[test]
fn the_kernel_of_an_only_client_may_keep_names() {
    let world = world();
    world.server.one_client();
    let mut one = client(&world, 1);
    one.create(b"file");
    assert!(one.lookup(b"file").in_kernel && one.lookup(b"none").in_kernel);
    let mut two = client(&world, 2);
    assert!(!two.lookup(b"file").in_kernel, "two could wait for each other");
    assert!(!one.lookup(b"file").in_kernel);
}

#[test]
fn what_a_kernel_moves_by_a_rename_is_recalled_there() {
    let world = world();
    let (mut one, mut two) = (client(&world, 1), client(&world, 2));
    one.create(b"old");
    let (name, new_name, flags) = (b"old".to_vec(), b"new".to_vec(), 0);
    let rename = Operation::Rename { parent: ROOT, name, new_parent: ROOT, new_name, flags };
    assert_eq!(one.call(rename), Ok(Outcome::Done));
    // It never asked for the new name.
    let removing = two.send(Operation::Unlink { parent: ROOT, name: b"new".to_vec() });
    let notice = lock(&world.notices).recv_timeout(PATIENCE);
    let (to, Notice::Recall { number, stale }) = notice.expect("a recall");
    assert_eq!(to, one.id);
    assert!(stale.contains(&Stale::Name(ROOT, b"new".to_vec())), "{stale:?}");
    assert_eq!(one.call(Operation::RecallDone { notice: number }), Ok(Outcome::Done));
    assert_eq!(removing.recv_timeout(PATIENCE).expect("an answer").result, Ok(Outcome::Done));
}
