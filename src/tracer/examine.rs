//! Looks through the heap of a process that nobody traces: from outside, and gently.

use std::time::Instant;

use super::attach;
use super::attach::AttachError;
use super::heap_source::LiveImage;
use super::short_stop::ShortStop;
use crate::event::ExaminationCost;
use crate::event::GlibcHeap;
use crate::event::HeapExamination;
use crate::event::ReadingMoment;
use crate::heap_walk;
use crate::heap_walk::Image;
use crate::heap_walk::Located;
use crate::heap_walk::Standing;

/// Looks through the heap of process `pid` (or of the process with that thread). It stands still for some milliseconds,
/// or for the whole look if that shall be `exact`.
///
/// # Errors
///
/// The process cannot be traced.
pub fn examine_process(pid: u32, exact: bool) -> Result<HeapExamination, AttachError> {
    let began = Instant::now();
    let pid = *attach::processes(&[pid])?
        .first()
        .ok_or(AttachError::NoSuchProcess(pid))?;
    let gone = |_| AttachError::NoSuchProcess(pid);
    let mut problems = Vec::new();
    let located = heap_walk::locate(&LiveImage::open(pid).map_err(gone)?);
    let stop = ShortStop::begin(pid)?;
    // Mappings may have come since.
    let image = LiveImage::open(pid).map_err(gone)?;
    if stop.missed() > 0 {
        problems.push(format!(
            "{} threads sleep in the kernel and could not be stopped; what waits in their caches counts as in use",
            stop.missed()
        ));
    }
    let pointers = stop.thread_pointers();
    let standing: Vec<Standing> = located
        .iter()
        .filter_map(|located| heap_walk::stand(&image, located, Some(&pointers)))
        .collect();
    let (heaps, stopped) = if exact {
        let heaps = walk(&image, &standing, true);
        (heaps, stop.release())
    } else {
        let stopped = stop.release();
        (walk(&image, &standing, false), stopped)
    };
    Ok(examination(
        &image,
        &located,
        heaps,
        problems,
        Look {
            moment: ReadingMoment::Snapshot,
            still: exact,
            cost: ExaminationCost {
                total_ns: nanoseconds(began.elapsed()),
                stopped_ns: Some(nanoseconds(stopped)),
                read_bytes: image.read_bytes(),
            },
        },
    ))
}

/// When and how a heap was looked at.
struct Look {
    moment: ReadingMoment,
    still: bool,
    cost: ExaminationCost,
}

fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn walk(image: &LiveImage, standing: &[Standing], is_still: bool) -> Vec<GlibcHeap> {
    standing
        .iter()
        .map(|standing| heap_walk::examine(image, standing, is_still).0)
        .collect()
}

fn examination(
    _image: &dyn Image,
    _located: &[Located],
    heaps: Vec<GlibcHeap>,
    problems: Vec<String>,
    look: Look,
) -> HeapExamination {
    HeapExamination {
        moment: look.moment,
        still: look.still,
        allocators: Vec::new(),
        heaps,
        cost: look.cost,
        problems,
    }
}
