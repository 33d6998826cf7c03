//! Looks through the heap of a process that nobody traces: from outside, and gently.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::Tracer;
use super::attach;
use super::attach::AttachError;
use super::heap_source::LiveImage;
use super::proc;
use super::process_facts::process_memory;
use super::short_stop::ShortStop;
use super::sys;
use crate::event::AllocatorRole;
use crate::event::CheckOutcome;
use crate::event::EventKind;
use crate::event::ExaminationCost;
use crate::event::GlibcHeap;
use crate::event::HeapExamination;
use crate::event::ReadingMoment;
use crate::event::RecognisedAllocator;
use crate::event::SpaceId;
use crate::heap_walk;
use crate::heap_walk::Depth;
use crate::heap_walk::Standing;

/// Looks at a heap that stands still: so often at most, until no thread stood in the middle of malloc.
const EXACT_LOOKS: u32 = 6;
/// Further looks at what was odd while the program ran.
const CONFIRMING_LOOKS: u32 = 2;
/// The program runs at least so long between two of them; the longer the more there were, since on a busy machine a thread
/// that stood in the middle of malloc may have to wait for a processor before it gets on.
const BETWEEN_LOOKS: Duration = Duration::from_millis(3);

/// Looks through the heap of process `pid` (or of the process with that thread). It stands still for some milliseconds,
/// or for the whole look if that shall be `exact`.
///
/// A thread that is stopped in the middle of malloc leaves an arena as no call would: an exact look at which something does
/// not hold is repeated, and only what never holds is told as such.
///
/// # Errors
///
/// The process cannot be traced.
pub fn examine_process(pid: u32, exact: bool) -> Result<HeapExamination, AttachError> {
    if !exact {
        return confirmed(pid, look(pid, false)?);
    }
    let mut looks = 1;
    loop {
        let examination = look(pid, true)?;
        if looks == EXACT_LOOKS || !is_anything_odd(&examination) {
            return Ok(examination);
        }
        thread::sleep(BETWEEN_LOOKS * 2_u32.pow(looks - 1));
        looks += 1;
    }
}

/// What does not hold at a look while the program runs may be its doing. What two further looks find in the very same way while
/// all its threads sleep is not: who sleeps is in a system call, and not between two writes of malloc's.
fn confirmed(pid: u32, mut first: HeapExamination) -> Result<HeapExamination, AttachError> {
    if !is_anything_odd(&first) {
        return Ok(first);
    }
    for _ in 0..CONFIRMING_LOOKS {
        thread::sleep(BETWEEN_LOOKS);
        if !proc::all_sleep(pid) {
            return Ok(first);
        }
        let again = match look(pid, false) {
            Ok(again) => again,
            // It has ended meanwhile; what was seen was seen.
            Err(AttachError::NoSuchProcess(_)) => return Ok(first),
            Err(error) => return Err(error),
        };
        if !is_same_damage(&first, &again) {
            return Ok(again);
        }
    }
    for check in first.heaps.iter_mut().flat_map(|heap| &mut heap.checks) {
        if check.outcome == CheckOutcome::Moving {
            check.outcome = CheckOutcome::Fails;
        }
    }
    Ok(first)
}

/// Whether two looks found the same things wrong, to the address.
fn is_same_damage(one: &HeapExamination, other: &HeapExamination) -> bool {
    let damage = |examination: &HeapExamination| -> Vec<(String, Option<String>)> {
        let checks = examination.heaps.iter().flat_map(|heap| &heap.checks);
        checks
            .filter(|check| check.outcome == CheckOutcome::Moving)
            .map(|check| (check.what.clone(), check.detail.clone()))
            .collect()
    };
    damage(one) == damage(other)
}

/// Whether a check does not hold.
fn is_anything_odd(examination: &HeapExamination) -> bool {
    let mut checks = examination.heaps.iter().flat_map(|heap| &heap.checks);
    checks.any(|check| matches!(check.outcome, CheckOutcome::Fails | CheckOutcome::Moving))
}

/// One look.
fn look(pid: u32, exact: bool) -> Result<HeapExamination, AttachError> {
    let began = Instant::now();
    let pid = *attach::processes(&[pid])?
        .first()
        .ok_or(AttachError::NoSuchProcess(pid))?;
    let mut problems = Vec::new();
    let mut image = LiveImage::of_process(pid)?;
    let located = heap_walk::locate(&image);
    let stop = ShortStop::begin(pid)?;
    // Mappings may have come since.
    if !image.refresh() {
        return Err(AttachError::NoSuchProcess(pid));
    }
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
        let heaps = walk(&image, standing, true);
        (heaps, stop.release())
    } else {
        let stopped = stop.release();
        (walk(&image, standing, false), stopped)
    };
    let look = Look {
        moment: ReadingMoment::Snapshot,
        still: exact,
        stopped: Some(stopped),
        began,
    };
    let allocators = heap_walk::recognise(&image, &located);
    Ok(look.examination(&image, allocators, heaps, problems))
}

/// When and how a heap was looked at.
#[derive(Clone, Copy, Debug)]
struct Look {
    moment: ReadingMoment,
    still: bool,
    /// How long the program was stopped for it; `None` when it stood for another reason.
    stopped: Option<Duration>,
    began: Instant,
}

impl Look {
    fn examination(
        self,
        image: &LiveImage,
        allocators: Vec<RecognisedAllocator>,
        heaps: Vec<GlibcHeap>,
        problems: Vec<String>,
    ) -> HeapExamination {
        HeapExamination {
            moment: self.moment,
            still: self.still,
            allocators,
            heaps,
            memory: None,
            cost: ExaminationCost {
                total_ns: nanoseconds(self.began.elapsed()),
                stopped_ns: self.stopped.map(nanoseconds),
                read_bytes: image.read_bytes(),
            },
            problems,
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn walk(image: &LiveImage, standing: Vec<Standing>, is_still: bool) -> Vec<GlibcHeap> {
    standing
        .into_iter()
        .map(|standing| heap_walk::examine(image, standing, is_still))
        .collect()
}

/// Whether a malloc is known to serve the program. If that is not glibc's, there is something to tell without any heap.
fn is_any_in_charge(allocators: &[RecognisedAllocator]) -> bool {
    allocators
        .iter()
        .any(|found| found.role == AllocatorRole::InCharge)
}

/// A heap under trace, of which what changes at any moment has been read.
#[derive(Debug)]
pub(super) struct HalfExamined {
    began: Instant,
    /// One of its threads.
    tid: u32,
    image: LiveImage,
    allocators: Vec<RecognisedAllocator>,
    standing: Vec<Standing>,
}

impl HalfExamined {
    /// Reads the rest; `None` when there is nothing to tell. `is_still` says whether the program stands still.
    pub(super) fn complete(self, moment: ReadingMoment, is_still: bool) -> Option<EventKind> {
        let heaps = walk(&self.image, self.standing, is_still);
        let look = Look {
            moment,
            still: is_still,
            stopped: None,
            began: self.began,
        };
        let mut examination = look.examination(&self.image, self.allocators, heaps, Vec::new());
        examination.memory = process_memory(self.tid);
        let tells = !examination.heaps.is_empty() || is_any_in_charge(&examination.allocators);
        tells.then(|| EventKind::HeapExamined(Box::new(examination)))
    }
}

impl Tracer {
    /// Reads what changes at any moment of the heap of an address space, through one of its threads; `None` when that is not
    /// wanted, or nobody has called glibc's malloc and no other serves.
    pub(super) fn half_examine(&mut self, tid: u32, space: SpaceId) -> Option<HalfExamined> {
        if !self.options.heap || !self.examines(space) {
            return None;
        }
        let began = Instant::now();
        for thread in self.threads_in(space) {
            let tracee = self.tracees.threads.get(&thread);
            if thread == tid || tracee.is_some_and(|tracee| tracee.held.is_some()) {
                // Of one that runs, the kernel tells nothing.
                self.note_thread_pointer(thread);
            }
        }
        let image = LiveImage::open(tid).ok()?;
        let located = self.locator.locate(&image);
        let pointers = self.thread_pointers(space);
        let standing: Vec<Standing> = located
            .iter()
            .filter(|located| located.is_used)
            .filter_map(|located| heap_walk::stand(&image, located, pointers.as_deref()))
            .collect();
        let allocators = self.recogniser.recognise(&image, &located, Depth::Quick);
        if standing.is_empty() && !is_any_in_charge(&allocators) {
            return None;
        }
        Some(HalfExamined {
            began,
            tid,
            image,
            allocators,
            standing,
        })
    }

    /// Looks through the heap of an address space and tells of it.
    pub(super) fn examine_heap(
        &mut self,
        tid: u32,
        space: SpaceId,
        moment: ReadingMoment,
        stands: Option<u32>,
    ) {
        let is_still = self.is_still(space, stands);
        let examined = self
            .half_examine(tid, space)
            .and_then(|half| half.complete(moment, is_still));
        if let Some(kind) = examined {
            self.record(tid, space, kind);
        }
    }

    /// Whether the program uses its own malloc, as far as is known.
    fn examines(&self, space: SpaceId) -> bool {
        self.tracees
            .spaces
            .get(&space)
            .is_some_and(|space| space.recorded && !space.bundled.is_read())
    }

    /// The thread pointers of an address space, those of threads that ended with their process included; `None` when none
    /// is known.
    fn thread_pointers(&self, space: SpaceId) -> Option<Vec<u64>> {
        let mut pointers: Vec<u64> = self
            .threads_in(space)
            .into_iter()
            .filter_map(|tid| self.tracees.threads.get(&tid))
            .filter(|tracee| !tracee.ending)
            .filter_map(|tracee| tracee.thread_pointer)
            .collect();
        if let Some(space) = self.tracees.spaces.get(&space) {
            pointers.extend(&space.last_thread_pointers);
        }
        pointers.sort_unstable();
        pointers.dedup();
        (!pointers.is_empty()).then_some(pointers)
    }

    /// Notes the thread pointer of a thread that stands; it never changes once the thread has begun.
    pub(super) fn note_thread_pointer(&mut self, tid: u32) {
        if !self.options.heap {
            return;
        }
        let Some(tracee) = self.tracees.threads.get_mut(&tid) else {
            return;
        };
        if tracee.thread_pointer.is_none() {
            tracee.thread_pointer = sys::thread_pointer(tid).filter(|pointer| *pointer != 0);
        }
    }

    /// As a thread ends: a cache that it leaves behind, as its whole process ends, still holds what it held. One that ends by
    /// itself has emptied it.
    pub(super) fn keep_last_thread_pointer(&mut self, tid: u32) {
        if !self.options.heap {
            return;
        }
        let call = sys::call_in_registers(tid).map(|(number, _)| number);
        let ends_alone = call == u64::try_from(libc::SYS_exit).ok();
        self.note_thread_pointer(tid);
        let pointer = self
            .tracees
            .threads
            .get(&tid)
            .and_then(|tracee| tracee.thread_pointer);
        let space = self.tracees.space_of(tid);
        if let Some(space) = space.and_then(|space| self.tracees.spaces.get_mut(&space))
            && !ends_alone
        {
            space.last_thread_pointers.extend(pointer);
        }
    }
}
