//! What surrounds this process: its capabilities, the security modules, the container. Remedies depend on it.

use std::fmt;
use std::path::Path;

use nix::errno::Errno;

use super::container::Container;
use super::container::Kind;
use super::small_files::namespace_inode;
use super::small_files::read_small;

/// Bit numbers of linux/capability.h.
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;

/// Inode of the first user namespace, PROC_USER_INIT_INO of linux/proc_ns.h.
const FIRST_USER_NAMESPACE: u64 = 0xeffffffd;

/// Effective capabilities of this thread; `None` when the kernel did not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities(pub(super) Option<u64>);

impl Capabilities {
    /// `CAP_SYS_PTRACE`: may trace processes of others, and despite Yama.
    pub(super) fn sys_ptrace(self) -> bool {
        self.has(CAP_SYS_PTRACE)
    }

    /// `CAP_SYS_ADMIN`: may set seccomp filters as it likes.
    pub(super) fn sys_admin(self) -> bool {
        self.has(CAP_SYS_ADMIN)
    }

    /// `CAP_PERFMON`, or `CAP_SYS_ADMIN` in its place: may watch system calls with perf events.
    pub(super) fn perfmon(self) -> bool {
        self.has(CAP_PERFMON) || self.sys_admin()
    }

    fn has(self, capability: u32) -> bool {
        self.0.is_some_and(|set| set >> capability & 1 == 1)
    }

    /// Asks the kernel; does without `/proc`.
    fn of_this_thread() -> Self {
        #[repr(C)]
        struct Header {
            version: u32,
            pid: libc::c_int,
        }
        #[repr(C)]
        #[derive(Clone, Copy, Default)]
        struct Data {
            effective: u32,
            permitted: u32,
            inheritable: u32,
        }
        // _LINUX_CAPABILITY_VERSION_3: two words of 32 capabilities each.
        let mut header = Header {
            version: 0x2008_0522,
            pid: 0,
        };
        let mut data = [Data::default(); 2];
        // SAFETY: both structures are laid out as capget(2) says for this version, and writable.
        let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
        Self(
            (result == 0)
                .then(|| u64::from(data[1].effective) << 32 | u64::from(data[0].effective)),
        )
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("capabilities not known"),
            Some(_) if self.sys_ptrace() => f.write_str("CAP_SYS_PTRACE held"),
            Some(_) => f.write_str("CAP_SYS_PTRACE not held"),
        }
    }
}

/// `kernel.yama.ptrace_scope`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Yama {
    /// The kernel's settings cannot be read.
    #[default]
    Unknown,
    /// The kernel has no such setting: Yama is not built in, or not active.
    Inactive,
    /// Its value, 0 to 3.
    Scope(u32),
}

impl Yama {
    fn read() -> Self {
        let value = read_small("/proc/sys/kernel/yama/ptrace_scope")
            .and_then(|text| text.trim().parse().ok());
        match value {
            Some(scope) => Self::Scope(scope),
            None if Path::new("/proc/sys/kernel/osrelease").exists()
                && !Path::new("/proc/sys/kernel/yama").exists() =>
            {
                Self::Inactive
            }
            None => Self::Unknown,
        }
    }
}

/// The facts that decide which remedy helps.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// What this thread may do beyond its user's rights.
    pub(super) capabilities: Capabilities,
    /// The Yama security module.
    pub(super) yama: Yama,
    /// Whether SELinux's boolean `deny_ptrace` is on.
    pub(super) selinux_denies: bool,
    /// The process that traces this one; `None` when there is none.
    pub(super) traced_by: Option<i32>,
    /// Whether this process lives in a user namespace of its own; `None` when not known.
    pub(super) inner_user_namespace: Option<bool>,
    /// Whether this process has no_new_privs set already, so that no child of it ever gains rights.
    pub(super) no_new_privileges: bool,
    /// The container, if there are marks of one.
    pub(super) container: Container,
}

impl Surroundings {
    /// Looks around.
    pub(super) fn here() -> Self {
        Self {
            capabilities: Capabilities::of_this_thread(),
            yama: Yama::read(),
            selinux_denies: read_small("/sys/fs/selinux/booleans/deny_ptrace")
                .is_some_and(|text| text.starts_with('1')),
            traced_by: procfs::process::Process::myself()
                .and_then(|process| process.status())
                .ok()
                .map(|status| status.tracerpid)
                .filter(|&tracer| tracer != 0),
            inner_user_namespace: namespace_inode("/proc/self/ns/user")
                .map(|inode| inode != FIRST_USER_NAMESPACE),
            no_new_privileges: no_new_privileges(),
            container: Container::around(),
        }
    }

    /// What to do when the kernel refuses to trace an own child: the most likely reason first.
    pub(super) fn allow_tracing_children(&self, refusal: Errno) -> String {
        if refusal == Errno::ENOSYS {
            return self.other_kernel();
        }
        if let Some(tracer) = self.traced_by {
            return format!(
                "start breaktrace on its own: process {tracer} (a debugger, or strace -f) traces it and its children"
            );
        }
        match self.yama {
            Yama::Scope(3..) => YAMA_FOR_GOOD.into(),
            Yama::Scope(2) if !self.capabilities.sys_ptrace() => {
                "run breaktrace with sudo, or: sudo sysctl kernel.yama.ptrace_scope=1".into()
            }
            _ => self.allow_in_sandbox(),
        }
    }

    /// What to do when the kernel refuses to attach to processes of the same user.
    pub(super) fn allow_attaching(&self) -> String {
        match self.yama {
            Yama::Scope(3..) => YAMA_FOR_GOOD.into(),
            Yama::Scope(1 | 2) if !self.capabilities.sys_ptrace() => {
                "start the program with `breaktrace run`, attach with sudo, or: sudo sysctl kernel.yama.ptrace_scope=0"
                    .into()
            }
            _ => self.allow_in_sandbox(),
        }
    }

    /// What to do when neither Yama nor another tracer explains a refusal.
    pub(super) fn allow_in_sandbox(&self) -> String {
        if self.selinux_denies {
            return "sudo setsebool deny_ptrace off".into();
        }
        match &self.container.kind {
            Some(kind) if !self.container.sees_whole_machine() => kind.remedy().into(),
            // Not sure to be a container: see `as_root`.
            Some(kind) => format!("{LEAVE_SANDBOX}; in {}: {}", kind.name(), kind.remedy()),
            None => LEAVE_SANDBOX.into(),
        }
    }

    /// What to do when the kernel lacks a call.
    pub(super) fn other_kernel(&self) -> String {
        match &self.container.kind {
            Some(kind @ (Kind::Gvisor | Kind::Wsl1)) => kind.remedy().into(),
            _ => "use Linux 5.3 or later, without an emulator such as qemu-user in between".into(),
        }
    }

    /// How to get what only root has: in a container, which must be started with `option` for it, or beside one.
    pub(super) fn as_root(&self, option: &str) -> String {
        match &self.container.kind {
            // Root of a container has what its engine gives. Where processes of the whole machine are seen, the marks
            // are those of an image that a virtual machine was made from, more likely than not.
            Some(kind @ (Kind::Docker | Kind::Podman)) if !self.container.sees_whole_machine() => {
                format!("{} run --user root {option} …", kind.command())
            }
            Some(kind @ (Kind::Kubernetes | Kind::Gvisor | Kind::Wsl1)) => kind.remedy().into(),
            _ => "run breaktrace with sudo; `sudo breaktrace run --user \"$USER\" PROGRAM` keeps the program's user".into(),
        }
    }
}

const LEAVE_SANDBOX: &str = "a seccomp policy or security module refuses it: see `grep Seccomp /proc/self/status` and \
                             /proc/self/attr/current, and run breaktrace outside of that sandbox";

const YAMA_FOR_GOOD: &str = "kernel.yama.ptrace_scope=3 holds until the next boot: set it to 1 in /etc/sysctl.d and restart";

fn no_new_privileges() -> bool {
    // SAFETY: the request takes numbers only.
    unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_by_their_bit() {
        assert!(Capabilities(Some(1 << 19)).sys_ptrace());
        assert!(!Capabilities(Some(1 << 21)).sys_ptrace());
        assert!(Capabilities(Some(1 << 21)).perfmon());
        assert!(!Capabilities(None).sys_ptrace());
    }

    #[test]
    fn an_outer_tracer_is_named_before_anything_else() {
        let surroundings = Surroundings {
            yama: Yama::Scope(1),
            traced_by: Some(77),
            ..Surroundings::default()
        };
        let remedy = surroundings.allow_tracing_children(Errno::EPERM);
        assert!(remedy.contains("process 77"), "{remedy}");
    }

    #[test]
    fn yama_is_blamed_only_where_it_refuses() {
        let plain_user = Surroundings {
            yama: Yama::Scope(1),
            capabilities: Capabilities(Some(0)),
            ..Surroundings::default()
        };
        assert!(plain_user.allow_attaching().contains("ptrace_scope=0"));
        let tracer = Surroundings {
            capabilities: Capabilities(Some(1 << 19)),
            ..plain_user
        };
        assert!(!tracer.allow_attaching().contains("ptrace_scope"));
        let locked = Surroundings {
            yama: Yama::Scope(3),
            ..tracer
        };
        assert!(locked.allow_attaching().contains("restart"));
    }

    #[test]
    fn a_machine_made_from_an_image_is_no_container() {
        let inside = |first_pid_namespace| {
            let surroundings = Surroundings {
                container: Container {
                    kind: Some(Kind::Docker),
                    first_pid_namespace,
                    ..Container::default()
                },
                ..Surroundings::default()
            };
            surroundings.as_root("--cap-add=SYS_PTRACE")
        };
        assert!(inside(Some(false)).starts_with("docker run --user root --cap-add"));
        assert!(inside(Some(true)).contains("sudo"));
    }

    #[test]
    fn a_container_gives_its_own_command() {
        let surroundings = Surroundings {
            container: Container {
                kind: Some(Kind::Docker),
                ..Container::default()
            },
            ..Surroundings::default()
        };
        let remedy = surroundings.allow_tracing_children(Errno::EPERM);
        assert!(remedy.contains("--cap-add=SYS_PTRACE"), "{remedy}");
    }
}
