//! Several looks at one heap, compared: how it changes, and which sizes of chunks grow.

use serde::Deserialize;
use serde::Serialize;

use super::sums::HeapSums;
use crate::event::ChunkClass;
use crate::event::HeapExamination;
use crate::event::ProcessMemory;
use crate::units::ByteDelta;
use crate::units::ByteSize;
use crate::units::Exact;
use crate::units::Timestamp;

/// Most looks that are kept. Of more, every other one goes, never the first or the last.
const MOST_LOOKS: usize = 512;
/// Sizes that are listed.
const LISTED_CLASSES: usize = 24;
/// A change of less than this is none, in bytes.
const LEVEL_BYTES: u64 = 16 << 10;
/// Nor is one of less than this part of what is in use, unless it went up each time.
const LEVEL_PART: u64 = 200;

/// Several looks at a heap, compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapGrowth {
    /// Looks taken.
    pub total_looks: u64,
    /// Nanoseconds from the first look to the last.
    pub duration_ns: u64,
    /// How what is in use changed.
    pub trend: GrowthTrend,
    /// That in a sentence.
    pub summary: String,
    /// By how many bytes what is in use grew.
    pub in_use_delta_bytes: i64,
    /// The same per second; `null` when no time passed.
    pub in_use_bytes_per_second: Option<f64>,
    /// By how many bytes what is free grew: in thread caches, bins and tops.
    pub free_delta_bytes: i64,
    /// By how many bytes the heap's memory grew; `null` when not known.
    pub resident_delta_bytes: Option<i64>,
    /// By how many bytes the process's memory grew; `null` when not known.
    pub process_resident_delta_bytes: Option<i64>,
    /// Sizes of which there are more chunks in use than at the first look: those that grew from each look to the next
    /// first, and among them those that grew by most bytes. At most 24.
    pub classes: Vec<ClassGrowth>,
    /// Chunks that are mappings of their own.
    pub mapped: MappedGrowth,
    /// The looks, the first and the last among them; of more than 512 not all.
    pub looks: Vec<HeapLook>,
}

/// How something changed from look to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum GrowthTrend {
    /// By less than 16 KiB from the first look to the last; or by less than a two-hundredth of what is in use, up and down.
    Level,
    /// It grew, and there were only two looks.
    Grew,
    /// It grew from each look to the next.
    Growing,
    /// It is larger than at first, and went up and down.
    Uneven,
    /// It became less.
    Shrank,
}

/// Chunks in use of one size, or of a range of sizes, compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClassGrowth {
    /// Smallest size of the range in bytes, header included.
    pub from_bytes: u64,
    /// Largest size of the range.
    pub to_bytes: u64,
    /// Chunks at the last look.
    pub chunks: u64,
    /// By how many they grew since the first.
    pub delta_chunks: i64,
    /// By how many bytes.
    pub delta_bytes: i64,
    /// The same per second; `null` when no time passed.
    pub bytes_per_second: Option<f64>,
    /// How often there were more than at the look before.
    pub grew_times: u64,
    /// Whether that was each time.
    pub each_time: bool,
}

/// Chunks that are mappings of their own, compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MappedGrowth {
    /// Chunks at the last look.
    pub chunks: u64,
    /// By how many they grew since the first.
    pub delta_chunks: i64,
    /// By how many bytes.
    pub delta_bytes: i64,
    /// How often they had more bytes than at the look before.
    pub grew_times: u64,
    /// Whether that was each time.
    pub each_time: bool,
}

/// One of several looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapLook {
    /// When, in nanoseconds since the first.
    pub time_ns: Timestamp,
    /// Where the process had its memory; `null` when not known.
    pub memory: Option<ProcessMemory>,
    /// The heap in a few figures.
    pub sums: HeapSums,
}

/// Looks as they are taken: what is needed to compare them.
#[derive(Clone, Debug, Default)]
pub struct HeapLooks {
    total: u64,
    /// Every so-many-th look is kept; a power of two.
    kept_every: u64,
    kept: Vec<HeapLook>,
    last: Option<HeapLook>,
    /// Steps in which what is in use grew.
    grew: u64,
    mapped_grew: u64,
    classes: Vec<Class>,
}

/// A class of sizes over all looks.
#[derive(Clone, Copy, Debug)]
struct Class {
    /// As it was first and last.
    first: ChunkClass,
    last: ChunkClass,
    grew: u64,
}

impl HeapLooks {
    /// Takes a look into account.
    pub fn add(
        &mut self,
        time: Timestamp,
        memory: Option<ProcessMemory>,
        examination: &HeapExamination,
    ) {
        let look = HeapLook {
            time_ns: time,
            memory,
            sums: HeapSums::of(examination),
        };
        if let Some(last) = &self.last {
            self.grew += u64::from(look.sums.in_use_bytes > last.sums.in_use_bytes);
            self.mapped_grew += u64::from(look.sums.mapped_bytes > last.sums.mapped_bytes);
        }
        self.add_classes(&classes(examination));
        self.keep(look);
        self.last = Some(look);
        self.total += 1;
    }

    fn keep(&mut self, look: HeapLook) {
        self.kept_every = self.kept_every.max(1);
        if !self.total.is_multiple_of(self.kept_every) {
            return;
        }
        self.kept.push(look);
        if self.kept.len() >= MOST_LOOKS {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.kept_every = self.kept_every.saturating_mul(2);
        }
    }

    fn add_classes(&mut self, now: &[ChunkClass]) {
        let is_first = self.total == 0;
        for class in &mut self.classes {
            let found = now.binary_search_by_key(&class.last.from_bytes, |class| class.from_bytes);
            let (chunks, bytes) = found.map_or((0, 0), |at| (now[at].chunks, now[at].bytes));
            class.grew += u64::from(bytes > class.last.bytes);
            class.last.chunks = chunks;
            class.last.bytes = bytes;
        }
        // There are at most some hundred classes.
        for class in now {
            let key = |known: &Class| known.last.from_bytes;
            let Err(at) = self.classes.binary_search_by_key(&class.from_bytes, key) else {
                continue;
            };
            let none = ChunkClass {
                chunks: 0,
                bytes: 0,
                ..*class
            };
            let new = Class {
                first: if is_first { *class } else { none },
                last: *class,
                grew: u64::from(!is_first),
            };
            self.classes.insert(at, new);
        }
    }

    /// How many there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> Option<&HeapLook> {
        self.last.as_ref()
    }

    /// Compares them; `None` for fewer than two.
    #[must_use]
    pub fn growth(&self) -> Option<HeapGrowth> {
        let (first, last) = (self.kept.first()?, self.last.as_ref()?);
        let steps = self.total.checked_sub(1).filter(|steps| *steps > 0)?;
        let duration_ns = last.time_ns.0.saturating_sub(first.time_ns.0);
        let in_use_delta_bytes = delta(last.sums.in_use_bytes, first.sums.in_use_bytes);
        let trend = trend(in_use_delta_bytes, last.sums.in_use_bytes, self.grew, steps);
        let classes = self.grown_classes(steps, duration_ns);
        let mapped = MappedGrowth {
            chunks: last.sums.mapped_chunks,
            delta_chunks: delta(last.sums.mapped_chunks, first.sums.mapped_chunks),
            delta_bytes: delta(last.sums.mapped_bytes, first.sums.mapped_bytes),
            grew_times: self.mapped_grew,
            each_time: self.mapped_grew == steps,
        };
        let mut looks = self.kept.clone();
        if looks.last() != Some(last) {
            looks.push(*last);
        }
        Some(HeapGrowth {
            total_looks: self.total,
            duration_ns,
            trend,
            summary: summary(trend, in_use_delta_bytes, duration_ns, &classes, &mapped),
            in_use_delta_bytes,
            in_use_bytes_per_second: per_second(in_use_delta_bytes, duration_ns),
            free_delta_bytes: delta(last.sums.free_bytes(), first.sums.free_bytes()),
            resident_delta_bytes: last
                .sums
                .resident_bytes
                .zip(first.sums.resident_bytes)
                .map(|(last, first)| delta(last, first)),
            process_resident_delta_bytes: last
                .memory
                .zip(first.memory)
                .map(|(last, first)| delta(last.resident_bytes, first.resident_bytes)),
            classes,
            mapped,
            looks,
        })
    }

    fn grown_classes(&self, steps: u64, duration_ns: u64) -> Vec<ClassGrowth> {
        let mut classes: Vec<ClassGrowth> = self
            .classes
            .iter()
            .filter(|class| class.last.bytes > class.first.bytes)
            .map(|class| {
                let delta_bytes = delta(class.last.bytes, class.first.bytes);
                ClassGrowth {
                    from_bytes: class.last.from_bytes,
                    to_bytes: class.last.to_bytes,
                    chunks: class.last.chunks,
                    delta_chunks: delta(class.last.chunks, class.first.chunks),
                    delta_bytes,
                    bytes_per_second: per_second(delta_bytes, duration_ns),
                    grew_times: class.grew,
                    each_time: class.grew == steps,
                }
            })
            .collect();
        classes.sort_by_key(|class| std::cmp::Reverse((class.each_time, class.delta_bytes)));
        classes.truncate(LISTED_CLASSES);
        classes
    }
}

/// The classes of all heaps, by size.
fn classes(examination: &HeapExamination) -> Vec<ChunkClass> {
    let mut all: Vec<ChunkClass> = examination
        .heaps
        .iter()
        .flat_map(|heap| heap.classes.iter().copied())
        .collect();
    all.sort_by_key(|class| class.from_bytes);
    all.dedup_by(|next, kept| {
        let is_same = next.from_bytes == kept.from_bytes;
        if is_same {
            kept.chunks = kept.chunks.saturating_add(next.chunks);
            kept.bytes = kept.bytes.saturating_add(next.bytes);
        }
        is_same
    });
    all
}

/// The difference, as far as it fits.
fn delta(now: u64, before: u64) -> i64 {
    let difference = i64::try_from(now.abs_diff(before)).unwrap_or(i64::MAX);
    if now >= before {
        difference
    } else {
        -difference
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate, shown with three digits"
)]
fn per_second(bytes: i64, duration_ns: u64) -> Option<f64> {
    (duration_ns > 0).then(|| bytes as f64 / Timestamp(duration_ns).as_secs_f64())
}

fn trend(delta_bytes: i64, in_use: u64, grew: u64, steps: u64) -> GrowthTrend {
    let change = delta_bytes.unsigned_abs();
    let is_growing = delta_bytes > 0 && grew == steps && steps > 1;
    if change < LEVEL_BYTES || (change < in_use / LEVEL_PART && !is_growing) {
        GrowthTrend::Level
    } else if delta_bytes < 0 {
        GrowthTrend::Shrank
    } else if steps == 1 {
        GrowthTrend::Grew
    } else if is_growing {
        GrowthTrend::Growing
    } else {
        GrowthTrend::Uneven
    }
}

fn summary(
    trend: GrowthTrend,
    delta_bytes: i64,
    duration_ns: u64,
    classes: &[ClassGrowth],
    mapped: &MappedGrowth,
) -> String {
    let change = ByteDelta(delta_bytes);
    let seconds = Timestamp(duration_ns).as_secs_f64();
    let time = if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else {
        format!("{seconds:.0} s")
    };
    // What makes up for most of it; what grew only now and then is not named.
    let class = classes
        .first()
        .filter(|class| class.each_time && class.delta_bytes >= mapped.delta_bytes)
        .map(|class| {
            format!(
                ": {} {} chunks ({})",
                chunk_sizes(class.from_bytes, class.to_bytes),
                signed(class.delta_chunks),
                ByteDelta(class.delta_bytes)
            )
        });
    let alone = (mapped.each_time && mapped.delta_bytes > 0).then(|| {
        format!(
            ": chunks mapped alone {} ({})",
            signed(mapped.delta_chunks),
            ByteDelta(mapped.delta_bytes)
        )
    });
    let culprit = class.or(alone).unwrap_or_default();
    match trend {
        GrowthTrend::Level => format!("what is in use stays as it is: {change} in {time}"),
        GrowthTrend::Grew => format!(
            "what is in use grew by {} in {time}{culprit}",
            ByteSize(delta_bytes.unsigned_abs())
        ),
        GrowthTrend::Growing => {
            format!("what is in use grows steadily, {change} in {time}{culprit}")
        }
        GrowthTrend::Uneven => {
            format!("what is in use goes up and down, {change} in {time}{culprit}")
        }
        GrowthTrend::Shrank => format!("what is in use became less: {change} in {time}"),
    }
}

/// `+12,000`, `−3`.
fn signed(number: i64) -> String {
    let sign = if number < 0 { '−' } else { '+' };
    format!("{sign}{}", Exact(number.unsigned_abs()))
}

/// Sizes of chunks from `from` to `to` bytes: `1,040 B`, `2,064–2,560 B`, `16 KiB – 20 KiB`.
#[must_use]
pub fn chunk_sizes(from: u64, to: u64) -> String {
    if from == to {
        format!("{} B", Exact(from))
    } else if to < 1 << 14 {
        format!("{}–{} B", Exact(from), Exact(to))
    } else {
        // Ranges begin sixteen bytes above a round number: what is cut off says nothing.
        format!("{} – {}", ByteSize(from.saturating_sub(16)), ByteSize(to))
    }
}
