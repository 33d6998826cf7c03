//! Watches the bundled allocator in the programs under trace: where its page is, when its figures are read, and why it
//! is missing where it was asked for.

use std::path::Path;

use super::Tracer;
use super::call::Finished;
use super::call::Pending;
use super::call::Signed;
use super::executable;
use super::executable::Linkage;
use super::leaks;
use super::library;
use super::proc;
use super::stats_reader::ReadError;
use super::stats_reader::Reader;
use crate::allocator::EVERY_BLOCK;
use crate::allocator::walk::Limits;
use crate::allocator::walk::Walk;
use crate::event::AbsenceReason;
use crate::event::AllocatorAbsence;
use crate::event::AllocatorChoice;
use crate::event::AllocatorSetup;
use crate::event::EventKind;
use crate::event::FoundBy;
use crate::event::HeapError;
use crate::event::HeapWalk;
use crate::event::LeakSearch;
use crate::event::ReadingMoment;
use crate::event::SampledBlock;
use crate::event::SizeCount;
use crate::event::SpaceId;
use crate::mapping;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;
use crate::stats_page;
use crate::units::Address;
use crate::units::Timestamp;

/// With more thread caches than so many, reading takes as long as a call: then figures are read less often.
const MANY_CACHES: usize = 64;
/// So far apart at least, in nanoseconds.
const MANY_CACHES_PAUSE: u64 = 10_000_000;

/// The bundled allocator in one address space, as far as it is known. A forked child begins with a copy.
#[derive(Clone, Debug, Default)]
pub(super) struct Bundled {
    /// Where its figures are, once that is known.
    reader: Option<Reader>,
    /// How it was set up when that was last told.
    setup: Option<AllocatorSetup>,
    last_read: Timestamp,
    /// It was asked for, and has not come.
    awaited: bool,
    /// Why it may not come, as far as the program's file tells.
    doubt: Option<AllocatorAbsence>,
    /// Why there are no figures, once that was told.
    absence: Option<AllocatorAbsence>,
}

/// What a program's file, environment and rights say of a library that was to be preloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prospect {
    /// It should come.
    Good,
    /// It may come, or not for this reason.
    Doubtful(AllocatorAbsence),
    /// It will not come.
    None(AllocatorAbsence),
    /// It will come and not be used.
    Unused(AllocatorAbsence),
}

fn absence(reason: AbsenceReason, message: impl Into<String>) -> AllocatorAbsence {
    AllocatorAbsence {
        reason,
        message: message.into(),
    }
}

/// Whether the library will come, in the program that thread `tid` is about to begin.
fn prospect(tid: u32, library: &Path) -> Prospect {
    let program = format!("/proc/{tid}/exe").into();
    let linker = match executable::linkage(&program) {
        Some(Linkage::Static) => {
            return Prospect::None(absence(
                AbsenceReason::StaticProgram,
                "the program is linked statically: there is no dynamic linker that could load the bundled malloc; link \
                 it dynamically to see the allocator's figures",
            ));
        }
        Some(Linkage::OtherMachine(machine)) => {
            return Prospect::None(absence(
                AbsenceReason::OtherArchitecture,
                format!(
                    "the program is for {machine}, and the bundled malloc for {}; build the program for this machine",
                    std::env::consts::ARCH
                ),
            ));
        }
        Some(Linkage::Dynamic(linker)) => Some(linker),
        None => None,
    };
    if proc::is_secure(tid) == Some(true) {
        return Prospect::None(absence(
            AbsenceReason::SecureExecution,
            "the program gained rights (set-uid, set-gid or capabilities), and the dynamic linker preloads nothing into \
             such programs; run it as the user whose rights it needs, with sudo or --user",
        ));
    }
    if !proc::environment(tid).is_none_or(|environment| names_library(&environment, library)) {
        return Prospect::None(absence(
            AbsenceReason::EnvironmentCleared,
            "the program was started without the LD_PRELOAD that names the bundled malloc: what started it clears or \
             replaces its environment; let it pass LD_PRELOAD on",
        ));
    }
    // Other C libraries may load it, and it may work.
    if let Some(linker) = linker.filter(|linker| !is_of_glibc(linker)) {
        return Prospect::Doubtful(absence(
            AbsenceReason::OtherLibc,
            format!(
                "the program's dynamic linker is {linker}, and the bundled malloc needs glibc's: it was not loaded, or \
                 could not begin"
            ),
        ));
    }
    if executable::defines_symbol(&program, "malloc") {
        return Prospect::Unused(absence(
            AbsenceReason::OwnAllocator,
            "the program brings its own malloc, which goes before any library's: the bundled one is loaded, but serves \
             nobody, or only what goes past the program's own",
        ));
    }
    Prospect::Good
}

/// Whether this is the dynamic linker of glibc: ld-linux-x86-64.so.2, ld-linux-aarch64.so.1, ld64.so.2 and the like.
fn is_of_glibc(linker: &str) -> bool {
    let name = linker.rsplit('/').next().unwrap_or(linker);
    name.starts_with("ld-linux") || name.starts_with("ld64.so") || name.starts_with("ld.so")
}

fn names_library(environment: &[u8], library: &Path) -> bool {
    environment
        .split(|&byte| byte == 0)
        .filter_map(|entry| {
            entry
                .strip_prefix(library::VARIABLE.as_bytes())?
                .strip_prefix(b"=")
        })
        .any(|value| library::is_named(value, library))
}

/// Why the library has not come, although nothing spoke against it.
fn unexplained(mappings: Option<&[Mapping]>, library: &Path) -> AllocatorAbsence {
    let is_mapped = |mappings: &[Mapping]| {
        mappings
            .iter()
            .any(|mapping| mapping.name.as_deref().map(Path::new) == Some(library))
    };
    match mappings.map(is_mapped) {
        Some(true) => absence(
            AbsenceReason::NotBegun,
            "the bundled malloc was loaded, and the program ended before it began",
        ),
        Some(false) => absence(
            AbsenceReason::Unknown,
            "the dynamic linker has not loaded the bundled malloc; if it could not, it says why on the program's stderr \
             (another root folder, a missing library of the program)",
        ),
        None => absence(
            AbsenceReason::NotBegun,
            "the program ended before the bundled malloc began",
        ),
    }
}

/// The page's address, if a program has one.
fn find_page(mappings: &[Mapping]) -> Option<u64> {
    let name = stats_page::NAME.to_str().ok()?;
    mappings
        .iter()
        .find(|mapping| {
            let file = mapping
                .name
                .as_deref()
                .and_then(|file| file.strip_prefix("/memfd:"));
            // Deleted, as the kernel says of all such files.
            file.map(|file| file.strip_suffix(" (deleted)").unwrap_or(file)) == Some(name)
                && mapping.offset == 0
        })
        .map(|mapping| mapping.start.0)
}

fn read_failure(error: ReadError) -> Option<AllocatorAbsence> {
    match error {
        ReadError::Gone => None,
        ReadError::OtherVersion { version, layout } => Some(absence(
            AbsenceReason::OtherVersion,
            format!(
                "the program runs on the bundled malloc of breaktrace {version}, whose figures have layout {layout}; this \
                 is breaktrace {}, which reads layout {}; use the same version for both",
                env!("CARGO_PKG_VERSION"),
                stats_page::LAYOUT_VERSION
            ),
        )),
        ReadError::Damaged(why) => Some(absence(
            AbsenceReason::Unreadable,
            format!(
                "the figures of the bundled malloc cannot be read: {why}; has the program written over them?"
            ),
        )),
    }
}

/// Whether a call changed anything.
fn changed_memory(finished: &Finished) -> bool {
    match finished {
        Finished::Event(EventKind::Brk { before, after, .. }) => *before != Some(*after),
        Finished::Event(EventKind::Mmap { result, .. } | EventKind::Mremap { result, .. }) => {
            result.is_done()
        }
        Finished::Event(EventKind::Munmap { result, .. } | EventKind::Madvise { result, .. }) => {
            result.is_done()
        }
        _ => false,
    }
}

impl Bundled {
    /// Whether its figures are read.
    pub(super) fn is_read(&self) -> bool {
        self.reader.is_some()
    }
}

impl Tracer {
    /// Finds out whether the library will come into the program that thread `tid` is about to begin; `None` if it was
    /// not asked for.
    pub(super) fn bundled_prospect(&self, tid: u32) -> Option<Prospect> {
        let is_asked_for = self.recording.allocator == AllocatorChoice::Bundled;
        let library = self.library.as_ref().filter(|_| is_asked_for)?;
        Some(prospect(tid, library.path()))
    }

    /// Takes note of the prospect for an address space that begins, and tells if it is bad.
    pub(super) fn expect_bundled(&mut self, tid: u32, space: SpaceId, prospect: Option<Prospect>) {
        let Some((bundled, prospect)) = self.bundled(space).zip(prospect) else {
            return;
        };
        let told = match prospect {
            Prospect::Good => {
                bundled.awaited = true;
                None
            }
            Prospect::Doubtful(why) => {
                bundled.awaited = true;
                bundled.doubt = Some(why);
                None
            }
            Prospect::None(why) | Prospect::Unused(why) => Some(why),
        };
        if let Some(why) = told {
            bundled.absence = Some(why.clone());
            self.record(tid, space, EventKind::AllocatorAbsent(why));
        }
    }

    /// Tells what a forked child has of its parent's allocator.
    pub(super) fn tell_inherited_bundled(&mut self, tid: u32, space: SpaceId) {
        let Some(bundled) = self.bundled(space) else {
            return;
        };
        let setup = bundled.setup.clone().map(EventKind::AllocatorFound);
        let absence = bundled.absence.clone().map(EventKind::AllocatorAbsent);
        for kind in setup.into_iter().chain(absence) {
            self.record(tid, space, kind);
        }
    }

    fn bundled(&mut self, space: SpaceId) -> Option<&mut Bundled> {
        self.tracees
            .spaces
            .get_mut(&space)
            .filter(|space| space.recorded)
            .map(|space| &mut space.bundled)
    }

    /// What is to be told after a call, of what the allocator told by it and what it changed. The caller stands still.
    pub(super) fn heard_from_bundled(
        &mut self,
        tid: u32,
        space: SpaceId,
        pending: &Pending,
        finished: &Finished,
    ) -> Vec<EventKind> {
        match pending.signed() {
            None => Vec::new(),
            Some(Signed::Page(page)) => self.page_found(tid, space, page),
            Some(Signed::HeapError) => self.read_bundled_errors(tid, space),
            Some(Signed::Sampled {
                address,
                size_bytes,
            }) => {
                vec![EventKind::BlockSampled(SampledBlock {
                    address: Address(address),
                    size_bytes,
                    interval_bytes: self.sample_interval(space),
                })]
            }
            Some(Signed::SampleFreed { address }) => vec![EventKind::SampleFreed {
                address: Address(address),
            }],
            Some(Signed::Call(_)) if changed_memory(finished) => {
                self.read_bundled_at_call(tid, space)
            }
            Some(Signed::Call(_)) => Vec::new(),
        }
    }

    /// Mean number of requested bytes between two samples of an address space's allocator; 0 when not known.
    fn sample_interval(&self, space: SpaceId) -> u64 {
        self.tracees
            .spaces
            .get(&space)
            .and_then(|space| space.bundled.setup.as_ref())
            .map_or(0, |setup| setup.sample_interval_bytes)
    }

    /// Whether what the allocator tells is to be recorded with the stack that it comes from.
    pub(super) fn wants_stack_of(&self, space: SpaceId, kind: &EventKind) -> bool {
        match kind {
            EventKind::HeapError(_) | EventKind::BlockSampled(_) => true,
            // Where a block was freed is of use only if that of every block is known.
            EventKind::SampleFreed { .. } => self.sample_interval(space) == EVERY_BLOCK,
            _ => false,
        }
    }

    /// A page is said to be at this address.
    fn page_found(&mut self, tid: u32, space: SpaceId, page: u64) -> Vec<EventKind> {
        let Some(bundled) = self.bundled(space) else {
            return Vec::new();
        };
        let mut reader = match bundled.reader.take() {
            Some(known) if known.page() == page => known,
            _ => Reader::at(page),
        };
        match reader.read(tid) {
            Ok(figures) => {
                let setup = figures.setup(&reader);
                let errors = reader.new_errors(&figures);
                let is_news = bundled.setup.as_ref() != Some(&setup);
                bundled.reader = Some(reader);
                bundled.setup = Some(setup.clone());
                bundled.awaited = false;
                is_news
                    .then_some(EventKind::AllocatorFound(setup))
                    .into_iter()
                    .chain(errors.into_iter().map(EventKind::HeapError))
                    .collect()
            }
            Err(error) => unreadable(bundled, error),
        }
    }

    /// Looks for the page of a process that was not under trace when the allocator began.
    pub(super) fn look_for_page(&mut self, tid: u32, space: SpaceId, mappings: &[Mapping]) {
        if let Some(page) = find_page(mappings) {
            for kind in self.page_found(tid, space, page) {
                self.record(tid, space, kind);
            }
        }
    }

    fn read_bundled_errors(&mut self, tid: u32, space: SpaceId) -> Vec<EventKind> {
        let mut told = self.read_bundled(tid, space, ReadingMoment::Call, true);
        // Recording an error is no memory call.
        told.retain(|kind| !matches!(kind, EventKind::AllocatorRead(_)));
        told
    }

    fn read_bundled_at_call(&mut self, tid: u32, space: SpaceId) -> Vec<EventKind> {
        let now = self.now();
        let is_too_soon = self.bundled(space).is_some_and(|bundled| {
            bundled
                .reader
                .as_ref()
                .is_some_and(|reader| reader.caches() > MANY_CACHES)
                && now.0.saturating_sub(bundled.last_read.0) < MANY_CACHES_PAUSE
        });
        if is_too_soon {
            Vec::new()
        } else {
            self.read_bundled(tid, space, ReadingMoment::Call, true)
        }
    }

    /// Reads the figures through thread `tid`, which `stands_still` or not.
    pub(super) fn read_bundled(
        &mut self,
        tid: u32,
        space: SpaceId,
        moment: ReadingMoment,
        stands_still: bool,
    ) -> Vec<EventKind> {
        let now = self.now();
        let known = self
            .bundled(space)
            .is_some_and(|bundled| bundled.reader.is_some());
        if !known {
            return Vec::new();
        }
        let still = self.is_still(space, stands_still.then_some(tid));
        let Some(bundled) = self.bundled(space) else {
            return Vec::new();
        };
        let Some(mut reader) = bundled.reader.take() else {
            return Vec::new();
        };
        match reader.read(tid) {
            Ok(figures) => {
                let errors = reader.new_errors(&figures);
                bundled.reader = Some(reader);
                bundled.last_read = now;
                let reading = figures.reading(moment, still);
                errors
                    .into_iter()
                    .map(EventKind::HeapError)
                    .chain([EventKind::AllocatorRead(Box::new(reading))])
                    .collect()
            }
            Err(ReadError::Gone) => {
                // This thread has no memory any more; others may.
                bundled.reader = Some(reader);
                Vec::new()
            }
            Err(error) => unreadable(bundled, error),
        }
    }

    /// Reads the figures and tells them.
    pub(super) fn tell_bundled(
        &mut self,
        tid: u32,
        space: SpaceId,
        moment: ReadingMoment,
        stands_still: bool,
    ) {
        for kind in self.read_bundled(tid, space, moment, stands_still) {
            self.record(tid, space, kind);
        }
    }

    /// Looks through the heap of a program that is about to end, if none of its threads runs any more.
    pub(super) fn walk_bundled(&mut self, tid: u32, space: SpaceId) {
        if !self.is_still(space, Some(tid)) {
            return;
        }
        let searches = self.options.leaks;
        let Some(reader) = self
            .bundled(space)
            .and_then(|bundled| bundled.reader.as_mut())
        else {
            return;
        };
        let Ok(figures) = reader.read(tid) else {
            return;
        };
        let mappings = mapping::read(tid).unwrap_or_default();
        let places = private_memory(&mappings);
        let limits = if searches {
            leaks::limits()
        } else {
            Limits::default()
        };
        let walk = Reader::walk(tid, &figures, &places, limits);
        let records = reader.records();
        let leaks =
            searches.then(|| Box::new(self.seek_leaks(tid, space, &mappings, &walk, records)));
        for kind in seen_in_heap(&walk, leaks) {
            self.record(tid, space, kind);
        }
    }

    /// The figures of a program that thread `tid` may be about to replace; none if another process uses its memory,
    /// which then stays.
    pub(super) fn read_bundled_before_exec(&mut self, tid: u32) -> Vec<EventKind> {
        let Some((pid, process)) = self.tracees.process_of(tid) else {
            return Vec::new();
        };
        let space = process.space;
        if self.tracees.is_shared(space, pid) {
            return Vec::new();
        }
        self.read_bundled(tid, space, ReadingMoment::Exec, true)
    }

    /// An address space ends. Tells why the allocator has not come, if it was asked for and has not.
    pub(super) fn tell_if_bundled_is_missing(&mut self, tid: u32, space: SpaceId) {
        let is_missing = self
            .bundled(space)
            .is_some_and(|bundled| bundled.awaited && bundled.absence.is_none());
        let Some(library) = self.library.as_ref().filter(|_| is_missing) else {
            return;
        };
        let mappings = mapping::read(tid)
            .ok()
            .filter(|mappings| !mappings.is_empty());
        let unexplained = unexplained(mappings.as_deref(), library.path());
        self.miss_bundled(tid, space, unexplained);
    }

    /// As [`Self::tell_if_bundled_is_missing`], of a program that was replaced, and of which nothing can be read.
    pub(super) fn tell_if_bundled_was_missing(&mut self, tid: u32, space: SpaceId) {
        let why = absence(
            AbsenceReason::NotBegun,
            "the program was replaced by another before the bundled malloc began",
        );
        self.miss_bundled(tid, space, why);
    }

    fn miss_bundled(&mut self, tid: u32, space: SpaceId, unexplained: AllocatorAbsence) {
        let Some(bundled) = self
            .bundled(space)
            .filter(|bundled| bundled.awaited && bundled.absence.is_none())
        else {
            return;
        };
        let why = bundled.doubt.take().unwrap_or(unexplained);
        bundled.absence = Some(why.clone());
        self.record(tid, space, EventKind::AllocatorAbsent(why));
    }

    /// Whether no thread of an address space runs its program; `standing` is known not to.
    pub(super) fn is_still(&self, space: SpaceId, standing: Option<u32>) -> bool {
        !self.tracees.threads.iter().any(|(tid, tracee)| {
            let stands = Some(*tid) == standing || tracee.ending || tracee.held.is_some();
            !stands
                && self
                    .tracees
                    .processes
                    .get(&tracee.pid)
                    .is_some_and(|process| process.space == space)
        })
    }
}

/// Where a heap may have mapped memory.
fn private_memory(mappings: &[Mapping]) -> Vec<(u64, u64)> {
    mappings
        .iter()
        .filter(|mapping| mapping.kind() == MappingKind::Anonymous)
        .filter(|mapping| mapping.permissions.read && mapping.permissions.write)
        .map(|mapping| (mapping.start.0, mapping.end.0))
        .collect()
}

/// What a walk through the heap tells: errors first.
fn seen_in_heap(walk: &Walk, leaks: Option<Box<LeakSearch>>) -> Vec<EventKind> {
    let errors = walk.damage.iter().map(|damage| {
        EventKind::HeapError(HeapError {
            number: None,
            kind: damage.kind.into(),
            found_by: FoundBy::Exit,
            address: Address(damage.address),
            size_bytes: damage.size,
            changed: Some(Address(damage.changed)),
            tid: None,
        })
    });
    let stopped = walk
        .stopped
        .map(|stop| stop.to_string())
        .or_else(|| walk.more_damage.then(|| "it is full of errors".to_owned()))
        .or_else(|| {
            (walk.arenas_that_disagree > 0)
                .then(|| "its chunks are not what its counters say".to_owned())
        });
    let walked = EventKind::HeapWalked(HeapWalk {
        complete: stopped.is_none(),
        stopped,
        live_blocks: walk.live_blocks,
        live_bytes: walk.live_bytes,
        largest: walk
            .largest
            .iter()
            .map(|size| SizeCount {
                size_bytes: size.bytes,
                blocks: size.blocks,
            })
            .collect(),
        leaks,
    });
    errors.chain([walked]).collect()
}

/// The figures could not be read, and will not be again.
fn unreadable(bundled: &mut Bundled, error: ReadError) -> Vec<EventKind> {
    bundled.awaited = false;
    let Some(why) = read_failure(error).filter(|why| bundled.absence.as_ref() != Some(why)) else {
        return Vec::new();
    };
    bundled.absence = Some(why.clone());
    vec![EventKind::AllocatorAbsent(why)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_known_by_its_name_wherever_it_is() {
        let maps = b"1000-2000 rw-p 00000000 00:00 0 [heap]\n\
            5000-6000 rw-p 00000000 00:01 77 /memfd:breaktrace-stats-not (deleted)\n\
            7000-8000 rw-p 00000000 00:01 78 /memfd:breaktrace-stats (deleted)\n";
        assert_eq!(find_page(&mapping::parse(maps)), Some(0x7000));
        assert_eq!(find_page(&mapping::parse(&maps[..39])), None);
    }

    #[test]
    fn an_environment_names_the_library_or_does_not() {
        let library = Path::new("/run/x/lib.so");
        assert!(names_library(
            b"A=1\0LD_PRELOAD=/run/x/lib.so:b.so\0",
            library
        ));
        assert!(!names_library(b"A=1\0LD_PRELOAD=b.so\0", library));
        assert!(!names_library(b"XLD_PRELOAD=/run/x/lib.so\0", library));
        assert!(!names_library(b"", library));
    }

    #[test]
    fn only_glibcs_dynamic_linkers_are_expected_to_work() {
        assert!(is_of_glibc("/lib64/ld-linux-x86-64.so.2"));
        assert!(is_of_glibc("/nix/store/x/lib/ld-linux-aarch64.so.1"));
        assert!(!is_of_glibc("/lib/ld-musl-x86_64.so.1"));
        assert!(!is_of_glibc("/system/bin/linker64"));
    }

    #[test]
    fn another_version_is_named_together_with_ours() {
        let error = ReadError::OtherVersion {
            version: "9.8.7".into(),
            layout: 42,
        };
        let told = read_failure(error).unwrap();
        assert_eq!(told.reason, AbsenceReason::OtherVersion);
        for word in ["9.8.7", "42", env!("CARGO_PKG_VERSION")] {
            assert!(told.message.contains(word), "{}", told.message);
        }
    }

    #[test]
    fn a_library_that_is_mapped_was_loaded() {
        let maps = mapping::parse(b"1000-2000 r-xp 00000000 00:01 5 /run/x/lib.so\n");
        let library = Path::new("/run/x/lib.so");
        let reason = |mappings| unexplained(mappings, library).reason;
        assert_eq!(reason(Some(&maps[..])), AbsenceReason::NotBegun);
        assert_eq!(reason(Some(&[])), AbsenceReason::Unknown);
        assert_eq!(reason(None), AbsenceReason::NotBegun);
    }
}
