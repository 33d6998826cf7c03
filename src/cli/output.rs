//! Where reports go: to files that appear whole or not at all, to stdout, or to stderr.

use std::fmt;
use std::fs::File;
use std::fs::OpenOptions;
use std::fs::Permissions;
use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use super::Failure;
use super::args::OutputOptions;
use crate::render;
use crate::render::Format;
use crate::render::Measure;
use crate::render::TextOptions;
use crate::report::PathSelection;
use crate::report::Report;

/// Tells the person in front of the terminal. One that is gone, or a pipe that nobody reads, stops nothing.
pub(super) fn say(text: impl fmt::Display) {
    let charset = TextOptions::for_stream(io::stderr(), false).charset;
    let _ = write!(
        anstream::stderr().lock(),
        "{}",
        charset.spell(&text.to_string())
    );
}

/// A place for a report.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Stdout,
    Stderr,
    File(PathBuf),
}

/// All places a report goes to, each with its format.
#[derive(Debug)]
pub(super) struct Outputs {
    targets: Vec<(Place, Format)>,
    verbose: bool,
    measure: Measure,
    paths: PathSelection,
}

/// Where a report goes when no `-o` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Default {
    /// The traced program owns stdout.
    Stderr,
    /// Nobody else uses it.
    Stdout,
    /// Nowhere (`--quiet`).
    Nowhere,
}

impl Outputs {
    /// What the options ask for.
    ///
    /// # Errors
    ///
    /// A file name's extension contradicts nothing but says nothing either, and no format is given.
    pub(super) fn new(options: &OutputOptions, default: Default) -> Result<Self, Failure> {
        let format = options.format.or(options.json.then_some(Format::Json));
        let mut targets = Vec::new();
        for path in &options.output {
            targets.push(if path.as_os_str() == "-" {
                (Place::Stdout, format.unwrap_or(Format::Text))
            } else {
                let format = Format::of_path(path).or(format).ok_or_else(|| {
                    Failure::new(format!(
                        "cannot tell the format of `{}` from its name",
                        path.display()
                    ))
                    .hint(format!(
                        "end its name in {}, or add --format with one of {}",
                        Format::usual_suffixes(),
                        Format::names()
                    ))
                    .code(super::USAGE)
                })?;
                (Place::File(path.clone()), format)
            });
        }
        if targets.is_empty() {
            let place = match default {
                Default::Stderr => Some(Place::Stderr),
                Default::Stdout => Some(Place::Stdout),
                Default::Nowhere => None,
            };
            targets.extend(place.map(|place| (place, format.unwrap_or(Format::Text))));
        }
        Ok(Self {
            targets,
            verbose: options.verbose,
            measure: options.value.into(),
            paths: options.into(),
        })
    }

    /// Whether nobody will read the report.
    pub(super) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// The first format that shows call stacks and nothing else.
    pub(super) fn of_stacks(&self) -> Option<Format> {
        self.targets
            .iter()
            .map(|(_, format)| *format)
            .find(|format| format.is_of_stacks())
    }

    /// Finds out before anything runs whether the files can be written.
    ///
    /// # Errors
    ///
    /// One cannot be, or a binary format would go to a terminal.
    pub(super) fn check(&self) -> Result<(), Failure> {
        for (place, format) in &self.targets {
            match place {
                Place::File(path) => probe(path).map_err(|error| cannot_write(path, &error))?,
                Place::Stdout => spare_terminal(*format, "stdout", io::stdout().is_terminal())?,
                Place::Stderr => spare_terminal(*format, "stderr", io::stderr().is_terminal())?,
            }
        }
        Ok(())
    }

    /// Writes the report to every place; goes on to the next when one fails.
    ///
    /// # Errors
    ///
    /// The first failure.
    pub(super) fn write(&self, report: &Report) -> Result<(), Failure> {
        // Other programs read everything, in the order that is documented; people read what they ask for.
        let selected = (self.paths != PathSelection::default()).then(|| {
            let mut selected = report.clone();
            selected.select_paths(&self.paths);
            selected
        });
        let mut result = Ok(());
        for (place, format) in &self.targets {
            let report = match &selected {
                Some(selected) if *format == Format::Text => selected,
                _ => report,
            };
            let written = self.write_to(place, *format, report);
            result = result.and(written);
        }
        result
    }

    fn write_to(&self, place: &Place, format: Format, report: &Report) -> Result<(), Failure> {
        let bytes = |options| {
            render::render(report, format, options, self.measure).map_err(|error| {
                let failure = Failure::new(&error);
                match error.hint() {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                }
            })
        };
        let to_stream = |stream: &mut dyn Write, bytes: &[u8]| {
            stream.write_all(bytes).and_then(|()| stream.flush())
        };
        match place {
            Place::Stdout => {
                let bytes = bytes(TextOptions::for_stream(io::stdout(), self.verbose))?;
                to_stream(&mut io::stdout().lock(), &bytes)
                    .or_else(|error| excuse_closed_pipe("stdout", error))
            }
            Place::Stderr => {
                let bytes = bytes(TextOptions::for_stream(io::stderr(), self.verbose))?;
                to_stream(&mut io::stderr().lock(), &bytes)
                    .or_else(|error| excuse_closed_pipe("stderr", error))
            }
            Place::File(path) => {
                let bytes = bytes(TextOptions::for_file(self.verbose))?;
                write_whole(path, &bytes).map_err(|error| cannot_write(path, &error))
            }
        }
    }
}

/// Refuses to write what is no text to a terminal.
fn spare_terminal(format: Format, stream: &str, is_terminal: bool) -> Result<(), Failure> {
    if !(is_terminal && format.is_binary()) {
        return Ok(());
    }
    Err(
        Failure::new(format!("{format} is binary, and {stream} is a terminal"))
            .hint(format!(
                "write it to a file: -o FILE{}",
                format.suffixes()[0]
            ))
            .code(super::USAGE),
    )
}

/// Whoever reads the first lines and leaves (`| head`) has what they wanted.
pub(super) fn excuse_closed_pipe(stream: &str, error: io::Error) -> Result<(), Failure> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Ok(())
    } else {
        Err(Failure::new(format!("cannot write to {stream}: {error}")))
    }
}

pub(super) fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::new(format!("cannot write `{}`: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::NotFound => failure.hint("make its folder first"),
        io::ErrorKind::PermissionDenied => failure.hint("choose a folder that you may write to"),
        io::ErrorKind::StorageFull => {
            failure.hint("free some space there, or choose another place")
        }
        io::ErrorKind::IsADirectory => failure.hint("name a file inside it"),
        _ => failure,
    }
}

/// Devices, pipes and sockets are written to; files are replaced.
fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// The folder and name at which the file really is: a link to a file stays a link.
fn real_place(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

fn scratch_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    tempfile::Builder::new()
        .prefix(".breaktrace-")
        // Less what the umask forbids, as for any file.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(|error| io::Error::from(error.kind()))
}

/// Whether a file could be written here; leaves nothing behind.
pub(super) fn probe(path: &Path) -> io::Result<()> {
    if is_special(path) {
        // Opening a pipe would wait for its reader.
        return Ok(());
    }
    scratch_beside(&real_place(path)).map(drop)
}

/// Writes a file aside and then renames it, so that it is there whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if is_special(path) {
        return OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let place = real_place(path);
    let mut scratch = scratch_beside(&place)?;
    scratch.write_all(bytes)?;
    let file: &File = scratch.as_file();
    // The rename must not become visible before the contents.
    file.sync_data()?;
    scratch.persist(&place).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a.json"), folder.path().join("b.json"));
        write_whole(&file, b"one").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_whole(&link, b"two").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_full_device_is_an_error_with_advice() {
        let path = Path::new("/dev/full");
        let error = write_whole(path, b"text").unwrap_err();
        let failure = cannot_write(path, &error);
        assert!(failure.message.contains("/dev/full"), "{}", failure.message);
        assert!(failure.hint.is_some());
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        probe(&folder.path().join("x.json")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(probe(&folder.path().join("no/x.json")).is_err());
        assert!(probe(folder.path()).is_err());
    }
}
