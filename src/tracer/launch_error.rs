//! Why a program could not be started, and what to do about it.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;

use super::library::LibraryError;
use crate::event::Outcome;

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// No such file, or nothing of that name in `PATH`.
    #[error("cannot run `{}`: there is no such program{}", .0.display(), searched(.0))]
    NotFound(OsString),
    /// It is a directory.
    #[error("cannot run `{}`: it is a directory", .0.display())]
    Directory(PathBuf),
    /// Its permissions forbid it.
    #[error("cannot run `{}`: it may not be executed", .0.display())]
    NotExecutable(PathBuf),
    /// The program that shall interpret it is missing.
    #[error("cannot run `{}`: its interpreter `{interpreter}` does not exist", path.display())]
    MissingInterpreter {
        /// The program.
        path: PathBuf,
        /// What it asks for in its first line or its ELF header.
        interpreter: String,
    },
    /// It is for other machines.
    #[error("cannot run `{}`: it is a program for {machine}, and this machine is {}", path.display(), std::env::consts::ARCH)]
    WrongArchitecture {
        /// The program.
        path: PathBuf,
        /// What it is for.
        machine: String,
    },
    /// The kernel does not know how to run it.
    #[error("cannot run `{}`: it is neither a program nor a script that begins with #!", .0.display())]
    UnknownFormat(PathBuf),
    /// The kernel refused for another reason.
    #[error("cannot run `{}`: {}", path.display(), errno.desc())]
    Refused {
        /// The program.
        path: PathBuf,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The user to run it as does not exist.
    #[error("cannot run as `{0}`: there is no such user")]
    NoSuchUser(String),
    /// We may not become that user.
    #[error("cannot run as `{user}`: {}", errno.desc())]
    CannotBecome {
        /// The user.
        user: String,
        /// The kernel's reason.
        errno: Errno,
    },
    /// A name, an argument or a variable cannot be handed over.
    #[error("cannot run `{}`: {what} holds a NUL byte", program.display())]
    NulByte {
        /// The program.
        program: OsString,
        /// Which string it is.
        what: &'static str,
    },
    /// The malloc library cannot be preloaded.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The kernel refused to let us trace.
    #[error("cannot trace: {request}: {}", errno.desc())]
    Trace {
        /// The step that was refused.
        request: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The child was killed before the program began.
    #[error("cannot run `{}`: it was killed before it began ({outcome:?})", program.display())]
    DiedEarly {
        /// The program.
        program: OsString,
        /// How.
        outcome: Outcome,
    },
}

fn searched(program: &OsStr) -> &'static str {
    if program.as_bytes().contains(&b'/') {
        ""
    } else {
        " in PATH"
    }
}

impl LaunchError {
    /// The exit code that env(1) and timeout(1) use for this.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) | Self::MissingInterpreter { .. } => 127,
            Self::Directory(_)
            | Self::NotExecutable(_)
            | Self::WrongArchitecture { .. }
            | Self::UnknownFormat(_)
            | Self::Refused { .. } => 126,
            _ => 125,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound(program) if program.as_bytes().contains(&b'/') => {
                "check the path; it is relative to the directory you are in".into()
            }
            Self::NotFound(program) => format!(
                "check the spelling, or give a path such as ./{}",
                program.display()
            ),
            Self::Directory(_) => "name a program inside it".into(),
            Self::NotExecutable(path) => format!("chmod +x {}", path.display()),
            Self::MissingInterpreter { .. } => {
                "install the interpreter, or call the program through the right one".into()
            }
            Self::WrongArchitecture { .. } => "build it for this machine".into(),
            Self::UnknownFormat(path) => format!(
                "if it is a shell script: breaktrace run sh {}",
                path.display()
            ),
            Self::NoSuchUser(_) => "see `getent passwd` for the users of this machine".into(),
            Self::CannotBecome { .. } => {
                "only root may run programs as somebody else; try sudo".into()
            }
            Self::Library(error) => return error.hint(),
            Self::Trace { .. } => "`breaktrace doctor` says what this machine allows".into(),
            Self::Refused { .. } | Self::NulByte { .. } | Self::DiedEarly { .. } => return None,
        })
    }
}
