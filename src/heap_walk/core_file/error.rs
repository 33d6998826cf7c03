//! Why a core file cannot be looked into.

use std::path::PathBuf;

/// Why a core file cannot be looked into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// It cannot be opened or read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It is a folder, a device, a pipe.
    #[error("cannot read {}: it is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// It is compressed, as systemd-coredump(8) keeps core files.
    #[error("{} is compressed ({with})", path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// By what: `zstd`, `lz4`, `xz`, `gzip`.
        with: &'static str,
    },
    /// It is something else.
    #[error("{} is not a core file: it is not an ELF file", .0.display())]
    NotElf(PathBuf),
    /// It is an ELF file, but no core file.
    #[error("{} is not a core file: it is {what}", path.display())]
    NotCore {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It is of a program that is not understood.
    #[error("{} is the core file of a {what} program: only 64-bit programs of x86-64 and Arm are understood", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Which sort of program.
        what: String,
    },
    /// Its end is missing.
    #[error("{} is incomplete: {missing} of {whole} bytes are missing", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that are missing.
        missing: u64,
        /// Bytes that it should have.
        whole: u64,
    },
    /// Its headers make no sense.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What makes no sense.
        what: &'static str,
    },
}

impl CoreError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreadable { cause, .. } => match cause.kind() {
                std::io::ErrorKind::NotFound => {
                    "`cat /proc/sys/kernel/core_pattern` tells where core files go; with systemd, \
                     `coredumpctl list`"
                        .into()
                }
                std::io::ErrorKind::PermissionDenied => {
                    "core files belong to the user of the program: try sudo".into()
                }
                _ => return None,
            },
            Self::Compressed { with, .. } => {
                let tool = match *with {
                    "zstd" => "zstd -d",
                    "lz4" => "lz4 -d",
                    "xz" => "xz -d",
                    _ => "gzip -d",
                };
                format!("`coredumpctl dump PID --output=FILE` decompresses what systemd keeps; otherwise `{tool}`")
            }
            Self::NotAFile(_) | Self::NotElf(_) | Self::NotCore { .. } => {
                "`gcore PID` makes a core file of a running process; a program looks into a running one without it: \
                 `breaktrace heap PID`"
                    .into()
            }
            Self::Foreign { .. } => "look into it where it was made, with gdb".into(),
            Self::Truncated { .. } => {
                "`ulimit -c unlimited` before the program starts lets the kernel write all of it (with systemd: \
                 ProcessSizeMax= and ExternalSizeMax= in coredump.conf); the disk may have been full"
                    .into()
            }
            Self::Damaged { .. } => "copy it again, or let the program write another one".into(),
        })
    }
}
