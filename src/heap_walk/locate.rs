//! Where a program's glibc has its `main_arena`, in a stripped library, without symbols.
//!
//! `main_arena.next` is set from the beginning, to the arena itself, and arenas form a ring. So in the writable memory of a
//! C library (or of a static program) a word that leads back to its own structure, with bins around it that lead to
//! themselves or to chunks that lead back, is found in one pass over a few pages.

use std::collections::HashMap;

use super::Image;
use super::arena::CHUNK_ALIGNMENT;
use super::layout::ArenaLayout;
use super::layout::BINS;
use super::layout::HEAP_MAX;
use super::layout::Located;
use super::layout::Parameters;
use super::parameters;
use super::parameters::Counts;
use crate::event::MallocSettings;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;

/// More writable memory of a file is not searched.
const MOST_BYTES: u64 = 64 << 20;
/// Bytes read at a time.
const PIECE: usize = 256 << 10;
/// Of the bins so many must make sense; a few may be in the midst of a change.
const SOUND_BINS: usize = 119;
/// More arenas than this in a ring are followed when the heap is walked through, not before.
const RING: usize = 64;
/// More read-only data of a library is not searched for its version.
const MOST_TEXT: u64 = 16 << 20;
/// What each libc.so.6 says of itself (csu/version.c).
const BANNER: &[u8] = b"GNU C Library ";
const RELEASE: &[u8] = b"release version ";

/// What is remembered of a file, so that the next program with it is looked through in no time.
#[derive(Clone, Debug)]
struct Known {
    /// From the beginning of the file's first mapping to `main_arena`.
    main_arena: u64,
    arena: ArenaLayout,
    /// The same to `mp_`.
    parameters: Option<(u64, super::layout::ParametersLayout)>,
    version: Option<String>,
}

/// Finds mallocs, and remembers where they are in their files.
#[derive(Clone, Debug, Default)]
pub struct Locator {
    /// By inode and path.
    known: HashMap<(u64, String), Known>,
}

/// The mappings of one file.
struct Module<'a> {
    name: &'a str,
    inode: u64,
    start: u64,
    /// All of them, with the anonymous memory right behind the last writable one: its zeroed data.
    mappings: Vec<&'a Mapping>,
}

impl Module<'_> {
    /// How likely it is to have a malloc of glibc's: 0 first.
    fn rank(&self) -> u32 {
        let file = self.name.rsplit('/').next().unwrap_or(self.name);
        let file = file.strip_suffix(" (deleted)").unwrap_or(file);
        if file.starts_with("libc.so") || file.starts_with("libc-2.") {
            0
        } else if file.starts_with("libc_malloc_debug.so") {
            1
        } else if file.contains(".so") {
            3
        } else {
            2
        }
    }
}

/// The files that are mapped, the likeliest first.
fn modules(mappings: &[Mapping]) -> Vec<Module<'_>> {
    let mut modules: Vec<Module<'_>> = Vec::new();
    let mut behind = 0;
    for mapping in mappings {
        match (mapping.kind(), mapping.name.as_deref()) {
            (MappingKind::File, Some(name)) => {
                behind = 0;
                match modules.last_mut() {
                    Some(module)
                        if module.name == name
                            && module.inode == mapping.inode
                            && mapping.offset != 0 =>
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
                if mapping.permissions.write {
                    behind = mapping.end.0;
                }
            }
            (MappingKind::Anonymous, _) if mapping.start.0 == behind => {
                if let Some(module) = modules.last_mut() {
                    module.mappings.push(mapping);
                }
                behind = 0;
            }
            _ => behind = 0,
        }
    }
    modules.sort_by_key(Module::rank);
    modules
}

/// The mallocs of glibc's in a program.
#[must_use]
pub fn locate(image: &dyn Image) -> Vec<Located> {
    Locator::default().locate(image)
}

/// How a malloc is set up now; `None` when that was not found.
#[must_use]
pub fn settings(image: &dyn Image, located: &Located) -> Option<MallocSettings> {
    parameters::settings(image, located.parameters?)
}

pub(super) fn counts(image: &dyn Image, parameters: Parameters) -> Option<Counts> {
    parameters::counts(image, parameters)
}

impl Locator {
    /// The mallocs of glibc's in a program: one for each C library that is loaded, or that of a static program.
    pub fn locate(&mut self, image: &dyn Image) -> Vec<Located> {
        let modules = modules(image.mappings());
        let mut found = Vec::new();
        for module in &modules {
            // A program with a shared C library has no other, unless it was loaded a second time.
            let is_needless = !found.is_empty() && module.rank() > 1 || module.rank() > 2;
            if is_needless {
                continue;
            }
            if let Some(located) = self.in_module(image, module) {
                found.push(located);
            }
        }
        if found.is_empty() {
            // A C library by another name, or one that was linked into another library.
            let located = modules
                .iter()
                .filter(|module| module.rank() > 2)
                .find_map(|module| self.in_module(image, module));
            found.extend(located);
        }
        found
    }

    fn in_module(&mut self, image: &dyn Image, module: &Module<'_>) -> Option<Located> {
        let key = (module.inode, module.name.to_owned());
        if let Some(known) = self.known.get(&key)
            && let Some(located) = confirm(image, module, known)
        {
            return Some(located);
        }
        let located = search(image, module)?;
        let known = Known {
            main_arena: located.main_arena.wrapping_sub(module.start),
            arena: located.arena,
            parameters: located
                .parameters
                .map(|found| (found.address.wrapping_sub(module.start), found.layout)),
            version: located.version.clone(),
        };
        // A handful of C libraries at most; hostile programs may map more.
        if self.known.len() < 256 {
            self.known.insert(key, known);
        }
        Some(located)
    }
}

/// What is known of a file, if this program's memory bears it out.
fn confirm(image: &dyn Image, module: &Module<'_>, known: &Known) -> Option<Located> {
    let address = module.start.wrapping_add(known.main_arena);
    let mut bytes = vec![0; usize::try_from(known.arena.size()).ok()?];
    if image.read(address, &mut bytes) != bytes.len() {
        return None;
    }
    let next = word(&bytes, known.arena.next());
    is_arena(image, address, next, known.arena, &bytes).then(|| Located {
        file: Some(module.name.to_owned()),
        version: known.version.clone(),
        main_arena: address,
        arena: known.arena,
        parameters: known.parameters.map(|(offset, layout)| Parameters {
            address: module.start.wrapping_add(offset),
            layout,
        }),
        is_used: is_used(address, known.arena, &bytes),
    })
}

fn word(bytes: &[u8], offset: u64) -> u64 {
    usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..offset.checked_add(8)?))
        .and_then(|word| word.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

fn is_used(address: u64, layout: ArenaLayout, arena: &[u8]) -> bool {
    let top = word(arena, layout.top());
    top != 0 && top != address.wrapping_add(layout.top()) || word(arena, layout.next()) != address
}

fn search(image: &dyn Image, module: &Module<'_>) -> Option<Located> {
    let (mapping, address, layout, is_used) = module
        .mappings
        .iter()
        .filter(|mapping| mapping.permissions.read && mapping.permissions.write)
        .filter(|mapping| mapping.bytes() <= MOST_BYTES)
        .find_map(|mapping| {
            let (address, layout, is_used) = search_mapping(image, mapping)?;
            Some((*mapping, address, layout, is_used))
        })?;
    let version = version_of(image, module);
    let numbers = version.as_deref().and_then(|version| {
        let (major, minor) = version.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    Some(Located {
        file: Some(module.name.to_owned()),
        version,
        main_arena: address,
        arena: layout,
        parameters: parameters::find(image, mapping, address, layout, numbers),
        is_used,
    })
}

/// Looks for a word that may be `main_arena.next`, with an arena around it.
fn search_mapping(image: &dyn Image, mapping: &Mapping) -> Option<(u64, ArenaLayout, bool)> {
    let overlap = ArenaLayout::From227.size();
    let mut start = mapping.start.0;
    let mut bytes = vec![0; PIECE];
    while start < mapping.end.0 {
        let wanted = usize::try_from(mapping.end.0 - start)
            .unwrap_or(PIECE)
            .min(PIECE);
        let length = image.read(start, &mut bytes[..wanted]);
        let piece = &bytes[..length];
        let (words, _) = piece.as_chunks::<8>();
        for (value, place) in words.iter().zip((start..).step_by(8)) {
            let value = u64::from_le_bytes(*value);
            for (address, layout) in candidates(value, place, start) {
                let offset = usize::try_from(address - start).unwrap_or(usize::MAX);
                let size = usize::try_from(layout.size()).unwrap_or(usize::MAX);
                if let Some(arena) = piece.get(offset..offset.saturating_add(size))
                    && is_arena(image, address, value, layout, arena)
                {
                    return Some((address, layout, is_used(address, layout, arena)));
                }
            }
        }
        let next = start.saturating_add((length as u64).saturating_sub(overlap));
        if next <= start {
            break;
        }
        start = next & !7;
    }
    None
}

/// The arenas to which a word at `place` may belong as its `next`.
fn candidates(value: u64, place: u64, start: u64) -> impl Iterator<Item = (u64, ArenaLayout)> {
    // Another arena lies behind a heap_info, at the beginning of a heap.
    let is_of_heap =
        matches!(value & (HEAP_MAX - 1), 0x20 | 0x30) && value >> 47 == 0 && value > HEAP_MAX;
    ArenaLayout::ALL.into_iter().filter_map(move |layout| {
        let address = place.checked_sub(layout.next())?;
        (address >= start && (is_of_heap || value == address)).then_some((address, layout))
    })
}

/// Whether an arena lies here: its ring leads back, and its bins are lists.
fn is_arena(image: &dyn Image, address: u64, next: u64, layout: ArenaLayout, arena: &[u8]) -> bool {
    if next == address && word(arena, layout.top()) == 0 {
        return is_untouched(layout, arena);
    }
    leads_back(image, address, next, layout) && has_bins(image, address, layout, arena)
}

/// Whether nothing but what the file has is set: `next` and `attached_threads`.
fn is_untouched(layout: ArenaLayout, arena: &[u8]) -> bool {
    let (words, _) = arena.as_chunks::<8>();
    words
        .iter()
        .zip((0..).step_by(8))
        .all(|(value, offset): (_, u64)| {
            let value = u64::from_le_bytes(*value);
            if offset == layout.next() {
                true
            } else if offset == layout.attached_threads() {
                value == 1
            } else {
                value == 0
            }
        })
}

/// Whether the ring of arenas that begins here comes back, or goes on for long.
fn leads_back(image: &dyn Image, address: u64, next: u64, layout: ArenaLayout) -> bool {
    let mut at = next;
    for _ in 0..RING {
        if at == address {
            return true;
        }
        let Some(place) = at.checked_add(layout.next()) else {
            return false;
        };
        match image.word(place) {
            Some(next) => at = next,
            None => return false,
        }
    }
    true
}

/// Whether the bins are empty lists, or lead to chunks that lead back.
fn has_bins(image: &dyn Image, address: u64, layout: ArenaLayout, arena: &[u8]) -> bool {
    let mut sound = 0;
    let mut asked = Vec::new();
    let mut expected = Vec::new();
    for bin in 0..BINS {
        let place = layout.bins() + 16 * bin;
        // Bins are dealt with as if they were chunks, of which only the links are there.
        let own = address.wrapping_add(place).wrapping_sub(16);
        let (forward, back) = (word(arena, place), word(arena, place + 8));
        if forward == own && back == own {
            sound += 1;
        } else if forward.is_multiple_of(CHUNK_ALIGNMENT) && back.is_multiple_of(CHUNK_ALIGNMENT) {
            asked.extend([forward.wrapping_add(24), back.wrapping_add(16)]);
            expected.push(own);
        }
    }
    let mut words = Vec::new();
    image.read_words(&asked, &mut words);
    let (pairs, _) = words.as_chunks::<2>();
    sound += pairs
        .iter()
        .zip(&expected)
        .filter(|(pair, own)| **pair == [Some(**own); 2])
        .count();
    sound >= SOUND_BINS
}

/// What the library's banner says its version is.
fn version_of(image: &dyn Image, module: &Module<'_>) -> Option<String> {
    if module.rank() != 0 {
        return None;
    }
    let mut left = MOST_TEXT;
    let mut bytes = vec![0; PIECE];
    // Constants follow the code.
    let (constants, others): (Vec<&Mapping>, Vec<&Mapping>) = module
        .mappings
        .iter()
        .filter(|mapping| mapping.permissions.read && !mapping.permissions.write)
        .partition(|mapping| !mapping.permissions.execute && mapping.offset != 0);
    for mapping in constants.into_iter().chain(others) {
        let mut start = mapping.start.0;
        while start < mapping.end.0 && left > 0 {
            let wanted = usize::try_from(mapping.end.0 - start)
                .unwrap_or(PIECE)
                .min(PIECE);
            let length = image.read(start, &mut bytes[..wanted]);
            if let Some(version) = version_in(&bytes[..length]) {
                return Some(version);
            }
            let step = (length as u64).saturating_sub(256);
            left = left.saturating_sub(length as u64);
            if step == 0 {
                break;
            }
            start += step;
        }
    }
    None
}

fn version_in(bytes: &[u8]) -> Option<String> {
    let banner = find(bytes, BANNER)?;
    let line = &bytes[banner..bytes.len().min(banner + 256)];
    let release = find(line, RELEASE)? + RELEASE.len();
    let version: String = line[release..]
        .iter()
        .take(16)
        .map(|byte| char::from(*byte))
        .take_while(|letter| letter.is_ascii_digit() || *letter == '.')
        .collect();
    let version = version.trim_end_matches('.');
    (!version.is_empty()).then(|| version.to_owned())
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}
