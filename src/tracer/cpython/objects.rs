//! Code objects: what they are called, and whether one still is what it was.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::functions::Named;
use super::layout::Layout;
use super::memory::Memory;

/// Most characters of a name that are read.
const LONGEST_NAME: usize = 4096;
/// Largest table of lines that is read, in bytes.
const LARGEST_TABLE: usize = 1 << 20;
/// How much of a table and of a name is looked at to see that a code object is the same one still.
const COMPARED: usize = 256;
/// Most code objects of an interpreter that are remembered, and most bytes of their tables; then all are forgotten.
const MOST_OBJECTS: usize = 1 << 14;
const MOST_BYTES: usize = 32 << 20;

/// A code object that has been read.
#[derive(Debug)]
pub(super) struct CodeObject {
    pub(super) named: RefCell<Named>,
    first_line: i64,
    address: u64,
    table: Vec<u8>,
    /// Its members, and the beginnings of the table and of the name: where they are, and what they were.
    members: Members,
    pieces: Vec<(u64, usize)>,
    seen: Vec<u8>,
    /// The place asked for last, and its line.
    last: Cell<Option<(Place, Option<u32>)>>,
    /// The stop at which it was last seen to be the same.
    checked: Cell<u64>,
}

/// Where in a code object a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The address of the instruction.
    Address(u64),
    /// So many bytes from the first instruction, negative before the first has begun.
    Offset(i64),
}

/// The members by which a code object is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Members {
    file_name: u64,
    name: u64,
    line_table: u64,
    first_line: i32,
}

impl Members {
    fn bytes(layout: &Layout) -> usize {
        layout.file_name.max(layout.name).max(layout.line_table) + 8
    }

    /// From the beginning of a code object.
    fn of(object: &[u8], layout: &Layout) -> Option<Self> {
        Some(Self {
            file_name: word(object, layout.file_name)?,
            name: word(object, layout.name)?,
            line_table: word(object, layout.line_table)?,
            first_line: i32::from_ne_bytes(*object.get(layout.first_line..)?.first_chunk()?),
        })
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

impl CodeObject {
    /// The line of the instruction at a place.
    pub(super) fn line(&self, place: Place, layout: &Layout) -> Option<u32> {
        if let Some((known, line)) = self.last.get()
            && known == place
        {
            return line;
        }
        let line = self.find_line(place, layout);
        self.last.set(Some((place, line)));
        line
    }

    fn find_line(&self, place: Place, layout: &Layout) -> Option<u32> {
        let offset = match place {
            Place::Offset(offset) => offset,
            Place::Address(address) => {
                let instructions = self.address.wrapping_add(layout.instructions as u64);
                address.wrapping_sub(instructions).cast_signed()
            }
        };
        match u64::try_from(offset) {
            Ok(offset) => layout.lines.line(&self.table, self.first_line, offset),
            // Not begun (PyCode_Addr2Line, Objects/codeobject.c).
            Err(_) => u32::try_from(self.first_line).ok(),
        }
    }
}

/// The code objects of an interpreter, by address.
#[derive(Debug, Default)]
pub(super) struct CodeObjects {
    by_address: HashMap<u64, Rc<CodeObject>>,
    bytes: usize,
    stop: u64,
    /// Types that have been seen to be `code`, `str` and `bytes`.
    types: [u64; 3],
    room: Vec<u8>,
}

/// The types of which objects are read; each stands at its place in [`CodeObjects::types`].
#[derive(Clone, Copy, Debug)]
enum Type {
    Code,
    Str,
    Bytes,
}

impl Type {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Code => b"code\0",
            Self::Str => b"str\0",
            Self::Bytes => b"bytes\0",
        }
    }
}

impl CodeObjects {
    /// The code objects at these addresses, up to the first that is none.
    pub(super) fn get(
        &mut self,
        memory: &dyn Memory,
        layout: &Layout,
        addresses: impl Iterator<Item = u64> + Clone,
    ) -> Vec<Rc<CodeObject>> {
        self.check(memory, layout, addresses.clone());
        if self.by_address.len() > MOST_OBJECTS || self.bytes > MOST_BYTES {
            self.by_address.clear();
            self.bytes = 0;
        }
        let mut found = Vec::new();
        for address in addresses {
            match self.one(memory, layout, address) {
                Some(object) => found.push(object),
                None => break,
            }
        }
        found
    }

    /// Looks whether the known ones of these are the same still.
    fn check(
        &mut self,
        memory: &dyn Memory,
        layout: &Layout,
        addresses: impl Iterator<Item = u64>,
    ) {
        self.stop += 1;
        let mut asked: Vec<&Rc<CodeObject>> = Vec::new();
        for address in addresses {
            if let Some(object) = self.by_address.get(&address)
                && object.checked.replace(self.stop) != self.stop
            {
                asked.push(object);
            }
        }
        let pieces: Vec<(u64, usize)> = asked
            .iter()
            .flat_map(|object| object.pieces.iter().copied())
            .collect();
        self.room.clear();
        self.room
            .resize(pieces.iter().map(|(_, length)| length).sum(), 0);
        let read = memory.read_pieces(&pieces, &mut self.room);
        let mut rest = self.room.get(..read).unwrap_or_default();
        let mut changed = Vec::new();
        for object in asked {
            let bytes: usize = object.pieces.iter().map(|(_, length)| length).sum();
            let (now, after) = rest.split_at_checked(bytes).unwrap_or_default();
            rest = after;
            if !object.is_still(now, layout) {
                changed.push(object.address);
            }
        }
        for address in changed {
            self.forget(address);
        }
    }

    fn forget(&mut self, address: u64) {
        if let Some(object) = self.by_address.remove(&address) {
            self.bytes -= object.table.len();
        }
    }

    fn one(
        &mut self,
        memory: &dyn Memory,
        layout: &Layout,
        address: u64,
    ) -> Option<Rc<CodeObject>> {
        if let Some(object) = self.by_address.get(&address) {
            return Some(Rc::clone(object));
        }
        let object = Rc::new(self.read(memory, layout, address)?);
        object.checked.set(self.stop);
        self.bytes += object.table.len();
        self.by_address.insert(address, Rc::clone(&object));
        Some(object)
    }

    fn read(&mut self, memory: &dyn Memory, layout: &Layout, address: u64) -> Option<CodeObject> {
        let bytes = Members::bytes(layout);
        let object = memory.bytes(address, bytes)?;
        self.is_a(memory, layout, &object, Type::Code)?;
        let members = Members::of(&object, layout)?;
        let (name, _) = self.text(memory, layout, members.name)?;
        let (source, _) = self.text(memory, layout, members.file_name)?;
        let table = self.table(memory, layout, members.line_table)?;
        let pieces = vec![
            (address, bytes),
            (
                members.line_table.wrapping_add(layout.bytes as u64),
                table.len().min(COMPARED),
            ),
            name_piece(memory, layout, members.name)?,
        ];
        let mut seen = vec![0; pieces.iter().map(|(_, length)| length).sum()];
        if memory.read_pieces(&pieces, &mut seen) < seen.len() {
            return None;
        }
        Some(CodeObject {
            named: RefCell::new(Named::new(
                name,
                source,
                u32::try_from(members.first_line).ok(),
            )),
            first_line: members.first_line.into(),
            address,
            table,
            members,
            seen: seen.split_off(bytes),
            pieces,
            last: Cell::new(None),
            checked: Cell::new(0),
        })
    }

    /// Whether an object is of a type.
    fn is_a(
        &mut self,
        memory: &dyn Memory,
        layout: &Layout,
        object: &[u8],
        wanted: Type,
    ) -> Option<()> {
        let its_type = word(object, layout.object_type)?;
        let known = self.types.get_mut(wanted as usize)?;
        if *known == its_type && its_type != 0 {
            return Some(());
        }
        let name = memory.word(its_type.wrapping_add(layout.type_name))?;
        let read = memory.bytes(name, wanted.name().len())?;
        (read == wanted.name()).then(|| *known = its_type)
    }

    /// A str, and where its characters are.
    fn text(
        &mut self,
        memory: &dyn Memory,
        layout: &Layout,
        address: u64,
    ) -> Option<(String, usize)> {
        let head = memory.bytes(address, layout.compact)?;
        self.is_a(memory, layout, &head, Type::Str)?;
        let (start, length, width) = characters(&head, layout)?;
        let length = length.min(LONGEST_NAME);
        let bytes = memory.bytes(address.wrapping_add(start as u64), length * width)?;
        let characters = bytes.chunks_exact(width).map(|bytes| {
            let number = bytes
                .iter()
                .rev()
                .fold(0, |number: u32, byte| number << 8 | u32::from(*byte));
            // A lone surrogate stands for a byte that was no UTF-8.
            char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)
        });
        Some((characters.collect(), start))
    }

    fn table(&mut self, memory: &dyn Memory, layout: &Layout, address: u64) -> Option<Vec<u8>> {
        let head = memory.bytes(address, layout.bytes)?;
        self.is_a(memory, layout, &head, Type::Bytes)?;
        let length = usize::try_from(word(&head, layout.bytes_length)?).ok()?;
        if length > LARGEST_TABLE {
            return None;
        }
        memory.bytes(address.wrapping_add(layout.bytes as u64), length)
    }
}

impl CodeObject {
    /// Whether its pieces read as they did.
    fn is_still(&self, now: &[u8], layout: &Layout) -> bool {
        let Some((members, rest)) = now.split_at_checked(Members::bytes(layout)) else {
            return false;
        };
        // Other members change as the code is run.
        Members::of(members, layout) == Some(self.members) && rest == self.seen
    }
}

/// Where the characters of a str begin, how many there are, and how wide they are in bytes.
fn characters(head: &[u8], layout: &Layout) -> Option<(usize, usize, usize)> {
    let length = usize::try_from(word(head, layout.length)?).ok()?;
    let state = u32::from_ne_bytes(*head.get(layout.state..)?.first_chunk()?);
    // interned: 2 bits, kind: 3, compact: 1, ascii: 1.
    let width = match (state >> 2) & 7 {
        kind @ (1 | 2 | 4) => kind as usize,
        _ => return None,
    };
    let is_compact = state & (1 << 5) != 0;
    let is_ascii = state & (1 << 6) != 0;
    let start = if is_ascii {
        layout.ascii
    } else {
        layout.compact
    };
    (is_compact && (!is_ascii || width == 1)).then_some((start, length, width))
}

/// The beginning of a name, as far as it is compared.
fn name_piece(memory: &dyn Memory, layout: &Layout, address: u64) -> Option<(u64, usize)> {
    let head = memory.bytes(address, layout.compact)?;
    let (start, length, width) = characters(&head, layout)?;
    Some((
        address.wrapping_add(start as u64),
        length.saturating_mul(width).min(COMPARED),
    ))
}
