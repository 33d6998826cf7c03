//! Starts a program so that it is under trace from its first instruction on.
//!
//! The child waits on a pipe until it is seized: no signal is involved, nothing of the hand-off can be seen by the
//! program (a SIGSTOP hand-off leaves a group-stop behind that later children may inherit). Then it prepares itself,
//! installs the filter, and execs. What goes wrong on the way comes back through a second pipe, which the exec closes.

use std::ffi::CString;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::path::PathBuf;

use libc::c_int;
use nix::errno::Errno;
use nix::unistd::AccessFlags;
use nix::unistd::Gid;
use nix::unistd::Uid;

use super::executable;
use super::launch_error::LaunchError;
use super::library;
use super::library::Allocator;
use super::library::Library;
use super::seccomp::Filter;
use super::seccomp::Installed;
use super::stop;
use super::stop::Change;
use super::stop::Resume;
use super::stop::Stop;
use super::stop::Stopped;
use super::sys;
use crate::event::Notice;
use crate::event::NoticeCode;
use crate::event::Outcome;
use crate::event::Stops;
use crate::inherited;

/// A program to launch.
#[derive(Debug, Default)]
pub struct Launch {
    /// A path, or a name to look up in `PATH`.
    pub program: OsString,
    /// Arguments, without the program's name.
    pub arguments: Vec<OsString>,
    /// Variables to set in its environment, besides our own.
    pub environment: Vec<(OsString, OsString)>,
    /// Leave out address space randomization.
    pub no_aslr: bool,
    /// Run it as this user.
    pub user: Option<String>,
    /// Let only memory calls stop it.
    pub seccomp: bool,
    /// Which malloc it uses.
    pub allocator: Allocator,
    /// Where its standard output goes; ours, if absent.
    pub stdout: Option<File>,
}

/// A program that is about to begin, stopped at its exec.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) stopped: Stopped,
    /// What is preloaded into it.
    pub(super) library: Option<Library>,
    pub(super) stops: Stops,
    pub(super) notices: Vec<Notice>,
}

/// What the child has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Personality = 1,
    NoNewPrivs = 2,
    Filter = 3,
    User = 4,
    Exec = 5,
}

impl Step {
    fn from_number(number: u8) -> Option<Self> {
        [
            Self::Personality,
            Self::NoNewPrivs,
            Self::Filter,
            Self::User,
            Self::Exec,
        ]
        .into_iter()
        .find(|step| *step as u8 == number)
    }
}

/// Everything the child needs, made before the fork: it must not allocate after it.
struct Prepared {
    path: CString,
    arguments: Strings,
    environment: Strings,
    identity: Option<Identity>,
    filter: Option<Filter>,
    no_aslr: bool,
    sigpipe: libc::sighandler_t,
    stdout: Option<c_int>,
    closed: Vec<c_int>,
}

/// Strings as execve(2) takes them.
struct Strings {
    _owned: Vec<CString>,
    /// To each of the owned strings, whose bytes stay where they are; ends with a null pointer.
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    fn new(owned: Vec<CString>) -> Self {
        let pointers = owned
            .iter()
            .map(|string| string.as_ptr())
            .chain(std::iter::once(std::ptr::null()))
            .collect();
        Self {
            _owned: owned,
            pointers,
        }
    }
}

struct Identity {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

/// Starts the program and waits until it is about to begin.
pub(super) fn launch(launch: &Launch, options: c_int) -> Result<Launched, LaunchError> {
    let path = resolve(launch)?;
    let library = Library::prepare(&launch.allocator, launch.user.is_some())?;
    let prepared = prepare(launch, &path, library.as_ref())?;
    let pipe = || {
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| LaunchError::Trace {
            request: "pipe",
            errno,
        })
    };
    let (go_read, go_write) = pipe()?;
    let (news_read, news_write) = pipe()?;
    // SAFETY: the child makes system calls only, until it execs or exits.
    match unsafe { libc::fork() } {
        -1 => Err(LaunchError::Trace {
            request: "fork",
            errno: Errno::last(),
        }),
        0 => {
            drop(go_write);
            become_program(&prepared, &go_read, &news_write)
        }
        pid => {
            drop((go_read, news_write));
            take_over(
                pid.cast_unsigned(),
                options,
                go_write,
                news_read,
                launch,
                &path,
                library,
            )
        }
    }
}

/// Finds the program's file as execvp(3) would, in the `PATH` that the program will see.
fn resolve(launch: &Launch) -> Result<PathBuf, LaunchError> {
    let program = &launch.program;
    if program.as_bytes().contains(&b'/') {
        return runnable(PathBuf::from(program))?
            .ok_or_else(|| LaunchError::NotFound(program.clone()));
    }
    let set = launch
        .environment
        .iter()
        .rev()
        .find(|(name, _)| name == "PATH");
    let search = set
        .map(|(_, value)| value.clone())
        .or_else(|| std::env::var_os("PATH"))
        .unwrap_or_else(|| "/usr/local/bin:/bin:/usr/bin".into());
    let mut refused = None;
    for directory in std::env::split_paths(&search).filter(|_| !program.is_empty()) {
        // An empty entry means the current directory.
        let candidate = Path::new(".").join(&directory).join(program);
        let candidate = if directory.is_absolute() {
            directory.join(program)
        } else {
            candidate
        };
        match runnable(candidate) {
            Ok(Some(path)) => return Ok(path),
            Ok(None) => {}
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| LaunchError::NotFound(program.clone())))
}

/// `None` if there is nothing; an error if there is something that cannot be run.
fn runnable(path: PathBuf) -> Result<Option<PathBuf>, LaunchError> {
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(LaunchError::NotExecutable(path))
        }
        Err(_) => Ok(None),
        Ok(metadata) if metadata.is_dir() => Err(LaunchError::Directory(path)),
        Ok(_) if nix::unistd::access(&path, AccessFlags::X_OK).is_err() => {
            Err(LaunchError::NotExecutable(path))
        }
        Ok(_) => Ok(Some(path)),
    }
}

fn prepare(
    launch: &Launch,
    path: &Path,
    library: Option<&Library>,
) -> Result<Prepared, LaunchError> {
    let string = |text: &OsStr, what| {
        CString::new(text.as_bytes()).map_err(|_| LaunchError::NulByte {
            program: launch.program.clone(),
            what,
        })
    };
    let mut arguments = vec![string(&launch.program, "its name")?];
    for argument in &launch.arguments {
        arguments.push(string(argument, "an argument")?);
    }
    Ok(Prepared {
        path: string(path.as_os_str(), "its path")?,
        arguments: Strings::new(arguments),
        environment: Strings::new(
            environment(launch, library)
                .into_iter()
                .map(|entry| string(&entry, "a variable"))
                .collect::<Result<_, _>>()?,
        ),
        identity: launch.user.as_deref().map(identity).transpose()?,
        filter: launch.seccomp.then(Filter::new),
        no_aslr: launch.no_aslr,
        sigpipe: if inherited::sigpipe_ignored() {
            libc::SIG_IGN
        } else {
            libc::SIG_DFL
        },
        stdout: launch.stdout.as_ref().map(AsRawFd::as_raw_fd),
        closed: inherited::closed_descriptors().collect(),
    })
}

/// Our own environment in its own order, byte for byte, with the additions in place or at the end.
fn environment(launch: &Launch, library: Option<&Library>) -> Vec<OsString> {
    let mut entries: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    for (name, value) in &launch.environment {
        match entries.iter_mut().find(|(existing, _)| existing == name) {
            Some((_, existing)) => existing.clone_from(value),
            None => entries.push((name.clone(), value.clone())),
        }
    }
    if let Some(library) = library {
        let preloaded = entries
            .iter_mut()
            .find(|(name, _)| name == library::VARIABLE);
        match preloaded {
            Some((_, value)) => *value = library.before(Some(value)),
            None => entries.push((library::VARIABLE.into(), library.before(None))),
        }
    }
    entries
        .into_iter()
        .map(|(mut entry, value)| {
            entry.push("=");
            entry.push(value);
            OsString::from_vec(entry.into_vec())
        })
        .collect()
}

fn identity(user: &str) -> Result<Identity, LaunchError> {
    let cannot = |errno| LaunchError::CannotBecome {
        user: user.to_owned(),
        errno,
    };
    let entry = nix::unistd::User::from_name(user)
        .map_err(cannot)?
        .ok_or_else(|| LaunchError::NoSuchUser(user.to_owned()))?;
    let name = CString::new(entry.name).map_err(|_| LaunchError::NoSuchUser(user.to_owned()))?;
    Ok(Identity {
        uid: entry.uid,
        gid: entry.gid,
        groups: nix::unistd::getgrouplist(&name, entry.gid).map_err(cannot)?,
    })
}

/// The child's side: from the fork to the exec. Makes system calls only, as memory may be in any state here.
fn become_program(prepared: &Prepared, go: &OwnedFd, news: &OwnedFd) -> ! {
    let tell = |step: Step, errno: Errno| {
        let mut message = [0; 5];
        message[0] = step as u8;
        message[1..].copy_from_slice(&(errno as i32).to_ne_bytes());
        // SAFETY: the message is valid for its length. If nobody reads, nobody wants to know.
        unsafe { libc::write(news.as_raw_fd(), message.as_ptr().cast(), message.len()) };
    };
    let give_up = |step, errno| -> ! {
        tell(step, errno);
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(125) }
    };
    let mut byte = 0_u8;
    // SAFETY: one byte is read into a byte. End of file means that breaktrace has died.
    if unsafe { libc::read(go.as_raw_fd(), (&raw mut byte).cast(), 1) } != 1 {
        // SAFETY: as above.
        unsafe { libc::_exit(125) }
    }
    if prepared.no_aslr
        && let Err(errno) = without_randomization()
    {
        tell(Step::Personality, errno);
    }
    // The filter comes before the change of user: installing it may need the rights we still have.
    if let Some(filter) = &prepared.filter {
        match filter.install() {
            Ok(Installed::Plainly) => {}
            Ok(Installed::WithNoNewPrivs) => tell(Step::NoNewPrivs, Errno::EACCES),
            Err(errno) => tell(Step::Filter, errno),
        }
    }
    if let Some(identity) = &prepared.identity
        && let Err(errno) = change_identity(identity)
    {
        give_up(Step::User, errno);
    }
    // SAFETY: no handler runs; the disposition becomes what breaktrace was given.
    unsafe { libc::signal(libc::SIGPIPE, prepared.sigpipe) };
    for descriptor in &prepared.closed {
        // SAFETY: what is closed here is the /dev/null that Rust's runtime opened.
        unsafe { libc::close(*descriptor) };
    }
    if let Some(stdout) = prepared.stdout {
        // SAFETY: takes numbers only; `stdout` stays open in the parent until the child has begun.
        unsafe { libc::dup2(stdout, libc::STDOUT_FILENO) };
    }
    let errno = exec(prepared);
    give_up(Step::Exec, errno)
}

fn without_randomization() -> Result<(), Errno> {
    let persona = nix::sys::personality::get()?;
    nix::sys::personality::set(persona | nix::sys::personality::Persona::ADDR_NO_RANDOMIZE)
        .map(drop)
}

fn change_identity(identity: &Identity) -> Result<(), Errno> {
    nix::unistd::setgroups(&identity.groups)?;
    nix::unistd::setgid(identity.gid)?;
    nix::unistd::setuid(identity.uid)
}

/// Execs; returns only if that failed.
fn exec(prepared: &Prepared) -> Errno {
    // SAFETY: both arrays end with a null pointer, and their strings live as long as `prepared`.
    unsafe {
        libc::execve(
            prepared.path.as_ptr(),
            prepared.arguments.pointers.as_ptr(),
            prepared.environment.pointers.as_ptr(),
        )
    };
    Errno::last()
}

/// The parent's side: seizes the child, lets it go on, and waits for its exec.
fn take_over(
    pid: u32,
    options: c_int,
    go: OwnedFd,
    news: OwnedFd,
    launch: &Launch,
    path: &Path,
    library: Option<Library>,
) -> Result<Launched, LaunchError> {
    if let Err(errno) = sys::seize(pid, options) {
        // The child reads the end of the pipe and leaves.
        drop(go);
        let _ = sys::wait_for(pid, 0);
        return Err(LaunchError::Trace {
            request: "PTRACE_SEIZE",
            errno,
        });
    }
    let written = nix::unistd::write(&go, &[1]);
    drop(go);
    written.map_err(|errno| LaunchError::Trace {
        request: "write to the child",
        errno,
    })?;
    let outcome = wait_for_exec(pid)?;
    let news = read_news(news);
    let notices = notices(&news);
    let stops = if launch.seccomp && !news.iter().any(|(step, _)| *step == Step::Filter) {
        Stops::MemoryCalls
    } else {
        Stops::EveryCall
    };
    match outcome {
        Ok(stopped) => Ok(Launched {
            stopped,
            library,
            stops,
            notices,
        }),
        Err(outcome) => Err(match news.last() {
            Some((Step::Exec, errno)) => executable::diagnose(path, *errno),
            Some((Step::User, errno)) => LaunchError::CannotBecome {
                user: launch.user.clone().unwrap_or_default(),
                errno: *errno,
            },
            _ => LaunchError::DiedEarly {
                program: launch.program.clone(),
                outcome,
            },
        }),
    }
}

/// Waits until the child execs, or ends.
fn wait_for_exec(pid: u32) -> Result<Result<Stopped, Outcome>, LaunchError> {
    loop {
        let status = match sys::wait_for(pid, 0) {
            Ok(Some((_, status))) => status,
            Ok(None) | Err(Errno::EINTR) => continue,
            Err(errno) => {
                return Err(LaunchError::Trace {
                    request: "waitpid",
                    errno,
                });
            }
        };
        match stop::interpret(status) {
            Change::Ended(outcome) => return Ok(Err(outcome)),
            Change::Stopped(Stop::Exec) => return Ok(Ok(Stopped::reported(pid))),
            Change::Stopped(Stop::Signal(signal)) => {
                Stopped::reported(pid).resume(Resume::Run(signal))
            }
            Change::Stopped(Stop::Group) => Stopped::reported(pid).resume(Resume::Listen),
            // Its own memory calls between the filter and the exec are none of the program's.
            Change::Stopped(_) => Stopped::reported(pid).resume(Resume::Run(0)),
            Change::Continued => {}
        }
    }
}

fn read_news(news: OwnedFd) -> Vec<(Step, Errno)> {
    let mut bytes = Vec::new();
    // The child has closed its end by exec or exit, so this ends.
    if File::from(news).read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    let (messages, _) = bytes.as_chunks::<5>();
    messages
        .iter()
        .filter_map(|[step, errno @ ..]| {
            Some((
                Step::from_number(*step)?,
                Errno::from_raw(i32::from_ne_bytes(*errno)),
            ))
        })
        .collect()
}

fn notices(news: &[(Step, Errno)]) -> Vec<Notice> {
    news.iter()
        .filter_map(|(step, errno)| {
            let (code, message) = match step {
                Step::Personality => (
                    NoticeCode::AslrStillOn,
                    format!(
                        "address space randomization stays on: personality(2) failed with {errno:?}, as containers \
                         often forbid it; addresses and some counts may differ from run to run"
                    ),
                ),
                Step::NoNewPrivs => (
                    NoticeCode::NoNewPrivs,
                    "without CAP_SYS_ADMIN the filter needs no_new_privs: set-uid programs such as sudo run without \
                     their extra rights; --no-seccomp avoids that, at the price of a stop at every call"
                        .to_owned(),
                ),
                Step::Filter => (
                    NoticeCode::SeccompUnavailable,
                    format!(
                        "no seccomp filter could be set ({errno:?}), so the program stops at every system call and \
                         runs slower; `breaktrace doctor` says why"
                    ),
                ),
                Step::User | Step::Exec => return None,
            };
            Some(Notice { code, message })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launching(program: &str, environment: &[(&str, &str)]) -> Launch {
        Launch {
            program: program.into(),
            environment: environment
                .iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
            ..Launch::default()
        }
    }

    #[test]
    fn programs_are_found_in_the_path_that_they_will_see() {
        assert!(resolve(&launching("sh", &[("PATH", "/nowhere:/bin")])).is_ok());
        let error = resolve(&launching("sh", &[("PATH", "/nowhere")])).unwrap_err();
        assert_eq!(error.exit_code(), 127);
        assert!(error.to_string().contains("in PATH"), "{error}");
        assert!(resolve(&launching("", &[])).is_err());
    }

    #[test]
    fn directories_and_plain_files_are_refused_as_what_they_are() {
        assert!(matches!(
            resolve(&launching("/usr", &[])),
            Err(LaunchError::Directory(_))
        ));
        let error = resolve(&launching("/etc/passwd", &[])).unwrap_err();
        assert!(matches!(error, LaunchError::NotExecutable(_)));
        assert_eq!(error.exit_code(), 126);
        assert!(error.hint().unwrap().contains("chmod +x"));
    }

    #[test]
    fn added_variables_replace_in_place_and_come_last_otherwise() {
        let entries = environment(
            &launching("true", &[("PATH", "/x"), ("BREAKTRACE_TEST_NEW", "1")]),
            None,
        );
        assert_eq!(
            entries
                .iter()
                .filter(|entry| entry.as_bytes().starts_with(b"PATH="))
                .count(),
            1
        );
        assert!(entries.contains(&"PATH=/x".into()));
        assert_eq!(entries.last().unwrap(), "BREAKTRACE_TEST_NEW=1");
    }
}
