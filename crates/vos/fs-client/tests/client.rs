//! The client against a transport that does what the test says: identity of requests, lost links,
//! leases, and recalls that come at the worst moment.

use dvs_fs::messages::{
    Attributes, ClientId, Credentials, Entry, Handle, InodeId, Lease, Notice, Operation, Outcome,
    ROOT, Reply, Request, Stale, Time,
};
use dvs_fs_client::cache::Until;
use dvs_fs_client::{Client, ClientError, ClientOptions, FsTransport, Invalidator, TransportError};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
const ME: ClientId = ClientId { node: 3, incarnation: 9 };
const WHO: Credentials = Credentials { uid: 1000, gid: 1000, pid: 5, umask: 0 };
const LONG: Lease = Lease { milliseconds: 3_600_000, epoch: 1 };
const QUICK: ClientOptions = ClientOptions { attempts: 4, first_pause: Duration::ZERO };

type Answerer = Box<dyn FnMut(&Request) -> Result<Reply, TransportError> + Send>;

/// Answers each request by the next of the script's steps; notes every request.
struct Script {
    steps: Mutex<VecDeque<Answerer>>,
    seen: Mutex<Vec<Request>>,
    posted: Mutex<Vec<Request>>,
    told: Mutex<Option<Sender<Request>>>,
}

impl Script {
    fn new() -> Arc<Script> {
        let script = Arc::new(Script {
            steps: Mutex::default(),
            seen: Mutex::default(),
            posted: Mutex::default(),
            told: Mutex::default(),
        });
        script.then(Outcome::Welcome {
            root: Entry {
                attributes: Some(attributes(1, 0)),
                name_lease: Lease::NONE,
                in_kernel: false,
                attributes_lease: Lease::NONE,
            },
            server_incarnation: 77,
        });
        script
    }

    fn step(&self, answer: impl FnMut(&Request) -> Result<Reply, TransportError> + Send + 'static) {
        self.steps.lock().unwrap().push_back(Box::new(answer));
    }

    fn then(&self, outcome: Outcome) {
        self.result(Ok(outcome));
    }

    fn result(&self, result: Result<Outcome, i32>) {
        self.step(move |request| Ok(Reply { sequence: request.sequence, result: result.clone() }));
    }

    fn lose(&self) {
        self.step(|_| Err(TransportError::Lost));
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests of the client's own thread go there, and are answered.
    fn told(&self) -> Receiver<Request> {
        let (sender, receiver) = channel();
        *self.told.lock().unwrap() = Some(sender);
        receiver
    }
}

impl FsTransport for Script {
    fn call(&self, request: Request) -> Result<Reply, TransportError> {
        if let Operation::RecallDone { .. } | Operation::Forget { .. } = request.operation {
            let sequence = request.sequence;
            if let Some(sender) = &*self.told.lock().unwrap() {
                let _ = sender.send(request);
            }
            return Ok(Reply { sequence, result: Ok(Outcome::Done) });
        }
        self.seen.lock().unwrap().push(request.clone());
        let step = self.steps.lock().unwrap().pop_front();
        let mut step = step.unwrap_or_else(|| panic!("an unexpected request: {request:?}"));
        step(&request)
    }

    fn post(&self, request: Request) {
        self.posted.lock().unwrap().push(request);
    }
}

fn inode(number: u64) -> InodeId {
    InodeId { number, generation: 0 }
}

fn attributes(number: u64, size: u64) -> Attributes {
    Attributes {
        inode: inode(number),
        mode: 0o100_644,
        links: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size,
        blocks: 0,
        accessed: Time::default(),
        modified: Time::default(),
        changed: Time::default(),
    }
}

fn entry(number: u64, size: u64) -> Outcome {
    Outcome::Entry(Entry {
        attributes: Some(attributes(number, size)),
        name_lease: LONG,
        in_kernel: true,
        attributes_lease: LONG,
    })
}

fn connect(script: &Arc<Script>) -> Arc<Client> {
    Client::connect(Arc::clone(script) as _, ME, QUICK).unwrap()
}

#[test]
fn requests_carry_their_identity() {
    let script = Script::new();
    let client = connect(&script);
    assert_eq!(client.server_incarnation(), 77);
    for _ in 0..3 {
        script.then(Outcome::Done);
        client.perform(WHO, Operation::RemoveXattr { inode: ROOT, name: b"n".to_vec() }).unwrap();
    }
    let seen = script.seen();
    assert!(seen.iter().all(|request| request.client == ME));
    let numbers: Vec<_> = seen.iter().map(|request| (request.sequence, request.answered)).collect();
    assert_eq!(numbers, [(1, 0), (2, 1), (3, 2), (4, 3)]);
    assert_eq!(seen[1].credentials, WHO);
}

#[test]
fn a_lost_request_is_repeated_under_its_number() {
    let script = Script::new();
    let client = connect(&script);
    script.lose();
    script.lose();
    script.then(Outcome::Done);
    let operation = Operation::Unlink { parent: ROOT, name: b"x".to_vec() };
    client.perform(WHO, operation.clone()).unwrap();
    let seen = script.seen();
    assert_eq!(seen.len(), 4);
    for request in &seen[1..] {
        assert_eq!(request.sequence, 2);
        assert_eq!(request.answered, 1, "not answered, so never said to be");
        assert_eq!(request.operation, operation);
    }
}

#[test]
fn a_link_that_stays_cut_becomes_an_error() {
    let script = Script::new();
    let client = connect(&script);
    for _ in 0..QUICK.attempts {
        script.lose();
    }
    let operation = Operation::GetAttributes { inode: ROOT };
    assert_eq!(client.perform(WHO, operation.clone()).unwrap_err(), libc::EIO);
    assert!(!client.is_gone());
    // The link is back: the client goes on, and says that nothing is awaited any more.
    script.then(Outcome::Attributes(attributes(1, 0), Lease::NONE));
    client.perform(WHO, operation).unwrap();
    assert_eq!(script.seen().last().unwrap().answered, 2);
}

#[test]
fn a_server_that_is_gone_is_not_asked_again() {
    let script = Script::new();
    let client = connect(&script);
    script.step(|_| Err(TransportError::Gone));
    let operation = Operation::GetAttributes { inode: ROOT };
    assert_eq!(client.perform(WHO, operation.clone()).unwrap_err(), libc::EIO);
    assert!(client.is_gone());
    assert_eq!(client.perform(WHO, operation).unwrap_err(), libc::EIO);
    assert_eq!(script.seen().len(), 2);
}

#[test]
fn an_answer_to_another_request_is_an_error() {
    let script = Script::new();
    let client = connect(&script);
    script.step(|request| Ok(Reply { sequence: request.sequence + 1, result: Ok(Outcome::Done) }));
    let operation = Operation::Unlink { parent: ROOT, name: b"x".to_vec() };
    assert_eq!(client.perform(WHO, operation).unwrap_err(), libc::EIO);
}

#[test]
fn a_refused_greeting_says_why() {
    let script = Script::new();
    script.steps.lock().unwrap().clear();
    script.result(Err(libc::EPROTO));
    let refused = Client::connect(Arc::clone(&script) as _, ME, QUICK);
    assert!(matches!(refused, Err(ClientError::Refused(libc::EPROTO))));
    script.step(|_| Err(TransportError::Gone));
    let unreachable = Client::connect(Arc::clone(&script) as _, ME, QUICK);
    assert!(matches!(unreachable, Err(ClientError::Unreachable(TransportError::Gone))));
    script.then(Outcome::Done);
    let nonsense = Client::connect(script as _, ME, QUICK);
    assert!(matches!(nonsense, Err(ClientError::Nonsense)));
}

#[test]
fn names_and_attributes_under_lease_are_not_asked_for_again() {
    let script = Script::new();
    let client = connect(&script);
    script.then(entry(5, 10));
    let first = client.lookup(WHO, ROOT, b"a").unwrap();
    assert!(first.counted);
    let second = client.lookup(WHO, ROOT, b"a").unwrap();
    assert!(!second.counted, "the server has counted nothing");
    assert_eq!(second.attributes, first.attributes);
    assert_eq!(client.attributes(WHO, inode(5)).unwrap().0.size, 10);
    assert_eq!(script.seen().len(), 2);
    // An absent name is kept as well.
    script.then(Outcome::Entry(Entry {
        attributes: None,
        name_lease: LONG,
        in_kernel: true,
        attributes_lease: Lease::NONE,
    }));
    assert_eq!(client.lookup(WHO, ROOT, b"none").unwrap().attributes, None);
    assert_eq!(client.lookup(WHO, ROOT, b"none").unwrap().attributes, None);
    assert_eq!(script.seen().len(), 3);
}

#[test]
fn a_recall_while_the_reply_is_under_way_makes_it_not_cacheable() {
    let script = Script::new();
    let client = connect(&script);
    let told = script.told();
    let recalled = Arc::clone(&client);
    script.step(move |request| {
        // The server has answered; before the answer arrives, somebody changes the file.
        recalled.deliver(Notice::Recall { number: 1, stale: vec![Stale::Attributes(inode(5))] });
        Ok(Reply { sequence: request.sequence, result: Ok(entry(5, 10)) })
    });
    let found = client.lookup(WHO, ROOT, b"a").unwrap();
    assert_eq!(found.attributes_until, Until::Never);
    assert!(matches!(found.name, Until::At(_)), "the name was not recalled");
    assert_eq!(client.kept_attributes(inode(5)), None);
    let done = told.recv_timeout(WAIT).unwrap();
    assert_eq!(done.operation, Operation::RecallDone { notice: 1 });
    // The next answer is kept again.
    script.then(Outcome::Attributes(attributes(5, 20), LONG));
    assert_eq!(client.attributes(WHO, inode(5)).unwrap().0.size, 20);
    assert_eq!(client.kept_attributes(inode(5)).unwrap().0.size, 20);
}

#[test]
fn a_recalled_name_is_asked_for_again() {
    let script = Script::new();
    let client = connect(&script);
    script.then(entry(5, 10));
    client.lookup(WHO, ROOT, b"a").unwrap();
    client.deliver(Notice::Recall { number: 1, stale: vec![Stale::Name(ROOT, b"a".to_vec())] });
    script.then(entry(6, 0));
    assert_eq!(client.lookup(WHO, ROOT, b"a").unwrap().attributes.unwrap().inode, inode(6));
}

#[test]
fn own_changes_are_seen_at_once() {
    let script = Script::new();
    let client = connect(&script);
    script.then(entry(5, 10));
    client.lookup(WHO, ROOT, b"a").unwrap();
    // A write drops the attributes, whatever it says itself.
    script.then(Outcome::Written { length: 1, size: 11 });
    let write = Operation::Write {
        inode: inode(5),
        handle: dvs_fs::messages::Handle(1),
        offset: 10,
        append: false,
        kill_privileges: false,
        data: vec![0],
    };
    client.perform(WHO, write).unwrap();
    assert_eq!(client.kept_attributes(inode(5)), None);
    // A removal drops the name and the attributes of what it named (other names of it may remain).
    script.then(Outcome::Attributes(attributes(5, 11), LONG));
    client.attributes(WHO, inode(5)).unwrap();
    script.then(Outcome::Done);
    client.perform(WHO, Operation::Unlink { parent: ROOT, name: b"a".to_vec() }).unwrap();
    assert_eq!(client.kept_attributes(inode(5)), None);
    // What was made is known without asking.
    script.then(Outcome::Created {
        entry: Entry {
            attributes: Some(attributes(7, 0)),
            name_lease: LONG,
            in_kernel: true,
            attributes_lease: LONG,
        },
        handle: dvs_fs::messages::Handle(2),
        content: Lease::NONE,
    });
    let create = Operation::Create { parent: ROOT, name: b"a".to_vec(), mode: 0o644, flags: 0o2 };
    client.perform(WHO, create).unwrap();
    assert_eq!(client.lookup(WHO, ROOT, b"a").unwrap().attributes.unwrap().inode, inode(7));
}

#[test]
fn removing_a_name_that_is_not_known_here_drops_all_attributes() {
    let script = Script::new();
    let client = connect(&script);
    script.then(Outcome::Attributes(attributes(5, 1), LONG));
    client.attributes(WHO, inode(5)).unwrap();
    script.then(Outcome::Done);
    // This may be another name of the same file, whose number of links then changes.
    client.perform(WHO, Operation::Unlink { parent: ROOT, name: b"other".to_vec() }).unwrap();
    assert_eq!(client.kept_attributes(inode(5)), None);
}

#[test]
fn the_kernel_is_told_on_another_thread_and_before_the_server() {
    struct Recorder {
        events: Sender<String>,
        caller: std::thread::ThreadId,
    }
    impl Recorder {
        fn note(&self, what: String) {
            assert_ne!(std::thread::current().id(), self.caller);
            self.events.send(what).unwrap();
        }
    }
    impl Invalidator for Recorder {
        fn attributes(&self, inode: InodeId) {
            self.note(format!("attributes {}", inode.number));
        }
        fn content(&self, inode: InodeId) {
            self.note(format!("content {}", inode.number));
        }
        fn name(&self, _: InodeId, name: &[u8]) {
            self.note(format!("name {}", String::from_utf8_lossy(name)));
        }
    }
    let script = Script::new();
    let client = connect(&script);
    let (events, received) = channel();
    let told = script.told();
    let caller = std::thread::current().id();
    client.set_invalidator(Some(Arc::new(Recorder { events, caller })));
    client.deliver(Notice::Recall {
        number: 12,
        stale: vec![
            Stale::Attributes(inode(2)),
            Stale::Name(ROOT, b"n".to_vec()),
            Stale::Content(inode(3)),
        ],
    });
    let done = told.recv_timeout(WAIT).unwrap();
    assert_eq!(done.operation, Operation::RecallDone { notice: 12 });
    let all: Vec<String> = received.try_iter().collect();
    assert_eq!(all, ["attributes 2", "name n", "content 3"]);
}

#[test]
fn a_blocked_kernel_blocks_neither_recalls_nor_requests() {
    struct Blocked(Mutex<Receiver<()>>);
    impl Invalidator for Blocked {
        fn attributes(&self, _: InodeId) {
            let _ = self.0.lock().unwrap().recv_timeout(WAIT);
        }
        fn content(&self, _: InodeId) {}
        fn name(&self, _: InodeId, _: &[u8]) {}
    }
    let script = Script::new();
    let client = connect(&script);
    let told = script.told();
    let (release, blocked) = channel();
    client.set_invalidator(Some(Arc::new(Blocked(Mutex::new(blocked)))));
    let total = dvs_fs_client::notices::MAX_NOTICES as u64 + 100;
    for number in 0..total {
        client.deliver(Notice::Recall { number, stale: vec![Stale::Attributes(inode(5))] });
    }
    script.then(Outcome::Attributes(attributes(5, 1), LONG));
    client.attributes(WHO, inode(5)).unwrap();
    assert!(told.try_recv().is_err());
    // Without anybody in the way the queue empties, up to its bound and the one that blocked.
    client.set_invalidator(None);
    release.send(()).unwrap();
    let mut done = 0;
    while let Ok(request) = told.recv_timeout(Duration::from_secs(2)) {
        assert!(matches!(request.operation, Operation::RecallDone { .. }));
        done += 1;
        if done > dvs_fs_client::notices::MAX_NOTICES {
            break;
        }
    }
    assert!(done >= dvs_fs_client::notices::MAX_NOTICES, "{done}");
}

#[test]
fn forgotten_objects_are_told_together_and_waited_for() {
    let script = Script::new();
    let client = connect(&script);
    let told = script.told();
    client.forget(&[(inode(5), 1), (inode(6), 4)]);
    client.forget(&[(inode(5), 2)]);
    client.forget(&[]);
    let mut counts = std::collections::BTreeMap::new();
    while counts.values().sum::<u64>() < 7 {
        let request = told.recv_timeout(WAIT).unwrap();
        let Operation::Forget { inodes } = request.operation else { panic!("{request:?}") };
        for (inode, count) in inodes {
            *counts.entry(inode.number).or_default() += count;
        }
    }
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(5, 3), (6, 4)]);
}

#[test]
fn a_cancellation_does_not_hold_back_what_is_answered() {
    let script = Script::new();
    let client = connect(&script);
    client.cancel(99);
    script.then(Outcome::Done);
    client.perform(WHO, Operation::Unlink { parent: ROOT, name: b"x".to_vec() }).unwrap();
    let request = script.seen().last().unwrap().clone();
    assert_eq!((request.sequence, request.answered), (3, 2));
    let posted: Vec<_> = script.posted.lock().unwrap().iter().map(|it| it.sequence).collect();
    assert_eq!(posted, [2]);
}

#[test]
fn numbers_are_unique_and_the_mark_is_honest_under_load() {
    // Every request checks that nothing unanswered is said to be answered.
    struct Checker {
        open: Mutex<std::collections::BTreeSet<u64>>,
        used: Mutex<std::collections::HashSet<u64>>,
    }
    impl FsTransport for Checker {
        fn call(&self, request: Request) -> Result<Reply, TransportError> {
            if matches!(request.operation, Operation::Hello { .. }) {
                let root = Entry {
                    attributes: None,
                    name_lease: LONG,
                    in_kernel: true,
                    attributes_lease: LONG,
                };
                let outcome = Outcome::Welcome { root, server_incarnation: 1 };
                return Ok(Reply { sequence: request.sequence, result: Ok(outcome) });
            }
            assert!(self.used.lock().unwrap().insert(request.sequence));
            {
                let mut open = self.open.lock().unwrap();
                open.insert(request.sequence);
                assert!(open.iter().all(|number| *number > request.answered));
            }
            std::thread::yield_now();
            let mut open = self.open.lock().unwrap();
            open.remove(&request.sequence);
            Ok(Reply { sequence: request.sequence, result: Ok(Outcome::Done) })
        }
        fn post(&self, request: Request) {
            assert!(self.used.lock().unwrap().insert(request.sequence));
        }
    }
    let checker = Arc::new(Checker { open: Mutex::default(), used: Mutex::default() });
    let client = Client::connect(checker, ME, QUICK).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..500 {
                    if round % 7 == 0 {
                        client.cancel(thread);
                    }
                    let operation = Operation::RemoveXattr { inode: ROOT, name: vec![1] };
                    client.perform(WHO, operation).unwrap();
                }
            });
        }
    });
}

/// A file whose content is granted for ever is opened at the server only when it is read there.
#[test]
fn a_file_of_an_image_is_opened_again_without_a_message() {
    let script = Script::new();
    let client = Client::connect(script.clone(), ME, QUICK).unwrap();
    let inode = InodeId { number: 2, generation: 0 };
    let opened = |handle, content| Outcome::Opened { handle: Handle(handle), content };
    let read = |handle| Operation::Read { inode, handle, offset: 0, length: 1 };
    let release = |handle| Operation::Release { inode, handle, owner: None };

    script.then(opened(5, Lease::FOREVER));
    let (first, _) = client.open(WHO, inode, 0).unwrap();
    assert_eq!(first, Handle(5));

    // Closed without a message, as it was opened.
    let (unread, content) = client.open(WHO, inode, 0).unwrap();
    assert_eq!(content, Lease::FOREVER);
    client.perform(WHO, release(unread)).unwrap();
    assert_eq!(client.perform(WHO, release(unread)).unwrap_err(), libc::EBADF);

    // Opened with its first read, once.
    let (second, _) = client.open(WHO, inode, 0).unwrap();
    script.then(opened(6, Lease::FOREVER));
    script.then(Outcome::Data(b"a".to_vec()));
    script.then(Outcome::Data(b"b".to_vec()));
    client.perform(WHO, read(second)).unwrap();
    client.perform(WHO, read(second)).unwrap();
    script.then(Outcome::Done);
    client.perform(WHO, release(second)).unwrap();
    let seen: Vec<Operation> = script.seen().into_iter().map(|it| it.operation).skip(2).collect();
    let six = Handle(6);
    let open = Operation::Open { inode, flags: 0 };
    assert_eq!(seen, [open.clone(), read(six), read(six), release(six)]);

    // Not for writing, and not once the content is recalled.
    script.then(opened(7, Lease::NONE));
    assert_eq!(client.open(WHO, inode, libc::O_WRONLY.cast_unsigned()).unwrap().0, Handle(7));
    client.deliver(Notice::Recall { number: 1, stale: vec![Stale::Content(inode)] });
    script.then(opened(8, Lease::NONE));
    assert_eq!(client.open(WHO, inode, 0).unwrap().0, Handle(8));
    // An errno of the late opening is the operation's.
    script.then(opened(9, Lease::FOREVER));
    client.open(WHO, inode, 0).unwrap();
    let (late, _) = client.open(WHO, inode, 0).unwrap();
    script.result(Err(libc::EIO));
    assert_eq!(client.perform(WHO, read(late)).unwrap_err(), libc::EIO);
}
