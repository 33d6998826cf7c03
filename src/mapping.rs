//! Mappings: the lines of `/proc/<pid>/maps`.
//!
//! The file is parsed here, as bytes, because its last column is whatever a program named a file: not necessarily
//! UTF-8, with `\012` for a newline, and anything at all after `/SYSV` (proc(5), `fs/proc/task_mmu.c`).

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use crate::units::Address;

/// What the pages of a mapping may be used for, as in the second column of `/proc/<pid>/maps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
    /// Writes are seen by everyone who maps the same object.
    pub shared: bool,
}

impl Permissions {
    /// Whether no access at all is allowed: address space that is reserved, not memory in use.
    #[must_use]
    pub fn is_none(self) -> bool {
        !(self.read || self.write || self.execute)
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set, letter| if set { letter } else { '-' };
        write!(
            f,
            "{}{}{}{}",
            flag(self.read, 'r'),
            flag(self.write, 'w'),
            flag(self.execute, 'x'),
            if self.shared { 's' } else { 'p' }
        )
    }
}

impl FromStr for Permissions {
    type Err = NotPermissions;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let &[read, write, execute, shared] = text.as_bytes() else {
            return Err(NotPermissions);
        };
        let is = |byte, letter| match byte {
            b'-' => Ok(false),
            byte if byte == letter => Ok(true),
            _ => Err(NotPermissions),
        };
        Ok(Self {
            read: is(read, b'r')?,
            write: is(write, b'w')?,
            execute: is(execute, b'x')?,
            shared: match shared {
                b's' => true,
                b'p' => false,
                _ => return Err(NotPermissions),
            },
        })
    }
}

/// A text that is no permission column such as `rw-p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a permission column such as rw-p")]
pub struct NotPermissions;

impl Serialize for Permissions {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Permissions {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// One mapping: one line of `/proc/<pid>/maps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: Address,
    /// First address after it.
    pub end: Address,
    /// What its pages may be used for.
    pub permissions: Permissions,
    /// Where in the file it begins, in bytes; zero without a file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: u64,
    /// Inode of the mapped file; zero without a file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inode: u64,
    /// The last column: a path, or the kernel's own name in brackets; absent for anonymous memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a mapping is, as far as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MappingKind {
    /// `[heap]`: between the start of the heap and the program break.
    Heap,
    /// `[stack]`: of the first thread; grows by itself.
    Stack,
    /// Private memory that no file backs: what `malloc` gets from `mmap`, thread stacks, arenas, bss.
    Anonymous,
    /// Private copy of, or view into, a file.
    File,
    /// Shared with others: files mapped `MAP_SHARED`, System V and POSIX shared memory, shared anonymous memory.
    Shared,
    /// The kernel's own: `[vdso]`, `[vvar]`, `[vsyscall]`, `[uprobes]`.
    Kernel,
}

impl Mapping {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end.above(self.start)
    }

    /// What this mapping is.
    #[must_use]
    pub fn kind(&self) -> MappingKind {
        match self.name.as_deref() {
            Some("[heap]") => MappingKind::Heap,
            Some("[stack]") => MappingKind::Stack,
            // Named anonymous memory: PR_SET_VMA_ANON_NAME (prctl(2), Linux 5.17).
            Some(name) if name.starts_with("[anon:") => MappingKind::Anonymous,
            Some(name) if name.starts_with("[anon_shmem:") => MappingKind::Shared,
            // Thread stacks were named so from Linux 3.4 to 4.4.
            Some(name) if name.starts_with("[stack:") => MappingKind::Anonymous,
            Some(name) if name.starts_with('[') && self.inode == 0 => MappingKind::Kernel,
            _ if self.permissions.shared => MappingKind::Shared,
            _ if self.inode != 0 => MappingKind::File,
            Some(_) => MappingKind::File,
            None => MappingKind::Anonymous,
        }
    }
}

/// Reads the mappings of a thread's address space.
///
/// A thread whose group leader has exited still shows them under its own number, so ask for a thread that lives.
///
/// # Errors
///
/// The file cannot be read: the thread has gone, or belongs to somebody else.
pub fn read(tid: u32) -> std::io::Result<Vec<Mapping>> {
    let mut text = Vec::with_capacity(16 << 10);
    std::fs::File::open(format!("/proc/{tid}/maps"))?.read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// Parses the contents of a `maps` file. Lines that are no mappings are passed over.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Mapping> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mapping> {
    // address           perms offset  dev   inode       pathname
    // 00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus-daemon
    let mut columns = line.splitn(6, |&byte| byte == b' ');
    let range = std::str::from_utf8(columns.next()?).ok()?;
    let (start, end) = range.split_once('-')?;
    let permissions = std::str::from_utf8(columns.next()?).ok()?;
    let offset = std::str::from_utf8(columns.next()?).ok()?;
    let _device = columns.next()?;
    let inode = std::str::from_utf8(columns.next()?).ok()?;
    let name = columns.next().unwrap_or_default().trim_ascii_start();
    Some(Mapping {
        start: Address(u64::from_str_radix(start, 16).ok()?),
        end: Address(u64::from_str_radix(end, 16).ok()?),
        permissions: permissions.parse().ok()?,
        offset: u64::from_str_radix(offset, 16).ok()?,
        inode: inode.parse().ok()?,
        name: (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &[u8]) -> Mapping {
        let mut mappings = parse(line);
        assert_eq!(mappings.len(), 1, "{}", String::from_utf8_lossy(line));
        mappings.remove(0)
    }

    #[test]
    fn a_line_with_a_file_keeps_every_column() {
        let mapping = one(b"7f1c2a000000-7f1c2a021000 r-xp 00028000 fe:01 173521                     /usr/lib/x y.so\n");
        assert_eq!(mapping.start, Address(0x7f1c_2a00_0000));
        assert_eq!(mapping.bytes(), 0x21000);
        assert_eq!(mapping.permissions.to_string(), "r-xp");
        assert_eq!(mapping.offset, 0x28000);
        assert_eq!(mapping.inode, 173_521);
        assert_eq!(mapping.name.as_deref(), Some("/usr/lib/x y.so"));
        assert_eq!(mapping.kind(), MappingKind::File);
    }

    #[test]
    fn kinds_follow_the_kernels_names() {
        let kind = |tail: &str| one(format!("1000-2000 {tail}").as_bytes()).kind();
        assert_eq!(kind("rw-p 00000000 00:00 0   [heap]"), MappingKind::Heap);
        assert_eq!(kind("rw-p 00000000 00:00 0   [stack]"), MappingKind::Stack);
        assert_eq!(kind("rw-p 00000000 00:00 0 "), MappingKind::Anonymous);
        assert_eq!(kind("---p 00000000 00:00 0"), MappingKind::Anonymous);
        assert_eq!(
            kind("rw-p 00000000 00:00 0   [anon:glibc: malloc]"),
            MappingKind::Anonymous
        );
        assert_eq!(kind("r-xp 00000000 00:00 0   [vdso]"), MappingKind::Kernel);
        assert_eq!(
            kind("rw-s 00000000 00:01 1024 /dev/zero (deleted)"),
            MappingKind::Shared
        );
        assert_eq!(
            kind("rw-s 00000000 00:01 32769 /SYSV00000000 (deleted)"),
            MappingKind::Shared
        );
    }

    #[test]
    fn names_that_are_not_utf8_do_not_lose_the_mapping() {
        let mapping = one(b"1000-2000 rw-p 00000000 fe:01 7   /tmp/\xff\xfe\n");
        assert_eq!(mapping.name.as_deref(), Some("/tmp/\u{fffd}\u{fffd}"));
        let short = one("1000-2000 rw-p 00000000 fe:01 7   /SYSVé\n".as_bytes());
        assert_eq!(short.name.as_deref(), Some("/SYSVé"));
    }

    #[test]
    fn lines_that_are_no_mappings_are_passed_over() {
        for line in [
            "",
            "\n",
            "garbage",
            "1000 rw-p",
            "zz-10 rw-p 0 0:0 0",
            "1000-2000 rwxq 0 0:0 0",
        ] {
            assert!(parse(line.as_bytes()).is_empty(), "{line:?}");
        }
    }

    #[test]
    fn our_own_maps_hold_a_stack_and_this_program() {
        let mappings = read(std::process::id()).unwrap();
        assert!(mappings.iter().any(|m| m.kind() == MappingKind::Stack));
        assert!(
            mappings
                .iter()
                .any(|m| m.kind() == MappingKind::File && m.permissions.execute)
        );
        assert!(mappings.is_sorted_by_key(|m| m.start));
    }
}
