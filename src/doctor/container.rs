//! Which container this process lives in, told by the marks that container engines leave.
//!
//! Marks only say where to look for a remedy: a virtual machine made from a container image carries them too, and
//! what is allowed is told by the other probes.

use std::env;
use std::path::Path;

use super::Finding;
use super::Status;
use super::small_files::namespace_inode;
use super::small_files::read_small;

/// Inode of the first PID namespace, PROC_PID_INIT_INO of linux/proc_ns.h.
const FIRST_PID_NAMESPACE: u64 = 0xeffffffc;

/// Kinds of container, and of kernels that stand in for Linux.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Docker, or another engine that leaves its mark.
    Docker,
    /// Podman.
    Podman,
    /// A pod.
    Kubernetes,
    /// LXC, LXD, Incus.
    Lxc,
    /// systemd-nspawn.
    Nspawn,
    /// A kernel written in Go, in between.
    Gvisor,
    /// Windows' first Linux layer: no Linux kernel at all.
    Wsl1,
    /// Windows' second one: a Linux kernel in a virtual machine.
    Wsl2,
    /// What `$container` of the first process names.
    Other(String),
}

impl Kind {
    /// The name that people know it by.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
            Self::Kubernetes => "Kubernetes",
            Self::Lxc => "LXC",
            Self::Nspawn => "systemd-nspawn",
            Self::Gvisor => "gVisor",
            Self::Wsl1 => "WSL 1",
            Self::Wsl2 => "WSL 2",
            Self::Other(name) => name,
        }
    }

    /// The engine's command.
    pub(super) fn command(&self) -> &'static str {
        match self {
            Self::Podman => "podman",
            _ => "docker",
        }
    }

    /// What it takes away from a tracer unless told otherwise.
    fn implies(&self) -> &'static str {
        match self {
            Self::Docker | Self::Podman => {
                "unless it is told otherwise, own children can be traced (with Linux 4.8 and an engine of 2019 or \
                 later), and address randomization cannot be switched off"
            }
            Self::Kubernetes => "what is allowed is set by the pod's security context",
            Self::Lxc | Self::Nspawn => "own children can be traced unless a filter forbids it",
            Self::Gvisor => {
                "gVisor answers system calls itself: parts of ptrace, seccomp and /proc are missing in it"
            }
            Self::Wsl1 => "there is no Linux kernel: ptrace and /proc are incomplete",
            Self::Wsl2 => "a Linux kernel of its own: nothing is taken away",
            Self::Other(_) => "what is allowed is set by whoever started the container",
        }
    }

    /// How to start it so that breaktrace may do everything.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Docker => "docker run --cap-add=SYS_PTRACE --security-opt seccomp=unconfined …",
            Self::Podman => "podman run --cap-add=SYS_PTRACE --security-opt seccomp=unconfined …",
            Self::Kubernetes => {
                "in the container's securityContext set capabilities.add: [SYS_PTRACE] and \
                 seccompProfile.type: Unconfined"
            }
            Self::Lxc => {
                "on the host: lxc config set NAME security.syscalls.deny_default=false, and restart the container"
            }
            Self::Nspawn => {
                "systemd-nspawn --capability=CAP_SYS_PTRACE --system-call-filter='@debug personality' …"
            }
            Self::Gvisor => {
                "run the container with a runtime that uses the host's kernel: docker run --runtime=runc …"
            }
            Self::Wsl1 => "in Windows: wsl --set-version DISTRIBUTION 2",
            Self::Wsl2 => "run breaktrace with sudo",
            Self::Other(_) => {
                "start the container with the capability SYS_PTRACE and without a seccomp filter"
            }
        }
    }
}

/// Marks of a container, as found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Container {
    /// Which one, if any mark was found.
    pub(super) kind: Option<Kind>,
    /// The mark that told.
    pub(super) mark: &'static str,
    /// Whether this process lives in the machine's first PID namespace; `None` when not known.
    pub(super) first_pid_namespace: Option<bool>,
}

/// What the marks are read from.
#[derive(Clone, Debug, Default)]
struct Marks {
    /// `/proc/sys/kernel/osrelease`
    release: String,
    /// `/proc/version`
    version: String,
    /// Control groups of the first process, one a line.
    control_groups: String,
    /// `$container` of the first process, or `/run/systemd/container`.
    manager: Option<String>,
    docker_file: bool,
    podman_file: bool,
    lxd_socket: bool,
    kubernetes: bool,
}

impl Marks {
    fn read() -> Self {
        let manager = read_small("/run/systemd/container")
            .or_else(|| {
                let environment = read_small("/proc/1/environ")?;
                let value = environment
                    .split('\0')
                    .find_map(|variable| variable.strip_prefix("container="))?;
                Some(value.to_owned())
            })
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty());
        Self {
            release: read_small("/proc/sys/kernel/osrelease").unwrap_or_default(),
            version: read_small("/proc/version").unwrap_or_default(),
            control_groups: read_small("/proc/1/cgroup").unwrap_or_default(),
            manager,
            docker_file: Path::new("/.dockerenv").exists(),
            podman_file: Path::new("/run/.containerenv").exists(),
            lxd_socket: Path::new("/dev/lxd/sock").exists(),
            kubernetes: env::var_os("KUBERNETES_SERVICE_HOST").is_some()
                || Path::new("/var/run/secrets/kubernetes.io").exists(),
        }
    }

    /// The kind they speak of, and which mark told: kernels that are none first, then what wraps what.
    fn kind(&self) -> Option<(Kind, &'static str)> {
        let cgroup = |word: &str| self.control_groups.contains(word);
        let manager = self.manager.as_deref();
        let tests: [(bool, Kind, &'static str); 12] = [
            (self.is_gvisor(), Kind::Gvisor, "/proc/version"),
            (self.is_wsl1(), Kind::Wsl1, "/proc/sys/kernel/osrelease"),
            (
                self.kubernetes,
                Kind::Kubernetes,
                "the pod's variables and secrets",
            ),
            (cgroup("kubepods"), Kind::Kubernetes, "/proc/1/cgroup"),
            (self.podman_file, Kind::Podman, "/run/.containerenv"),
            (
                manager == Some("podman"),
                Kind::Podman,
                "$container of process 1",
            ),
            (self.docker_file, Kind::Docker, "/.dockerenv"),
            (cgroup("docker"), Kind::Docker, "/proc/1/cgroup"),
            (
                manager.is_some_and(|name| name.starts_with("lxc")),
                Kind::Lxc,
                "$container of process 1",
            ),
            (self.lxd_socket, Kind::Lxc, "/dev/lxd/sock"),
            (cgroup("/lxc"), Kind::Lxc, "/proc/1/cgroup"),
            (
                manager == Some("systemd-nspawn"),
                Kind::Nspawn,
                "$container of process 1",
            ),
        ];
        let told = tests
            .into_iter()
            .find_map(|(found, kind, mark)| found.then_some((kind, mark)));
        told.or_else(|| {
            let name = manager.filter(|&name| name != "wsl")?;
            Some((Kind::Other(name.to_owned()), "$container of process 1"))
        })
        .or_else(|| {
            self.is_microsoft()
                .then_some((Kind::Wsl2, "/proc/sys/kernel/osrelease"))
        })
    }

    /// Older gVisor calls itself Linux 4.4.0, always of the same second (runsc's `linux.Version`); newer says it.
    fn is_gvisor(&self) -> bool {
        self.release.contains("gvisor")
            || self.version.contains("gVisor")
            || self
                .version
                .contains("Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016")
    }

    fn is_microsoft(&self) -> bool {
        self.release.to_ascii_lowercase().contains("microsoft")
    }

    /// `4.4.0-19041-Microsoft`, against `5.15.90.1-microsoft-standard-WSL2`.
    fn is_wsl1(&self) -> bool {
        self.release.contains("Microsoft") && !self.release.contains("WSL2")
    }
}

impl Container {
    /// Whether the processes of the whole machine are seen from here.
    pub(super) fn sees_whole_machine(&self) -> bool {
        self.first_pid_namespace == Some(true)
    }

    /// The container around this process.
    pub(super) fn around() -> Self {
        let (kind, mark) = Marks::read()
            .kind()
            .map_or((None, ""), |(kind, mark)| (Some(kind), mark));
        Self {
            kind,
            mark,
            first_pid_namespace: namespace_inode("/proc/self/ns/pid")
                .map(|inode| inode == FIRST_PID_NAMESPACE),
        }
    }
}

/// The container, judged by what the other probes found: it is to blame only if something is missing.
pub(super) fn container(container: &Container, others: &[Finding]) -> Finding {
    const DEPENDENT: [&str; 7] = [
        "ptrace",
        "syscall_info",
        "seccomp",
        "attach",
        "memory_read",
        "kcmp",
        "address_randomization",
    ];
    let namespace = match container.first_pid_namespace {
        Some(true) => "first process namespace",
        Some(false) => "process namespace of its own",
        None => "process namespace not known",
    };
    let sees = match container.first_pid_namespace {
        Some(true) => "every process of this machine can be seen",
        Some(false) => "only processes of this namespace can be seen, and attached to",
        None => "which processes can be seen is not known",
    };
    let Some(kind) = &container.kind else {
        return Finding {
            name: "container",
            status: Status::Good,
            found: format!("no marks of one, {namespace}"),
            means: sees.into(),
            remedy: None,
        };
    };
    let limiting = others
        .iter()
        .any(|finding| DEPENDENT.contains(&finding.name) && finding.status != Status::Good);
    Finding {
        name: "container",
        status: if limiting {
            Status::Limited
        } else {
            Status::Good
        },
        found: format!("marks of {} ({}), {namespace}", kind.name(), container.mark),
        means: format!("{}; {sees}", kind.implies()),
        remedy: limiting.then(|| kind.remedy().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(marks: &Marks) -> Option<Kind> {
        marks.kind().map(|(kind, _)| kind)
    }

    #[test]
    fn each_engine_is_known_by_its_mark() {
        let with = |change: fn(&mut Marks)| {
            let mut marks = Marks::default();
            change(&mut marks);
            kind_of(&marks)
        };
        assert_eq!(with(|_| {}), None);
        assert_eq!(with(|marks| marks.docker_file = true), Some(Kind::Docker));
        assert_eq!(with(|marks| marks.podman_file = true), Some(Kind::Podman));
        assert_eq!(
            with(|marks| marks.kubernetes = true),
            Some(Kind::Kubernetes)
        );
        assert_eq!(
            with(|marks| marks.control_groups = "0::/kubepods/burstable/pod1".into()),
            Some(Kind::Kubernetes)
        );
        assert_eq!(
            with(|marks| marks.manager = Some("lxc".into())),
            Some(Kind::Lxc)
        );
        assert_eq!(
            with(|marks| marks.manager = Some("systemd-nspawn".into())),
            Some(Kind::Nspawn)
        );
        assert_eq!(
            with(|marks| marks.manager = Some("oci".into())),
            Some(Kind::Other("oci".into()))
        );
    }

    #[test]
    fn windows_layers_are_told_apart() {
        let wsl = |release: &str| {
            kind_of(&Marks {
                release: release.into(),
                ..Marks::default()
            })
        };
        assert_eq!(wsl("4.4.0-19041-Microsoft"), Some(Kind::Wsl1));
        assert_eq!(wsl("5.15.90.1-microsoft-standard-WSL2"), Some(Kind::Wsl2));
        assert_eq!(wsl("6.18.44"), None);
    }

    #[test]
    fn docker_inside_windows_is_docker_and_gvisor_inside_docker_is_gvisor() {
        let marks = Marks {
            release: "5.15.90.1-microsoft-standard-WSL2".into(),
            docker_file: true,
            ..Marks::default()
        };
        assert_eq!(kind_of(&marks), Some(Kind::Docker));
        let marks = Marks {
            release: "4.19.0-gvisor".into(),
            docker_file: true,
            ..Marks::default()
        };
        assert_eq!(kind_of(&marks), Some(Kind::Gvisor));
    }

    #[test]
    fn a_container_is_blamed_only_when_something_is_missing() {
        let around = Container {
            kind: Some(Kind::Docker),
            mark: "/.dockerenv",
            first_pid_namespace: Some(false),
        };
        assert_eq!(container(&around, &[]).status, Status::Good);
        let refused = Finding {
            name: "address_randomization",
            status: Status::Missing,
            found: String::new(),
            means: String::new(),
            remedy: None,
        };
        let finding = container(&around, &[refused]);
        assert_eq!(finding.status, Status::Limited);
        assert!(finding.remedy.unwrap().contains("seccomp=unconfined"));
    }
}
