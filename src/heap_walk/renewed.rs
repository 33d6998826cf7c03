//! The memory of a program that has run on since its mappings were read.

use std::fs::File;

use super::Image;
use super::Residency;
use crate::mapping::Mapping;

/// The same memory, with the mappings that it has by now.
pub(super) struct Renewed<'a> {
    image: &'a dyn Image,
    mappings: Vec<Mapping>,
}

impl<'a> Renewed<'a> {
    /// `None` where the mappings are still what they were, as far as is known.
    pub(super) fn of(image: &'a dyn Image) -> Option<Self> {
        let mappings = image.mappings_by_now()?;
        Some(Self { image, mappings })
    }
}

impl Image for Renewed<'_> {
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn mappings_by_now(&self) -> Option<Vec<Mapping>> {
        self.image.mappings_by_now()
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.image.read(address, bytes)
    }

    fn read_words(&self, addresses: &[u64], words: &mut Vec<Option<u64>>) {
        self.image.read_words(addresses, words);
    }

    fn word(&self, address: u64) -> Option<u64> {
        self.image.word(address)
    }

    fn residency(&self, start: u64, end: u64) -> Option<Residency> {
        self.image.residency(start, end)
    }

    fn file(&self, mapping: &Mapping) -> Option<File> {
        self.image.file(mapping)
    }

    fn lazily_free_bytes(&self, start: u64, end: u64) -> Option<u64> {
        self.image.lazily_free_bytes(start, end)
    }

    fn page_size(&self) -> u64 {
        self.image.page_size()
    }

    fn may_be_swapped(&self) -> bool {
        self.image.may_be_swapped()
    }

    fn absent_is_zero(&self) -> bool {
        self.image.absent_is_zero()
    }
}
