//! Names that a loaded file exports, looked up in its memory as the dynamic linker does: by a hash, which costs a few
//! words whatever the file's size (elf(5); the GNU hash table is that of glibc's elf/dl-lookup.c).
//!
//! All of it may be hostile: nothing is followed further than a limit.

use crate::heap_walk::Image;

/// Entries of a dynamic section that are looked at; real ones have about 30.
const ENTRIES: usize = 128;
/// Symbols of one hash value that are looked at.
const CHAIN: usize = 64;
/// Program headers that are looked at.
const HEADERS: usize = 64;
/// Bytes at a file's beginning in which its headers are expected.
const BEGINNING: usize = 4096;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_DEBUG: u64 = 21;
const DT_GNU_HASH: u64 = 0x6fff_fef5;

/// What a file's headers say, as loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Headers {
    /// What is added to the file's own addresses.
    pub(super) bias: u64,
    /// Where the dynamic section is; `None` in a static program.
    pub(super) dynamic: Option<u64>,
    /// Where the name of the dynamic linker is, and its length; `None` where none is asked for.
    pub(super) interpreter: Option<(u64, usize)>,
    /// Where notes are, and their length: the first few of them.
    pub(super) notes: [Option<(u64, usize)>; 4],
}

fn short(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..offset.checked_add(2)?)?;
    field.try_into().ok().map(u16::from_le_bytes)
}

fn half(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset.checked_add(4)?)?;
    field.try_into().ok().map(u32::from_le_bytes)
}

fn word(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(8)?)?;
    field.try_into().ok().map(u64::from_le_bytes)
}

impl Headers {
    /// Reads the headers of a file whose first byte is at `start`; `None` when it is no 64-bit, little-endian one.
    pub(super) fn read(image: &dyn Image, start: u64) -> Option<Self> {
        let mut bytes = vec![0; BEGINNING];
        let length = image.read(start, &mut bytes);
        let bytes = bytes.get(..length)?;
        if bytes.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let first = usize::try_from(word(bytes, 32)?).ok()?;
        let size = usize::from(short(bytes, 54)?);
        let many = usize::from(short(bytes, 56)?).min(HEADERS);
        let table: Vec<&[u8]> = (0..many)
            .filter_map(|index| {
                let at = first.checked_add(index.checked_mul(size)?)?;
                bytes.get(at..at.checked_add(56)?)
            })
            .collect();
        let of_kind = |kind: u32| {
            table
                .iter()
                .copied()
                .filter(move |header| half(header, 0) == Some(kind))
        };
        let lowest = of_kind(PT_LOAD).find_map(|header| {
            // The file's own beginning is part of the first segment, wherever that is to be loaded.
            (word(header, 8)? < image.page_size()).then_some(word(header, 16)?)
        })?;
        let mut headers = Self {
            bias: start.wrapping_sub(lowest & !(image.page_size().wrapping_sub(1))),
            ..Self::default()
        };
        let placed = |header: &[u8]| {
            let address = headers.bias.wrapping_add(word(header, 16)?);
            Some((address, usize::try_from(word(header, 40)?).ok()?))
        };
        headers.dynamic = of_kind(PT_DYNAMIC)
            .find_map(placed)
            .map(|(address, _)| address);
        headers.interpreter = of_kind(PT_INTERP).find_map(placed);
        for (place, note) in headers
            .notes
            .iter_mut()
            .zip(of_kind(PT_NOTE).filter_map(placed))
        {
            *place = Some(note);
        }
        Some(headers)
    }
}

/// A dynamic section, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dynamic {
    symbols: u64,
    names: u64,
    gnu_hash: Option<u64>,
    hash: Option<u64>,
    /// `r_debug` (link.h), which the dynamic linker enters in the program's own section; `None` elsewhere.
    pub(super) debug: Option<u64>,
}

impl Dynamic {
    /// Reads the section at `address` of a file that lies from `start` to `end`, `bias` above its own addresses.
    pub(super) fn read(
        image: &dyn Image,
        address: u64,
        bias: u64,
        (start, end): (u64, u64),
    ) -> Option<Self> {
        let mut bytes = [0; 16 * ENTRIES];
        let length = image.read(address, &mut bytes);
        let (words, _) = bytes.get(..length)?.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        // glibc changes the addresses to where things are; musl leaves them as they are in the file.
        let placed = |value: u64| {
            if (start..end).contains(&value) {
                value
            } else {
                bias.wrapping_add(value)
            }
        };
        let mut dynamic = Self::default();
        for [tag, value] in pairs {
            let value = u64::from_le_bytes(*value);
            match u64::from_le_bytes(*tag) {
                0 => break,
                DT_STRTAB => dynamic.names = placed(value),
                DT_SYMTAB => dynamic.symbols = placed(value),
                DT_GNU_HASH => dynamic.gnu_hash = Some(placed(value)),
                DT_HASH => dynamic.hash = Some(placed(value)),
                DT_DEBUG if value != 0 => dynamic.debug = Some(value),
                _ => {}
            }
        }
        Some(dynamic)
    }
}

/// The names that a file exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbols {
    dynamic: Dynamic,
    bias: u64,
    table: Table,
}

/// A hash table, its first words read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Gnu {
        filter: u64,
        filter_words: u64,
        shift: u32,
        buckets: u64,
        many: u32,
        first: u32,
    },
    SystemV {
        buckets: u64,
        many: u32,
    },
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// Its address.
    pub(super) address: u64,
    /// Its bytes, as the file says.
    pub(super) size: u64,
}

impl Symbols {
    /// The names of the file with this dynamic section; `None` when it has no table of them.
    pub(super) fn new(image: &dyn Image, dynamic: Dynamic, bias: u64) -> Option<Self> {
        if dynamic.symbols == 0 || dynamic.names == 0 {
            return None;
        }
        let table = gnu_table(image, dynamic).or_else(|| system_v_table(image, dynamic))?;
        Some(Self {
            dynamic,
            bias,
            table,
        })
    }

    /// What `name` stands for, if the file defines it.
    pub(super) fn find(&self, image: &dyn Image, name: &str) -> Option<Symbol> {
        match self.table {
            Table::Gnu {
                filter,
                filter_words,
                shift,
                buckets,
                many,
                first,
            } => {
                let hash = gnu_hash(name);
                let place = u64::from(hash / 64) & (filter_words - 1);
                let bits = image.word(filter.wrapping_add(8 * place))?;
                let both = bits >> (hash % 64) & bits >> (hash.checked_shr(shift)? % 64) & 1;
                if both == 0 {
                    return None;
                }
                let bucket = buckets.wrapping_add(4 * u64::from(hash % many));
                let index = read_half(image, bucket)?;
                let chain = buckets
                    .wrapping_add(4 * u64::from(many))
                    .wrapping_add(4 * u64::from(index.checked_sub(first)?));
                let mut bytes = [0; 4 * CHAIN];
                let length = image.read(chain, &mut bytes);
                let (values, _) = bytes.get(..length)?.as_chunks::<4>();
                for (value, index) in values.iter().zip(u64::from(index)..) {
                    let value = u32::from_le_bytes(*value);
                    if value | 1 == hash | 1
                        && let Some(symbol) = self.symbol(image, index, name)
                    {
                        return Some(symbol);
                    }
                    if value & 1 == 1 {
                        break;
                    }
                }
                None
            }
            Table::SystemV { buckets, many } => {
                let bucket = u64::from(system_v_hash(name) % many);
                let mut index = read_half(image, buckets.wrapping_add(4 * bucket))?;
                for _ in 0..CHAIN {
                    if index == 0 {
                        break;
                    }
                    if let Some(symbol) = self.symbol(image, u64::from(index), name) {
                        return Some(symbol);
                    }
                    let next = u64::from(many) + u64::from(index);
                    index = read_half(image, buckets.wrapping_add(4 * next))?;
                }
                None
            }
        }
    }

    /// The symbol with this index, if it is called `name` and is defined here.
    fn symbol(&self, image: &dyn Image, index: u64, name: &str) -> Option<Symbol> {
        let mut entry = [0; 24];
        let address = self.dynamic.symbols.wrapping_add(24 * index);
        if image.read(address, &mut entry) != entry.len() {
            return None;
        }
        // st_shndx of what others are to define is 0.
        if short(&entry, 6)? == 0 {
            return None;
        }
        let place = self.dynamic.names.wrapping_add(u64::from(half(&entry, 0)?));
        let mut text = [0; 96];
        let text = text.get_mut(..=name.len())?;
        let is_it = image.read(place, text) == text.len()
            && text.split_last() == Some((&0, name.as_bytes()));
        is_it.then_some(Symbol {
            address: self.bias.wrapping_add(word(&entry, 8)?),
            size: word(&entry, 16)?,
        })
    }
}

fn read_half(image: &dyn Image, address: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    (image.read(address, &mut bytes) == 4).then(|| u32::from_le_bytes(bytes))
}

fn gnu_table(image: &dyn Image, dynamic: Dynamic) -> Option<Table> {
    let address = dynamic.gnu_hash?;
    let mut bytes = [0; 16];
    if image.read(address, &mut bytes) != bytes.len() {
        return None;
    }
    let [many, first, filter_words, shift] = [0, 4, 8, 12].map(|offset| half(&bytes, offset));
    let filter_words = u64::from(filter_words?);
    let filter = address.wrapping_add(16);
    (many? != 0 && filter_words.is_power_of_two()).then_some(Table::Gnu {
        filter,
        filter_words,
        shift: shift?,
        buckets: filter.wrapping_add(8 * filter_words),
        many: many?,
        first: first?,
    })
}

fn system_v_table(image: &dyn Image, dynamic: Dynamic) -> Option<Table> {
    let address = dynamic.hash?;
    let many = read_half(image, address)?;
    (many != 0).then_some(Table::SystemV {
        buckets: address.wrapping_add(8),
        many,
    })
}

fn gnu_hash(name: &str) -> u32 {
    name.bytes().fold(5381, |hash: u32, byte| {
        hash.wrapping_mul(33).wrapping_add(u32::from(byte))
    })
}

fn system_v_hash(name: &str) -> u32 {
    name.bytes().fold(0, |hash: u32, byte| {
        let hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        (hash ^ high >> 24) & !high
    })
}
