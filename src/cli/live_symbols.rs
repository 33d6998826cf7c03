//! Functions for the live view, looked up by a process that is none of our children.
//!
//! The tracer waits for every child that there is, and would take the end of one that reads symbols. So those are
//! children of a process that belongs to init.

use std::collections::HashMap;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;

use crate::event::Module;
use crate::symbols::FileSymbolizer;
use crate::symbols::Found;
use crate::symbols::Function;
use crate::symbols::Patience;
use crate::symbols::SymbolSource;
use crate::symbols::SymbolState;
use crate::symbols::Symbolizer;
use crate::units::Address;

/// Longest message, in bytes.
const LONGEST: usize = 256 << 20;
/// Most places that are remembered.
const MOST_KNOWN: usize = 200_000;
/// Longer than the other side may take for a module.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks for what it has not asked before.
#[derive(Debug)]
pub(super) struct RemoteSymbolizer {
    /// `None` once it has failed.
    stream: Option<UnixStream>,
    known: HashMap<(u32, u64), Vec<Function>>,
    states: HashMap<u32, SymbolState>,
}

impl RemoteSymbolizer {
    /// Starts the process. To be called while there is one thread and no tracee.
    ///
    /// # Errors
    ///
    /// There can be no further process or socket.
    pub(super) fn start(debug_folders: Vec<PathBuf>) -> io::Result<Self> {
        let (own, other) = UnixStream::pair()?;
        // SAFETY: there is one thread, and the children end in _exit(2).
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => {
                drop(own);
                // SAFETY: as above.
                if let Ok(ForkResult::Child) = unsafe { nix::unistd::fork() } {
                    // What a terminal tells breaktrace is not meant for it.
                    let _ = nix::unistd::setsid();
                    let _ = serve(other, &debug_folders);
                }
                // SAFETY: takes a number. Nothing of the parent's is flushed or undone.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop(other);
                waitpid(child, None)?;
            }
        }
        own.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream: Some(own),
            known: HashMap::new(),
            states: HashMap::new(),
        })
    }

    fn ask(&mut self, module: &Module, places: &[Address]) -> io::Result<Found> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        send(stream, &serde_json::to_vec(&(module, places))?)?;
        let found: Found = serde_json::from_slice(&receive(stream)?)?;
        if found.functions.len() == places.len() {
            Ok(found)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

impl Symbolizer for RemoteSymbolizer {
    fn look_up(&mut self, module: &Module, places: &[Address]) -> Found {
        if self.known.len() > MOST_KNOWN {
            self.known.clear();
        }
        let id = module.id.0;
        let missing: Vec<Address> = places
            .iter()
            .filter(|place| !self.known.contains_key(&(id, place.0)))
            .copied()
            .collect();
        if !missing.is_empty() {
            match self.ask(module, &missing) {
                Ok(found) => {
                    let keys = missing.iter().map(|place| (id, place.0));
                    self.known.extend(keys.zip(found.functions));
                    self.states.insert(id, found.state);
                }
                Err(error) => {
                    self.stream = None;
                    self.states.entry(id).or_insert_with(|| SymbolState {
                        source: SymbolSource::None,
                        reason: Some(format!("the process that reads symbols is gone: {error}")),
                    });
                }
            }
        }
        let functions = places
            .iter()
            .map(|place| self.known.get(&(id, place.0)).cloned().unwrap_or_default());
        Found {
            functions: functions.collect(),
            state: self.states.get(&id).cloned().unwrap_or_default(),
        }
    }
}

/// Answers until nobody asks any more.
fn serve(mut stream: UnixStream, debug_folders: &[PathBuf]) -> io::Result<()> {
    loop {
        let question = receive(&mut stream)?;
        let (module, places): (Module, Vec<Address>) = serde_json::from_slice(&question)?;
        let mut files = FileSymbolizer::new(debug_folders.to_vec(), Patience::REPORT);
        let found = files.look_up(&module, &places);
        send(&mut stream, &serde_json::to_vec(&found)?)?;
    }
}

fn send(stream: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(&(message.len() as u64).to_le_bytes())?;
    stream.write_all(message)
}

fn receive(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    Ok(message)
}
