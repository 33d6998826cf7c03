//! The malloc library that is preloaded into a launched program: the bundled one, or any other.
//!
//! The bundled library is part of this binary. The dynamic linker takes files only, so it is written, for the run,
//! into a new folder of its own below one where nobody else can move it away.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs::File;
use std::fs::OpenOptions;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use nix::sys::statvfs::FsFlags;
use tempfile::TempDir;

use super::executable;
use super::executable::NotPreloadable;
use crate::event::AllocatorChoice;

/// The variable that names libraries to load before all others (ld.so(8)).
pub(super) const VARIABLE: &str = "LD_PRELOAD";

/// The library for programs on this machine, as `build.rs` made it.
const BUNDLED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libbreaktrace.so"));

const FILE_NAME: &str = "libbreaktrace.so";

/// Which malloc library a launched program is to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allocator {
    /// The program's own, as a rule the C library's.
    #[default]
    System,
    /// The one that comes with breaktrace.
    Bundled,
    /// The one in this file.
    Library(PathBuf),
}

impl Allocator {
    /// Finds out, before anything runs, whether a library could be preloaded.
    ///
    /// # Errors
    ///
    /// The file is not there, is no library for programs on this machine, or `LD_PRELOAD` could not name it.
    pub fn check(&self) -> Result<(), LibraryError> {
        match self {
            Self::System | Self::Bundled => Ok(()),
            Self::Library(path) => examine(path).map(drop),
        }
    }
}

impl From<&Allocator> for AllocatorChoice {
    fn from(allocator: &Allocator) -> Self {
        match allocator {
            Allocator::System => Self::System,
            Allocator::Bundled => Self::Bundled,
            Allocator::Library(path) => Self::Library(path.to_string_lossy().into_owned()),
        }
    }
}

/// Why a library cannot be preloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// The file cannot be read.
    #[error("cannot preload `{}`: {source}", path.display())]
    Unreadable {
        /// The library.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is no library that a program on this machine could load.
    #[error("cannot preload `{}`: {problem}", path.display())]
    Unusable {
        /// The library.
        path: PathBuf,
        /// What it is.
        problem: NotPreloadable,
    },
    /// Its name cannot stand in `LD_PRELOAD`.
    #[error("cannot preload `{}`: LD_PRELOAD separates names by spaces and colons, and its path holds one", .0.display())]
    Separator(PathBuf),
    /// There is no folder for the bundled library.
    #[error("there is no folder for the bundled library: {}", listed(.0))]
    NoFolder(Vec<(PathBuf, FolderProblem)>),
    /// The bundled library could not be written.
    #[error("cannot write the bundled library into `{}`: {source}", folder.display())]
    NotWritten {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl LibraryError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreadable { .. } => {
                "--allocator takes `system`, `bundled` or the path of a malloc library".into()
            }
            Self::Unusable { .. } => {
                "name the shared library itself, such as /usr/lib/x86_64-linux-gnu/libjemalloc.so.2"
                    .into()
            }
            Self::Separator(_) => {
                "make a symbolic link to it whose path has neither, and name that".into()
            }
            Self::NoFolder(_) | Self::NotWritten { .. } => {
                "set TMPDIR to a folder of yours that is not mounted noexec, with 1 MiB to spare"
                    .into()
            }
        })
    }
}

/// Why a folder cannot hold the bundled library.
#[derive(Debug, thiserror::Error)]
pub enum FolderProblem {
    /// It cannot be used at all.
    #[error("{0}")]
    Io(std::io::Error),
    /// Programs cannot be mapped from its file system.
    #[error("mounted noexec")]
    NoExec,
    /// Somebody else may rename what is in it, or in a folder above.
    #[error("others may change it")]
    OthersWrite,
    /// Programs of other users could not read the library.
    #[error("others cannot look into it")]
    OthersShut,
    /// `LD_PRELOAD` could not name it.
    #[error("its path holds a space or a colon")]
    Separator,
}

fn listed(tried: &[(PathBuf, FolderProblem)]) -> String {
    let all: Vec<String> = tried
        .iter()
        .map(|(folder, problem)| format!("{} ({problem})", folder.display()))
        .collect();
    all.join(", ")
}

/// Bytes of address space that a 64-bit ELF file takes when it is loaded, by its program headers (elf(5)).
fn memory_bytes(file: &[u8]) -> Option<u64> {
    const PT_LOAD: u64 = 1;
    let number = |at: usize| {
        let bytes = file.get(at..)?.get(..8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let headers = usize::try_from(number(0x20)?).ok()?;
    let [size, count] =
        [0x36, 0x38].map(|at| number(at).and_then(|both| usize::try_from(both & 0xffff).ok()));
    let (size, count) = (size?, count?);
    (0..count)
        .map(|index| headers.saturating_add(index * size))
        .filter(|at| number(*at).is_some_and(|word| word & 0xffff_ffff == PT_LOAD))
        .filter_map(|at| number(at + 0x10)?.checked_add(number(at + 0x28)?))
        .max()
}

/// A library that is there for as long as this lives.
#[derive(Debug)]
pub(super) struct Library {
    path: PathBuf,
    /// Where the bundled one was put; removed when this is dropped.
    folder: Option<TempDir>,
}

impl Library {
    /// Makes the library ready; `None` if the program is to use its own malloc. `other_user`: the program runs as
    /// somebody else.
    pub(super) fn prepare(
        allocator: &Allocator,
        other_user: bool,
    ) -> Result<Option<Self>, LibraryError> {
        match allocator {
            Allocator::System => Ok(None),
            Allocator::Bundled => {
                // What root starts may become somebody else and exec then.
                let for_others = other_user || nix::unistd::geteuid().is_root();
                place(&folders(), for_others).map(Some)
            }
            Allocator::Library(path) => examine(path).map(Some),
        }
    }

    /// Bytes of address space that the bundled one takes; 0 for another.
    pub(super) fn memory_bytes(&self) -> u64 {
        let bundled = self.folder.as_ref().and(Some(BUNDLED));
        bundled.and_then(memory_bytes).unwrap_or(0)
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The value of `LD_PRELOAD` that loads it before what `existing` names.
    pub(super) fn before(&self, existing: Option<&OsStr>) -> OsString {
        let mut value = self.path.clone().into_os_string();
        if let Some(existing) = existing.filter(|existing| !existing.is_empty()) {
            value.push(":");
            value.push(existing);
        }
        value
    }

    /// Leaves the file where it is: somebody may still load it. Returns the folder that stays.
    pub(super) fn leave(&mut self) -> Option<PathBuf> {
        self.folder.take().map(TempDir::keep)
    }
}

/// Whether a library of this path is named in a value of `LD_PRELOAD`.
pub(super) fn is_named(value: &[u8], library: &Path) -> bool {
    value
        .split(|byte| matches!(byte, b' ' | b':'))
        .any(|name| name == library.as_os_str().as_bytes())
}

fn has_separator(path: &Path) -> bool {
    path.as_os_str()
        .as_bytes()
        .iter()
        .any(|byte| matches!(byte, b' ' | b':'))
}

/// Finds out whether a file can be preloaded.
fn examine(path: &Path) -> Result<Library, LibraryError> {
    // Absolute, as the program may change its folder before it starts others.
    let absolute = std::path::absolute(path).map_err(|source| LibraryError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let metadata = std::fs::metadata(&absolute).map_err(|source| LibraryError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let unusable = |problem| LibraryError::Unusable {
        path: path.to_owned(),
        problem,
    };
    // Opening a pipe would wait for its writer.
    if !metadata.is_file() {
        return Err(unusable(NotPreloadable::NoFile));
    }
    let file = File::open(&absolute).map_err(|source| LibraryError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    executable::preloadable(&file).map_err(unusable)?;
    if has_separator(&absolute) {
        return Err(LibraryError::Separator(absolute));
    }
    Ok(Library {
        path: absolute,
        folder: None,
    })
}

/// Where the library may go, best first. What a SIGKILL of breaktrace leaves behind in the first goes at logout, in
/// `/dev/shm` with the next start of the machine.
fn folders() -> Vec<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path: &PathBuf| path.is_absolute())
    };
    let cache =
        variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let mut folders: Vec<PathBuf> = [
        variable("XDG_RUNTIME_DIR"),
        variable("TMPDIR"),
        Some("/tmp".into()),
        Some("/dev/shm".into()),
        Some("/var/tmp".into()),
        cache,
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Writes the bundled library into a new folder within the first of these that will do.
fn place(folders: &[PathBuf], for_others: bool) -> Result<Library, LibraryError> {
    let mut tried = Vec::new();
    for folder in folders {
        match suitable(folder, for_others) {
            Ok(folder) => match write(&folder, for_others) {
                Ok(library) => return Ok(library),
                Err(error) => tried.push((folder, FolderProblem::Io(error))),
            },
            Err(problem) => tried.push((folder.clone(), problem)),
        }
    }
    Err(LibraryError::NoFolder(tried))
}

/// The folder by its real name, if the library may be placed in it.
fn suitable(folder: &Path, for_others: bool) -> Result<PathBuf, FolderProblem> {
    let folder = folder.canonicalize().map_err(FolderProblem::Io)?;
    if has_separator(&folder) {
        return Err(FolderProblem::Separator);
    }
    let ours = nix::unistd::geteuid().as_raw();
    for above in folder.ancestors() {
        let metadata = std::fs::metadata(above).map_err(FolderProblem::Io)?;
        let mode = metadata.mode();
        let sticky = mode & libc::S_ISVTX != 0;
        // Who may write to a folder may rename what is in it, unless it is sticky; its owner always may (rename(2)).
        if (metadata.uid() != ours && metadata.uid() != 0) || (mode & 0o022 != 0 && !sticky) {
            return Err(FolderProblem::OthersWrite);
        }
        if for_others && mode & 0o001 == 0 {
            return Err(FolderProblem::OthersShut);
        }
    }
    let flags = nix::sys::statvfs::statvfs(&folder)
        .map_err(|errno| FolderProblem::Io(errno.into()))?
        .flags();
    if flags.contains(FsFlags::ST_NOEXEC) {
        return Err(FolderProblem::NoExec);
    }
    Ok(folder)
}

/// Makes a folder of a name that nobody could guess, and the library in it.
fn write(parent: &Path, for_others: bool) -> std::io::Result<Library> {
    let folder = tempfile::Builder::new()
        .prefix("breaktrace-")
        .rand_bytes(12)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)?;
    let path = folder.path().join(FILE_NAME);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(BUNDLED)?;
    let (of_file, of_folder) = if for_others {
        (0o555, 0o711)
    } else {
        (0o500, 0o700)
    };
    file.set_permissions(Permissions::from_mode(of_file))?;
    drop(file);
    std::fs::set_permissions(folder.path(), Permissions::from_mode(of_folder))?;
    Ok(Library {
        path,
        folder: Some(folder),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::DirBuilder;
    use std::os::unix::fs::DirBuilderExt;

    use super::*;

    #[test]
    fn the_bundled_library_takes_more_memory_than_its_counters() {
        let counters = size_of::<crate::stats_page::ArenaCounters>() as u64;
        let bytes = memory_bytes(BUNDLED).unwrap();
        assert!((counters..4 << 20).contains(&bytes), "{bytes}");
        assert_eq!(memory_bytes(&BUNDLED[..40]), None);
    }

    #[test]
    fn the_library_goes_with_its_folder() {
        let parent = tempfile::tempdir().unwrap();
        let library = place(&[parent.path().to_owned()], false).unwrap();
        assert_eq!(std::fs::read(library.path()).unwrap(), BUNDLED);
        let folder = library.path().parent().unwrap().to_owned();
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
        drop(library);
        assert!(!folder.exists());
    }

    #[test]
    fn others_can_load_what_is_placed_for_them_and_not_change_it() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::set_permissions(parent.path(), Permissions::from_mode(0o711)).unwrap();
        match place(&[parent.path().to_owned()], true) {
            Ok(library) => {
                let folder = library.path().parent().unwrap();
                assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o711);
                assert_eq!(library.path().metadata().unwrap().mode() & 0o777, 0o555);
            }
            // The tests' own folder lies where others cannot look.
            Err(LibraryError::NoFolder(tried)) => {
                assert!(matches!(tried[0].1, FolderProblem::OthersShut));
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn folders_that_others_may_rearrange_are_passed_over_and_named() {
        let parent = tempfile::tempdir().unwrap();
        let open = parent.path().join("open");
        DirBuilder::new().mode(0o700).create(&open).unwrap();
        std::fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        let spaced = parent.path().join("a b");
        DirBuilder::new().mode(0o700).create(&spaced).unwrap();
        let missing = parent.path().join("missing");
        let error = place(&[open.clone(), spaced, missing], false).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("others may change it"), "{message}");
        assert!(message.contains("space"), "{message}");
        assert!(message.contains("missing"), "{message}");
        assert!(error.hint().unwrap().contains("TMPDIR"));
        std::fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
        assert!(place(&[open], false).is_ok());
    }

    #[test]
    fn the_library_comes_before_what_was_to_be_preloaded() {
        let library = Library {
            path: "/x/lib.so".into(),
            folder: None,
        };
        assert_eq!(library.before(None), "/x/lib.so");
        assert_eq!(library.before(Some("".as_ref())), "/x/lib.so");
        assert_eq!(
            library.before(Some("a.so b.so".as_ref())),
            "/x/lib.so:a.so b.so"
        );
        assert!(is_named(b"a.so /x/lib.so", library.path()));
        assert!(!is_named(b"/x/lib.so.2", library.path()));
    }

    #[test]
    fn files_that_cannot_be_preloaded_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text.so");
        std::fs::write(&text, "no library").unwrap();
        let problem = |path: &Path| examine(path).unwrap_err().to_string();
        assert!(problem(&text).contains("ELF"));
        assert!(problem(Path::new("/no/such.so")).contains("No such file"));
        assert!(problem(Path::new("/usr")).contains("no file"));
        let spaced = folder.path().join("a b.so");
        std::fs::write(&spaced, BUNDLED).unwrap();
        assert!(problem(&spaced).contains("colons"));
        let own = std::env::current_exe().unwrap();
        assert!(problem(&own).contains("program"), "{}", problem(&own));
        let library = folder.path().join("good.so");
        std::fs::write(&library, BUNDLED).unwrap();
        assert_eq!(examine(&library).unwrap().path(), library);
    }
}
