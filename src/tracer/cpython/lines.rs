//! The line at which an instruction of a code object stands.

/// How a version of CPython writes its tables of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineTable {
    /// `co_lnotab` up to 3.9 (Objects/lnotab_notes.txt).
    Lnotab,
    /// `co_linetable` of 3.10 (Objects/lnotab_notes.txt there, "the new format").
    Pairs,
    /// `co_linetable` since 3.11 (Objects/locations.md).
    Locations,
}

impl LineTable {
    /// The line of the instruction that begins `at` bytes into the code; `None` if it stands at none.
    pub(super) fn line(self, table: &[u8], first_line: i64, at: u64) -> Option<u32> {
        let line = match self {
            Self::Lnotab => lnotab(table, first_line, at),
            Self::Pairs => pairs(table, first_line, at),
            Self::Locations => locations(table, first_line, at),
        }?;
        u32::try_from(line).ok()
    }
}

/// Pairs of a distance in bytes and a signed one in lines: where the line changes.
fn lnotab(table: &[u8], first_line: i64, at: u64) -> Option<i64> {
    let mut address = 0;
    let mut line = first_line;
    for pair in table.as_chunks::<2>().0 {
        address += u64::from(pair[0]);
        if address > at {
            break;
        }
        line += i64::from(pair[1].cast_signed());
    }
    Some(line)
}

/// Pairs of a length in bytes and a signed distance in lines; the distance -128 stands for no line.
fn pairs(table: &[u8], first_line: i64, at: u64) -> Option<i64> {
    const NO_LINE: i8 = -128;
    let mut end = 0;
    let mut line = first_line;
    for pair in table.as_chunks::<2>().0 {
        end += u64::from(pair[0]);
        let distance = pair[1].cast_signed();
        if distance != NO_LINE {
            line += i64::from(distance);
        }
        if at < end {
            return (distance != NO_LINE).then_some(line);
        }
    }
    None
}

/// Entries that begin with a byte whose highest bit is set: kind, number of code units; then what the kind has.
fn locations(table: &[u8], first_line: i64, at: u64) -> Option<i64> {
    const NO_LOCATION: u8 = 15;
    let mut rest = table;
    let mut end = 0;
    let mut line = first_line;
    while let [first, after @ ..] = rest {
        let kind = (first >> 3) & 15;
        end += (u64::from(first & 7) + 1) * 2;
        line = line.checked_add(match kind {
            10..=12 => i64::from(kind) - 10,
            // Without columns, and the long form.
            13 | 14 => signed(after),
            _ => 0,
        })?;
        if at < end {
            return (kind != NO_LOCATION).then_some(line);
        }
        let next = after.iter().position(|byte| byte & 0x80 != 0)?;
        rest = after.get(next..)?;
    }
    None
}

/// A number of six bits a byte, the lowest first, bit 6 set if more come; its lowest bit is the sign.
fn signed(bytes: &[u8]) -> i64 {
    let mut value = 0_i64;
    // More would not fit; a line is no larger than an int.
    for (place, byte) in bytes.iter().take(8).enumerate() {
        value |= i64::from(byte & 63) << (6 * place);
        if byte & 64 == 0 {
            break;
        }
    }
    if value & 1 == 0 {
        value >> 1
    } else {
        -(value >> 1)
    }
}
