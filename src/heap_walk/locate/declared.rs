//! Where a file itself says that its `main_arena` is.
//!
//! `main_arena.next` is initialised with the address of `main_arena`. So there is one relocation whose place is as far
//! from what it points to as that member is from the beginning; or, where the linker knew the address (programs at a
//! fixed place) or keeps it in the place (RELR), a word in the file that leads back so far.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::Image;
use super::super::layout::ArenaLayout;
use super::Found;
use super::elf::Elf;
use super::elf::Load;
use super::elf::number;
use super::ring;

/// More relocations are not read; glibc's own libraries and static programs have some kilobytes.
const MOST_RELOCATIONS: u64 = 2 << 20;
/// More candidates are not kept.
const MOST_FOUND: usize = 16;
const RELOCATION: usize = 24;

/// The arena of which `place` may be the `next`, if that points to `target`.
fn arena_of(place: u64, target: u64) -> Option<Found> {
    let between = place.wrapping_sub(target);
    let layout = ArenaLayout::ALL
        .into_iter()
        .find(|layout| layout.next() == between)?;
    Some(Found {
        address: target,
        layout,
    })
}

/// The arenas that the file declares; addresses are those in memory. `left` is how many bytes may still be read.
pub(super) fn arenas(
    image: &dyn Image,
    elf: &Elf,
    file: Option<&File>,
    left: &mut u64,
) -> Vec<Found> {
    let mut found = by_relocations(image, elf, file, left);
    if let Some(file) = file {
        found.retain(|found| is_initial(elf, file, *found));
        found.extend(by_data(elf, file, left));
    }
    for found in &mut found {
        found.address = found.address.wrapping_add(elf.bias);
    }
    found
}

fn by_relocations(image: &dyn Image, elf: &Elf, file: Option<&File>, left: &mut u64) -> Vec<Found> {
    let table = elf.dynamic(image, file).and_then(|dynamic| {
        let (address, bytes) = dynamic.relocations;
        let mut table = vec![0; usize::try_from(bytes.min(MOST_RELOCATIONS).min(*left)).ok()?];
        let length = elf.read(image, file, address, &mut table);
        table.truncate(length);
        *left = left.saturating_sub(length as u64);
        Some(table)
    });
    table
        .unwrap_or_default()
        .chunks_exact(RELOCATION)
        .filter_map(|relocation| {
            let place = number(relocation, 0, 8)?;
            let is_relative = number(relocation, 8, 4)? == u64::from(elf.relative);
            is_relative.then_some(())?;
            arena_of(place, number(relocation, 16, 8)?)
        })
        .take(MOST_FOUND)
        .collect()
}

/// Whether the file has nothing there but what an arena begins with.
fn is_initial(elf: &Elf, file: &File, found: Found) -> bool {
    writable(elf)
        .find_map(|load| {
            let inside = found.address.checked_sub(load.address)?;
            let end = inside.checked_add(found.layout.size())?;
            let mut arena = vec![0; usize::try_from(found.layout.size()).ok()?];
            let offset = load.offset.checked_add(inside)?;
            let length = (end <= load.file_bytes)
                .then(|| file.read_at(&mut arena, offset).ok())
                .flatten()?;
            Some(length == arena.len() && ring::is_untouched(found.layout, &arena))
        })
        .unwrap_or(false)
}

fn writable(elf: &Elf) -> impl Iterator<Item = &Load> {
    elf.loads.iter().filter(|load| load.is_writable)
}

/// Of more data than may be read the last is searched, as the C library is linked last.
fn by_data(elf: &Elf, file: &File, left: &mut u64) -> Vec<Found> {
    let mut found = Vec::new();
    for load in writable(elf) {
        let bytes = load.file_bytes.min(*left);
        let start = load
            .address
            .wrapping_add(load.file_bytes - bytes)
            .wrapping_add(7)
            & !7;
        let offset = load.offset.wrapping_add(start.wrapping_sub(load.address));
        let mut data = vec![0; usize::try_from(bytes).unwrap_or(0)];
        let length = file.read_at(&mut data, offset).unwrap_or(0);
        data.truncate(length);
        *left = left.saturating_sub(length as u64);
        let (words, _) = data.as_chunks::<8>();
        let of_load = words
            .iter()
            .enumerate()
            .filter_map(|(index, target)| {
                let place = start.wrapping_add(8 * index as u64);
                arena_of(place, u64::from_le_bytes(*target))
            })
            .filter(|found| {
                found
                    .address
                    .checked_sub(start)
                    .and_then(|offset| usize::try_from(offset).ok())
                    .zip(usize::try_from(found.layout.size()).ok())
                    .and_then(|(offset, size)| data.get(offset..offset.checked_add(size)?))
                    .is_some_and(|arena| ring::is_untouched(found.layout, arena))
            });
        found.extend(of_load.take(MOST_FOUND));
    }
    found
}
