//! `dvs logs`: what detached containers have written.

use crate::container_arguments::LogsArguments;
use crate::containers;
use crate::failure::Failure;
use crate::times;
use dvs_node::managing::{ManageRequest, ManageResponse, OutputPiece};
use dvs_node::protocol::{Request, Response};
use dvs_sys::clock;
use std::io::Write;

/// `dvs logs`.
///
/// # Errors
/// When there is no such detached container.
pub(crate) fn logs(arguments: &LogsArguments) -> Result<u8, Failure> {
    let tail =
        match arguments.tail.as_str() {
            "all" | "-1" => None,
            word => Some(word.parse().map_err(|_| {
                Failure::new(format!("--tail {word}: give a number of lines, or all"))
            })?),
        };
    let since = arguments.since.as_deref();
    let since = since.map(|word| times::moment("--since", word, clock::real())).transpose()?;
    let client = containers::home_of(&arguments.container)?;
    client.be_patient()?;
    let request = ManageRequest::Output {
        name: arguments.container.clone(),
        follow: arguments.follow,
        since,
        tail,
    };
    client.send(&Request::Manage(request), &[])?;
    let mut form = Form::new(arguments.timestamps, arguments.list.json);
    loop {
        match client.receive()?.0 {
            Response::Manage(ManageResponse::Output(pieces)) => {
                for piece in &pieces {
                    if !form.write(piece) {
                        // Nobody reads any more.
                        return Ok(0);
                    }
                }
            }
            Response::Done => {
                form.finish();
                return Ok(0);
            }
            other => return Err(client.unexpected(&other)),
        }
    }
}

/// How pieces are written.
pub(crate) struct Form {
    timestamps: bool,
    json: bool,
    /// Per stream: the begun line of JSON, and whether a line is begun.
    begun: [(Vec<u8>, i64); 2],
}

impl Form {
    /// Plainly, or with times, or as JSON lines.
    pub(crate) fn new(timestamps: bool, json: bool) -> Form {
        Form { timestamps, json, begun: Default::default() }
    }

    /// Writes a piece to the stream it came from; false: nobody reads any more.
    pub(crate) fn write(&mut self, piece: &OutputPiece) -> bool {
        let bytes = self.shown(piece);
        // As docker has it, JSON is all on standard output.
        if piece.stream == 2 && !self.json {
            put(std::io::stderr().lock(), &bytes)
        } else {
            put(std::io::stdout().lock(), &bytes)
        }
    }

    fn shown(&mut self, piece: &OutputPiece) -> Vec<u8> {
        if !self.json && !self.timestamps {
            return piece.bytes.clone();
        }
        let index = usize::from(piece.stream == 2);
        let Some((begun, time)) = self.begun.get_mut(index) else { return Vec::new() };
        let mut shown = Vec::new();
        for line in piece.bytes.split_inclusive(|byte| *byte == b'\n') {
            if begun.is_empty() {
                *time = piece.time;
                if !self.json {
                    shown.extend_from_slice(times::shown(piece.time).as_bytes());
                    shown.push(b' ');
                }
            }
            if self.json {
                begun.extend_from_slice(line);
            } else {
                begun.resize(1, 0);
                shown.extend_from_slice(line);
            }
            if line.ends_with(b"\n") {
                if self.json {
                    shown.extend_from_slice(&object(*time, piece.stream, begun));
                }
                begun.clear();
            }
        }
        shown
    }

    /// A last line without an end.
    fn finish(&mut self) {
        if !self.json {
            return;
        }
        for (stream, (begun, time)) in [1, 2].into_iter().zip(&self.begun) {
            if !begun.is_empty() {
                put(std::io::stdout().lock(), &object(*time, stream, begun));
            }
        }
    }
}

fn object(time: i64, stream: u8, line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    let value = serde_json::json!({
        "time": times::shown(time),
        "stream": if stream == 2 { "stderr" } else { "stdout" },
        "text": text.trim_end_matches('\n'),
    });
    format!("{value}\n").into_bytes()
}

fn put(mut to: impl Write, bytes: &[u8]) -> bool {
    to.write_all(bytes).and_then(|()| to.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(stream: u8, time: i64, text: &str) -> OutputPiece {
        OutputPiece { stream, time, bytes: text.as_bytes().to_vec() }
    }

    #[test]
    fn lines_begin_with_the_time_of_their_beginning() {
        let mut form = Form::new(true, false);
        let mut shown = |piece| String::from_utf8(form.shown(&piece)).unwrap();
        let (one, two) = (times::shown(1), times::shown(2));
        assert_eq!(shown(piece(1, 1, "a\nb")), format!("{one} a\n{one} b"));
        assert_eq!(shown(piece(1, 2, "c\nd\n")), format!("c\n{two} d\n"));
    }

    #[test]
    fn json_lines_are_whole() {
        let mut form = Form::new(false, true);
        assert!(form.shown(&piece(2, 1, "a")).is_empty());
        let line = form.shown(&piece(2, 2, "b\n"));
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(
            (value["text"].as_str(), value["stream"].as_str()),
            (Some("ab"), Some("stderr"))
        );
        assert_eq!(value["time"], times::shown(1));
    }

    #[test]
    fn plain_output_is_as_it_was() {
        let mut form = Form::new(false, false);
        assert_eq!(form.shown(&piece(1, 1, "x\r\n")), b"x\r\n");
    }
}
