//! The event log: a header, then one event per line, as JSON.
//!
//! Each event is one write of one whole line, so `tail -f` sees it as it happens and a crash at any moment leaves every
//! event so far. The log's last line says that it is complete; without it, a log is good up to where it breaks off.

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::Read;
use std::io::Write;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::event::Event;
use crate::event::EventKind;
use crate::event::Notice;
use crate::event::NoticeCode;
use crate::event::Recording;
use crate::event::SpaceId;
use crate::report;
use crate::units::Timestamp;

/// The name by which event logs are known.
pub const SCHEMA_NAME: &str = "breaktrace.events";

/// The version of the log's format that this build writes, and the newest that it reads.
pub const SCHEMA_VERSION: u32 = 1;

/// The longest line that is read, in bytes: a snapshot of a process with half a million mappings.
const LONGEST_LINE: u64 = 64 << 20;

/// The first line of a log.
#[derive(Serialize, Deserialize)]
struct Header {
    schema: Schema,
    tool: Tool,
    recording: Recording,
}

#[derive(Serialize, Deserialize)]
struct Schema {
    name: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Tool {
    name: String,
    version: String,
}

/// A log that is being written.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    line: Vec<u8>,
}

impl EventLog {
    /// Begins a log, in place of what the file held.
    ///
    /// # Errors
    ///
    /// The file cannot be made or written.
    pub fn create(path: &Path, recording: &Recording) -> io::Result<Self> {
        let mut log = Self {
            file: File::create(path)?,
            line: Vec::new(),
        };
        log.write_line(&Header {
            schema: Schema {
                name: SCHEMA_NAME.into(),
                version: SCHEMA_VERSION,
            },
            tool: Tool {
                name: "breaktrace".into(),
                version: env!("CARGO_PKG_VERSION").into(),
            },
            recording: recording.clone(),
        })?;
        Ok(log)
    }

    /// Adds an event.
    ///
    /// # Errors
    ///
    /// The disk is full, or the file has become unwritable. Nothing should be added then: the line may be there in
    /// part.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        self.write_line(event)
    }

    fn write_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, value)?;
        self.line.push(b'\n');
        // One write, unless a signal or a full disk cuts it short.
        self.file.write_all(&self.line)
    }
}

/// What a file is, by its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An event log.
    EventLog,
    /// A report.
    Report,
    /// Neither.
    Unknown,
}

/// Tells event logs from reports by their first bytes.
#[must_use]
pub fn sniff(head: &[u8]) -> Kind {
    let head = String::from_utf8_lossy(head);
    // Both begin with their schema; a report is indented.
    let beginning: String = head
        .chars()
        .filter(|c| !c.is_whitespace())
        .take(64)
        .collect();
    let is = |name: &str| beginning.starts_with(&format!("{{\"schema\":{{\"name\":\"{name}\""));
    if is(SCHEMA_NAME) {
        Kind::EventLog
    } else if is(report::SCHEMA_NAME) {
        Kind::Report
    } else {
        Kind::Unknown
    }
}

/// Why a file is no log that can be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The first line is not a log's.
    #[error("it is no event log of breaktrace: {0}")]
    Foreign(String),
    /// A newer breaktrace wrote it.
    #[error(
        "it follows version {found} of the event log's format, and this breaktrace reads up to version {SCHEMA_VERSION}"
    )]
    Newer {
        /// The log's version.
        found: u32,
    },
    /// A line in the middle cannot be read.
    #[error("line {line} is damaged: {cause}")]
    Damaged {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        cause: String,
    },
    /// The file cannot be read.
    #[error("line {line} cannot be read: {cause}")]
    Io {
        /// The number of the line, from 1.
        line: u64,
        /// The reason.
        cause: io::Error,
    },
}

impl ReadError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Foreign(_) => "event logs are written by `breaktrace run --events FILE`".into(),
            Self::Newer { .. } => {
                "read it with the breaktrace that wrote it, or a newer one".into()
            }
            Self::Damaged { line, .. } => {
                format!(
                    "the lines before it are good: head -n {} FILE > GOOD",
                    line.saturating_sub(1)
                )
            }
            Self::Io { .. } => return None,
        })
    }
}

/// A log that is being read: the header first, then event by event.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    recording: Recording,
    line: u64,
    last_time: Timestamp,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// More lines may follow.
    Reading,
    /// The closing line has been read.
    Complete,
    /// The end was reached without a closing line, and that was told.
    BrokenOff,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// The source is no event log, or one of a newer version.
    pub fn new(mut source: R) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct Probe {
            schema: Schema,
        }
        let line = read_line(&mut source, 1)?;
        let foreign = |error: serde_json::Error| ReadError::Foreign(error.to_string());
        // The version first, on its own: a newer header may not fit ours at all.
        let Probe { schema } = serde_json::from_slice(&line).map_err(foreign)?;
        if schema.name != SCHEMA_NAME {
            return Err(ReadError::Foreign(format!(
                "it names itself `{}`",
                schema.name
            )));
        }
        if schema.version > SCHEMA_VERSION {
            return Err(ReadError::Newer {
                found: schema.version,
            });
        }
        let header: Header = serde_json::from_slice(&line).map_err(foreign)?;
        Ok(Self {
            source,
            recording: header.recording,
            line: 1,
            last_time: Timestamp(0),
            state: State::Reading,
        })
    }

    /// What was recorded, how, and on what machine.
    #[must_use]
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// The next event; `None` after the last one. Where the log breaks off, a notice that says so is the last one.
    ///
    /// # Errors
    ///
    /// A line in the middle is damaged. A last line that is cut off is none: the log breaks off there.
    pub fn next_event(&mut self) -> Result<Option<Event>, ReadError> {
        if self.state != State::Reading {
            return Ok(None);
        }
        self.line += 1;
        let line = read_line(&mut self.source, self.line)?;
        if line.is_empty() {
            return Ok(Some(self.break_off("it has no closing line")));
        }
        match serde_json::from_slice::<Event>(&line) {
            Ok(event) => {
                self.last_time = event.time;
                if matches!(event.kind, EventKind::RecordingEnded { .. }) {
                    self.state = State::Complete;
                }
                Ok(Some(event))
            }
            Err(_) if line.last() != Some(&b'\n') => {
                Ok(Some(self.break_off("its last line is cut off")))
            }
            Err(error) => Err(ReadError::Damaged {
                line: self.line,
                cause: error.to_string(),
            }),
        }
    }

    fn break_off(&mut self, how: &str) -> Event {
        self.state = State::BrokenOff;
        Event {
            time: self.last_time,
            pid: 0,
            tid: 0,
            space: SpaceId(0),
            kind: EventKind::Notice(Notice {
                code: NoticeCode::Incomplete,
                message: format!(
                    "the event log breaks off at line {} ({how}): breaktrace was killed, still writes it, or it was \
                     cut; the figures hold up to there",
                    self.line
                ),
            }),
        }
    }
}

/// Reads a line with its end; empty at the end of the source.
fn read_line(source: &mut impl BufRead, number: u64) -> Result<Vec<u8>, ReadError> {
    let mut line = Vec::new();
    source
        .take(LONGEST_LINE)
        .read_until(b'\n', &mut line)
        .map_err(|cause| ReadError::Io {
            line: number,
            cause,
        })?;
    if line.len() as u64 == LONGEST_LINE {
        return Err(ReadError::Damaged {
            line: number,
            cause: format!("it is longer than {LONGEST_LINE} bytes"),
        });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Capture;
    use crate::event::EndReason;
    use crate::event::Machine;
    use crate::event::Mode;
    use crate::event::Stops;
    use crate::units::Address;

    fn recording() -> Recording {
        Recording {
            mode: Mode::Run,
            command: vec!["./main".into()],
            pids: vec![7],
            started_at_unix: 1,
            machine: Machine {
                architecture: "x86_64".into(),
                kernel: "6.18".into(),
                page_size: 4096,
            },
            capture: Capture {
                stops: Stops::MemoryCalls,
                follow: true,
                no_aslr: false,
                verify: false,
            },
        }
    }

    fn event(time: u64, kind: EventKind) -> Event {
        Event {
            time: Timestamp(time),
            pid: 7,
            tid: 7,
            space: SpaceId(1),
            kind,
        }
    }

    fn events() -> Vec<Event> {
        let brk = |before, after| EventKind::Brk {
            requested: Address(after),
            before: Some(Address(before)),
            after: Address(after),
        };
        vec![
            event(1, brk(0x1000, 0x22000)),
            event(2, brk(0x22000, 0x43000)),
            event(
                3,
                EventKind::RecordingEnded {
                    reason: EndReason::Finished,
                },
            ),
        ]
    }

    fn log() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut log = EventLog::create(&path, &recording()).unwrap();
        for event in events() {
            log.write(&event).unwrap();
        }
        std::fs::read(path).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Event>, ReadError> {
        let mut reader = Reader::new(bytes)?;
        let mut events = Vec::new();
        while let Some(event) = reader.next_event()? {
            events.push(event);
        }
        Ok(events)
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = log();
        assert_eq!(sniff(&bytes), Kind::EventLog);
        assert_eq!(
            Reader::new(bytes.as_slice()).unwrap().recording(),
            &recording()
        );
        assert_eq!(read(&bytes).unwrap(), events());
    }

    #[test]
    fn a_log_cut_anywhere_after_its_header_is_good_up_to_there_and_says_so() {
        let bytes = log();
        let header = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for length in header..bytes.len() {
            let events = read(&bytes[..length]).unwrap();
            let last = events.last().unwrap();
            let complete = matches!(last.kind, EventKind::RecordingEnded { .. });
            let told = matches!(&last.kind, EventKind::Notice(notice) if notice.code == NoticeCode::Incomplete);
            // The closing line lacks nothing but its line end at the very last cut.
            assert!(
                told || (complete && length == bytes.len() - 1),
                "cut at {length}"
            );
        }
        for length in 0..header - 1 {
            assert!(
                matches!(read(&bytes[..length]), Err(ReadError::Foreign(_))),
                "cut at {length}"
            );
        }
    }

    #[test]
    fn damage_in_the_middle_names_its_line() {
        let text = String::from_utf8(log())
            .unwrap()
            .replacen("\"t\":2", "\"t\":x", 1);
        match read(text.as_bytes()).unwrap_err() {
            ReadError::Damaged { line, .. } => assert_eq!(line, 3),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn newer_and_foreign_files_are_refused_by_name() {
        let newer = String::from_utf8(log())
            .unwrap()
            .replacen("\"version\":1", "\"version\":9", 1);
        assert!(matches!(
            read(newer.as_bytes()),
            Err(ReadError::Newer { found: 9 })
        ));
        for foreign in [
            "",
            "\n",
            "{}\n",
            "hello\n",
            "{\"schema\":{\"name\":\"x\",\"version\":1}}\n",
        ] {
            assert!(
                matches!(read(foreign.as_bytes()), Err(ReadError::Foreign(_))),
                "{foreign:?}"
            );
        }
        assert_eq!(sniff(b"{}"), Kind::Unknown);
        assert_eq!(
            sniff(b"{\n  \"schema\": {\n    \"name\": \"breaktrace.report\""),
            Kind::Report
        );
    }
}
