//! Functions at places in a program or library: which file it is, which file has its debug information, and what they
//! say.
//!
//! All of this runs in a process of its own (see `worker`): nothing in these files is believed, and they are read by a
//! library that was not made for hostile ones.

use std::collections::HashSet;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use blazesym::symbolize::CodeInfo;
use blazesym::symbolize::Input;
use blazesym::symbolize::Sym;
use blazesym::symbolize::Symbolized;
use blazesym::symbolize::Symbolizer;
use blazesym::symbolize::source::Elf as ElfSource;
use blazesym::symbolize::source::Source;
use object::Object;
use object::ObjectSection;
use object::ReadCache;

use super::Found;
use super::Function;
use super::SymbolSource;
use super::SymbolState;
use super::names;
use super::names::Elf;
use super::obstacles;
use super::obstacles::Obstacle;
use crate::event::FileIdentity;
use crate::event::Module;
use crate::units::Address;
use crate::units::hex;

/// Where systems keep debug information (gdb, "Debugging Information in Separate Files").
const SYSTEM_DEBUG_FOLDER: &str = "/usr/lib/debug";
/// Most inlined functions that are told of one place.
const MOST_INLINED: usize = 128;
/// The largest debug link section: a file name and a checksum.
const LARGEST_LINK: u64 = 4096 + 8;

/// How a module is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// With its debug information.
    DebugInfo,
    /// Its symbol tables only: what remains when reading more has failed.
    Names,
}

/// The functions at these offsets of a file.
pub(super) fn look_up(
    module: &Module,
    places: &[Address],
    debug_folders: &[PathBuf],
    depth: Depth,
) -> Found {
    let nothing = |reason: String| Found::nothing(places.len(), reason);
    let folders = all_folders(debug_folders);
    let program = match find_program(module, &folders) {
        Ok(program) => program,
        Err(why) => return nothing(why),
    };
    let cache = ReadCache::new(program.file);
    let elf = match Elf::parse(&cache) {
        Ok(elf) => elf,
        Err(error) => return nothing(format!("it cannot be read as an ELF file: {error}")),
    };
    let addresses: Vec<Option<u64>> = places
        .iter()
        .map(|place| names::address_of(&elf, place.0))
        .collect();
    if addresses.iter().all(Option::is_none) {
        return nothing(
            "only its debug file is here, which does not tell where its code lies: \
             name the folder that has the program file itself with --debug-dir"
                .to_owned(),
        );
    }
    let mut found = Found {
        functions: vec![Vec::new(); places.len()],
        state: SymbolState::default(),
    };
    let mut trouble = None;
    if depth == Depth::DebugInfo
        && let Some(path) = debug_file(&elf, &program.path, module, &folders)
    {
        match read_debug_info(&path, &addresses, &folders) {
            Ok((functions, lacks)) => {
                found.functions = functions;
                found.state.source = SymbolSource::DebugInfo;
                found.state.reason = lacks;
            }
            Err(error) => trouble = Some(error),
        }
    }
    for (functions, name) in found
        .functions
        .iter_mut()
        .zip(names::names(&elf, &addresses))
    {
        if functions.is_empty() {
            functions.extend(name.map(names::only_a_name));
        }
    }
    if found.state.source != SymbolSource::DebugInfo {
        let is_named = found
            .functions
            .iter()
            .any(|functions| !functions.is_empty());
        found.state = SymbolState {
            source: if is_named {
                SymbolSource::Names
            } else {
                SymbolSource::None
            },
            reason: Some(match trouble {
                Some(error) => format!("its debug information cannot be read: {error}"),
                None => no_debug_info(is_named),
            }),
        };
    }
    found
}

/// What is missing, and where it may be had.
fn no_debug_info(is_named: bool) -> String {
    let lacks = if is_named {
        "it has names but no debug information, hence no lines"
    } else {
        "it was stripped of its names"
    };
    let advice = if std::env::var_os("DEBUGINFOD_URLS").is_some_and(|urls| !urls.is_empty()) {
        "fetch its debug file (debuginfod-find debuginfo BUILD-ID) and name its folder with --debug-dir"
    } else {
        "install the package with its debug symbols (…-dbgsym, …-dbg, …-debuginfo), or compile it with -g"
    };
    format!("{lacks}: {advice}")
}

/// The folders in which debug files are looked for.
fn all_folders(given: &[PathBuf]) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    given
        .iter()
        .cloned()
        .chain([PathBuf::from(SYSTEM_DEBUG_FOLDER)])
        .filter(|folder| seen.insert(folder.clone()))
        .collect()
}

/// A file that is a module's.
struct Program {
    path: PathBuf,
    file: File,
}

/// Opens a file, if it is one: a pipe would make us wait, and a device may do anything when it is opened.
fn open(path: &Path) -> std::io::Result<File> {
    let not_a_file = || std::io::Error::other("it is not a file");
    if !std::fs::metadata(path)?.is_file() {
        return Err(not_a_file());
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(not_a_file());
    }
    Ok(file)
}

/// The build ID of a file; `None` also for what is no ELF file.
fn build_id(file: &File) -> Option<String> {
    let cache = ReadCache::new(file.try_clone().ok()?);
    let elf = Elf::parse(&cache).ok()?;
    elf.build_id().ok().flatten().map(hex)
}

/// The file that the program had mapped.
fn find_program(module: &Module, folders: &[PathBuf]) -> Result<Program, String> {
    let path = Path::new(&module.path);
    let mut why = None;
    let mut candidates = vec![path.to_path_buf()];
    for folder in folders {
        candidates.extend(path.strip_prefix("/").map(|below| folder.join(below)));
        candidates.extend(path.file_name().map(|name| folder.join(name)));
        if let Some((first, rest)) = module.build_id.as_deref().and_then(split_build_id) {
            let below = folder.join(".build-id").join(first);
            candidates.push(below.join(rest));
            candidates.push(below.join(format!("{rest}.debug")));
        }
    }
    for candidate in candidates {
        match open(&candidate) {
            Ok(file) => match is_recorded(&file, module) {
                Ok(()) => {
                    return Ok(Program {
                        path: candidate,
                        file,
                    });
                }
                Err(differs) => {
                    why.get_or_insert(differs);
                }
            },
            // The first candidate is the one that people know of.
            Err(error) if candidate == path => why = Some(not_opened(&error)),
            Err(_) => {}
        }
    }
    Err(why.unwrap_or_else(|| "its file has no name".to_owned()))
}

fn not_opened(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            "its file is not here (any more): name a folder that has it \
                                         with --debug-dir"
                .to_owned()
        }
        _ => format!("its file cannot be opened: {error}"),
    }
}

/// Whether this is the file that was recorded, or one of the same build.
fn is_recorded(file: &File, module: &Module) -> Result<(), String> {
    if let Some(recorded) = &module.build_id {
        return match build_id(file) {
            Some(found) if found == *recorded => Ok(()),
            _ => Err(
                "the file of this name is of another build than the one that ran (build IDs \
                      differ): name a folder that has the right one with --debug-dir"
                    .to_owned(),
            ),
        };
    }
    let metadata = file.metadata().map_err(|error| not_opened(&error))?;
    let modified_ns = metadata
        .mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(metadata.mtime_nsec());
    match module.file {
        Some(FileIdentity {
            modified_ns: then,
            bytes,
            ..
        }) if then == modified_ns && bytes == metadata.len() => Ok(()),
        Some(_) => Err(
            "its file has changed since it ran (size or time of change, as it has no build ID): \
             record again"
                .to_owned(),
        ),
        None => Err("nothing tells whether the file of this name is the one that ran".to_owned()),
    }
}

/// The two parts of a build ID that are folder and file in `.build-id`.
fn split_build_id(id: &str) -> Option<(&str, &str)> {
    let is_plain = id.len() >= 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_plain.then(|| id.split_at(2))
}

/// Whether an ELF file has debug information of its own.
fn has_debug_info<'data, R: object::ReadRef<'data>>(elf: &Elf<'data, R>) -> bool {
    [".debug_info", ".debug_line", ".zdebug_info"]
        .iter()
        .any(|name| {
            elf.section_by_name(name)
                .is_some_and(|section| section.file_range().is_some_and(|(_, length)| length > 0))
        })
}

/// The file with a module's debug information: itself, or another one of the same build.
fn debug_file<'data, R: object::ReadRef<'data>>(
    elf: &Elf<'data, R>,
    program: &Path,
    module: &Module,
    folders: &[PathBuf],
) -> Option<PathBuf> {
    let own = has_debug_info(elf).then(|| program.to_path_buf());
    if own.is_some() && !is_unreadable(elf) {
        return own;
    }
    let link = elf
        .section_by_name(".gnu_debuglink")
        .filter(|section| section.size() <= LARGEST_LINK)
        .and_then(|_| elf.gnu_debuglink().ok().flatten());
    debug_file_candidates(module, program, link.map(|(name, _)| name), folders)
        .into_iter()
        .filter(|candidate| candidate != program)
        .find(|candidate| {
            let Ok(file) = open(candidate) else {
                return false;
            };
            let belongs = match (&module.build_id, link) {
                (Some(recorded), _) => build_id(&file).as_ref() == Some(recorded),
                (None, Some((_, checksum))) => has_checksum(&file, checksum),
                (None, None) => false,
            };
            let cache = ReadCache::new(file);
            belongs
                && Elf::parse(&cache).is_ok_and(|elf| has_debug_info(&elf) && !is_unreadable(&elf))
        })
        .or(own)
}

fn is_unreadable<'data, R: object::ReadRef<'data>>(elf: &Elf<'data, R>) -> bool {
    matches!(obstacles::find(elf), Some(Obstacle::Unreadable(_)))
}

fn debug_file_candidates(
    module: &Module,
    program: &Path,
    link: Option<&[u8]>,
    folders: &[PathBuf],
) -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let mut candidates = Vec::new();
    for folder in folders {
        if let Some((first, rest)) = module.build_id.as_deref().and_then(split_build_id) {
            let below = folder.join(".build-id").join(first);
            candidates.push(below.join(format!("{rest}.debug")));
            candidates.push(below.join(rest));
        }
    }
    // A link is the name of a file, without folders (gdb, as above).
    let link = link
        .map(std::ffi::OsStr::from_bytes)
        .filter(|link| !link.is_empty() && Path::new(link).file_name() == Some(link));
    let recorded = Path::new(&module.path);
    for (name, own) in link
        .map(|link| (link, true))
        .into_iter()
        .chain(recorded.file_name().map(|name| (name, false)))
    {
        if own && let Some(beside) = program.parent() {
            candidates.push(beside.join(name));
            candidates.push(beside.join(".debug").join(name));
        }
        for folder in folders {
            if let Some(parent) = recorded.parent() {
                let parent = parent.strip_prefix("/").unwrap_or(parent);
                candidates.push(folder.join(parent).join(name));
            }
            candidates.push(folder.join(name));
            let mut with_ending = name.to_owned();
            with_ending.push(".debug");
            candidates.push(folder.join(with_ending));
        }
    }
    candidates
}

/// Whether a file's contents have the checksum of a debug link.
fn has_checksum(mut file: &File, checksum: u32) -> bool {
    let mut crc = flate2::Crc::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match std::io::Read::read(&mut file, &mut piece) {
            Ok(0) => return crc.sum() == checksum,
            Ok(length) => crc.update(&piece[..length]),
            Err(_) => return false,
        }
    }
}

/// Functions, files and lines by debug information, and what it lacks.
fn read_debug_info(
    path: &Path,
    addresses: &[Option<u64>],
    folders: &[PathBuf],
) -> Result<(Vec<Vec<Function>>, Option<String>), String> {
    let lacks = match obstacle(path) {
        Some(Obstacle::Unreadable(reason)) => return Err(reason),
        Some(Obstacle::Incomplete(reason)) => Some(reason),
        None => None,
    };
    // Links to further files (dwz(1)) are followed from here; debug links were followed already.
    let symbolizer = Symbolizer::builder()
        .enable_auto_reload(false)
        .enable_code_info(true)
        .enable_inlined_fns(true)
        .enable_demangling(false)
        .set_debug_dirs(Some(folders))
        .build();
    let source = Source::Elf(ElfSource::new(path));
    let known: Vec<u64> = addresses.iter().copied().flatten().collect();
    let mut answers = symbolizer
        .symbolize(&source, Input::VirtOffset(&known))
        .map_err(|error| error.to_string())?
        .into_iter();
    let functions = addresses
        .iter()
        .map(|address| match address.and_then(|_| answers.next()) {
            Some(Symbolized::Sym(symbol)) => functions(&symbol),
            Some(Symbolized::Unknown(_)) | None => Vec::new(),
        })
        .collect();
    Ok((functions, lacks))
}

fn obstacle(path: &Path) -> Option<Obstacle> {
    let cache = ReadCache::new(open(path).ok()?);
    obstacles::find(&Elf::parse(&cache).ok()?)
}

/// The functions at one place, the innermost first.
fn functions(symbol: &Sym<'_>) -> Vec<Function> {
    if symbol.name.is_empty() {
        return Vec::new();
    }
    let mut functions: Vec<Function> = symbol
        .inlined
        .iter()
        .rev()
        .take(MOST_INLINED)
        .filter(|inlined| !inlined.name.is_empty())
        .map(|inlined| function(&inlined.name, inlined.code_info.as_ref()))
        .chain([function(&symbol.name, symbol.code_info.as_deref())])
        .collect();
    // A function whose rarer part the compiler made one of its own has that part inlined into itself.
    functions.dedup_by(|outer, inner| outer.name == inner.name && outer.file == inner.file);
    functions
}

fn function(name: &str, code: Option<&CodeInfo<'_>>) -> Function {
    // By these names glibc calls its own functions (include/libc-symbols.h, hidden_proto).
    let name = name.strip_prefix("__GI_").unwrap_or(name);
    Function {
        name: names::demangled(name),
        file: code.map(|code| names::shortened(&code.to_path().to_string_lossy())),
        line: code.and_then(|code| code.line),
    }
}
