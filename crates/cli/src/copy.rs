//! `dvs cp`: files into and out of a container, as a tar stream that a `tar` inside makes or takes.
//!
//! What comes out was written by a guest: only plain files, folders and links are taken from it, with
//! the permission bits alone, and never outside the target (`tar::Archive` sees to that).

use crate::container_arguments::CopyArguments;
use crate::containers;
use crate::failure::Failure;
use dvs_node::client::Client;
use dvs_node::folders::reason;
use dvs_node::protocol::{EndedHow, ProgramOptions, Request, Response, Text};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::thread::JoinHandle;

/// Most bytes kept of what the `tar` inside complains about.
const MAX_COMPLAINT: u64 = 4096;

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// A tar stream on standard input or output.
    Stream,
    /// On this machine.
    Here(PathBuf),
    /// In a container; absolute.
    Inside(String, PathBuf),
}

impl End {
    /// `-`, `PATH`, `DC:PATH`. A path with a colon is written with a slash before it: `./a:b`.
    fn parse(word: &OsStr) -> Result<End, Failure> {
        if word == "-" {
            return Ok(End::Stream);
        }
        let bytes = word.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':');
        let (name, path) = match colon {
            Some(at) if !bytes.get(..at).unwrap_or_default().contains(&b'/') => {
                (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..).unwrap_or_default())
            }
            _ => return Ok(End::Here(PathBuf::from(word))),
        };
        let wrong = |what: &str| Failure::new(format!("{}: {what}", word.to_string_lossy()));
        let name = std::str::from_utf8(name).map_err(|_| wrong("no container has such a name"))?;
        if name.is_empty() || path.is_empty() {
            return Err(wrong("write DC:PATH, such as web:/srv/data"));
        }
        // Relative to the root, as docker has it.
        Ok(End::Inside(name.to_owned(), Path::new("/").join(OsStr::from_bytes(path))))
    }
}

/// `dvs cp`.
///
/// # Errors
/// When one of the ends does not exist or cannot be used.
pub(crate) fn cp(arguments: &CopyArguments) -> Result<u8, Failure> {
    match (End::parse(&arguments.from)?, End::parse(&arguments.to)?) {
        (End::Inside(name, path), End::Here(target)) => copy_out(&name, &path, &target),
        (End::Inside(name, path), End::Stream) => {
            let (folder, word) = split(&path)?;
            let make = tar_of(&folder, &word);
            stream(&name, &make, None, Some(std::io::stdout().as_fd().try_clone_to_owned()))
        }
        (End::Here(source), End::Inside(name, path)) => copy_in(&source, &name, &path),
        (End::Stream, End::Inside(name, path)) => {
            let take = [b"tar".as_slice(), b"-x", b"-f", b"-", b"--no-same-owner", b"-C"];
            let mut words: Vec<Vec<u8>> = take.iter().map(|word| word.to_vec()).collect();
            words.push(path.as_os_str().as_bytes().to_vec());
            stream(&name, &words, Some(std::io::stdin().as_fd().try_clone_to_owned()), None)
        }
        (End::Inside(..), End::Inside(..)) => Err(Failure::new(
            "one end must be on this machine; copy in two steps, or: dvs cp A:PATH - | dvs cp - B:PATH",
        )),
        _ => Err(Failure::new("one end must be in a container: DC:PATH; see: dvs cp --help")),
    }
}

/// Folder and last name of a path inside; the root has none.
fn split(path: &Path) -> Result<(PathBuf, Vec<u8>), Failure> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(Failure::new(format!("{}: write the path without '..'", path.display())));
    }
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => Ok((folder.to_owned(), name.as_bytes().to_vec())),
        _ => Ok((PathBuf::from("/"), b".".to_vec())),
    }
}

fn tar_of(folder: &Path, name: &[u8]) -> Vec<Vec<u8>> {
    let mut words: Vec<Vec<u8>> =
        [b"tar".as_slice(), b"-c", b"-f", b"-", b"-C"].iter().map(|word| word.to_vec()).collect();
    words.push(folder.as_os_str().as_bytes().to_vec());
    words.push(b"--".to_vec());
    words.push(name.to_vec());
    words
}

/// A program in a container whose streams are ours.
struct Inside {
    client: Client,
    complaint: JoinHandle<String>,
}

impl Inside {
    /// Starts it. `input` and `output`: the program's own ends.
    fn start(
        container: &str,
        words: &[Vec<u8>],
        input: OwnedFd,
        output: OwnedFd,
    ) -> Result<Inside, Failure> {
        let client = containers::home_of(container)?;
        client.be_patient()?;
        let (complaints, error) = std::io::pipe().map_err(|error| streams(&error))?;
        let program = ProgramOptions {
            arguments: words.iter().map(|word| Text(word.clone())).collect(),
            umask: 0o22,
            ..ProgramOptions::default()
        };
        let request = Request::Exec(container.to_owned(), Box::new(program));
        client.send(&request, &[input.as_fd(), output.as_fd(), error.as_fd()])?;
        // The program's ends are its own now: its end must be seen.
        drop((input, output, error));
        match client.receive() {
            Ok((Response::Started { .. }, _)) => {}
            Ok((other, _)) => return Err(client.unexpected(&other)),
            Err(failure) if failure.exit == dvs_node::protocol::EXIT_NOT_FOUND => {
                return Err(Failure::new(format!(
                    "{failure}: files are copied by the container's own tar and test; add them to its image"
                )));
            }
            Err(failure) => return Err(failure),
        }
        let complaint = std::thread::spawn(move || {
            let mut text = String::new();
            // What is no text is not shown.
            let _ = complaints.take(MAX_COMPLAINT).read_to_string(&mut text);
            text
        });
        Ok(Inside { client, complaint })
    }

    /// Waits for its end: exit code and what it said on standard error.
    fn end(self) -> Result<(u8, String), Failure> {
        loop {
            match self.client.receive()?.0 {
                Response::Ended(ended) => {
                    if let EndedHow::Lost(why) = ended.how {
                        return Err(Failure::new(why));
                    }
                    let text = self.complaint.join().unwrap_or_default();
                    return Ok((ended.how.exit_code(), text));
                }
                Response::Notice(text) => crate::failure::print_warning(&text),
                other => return Err(self.client.unexpected(&other)),
            }
        }
    }

    /// The same; an exit code other than 0 is a failure.
    fn end_well(self, what: &str) -> Result<(), Failure> {
        let (code, text) = self.end()?;
        if code == 0 {
            return Ok(());
        }
        let said = text.lines().next().unwrap_or("no reason was given");
        Err(Failure::new(format!("{what}: {said} (exit code {code})")))
    }
}

fn streams(error: &std::io::Error) -> Failure {
    Failure::new(format!("streams: {}", reason(error)))
}

fn null() -> Result<OwnedFd, Failure> {
    let file = File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(|error| streams(&error))
}

/// Runs a tar inside between it and one of our streams.
fn stream(
    name: &str,
    words: &[Vec<u8>],
    input: Option<std::io::Result<OwnedFd>>,
    output: Option<std::io::Result<OwnedFd>>,
) -> Result<u8, Failure> {
    let end = |given: Option<std::io::Result<OwnedFd>>| match given {
        Some(fd) => {
            let fd = fd.map_err(|error| streams(&error))?;
            match crate::stdio::kind(fd.as_fd()).map_err(|error| streams(&error))? {
                crate::stdio::Kind::Harmless => Ok(fd),
                crate::stdio::Kind::Terminal => Err(Failure::new(
                    "a tar stream is no text for a terminal; connect a pipe or file",
                )),
                crate::stdio::Kind::Refused(what) => {
                    Err(Failure::new(format!("the stream is {what}; put a pipe between (cat)")))
                }
            }
        }
        None => null(),
    };
    let (input, output) = (end(input)?, end(output)?);
    Inside::start(name, words, input, output)?.end_well(&format!("copying with {name}"))?;
    Ok(0)
}

/// Whether a path inside is a folder (`-d`) or there at all (`-e`).
fn is(name: &str, what: &str, path: &Path) -> Result<bool, Failure> {
    let words = [b"test".to_vec(), what.as_bytes().to_vec(), path.as_os_str().as_bytes().to_vec()];
    let (code, _) = Inside::start(name, &words, null()?, null()?)?.end()?;
    Ok(code == 0)
}

/// Whether the content of a folder is meant, not itself: `folder/.`.
fn means_content(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/.") || bytes == b"."
}

fn copy_out(name: &str, path: &Path, target: &Path) -> Result<u8, Failure> {
    let (folder, word) = split(path)?;
    let whole = format!("{name}:{}", path.display());
    if !is(name, "-e", path)? {
        return Err(Failure::new(format!("{whole}: No such file or directory")));
    }
    let source_is_folder = is(name, "-d", path)?;
    let place = place(
        source_is_folder,
        means_content(path) || word == b".",
        OsStr::from_bytes(&word),
        target,
        Look { folder: target.is_dir(), there: target.symlink_metadata().is_ok() },
        |parent| Ok(parent.is_dir()),
    )?;
    let (reader, writer) = std::io::pipe().map_err(|error| streams(&error))?;
    let tar = Inside::start(name, &tar_of(&folder, &word), null()?, writer.into())?;
    let unpacked = unpack(reader, &word, &place);
    let ended = tar.end_well(&whole);
    // If both failed the first one is the reason of the second.
    unpacked.and(ended)?;
    Ok(0)
}

/// What is known of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    folder: bool,
    there: bool,
}

/// Where a source comes to lie, by docker's rules (`docker cp --help`).
fn place(
    source_is_folder: bool,
    content: bool,
    name: &OsStr,
    target: &Path,
    look: Look,
    is_folder: impl Fn(&Path) -> Result<bool, Failure>,
) -> Result<PathBuf, Failure> {
    let shown = target.display();
    if look.folder {
        return Ok(if content && source_is_folder { target.to_owned() } else { target.join(name) });
    }
    if source_is_folder && look.there {
        return Err(Failure::new(format!("{shown} is a file, and a folder cannot become one")));
    }
    if !source_is_folder && target.as_os_str().as_bytes().ends_with(b"/") {
        return Err(Failure::new(format!("the folder {shown} does not exist; make it first")));
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    if !is_folder(parent.unwrap_or(Path::new(".")))? {
        return Err(Failure::new(format!("the folder of {shown} does not exist; make it first")));
    }
    Ok(target.to_owned())
}

/// Takes the entries of a stream whose first name is `word` to `place`.
fn unpack(from: impl Read, word: &[u8], place: &Path) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::new(format!("{}: {}", place.display(), reason(&error)));
    let mut archive = tar::Archive::new(from);
    archive.set_preserve_permissions(false);
    let first = Path::new(OsStr::from_bytes(word));
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let path = entry.path().map_err(failed)?.into_owned();
        let kind = entry.header().entry_type();
        let Ok(rest) = path.strip_prefix(first) else {
            return Err(Failure::new(format!("the container sent {}, unasked", path.display())));
        };
        let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain {
            return Err(Failure::new(format!("the container sent {}, unasked", path.display())));
        }
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink()) {
            crate::failure::print_warning(&format!(
                "{} is left out: only files, folders and symbolic links are copied",
                path.display()
            ));
            continue;
        }
        if rest.as_os_str().is_empty() && kind.is_dir() {
            std::fs::create_dir_all(place).map_err(failed)?;
            continue;
        }
        if rest.as_os_str().is_empty() {
            entry.unpack(place).map_err(failed)?;
            continue;
        }
        // Renamed below the target; `unpack_in` refuses what would lead out of it by a link.
        std::fs::create_dir_all(place).map_err(failed)?;
        unpack_below(&mut entry, place, rest).map_err(failed)?;
    }
    Ok(())
}

/// Writes one entry below a folder, following no link on the way.
fn unpack_below<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    place: &Path,
    rest: &Path,
) -> std::io::Result<()> {
    let mut way = place.to_owned();
    let mut parts = rest.components().peekable();
    while let Some(part) = parts.next() {
        way.push(part);
        if parts.peek().is_none() {
            break;
        }
        match way.symlink_metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                return Err(std::io::Error::other(format!("{} is no folder", way.display())));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir(&way)?;
            }
            Err(error) => return Err(error),
        }
    }
    match way.symlink_metadata() {
        Ok(found) if found.is_dir() && entry.header().entry_type().is_dir() => return Ok(()),
        // What lies there is replaced, and a link is not written through.
        Ok(found) if !found.is_dir() => std::fs::remove_file(&way)?,
        _ => {}
    }
    entry.unpack(&way).map(|_| ())
}

fn copy_in(source: &Path, name: &str, path: &Path) -> Result<u8, Failure> {
    let shown = source.display().to_string();
    let failed = |error: &std::io::Error| Failure::new(format!("{shown}: {}", reason(error)));
    let metadata = std::fs::metadata(source).map_err(|error| failed(&error))?;
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(Failure::new(format!("{shown} is neither a file nor a folder")));
    }
    let real = source.canonicalize().map_err(|error| failed(&error))?;
    let word = source.file_name().or_else(|| real.file_name()).unwrap_or(OsStr::new("."));
    let look = Look { folder: is(name, "-d", path)?, there: is(name, "-e", path)? };
    let place = place(metadata.is_dir(), means_content(source), word, path, look, |parent| {
        is(name, "-d", parent)
    })?;
    let below = place.strip_prefix("/").unwrap_or(&place).to_owned();
    let (reader, writer) = std::io::pipe().map_err(|error| streams(&error))?;
    let words: Vec<Vec<u8>> = ["tar", "-x", "-f", "-", "--no-same-owner", "-C", "/"]
        .iter()
        .map(|w| w.as_bytes().to_vec())
        .collect();
    let tar = Inside::start(name, &words, reader.into(), null()?)?;
    let packed = pack(writer, &real, &below, metadata.is_dir());
    let ended = tar.end_well(&format!("{name}:{}", path.display()));
    // A tar that ends early says why; ours sees a closed pipe only.
    ended.and(packed.map_err(|error| failed(&error)))?;
    Ok(0)
}

fn pack(to: impl Write, source: &Path, below: &Path, folder: bool) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    if !folder {
        archive.append_path_with_name(source, below)?;
    } else if below.as_os_str().is_empty() {
        archive.append_dir_all(".", source)?;
    } else {
        archive.append_dir_all(below, source)?;
    }
    archive.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let parse = |word: &str| End::parse(OsStr::new(word));
        assert_eq!(parse("web:/a").unwrap(), End::Inside("web".into(), "/a".into()));
        assert_eq!(parse("web:a").unwrap(), End::Inside("web".into(), "/a".into()));
        assert_eq!(parse("./a:b").unwrap(), End::Here("./a:b".into()));
        assert_eq!(parse("-").unwrap(), End::Stream);
        assert!(parse("web:").is_err() && parse(":/x").is_err());
    }

    #[test]
    fn places_are_dockers() {
        let put = |folder, content, target: &str, look| {
            place(folder, content, OsStr::new("src"), Path::new(target), look, |_| Ok(true))
        };
        let (nothing, file, dir) = (
            Look { folder: false, there: false },
            Look { folder: false, there: true },
            Look { folder: true, there: true },
        );
        assert_eq!(put(false, false, "/t/new", nothing).unwrap(), Path::new("/t/new"));
        assert_eq!(put(false, false, "/t/old", file).unwrap(), Path::new("/t/old"));
        assert_eq!(put(false, false, "/t", dir).unwrap(), Path::new("/t/src"));
        assert_eq!(put(true, false, "/t", dir).unwrap(), Path::new("/t/src"));
        assert_eq!(put(true, true, "/t", dir).unwrap(), Path::new("/t"));
        assert_eq!(put(true, false, "/t/new", nothing).unwrap(), Path::new("/t/new"));
        assert!(put(true, false, "/t/old", file).is_err());
        assert!(put(false, false, "/t/new/", nothing).is_err());
    }

    fn archive(entries: &[(&str, tar::EntryType, u32)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, mode) in entries {
            let mut header = tar::Header::new_gnu();
            // Names as a hostile guest writes them.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_size(if *kind == tar::EntryType::Regular { 2 } else { 0 });
            if *kind == tar::EntryType::Symlink {
                header.set_link_name("/etc").unwrap();
            }
            header.set_cksum();
            let data: &[u8] = if *kind == tar::EntryType::Regular { b"hi" } else { b"" };
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn hostile_streams_do_not_lead_out() {
        use std::os::unix::fs::PermissionsExt;
        use tar::EntryType::{Char, Directory, Regular, Symlink};
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("to");
        for (path, told) in
            [("src/../../x", "unasked"), ("/etc/x", "unasked"), ("other", "unasked")]
        {
            let bytes = archive(&[("src/", Directory, 0o755), (path, Regular, 0o644)]);
            let failure = unpack(bytes.as_slice(), b"src", &place).unwrap_err();
            assert!(failure.message.contains(told), "{failure}");
        }
        let bytes = archive(&[
            ("src/", Directory, 0o755),
            ("src/link", Symlink, 0o777),
            ("src/link/x", Regular, 0o644),
        ]);
        let failure = unpack(bytes.as_slice(), b"src", &place).unwrap_err();
        assert!(failure.message.contains("no folder"), "{failure}");
        let bytes = archive(&[("src/link", Regular, 0o4755), ("src/dev", Char, 0o666)]);
        unpack(bytes.as_slice(), b"src", &place).unwrap();
        let metadata = place.join("link").symlink_metadata().unwrap();
        assert!(metadata.is_file(), "the link was replaced, not written through");
        assert_eq!(metadata.permissions().mode() & 0o7000, 0, "no set-user-id");
        assert!(!place.join("dev").exists());
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("src");
        std::fs::create_dir_all(source.join("a/b")).unwrap();
        std::fs::write(source.join("a/b/file"), "text").unwrap();
        std::os::unix::fs::symlink("b/file", source.join("a/link")).unwrap();
        let mut bytes = Vec::new();
        pack(&mut bytes, &source, Path::new("src"), true).unwrap();
        let place = root.path().join("copy");
        unpack(bytes.as_slice(), b"src", &place).unwrap();
        assert_eq!(std::fs::read_to_string(place.join("a/link")).unwrap(), "text");
        assert!(place.join("a/link").is_symlink());
    }
}
