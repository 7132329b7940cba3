//! Typed services: an enum of requests becomes a server loop and a client.
//!
//! Every request carries its client and a sequence number. The server keeps the last answers of each
//! client and gives them again to a repeated request, so that a client may repeat what was not
//! answered in time without its being done twice. The identity lasts as long as the server's
//! process; what must outlive that belongs into the service's own state.

use crate::deliver::in_handler;
use crate::endpoint::Endpoint;
use crate::error::CallError;
use crate::ids::{Address, Lane};
use crate::message::{Message, ReplyTo};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Answers that a server keeps of each client; a client repeats only its latest requests.
pub const KEPT_ANSWERS: usize = 64;
/// Clients that a server remembers; the one that came first is forgotten first.
pub const KEPT_CLIENTS: usize = 4096;
/// Requests that wait for a worker of a server; further ones are dropped, their callers hear so.
pub const QUEUED_REQUESTS: usize = 4096;
/// Most workers of one server.
pub const MAX_WORKERS: usize = 64;
/// Pause before a busy server is asked again.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    sequence: u64,
    body: T,
}

/// What is known of one request of a client.
enum Known {
    /// It is being worked on; whoever repeats it gets the answer, too.
    Running(Vec<ReplyTo>),
    Answered(Vec<u8>),
}

#[derive(Default)]
struct Client {
    requests: BTreeMap<u64, Known>,
    /// Everything up to this one is answered and forgotten.
    forgotten: u64,
}

/// Answers by client, so that no request is executed twice.
#[derive(Default)]
struct ReplyCache {
    clients: HashMap<Address, Client>,
    order: VecDeque<Address>,
}

/// What to do with a request. Answers are given, and rights to answer dropped, outside the cache's
/// lock: that may run callbacks of this process.
enum Begun {
    /// It is new.
    Execute,
    /// It is being worked on.
    Waits,
    /// It was answered already.
    Answer(ReplyTo, Vec<u8>),
    /// It is so old that its answer is forgotten.
    Drop(ReplyTo),
}

impl ReplyCache {
    fn begin(&mut self, client: Address, sequence: u64, reply: ReplyTo) -> (Begun, Option<Client>) {
        let mut evicted = None;
        if !self.clients.contains_key(&client) {
            if self.order.len() >= KEPT_CLIENTS
                && let Some(oldest) = self.order.pop_front()
            {
                evicted = self.clients.remove(&oldest);
            }
            self.order.push_back(client);
        }
        let state = self.clients.entry(client).or_default();
        let begun = match state.requests.get_mut(&sequence) {
            Some(Known::Running(waiting)) => {
                waiting.push(reply);
                Begun::Waits
            }
            Some(Known::Answered(answer)) => Begun::Answer(reply, answer.clone()),
            None if sequence <= state.forgotten => Begun::Drop(reply),
            None => {
                state.requests.insert(sequence, Known::Running(vec![reply]));
                Begun::Execute
            }
        };
        (begun, evicted)
    }

    fn end(&mut self, client: Address, sequence: u64, answer: &[u8]) -> Vec<ReplyTo> {
        let Some(state) = self.clients.get_mut(&client) else { return Vec::new() };
        let known = state.requests.insert(sequence, Known::Answered(answer.to_vec()));
        while state.requests.len() > KEPT_ANSWERS {
            // Only answered ones are forgotten, from the oldest on.
            match state.requests.first_key_value() {
                Some((oldest, Known::Answered(_))) => {
                    state.forgotten = *oldest;
                    state.requests.pop_first();
                }
                _ => break,
            }
        }
        match known {
            Some(Known::Running(waiting)) => waiting,
            _ => Vec::new(),
        }
    }

    /// The request was not executed, or not to its end: it may come again.
    #[must_use]
    fn abandon(&mut self, client: Address, sequence: u64) -> Option<Known> {
        self.clients.get_mut(&client)?.requests.remove(&sequence)
    }
}

struct Server<Req, Rep> {
    answer: Box<dyn Fn(Address, Req) -> Rep + Send + Sync>,
    cache: Mutex<ReplyCache>,
}

impl<Req: DeserializeOwned, Rep: Serialize> Server<Req, Rep> {
    fn execute(&self, client: Address, request: Envelope<Req>) {
        let sequence = request.sequence;
        let abandon = Abandon { cache: &self.cache, client, sequence };
        let reply = (self.answer)(client, request.body);
        // Without an encoding the callers hear that their request was dropped.
        let Ok(bytes) = postcard::to_stdvec(&reply) else { return };
        std::mem::forget(abandon);
        let waiting = self.cache.lock().unwrap().end(client, sequence, &bytes);
        for reply in waiting {
            reply.reply(bytes.clone());
        }
    }

    /// The request of a message, if it is to be executed.
    fn accept(&self, mut message: Message) -> Option<(Address, Envelope<Req>)> {
        let reply = message.take_reply()?;
        let envelope: Envelope<Req> = postcard::from_bytes(&message.body).ok()?;
        let begun = self.cache.lock().unwrap().begin(message.source, envelope.sequence, reply);
        match begun.0 {
            Begun::Execute => Some((message.source, envelope)),
            Begun::Answer(reply, answer) => {
                reply.reply(answer);
                None
            }
            Begun::Drop(reply) => {
                drop(reply);
                None
            }
            Begun::Waits => None,
        }
    }
}

/// Takes a request out of the cache if its execution panicked.
struct Abandon<'a> {
    cache: &'a Mutex<ReplyCache>,
    client: Address,
    sequence: u64,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        let known = self.cache.lock().unwrap().abandon(self.client, self.sequence);
        drop(known);
    }
}

/// Serves requests at an endpoint, until the endpoint is closed. With 0 workers `answer` runs on the
/// delivering thread and must not block, see [`Endpoint::set_handler`]; otherwise on that many
/// threads (at most [`MAX_WORKERS`]), and requests may overtake each other.
///
/// # Errors
/// When a thread cannot be started.
pub fn serve<Req, Rep>(
    endpoint: &Endpoint,
    workers: usize,
    answer: impl Fn(Address, Req) -> Rep + Send + Sync + 'static,
) -> std::io::Result<()>
where
    Req: DeserializeOwned + Send + 'static,
    Rep: Serialize + 'static,
{
    let server = Arc::new(Server { answer: Box::new(answer), cache: Mutex::default() });
    if workers == 0 {
        endpoint.set_handler(move |message| {
            if let Some((client, request)) = server.accept(message) {
                server.execute(client, request);
            }
        });
        return Ok(());
    }
    type Job<Req> = (Address, Envelope<Req>);
    let (jobs, queue): (SyncSender<Job<Req>>, Receiver<Job<Req>>) = sync_channel(QUEUED_REQUESTS);
    let queue = Arc::new(Mutex::new(queue));
    for _ in 0..workers.min(MAX_WORKERS) {
        let (server, queue) = (Arc::clone(&server), Arc::clone(&queue));
        // The threads end when the handler, which owns the sender, goes with the endpoint.
        std::thread::Builder::new().name("dvk-serve".into()).spawn(move || {
            loop {
                let job = queue.lock().unwrap().recv();
                let Ok((client, request)) = job else { return };
                // A panic is printed by its hook; the callers hear that the request was dropped.
                let _ = catch_unwind(AssertUnwindSafe(|| server.execute(client, request)));
            }
        })?;
    }
    endpoint.set_handler(move |message| {
        let Some(job) = server.accept(message) else { return };
        if let Err(
            TrySendError::Full((client, request)) | TrySendError::Disconnected((client, request)),
        ) = jobs.try_send(job)
        {
            // Its caller hears that it was dropped, and may repeat it.
            let known = server.cache.lock().unwrap().abandon(client, request.sequence);
            drop(known);
        }
    });
    Ok(())
}

/// A client of a typed service. It has an endpoint of its own, whose address is its identity.
#[derive(Debug)]
pub struct Caller<Req, Rep> {
    endpoint: Endpoint,
    to: Address,
    lane: Lane,
    next: AtomicU64,
    types: PhantomData<fn(Req) -> Rep>,
}

impl<Req: Serialize, Rep: DeserializeOwned> Caller<Req, Rep> {
    /// A client. The endpoint must be used by nothing else: request numbers begin at 1 with it.
    #[must_use]
    pub fn new(endpoint: Endpoint, to: Address) -> Self {
        Caller { endpoint, to, lane: Lane::Small, next: AtomicU64::new(1), types: PhantomData }
    }

    /// Uses another lane.
    #[must_use]
    pub fn on(self, lane: Lane) -> Self {
        Caller { lane, ..self }
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> Address {
        self.to
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// No answer.
    pub fn call(&self, request: &Req, timeout: Duration) -> Result<Rep, CallError> {
        self.call_repeating(request, timeout, timeout)
    }

    /// Asks, and asks again whenever there was no answer within `attempt`, up to `total`. However
    /// often it is repeated, the server executes the request once at most (again only if an
    /// execution panicked, or if [`KEPT_CLIENTS`] others came in between).
    ///
    /// # Errors
    /// No answer.
    pub fn call_repeating(
        &self,
        request: &Req,
        attempt: Duration,
        total: Duration,
    ) -> Result<Rep, CallError> {
        if in_handler() {
            return Err(CallError::InHandler);
        }
        let until = Instant::now() + total;
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        let envelope = Envelope { sequence, body: request };
        let body = postcard::to_stdvec(&envelope).map_err(|_| CallError::Malformed)?;
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            let result =
                self.endpoint.call_on(self.lane, &self.to, body.clone(), attempt.min(rest));
            match result {
                Ok(reply) => {
                    return postcard::from_bytes(&reply).map_err(|_| CallError::Malformed);
                }
                Err(
                    CallError::TimedOut { .. } | CallError::Busy { .. } | CallError::Dropped { .. },
                ) if rest > attempt => std::thread::sleep(PAUSE),
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks, and calls back with the answer; see [`Endpoint::call_with`].
    pub fn call_with(
        &self,
        request: &Req,
        timeout: Duration,
        callback: impl FnOnce(Result<Rep, CallError>) + Send + 'static,
    ) {
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        let envelope = Envelope { sequence, body: request };
        let Ok(body) = postcard::to_stdvec(&envelope) else {
            callback(Err(CallError::Malformed));
            return;
        };
        self.endpoint.call_with(self.lane, &self.to, body, timeout, move |result| {
            callback(
                result.and_then(|reply| {
                    postcard::from_bytes(&reply).map_err(|_| CallError::Malformed)
                }),
            );
        });
    }
}
