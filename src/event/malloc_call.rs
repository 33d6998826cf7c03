//! How glibc's malloc stood when it made a memory call: before it took note of what the call did. From these facts its own
//! arithmetic (malloc/malloc.c, `sysmalloc`, `systrim`; malloc/arena.c, `grow_heap`, `heap_trim`) explains the call.

use serde::Deserialize;
use serde::Serialize;

use super::MallocSettings;
use crate::units::Address;

/// How an arena stood at a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MallocCall {
    /// Where the arena's top chunk begins; 0 while it has none.
    pub top: Address,
    /// Bytes of the top chunk; 0 likewise.
    pub top_bytes: u64,
    /// Whether the main arena still is one piece at the break (`contiguous`); `true` for other arenas.
    pub contiguous: bool,
    /// The heap that the call is about, if it belongs to another arena than the main one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heap: Option<ArenaHeap>,
    /// Calls of functions of the C library that led to this call, counted from it; absent where no stack was recorded. A
    /// program that calls brk, mmap or munmap by itself has one or two of them, malloc three at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// Words on the stack that may be the size of the chunk that the memory is for, or what was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<SizeCandidate>,
}

/// A heap of an arena that is not the main one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArenaHeap {
    /// Its arena; absent while the heap is new and has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arena: Option<Address>,
    /// Where it begins.
    pub start: Address,
    /// Bytes in use from there on.
    pub bytes: u64,
    /// Bytes that may be read and written.
    pub opened_bytes: u64,
}

/// A word on the stack that may be the size of a chunk, or of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeCandidate {
    /// Bytes from the stack pointer at the call.
    pub place: u16,
    /// The word.
    pub bytes: u64,
}

/// The settings of glibc's malloc in an address space, as they were first seen, or as they changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MallocSeen {
    /// The file that brings it; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// glibc's version; absent when its file does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The settings.
    pub settings: MallocSettings,
}
