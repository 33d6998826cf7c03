//! `heap`: looks at a heap from outside, in a process or in a core file, and says what follows.

use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use super::Ending;
use super::Failure;
use super::USAGE;
use super::args;
use super::args::HeapSubject;
use super::interval::Interval;
use super::output::cannot_write;
use super::output::excuse_closed_pipe;
use super::output::probe;
use super::output::write_whole;
use super::record::attach_failure;
use crate::event::HeapExamination;
use crate::event::ProcessMemory;
use crate::heap_walk::CoreError;
use crate::heap_walk::CoreFile;
use crate::heap_walk::CoreProgram;
use crate::render;
use crate::render::TextOptions;
use crate::report::HeapDocument;
use crate::report::HeapLook;
use crate::report::HeapLooks;
use crate::report::HeapTarget;
use crate::tracer;
use crate::units::Timestamp;

/// `breaktrace heap`.
pub(super) fn heap(arguments: &args::Heap) -> Result<Ending, Failure> {
    let places = places(arguments)?;
    let document = match (&arguments.subject, arguments.every) {
        (HeapSubject::Core(path), None) => document(look_at_core(path)?, None),
        (HeapSubject::Core(_), Some(_)) => {
            return Err(
                Failure::new("a core file does not change: --every is for processes")
                    .hint("leave out --every")
                    .code(USAGE),
            );
        }
        (HeapSubject::Process(pid), None) => document(look(*pid, arguments.exact)?, None),
        (HeapSubject::Process(pid), Some(every)) => looks(*pid, every, arguments, &places)?,
    };
    for place in &places {
        place.write(&document, arguments.verbose)?;
    }
    Ok(Ending::Code(0))
}

/// One look at a process.
struct Look {
    target: HeapTarget,
    /// `None` when the process is gone meanwhile.
    memory: Option<ProcessMemory>,
    examination: HeapExamination,
}

impl Look {
    /// Whether it is of the same program as an earlier one: a process may go on with another, by exec.
    fn is_of_same(&self, earlier: &Self) -> bool {
        let arenas = |look: &Self| {
            let heaps = look.examination.heaps.iter();
            heaps.map(|heap| heap.main_arena).next()
        };
        self.target.program == earlier.target.program
            && (arenas(self) == arenas(earlier) || arenas(earlier).is_none())
    }
}

fn look(pid: u32, exact: bool) -> Result<Look, Failure> {
    let examination =
        tracer::examine_process(pid, exact).map_err(|error| attach_failure(&error))?;
    let facts = tracer::process_facts(pid);
    Ok(Look {
        target: HeapTarget {
            pid: Some(facts.as_ref().map_or(pid, |facts| facts.pid)),
            core: None,
            program: facts.as_ref().map(|facts| facts.program.clone()),
            arguments: facts
                .as_ref()
                .map(|facts| facts.arguments.clone())
                .unwrap_or_default(),
            threads: facts.as_ref().map(|facts| facts.threads),
        },
        memory: facts.and_then(|facts| facts.memory),
        examination,
    })
}

fn look_at_core(path: &Path) -> Result<Look, Failure> {
    let core = CoreFile::open(path).map_err(|error| core_failure(path, &error))?;
    let program = core.program();
    let words = |program: &CoreProgram| -> Vec<String> {
        let words = program.arguments.split_ascii_whitespace();
        words.map(str::to_owned).collect()
    };
    Ok(Look {
        target: HeapTarget {
            pid: program.map(|program| program.pid),
            core: Some(path.to_string_lossy().into_owned()),
            program: program.map(|program| program.name.clone()),
            arguments: program.map(words).unwrap_or_default(),
            threads: Some(core.threads().len() as u64),
        },
        memory: None,
        examination: core.examine(),
    })
}

fn core_failure(path: &Path, error: &CoreError) -> Failure {
    let failure = Failure::new(error);
    let is_a_name = path.components().count() == 1 && !path.exists();
    match error.hint() {
        _ if is_a_name => failure.hint(format!(
            "`breaktrace heap $(pidof {})`, if that is a program that runs",
            path.display()
        )),
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn document(look: Look, looks: Option<&HeapLooks>) -> HeapDocument {
    HeapDocument::of(
        look.target,
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs()),
        look.memory,
        look.examination,
        looks.and_then(HeapLooks::growth),
    )
}

/// Looks again and again, with a line for each look; ends when asked to, after the last look that was wanted, or with the
/// process.
fn looks(
    pid: u32,
    every: Duration,
    arguments: &args::Heap,
    places: &[Place],
) -> Result<HeapDocument, Failure> {
    let interval = Interval::begin().map_err(|errno| Failure::new(errno.desc()))?;
    let lines = Lines::beside(places);
    let began = Instant::now();
    let mut looks = HeapLooks::default();
    let mut last: Option<Look> = None;
    let mut next = began;
    loop {
        // Times count from the first look.
        let time = match last {
            None => Duration::ZERO,
            Some(_) => began.elapsed(),
        };
        let new = match (look(pid, arguments.exact), &last) {
            (Ok(new), Some(earlier)) if !new.is_of_same(earlier) => {
                lines.note("the process runs another program now")?;
                break;
            }
            (Ok(new), _) => new,
            (Err(failure), Some(_)) => {
                lines.note(&failure.message)?;
                break;
            }
            (Err(failure), None) => return Err(failure),
        };
        let before = looks.last().copied();
        let time = Timestamp(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        looks.add(time, new.memory, &new.examination);
        last = Some(new);
        if let Some(look) = looks.last()
            && !lines.look(look, before.as_ref())?
        {
            break;
        }
        if arguments.count.is_some_and(|count| looks.total() >= count) {
            break;
        }
        // A look that takes longer than that is followed by the next at once, and none is made up for.
        next = (next + every).max(Instant::now());
        if interval.wait_until(next) {
            break;
        }
    }
    lines.end()?;
    match last {
        Some(last) => Ok(document(last, Some(&looks))),
        None => Err(Failure::new("no look was taken")),
    }
}

/// Where the line of each look goes: where the text does, and otherwise to stderr.
struct Lines {
    to_stdout: bool,
    options: TextOptions,
}

impl Lines {
    fn beside(places: &[Place]) -> Self {
        let to_stdout = places
            .iter()
            .any(|place| matches!(place, Place::Stdout { json: false }));
        Self {
            to_stdout,
            options: if to_stdout {
                TextOptions::for_stream(io::stdout(), false)
            } else {
                TextOptions::for_stream(io::stderr(), false)
            },
        }
    }

    /// Returns whether anybody reads what is written.
    fn write(&self, text: &str) -> Result<bool, Failure> {
        let (name, written) = if self.to_stdout {
            let mut stdout = io::stdout().lock();
            let written = stdout.write_all(text.as_bytes());
            ("stdout", written.and_then(|()| stdout.flush()))
        } else {
            ("stderr", io::stderr().lock().write_all(text.as_bytes()))
        };
        match written {
            Ok(()) => Ok(true),
            Err(error) => excuse_closed_pipe(name, error).map(|()| false),
        }
    }

    fn look(&self, look: &HeapLook, before: Option<&HeapLook>) -> Result<bool, Failure> {
        self.write(&render::heap_look(look, before, self.options))
    }

    fn note(&self, text: &str) -> Result<bool, Failure> {
        self.write(&format!("breaktrace: {text}; the looks end here\n"))
    }

    /// An empty line before what follows.
    fn end(&self) -> Result<(), Failure> {
        if self.to_stdout {
            self.write("\n")?;
        }
        Ok(())
    }
}

/// A place for what was found.
enum Place {
    Stdout { json: bool },
    File { path: PathBuf, json: bool },
}

/// Where it goes, and whether that can be written.
fn places(arguments: &args::Heap) -> Result<Vec<Place>, Failure> {
    let mut places = Vec::new();
    for path in &arguments.output {
        if path.as_os_str() == "-" {
            places.push(Place::Stdout {
                json: arguments.json,
            });
            continue;
        }
        let json = is_json(path)
            .or(arguments.json.then_some(true))
            .ok_or_else(|| {
                Failure::new(format!(
                    "cannot tell the format of `{}` from its name",
                    path.display()
                ))
                .hint("end its name in .txt or .json, or add --json")
                .code(USAGE)
            })?;
        probe(path).map_err(|error| cannot_write(path, &error))?;
        places.push(Place::File {
            path: path.clone(),
            json,
        });
    }
    if places.is_empty() {
        places.push(Place::Stdout {
            json: arguments.json,
        });
    }
    Ok(places)
}

fn is_json(path: &Path) -> Option<bool> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "json" => Some(true),
        "txt" | "text" => Some(false),
        _ => None,
    }
}

impl Place {
    fn write(&self, document: &HeapDocument, verbose: bool) -> Result<(), Failure> {
        match self {
            Self::Stdout { json } => {
                let text = if *json {
                    document.to_json()
                } else {
                    render::heap(document, TextOptions::for_stream(io::stdout(), verbose))
                };
                let mut stdout = io::stdout().lock();
                stdout
                    .write_all(text.as_bytes())
                    .and_then(|()| stdout.flush())
                    .or_else(|error| excuse_closed_pipe("stdout", error))
            }
            Self::File { path, json } => {
                let text = if *json {
                    document.to_json()
                } else {
                    let options = TextOptions::for_file(verbose);
                    render::heap(document, options)
                };
                write_whole(path, text.as_bytes()).map_err(|error| cannot_write(path, &error))
            }
        }
    }
}
