//! Where sizes stand on the stack of a thread in `sysmalloc`.
//!
//! The size of a chunk is not told by the move alone, but to a page. The places at which the true size stands are the same
//! for every growth of one build of the C library, so places that hold a possible one at each growth are it.

use super::growth::Growth;
use super::growth::chunk_for;

/// Places that held what was looked for, each time.
#[derive(Clone, Debug, Default)]
struct Learnt {
    places: Vec<u16>,
    /// Growths that bear all of these places out, the one that they were first seen at included.
    growths: u32,
    /// Growths at which none of them held anything, though others did.
    misses: u32,
}

impl Learnt {
    /// Keeps what a growth bears out. Another way through the C library, with other frames, says nothing about the usual one,
    /// unless it is the more usual.
    fn learn(&mut self, seen: &[u16]) {
        if seen.is_empty() {
            return;
        }
        let both: Vec<u16> = self
            .places
            .iter()
            .copied()
            .filter(|place| seen.contains(place))
            .collect();
        if !both.is_empty() {
            self.places = both;
            self.growths = self.growths.saturating_add(1);
        } else if self.misses + 1 >= self.growths {
            *self = Self {
                places: seen.to_vec(),
                growths: 1,
                misses: 0,
            };
        } else {
            self.misses += 1;
        }
    }

    /// One growth alone proves no place.
    fn is_borne_out(&self) -> bool {
        self.growths > 1
    }

    fn contains(&self, place: u16) -> bool {
        self.places.contains(&place)
    }
}

/// What was learnt of the frames of one way to the kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// Places of the chunk's size.
    chunk: Learnt,
    /// Places of the number of bytes that was asked for.
    request: Learnt,
}

impl Places {
    pub(super) fn learn(&mut self, growth: &Growth) {
        let sizes: Vec<_> = growth.sizes().collect();
        // Where a size stands beside the request that it is for, the request is not the size.
        let is_request = |bytes: u64| {
            sizes
                .iter()
                .any(|other| other.bytes != bytes && other.bytes == chunk_for(bytes))
        };
        let chunks: Vec<u16> = sizes
            .iter()
            .filter(|candidate| !is_request(candidate.bytes))
            .map(|candidate| candidate.place)
            .collect();
        self.chunk.learn(&chunks);
        if let Some(chunk) = self.chunk_of(growth) {
            let requests: Vec<u16> = growth
                .requests_for(chunk)
                .map(|candidate| candidate.place)
                .collect();
            self.request.learn(&requests);
        }
    }

    /// The chunk's size, if the places that are left agree about it.
    pub(super) fn chunk_of(&self, growth: &Growth) -> Option<u64> {
        let sizes = growth
            .sizes()
            .filter(|candidate| self.chunk.contains(candidate.place));
        let chunk = agreed(sizes.map(|candidate| candidate.bytes))?;
        // Or what was asked for stands beside it.
        let is_borne_out = self.chunk.is_borne_out() || growth.requests_for(chunk).next().is_some();
        is_borne_out.then_some(chunk)
    }

    /// What was asked for, likewise.
    pub(super) fn request_of(&self, growth: &Growth, chunk: u64) -> Option<u64> {
        let fitting = growth
            .requests_for(chunk)
            .filter(|candidate| self.request.contains(candidate.place));
        self.request
            .is_borne_out()
            .then(|| agreed(fitting.map(|candidate| candidate.bytes)))
            .flatten()
    }
}

/// The number that all are; `None` for none, or different ones.
fn agreed(mut numbers: impl Iterator<Item = u64>) -> Option<u64> {
    let first = numbers.next()?;
    numbers.all(|number| number == first).then_some(first)
}
