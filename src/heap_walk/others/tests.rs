//! Programs made up of bytes: files with the tables that a dynamic linker reads, and its list of them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;

use super::*;
use crate::heap_walk::ArenaLayout;
use crate::heap_walk::Residency;
use crate::mapping;
use crate::mapping::Mapping;

/// Memory that is only here.
#[derive(Clone, Default)]
struct Made {
    maps: String,
    mappings: Vec<Mapping>,
    /// By page.
    memory: BTreeMap<u64, Vec<u8>>,
    reads: Cell<usize>,
}

const PAGE: u64 = 4096;
const DEBUG: u64 = 0x7000_0000_0000;

impl Made {
    fn write(&mut self, address: u64, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(address..) {
            let page = self
                .memory
                .entry(at & !(PAGE - 1))
                .or_insert_with(|| vec![0; 4096]);
            page[(at % PAGE) as usize] = *byte;
        }
    }

    fn words(&mut self, address: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(address, &bytes);
    }

    fn map(&mut self, start: u64, bytes: u64, permissions: &str, offset: u64, name: &str) {
        let inode = if name.starts_with('/') { 77 } else { 0 };
        let end = start + bytes;
        self.maps += &format!("{start:x}-{end:x} {permissions} {offset:x} 00:01 {inode} {name}\n");
        let mut mappings = mapping::parse(self.maps.as_bytes());
        mappings.sort_by_key(|mapping| mapping.start);
        self.mappings = mappings;
        for page in (start..end).step_by(4096) {
            self.memory.entry(page).or_insert_with(|| vec![0; 4096]);
        }
    }
}

impl Image for Made {
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.reads.set(self.reads.get() + 1);
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = address.checked_add(done as u64) else {
                break;
            };
            let Some(page) = self.memory.get(&(at & !(PAGE - 1))) else {
                break;
            };
            let rest = &page[(at % PAGE) as usize..];
            let many = rest.len().min(bytes.len() - done);
            bytes[done..done + many].copy_from_slice(&rest[..many]);
            done += many;
        }
        done
    }

    fn residency(&self, start: u64, end: u64) -> Option<Residency> {
        Some(Residency {
            resident: vec![(start, end.min(start + PAGE))],
            swapped: Vec::new(),
        })
    }

    fn file(&self, _: &Mapping) -> Option<File> {
        None
    }

    fn page_size(&self) -> u64 {
        PAGE
    }
}

/// Which table of names a file has.
#[derive(Clone, Copy, PartialEq)]
enum Hash {
    Gnu,
    SystemV,
}

/// A file to be loaded.
struct Made64<'a> {
    name: &'a str,
    base: u64,
    exports: &'a [&'a str],
    text: &'a [u8],
    hash: Hash,
    is_program: bool,
}

impl<'a> Made64<'a> {
    fn new(name: &'a str, base: u64, exports: &'a [&'a str]) -> Self {
        Self {
            name,
            base,
            exports,
            text: b"",
            hash: Hash::Gnu,
            is_program: false,
        }
    }

    fn program(name: &'a str, base: u64, exports: &'a [&'a str]) -> Self {
        Self {
            is_program: true,
            ..Self::new(name, base, exports)
        }
    }

    fn text(self, text: &'a [u8]) -> Self {
        Self { text, ..self }
    }

    /// Headers, constants, names, then data with the dynamic section.
    fn load(&self, made: &mut Made) {
        let base = self.base;
        made.map(base, 0x1000, "r-xp", 0, self.name);
        made.map(base + 0x1000, 0x4000, "r--p", 0x1000, self.name);
        made.map(base + 0x5000, 0x1000, "rw-p", 0x5000, self.name);
        made.write(base, b"\x7fELF\x02\x01\x01");
        made.write(base + 32, &64_u64.to_le_bytes());
        made.write(base + 54, &56_u16.to_le_bytes());
        made.write(base + 56, &3_u16.to_le_bytes());
        let header = |made: &mut Made, at: u64, kind: u32, address: u64, bytes: u64| {
            made.write(base + 64 + 56 * at, &kind.to_le_bytes());
            made.words(
                base + 64 + 56 * at + 8,
                &[address, address, address, bytes, bytes, 1],
            );
        };
        header(made, 0, 1, 0, 0x6000);
        header(made, 1, 2, 0x5000, 0x100);
        if self.is_program {
            made.write(base + 0x800, b"/lib64/ld-linux-x86-64.so.2\0");
            header(made, 2, 3, 0x800, 28);
        }
        made.write(base + 0x4100, self.text);
        let debug = if self.is_program { DEBUG } else { 0 };
        let hash_tag = match self.hash {
            Hash::Gnu => 0x6fff_fef5,
            Hash::SystemV => 4,
        };
        made.words(
            base + 0x5000,
            &[
                5,
                base + 0x3000,
                6,
                // As musl leaves it: not changed to where it is.
                0x2000,
                hash_tag,
                base + 0x1000,
                21,
                debug,
                0,
                0,
            ],
        );
        self.names(made);
    }

    fn names(&self, made: &mut Made) {
        let base = self.base;
        let mut text = 1;
        for (index, name) in (1..).zip(self.exports) {
            made.write(base + 0x3000 + text, name.as_bytes());
            let entry = base + 0x2000 + 24 * index;
            made.write(entry, &u32::try_from(text).unwrap().to_le_bytes());
            made.write(entry + 6, &1_u16.to_le_bytes());
            made.words(entry + 8, &[0x4800 + 16 * index, 16]);
            text += name.len() as u64 + 1;
        }
        let many = u32::try_from(self.exports.len()).unwrap();
        let halves = |made: &mut Made, at: u64, values: &[u32]| {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            made.write(at, &bytes);
        };
        match self.hash {
            Hash::Gnu => {
                halves(made, base + 0x1000, &[1, 1, 1, 6]);
                made.words(base + 0x1010, &[u64::MAX]);
                let mut chain: Vec<u32> = self
                    .exports
                    .iter()
                    .map(|name| {
                        name.bytes().fold(5381_u32, |hash, byte| {
                            hash.wrapping_mul(33).wrapping_add(u32::from(byte))
                        }) & !1
                    })
                    .collect();
                if let Some(last) = chain.last_mut() {
                    *last |= 1;
                }
                halves(made, base + 0x1018, &[u32::from(many > 0)]);
                halves(made, base + 0x101c, &chain);
            }
            Hash::SystemV => {
                // One bucket: each symbol leads to the next.
                let mut values = vec![1, many + 1, u32::from(many > 0), 0];
                values.extend((1..=many).map(|index| if index < many { index + 1 } else { 0 }));
                halves(made, base + 0x1000, &values);
            }
        }
    }
}

/// A process with these files, and the linker's list of them in this order.
fn process(files: &[Made64<'_>]) -> Made {
    let mut made = unlinked(files);
    made.map(DEBUG, 0x2000, "rw-p", 0, "");
    made.words(DEBUG, &[1, DEBUG + 0x100]);
    for (index, file) in (0..).zip(files) {
        let at = DEBUG + 0x100 + 64 * index;
        let is_last = index + 1 == files.len() as u64;
        let next = if is_last { 0 } else { at + 64 };
        made.words(at, &[file.base, 0, file.base + 0x5000, next, 0]);
    }
    made
}

fn unlinked(files: &[Made64<'_>]) -> Made {
    let mut made = Made::default();
    for file in files {
        file.load(&mut made);
    }
    made
}

const PROGRAM: u64 = 0x5555_5555_0000;
const LOW: u64 = 0x7ffa_0000_0000;
const MIDDLE: u64 = 0x7ffb_0000_0000;
const HIGH: u64 = 0x7ffc_0000_0000;
const LIBC: &str = "/lib/libc.so.6";
const LIBC_EXPORTS: &[&str] = &["free", "gnu_get_libc_version", "malloc"];

fn glibc(is_used: bool) -> Located {
    Located {
        file: Some(LIBC.to_owned()),
        version: Some("2.36".to_owned()),
        main_arena: 0x1000,
        arena: ArenaLayout::From227,
        parameters: None,
        is_used,
    }
}

fn told(found: &[RecognisedAllocator]) -> Vec<(&str, Option<&str>, AllocatorRole)> {
    found
        .iter()
        .map(|found| (found.name.as_str(), found.version.as_deref(), found.role))
        .collect()
}

use AllocatorRole::Above;
use AllocatorRole::Beside;
use AllocatorRole::InCharge;
use AllocatorRole::Unknown;
use AllocatorRole::Unused;

const JEMALLOC_TEXT: &[u8] = b"x\0 5.3.0-0-g54eaed1d8b56b1aa528be3bdd1877e59c56fa90c\0";

#[test]
fn a_plain_program_has_its_c_librarys_malloc() {
    let made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new(LIBC, HIGH, LIBC_EXPORTS),
    ]);
    let found = recognise(&made, &[glibc(true)]);
    assert_eq!(told(&found), [("glibc malloc", Some("2.36"), InCharge)]);
    assert_eq!(found[0].file.as_deref(), Some(LIBC));
    assert_eq!(found[0].not_visible, None);
    let found = recognise(&made, &[glibc(false)]);
    assert_eq!(told(&found), [("glibc malloc", Some("2.36"), Unused)]);
}

#[test]
fn the_first_in_the_linkers_list_serves_malloc_wherever_it_lies() {
    for places in [
        [LOW, MIDDLE, HIGH],
        [HIGH, LOW, MIDDLE],
        [MIDDLE, HIGH, LOW],
    ] {
        let [library, jemalloc, libc] = places;
        let made = process(&[
            Made64::program("/bin/redis-server", PROGRAM, &["main"]),
            Made64::new("/lib/libz.so.1", library, &["inflate"]),
            Made64::new("/lib/libjemalloc.so.2", jemalloc, &["mallctl", "malloc"])
                .text(JEMALLOC_TEXT),
            Made64::new(LIBC, libc, LIBC_EXPORTS),
        ]);
        let found = recognise(&made, &[glibc(false)]);
        assert_eq!(
            told(&found),
            [
                ("jemalloc", Some("5.3.0"), InCharge),
                ("glibc malloc", Some("2.36"), Unused)
            ]
        );
        assert!(found[0].evidence.contains("before libc.so.6"), "{found:#?}");
        let advice = found[0].not_visible.as_deref().unwrap();
        assert!(advice.contains("MEMORY PURGE") && advice.contains("MALLOC_CONF"));
    }
}

#[test]
fn a_library_that_comes_later_serves_nobody() {
    let made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new(LIBC, LOW, LIBC_EXPORTS),
        Made64::new("/lib/libmimalloc.so.2", HIGH, &["malloc", "mi_version"]),
    ]);
    assert_eq!(
        told(&recognise(&made, &[glibc(true)])),
        [
            ("glibc malloc", Some("2.36"), InCharge),
            ("mimalloc", None, Unknown)
        ]
    );
}

#[test]
fn without_the_linkers_list_higher_libraries_come_first() {
    let made = unlinked(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new(LIBC, LOW, LIBC_EXPORTS),
        Made64::new("/lib/libmimalloc.so.2", HIGH, &["malloc", "mi_version"]),
    ]);
    let found = recognise(&made, &[glibc(false)]);
    assert_eq!(
        told(&found),
        [
            ("mimalloc", None, InCharge),
            ("glibc malloc", Some("2.36"), Unused)
        ]
    );
    assert!(!found[0].evidence.contains("looked up"), "{found:#?}");
}

#[test]
fn an_unknown_malloc_that_may_pass_calls_on_does_not_take_charge() {
    let made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new("/x/libmine.so", MIDDLE, &["malloc"]),
        Made64::new(LIBC, LOW, LIBC_EXPORTS),
    ]);
    assert_eq!(
        told(&recognise(&made, &[glibc(true)])),
        [
            ("glibc malloc", Some("2.36"), InCharge),
            ("malloc of libmine.so", None, Unknown)
        ]
    );
    assert_eq!(
        told(&recognise(&made, &[glibc(false)])),
        [
            ("malloc of libmine.so", None, InCharge),
            ("glibc malloc", Some("2.36"), Unused)
        ]
    );
}

#[test]
fn a_malloc_linked_into_the_program_is_known_by_its_texts() {
    let program = |exports: &'static [&'static str], text: &'static [u8]| {
        process(&[
            Made64::program("/bin/plain", PROGRAM, exports).text(text),
            Made64::new(LIBC, LOW, LIBC_EXPORTS),
        ])
    };
    let text = b"<jemalloc>: error\x005.2.1-0-gea6b3e973b477b8061e0076bb257dbd7f3faa756\0";
    let found = recognise(&program(&["malloc"], text), &[glibc(false)]);
    assert_eq!(told(&found)[0], ("jemalloc", Some("5.2.1"), InCharge));
    // Under names of its own it serves only those who use these.
    let found = recognise(&program(&["main"], text), &[glibc(true)]);
    assert_eq!(
        told(&found),
        [
            ("glibc malloc", Some("2.36"), InCharge),
            ("jemalloc", Some("5.2.1"), Unknown)
        ]
    );
    // Somebody who speaks of it.
    let found = recognise(&program(&["main"], b"<jemalloc>: see"), &[glibc(true)]);
    assert_eq!(told(&found), [("glibc malloc", Some("2.36"), InCharge)]);
}

#[test]
fn a_heap_mapping_alone_is_nobodys() {
    let mut made = unlinked(&[Made64::new("/bin/static", PROGRAM, &[])]);
    made.map(0x5555_5556_0000, 0x2_1000, "rw-p", 0, "[heap]");
    assert_eq!(recognise(&made, &[]), []);
}

#[test]
fn a_static_program_with_an_arena_of_glibcs_has_that() {
    let made = unlinked(&[Made64::new("/bin/static", PROGRAM, &[])]);
    let located = Located {
        file: Some("/bin/static".to_owned()),
        version: None,
        ..glibc(true)
    };
    let found = recognise(&made, &[located]);
    assert_eq!(told(&found), [("glibc malloc", None, InCharge)]);
}

#[test]
fn a_second_c_library_of_another_namespace_is_told_too() {
    let made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new(LIBC, HIGH, LIBC_EXPORTS),
    ]);
    let other = Located {
        main_arena: 0x9000,
        ..glibc(true)
    };
    assert_eq!(
        told(&recognise(&made, &[glibc(true), other])),
        [
            ("glibc malloc", Some("2.36"), InCharge),
            ("glibc malloc", Some("2.36"), Beside)
        ]
    );
}

#[test]
fn names_are_found_in_the_older_table_too() {
    let jemalloc = Made64 {
        hash: Hash::SystemV,
        ..Made64::new("/lib/renamed.so", MIDDLE, &["free", "mallctl", "malloc"])
    };
    let made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        jemalloc,
        Made64::new(LIBC, LOW, LIBC_EXPORTS),
    ]);
    assert_eq!(
        told(&recognise(&made, &[glibc(false)]))[0],
        ("jemalloc", None, InCharge)
    );
}

#[test]
fn runtimes_stand_above_what_serves_malloc() {
    let mut made = process(&[
        Made64::program(
            "/bin/python3.12",
            PROGRAM,
            &["Py_IsInitialized", "Py_Version"],
        ),
        Made64::new(LIBC, HIGH, LIBC_EXPORTS),
        Made64::new(
            "/usr/lib/jvm/java-21-openjdk/lib/server/libjvm.so",
            LOW,
            &[],
        ),
    ]);
    // The second symbol's value.
    made.words(PROGRAM + 0x4800 + 32, &[0x030c_01f0]);
    assert_eq!(
        told(&recognise(&made, &[glibc(true)])),
        [
            ("glibc malloc", Some("2.36"), InCharge),
            ("CPython", Some("3.12.1"), Above),
            ("HotSpot (Java)", Some("21"), Above)
        ]
    );
}

#[test]
fn glib_has_slices_before_2_76_only() {
    let program = |minor: u64| {
        let glib = "/lib/libglib-2.0.so.0";
        let names = &[
            "glib_major_version",
            "glib_minor_version",
            "glib_micro_version",
        ];
        let mut made = process(&[
            Made64::program("/bin/plain", PROGRAM, &["main"]),
            Made64::new(glib, MIDDLE, names),
        ]);
        made.words(MIDDLE + 0x4810, &[2, 0, minor, 0, 6, 0]);
        recognise(&made, &[])
    };
    assert_eq!(told(&program(74)), [("GLib slices", Some("2.74.6"), Above)]);
    assert_eq!(told(&program(80)), []);
}

#[test]
fn programs_of_go_say_which_go_and_have_arenas_at_a_known_place() {
    let mut made = unlinked(&[Made64::new("/bin/gopher", PROGRAM, &[])]);
    let place = PROGRAM + 0x5800;
    made.write(place, b"\xff Go buildinf:\x08\x02");
    made.write(place + 32, b"\x08go1.22.1");
    let arena = go::ARENAS[0];
    made.map(arena, 0x40_0000, "rw-p", 0, "");
    made.map(arena + 0x40_0000, 0x3c0_0000, "---p", 0, "");
    made.map(arena + 0x1_0000_0000, 0x1000, "rw-p", 0, "");
    let found = recognise(&made, &[]);
    assert_eq!(told(&found), [("Go", Some("1.22.1"), InCharge)]);
    assert_eq!(found[0].mapped_bytes, Some(0x40_0000));
    assert_eq!(found[0].resident_bytes, Some(PAGE));
    assert_eq!(found[0].lazily_free_bytes, None);
    // Before 1.18 there were addresses.
    made.write(place, b"\xff Go buildinf:\x08\x00");
    made.words(place + 16, &[place + 64, 0, 0, 0, 0, 0]);
    made.words(place + 64, &[place + 96, 8]);
    made.write(place + 96, b"go1.16.3");
    let found = recognise(&made, &[]);
    assert_eq!(told(&found), [("Go", Some("1.16.3"), InCharge)]);
}

#[test]
fn go_beside_c_does_not_serve_malloc() {
    let mut made = process(&[
        Made64::program("/bin/cgo", PROGRAM, &["main"]),
        Made64::new(LIBC, HIGH, LIBC_EXPORTS),
    ]);
    made.write(PROGRAM + 0x5800, b"\xff Go buildinf:\x08\x02");
    made.write(PROGRAM + 0x5820, b"\x08go1.22.1");
    assert_eq!(
        told(&recognise(&made, &[glibc(true)])),
        [
            ("glibc malloc", Some("2.36"), InCharge),
            ("Go", Some("1.22.1"), Beside)
        ]
    );
}

/// A static program of musl's with two groups of slots, one of which has a mapping of its own.
fn static_musl(page_size: Option<u64>) -> Made {
    let mut made = unlinked(&[Made64::new("/bin/static", PROGRAM, &[])]);
    made.map(PROGRAM + 0x6000, 0x1000, "rw-p", 0, "");
    let area = PROGRAM + 0x10_0000;
    let secret = 0x1234_5678_9abc_def0;
    made.map(area, 0x1000, "rw-p", 0, "[heap]");
    let mut context = vec![secret];
    context.extend(page_size);
    context.extend([1, 0, 0, 0, 0, 0, area, area, 0]);
    made.words(PROGRAM + 0x6100, &context);
    let (first, second) = (MIDDLE, MIDDLE + 0x100);
    made.words(
        area,
        &[
            secret,
            0,
            2,
            0,
            0,
            first,
            0,
            5 << 12 | 3 << 6,
            0,
            0,
            second,
            0,
            2 << 6,
        ],
    );
    made.map(MIDDLE, 0x5000, "rw-p", 0, "");
    made
}

#[test]
fn musl_is_found_in_a_static_program_by_its_secret() {
    for made in [static_musl(None), static_musl(Some(PAGE))] {
        let found = recognise(&made, &[]);
        assert_eq!(told(&found), [("musl malloc", None, InCharge)]);
        assert_eq!(found[0].mapped_bytes, Some(0x5000));
    }
}

#[test]
fn records_of_musl_that_lead_in_a_circle_come_to_an_end() {
    let mut made = static_musl(None);
    let area = PROGRAM + 0x10_0000;
    made.words(area + 8, &[area]);
    let found = recognise(&made, &[]);
    assert_eq!(told(&found), [("musl malloc", None, InCharge)]);
    assert_eq!(found[0].mapped_bytes, None);
}

#[test]
fn musls_library_is_told_from_others() {
    let mut made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new("/lib/libc.so", HIGH, &["__dls3", "malloc"]).text(b"error\x001.2.4\0"),
    ]);
    made.write(PROGRAM + 0x800, b"/lib/ld-musl-x86_64.so.1\0");
    let found = recognise(&made, &[]);
    assert_eq!(told(&found), [("musl malloc", Some("1.2.4"), InCharge)]);
}

#[test]
fn valgrind_serves_malloc_without_exporting_it() {
    let made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new(
            "/usr/libexec/valgrind/vgpreload_memcheck-amd64-linux.so",
            MIDDLE,
            &["_vgr10010ZU_libcZdsoZa_malloc"],
        ),
        Made64::new(LIBC, HIGH, LIBC_EXPORTS),
    ]);
    assert_eq!(
        told(&recognise(&made, &[glibc(false)])),
        [
            ("Valgrind", None, InCharge),
            ("glibc malloc", Some("2.36"), Unused)
        ]
    );
}

#[test]
fn mappings_with_an_allocators_name_are_its_own() {
    let mut made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new("/lib/libjemalloc.so.2", MIDDLE, &["malloc"]),
    ]);
    made.map(LOW, 0x20_0000, "rw-p", 0, "[anon:jemalloc_pg]");
    made.map(LOW + 0x40_0000, 0x1000, "rw-p", 0, "[anon:other]");
    let found = recognise(&made, &[]);
    assert_eq!(found[0].mapped_bytes, Some(0x20_0000));
    assert_eq!(found[0].resident_bytes, Some(PAGE));
}

#[test]
fn the_bundled_mallocs_page_is_called_as_here() {
    let name = crate::stats_page::NAME.to_str().unwrap();
    assert_eq!(BUNDLED, format!("/memfd:{name}"));
    let mut made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new("/tmp/x/libbreaktrace.so", MIDDLE, &["malloc"]),
        Made64::new(LIBC, HIGH, LIBC_EXPORTS),
    ]);
    made.map(LOW, 0x1000, "rw-p", 0, &format!("{BUNDLED} (deleted)"));
    let found = recognise(&made, &[glibc(false)]);
    assert_eq!(told(&found)[0].0, "breaktrace's bundled malloc");
    assert_eq!(found[0].role, InCharge);
    assert!(found[0].evidence.contains("page"), "{found:#?}");
}

#[test]
fn a_file_seen_before_costs_next_to_nothing() {
    let made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new("/lib/libjemalloc.so.2", MIDDLE, &["mallctl", "malloc"]).text(JEMALLOC_TEXT),
        Made64::new(LIBC, HIGH, LIBC_EXPORTS),
    ]);
    let mut recogniser = Recogniser::default();
    let first = recogniser.recognise(&made, &[glibc(false)], Depth::Quick);
    let reads = made.reads.replace(0);
    let second = recogniser.recognise(&made, &[glibc(false)], Depth::Quick);
    assert_eq!(told(&first), told(&second));
    assert!(reads < 200, "{reads}");
    // The list, and the order that is part of the evidence.
    assert!(made.reads.get() < 30, "{}", made.reads.get());
}

#[test]
fn a_linkers_list_in_a_circle_comes_to_an_end() {
    let mut made = process(&[
        Made64::program("/bin/plain", PROGRAM, &["main"]),
        Made64::new(LIBC, HIGH, LIBC_EXPORTS),
    ]);
    made.words(DEBUG + 0x100 + 64 + 24, &[DEBUG + 0x100]);
    let found = recognise(&made, &[glibc(true)]);
    assert_eq!(told(&found), [("glibc malloc", Some("2.36"), InCharge)]);
}

#[test]
fn memory_that_lies_is_looked_through_within_bounds() {
    let made = process(&[
        Made64::program(
            "/bin/python3.12",
            PROGRAM,
            &["Py_IsInitialized", "Py_Version"],
        ),
        Made64::new("/lib/libjemalloc.so.2", MIDDLE, &["mallctl", "malloc"]).text(JEMALLOC_TEXT),
        Made64 {
            hash: Hash::SystemV,
            ..Made64::new("/lib/libmimalloc.so.2", LOW, &["malloc", "mi_version"])
        },
        Made64::new(LIBC, HIGH, LIBC_EXPORTS),
    ]);
    let musl = static_musl(None);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..400 {
        let mut made = if round % 4 == 0 {
            musl.clone()
        } else {
            made.clone()
        };
        let pages: Vec<u64> = made.memory.keys().copied().collect();
        let page = |number: u64| pages[usize::try_from(number % pages.len() as u64).unwrap()];
        for _ in 0..1 + next() % 64 {
            let place = page(next()) + next() % 0x200 / 8 * 8;
            let value = match next() % 5 {
                0 => 0,
                1 => u64::MAX,
                2 => next(),
                3 => page(next()) + next() % 4096,
                _ => next() % 256,
            };
            made.words(place, &[value]);
        }
        let found = recognise(&made, &[glibc(round % 2 == 0)]);
        assert!(found.len() < 16);
        assert!(made.reads.get() < 200_000, "{}", made.reads.get());
    }
}
