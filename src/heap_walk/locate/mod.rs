//! Where a program's glibc has its `main_arena` and its parameters, in a stripped library, without symbols.
//!
//! Looked at are the C library by its name, a static program, and, where neither has a malloc, other libraries: first at
//! what stands in their memory ([`ring`]), then at what their files say ([`declared`]). What was found once is
//! remembered by file, so that the next program with the same C library costs next to nothing.

mod declared;
mod elf;
mod ring;
#[cfg(test)]
mod tests;
mod version;

use std::collections::HashMap;

use self::elf::Elf;
use self::elf::Header;
use super::Image;
use super::layout::ArenaLayout;
use super::layout::Located;
use super::layout::Parameters;
use super::layout::ParametersLayout;
use super::parameters;
use super::parameters::Counts;
use super::parameters::Kind;
use crate::event::MallocSettings;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;

/// More of a program's variables and relocations is not searched in one look.
const MOST_BYTES: u64 = 8 << 20;
/// More files of a kind, or more mappings without a file, are not looked at.
const MOST_FILES: usize = 1024;
/// More files are not remembered: a handful of C libraries at most, but hostile programs may map more.
const MOST_KNOWN: usize = 256;
/// A C library can be loaded 16 times (dlmopen(3)); hostile programs may map more.
const MOST_LOCATED: usize = 32;

/// A main arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    address: u64,
    layout: ArenaLayout,
}

/// Writable memory of a file, without gaps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch<'a> {
    pub(super) start: u64,
    pub(super) end: u64,
    /// The mapping with which it begins.
    pub(super) mapping: &'a Mapping,
}

/// What is remembered of a file.
#[derive(Clone, Debug)]
struct Known {
    /// From the beginning of the file's first mapping to `main_arena`.
    main_arena: u64,
    arena: ArenaLayout,
    /// The same to `mp_`.
    parameters: Option<(u64, ParametersLayout)>,
    version: Option<String>,
}

/// By what a file is known again: a file that is replaced has another inode, and another build ID.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    inode: u64,
    name: String,
    /// Empty where there is none.
    build_id: Vec<u8>,
}

/// Finds mallocs, and remembers where they are in their files.
#[derive(Clone, Debug, Default)]
pub struct Locator {
    known: HashMap<Identity, Known>,
}

/// What a file's name suggests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It is the C library.
    Library,
    /// It has a malloc of its own beside it: `libc_malloc_debug.so`.
    Debugging,
    /// It may be a program.
    Program,
    /// It is another library.
    Other,
}

/// The mappings of one file with code in it.
struct Module<'a> {
    name: &'a str,
    inode: u64,
    start: u64,
    mappings: Vec<&'a Mapping>,
}

impl Module<'_> {
    fn rank(&self) -> Rank {
        let file = self.name.rsplit('/').next().unwrap_or(self.name);
        let file = file.strip_suffix(" (deleted)").unwrap_or(file);
        if file.starts_with("libc.so") || file.starts_with("libc-2.") {
            Rank::Library
        } else if is_companion(file) {
            Rank::Debugging
        } else if file.contains(".so") {
            Rank::Other
        } else {
            Rank::Program
        }
    }

    /// Its initialised variables, which may have been split into several mappings.
    fn writable(&self) -> Vec<Stretch<'_>> {
        let mut stretches: Vec<Stretch<'_>> = Vec::new();
        let writable = self
            .mappings
            .iter()
            .filter(|mapping| mapping.permissions.read && mapping.permissions.write);
        for mapping in writable {
            match stretches.last_mut() {
                Some(last)
                    if last.end == mapping.start.0
                        && last.mapping.offset.wrapping_add(last.end - last.start)
                            == mapping.offset =>
                {
                    last.end = mapping.end.0;
                }
                _ => stretches.push(Stretch {
                    start: mapping.start.0,
                    end: mapping.end.0,
                    mapping,
                }),
            }
        }
        stretches
    }
}

/// The files with code in them, the likeliest first.
fn modules(mappings: &[Mapping]) -> Vec<(Rank, Module<'_>)> {
    let mut modules: Vec<Module<'_>> = Vec::new();
    for mapping in mappings {
        let Some(name) = mapping.name.as_deref() else {
            continue;
        };
        if mapping.kind() != MappingKind::File {
            continue;
        }
        match modules.last_mut() {
            Some(module)
                if mapping.offset != 0 && module.inode == mapping.inode && module.name == name =>
            {
                module.mappings.push(mapping);
            }
            _ => modules.push(Module {
                name,
                inode: mapping.inode,
                start: mapping.start.0,
                mappings: vec![mapping],
            }),
        }
    }
    let is_code = |module: &Module<'_>| {
        let mut mappings = module.mappings.iter();
        mappings.any(|mapping| mapping.permissions.execute)
    };
    let mut modules: Vec<(Rank, Module<'_>)> = modules
        .into_iter()
        .filter(is_code)
        .map(|module| (module.rank(), module))
        .collect();
    modules.sort_by_key(|(rank, _)| *rank);
    modules
}

/// The mallocs of glibc's in a program: those of its C libraries, mostly one, or that of a static program; none where there
/// is none, where the program has not been linked yet, and in 32-bit programs.
#[must_use]
pub fn locate(image: &dyn Image) -> Vec<Located> {
    Locator::new().locate(image)
}

/// How a malloc is set up now; `None` when that was not found.
#[must_use]
pub fn settings(image: &dyn Image, located: &Located) -> Option<MallocSettings> {
    let kind = Kind {
        arena: located.arena,
        version: located.version.as_deref().and_then(version::numbers),
        has_caches: !located.file.as_deref().is_some_and(is_companion),
    };
    parameters::settings(image, located.parameters?, kind)
}

/// Whether a file is the library that brings a malloc with checks beside the C library's; it has no thread caches.
fn is_companion(path: &str) -> bool {
    path.rsplit('/')
        .next()
        .is_some_and(|file| file.starts_with("libc_malloc_debug.so"))
}

pub(super) fn counts(image: &dyn Image, parameters: Parameters) -> Option<Counts> {
    parameters::counts(image, parameters)
}

impl Locator {
    /// One that knows no file yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The mallocs of glibc's in a program, as [`locate`] finds them.
    pub fn locate(&mut self, image: &dyn Image) -> Vec<Located> {
        let modules = modules(image.mappings());
        let of_rank = |wanted: Rank| {
            modules
                .iter()
                .filter(move |(rank, _)| *rank == wanted)
                .map(|(_, module)| module)
                .take(MOST_FILES)
        };
        let mut left = MOST_BYTES;
        let mut found = Vec::new();
        for module in of_rank(Rank::Library).chain(of_rank(Rank::Debugging)) {
            let header = Header::read(image, module.start);
            if found.len() < MOST_LOCATED && !matches!(header, Header::Other) {
                found.extend(self.in_module(image, module, &header, &mut left));
            }
        }
        // A static program has a malloc of its own also when it has loaded a C library (dlopen(3)).
        for module in of_rank(Rank::Program) {
            let header = Header::read(image, module.start);
            let is_static = matches!(&header, Header::Elf(elf) if !elf.has_interpreter);
            if found.len() < MOST_LOCATED && is_static {
                found.extend(self.in_module(image, module, &header, &mut left));
            }
        }
        if found.is_empty() {
            // A C library by another name.
            let mut others = of_rank(Rank::Other).chain(of_rank(Rank::Program));
            let located = others.find_map(|module| {
                let header = Header::read(image, module.start);
                let is_library = matches!(&header, Header::Elf(elf) if is_libc(image, elf));
                is_library
                    .then(|| self.in_module(image, module, &header, &mut left))
                    .flatten()
            });
            found.extend(located);
        }
        if found.is_empty() {
            found.extend(in_nameless(image, &mut left));
        }
        let library = found.iter().find_map(|located| located.version.clone());
        for located in &mut found {
            // It comes with the C library, and does not say its version itself.
            if located.file.as_deref().is_some_and(is_companion) {
                located.version.clone_from(&library);
            }
        }
        found
    }

    fn in_module(
        &mut self,
        image: &dyn Image,
        module: &Module<'_>,
        header: &Header,
        left: &mut u64,
    ) -> Option<Located> {
        let elf = match header {
            Header::Elf(elf) => Some(elf),
            Header::Other | Header::Unreadable => None,
        };
        let identity = Identity {
            inode: module.inode,
            name: module.name.to_owned(),
            build_id: elf.map(|elf| elf.build_id.clone()).unwrap_or_default(),
        };
        if let Some(known) = self.known.get(&identity)
            && let Some(located) = confirm(image, module, known, !identity.build_id.is_empty())
        {
            return Some(located);
        }
        let located = search(image, module, elf, left)?;
        let known = Known {
            main_arena: located.main_arena.wrapping_sub(module.start),
            arena: located.arena,
            parameters: located
                .parameters
                .map(|found| (found.address.wrapping_sub(module.start), found.layout)),
            version: located.version.clone(),
        };
        if self.known.len() < MOST_KNOWN {
            self.known.insert(identity, known);
        }
        Some(located)
    }
}

/// Whether a library by another name is a C library by its own.
fn is_libc(image: &dyn Image, elf: &Elf) -> bool {
    let Some(dynamic) = elf.dynamic(image, None) else {
        return false;
    };
    match elf.own_name(image, None, &dynamic) {
        Some(name) => name.starts_with(b"libc.so."),
        // Linked together with it: whoever needs one has none inside.
        None => !elf.needs(image, None, &dynamic, b"libc.so."),
    }
}

/// What is known of a file, if this program's memory bears it out.
fn confirm(
    image: &dyn Image,
    module: &Module<'_>,
    known: &Known,
    is_certain: bool,
) -> Option<Located> {
    let found = Found {
        address: module.start.wrapping_add(known.main_arena),
        layout: known.arena,
    };
    let bytes = ring::arena_bytes(image, found.address, found.layout)?;
    let is_one = if is_certain {
        ring::may_be_arena(image, found, &bytes)
    } else {
        ring::is_arena(image, found, &bytes)
    };
    is_one.then(|| Located {
        file: Some(module.name.to_owned()),
        version: known.version.clone(),
        main_arena: found.address,
        arena: found.layout,
        parameters: known.parameters.map(|(offset, layout)| Parameters {
            address: module.start.wrapping_add(offset),
            layout,
        }),
        is_used: ring::is_used(found.address, found.layout, &bytes),
    })
}

fn search(
    image: &dyn Image,
    module: &Module<'_>,
    elf: Option<&Elf>,
    left: &mut u64,
) -> Option<Located> {
    let stretches = module.writable();
    let found = in_file(image, module, elf, left).unwrap_or_else(|| {
        stretches
            .iter()
            .find_map(|stretch| ring::search(image, stretch, left))
            .or_else(|| declared_in(image, module, elf?, left))
    })?;
    // Static programs do not say, and the companion has it from the library.
    let may_say = matches!(module.rank(), Rank::Library | Rank::Other);
    let version = may_say
        .then(|| version::read(image, &module.mappings))
        .flatten();
    let stretch = stretches
        .iter()
        .find(|stretch| (stretch.start..stretch.end).contains(&found.address));
    let kind = Kind {
        arena: found.layout,
        version: version.as_deref().and_then(version::numbers),
        has_caches: module.rank() != Rank::Debugging,
    };
    let located = describe(image, found, stretch, kind)?;
    Some(Located {
        file: Some(module.name.to_owned()),
        version,
        ..located
    })
}

/// What the file of a program declares; `None` where it cannot be asked. A program may have much data, mostly none of it a
/// malloc's: read from its file, it is not brought into its memory. A library's is smaller than the way to its file.
fn in_file(
    image: &dyn Image,
    module: &Module<'_>,
    elf: Option<&Elf>,
    left: &mut u64,
) -> Option<Option<Found>> {
    let elf = elf.filter(|_| module.rank() == Rank::Program)?;
    let file = image.file(module.mappings.first()?)?;
    let found = declared::arenas(image, elf, Some(&file), left);
    Some(confirmed(image, found))
}

/// The arena that a library's file declares.
fn declared_in(image: &dyn Image, module: &Module<'_>, elf: &Elf, left: &mut u64) -> Option<Found> {
    let file = module
        .mappings
        .first()
        .and_then(|mapping| image.file(mapping));
    confirmed(image, declared::arenas(image, elf, file.as_ref(), left))
}

/// The first against which memory does not speak.
fn confirmed(image: &dyn Image, found: Vec<Found>) -> Option<Found> {
    found.into_iter().find(|found| {
        ring::arena_bytes(image, found.address, found.layout)
            .is_some_and(|bytes| ring::may_be_arena(image, *found, &bytes))
    })
}

/// What memory tells of an arena that was found.
fn describe(
    image: &dyn Image,
    found: Found,
    stretch: Option<&Stretch<'_>>,
    kind: Kind,
) -> Option<Located> {
    let bytes = ring::arena_bytes(image, found.address, found.layout)?;
    Some(Located {
        file: None,
        version: None,
        main_arena: found.address,
        arena: found.layout,
        parameters: stretch
            .and_then(|stretch| parameters::find(image, stretch, found.address, kind)),
        is_used: ring::is_used(found.address, found.layout, &bytes),
    })
}

/// A malloc in memory that no file is known of: in a program that unpacked itself, or in a core file that does not name files.
fn in_nameless(image: &dyn Image, left: &mut u64) -> Option<Located> {
    let mappings = image.mappings();
    let is_nameless = |mapping: &&Mapping| mapping.kind() == MappingKind::Anonymous;
    let has_code = mappings
        .iter()
        .filter(is_nameless)
        .any(|mapping| mapping.permissions.execute);
    if !has_code {
        return None;
    }
    mappings
        .iter()
        .filter(is_nameless)
        .filter(|mapping| mapping.permissions.read && mapping.permissions.write)
        .take(MOST_FILES)
        .find_map(|mapping| in_resident(image, mapping, left))
}

/// Looks at what is in memory of a mapping: reading the rest would bring it there.
fn in_resident(image: &dyn Image, mapping: &Mapping, left: &mut u64) -> Option<Located> {
    let (start, end) = (mapping.start.0, mapping.end.0);
    let end = end.min(start.saturating_add(*left));
    let runs = match image.residency(start, end) {
        Some(residency) => residency.resident,
        None => vec![(start, end)],
    };
    runs.into_iter().find_map(|(start, end)| {
        let stretch = Stretch {
            start,
            end,
            mapping,
        };
        let found = ring::search(image, &stretch, left)?;
        let kind = Kind {
            arena: found.layout,
            version: None,
            has_caches: true,
        };
        describe(image, found, Some(&stretch), kind)
    })
}
