//! Answers to what is asked about containers: at once, or as a stream for as long as the connection
//! is there.

use crate::control::Answers;
use crate::detached::{Entry, Output, Phase, Place};
use crate::host::{Host, Program};
use crate::managing::{Event, ManageRequest, ManageResponse, OutputPiece};
use crate::protocol::{Ended, EndedHow, Failure, Response};
use crate::wire::WireError;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a stream that has nothing to tell looks whether somebody still listens.
const LOOK: Duration = Duration::from_millis(500);
/// Most bytes of output in one message.
const MAX_BATCH: usize = 512 << 10;

/// What a connection looks at: a stream of answers, which ends with the connection. Signals of the
/// connection go to the program that is looked at.
struct Watch {
    gone: AtomicBool,
    program: Option<Arc<dyn Program>>,
}

impl Watch {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

impl Program for Watch {
    fn signal(&self, signal: i32, group: bool) {
        if let Some(program) = &self.program {
            program.signal(signal, group);
        }
    }

    fn wait(&self) -> Ended {
        match &self.program {
            Some(program) => program.wait(),
            None => Ended { how: EndedHow::Lost("nothing runs here".into()), statistics: None },
        }
    }

    fn end_now(&self) {
        if let Some(program) = &self.program {
            program.end_now();
        }
    }

    fn abandon(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}

/// Answers one request; a stream is returned, to be told when the connection is gone.
pub(crate) fn manage(
    host: &Arc<Host>,
    request: ManageRequest,
    answers: &Answers,
) -> Result<Option<Arc<dyn Program>>, WireError> {
    let answer = |result: Result<Response, Failure>| {
        answers.send(&result.unwrap_or_else(Response::Failed), &[]).map(|()| None)
    };
    let done = |result: Result<(), Failure>| answer(result.map(|()| Response::Done));
    let told = |response| Response::Manage(response);
    match request {
        ManageRequest::Run(options, program, detached) => {
            answer(host.run_detached(*options, *program, *detached))
        }
        ManageRequest::List { all } => answer(Ok(told(ManageResponse::Details(host.details(all))))),
        ManageRequest::Start(name) => done(host.start_again(&name)),
        ManageRequest::Stop { name, signal, seconds, restart } => {
            done(host.stop_container(&name, signal, seconds, restart))
        }
        ManageRequest::Kill { name, signal } => done(host.kill_container(&name, signal)),
        ManageRequest::Remove { name, force } => done(host.remove(&name, force)),
        ManageRequest::Rename { name, to } => done(host.rename(&name, &to)),
        ManageRequest::Freeze { name, frozen } => done(host.freeze(&name, frozen)),
        ManageRequest::Usage(of) => {
            answer(host.usage(of.as_deref()).map(|list| told(ManageResponse::Usage(list))))
        }
        ManageRequest::Update { name, limits } => {
            answer(host.update(&name, &limits).map(|list| told(ManageResponse::Warnings(list))))
        }
        ManageRequest::Wait(name) => match host.await_exit(&name) {
            Ok(awaited) => {
                let host = Arc::clone(host);
                stream(answers, None, move |watch, answers| {
                    while !watch.is_gone() {
                        if let Some(exit) = host.exit_of(&awaited, LOOK) {
                            let exit = exit.map(|code| told(ManageResponse::Exit(code)));
                            return answers.send(&exit.unwrap_or_else(Response::Failed), &[]);
                        }
                    }
                    Ok(())
                })
            }
            Err(failure) => answer(Err(failure)),
        },
        ManageRequest::Output { name, follow, since, tail } => match host.detached_output(&name) {
            Ok(entry) => stream(answers, None, move |watch, answers| {
                tell_output(&entry, watch, answers, follow, since, tail)
            }),
            Err(failure) => answer(Err(failure)),
        },
        ManageRequest::Attach(name) => attach(host, &name, answers),
        ManageRequest::Events { since, follow } => {
            let host = Arc::clone(host);
            stream(answers, None, move |watch, answers| {
                tell_events(&host, watch, answers, since, follow)
            })
        }
    }
}

/// Runs a stream on a thread of its own.
fn stream(
    answers: &Answers,
    program: Option<Arc<dyn Program>>,
    body: impl FnOnce(&Watch, &Answers) -> Result<(), WireError> + Send + 'static,
) -> Result<Option<Arc<dyn Program>>, WireError> {
    let watch = Arc::new(Watch { gone: AtomicBool::new(false), program });
    let (own, to) = (Arc::clone(&watch), answers.clone());
    let spawned = std::thread::Builder::new().name("stream".into()).spawn(move || {
        if let Err(error) = body(&own, &to) {
            log::debug!("nobody listens to a stream any more: {error}");
        }
    });
    match spawned {
        Ok(_) => Ok(Some(watch)),
        Err(error) => {
            let failure = Failure::new(format!("no thread for an answer: {error}"));
            answers.send(&Response::Failed(failure), &[]).map(|()| None)
        }
    }
}

fn tell_output(
    entry: &Arc<Entry>,
    watch: &Watch,
    answers: &Answers,
    follow: bool,
    since: Option<i64>,
    tail: Option<u64>,
) -> Result<(), WireError> {
    let (pieces, mut place) = entry.output().all(since, tail);
    send_pieces(answers, pieces)?;
    while follow && !watch.is_gone() {
        // Looked at before the output is: what came before the end is told.
        let over = matches!(entry.phase(), Phase::Exited | Phase::Removed);
        let told = tell_more(entry.output(), &mut place, answers, over)?;
        if over && !told {
            break;
        }
    }
    answers.send(&Response::Done, &[])
}

/// Sends what came meanwhile; whether there was something.
fn tell_more(
    output: &Output,
    place: &mut Place,
    answers: &Answers,
    over: bool,
) -> Result<bool, WireError> {
    let pieces = output.read(place, if over { Duration::ZERO } else { LOOK });
    let some = !pieces.is_empty();
    send_pieces(answers, pieces)?;
    Ok(some)
}

fn send_pieces(answers: &Answers, pieces: Vec<OutputPiece>) -> Result<(), WireError> {
    let mut batch = Vec::new();
    let mut size = 0;
    for piece in pieces {
        size += piece.bytes.len() + 32;
        batch.push(piece);
        if size >= MAX_BATCH {
            let full = std::mem::take(&mut batch);
            answers.send(&Response::Manage(ManageResponse::Output(full)), &[])?;
            size = 0;
        }
    }
    if batch.is_empty() {
        return Ok(());
    }
    answers.send(&Response::Manage(ManageResponse::Output(batch)), &[])
}

fn attach(
    host: &Arc<Host>,
    name: &str,
    answers: &Answers,
) -> Result<Option<Arc<dyn Program>>, WireError> {
    let looked = host.detached_output(name).and_then(|entry| match entry.program() {
        Some(program) => Ok((entry, program)),
        None => {
            Err(Failure::new(format!("container {name} does not run; start it: dvs start {name}")))
        }
    });
    let (entry, program) = match looked {
        Ok(found) => found,
        Err(failure) => return answers.send(&Response::Failed(failure), &[]).map(|()| None),
    };
    let (input, terminal) = entry.input();
    let life = entry.life();
    let mut place = entry.output().end();
    let descriptors: Vec<_> = input.iter().map(AsFd::as_fd).collect();
    answers.send(&Response::Manage(ManageResponse::Attached { terminal }), &descriptors)?;
    stream(answers, Some(program), move |watch, answers| {
        while !watch.is_gone() {
            // Looked at before the output is: what came before the end is told.
            let exit = entry.wait_exit(life, Duration::ZERO);
            let told = tell_more(entry.output(), &mut place, answers, exit.is_some())?;
            if let Some(exit) = exit.filter(|_| !told) {
                let exit = exit.map(|code| Response::Manage(ManageResponse::Exit(code)));
                return answers.send(&exit.unwrap_or_else(Response::Failed), &[]);
            }
        }
        Ok(())
    })
}

fn tell_events(
    host: &Host,
    watch: &Watch,
    answers: &Answers,
    since: Option<i64>,
    follow: bool,
) -> Result<(), WireError> {
    let send =
        |events: Vec<Event>| answers.send(&Response::Manage(ManageResponse::Events(events)), &[]);
    let mut next = if since.is_some() { 0 } else { host.events().next() };
    let mut first = host.events().read(&mut next, Duration::ZERO);
    first.retain(|event| since.is_none_or(|since| event.time >= since));
    // Also when it is empty: the listener knows then that nothing more will be missed.
    send(first)?;
    while follow && !watch.is_gone() {
        let events = host.events().read(&mut next, LOOK);
        if !events.is_empty() {
            send(events)?;
        }
    }
    if follow { Ok(()) } else { answers.send(&Response::Done, &[]) }
}
