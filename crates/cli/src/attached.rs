//! `dvs attach`: the terminal or streams of a detached container's first program, until it ends or the
//! detach keys are typed.

use crate::attach::Signals;
use crate::container_arguments::AttachArguments;
use crate::containers;
use crate::detach::DetachKeys;
use crate::failure::Failure;
use crate::logs::Form;
use crate::terminal::{self, Raw};
use dvs_node::managing::{ManageRequest, ManageResponse};
use dvs_node::protocol::{Request, Response};
use dvs_sys::descriptor::{self, Poll};
use dvs_sys::poll::EventFd;
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Bytes moved at a time.
const CHUNK: usize = 16 << 10;

/// `dvs attach`.
///
/// # Errors
/// When there is no such container, it does not run, or its daemon ends.
pub(crate) fn attach(arguments: &AttachArguments) -> Result<u8, Failure> {
    let keys = DetachKeys::parse(&arguments.detach_keys)?;
    let signals = Signals::take()?;
    let client = containers::home_of(&arguments.container)?;
    client.be_patient()?;
    let request = ManageRequest::Attach(arguments.container.clone());
    client.send(&Request::Manage(request), &[])?;
    let (response, descriptors) = client.receive()?;
    let Response::Manage(ManageResponse::Attached { terminal }) = response else {
        return Err(client.unexpected(&response));
    };
    let input = descriptors.into_iter().next();
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("attaching: {error}"));
    let mut raw = None;
    let size = input.as_ref().filter(|_| terminal);
    if let Some(master) = size {
        terminal::follow_size(master);
        if std::io::stdin().is_terminal() && !arguments.no_stdin {
            raw = Some(Raw::enter()?);
        }
    }
    // Readable when the keys were typed.
    let left = Arc::new(EventFd::new().map_err(|error| failed(&error))?);
    if let Some(to) = input.as_ref().filter(|_| !arguments.no_stdin) {
        let to = to.try_clone().map_err(|error| failed(&error))?;
        let left = Arc::clone(&left);
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || type_into(to, keys, &left))
            .map_err(|error| failed(&error))?;
    }
    let mut form = Form::new(false, false);
    let code = loop {
        let mut waits = [
            Poll::readable(client.as_fd()),
            Poll::readable(signals.as_fd()),
            Poll::readable((*left).as_fd()),
        ];
        descriptor::poll(&mut waits, None).map_err(|error| failed(&error))?;
        let [answer, signal, keys] = waits.map(|wait| wait.ready != 0);
        if keys {
            break 0;
        }
        if signal {
            for taken in signals.taken()? {
                match taken.signal {
                    libc::SIGWINCH => {
                        if let Some(master) = size {
                            terminal::follow_size(master);
                        }
                    }
                    libc::SIGTSTP | libc::SIGCONT => {}
                    signal => client.send(&Request::Signal { signal, group: false }, &[])?,
                }
            }
        }
        if answer {
            match client.receive()?.0 {
                Response::Manage(ManageResponse::Output(pieces)) => {
                    if !pieces.iter().all(|piece| form.write(piece)) {
                        break 0;
                    }
                }
                Response::Manage(ManageResponse::Exit(code)) => break code,
                other => return Err(client.unexpected(&other)),
            }
        }
    };
    drop(raw);
    Ok(code)
}

/// Copies what is typed until the keys come, which `left` tells. The end of the input is not passed on:
/// the program's input stays open for who attaches next.
fn type_into(to: OwnedFd, mut keys: DetachKeys, left: &EventFd) {
    let mut to = File::from(to);
    let mut input = std::io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => {
                let (passed, found) = keys.feed(buffer.get(..got).unwrap_or_default());
                if to.write_all(&passed).is_err() {
                    break;
                }
                if found {
                    if let Err(error) = left.signal() {
                        log::error!("leaving: {error}");
                    }
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
}
