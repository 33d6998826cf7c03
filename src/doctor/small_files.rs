//! Small files and links of the kernel, read with an upper bound.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Inode number of a namespace, from a link such as `pid:[4026531836]`.
pub(super) fn namespace_inode(link: &str) -> Option<u64> {
    let target = fs::read_link(link).ok()?;
    let (_, inode) = target.to_str()?.split_once(":[")?;
    inode.strip_suffix(']')?.parse().ok()
}

/// The beginning of a small file, as text; `None` when it cannot be read. Never more than 64 KiB.
pub(super) fn read_small(path: impl AsRef<Path>) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(64 << 10)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
