//! Core files, as the kernel and gdb write them, against the process that they were made of.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use breaktrace::heap_walk;
use breaktrace::heap_walk::CoreFile;
use breaktrace::heap_walk::Image;
use breaktrace::mapping::Mapping;
use breaktrace::mapping::MappingKind;
use breaktrace::tracer::LiveImage;
use breaktrace::tracer::ShortStop;

use crate::support::Running;
use crate::support::fixture;
use crate::support::folder;
use crate::support::installed;
use crate::support::not_here;
use crate::support::python;
use crate::support::skip;
use crate::support::wait_until_idle;

fn puppet() -> Running {
    let mut puppet = Running::start_obedient(&mut Command::new(fixture("puppet")));
    assert_eq!(puppet.line(), "ready");
    puppet
}

/// A core file that gdb makes of a running process; `None` without gdb.
fn gcore(pid: u32, folder: &Path) -> Option<PathBuf> {
    let gcore = installed(&["gcore"])?;
    let output = Command::new(gcore)
        .arg("-o")
        .arg(folder.join("core"))
        .arg(pid.to_string())
        .output()
        .unwrap();
    let file = folder.join(format!("core.{pid}"));
    assert!(file.exists(), "{output:?}");
    Some(file)
}

/// What was known of a process before its core file was made.
struct Truth {
    pid: u32,
    threads: Vec<(u32, Option<u64>)>,
    mappings: Vec<Mapping>,
    /// For each mapping.
    contents: Vec<Vec<u8>>,
}

impl Truth {
    fn of(pid: u32) -> Self {
        wait_until_idle(pid);
        let stop = ShortStop::begin(pid).unwrap();
        let image = LiveImage::of_process(pid).unwrap();
        let contents = image
            .mappings()
            .iter()
            .map(|mapping| {
                let length = usize::try_from(mapping.bytes()).unwrap().min(1 << 20);
                let mut bytes = vec![0; length];
                let read = image.read(mapping.start.0, &mut bytes);
                bytes.truncate(read);
                bytes
            })
            .collect();
        Self {
            pid,
            threads: stop
                .threads()
                .iter()
                .map(|thread| (thread.tid, thread.thread_pointer))
                .collect(),
            mappings: image.mappings().to_vec(),
            contents,
        }
    }

    /// Panics unless the core file tells the same. Stacks may differ at their ends: the process has run since.
    #[track_caller]
    fn expect_same(&self, core: &CoreFile) {
        assert_eq!(core.problems(), [""; 0]);
        let mut threads: Vec<_> = core
            .threads()
            .iter()
            .map(|thread| (thread.tid, thread.thread_pointer))
            .collect();
        threads.sort_unstable();
        assert_eq!(threads, self.threads);
        assert_eq!(core.program().unwrap().pid, self.pid);
        assert_eq!(core.page_size(), 4096);
        let (mut compared, mut of_files) = (0, 0);
        for (mapping, contents) in self.mappings.iter().zip(&self.contents) {
            let is_code = mapping.kind() == MappingKind::File && !mapping.permissions.write;
            let is_data = mapping.permissions.write && !mapping.permissions.shared;
            if !is_code && !is_data || !mapping.permissions.read {
                continue;
            }
            let found = core
                .mappings()
                .iter()
                .find(|found| found.start == mapping.start)
                .unwrap_or_else(|| panic!("{mapping:?} is missing"));
            assert_eq!(found.end, mapping.end);
            assert_eq!(found.permissions, mapping.permissions);
            if mapping.kind() == MappingKind::File {
                assert_eq!((&found.name, found.offset), (&mapping.name, mapping.offset));
            }
            let mut bytes = vec![0; contents.len()];
            let read = core.read(mapping.start.0, &mut bytes);
            assert_eq!(read, contents.len(), "{mapping:?}");
            if mapping.kind() == MappingKind::Stack {
                assert_eq!(found.kind(), MappingKind::Stack);
                continue;
            }
            let differing = bytes.iter().zip(contents).filter(|(a, b)| a != b).count();
            // Of threads' stacks, and of what a signal or an order has changed.
            assert!(differing < 4096, "{differing} bytes differ: {mapping:?}");
            assert!(!is_code || differing == 0, "{mapping:?}");
            compared += 1;
            if is_code {
                of_files += 1;
                assert!(core.file(found).is_some(), "{mapping:?}");
            }
        }
        assert!(compared > 5 && of_files > 2, "{compared} {of_files}");
    }
}

#[test]
fn gdbs_core_files_tell_what_the_process_had() {
    let mut puppet = puppet();
    puppet.ask("threads 5");
    puppet.ask("brk 100000");
    let folder = folder();
    let truth = Truth::of(puppet.pid());
    let Some(file) = gcore(puppet.pid(), folder.path()) else {
        return skip("no gcore (Debian package gdb)");
    };
    let core = CoreFile::open(&file).unwrap();
    truth.expect_same(&core);
    puppet.finish().expect_code(0);
}

/// Lets a process die of SIGSEGV; its core file, where the kernel leaves it in the process's folder.
fn crash(running: Running, folder: &Path) -> Option<PathBuf> {
    running.send(libc::SIGSEGV);
    running.finish().expect_signal(libc::SIGSEGV);
    fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("core"))
        })
}

/// Starts a program in a folder, to leave a core file there.
fn may_dump(program: &Path, arguments: &str, folder: &Path) -> Running {
    Running::start_obedient(
        Command::new("sh")
            .args(["-c", "ulimit -c unlimited && exec \"$0\" $1"])
            .arg(program)
            .arg(arguments)
            .current_dir(folder),
    )
}

#[test]
fn the_kernels_core_files_tell_what_the_process_had() {
    let folder = folder();
    let mut puppet = may_dump(&fixture("puppet"), "", folder.path());
    assert_eq!(puppet.line(), "ready");
    puppet.ask("threads 5");
    puppet.ask("brk 100000");
    let truth = Truth::of(puppet.pid());
    let Some(file) = crash(puppet, folder.path()) else {
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
        return not_here(&format!("core files go elsewhere: {}", pattern.trim()));
    };
    let core = CoreFile::open(&file).unwrap();
    truth.expect_same(&core);
    assert_eq!(core.signal(), Some(11));
    assert_eq!(core.program().unwrap().name, "puppet");
    // Without the program's own file, its code is not there: nothing is guessed.
    let whole = fs::read(&file).unwrap();
    let other = folder.path().join("shorter");
    fs::write(&other, &whole[..whole.len() - 1]).unwrap();
    let error = CoreFile::open(&other).unwrap_err();
    assert!(error.to_string().contains("1 of "), "{error}");
}

#[test]
fn code_is_read_only_from_the_very_file() {
    let folder = folder();
    let program = folder.path().join("puppet");
    fs::copy(fixture("puppet"), &program).unwrap();
    let mut puppet = may_dump(&program, "", folder.path());
    assert_eq!(puppet.line(), "ready");
    let Some(file) = crash(puppet, folder.path()) else {
        return not_here("core files go elsewhere");
    };
    let code_of = |core: &CoreFile| {
        let name = program.to_str();
        let code = core
            .mappings()
            .iter()
            .find(|mapping| mapping.permissions.execute && mapping.name.as_deref() == name)
            .unwrap();
        let mut bytes = vec![0; 4096];
        let read = core.read(code.start.0, &mut bytes);
        (read, core.file(code).is_some())
    };
    assert_eq!(code_of(&CoreFile::open(&file).unwrap()), (4096, true));
    // Another program in its place, a pipe, nothing.
    fs::remove_file(&program).unwrap();
    fs::copy(fixture("threads"), &program).unwrap();
    assert_eq!(code_of(&CoreFile::open(&file).unwrap()), (0, false));
    fs::remove_file(&program).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&program)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(code_of(&CoreFile::open(&file).unwrap()), (0, false));
    fs::remove_file(&program).unwrap();
    assert_eq!(code_of(&CoreFile::open(&file).unwrap()), (0, false));
}

#[test]
fn a_heap_in_a_core_file_is_the_one_that_the_process_had() {
    let Some(python) = python() else {
        return skip("no python3");
    };
    let script =
        "x = [str(n) * 20 for n in range(30000)]; del x[::3]; print('ready', flush=True); input()";
    let mut program = Running::start_obedient(Command::new(python).args(["-c", script]));
    assert_eq!(program.line(), "ready");
    let folder = folder();
    let pid = program.pid();
    wait_until_idle(pid);
    let look = |image: &dyn Image, pointers: &[u64]| {
        heap_walk::locate(image)
            .into_iter()
            .filter_map(|located| heap_walk::stand(image, &located, Some(pointers)))
            .map(|standing| heap_walk::examine(image, standing, true))
            .collect::<Vec<_>>()
    };
    let live = {
        let stop = ShortStop::begin(pid).unwrap();
        look(
            &LiveImage::of_process(pid).unwrap(),
            &stop.thread_pointers(),
        )
    };
    let Some(file) = gcore(pid, folder.path()) else {
        return skip("no gcore (Debian package gdb)");
    };
    let core = CoreFile::open(&file).unwrap();
    let dead = look(&core, &core.thread_pointers());
    assert_eq!(live.len(), 1);
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].mallinfo, live[0].mallinfo);
    assert_eq!(dead[0].version, live[0].version);
    assert_eq!(dead[0].settings, live[0].settings);
    assert_eq!(dead[0].thread_caches, live[0].thread_caches);
    assert_eq!(dead[0].classes, live[0].classes);
    // What was in memory, and so what trimming would give back, it does not tell.
    assert_eq!(dead[0].trimmable_bytes, None);
    assert!(live[0].trimmable_bytes.is_some());
    program.tell("");
    program.finish().expect_code(0);
}
