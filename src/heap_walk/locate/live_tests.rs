//! On programs that run.

use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::process::Stdio;

use super::super::Residency;
use super::*;
use crate::mapping;

/// The memory of a process.
struct ProcessImage {
    mappings: Vec<Mapping>,
    memory: File,
    pid: u32,
}

impl ProcessImage {
    fn open(pid: u32) -> Self {
        Self {
            mappings: mapping::read(pid).unwrap(),
            memory: File::open(format!("/proc/{pid}/mem")).unwrap(),
            pid,
        }
    }
}

impl Image for ProcessImage {
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.memory.read_at(bytes, address).unwrap_or(0)
    }

    fn residency(&self, _start: u64, _end: u64) -> Option<Residency> {
        None
    }

    fn file(&self, mapping: &Mapping) -> Option<File> {
        let name = mapping.name.as_deref()?;
        File::open(format!("/proc/{}/root{name}", self.pid)).ok()
    }

    fn page_size(&self) -> u64 {
        4096
    }
}

/// What a program says of itself, and what is found in it meanwhile.
fn held_against(flags: &[&str], environment: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("program.c");
    let program = folder.path().join("program");
    std::fs::write(
        &source,
        r#"
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#ifdef LARGE
char large[12 << 20] = {1};
#endif
static void *kept[1000];
int main(void) {
    for (int i = 0; i < 1000; i++) kept[i] = malloc(100 + 37 * (i % 90));
    for (int i = 0; i < 1000; i += 2) free(kept[i]);
    mallopt(M_TOP_PAD, 300000);
    mallopt(M_MMAP_THRESHOLD, 4 << 20);
    mallopt(M_TRIM_THRESHOLD, -1);
    mallopt(M_ARENA_MAX, 5);
    mallopt(M_MMAP_MAX, 1234);
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("%lu\n", (unsigned long) mallinfo().arena);
    return getchar() == 0;
}
"#,
    )
    .unwrap();
    let compiled = Command::new("cc")
        .args(["-w", "-O1", "-s", "-o"])
        .args([&program, &source])
        .args(flags)
        .output();
    match compiled {
        Ok(compiled) if compiled.status.success() => {}
        _ => {
            let _ = writeln!(std::io::stderr(), "skipped: no C compiler for {flags:?}");
            return;
        }
    }
    let mut child = Command::new(&program)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut said)
        .unwrap();
    let image = ProcessImage::open(child.id());
    let is_there = |file: &str| {
        let mut names = image.mappings.iter().filter_map(|map| map.name.as_deref());
        names.any(|name| name.contains(file))
    };
    let (is_checked, is_wanted) = (
        is_there("libc_malloc_debug"),
        environment.iter().any(|(name, _)| *name == "LD_PRELOAD"),
    );
    let mut located = locate(&image);
    let all = located.len();
    located.retain(|located| located.is_used);
    let system = located
        .first()
        .and_then(|located| image.word(located.main_arena + located.arena.system_mem()));
    let found = located
        .first()
        .and_then(|located| settings(&image, located));
    child.kill().unwrap();
    child.wait().unwrap();
    if is_wanted && !is_checked {
        let _ = writeln!(std::io::stderr(), "skipped: no libc_malloc_debug.so");
        return;
    }
    assert_eq!(
        all,
        if is_checked { 2 } else { 1 },
        "{flags:?}: {located:?}"
    );
    assert_eq!(located.len(), 1, "{flags:?}: {located:?}");
    assert_eq!(system, Some(said.trim().parse().unwrap()), "{flags:?}");
    let found = found.unwrap();
    assert_eq!(found.top_pad_bytes, 300_000);
    assert_eq!(found.mmap_threshold_bytes, 4 << 20);
    assert_eq!(found.trim_threshold_bytes, u64::MAX);
    assert_eq!(found.arena_max, 5);
    assert_eq!(found.mmap_max, 1234);
    assert!(!found.mmap_threshold_is_dynamic);
    let caches = (found.tcache_count, found.tcache_max_bytes);
    if is_checked {
        assert_eq!(caches, (None, None));
    } else if environment.contains(&TUNABLES) {
        assert_eq!(caches, (Some(3), Some(200)));
    } else {
        // The count became 16 with 2.43.
        assert!(matches!(caches, (Some(7 | 16), Some(1032))), "{caches:?}");
    }
}

const TUNABLES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.tcache_count=3:glibc.malloc.tcache_max=200",
);

#[test]
fn a_stripped_program_and_its_settings_are_seen_from_outside() {
    held_against(&[], &[]);
    held_against(&["-no-pie"], &[TUNABLES]);
}

#[test]
fn a_malloc_with_checks_is_found_beside_the_one_that_it_replaces() {
    let checks = ("GLIBC_TUNABLES", "glibc.malloc.check=1");
    held_against(&[], &[("LD_PRELOAD", "libc_malloc_debug.so.0"), checks]);
}

#[test]
fn a_static_stripped_program_and_its_settings_are_seen_from_outside() {
    held_against(&["-static"], &[]);
    held_against(&["-static-pie"], &[TUNABLES]);
    held_against(&["-static", "-DLARGE"], &[]);
    held_against(&["-static-pie", "-DLARGE"], &[]);
}

#[test]
fn the_tests_themselves_run_on_a_malloc_that_is_found() {
    let image = ProcessImage::open(std::process::id());
    let located = locate(&image);
    assert_eq!(located.len(), 1, "{located:?}");
    let located = &located[0];
    assert!(located.is_used);
    // Other threads may grow it meanwhile; then it is asked again.
    let is_equal = (0..1000).any(|_| {
        // SAFETY: the function takes and changes nothing but its own result.
        let before = unsafe { libc::mallinfo2() }.arena as u64;
        let arenas = sum_of_arenas(&image, located);
        // SAFETY: as above.
        let after = unsafe { libc::mallinfo2() }.arena as u64;
        before == after && arenas == Some(before)
    });
    assert!(is_equal);
    // SAFETY: the string is a constant of the C library's.
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    assert_eq!(located.version.as_deref(), version.to_str().ok());
    assert!(settings(&image, located).is_some());
}

fn sum_of_arenas(image: &dyn Image, located: &Located) -> Option<u64> {
    let mut sum = 0;
    let mut at = located.main_arena;
    for _ in 0..10_000 {
        sum += image.word(at + located.arena.system_mem())?;
        at = image.word(at + located.arena.next())?;
        if at == located.main_arena {
            return Some(sum);
        }
    }
    None
}
