//! Probes of the kernel beside ptrace: its age, Yama, `/proc`, address randomization, latency, perf events.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;

use nix::errno::Errno;

use super::Finding;
use super::Outcome;
use super::Status;
use super::small_files::read_small;
use super::surroundings::Surroundings;
use super::surroundings::Yama;
use super::toy::Line;
use super::toy::answer_of;
use super::toy::start;
use super::toy::survives;
use crate::event::Machine;

const MOUNT_PROC: &str = "mount -t proc proc /proc (as root, in this namespace)";

/// The kernel and the processor.
pub(super) fn kernel(machine: &Machine) -> Finding {
    let found = format!("Linux {} on {}", machine.kernel, machine.architecture);
    // Both names that a 64-bit x86 or Arm kernel gives itself.
    if matches!(machine.architecture.as_str(), "x86_64" | "aarch64") {
        return Finding {
            name: "kernel",
            status: Status::Good,
            found,
            means: "breaktrace knows this architecture's system calls".into(),
            remedy: None,
        };
    }
    Finding {
        name: "kernel",
        status: Status::Limited,
        found,
        means: "breaktrace is made for x86_64 and aarch64; nothing is known about others".into(),
        remedy: Some("use a machine with x86_64 or aarch64".into()),
    }
}

/// The Yama security module. What it does to breaktrace, the findings `ptrace` and `attach` measure.
pub(super) fn yama(surroundings: &Surroundings) -> Finding {
    let finding = |status, found: &str, means: &str, remedy| Finding {
        name: "yama",
        status,
        found: found.into(),
        means: means.into(),
        remedy,
    };
    let scope = match surroundings.yama {
        Yama::Scope(scope) => scope,
        Yama::Inactive => {
            return finding(
                Status::Good,
                "not active: there is no kernel.yama.ptrace_scope",
                "it refuses nothing",
                None,
            );
        }
        Yama::Unknown => {
            return finding(
                Status::Limited,
                "not known: kernel.yama.ptrace_scope cannot be read",
                "whether it refuses anything, the findings `ptrace` and `attach` tell",
                Some(MOUNT_PROC.into()),
            );
        }
    };
    let privileged = surroundings.capabilities.sys_ptrace();
    let found = format!(
        "kernel.yama.ptrace_scope is {scope}; {}",
        surroundings.capabilities
    );
    match (scope, privileged) {
        (0, _) => finding(Status::Good, &found, "it refuses nothing", None),
        (1 | 2, true) => finding(
            Status::Good,
            &found,
            "it refuses nothing to holders of CAP_SYS_PTRACE",
            None,
        ),
        (1, false) => finding(
            Status::Limited,
            &found,
            "only own children can be traced, so `attach` needs root",
            Some(surroundings.allow_attaching()),
        ),
        (2, false) => finding(
            Status::Missing,
            &found,
            "only holders of CAP_SYS_PTRACE may trace",
            Some(surroundings.allow_tracing_children(Errno::EPERM)),
        ),
        _ => finding(
            Status::Missing,
            &found,
            "nobody may trace, not even root",
            Some(surroundings.allow_tracing_children(Errno::EPERM)),
        ),
    }
}

/// Whether `run --no-aslr` can keep its word.
pub(super) fn address_randomization(surroundings: &Surroundings) -> Finding {
    let finding = Finding {
        name: "address_randomization",
        status: Status::Good,
        found: "personality(ADDR_NO_RANDOMIZE) worked in a child".into(),
        means: "`run --no-aslr` gives the same addresses each time".into(),
        remedy: None,
    };
    answer_of(stop_randomizing, 0, "personality").judge(finding, |problem| Finding {
        name: "address_randomization",
        status: Status::Missing,
        found: problem.words("it cannot be switched off"),
        means: "`run --no-aslr` does not work: addresses differ from run to run, sizes and counts do not".into(),
        remedy: Some(surroundings.allow_in_sandbox()),
    })
}

fn stop_randomizing(line: &Line, _: i64) {
    const ASK: libc::c_ulong = 0xffff_ffff;
    let flag = libc::c_ulong::from(libc::ADDR_NO_RANDOMIZE.cast_unsigned());
    // SAFETY: personality(2) takes a number, and concerns this child alone.
    let now = unsafe { libc::personality(ASK) };
    if now < 0 {
        return line.answer(Errno::last_raw());
    }
    // SAFETY: as above.
    if unsafe { libc::personality(libc::c_ulong::from(now.cast_unsigned()) | flag) } < 0 {
        return line.answer(Errno::last_raw());
    }
    // SAFETY: as above.
    let then = unsafe { libc::personality(ASK) };
    let kept = then & libc::ADDR_NO_RANDOMIZE != 0;
    line.answer(if kept { 0 } else { libc::ENOTSUP });
}

/// `struct procmap_query` of linux/fs.h, Linux 6.11.
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const _: () = assert!(size_of::<ProcmapQuery>() == 104);
const _: () = assert!(offset_of!(ProcmapQuery, vma_name_addr) == 88);

/// Whether single addresses can be looked up without reading all of `/proc/PID/maps`.
pub(super) fn procmap_query(surroundings: &Surroundings) -> Finding {
    let finding = Finding {
        name: "procmap_query",
        status: Status::Good,
        found: "the ioctl on /proc/PID/maps found a mapping".into(),
        means: "single mappings are looked up in half a microsecond or so".into(),
        remedy: None,
    };
    query_own_mapping().judge(finding, |problem| Finding {
        name: "procmap_query",
        status: Status::Limited,
        found: problem.words("no PROCMAP_QUERY"),
        means: "all of /proc/PID/maps is read instead: the same result, but slower in programs with many mappings"
            .into(),
        remedy: Some(match problem.errno() {
            Errno::ENOTTY => "use Linux 6.11 or later".into(),
            Errno::ENOENT => MOUNT_PROC.into(),
            _ => surroundings.allow_in_sandbox(),
        }),
    })
}

fn query_own_mapping() -> Outcome {
    let maps = match File::open("/proc/self/maps") {
        Ok(maps) => maps,
        Err(error) => return refused("open /proc/self/maps", &error),
    };
    let here = 0_u8;
    let address = ptr::from_ref(&here).addr() as u64;
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_addr: address,
        ..ProcmapQuery::default()
    };
    let number = libc::_IOWR::<ProcmapQuery>(u32::from(b'f'), 17);
    // SAFETY: the kernel reads and writes `query` up to the size it names; the addresses in it are null with size 0,
    // which asks for no name and no build id.
    let result = unsafe { libc::ioctl(maps.as_raw_fd(), number, &raw mut query) };
    if result < 0 {
        return Outcome::Refused("PROCMAP_QUERY", Errno::last());
    }
    if (query.vma_start..query.vma_end).contains(&address) {
        Outcome::Works
    } else {
        Outcome::Odd("PROCMAP_QUERY named a mapping without the address asked for".into())
    }
}

/// Whether it can be seen which pages are in memory.
pub(super) fn pagemap(surroundings: &Surroundings) -> Finding {
    let finding = Finding {
        name: "pagemap",
        status: Status::Good,
        found: "/proc/PID/pagemap told of a child's page".into(),
        means: "resident and swapped pages of the heap can be counted".into(),
        remedy: None,
    };
    read_child_pagemap().judge(finding, |problem| Finding {
        name: "pagemap",
        status: Status::Missing,
        found: problem.words("a child's pages cannot be seen"),
        means:
            "how much of the heap is in memory stays unknown; resident memory as a whole is known"
                .into(),
        remedy: Some(match problem.errno() {
            Errno::ENOENT | Errno::ESRCH => {
                format!("{MOUNT_PROC}; if it is, use a kernel with CONFIG_PROC_PAGE_MONITOR")
            }
            _ => surroundings.allow_in_sandbox(),
        }),
    })
}

fn read_child_pagemap() -> Outcome {
    const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
    // Written here, so a child has it in memory too, or in swap.
    let marker = Box::new(1_u8);
    let page_size = page_size();
    let toy = match start(|_, _| {}, 0) {
        Ok(toy) => toy,
        Err(problem) => return problem,
    };
    let pagemap = match File::open(format!("/proc/{}/pagemap", toy.pid())) {
        Ok(pagemap) => pagemap,
        Err(error) => return refused("open /proc/PID/pagemap", &error),
    };
    let mut entry = [0; 8];
    let page = ptr::from_ref(&*marker).addr() as u64 / page_size;
    if let Err(error) = pagemap.read_exact_at(&mut entry, page * 8) {
        return refused("read /proc/PID/pagemap", &error);
    }
    if u64::from_ne_bytes(entry) & PRESENT_OR_SWAPPED == 0 {
        return Outcome::Odd("/proc/PID/pagemap denies a page that is in use".into());
    }
    Outcome::Works
}

/// Whether `/proc` shows the processes by the numbers that we know them by.
pub(super) fn proc_mount() -> Finding {
    let finding = |status, found: String, means: &str, remedy: Option<&str>| Finding {
        name: "proc",
        status,
        found,
        means: means.into(),
        remedy: remedy.map(Into::into),
    };
    const UNSEEN: &str =
        "threads and mappings cannot be read: `attach` does not work, and `run` takes no snapshots";
    let seen = match fs::read_link("/proc/self") {
        Ok(link) => link.to_string_lossy().into_owned(),
        Err(error) => {
            let found = refused("readlink /proc/self", &error).words("/proc is not usable");
            return finding(Status::Missing, found, UNSEEN, Some(MOUNT_PROC));
        }
    };
    if seen != std::process::id().to_string() {
        let found = format!(
            "/proc is of another process namespace: it calls this process {seen}, we call it {}",
            std::process::id()
        );
        return finding(Status::Missing, found, UNSEEN, Some(MOUNT_PROC));
    }
    let visible = match hidden_processes() {
        Some(option) => finding(
            Status::Limited,
            format!("mounted for our namespace, with {option}"),
            "processes of other users are hidden, and cannot be attached to",
            Some("run breaktrace with sudo, or: sudo mount -o remount,hidepid=0 /proc"),
        ),
        None => finding(
            Status::Good,
            "mounted for our process namespace".into(),
            "processes, threads and mappings can be read",
            None,
        ),
    };
    read_child_maps().judge(visible, |problem| {
        finding(
            Status::Missing,
            problem.words("/proc hides a child's mappings"),
            UNSEEN,
            Some(MOUNT_PROC),
        )
    })
}

fn read_child_maps() -> Outcome {
    let toy = match start(|_, _| {}, 0) {
        Ok(toy) => toy,
        Err(problem) => return problem,
    };
    match fs::read(format!("/proc/{}/maps", toy.pid())) {
        Ok(maps) if maps.is_empty() => Outcome::Odd("/proc/PID/maps is empty".into()),
        Ok(_) => Outcome::Works,
        Err(error) => refused("read /proc/PID/maps", &error),
    }
}

/// The mount option by which `/proc` hides processes from this one; `None` when it shows them all.
fn hidden_processes() -> Option<String> {
    // Whoever may read the first process's `stat` is exempt (root, or a member of the group in `gid=`).
    if fs::metadata("/proc/1").is_ok() && fs::read("/proc/1/stat").is_ok() {
        return None;
    }
    hiding_option(&read_small("/proc/self/mountinfo")?)
}

/// `hidepid` of the last `/proc` in a mountinfo, where it is neither 0 nor off.
fn hiding_option(mountinfo: &str) -> Option<String> {
    let line = mountinfo
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some("/proc"))?;
    line.split([' ', ','])
        .find(|option| option.starts_with("hidepid="))
        .filter(|&option| !matches!(option, "hidepid=0" | "hidepid=off"))
        .map(Into::into)
}

/// Whether idle processors can be kept awake while stops come fast.
pub(super) fn idle_latency(surroundings: &Surroundings) -> Finding {
    let finding = Finding {
        name: "idle_latency",
        status: Status::Good,
        found: "/dev/cpu_dma_latency took a request".into(),
        means:
            "stops cost about a quarter, since idle processors are held awake while stops come fast"
                .into(),
        remedy: None,
    };
    request_latency().judge(finding, |problem| Finding {
        name: "idle_latency",
        status: Status::Limited,
        found: problem.words("/dev/cpu_dma_latency is not writable"),
        means: "each stop wakes an idle processor first, which can cost four times as much; results are the same"
            .into(),
        remedy: Some(surroundings.as_root("--device=/dev/cpu_dma_latency")),
    })
}

/// Asks for the greatest latency, which changes nothing, and takes it back by closing.
fn request_latency() -> Outcome {
    const NO_LIMIT: i32 = 2_000_000_000; // PM_QOS_CPU_LATENCY_DEFAULT_VALUE, microseconds
    let mut device = match OpenOptions::new().write(true).open("/dev/cpu_dma_latency") {
        Ok(device) => device,
        Err(error) => return refused("open", &error),
    };
    match device.write_all(&NO_LIMIT.to_ne_bytes()) {
        Ok(()) => Outcome::Works,
        Err(error) => refused("write", &error),
    }
}

/// The first version of `struct perf_event_attr`, linux/perf_event.h.
#[repr(C)]
#[derive(Default)]
struct PerfEventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config1: u64,
}

const _: () = assert!(size_of::<PerfEventAttributes>() == 64);

/// Whether system calls could be watched without stopping the program.
pub(super) fn perf_events(surroundings: &Surroundings) -> Finding {
    let level = read_small("/proc/sys/kernel/perf_event_paranoid").map_or_else(
        || "kernel.perf_event_paranoid is not known".into(),
        |text| format!("kernel.perf_event_paranoid is {}", text.trim()),
    );
    let held = if surroundings.capabilities.perfmon() {
        "CAP_PERFMON held"
    } else {
        "CAP_PERFMON not held"
    };
    let finding = Finding {
        name: "perf_events",
        status: Status::Good,
        found: format!("allowed; {level}, {held}"),
        means: "calls could be watched without stopping the program; breaktrace uses ptrace, and does not need it"
            .into(),
        remedy: None,
    };
    open_perf_event().judge(finding, |problem| Finding {
        name: "perf_events",
        status: Status::Limited,
        found: problem.words(&format!("refused; {level}, {held}")),
        means: "calls cannot be watched without stopping the program; breaktrace uses ptrace, and does not need it"
            .into(),
        remedy: Some(match problem.errno() {
            Errno::EACCES | Errno::EPERM if !surroundings.capabilities.perfmon() => {
                "only if other tools need it: sudo sysctl kernel.perf_event_paranoid=1".into()
            }
            _ => "only if other tools need it: use a kernel with CONFIG_PERF_EVENTS, outside of a sandbox".into(),
        }),
    })
}

/// Opens an event that counts nothing, in kernel and program: what tracepoints ask for.
fn open_perf_event() -> Outcome {
    const SOFTWARE: u32 = 1; // PERF_TYPE_SOFTWARE
    const DUMMY: u64 = 9; // PERF_COUNT_SW_DUMMY
    const CLOSE_ON_EXEC: libc::c_ulong = 8; // PERF_FLAG_FD_CLOEXEC
    let attributes = PerfEventAttributes {
        kind: SOFTWARE,
        size: 64,
        config: DUMMY,
        ..PerfEventAttributes::default()
    };
    if let Err(problem) = survives(libc::SYS_perf_event_open, "perf_event_open") {
        return problem;
    }
    // SAFETY: `attributes` has the size it names; the event is this thread's (0), on any processor (-1), in no group.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            0,
            -1,
            -1,
            CLOSE_ON_EXEC,
        )
    };
    let Ok(descriptor) = Errno::result(descriptor) else {
        return Outcome::Refused("perf_event_open", Errno::last());
    };
    if let Ok(descriptor) = libc::c_int::try_from(descriptor) {
        // SAFETY: the descriptor was just opened, and nobody else owns it.
        unsafe { libc::close(descriptor) };
    }
    Outcome::Works
}

/// What this machine is.
pub(super) fn machine() -> Machine {
    let (architecture, kernel) = nix::sys::utsname::uname().map_or_else(
        |_| (std::env::consts::ARCH.to_owned(), "(unknown)".to_owned()),
        |name| {
            (
                name.machine().to_string_lossy().into_owned(),
                name.release().to_string_lossy().into_owned(),
            )
        },
    );
    Machine {
        architecture,
        kernel,
        page_size: page_size(),
    }
}

fn page_size() -> u64 {
    // SAFETY: sysconf(3) takes a number and has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It never fails for this name (POSIX requires it).
    u64::try_from(size).unwrap_or(4096).max(1)
}

fn refused(call: &'static str, error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(number) => Outcome::Refused(call, Errno::from_raw(number)),
        None => Outcome::Odd(format!("{call}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::surroundings::Capabilities;
    use super::*;

    fn with_yama(scope: Yama, capabilities: u64) -> Finding {
        yama(&Surroundings {
            yama: scope,
            capabilities: Capabilities(Some(capabilities)),
            ..Surroundings::default()
        })
    }

    #[test]
    fn yama_limits_those_without_the_capability() {
        assert_eq!(with_yama(Yama::Inactive, 0).status, Status::Good);
        assert_eq!(with_yama(Yama::Scope(0), 0).status, Status::Good);
        assert_eq!(with_yama(Yama::Scope(1), 0).status, Status::Limited);
        assert_eq!(with_yama(Yama::Scope(2), 0).status, Status::Missing);
        assert_eq!(with_yama(Yama::Scope(2), 1 << 19).status, Status::Good);
        assert_eq!(with_yama(Yama::Scope(3), 1 << 19).status, Status::Missing);
    }

    #[test]
    fn an_unknown_architecture_is_a_limit() {
        let machine = |architecture: &str| Machine {
            architecture: architecture.into(),
            kernel: "6.1.0".into(),
            page_size: 4096,
        };
        assert_eq!(kernel(&machine("x86_64")).status, Status::Good);
        assert_eq!(kernel(&machine("riscv64")).status, Status::Limited);
    }

    #[test]
    fn hiding_is_read_from_the_last_mount_of_proc() {
        let root = "22 1 0:21 / /proc rw,relatime - proc proc rw\n";
        let hiding = "30 22 0:29 / /proc rw - proc proc rw,hidepid=invisible\n";
        let shown = "31 22 0:30 / /proc rw - proc proc rw,hidepid=0\n";
        assert_eq!(hiding_option(root), None);
        assert_eq!(
            hiding_option(&format!("{root}{hiding}")).as_deref(),
            Some("hidepid=invisible")
        );
        assert_eq!(hiding_option(&format!("{root}{hiding}{shown}")), None);
    }
}
