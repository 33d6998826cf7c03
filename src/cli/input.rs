//! What each of several runs reads.

use std::fs::File;
use std::io;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use super::Failure;

/// What each run reads.
pub(super) enum Input {
    /// A file, from where it stood.
    File { file: File, from: u64 },
    /// Nothing: what is not a file can be read once only.
    Nothing,
}

impl Input {
    /// Standard input, if every run can be given the same of it; otherwise it becomes empty.
    pub(super) fn of_standard_input() -> Self {
        let file = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .ok()
            .map(File::from)
            .filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()));
        if let Some(mut file) = file
            && let Ok(from) = file.stream_position()
        {
            return Self::File { file, from };
        }
        if let Ok(null) = File::open("/dev/null") {
            // SAFETY: both descriptors are open; nothing of ours reads standard input.
            unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) };
        }
        Self::Nothing
    }

    /// Back to where it stood at first.
    pub(super) fn rewind(&mut self) -> Result<(), Failure> {
        match self {
            Self::Nothing => Ok(()),
            // The descriptor that programs inherit shares its position with this one.
            Self::File { file, from } => file
                .seek(SeekFrom::Start(*from))
                .map(drop)
                .map_err(|error| Failure::new(format!("cannot rewind standard input: {error}"))),
        }
    }
}
