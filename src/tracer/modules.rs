//! What code lies where: the programs and libraries of an address space, as unwinding needs them.
//!
//! A file is read once for all processes that map it: its unwind sections only, into memory of ours, since a mapped file
//! that somebody shortens would kill us. Nothing in a file is believed: one that makes no sense costs its frames.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use framehop::ExplicitModuleSectionInfo;
use framehop::MayAllocateDuringUnwind;
use framehop::Unwinder;
use framehop::UnwinderNative;
use object::Object;
use object::ObjectSection;
use object::ObjectSegment;
use object::ReadCache;
use object::ReadRef;
use object::read::elf::ElfFile64;

use super::cpython;
use super::sys;
use crate::event::FileIdentity;
use crate::event::Module;
use crate::event::ModuleId;
use crate::event::ModuleKind;
use crate::mapping::Mapping;
use crate::units::Address;

/// Largest section that is read, in bytes; the largest programs have some 100 MB of unwind information.
const LARGEST_SECTION: u64 = 256 << 20;
/// Largest image of a vDSO; it has two to five pages.
const LARGEST_VDSO: u64 = 1 << 20;

type Bytes = Arc<[u8]>;
type SpaceUnwinder = UnwinderNative<Bytes, MayAllocateDuringUnwind>;

/// The unwind information of an ELF image.
#[derive(Clone, Debug, Default)]
struct Image {
    build_id: Option<String>,
    /// The segments with code.
    code: Vec<Segment>,
    text: Option<Range<u64>>,
    got: Option<Range<u64>>,
    eh_frame: Option<(Range<u64>, Bytes)>,
    eh_frame_hdr: Option<(Range<u64>, Bytes)>,
    debug_frame: Option<Bytes>,
    /// If it is a CPython interpreter, what there is to know of it.
    python: Option<cpython::Symbols>,
}

/// A segment: its place in the file, and its address as linked.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    file_bytes: u64,
    address: u64,
}

impl Image {
    /// Reads an ELF image; one that is damaged has what could be read.
    fn parse<'data>(data: impl ReadRef<'data>) -> Option<Self> {
        let elf = ElfFile64::<object::Endianness, _>::parse(data).ok()?;
        let section = |name: &str| {
            elf.section_by_name(name)
                .filter(|section| section.size() <= LARGEST_SECTION)
        };
        let range = |name: &str| {
            section(name)
                .map(|section| section.address()..section.address().saturating_add(section.size()))
        };
        let contents = |name: &str| {
            let data = section(name)?.data().ok()?;
            (!data.is_empty()).then(|| Bytes::from(data))
        };
        Some(Self {
            build_id: elf.build_id().ok().flatten().map(hex),
            code: elf
                .segments()
                .filter(|segment| {
                    matches!(segment.flags(), object::SegmentFlags::Elf { p_flags, .. } if p_flags.0 & object::elf::PF_X.0 != 0)
                })
                .map(|segment| {
                    let (offset, file_bytes) = segment.file_range();
                    Segment {
                        offset,
                        file_bytes,
                        address: segment.address(),
                    }
                })
                .collect(),
            text: range(".text"),
            got: range(".got"),
            eh_frame: range(".eh_frame").zip(contents(".eh_frame")),
            eh_frame_hdr: range(".eh_frame_hdr").zip(contents(".eh_frame_hdr")),
            debug_frame: contents(".debug_frame"),
            python: cpython::Symbols::find(&elf),
        })
    }

    /// By how much addresses differ from those that were linked, when the mapping at `start` begins at `offset`.
    fn bias(&self, start: u64, offset: u64) -> Option<u64> {
        let page_size = super::proc::page_size();
        // A mapping begins with the page in which its segment begins.
        let segment = self.code.iter().find(|segment| {
            offset < segment.offset.saturating_add(segment.file_bytes)
                && segment.offset - segment.offset % page_size <= offset
        })?;
        Some(
            start
                .wrapping_sub(offset)
                .wrapping_add(segment.offset)
                .wrapping_sub(segment.address),
        )
    }

    /// The place in the file of a linked address in code.
    fn offset_in_file(&self, address: u64) -> Option<u64> {
        self.code.iter().find_map(|segment| {
            let from_start = address.checked_sub(segment.address)?;
            (from_start < segment.file_bytes).then(|| segment.offset + from_start)
        })
    }

    fn sections(&self) -> ExplicitModuleSectionInfo<Bytes> {
        let pair = |pair: &Option<(Range<u64>, Bytes)>| pair.clone().unzip();
        let (eh_frame_svma, eh_frame) = pair(&self.eh_frame);
        let (eh_frame_hdr_svma, eh_frame_hdr) = pair(&self.eh_frame_hdr);
        ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: self.text.clone(),
            got_svma: self.got.clone(),
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            debug_frame: self.debug_frame.clone(),
            ..ExplicitModuleSectionInfo::default()
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A module that has a number.
#[derive(Debug)]
struct Known {
    module: Module,
    image: Option<Arc<Image>>,
    /// It has been handed out by [`Modules::announce`].
    announced: bool,
}

/// All modules of a recording.
#[derive(Debug, Default)]
pub(super) struct Modules {
    known: Vec<Known>,
    by_file: HashMap<(String, FileIdentity), ModuleId>,
    vdso: HashMap<Vec<u8>, ModuleId>,
    unknown: Option<ModuleId>,
    /// How often a module was added to an unwinder, or taken from one.
    pub(super) changes: u64,
}

impl Modules {
    fn add(&mut self, module: Module, image: Option<Image>) -> ModuleId {
        let id = ModuleId(u32::try_from(self.known.len() + 1).unwrap_or(u32::MAX));
        self.known.push(Known {
            module: Module { id, ..module },
            image: image.map(Arc::new),
            announced: false,
        });
        id
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
    fn file(&mut self, tid: u32, mapping: &Mapping, name: &str) -> Option<ModuleId> {
        let path = name.strip_suffix(" (deleted)").unwrap_or(name);
        let file = open_mapped(tid, mapping, path)?;
        let metadata = file.metadata().ok()?;
        let identity = FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified_ns: metadata
                .mtime()
                .saturating_mul(1_000_000_000)
                .saturating_add(metadata.mtime_nsec()),
            bytes: metadata.len(),
        };
        let key = (path.to_owned(), identity);
        if let Some(id) = self.by_file.get(&key) {
            return Some(*id);
        }
        let image = Image::parse(&ReadCache::new(file));
        let module = Module {
            id: ModuleId(0),
            kind: ModuleKind::File,
            path: path.to_owned(),
            build_id: image.as_ref().and_then(|image| image.build_id.clone()),
            file: Some(identity),
        };
        let id = self.add(module, image);
        self.by_file.insert(key, id);
        Some(id)
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
        let image = Image::parse(bytes.as_slice());
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

    /// Generated code of one address space.
    fn generated(&mut self, pid: u32) -> ModuleId {
        let module = Module {
            id: ModuleId(0),
            kind: ModuleKind::Generated,
            path: format!("/tmp/perf-{pid}.map"),
            build_id: None,
            file: None,
        };
        self.add(module, None)
    }
}

/// Opens the file behind a mapping: the very one, whatever has become of its name.
fn open_mapped(tid: u32, mapping: &Mapping, path: &str) -> Option<File> {
    // Needs CAP_CHECKPOINT_RESTORE (proc(5)).
    let by_range = format!(
        "/proc/{tid}/map_files/{:x}-{:x}",
        mapping.start.0, mapping.end.0
    );
    if let Ok(file) = File::open(by_range) {
        return Some(file);
    }
    // The root of the process's own mount namespace.
    let file = File::open(format!("/proc/{tid}/root{path}")).ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && metadata.ino() == mapping.inode).then_some(file)
}

/// A stretch of code in an address space.
#[derive(Clone, Copy, Debug)]
struct Loaded {
    end: u64,
    module: ModuleId,
    /// What is added to an address to get the place in the module.
    to_place: u64,
    /// Unwind information for it is in the unwinder.
    has_unwinder: bool,
}

/// Where an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) module: ModuleId,
    pub(super) offset: Address,
}

/// The code of one address space.
#[derive(Clone, Default)]
pub(super) struct Code {
    by_start: BTreeMap<u64, Loaded>,
    pub(super) unwinder: SpaceUnwinder,
    generated: Option<ModuleId>,
    pub(super) python: cpython::Space,
    is_current: bool,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The unwinder holds whole files.
        f.debug_struct("Code")
            .field("stretches", &self.by_start.len())
            .field("is_current", &self.is_current)
            .finish_non_exhaustive()
    }
}

impl Code {
    /// The mappings have changed in a way that may concern code.
    pub(super) fn outdated(&mut self) {
        self.is_current = false;
    }

    /// Whether a range has code in it.
    pub(super) fn has_any_in(&self, start: u64, end: u64) -> bool {
        self.by_start
            .range(..end)
            .next_back()
            .is_some_and(|(_, loaded)| loaded.end > start)
    }

    /// Reads the mappings, if they have changed since.
    pub(super) fn bring_up_to_date(&mut self, tid: u32, pid: u32, modules: &mut Modules) {
        if std::mem::replace(&mut self.is_current, true) {
            return;
        }
        let Ok(mappings) = crate::mapping::read(tid) else {
            return;
        };
        let mut now = BTreeMap::new();
        for mapping in mappings
            .iter()
            .filter(|mapping| mapping.permissions.execute)
        {
            let (start, end) = (mapping.start.0, mapping.end.0);
            let known = self.by_start.remove(&start).filter(|known| {
                known.end == end
                    && modules
                        .get(known.module)
                        .is_some_and(|module| is_still(&module.module, mapping))
            });
            let loaded = match known {
                Some(known) => Some(known),
                None => {
                    let loaded = self.load(tid, pid, mapping, modules);
                    modules.changes += 1;
                    loaded
                }
            };
            if let Some(loaded) = loaded {
                now.insert(start, loaded);
            }
        }
        let gone = std::mem::replace(&mut self.by_start, now);
        for (start, loaded) in gone {
            if loaded.has_unwinder && !self.by_start.contains_key(&start) {
                self.unwinder.remove_module(start);
                modules.changes += 1;
            }
        }
    }

    fn load(
        &mut self,
        tid: u32,
        pid: u32,
        mapping: &Mapping,
        modules: &mut Modules,
    ) -> Option<Loaded> {
        let (start, end) = (mapping.start.0, mapping.end.0);
        // What was here before, if anything.
        self.unwinder.remove_module(start);
        let generated = |code: &mut Self, modules: &mut Modules| {
            *code.generated.get_or_insert_with(|| modules.generated(pid))
        };
        let name = mapping.name.as_deref();
        let module = match name {
            Some("[vdso]") => modules.vdso(tid, mapping)?,
            // The legacy page of three calls, at the same place in every program; it has no image.
            Some("[vsyscall]") => return None,
            Some(name) if name.starts_with('/') && mapping.inode != 0 => {
                modules.file(tid, mapping, name)?
            }
            _ => generated(self, modules),
        };
        let known = modules.get(module)?;
        let is_generated = known.module.kind == ModuleKind::Generated;
        let mut has_unwinder = false;
        if let Some(image) = &known.image
            && let Some(bias) = image.bias(start, mapping.offset)
        {
            self.unwinder.add_module(framehop::Module::new(
                String::new(),
                start..end,
                bias,
                image.sections(),
            ));
            if let Some(symbols) = &image.python {
                self.python
                    .found(module, &known.module.path, bias, symbols, |address| {
                        image.offset_in_file(address)
                    });
            }
            has_unwinder = true;
        }
        Some(Loaded {
            end,
            module,
            to_place: if is_generated {
                0
            } else {
                mapping.offset.wrapping_sub(start)
            },
            has_unwinder,
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

    fn find(&self, address: u64) -> Option<&Loaded> {
        self.by_start
            .range(..=address)
            .next_back()
            .map(|(_, loaded)| loaded)
            .filter(|loaded| address < loaded.end)
    }
}

/// Whether a mapping at the place of a module still is that module.
fn is_still(module: &Module, mapping: &Mapping) -> bool {
    match module.kind {
        ModuleKind::File => {
            mapping
                .name
                .as_deref()
                .is_some_and(|name| name.strip_suffix(" (deleted)").unwrap_or(name) == module.path)
                && module.file.is_some_and(|file| file.inode == mapping.inode)
        }
        ModuleKind::Vdso => mapping.name.as_deref() == Some("[vdso]"),
        ModuleKind::Generated | ModuleKind::Unknown => mapping.inode == 0,
    }
}
