//! The files that a program consists of, in the order in which the dynamic linker looks names up: the program, what is
//! preloaded, then what each needs, level by level. That is the order of its list of loaded files (`r_debug`, link.h).

use std::cell::OnceCell;
use std::collections::HashMap;

use super::elf::Dynamic;
use super::elf::Headers;
use super::elf::Symbols;
use crate::heap_walk::Image;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;

/// Files that are followed in the list; the programs with most have some hundred.
const MOST_OBJECTS: usize = 4096;
/// Files that are tried as the program.
const MOST_PROGRAMS: usize = 64;
/// Bytes of the name of a dynamic linker.
const MOST_NAME: usize = 256;

/// A file with code that is loaded into a program.
#[derive(Debug)]
pub(super) struct Object<'a> {
    /// Its path, as the mappings name it.
    pub(super) name: &'a str,
    pub(super) inode: u64,
    /// First address.
    pub(super) start: u64,
    /// First address after it.
    pub(super) end: u64,
    /// Its mappings, in order, and zeroed data right behind a writable one.
    pub(super) mappings: Vec<&'a Mapping>,
    /// As the list says: its bias and where its dynamic section is.
    linked: Option<(u64, u64)>,
    headers: OnceCell<Option<Headers>>,
    symbols: OnceCell<Option<Symbols>>,
}

/// A program's files.
#[derive(Debug)]
pub(super) struct Objects<'a> {
    /// In the order in which names are looked up; the program first.
    pub(super) list: Vec<Object<'a>>,
    /// Whether the list of the dynamic linker was found. Otherwise the order is a guess: libraries loaded earlier lie higher.
    pub(super) is_linked: bool,
    /// The dynamic linker that the program asks for; `None` for a static one.
    pub(super) interpreter: Option<String>,
}

/// The last part of a path, without the kernel's mark of deleted files.
pub(super) fn file_name(path: &str) -> &str {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

impl Object<'_> {
    /// Its name without folders.
    pub(super) fn file_name(&self) -> &str {
        file_name(self.name)
    }

    /// What its headers say; `None` when it is no 64-bit ELF file.
    pub(super) fn headers(&self, image: &dyn Image) -> Option<Headers> {
        *self
            .headers
            .get_or_init(|| Headers::read(image, self.start))
    }

    fn dynamic(&self, image: &dyn Image) -> Option<(Dynamic, u64)> {
        let (bias, address) = match self.linked {
            Some(linked) => linked,
            None => {
                let headers = self.headers(image)?;
                (headers.bias, headers.dynamic?)
            }
        };
        let dynamic = Dynamic::read(image, address, bias, (self.start, self.end))?;
        Some((dynamic, bias))
    }

    /// The names that it exports; `None` when there is no table of them.
    pub(super) fn symbols(&self, image: &dyn Image) -> Option<Symbols> {
        *self.symbols.get_or_init(|| {
            let (dynamic, bias) = self.dynamic(image)?;
            Symbols::new(image, dynamic, bias)
        })
    }
}

/// The files that are mapped, by address.
fn mapped(mappings: &[Mapping]) -> Vec<Object<'_>> {
    let mut objects: Vec<Object<'_>> = Vec::new();
    let mut behind = 0;
    for mapping in mappings {
        match (mapping.kind(), mapping.name.as_deref()) {
            (MappingKind::File, Some(name)) => {
                match objects.last_mut() {
                    Some(object) if object.name == name && object.inode == mapping.inode => {
                        object.end = mapping.end.0;
                        object.mappings.push(mapping);
                    }
                    _ => objects.push(Object {
                        name,
                        inode: mapping.inode,
                        start: mapping.start.0,
                        end: mapping.end.0,
                        mappings: vec![mapping],
                        linked: None,
                        headers: OnceCell::new(),
                        symbols: OnceCell::new(),
                    }),
                }
                behind = if mapping.permissions.write {
                    mapping.end.0
                } else {
                    0
                };
            }
            (MappingKind::Anonymous, _) if mapping.start.0 == behind => {
                if let Some(object) = objects.last_mut() {
                    object.mappings.push(mapping);
                }
                behind = 0;
            }
            _ => behind = 0,
        }
    }
    // Files of data have no code.
    objects.retain(|object| {
        object
            .mappings
            .iter()
            .any(|mapping| mapping.permissions.execute)
    });
    objects
}

/// An entry of the list of loaded files (`struct link_map`).
struct Link {
    bias: u64,
    dynamic: u64,
    next: u64,
}

fn link(image: &dyn Image, address: u64) -> Option<Link> {
    let mut bytes = [0; 32];
    if image.read(address, &mut bytes) != bytes.len() {
        return None;
    }
    let (words, _) = bytes.as_chunks::<8>();
    let [bias, _, dynamic, next] = words else {
        return None;
    };
    Some(Link {
        bias: u64::from_le_bytes(*bias),
        dynamic: u64::from_le_bytes(*dynamic),
        next: u64::from_le_bytes(*next),
    })
}

/// The list that begins with this program; empty when it is not the program, or was not started yet.
fn links(image: &dyn Image, program: &Object<'_>) -> Vec<Link> {
    let first = program
        .dynamic(image)
        .and_then(|(dynamic, _)| dynamic.debug)
        .and_then(|debug| image.word(debug.wrapping_add(8)));
    let mut links = Vec::new();
    let mut at = first.unwrap_or(0);
    // A list that goes in circles ends at the limit; each file is taken once.
    while at != 0 && links.len() < MOST_OBJECTS {
        let Some(link) = link(image, at) else {
            break;
        };
        at = link.next;
        links.push(link);
    }
    links
}

fn interpreter(image: &dyn Image, program: &Object<'_>) -> Option<String> {
    let (address, length) = program.headers(image)?.interpreter?;
    let mut bytes = vec![0; length.min(MOST_NAME)];
    let length = image.read(address, &mut bytes);
    let bytes = bytes.get(..length)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(length);
    Some(String::from_utf8_lossy(bytes.get(..end)?).into_owned())
}

impl<'a> Objects<'a> {
    /// The files of a program.
    pub(super) fn of(image: &'a dyn Image) -> Self {
        let mut by_address = mapped(image.mappings());
        let found =
            by_address
                .iter()
                .take(MOST_PROGRAMS)
                .enumerate()
                .find_map(|(index, object)| {
                    let links = links(image, object);
                    (!links.is_empty()).then_some((index, links))
                });
        let program = found.as_ref().map_or(0, |(index, _)| *index);
        let interpreter = by_address
            .get(program)
            .and_then(|object| interpreter(image, object));
        let is_linked = found.is_some();
        let order = match found {
            Some((_, links)) => in_order(&mut by_address, &links),
            None => guess(program, by_address.len()),
        };
        let mut places: HashMap<usize, usize> = HashMap::new();
        for index in order {
            let place = places.len();
            places.entry(index).or_insert(place);
        }
        let mut placed: Vec<(usize, Object<'a>)> = by_address
            .into_iter()
            .enumerate()
            .map(|(index, object)| (places.get(&index).copied().unwrap_or(usize::MAX), object))
            .collect();
        placed.sort_by_key(|(place, _)| *place);
        Self {
            list: placed.into_iter().map(|(_, object)| object).collect(),
            is_linked,
            interpreter,
        }
    }
}

/// The program, then libraries from the highest down: the kernel places mappings so (mmap(2) of the dynamic linker).
fn guess(program: usize, many: usize) -> Vec<usize> {
    let others = (0..many).rev().filter(|index| *index != program);
    (program < many)
        .then_some(program)
        .into_iter()
        .chain(others)
        .collect()
}

/// Finds the files of a list, and notes what it says of them.
fn in_order(by_address: &mut [Object<'_>], links: &[Link]) -> Vec<usize> {
    let mut order = Vec::new();
    for link in links {
        let behind = by_address.partition_point(|object| object.start <= link.dynamic);
        let Some(index) = behind.checked_sub(1) else {
            continue;
        };
        let Some(object) = by_address.get_mut(index) else {
            continue;
        };
        if link.dynamic < object.end && object.linked.is_none() {
            object.linked = Some((link.bias, link.dynamic));
            // Looked at before, perhaps, as the program.
            object.symbols = OnceCell::new();
            order.push(index);
        }
    }
    order
}
