//! What code lies where: the programs and libraries of an address space.
//!
//! A file is read once for all processes that map it, and what is known of an address space is shared with forked children
//! until one of the two changes.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;

use object::ReadCache;
use object::ReadRef;

use super::cpython;
use super::image::Image;
use super::sys;
use crate::event::FileIdentity;
use crate::event::Module;
use crate::event::ModuleId;
use crate::event::ModuleKind;
use crate::mapping::Mapping;
use crate::units::Address;

/// Largest image of a vDSO; it has two to five pages.
const LARGEST_VDSO: u64 = 1 << 20;
/// Most bytes that are read of one file.
const MOST_READ: u64 = 256 << 20;
/// Most bytes of unwind information that are held; what comes later is done without.
const MOST_HELD: usize = 512 << 20;
/// Most places in generated code that are given names.
const MOST_PLACES: usize = 1 << 16;
/// Most modules of a recording.
const MOST_MODULES: usize = 1 << 16;

/// A module that has a number.
#[derive(Debug)]
struct Known {
    module: Module,
    image: Option<Rc<Image>>,
    /// Work with its unwind information failed in a way that must not happen.
    is_broken: bool,
    /// It has been handed out by [`Modules::announce`].
    announced: bool,
    /// Of generated code, where stacks have frames in it; some may be there twice.
    places: Vec<u64>,
    /// Of generated code, the file of the process that it was forked from.
    inherited: Option<String>,
}

/// All modules of a recording.
#[derive(Debug, Default)]
pub(super) struct Modules {
    known: Vec<Known>,
    by_file: HashMap<(String, FileIdentity), ModuleId>,
    vdso: HashMap<Vec<u8>, ModuleId>,
    /// Modules known by what a program has of them in memory, by path, inode and build ID.
    by_memory: HashMap<(String, u64, Option<String>), ModuleId>,
    unknown: Option<ModuleId>,
    bytes_held: usize,
    /// The first thing that went wrong, until it is told.
    problem: Option<String>,
    problem_told: bool,
}

impl Modules {
    fn add(&mut self, module: Module, image: Option<Image>) -> ModuleId {
        let id = ModuleId(u32::try_from(self.known.len() + 1).unwrap_or(u32::MAX));
        let bytes = image.as_ref().map_or(0, Image::bytes);
        let fits = self.bytes_held.saturating_add(bytes) <= MOST_HELD;
        if fits {
            self.bytes_held += bytes;
        } else {
            self.complain(format!(
                "the programs and libraries have more than {} MiB of unwind information: stacks may end at the frames of {}",
                MOST_HELD >> 20,
                module.path
            ));
        }
        self.known.push(Known {
            module: Module { id, ..module },
            image: image.filter(|_| fits).map(Rc::new),
            is_broken: false,
            announced: false,
            places: Vec::new(),
            inherited: None,
        });
        id
    }

    fn complain(&mut self, problem: String) {
        if !self.problem_told {
            self.problem_told = true;
            self.problem = Some(problem);
        }
    }

    /// What is to be said of stacks that cannot be complete; once.
    pub(super) fn take_problem(&mut self) -> Option<String> {
        self.problem.take()
    }

    /// Work with the unwind information of a module failed: it is not used any more.
    pub(super) fn give_up(&mut self, id: Option<ModuleId>) {
        let known = id
            .and_then(|id| (id.0 as usize).checked_sub(1))
            .and_then(|index| self.known.get_mut(index));
        let path = match known {
            Some(known) => {
                known.is_broken = true;
                known.module.path.clone()
            }
            None => "a file".to_owned(),
        };
        self.complain(format!(
            "the unwind information of {path} is damaged: stacks may end at its frames"
        ));
    }

    /// Whether the unwind information of a module is not to be used.
    pub(super) fn is_broken(&self, id: ModuleId) -> bool {
        self.get(id).is_none_or(|known| known.is_broken)
    }

    fn get(&self, id: ModuleId) -> Option<&Known> {
        self.known.get((id.0 as usize).checked_sub(1)?)
    }

    /// The module, when it is asked for the first time.
    pub(super) fn announce(&mut self, id: ModuleId) -> Option<Module> {
        let known = self.known.get_mut((id.0 as usize).checked_sub(1)?)?;
        (!std::mem::replace(&mut known.announced, true)).then(|| known.module.clone())
    }

    /// The file behind a mapping of thread `tid`.
    fn file(
        &mut self,
        tid: u32,
        mapping: &Mapping,
        all: &[Mapping],
        name: &str,
    ) -> Option<ModuleId> {
        let path = name.strip_suffix(" (deleted)").unwrap_or(name);
        let Some((file, identity)) = open_mapped(tid, mapping, path) else {
            return self.file_in_memory(tid, mapping, all, path, None);
        };
        let key = (path.to_owned(), identity);
        if let Some(id) = self.by_file.get(&key) {
            return Some(*id);
        }
        let image = self.guarded(path, || {
            let cache = ReadCache::new(file);
            let file = Limited {
                file: &cache,
                left: Cell::new(MOST_READ),
            };
            Image::parse(&file)
        });
        let Some(image) = image else {
            let id = self.file_in_memory(tid, mapping, all, path, Some(identity))?;
            self.by_file.insert(key, id);
            return Some(id);
        };
        let module = Module {
            id: ModuleId(0),
            kind: ModuleKind::File,
            path: path.to_owned(),
            build_id: image.build_id.clone(),
            file: Some(identity),
        };
        let id = self.add(module, Some(image));
        self.by_file.insert(key, id);
        Some(id)
    }

    /// A file that cannot be read, or is not what it was: what the program has of it in memory.
    fn file_in_memory(
        &mut self,
        tid: u32,
        mapping: &Mapping,
        all: &[Mapping],
        path: &str,
        identity: Option<FileIdentity>,
    ) -> Option<ModuleId> {
        let first = all.iter().rev().find(|other| {
            other.start <= mapping.start
                && other.offset == 0
                && other.inode == mapping.inode
                && other.name == mapping.name
        });
        let image = first.and_then(|first| {
            self.guarded(path, || {
                Image::in_memory(
                    first.start.0,
                    |address, length| {
                        let mut bytes = vec![0; length];
                        let read = sys::read_memory(tid, address, &mut bytes).ok()?;
                        bytes.truncate(read);
                        Some(bytes)
                    },
                    |address| {
                        all.iter()
                            .find(|other| (other.start.0..other.end.0).contains(&address))
                            .map(|other| other.end.0)
                    },
                )
            })
        });
        let build_id = image.as_ref().and_then(|image| image.build_id.clone());
        let key = (path.to_owned(), mapping.inode, build_id.clone());
        if let Some(id) = self.by_memory.get(&key) {
            return Some(*id);
        }
        let module = Module {
            id: ModuleId(0),
            kind: ModuleKind::File,
            path: path.to_owned(),
            build_id,
            file: identity,
        };
        let id = self.add(module, image);
        self.by_memory.insert(key, id);
        Some(id)
    }

    /// Reads an image; a panic over damaged contents costs the image.
    fn guarded(&mut self, path: &str, read: impl FnOnce() -> Option<Image>) -> Option<Image> {
        if self.known.len() >= MOST_MODULES {
            return None;
        }
        super::guard::run(read).unwrap_or_else(|_| {
            self.complain(format!(
                "{path} is no well-formed ELF file: stacks may end at its frames"
            ));
            None
        })
    }

    /// The vDSO of thread `tid`.
    fn vdso(&mut self, tid: u32, mapping: &Mapping) -> Option<ModuleId> {
        let length = usize::try_from(mapping.bytes().min(LARGEST_VDSO)).ok()?;
        let mut bytes = vec![0; length];
        let read = sys::read_memory(tid, mapping.start.0, &mut bytes).ok()?;
        bytes.truncate(read);
        if let Some(id) = self.vdso.get(&bytes) {
            return Some(*id);
        }
        let image = self.guarded("[vdso]", || Image::parse(bytes.as_slice()));
        let module = Module {
            id: ModuleId(0),
            kind: ModuleKind::Vdso,
            path: "[vdso]".to_owned(),
            build_id: image.as_ref().and_then(|image| image.build_id.clone()),
            file: None,
        };
        let id = self.add(module, image);
        self.vdso.insert(bytes, id);
        Some(id)
    }

    /// Stands for all places where no code is known.
    fn unknown(&mut self) -> ModuleId {
        if let Some(id) = self.unknown {
            return id;
        }
        let module = Module {
            id: ModuleId(0),
            kind: ModuleKind::Unknown,
            path: String::new(),
            build_id: None,
            file: None,
        };
        let id = self.add(module, None);
        self.unknown = Some(id);
        id
    }

    /// Generated code of the address space of process `pid`, which may have inherited other such code by fork.
    fn generated(&mut self, pid: u32, inherited: Option<ModuleId>) -> ModuleId {
        let inherited = inherited
            .and_then(|id| self.get(id))
            .map(|known| known.module.path.clone());
        let module = Module {
            id: ModuleId(0),
            kind: ModuleKind::Generated,
            path: super::perf_map::path(pid),
            build_id: None,
            file: None,
        };
        let id = self.add(module, None);
        if let Some(known) = self.known.last_mut() {
            known.inherited = inherited;
        }
        id
    }

    /// Notes a frame, if it is in generated code.
    pub(super) fn note_place(&mut self, id: ModuleId, place: Address) {
        let known = (id.0 as usize)
            .checked_sub(1)
            .and_then(|index| self.known.get_mut(index));
        if let Some(known) = known
            && known.module.kind == ModuleKind::Generated
        {
            if known.places.len() >= MOST_PLACES {
                known.places.sort_unstable();
                known.places.dedup();
            }
            if known.places.len() < MOST_PLACES {
                known.places.push(place.0);
            }
        }
    }

    /// Of generated code that has frames: the file that may have its names, that of the process it was forked from, and
    /// where the frames are.
    pub(super) fn in_generated_code(&self, id: ModuleId) -> Option<(&str, Option<&str>, &[u64])> {
        let known = self.get(id).filter(|known| !known.places.is_empty())?;
        Some((
            &known.module.path,
            known.inherited.as_deref(),
            &known.places,
        ))
    }
}

/// Opens the file behind a mapping: the very one, whatever has become of its name.
pub(super) fn open_mapped(tid: u32, mapping: &Mapping, path: &str) -> Option<(File, FileIdentity)> {
    // Needs CAP_CHECKPOINT_RESTORE (proc(5)).
    let by_range = format!(
        "/proc/{tid}/map_files/{:x}-{:x}",
        mapping.start.0, mapping.end.0
    );
    // The root of the process's own mount namespace.
    let by_path = format!("/proc/{tid}/root{path}");
    [by_range, by_path].iter().find_map(|path| {
        // Looked at first: to open a device can have effects.
        if !std::fs::metadata(path).ok()?.is_file() {
            return None;
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .ok()?;
        let metadata = file.metadata().ok()?;
        let is_it = metadata.is_file() && metadata.ino() == mapping.inode;
        let identity = FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified_ns: metadata
                .mtime()
                .saturating_mul(1_000_000_000)
                .saturating_add(metadata.mtime_nsec()),
            bytes: metadata.len(),
        };
        is_it.then_some((file, identity))
    })
}

/// A file of which not too much is read, whatever its headers say.
struct Limited<'a> {
    file: &'a ReadCache<File>,
    left: Cell<u64>,
}

impl<'a> ReadRef<'a> for &'a Limited<'a> {
    fn len(self) -> Result<u64, ()> {
        self.file.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        let left = self.left.get().checked_sub(size).ok_or(())?;
        self.left.set(left);
        self.file.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(
        self,
        range: std::ops::Range<u64>,
        delimiter: u8,
    ) -> Result<&'a [u8], ()> {
        self.file.read_bytes_at_until(range, delimiter)
    }
}

/// A stretch of code in an address space.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    start: u64,
    end: u64,
    /// Where in its file it begins, and which file that is.
    offset: u64,
    inode: u64,
    pub(super) module: ModuleId,
    /// What is added to an address to get the place in the module.
    to_place: u64,
    pub(super) image: Option<Rc<Image>>,
    /// By how much addresses differ from those in the image.
    bias: u64,
}

impl Loaded {
    /// The address that the image has for one here.
    pub(super) fn linked(&self, address: u64) -> u64 {
        address.wrapping_sub(self.bias)
    }
}

/// Where an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) module: ModuleId,
    pub(super) offset: Address,
}

/// The code of one address space.
#[derive(Clone, Debug, Default)]
pub(super) struct Code {
    /// By address; shared with the address spaces that were copied from this one.
    stretches: Rc<Vec<Loaded>>,
    generated: Option<ModuleId>,
    /// What generated code was before a fork.
    inherited: Option<ModuleId>,
    pub(super) python: cpython::Space,
    is_current: bool,
}

impl Code {
    /// That of a forked child: the same, but for what it will generate.
    pub(super) fn forked(&self) -> Self {
        Self {
            stretches: Rc::clone(&self.stretches),
            generated: None,
            inherited: self.generated.or(self.inherited),
            python: self.python.clone(),
            is_current: self.is_current && self.generated.is_none(),
        }
    }

    /// The module that stands for generated code.
    pub(super) fn generated(&self) -> Option<ModuleId> {
        self.generated
    }

    /// The mappings have changed in a way that may concern code.
    pub(super) fn outdated(&mut self) {
        self.is_current = false;
    }

    /// Whether a range has code in it.
    pub(super) fn has_any_in(&self, start: u64, end: u64) -> bool {
        let after = self
            .stretches
            .partition_point(|stretch| stretch.start < end);
        after
            .checked_sub(1)
            .and_then(|last| self.stretches.get(last))
            .is_some_and(|stretch| stretch.end > start)
    }

    /// Reads the mappings, if they have changed since.
    pub(super) fn bring_up_to_date(&mut self, tid: u32, pid: u32, modules: &mut Modules) {
        if std::mem::replace(&mut self.is_current, true) {
            return;
        }
        let Ok(mappings) = crate::mapping::read(tid) else {
            return;
        };
        let mut now = Vec::with_capacity(self.stretches.len() + 4);
        for mapping in mappings
            .iter()
            .filter(|mapping| mapping.permissions.execute)
        {
            let known = self
                .find(mapping.start.0)
                .filter(|known| is_still(known, mapping, modules, self.generated))
                .cloned();
            now.extend(known.or_else(|| self.load(tid, pid, mapping, &mappings, modules)));
        }
        self.stretches = Rc::new(now);
    }

    fn load(
        &mut self,
        tid: u32,
        pid: u32,
        mapping: &Mapping,
        all: &[Mapping],
        modules: &mut Modules,
    ) -> Option<Loaded> {
        let start = mapping.start.0;
        let module = match mapping.name.as_deref() {
            Some("[vdso]") => modules.vdso(tid, mapping)?,
            // The legacy page of three calls, at the same place in every program; it has no image.
            Some("[vsyscall]") => return None,
            Some(name) if name.starts_with('/') && mapping.inode != 0 => {
                modules.file(tid, mapping, all, name)?
            }
            _ => {
                let inherited = self.inherited;
                *self
                    .generated
                    .get_or_insert_with(|| modules.generated(pid, inherited))
            }
        };
        let known = modules.get(module)?;
        let is_generated = known.module.kind == ModuleKind::Generated;
        let bias = known
            .image
            .as_ref()
            .and_then(|image| image.bias(start, mapping.offset, super::proc::page_size()));
        if let (Some(image), Some(bias)) = (&known.image, bias)
            && let Some(symbols) = &image.python
        {
            self.python
                .found(module, &known.module.path, bias, symbols, |address| {
                    image.offset_in_file(address)
                });
        }
        Some(Loaded {
            start,
            end: mapping.end.0,
            offset: mapping.offset,
            inode: mapping.inode,
            module,
            to_place: if is_generated {
                0
            } else {
                mapping.offset.wrapping_sub(start)
            },
            image: known.image.clone().filter(|_| bias.is_some()),
            bias: bias.unwrap_or(start),
        })
    }

    /// What lies at an address.
    pub(super) fn place(&self, address: u64, modules: &mut Modules) -> Place {
        match self.find(address) {
            Some(loaded) => Place {
                module: loaded.module,
                offset: Address(address.wrapping_add(loaded.to_place)),
            },
            None => Place {
                module: modules.unknown(),
                offset: Address(address),
            },
        }
    }

    /// The stretch that an address lies in.
    pub(super) fn find(&self, address: u64) -> Option<&Loaded> {
        let after = self
            .stretches
            .partition_point(|stretch| stretch.start <= address);
        self.stretches
            .get(after.checked_sub(1)?)
            .filter(|stretch| address < stretch.end)
    }

    /// An address without the signature that some arm64 processors put into its upper bits (pointer authentication).
    pub(super) fn without_signature(&self, address: u64) -> u64 {
        if cfg!(target_arch = "aarch64") {
            let highest = self.stretches.last().map_or(u64::MAX, |last| last.end);
            address & (u64::MAX >> highest.leading_zeros())
        } else {
            address
        }
    }
}

/// Whether a mapping at the place of a known stretch still is that.
fn is_still(
    known: &Loaded,
    mapping: &Mapping,
    modules: &Modules,
    generated: Option<ModuleId>,
) -> bool {
    let is_same = known.start == mapping.start.0
        && known.end == mapping.end.0
        && known.offset == mapping.offset
        && known.inode == mapping.inode;
    let Some(module) = modules.get(known.module).filter(|_| is_same) else {
        return false;
    };
    let name = mapping.name.as_deref();
    match module.module.kind {
        ModuleKind::File => name.is_some_and(|name| {
            name.strip_suffix(" (deleted)").unwrap_or(name) == module.module.path
        }),
        ModuleKind::Vdso => name == Some("[vdso]"),
        ModuleKind::Generated => Some(known.module) == generated && mapping.inode == 0,
        ModuleKind::Unknown => false,
    }
}
