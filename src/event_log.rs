//! The event log: every event as one line of JSON, written as it happens.
//!
//! The first line tells what was recorded; each further one is an [`Event`]. A log is of use at any moment: whatever
//! becomes of breaktrace, all lines but possibly the last are whole.

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::event::Event;
use crate::event::EventKind;
use crate::event::Recording;

/// The name by which event logs are known.
pub const SCHEMA_NAME: &str = "breaktrace.events";

/// The version of the event log that this build writes, and the newest that it reads.
pub const SCHEMA_VERSION: u32 = 1;

/// The name by which reports are known. Reports are of a higher layer, so it is repeated here.
const REPORT_SCHEMA_NAME: &str = "breaktrace.report";

/// Longest line that is read, in bytes. A snapshot of 65,530 mappings, the kernel's usual limit, needs a tenth.
const LONGEST_LINE: u64 = 64 << 20;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    schema: Schema,
    tool: Tool,
    recording: Recording,
}

/// Name and version of the log's schema.
#[derive(Debug, Serialize, Deserialize)]
struct Schema {
    name: String,
    version: u32,
}

/// The program that wrote the log.
#[derive(Debug, Serialize, Deserialize)]
struct Tool {
    name: String,
    version: String,
}

/// An event log that is being written.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    /// Length of the whole lines written so far, in bytes.
    written: u64,
    /// The line being made; kept for its room.
    line: Vec<u8>,
}

impl EventLog {
    /// Begins a log in this file, replacing what it holds. The file is not passed on to programs that are executed.
    ///
    /// # Errors
    ///
    /// The file cannot be created or written.
    pub fn create(path: &Path, recording: &Recording) -> io::Result<Self> {
        let mut log = Self {
            // The standard library opens every file with O_CLOEXEC.
            file: File::create(path)?,
            written: 0,
            line: Vec::with_capacity(512),
        };
        log.write_line(&Header {
            schema: Schema {
                name: SCHEMA_NAME.to_owned(),
                version: SCHEMA_VERSION,
            },
            tool: Tool {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            recording: recording.clone(),
        })?;
        Ok(log)
    }

    /// Adds an event, by one write(2).
    ///
    /// # Errors
    ///
    /// It cannot be written: the disk is full, or the reader of a pipe has gone. A line that was written in part is
    /// taken back where the file allows it; the log should be given up then.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        self.write_line(event)
    }

    fn write_line(&mut self, content: &impl Serialize) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, content)?;
        self.line.push(b'\n');
        match self.file.write_all(&self.line) {
            Ok(()) => {
                self.written += self.line.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.take_back_part();
                Err(error)
            }
        }
    }

    /// Leaves whole lines only. A pipe or a device cannot be cut; its reader tolerates a last line that breaks off.
    fn take_back_part(&mut self) {
        if self.file.set_len(self.written).is_ok() {
            // So that a further line, should one be written after all, does not leave a hole.
            let _position = self.file.seek(SeekFrom::Start(self.written));
        }
    }
}

/// Why an event log cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The file cannot be read.
    #[error("line {line} cannot be read: {source}")]
    Unreadable {
        /// The line, from 1.
        line: u64,
        /// What the system says.
        source: io::Error,
    },
    /// The file is empty, or breaks off within its first line.
    #[error("it breaks off within line 1, before any event: breaktrace was stopped while it began")]
    NothingRecorded,
    /// Some other file.
    #[error("line 1 is not the beginning of a breaktrace event log ({cause})")]
    Foreign {
        /// What is wrong with the line.
        cause: String,
    },
    /// A newer breaktrace wrote it.
    #[error(
        "line 1 says that it follows version {found} of the event log, and this breaktrace reads up to version {SCHEMA_VERSION}"
    )]
    Newer {
        /// The log's version.
        found: u64,
    },
    /// A line that is not the last one is no event.
    #[error("line {line} is damaged: {cause}")]
    Damaged {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        cause: String,
    },
    /// A line longer than any that breaktrace writes.
    #[error("line {line} is longer than 64 MiB, which no event is")]
    TooLong {
        /// The line, from 1.
        line: u64,
    },
}

impl LogError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreadable { .. } => return None,
            Self::NothingRecorded => "record again".to_owned(),
            Self::Foreign { .. } => {
                "event logs are written by `breaktrace run --events FILE`".to_owned()
            }
            Self::Newer { .. } => {
                "read it with the breaktrace that wrote it, or a newer one".to_owned()
            }
            Self::Damaged { line, .. } | Self::TooLong { line } => format!(
                "the part before it can be read: head -n {} FILE > PART",
                line.saturating_sub(1)
            ),
        })
    }
}

/// How much of an event log there was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogInfo {
    /// Events read.
    pub events: u64,
    /// Whether the log says that the recording ended; otherwise it breaks off.
    pub complete: bool,
    /// The line, from 1, within which it breaks off; `None` when it ends with a whole line.
    pub cut_line: Option<u64>,
}

/// Reads an event log, one event at a time.
#[derive(Debug)]
pub struct LogReader<R> {
    reader: R,
    recording: Recording,
    line: Vec<u8>,
    line_number: u64,
    info: LogInfo,
}

impl<R: BufRead> LogReader<R> {
    /// Reads the first line.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not the first line of an event log that this build reads.
    pub fn open(mut reader: R) -> Result<Self, LogError> {
        let mut line = Vec::new();
        let whole = read_line(&mut reader, &mut line, 1)?;
        match parse_header(&line) {
            Ok(recording) => Ok(Self {
                reader,
                recording,
                line,
                line_number: 1,
                info: LogInfo::default(),
            }),
            Err(_) if !whole && looks_like_header(&line) => Err(LogError::NothingRecorded),
            Err(error) => Err(error),
        }
    }

    /// What was recorded.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// How much was read; complete once [`Self::next_event`] has returned `None`.
    pub fn info(&self) -> LogInfo {
        self.info
    }

    /// The next event; `None` at the end. A last line that breaks off is the end, too.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or a line that is not the last one is no event.
    pub fn next_event(&mut self) -> Result<Option<Event>, LogError> {
        loop {
            self.line_number += 1;
            let whole = read_line(&mut self.reader, &mut self.line, self.line_number)?;
            if self.line.trim_ascii().is_empty() {
                if whole {
                    continue;
                }
                return Ok(None);
            }
            return match serde_json::from_slice::<Event>(&self.line) {
                Ok(event) => {
                    self.info.events += 1;
                    self.info.complete |= matches!(event.kind, EventKind::RecordingEnded { .. });
                    Ok(Some(event))
                }
                Err(error) => self.bad_line(&error),
            };
        }
    }

    /// A line that is no event: the end of a log that breaks off, if nothing follows.
    fn bad_line(&mut self, error: &serde_json::Error) -> Result<Option<Event>, LogError> {
        let line = self.line_number;
        let rest = self
            .reader
            .fill_buf()
            .map_err(|source| LogError::Unreadable { line, source })?;
        if !rest.is_empty() {
            return Err(LogError::Damaged {
                line,
                cause: without_position(error),
            });
        }
        self.info.cut_line = Some(line);
        Ok(None)
    }
}

/// Reads a line, without its newline. Whether there was one; nothing at all is an empty line without one.
fn read_line(
    reader: &mut impl BufRead,
    line: &mut Vec<u8>,
    line_number: u64,
) -> Result<bool, LogError> {
    line.clear();
    reader
        .by_ref()
        .take(LONGEST_LINE + 1)
        .read_until(b'\n', line)
        .map_err(|source| LogError::Unreadable {
            line: line_number,
            source,
        })?;
    let whole = line.pop_if(|last| *last == b'\n').is_some();
    if line.len() as u64 > LONGEST_LINE {
        return Err(LogError::TooLong { line: line_number });
    }
    Ok(whole)
}

fn parse_header(line: &[u8]) -> Result<Recording, LogError> {
    // The version is looked at first, on its own: a newer header may not fit our structure at all.
    #[derive(Deserialize)]
    struct Probe {
        schema: serde_json::Value,
    }
    let foreign = |cause: String| LogError::Foreign { cause };
    let probe: Probe =
        serde_json::from_slice(line).map_err(|error| foreign(without_position(&error)))?;
    let name = probe.schema.get("name").and_then(|name| name.as_str());
    if name == Some(REPORT_SCHEMA_NAME) {
        return Err(foreign("it is a breaktrace report".to_owned()));
    }
    if name != Some(SCHEMA_NAME) {
        return Err(foreign(format!("its schema is not {SCHEMA_NAME}")));
    }
    match probe
        .schema
        .get("version")
        .and_then(|version| version.as_u64())
    {
        Some(version) if version <= u64::from(SCHEMA_VERSION) => {}
        Some(found) => return Err(LogError::Newer { found }),
        None => return Err(foreign("its schema has no version".to_owned())),
    }
    serde_json::from_slice::<Header>(line)
        .map(|header| header.recording)
        .map_err(|error| foreign(without_position(&error)))
}

/// Whether this may be the beginning of a first line.
fn looks_like_header(line: &[u8]) -> bool {
    let beginning = format!(r#"{{"schema":{{"name":"{SCHEMA_NAME}""#);
    let length = line.len().min(beginning.len());
    line[..length] == beginning.as_bytes()[..length]
}

/// The message of an error without serde_json's own line number, which is always 1 here.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line 1 column ") {
        Some(position) => format!("{} (column {})", &text[..position], error.column()),
        None => text,
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A report as JSON.
    Report,
    /// An event log.
    EventLog,
    /// Something else.
    Unknown,
}

/// Tells reports and event logs apart by the first bytes of a file; some hundred are enough.
#[must_use]
pub fn sniff(beginning: &[u8]) -> FileKind {
    let dense: Vec<u8> = beginning
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let begins =
        |name: &str| dense.starts_with(format!(r#"{{"schema":{{"name":"{name}""#).as_bytes());
    if begins(SCHEMA_NAME) {
        FileKind::EventLog
    } else if begins(REPORT_SCHEMA_NAME) {
        FileKind::Report
    } else {
        FileKind::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::AllocatorChoice;
    use crate::event::Capture;
    use crate::event::EndReason;
    use crate::event::Machine;
    use crate::event::Mode;
    use crate::event::SpaceId;
    use crate::event::Stops;
    use crate::units::Timestamp;

    fn recording() -> Recording {
        Recording {
            mode: Mode::Attach,
            command: Vec::new(),
            pids: vec![1],
            started_at_unix: 0,
            machine: Machine {
                architecture: "x86_64".into(),
                kernel: "6.18.0".into(),
                page_size: 4096,
            },
            allocator: AllocatorChoice::System,
            environment: std::collections::BTreeMap::new(),
            processors: None,
            capture: Capture {
                stops: Stops::EveryCall,
                follow: false,
                no_aslr: false,
                verify: false,
                stacks: crate::event::StackMode::Off,
                stack_depth: 0,
                sample_interval_bytes: None,
                leaks: false,
            },
        }
    }

    fn event(time: u64, kind: EventKind) -> Event {
        Event {
            malloc: None,
            time: Timestamp(time),
            pid: 1,
            tid: 1,
            space: SpaceId(1),
            allocator: None,
            stack: None,
            kind,
        }
    }

    fn events() -> Vec<Event> {
        vec![
            event(1, EventKind::ThreadStarted),
            event(2, EventKind::ThreadEnded),
            event(
                3,
                EventKind::RecordingEnded {
                    reason: EndReason::Finished,
                },
            ),
        ]
    }

    /// The log of `events()`.
    fn written() -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = EventLog::create(&path, &recording()).unwrap();
        for event in events() {
            log.write(&event).unwrap();
        }
        std::fs::read(&path).unwrap()
    }

    fn read(log: &[u8]) -> Result<(Vec<Event>, LogInfo), LogError> {
        let mut reader = LogReader::open(log)?;
        let mut events = Vec::new();
        while let Some(event) = reader.next_event()? {
            events.push(event);
        }
        Ok((events, reader.info()))
    }

    fn message(log: &[u8]) -> String {
        read(log).unwrap_err().to_string()
    }

    #[test]
    fn a_log_is_read_as_it_was_written() {
        let log = written();
        assert!(log.starts_with(
            br#"{"schema":{"name":"breaktrace.events","version":1},"tool":{"name":"breaktrace","#
        ));
        assert_eq!(log.iter().filter(|&&byte| byte == b'\n').count(), 4);
        let (found, info) = read(&log).unwrap();
        assert_eq!(found, events());
        assert_eq!(
            info,
            LogInfo {
                events: 3,
                complete: true,
                cut_line: None
            }
        );
    }

    #[test]
    fn every_line_is_there_as_soon_as_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = EventLog::create(&path, &recording()).unwrap();
        for (index, event) in events().iter().enumerate() {
            log.write(event).unwrap();
            let (found, _) = read(&std::fs::read(&path).unwrap()).unwrap();
            assert_eq!(found.len(), index + 1);
        }
    }

    #[test]
    fn a_log_that_breaks_off_is_good_up_to_there() {
        let log = written();
        let (found, info) = read(&log[..log.len() - 5]).unwrap();
        assert_eq!(found, events()[..2]);
        assert_eq!((info.complete, info.cut_line), (false, Some(4)));
        // Only the newline is missing.
        let (found, info) = read(&log[..log.len() - 1]).unwrap();
        assert_eq!(found.len(), 3);
        assert!(info.complete);
        // Cut between two lines.
        let last = log[..log.len() - 1]
            .iter()
            .rposition(|&b| b == b'\n')
            .unwrap();
        let (found, info) = read(&log[..=last]).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((info.complete, info.cut_line), (false, None));
        // A blank line changes nothing.
        let (_, info) = read(&[&log[..], b"\n"].concat()).unwrap();
        assert!(info.complete);
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named() {
        let text = String::from_utf8(written()).unwrap();
        let damaged = text.replace("\"thread_started\"", "\"thread_stXrted\"");
        let error = read(&[damaged.as_bytes()].concat()).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("line 2 is damaged: "), "{message}");
        assert!(error.hint().unwrap().contains("head -n 1 FILE"));
    }

    #[test]
    fn foreign_files_are_told_apart() {
        for (text, cause) in [
            ("hello\nworld\n", "expected value (column 1)"),
            ("{\"a\":1}\n", "missing field `schema`"),
            (
                "{\"schema\":{\"name\":\"x\",\"version\":1}}\n",
                "its schema is not breaktrace.events",
            ),
            (
                "{\"schema\":{\"name\":\"breaktrace.report\",\"version\":1}}\n",
                "it is a breaktrace report",
            ),
            ("\u{0}\u{1}\n", "expected value"),
        ] {
            let message = message(text.as_bytes());
            assert!(message.starts_with("line 1 is not"), "{message}");
            assert!(message.contains(cause), "{message}");
        }
    }

    #[test]
    fn a_newer_log_is_refused_with_both_versions() {
        let text = String::from_utf8(written()).unwrap();
        let newer = text.replacen("\"version\":1", "\"version\":2", 1);
        let message = message(newer.as_bytes());
        assert!(
            message.contains("version 2") && message.contains("up to version 1"),
            "{message}"
        );
    }

    #[test]
    fn a_log_without_its_first_line_holds_nothing() {
        let log = written();
        for length in [0, 1, 20, 60] {
            assert!(
                matches!(read(&log[..length]), Err(LogError::NothingRecorded)),
                "{length}"
            );
        }
    }

    #[test]
    fn an_endless_line_is_refused_without_keeping_it() {
        let mut reader = std::io::BufReader::new(std::io::repeat(b'x'));
        let mut line = Vec::new();
        assert!(matches!(
            read_line(&mut reader, &mut line, 7),
            Err(LogError::TooLong { line: 7 })
        ));
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let error = EventLog::create(Path::new("/dev/full"), &recording()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn logs_and_reports_are_told_apart_by_their_beginning() {
        let log = written();
        assert_eq!(sniff(&log), FileKind::EventLog);
        assert_eq!(sniff(&log[..64]), FileKind::EventLog);
        let report =
            b"{\n  \"schema\": {\n    \"name\": \"breaktrace.report\",\n    \"version\": 1\n  },";
        assert_eq!(sniff(report), FileKind::Report);
        assert_eq!(REPORT_SCHEMA_NAME, crate::report::SCHEMA_NAME);
        assert_eq!(sniff(b"\x7fELF"), FileKind::Unknown);
        assert_eq!(sniff(b""), FileKind::Unknown);
    }
}
