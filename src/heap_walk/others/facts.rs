//! What a file is to malloc: told once for each file, whichever programs have it loaded.

use super::Depth;
use super::go;
use super::objects::Object;
use super::table;
use super::table::Known;
use super::table::MALLOCS;
use super::table::RUNTIMES;
use super::text::Wanted;
use super::text::search_constants;
use super::versions::Site;
use crate::heap_walk::Image;

/// Bytes of constants of one file that a quick look searches.
const QUICK_TEXT: u64 = 1 << 20;
/// The same of a thorough one.
const THOROUGH_TEXT: u64 = 64 << 20;
/// Names by which C libraries are told.
const GLIBC: &str = "gnu_get_libc_version";
const MUSL: &str = "__dls3";

/// An allocator that a file has.
#[derive(Clone)]
pub(super) struct Find {
    pub(super) known: &'static Known,
    pub(super) version: Option<String>,
    /// By what it was told, as the end of a sentence that begins with the file's name.
    pub(super) evidence: String,
    /// Whether it serves a part of the program, and not through malloc.
    pub(super) is_beside: bool,
}

/// What a file is.
#[derive(Clone, Default)]
pub(super) struct Facts {
    pub(super) depth: Depth,
    /// Whether it exports `malloc`.
    pub(super) exports_malloc: bool,
    /// Whether it is a C library, and whose.
    pub(super) library: Option<CLibrary>,
    /// The malloc that it has, other than glibc's.
    pub(super) malloc: Option<Find>,
    /// Runtimes with pools of their own.
    pub(super) runtimes: Vec<Find>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CLibrary {
    Glibc,
    Musl,
}

impl Depth {
    pub(super) fn text(self) -> u64 {
        match self {
            Self::Quick => QUICK_TEXT,
            Self::Thorough => THOROUGH_TEXT,
        }
    }
}

impl Facts {
    /// Looks at a file; `is_program` says whether it is the program itself.
    pub(super) fn of(
        image: &dyn Image,
        object: &Object<'_>,
        depth: Depth,
        is_program: bool,
    ) -> Self {
        let site = Site {
            image,
            object,
            limit: depth.text(),
        };
        let exports = |name: &str| site.symbol(name).is_some();
        let exports_malloc = exports("malloc");
        let library = if !exports_malloc {
            None
        } else if exports(GLIBC) {
            Some(CLibrary::Glibc)
        } else if exports(MUSL) {
            Some(CLibrary::Musl)
        } else {
            None
        };
        let malloc = match library {
            Some(CLibrary::Glibc) => None,
            Some(CLibrary::Musl) => Some(Find {
                known: &table::MUSL,
                version: (table::MUSL.version)(&site),
                evidence: "is musl's C library".to_owned(),
                is_beside: false,
            }),
            None => {
                malloc_by_names(&site, exports_malloc).or_else(|| by_text(&site, depth, is_program))
            }
        };
        let is_static = is_program && object.symbols(image).is_none();
        Self {
            depth,
            exports_malloc,
            library,
            malloc,
            runtimes: runtimes(&site, depth, is_program, is_static),
        }
    }
}

/// A malloc by what its file is called and exports.
fn malloc_by_names(site: &Site<'_>, exports_malloc: bool) -> Option<Find> {
    let file_name = site.object.file_name();
    MALLOCS.iter().find_map(|known| {
        let is_called = known.is_called(file_name);
        if !is_called && !exports_malloc {
            return None;
        }
        let exported = exported(site, known);
        let evidence = match exported {
            Some(symbol) => format!("exports {symbol}"),
            None if is_called => "is called as its library is".to_owned(),
            None => return None,
        };
        Some(Find {
            known,
            version: (known.version)(site),
            evidence,
            is_beside: false,
        })
    })
}

fn exported(site: &Site<'_>, known: &Known) -> Option<&'static str> {
    known
        .symbols
        .iter()
        .copied()
        .find(|symbol| site.symbol(symbol).is_some())
}

/// A malloc that was linked into a program, by a text among its constants.
fn by_text(site: &Site<'_>, depth: Depth, is_program: bool) -> Option<Find> {
    let exports_malloc = site.symbol("malloc").is_some();
    if !exports_malloc && (!is_program || depth == Depth::Quick) {
        return None;
    }
    let is_dynamic = site.object.symbols(site.image).is_some();
    let mut candidates: Vec<(&'static Known, Vec<u8>)> = MALLOCS
        .iter()
        .filter(|known| exports_malloc || !is_dynamic || known.is_embedded)
        .filter_map(|known| Some((known, known.text?.concat())))
        .collect();
    let mut seen = vec![false; candidates.len()];
    let wanted = Wanted::new(candidates.iter().map(|(_, text)| text.as_slice()));
    search_constants(
        site.image,
        site.object,
        site.limit,
        &wanted,
        |index, _, _| {
            if let Some(seen) = seen.get_mut(index) {
                *seen = true;
            }
            false
        },
    );
    let mut seen = seen.into_iter();
    candidates.retain(|_| seen.next().unwrap_or(false));
    candidates.into_iter().find_map(|(known, text)| {
        let version = (known.version)(site);
        // jemalloc is linked into much; without its version a text alone is somebody else's who speaks of it.
        let is_sure = version.is_some() || known.name != "jemalloc";
        is_sure.then(|| Find {
            known,
            version,
            evidence: format!(
                "has \"{}\" among its constants",
                String::from_utf8_lossy(&text).trim_end()
            ),
            is_beside: !exports_malloc && is_dynamic,
        })
    })
}

fn runtimes(site: &Site<'_>, depth: Depth, is_program: bool, is_static: bool) -> Vec<Find> {
    let file_name = site.object.file_name();
    let mut found = Vec::new();
    let runtime = RUNTIMES.iter().find_map(|runtime| {
        let known = &runtime.known;
        let is_called = known.is_called(file_name);
        let may_be = is_called || is_program && runtime.in_program;
        let symbol = may_be.then(|| exported(site, known)).flatten();
        let evidence = match symbol {
            Some(symbol) => format!("exports {symbol}"),
            None if is_called && runtime.by_name => "is called as its library is".to_owned(),
            None => return None,
        };
        Some(Find {
            known,
            version: (known.version)(site),
            evidence,
            is_beside: runtime.is_beside,
        })
    });
    found.extend(runtime);
    if table::GLIB.is_called(file_name) {
        found.extend(glib_slices(site));
    }
    let is_thorough = depth == Depth::Thorough;
    if is_program || is_thorough {
        // What searches all data is for programs only: a library with Go's runtime has the note.
        let built = go::built(
            site.image,
            site.object,
            is_program && (is_static || is_thorough),
        );
        found.extend(built.map(|built| Find {
            known: &table::GO,
            version: built.version,
            evidence: built.evidence.to_owned(),
            is_beside: true,
        }));
    }
    found
}

/// Slices are malloc's blocks since GLib 2.76.
fn glib_slices(site: &Site<'_>) -> Option<Find> {
    let version = (table::GLIB.version)(site)?;
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    let has_slices = numbers.next()? == Some(2) && numbers.next()?? < 76;
    has_slices.then(|| Find {
        known: &table::GLIB,
        version: Some(version),
        evidence: "is GLib before 2.76".to_owned(),
        is_beside: false,
    })
}
