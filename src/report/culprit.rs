//! Who is to be named: the first function above those that merely pass a request for memory on.
//!
//! Three rules, and tables for them that grow with the programs people trace:
//!
//! 1. [`ENTRIES`] are functions by which memory is asked for: malloc, operator new, xmalloc. Whatever they call is their
//!    own affair, so that all frames inside the outermost of them are passed over.
//! 2. [`PASSING`] are functions that work for their caller: `strdup`, `std::vector::push_back`. They are passed over
//!    when nothing else lies between them and the request.
//! 3. Inside an interpreter, the interpreted function is to be named, if only the interpreter lies between it and the
//!    request; a library that it called is to be named itself.
//!
//! `docs/recipes.md` says how to add a function.

use crate::event::ModuleKind;
use crate::symbols::Function;

/// One function of a stack, or a frame whose function is not known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    /// Position in the stack's frames.
    pub(super) depth: u32,
    /// Position in the frame's functions.
    pub(super) function: u32,
    /// The function; `None` when it is not known.
    pub(super) named: Option<&'a Function>,
    /// Name of the module's file without its folders; empty for a function of an interpreter.
    pub(super) module: &'a str,
    /// What the module is; `None` likewise.
    pub(super) kind: Option<ModuleKind>,
    /// Language of an interpreted function.
    pub(super) language: Option<&'a str>,
}

/// In which modules a rule holds.
#[derive(Clone, Copy, Debug)]
enum Within {
    /// Its names mean the same everywhere.
    Any,
    /// In modules whose names begin like this.
    Modules(&'static [&'static str]),
}

/// Functions that share a rule.
struct Group {
    within: Within,
    /// Whole names. C++ names count without return type, parameters and template arguments.
    names: &'static [&'static str],
    /// Beginnings of names.
    beginnings: &'static [&'static str],
}

const LIBC: &[&str] = &["libc.so", "libc-2", "libc.musl", "ld-musl"];
const LOADER: &[&str] = &["ld-linux", "ld-2", "ld.so", "ld64.so"];
const CPYTHON: &[&str] = &["python", "libpython"];
const GCC: &[&str] = &[
    "cc1", "lto", "gcc", "g++", "cpp", "collect2", "f951", "gnat1",
];

/// Modules that are allocators: all that happens inside them serves a request.
const ALLOCATORS: &[&str] = &[
    "libbreaktrace",
    "libjemalloc",
    "libmimalloc",
    "libtcmalloc",
    "libsnmalloc",
    "libhoard",
    "librpmalloc",
    "libscudo",
    // AddressSanitizer's and its relatives' runtime libraries.
    "libasan",
    "liblsan",
];

/// Functions by which memory is asked for, or given back.
const ENTRIES: &[Group] = &[
    // malloc(3), its relatives and the calls beneath, whichever library has them.
    Group {
        within: Within::Any,
        names: &[
            "malloc",
            "calloc",
            "realloc",
            "reallocarray",
            "free",
            "cfree",
            "memalign",
            "aligned_alloc",
            "posix_memalign",
            "valloc",
            "pvalloc",
            "malloc_trim",
            "sbrk",
            "brk",
            "__sbrk",
            "__brk",
            "__curbrk",
            "mmap",
            "mmap64",
            "__mmap",
            "__mmap64",
            "munmap",
            "__munmap",
            "mremap",
            "__mremap",
            "madvise",
            "__madvise",
            "mprotect",
            "__mprotect",
            "pkey_mprotect",
            "syscall",
        ],
        beginnings: &[
            "__libc_malloc",
            "__libc_calloc",
            "__libc_realloc",
            "__libc_free",
            "__libc_memalign",
            "__libc_valloc",
            "__libc_pvalloc",
            "__libc_reallocarray",
            "__interceptor_malloc",
            "__interceptor_calloc",
            "__interceptor_realloc",
            "__interceptor_free",
        ],
    },
    // glibc's malloc from inside (malloc.c, arena.c), where its symbols are installed.
    Group {
        within: Within::Modules(LIBC),
        names: &[
            "sysmalloc",
            "sysmalloc_mmap",
            "sysmalloc_mmap_fallback",
            "systrim",
            "malloc_consolidate",
            "mtrim",
            "munmap_chunk",
            "mremap_chunk",
            "tcache_init",
            "arena_get2",
            "arena_get_retry",
            "new_heap",
            "alloc_new_heap",
            "grow_heap",
            "shrink_heap",
            "heap_trim",
            "ptmalloc_init",
            "__malloc",
            "__malloc_info",
            "__glibc_morecore",
            "__default_morecore",
            "_mid_memalign",
            "__posix_memalign",
            "__malloc_trim",
        ],
        beginnings: &["_int_"],
    },
    // The dynamic linker's own malloc, before the C library's is there.
    Group {
        within: Within::Modules(LOADER),
        names: &[
            "__minimal_malloc",
            "__minimal_calloc",
            "__minimal_realloc",
            "__minimal_free",
            "__rtld_malloc",
        ],
        beginnings: &["__rtld_"],
    },
    // C++: operator new and delete in all forms.
    Group {
        within: Within::Any,
        names: &[],
        beginnings: &["operator new", "operator delete"],
    },
    // Rust: what `alloc::alloc` calls. `__rustc::` since 1.87.
    Group {
        within: Within::Any,
        names: &[],
        beginnings: &[
            "__rust_alloc",
            "__rust_realloc",
            "__rust_dealloc",
            "__rustc::__r",
            "__rdl_",
            "__rg_",
        ],
    },
    // jemalloc, with and without its prefix, also linked into a program; mimalloc; tcmalloc.
    Group {
        within: Within::Any,
        names: &[],
        beginnings: &[
            "je_",
            "_rjem_",
            "mi_",
            "_mi_",
            "tc_",
            "tcmalloc::",
            "TCMalloc",
            "rpmalloc",
            "snmalloc::",
        ],
    },
    // CPython's object allocator (Objects/obmalloc.c).
    Group {
        within: Within::Modules(CPYTHON),
        names: &[
            "PyObject_Malloc",
            "PyObject_Calloc",
            "PyObject_Realloc",
            "PyObject_Free",
            "new_arena",
            "allocate_from_new_pool",
            "pymalloc_alloc",
            "pymalloc_realloc",
            "pymalloc_free",
        ],
        beginnings: &[
            "_PyMem_",
            "PyMem_",
            "_PyObject_Arena",
            "_PyObject_Malloc",
            "_PyObject_Calloc",
            "_PyObject_Realloc",
            "_PyObject_Free",
        ],
    },
    // Perl (util.c, sv.c).
    Group {
        within: Within::Any,
        names: &[
            "Perl_safesysmalloc",
            "Perl_safesysrealloc",
            "Perl_safesyscalloc",
            "Perl_safesysfree",
            "Perl_malloc",
            "Perl_more_sv",
            "S_more_sv",
            "Perl_more_bodies",
            "Perl_get_arena",
        ],
        beginnings: &[],
    },
    // libiberty, gnulib and all who took their names over: gcc, binutils, git, bash.
    Group {
        within: Within::Any,
        names: &[
            "xmalloc",
            "xcalloc",
            "xrealloc",
            "xzalloc",
            "xnmalloc",
            "xnrealloc",
            "xreallocarray",
            "xcharalloc",
            "x2realloc",
            "x2nrealloc",
            "xpalloc",
            "xmalloca",
            "do_xmalloc",
            "do_xmallocz",
            "xmallocz",
            "sh_xmalloc",
            "sh_xrealloc",
            "rpl_malloc",
            "rpl_realloc",
            "rpl_calloc",
            "_obstack_begin",
            "_obstack_begin_1",
            "_obstack_begin_worker",
            "_obstack_newchunk",
            "_obstack_free",
            "rpl_obstack_newchunk",
        ],
        beginnings: &[],
    },
    // gcc's garbage collected memory (ggc-page.cc).
    Group {
        within: Within::Modules(GCC),
        names: &["alloc_page", "alloc_anon"],
        beginnings: &["ggc_"],
    },
    // GLib.
    Group {
        within: Within::Any,
        names: &[
            "g_malloc",
            "g_malloc0",
            "g_malloc_n",
            "g_malloc0_n",
            "g_realloc",
            "g_realloc_n",
            "g_free",
            "g_aligned_alloc",
            "g_aligned_alloc0",
        ],
        beginnings: &[
            "g_try_malloc",
            "g_try_realloc",
            "g_slice_alloc",
            "g_slice_free",
        ],
    },
    // Redis and its relatives (zmalloc.c).
    Group {
        within: Within::Any,
        names: &[],
        beginnings: &[
            "zmalloc",
            "zcalloc",
            "zrealloc",
            "zfree",
            "ztrymalloc",
            "ztrycalloc",
            "ztryrealloc",
            "valkey_malloc",
            "valkey_calloc",
            "valkey_realloc",
        ],
    },
    // SQLite.
    Group {
        within: Within::Any,
        names: &[
            "sqlite3Malloc",
            "sqlite3MallocZero",
            "sqlite3Realloc",
            "sqlite3_malloc",
            "sqlite3_malloc64",
            "sqlite3_realloc",
            "sqlite3_realloc64",
            "sqlite3_free",
            "mallocWithAlarm",
        ],
        beginnings: &[
            "sqlite3Mem",
            "sqlite3DbMalloc",
            "sqlite3DbRealloc",
            "sqlite3DbFree",
            "pcache1Alloc",
        ],
    },
    // V8's and Node's ways to the kernel.
    Group {
        within: Within::Any,
        names: &[],
        beginnings: &[
            "v8::base::OS::Allocate",
            "v8::base::OS::Free",
            "v8::base::PageAllocator",
            "v8::base::BoundedPageAllocator",
            "v8::internal::AllocatePages",
            "v8::internal::MemoryAllocator::",
        ],
    },
];

/// Functions that work for their caller.
const PASSING: &[Group] = &[
    // What these return is the caller's to free(3); a thread's stack is for the one who wants the thread.
    Group {
        within: Within::Any,
        names: &[
            "strdup",
            "__strdup",
            "strndup",
            "__strndup",
            "wcsdup",
            "asprintf",
            "__asprintf",
            "___asprintf",
            "__asprintf_chk",
            "vasprintf",
            "__vasprintf",
            "__vasprintf_chk",
            "__vasprintf_internal",
            "getline",
            "__getline",
            "getdelim",
            "__getdelim",
            "_IO_getdelim",
            "realpath",
            "realpath@@GLIBC_2.3",
            "__realpath",
            "pthread_create",
            "__pthread_create",
            "__pthread_create_2_1",
            "allocate_stack",
            "xstrdup",
            "xstrndup",
            "xmemdup",
            "g_strdup",
            "g_strndup",
            "g_memdup",
            "g_memdup2",
            "zstrdup",
            "savestring",
            "Perl_sv_grow",
            "Perl_sv_grow_fresh",
        ],
        beginnings: &[],
    },
    // The C++ standard library (libstdc++ and libc++): containers, strings, smart pointers.
    Group {
        within: Within::Any,
        names: &[],
        beginnings: &["std::", "__gnu_cxx::", "__cxxabiv1::"],
    },
    // Rust's collections, and adapters that call their caller's code.
    Group {
        within: Within::Any,
        names: &[],
        beginnings: &["alloc::", "core::", "hashbrown::"],
    },
];

/// Beginnings of names in `std::` that do work of their own: the start of a Rust program or thread.
const NOT_PASSING: &[&str] = &[
    "std::rt::",
    "std::sys::backtrace::__rust_begin_short_backtrace",
];

/// Folders of the standard libraries' sources: what was inlined from there passes on, whatever it is called.
const PASSING_SOURCES: &[&str] = &[
    "/include/c++/",
    "/library/alloc/src/",
    "/library/core/src/",
    "/library/std/src/collections/",
];

impl Group {
    fn has(&self, name: &str, module: &str) -> bool {
        let is_within = match self.within {
            Within::Any => true,
            Within::Modules(modules) => begins(module, modules),
        };
        is_within && (self.names.contains(&name) || begins(name, self.beginnings))
    }
}

fn begins(text: &str, beginnings: &[&str]) -> bool {
    beginnings
        .iter()
        .any(|beginning| text.starts_with(beginning))
}

impl Entry<'_> {
    /// Whether memory is asked for by calling this function.
    fn is_entry(&self) -> bool {
        if self.language.is_some() {
            return false;
        }
        let Some(function) = self.named else {
            return begins(self.module, ALLOCATORS);
        };
        let name = plain(&function.name);
        begins(self.module, ALLOCATORS) || ENTRIES.iter().any(|group| group.has(name, self.module))
    }

    /// Whether it works for its caller.
    fn is_passing(&self) -> bool {
        if self.language.is_some() {
            return false;
        }
        let Some(function) = self.named else {
            // The C library has names for what programs call; what has none works for that.
            return begins(self.module, LIBC);
        };
        let name = plain(&function.name);
        if begins(name, NOT_PASSING) {
            return false;
        }
        PASSING.iter().any(|group| group.has(name, self.module))
            || function.file.as_deref().is_some_and(|file| {
                PASSING_SOURCES.iter().any(|folder| file.contains(folder))
                    && !file.contains("/library/std/src/rt.rs")
            })
    }

    /// Whether it belongs to the dynamic linker, whose functions have no names where its symbols are not installed.
    pub(super) fn is_dynamic_linker(&self) -> bool {
        begins(self.module, LOADER)
    }

    /// Whether it belongs to the interpreter of this language.
    fn is_interpreter(&self, language: &str) -> bool {
        let modules = match language {
            "python" => CPYTHON,
            _ => return false,
        };
        self.language.is_none() && begins(self.module, modules)
    }
}

/// The position of the entry to be named; `None` of a stack without any.
///
/// Where all pass on, because the stack breaks off or there is no more, it is the outermost.
pub(super) fn find(entries: &[Entry<'_>]) -> Option<usize> {
    let inner = entries
        .iter()
        .rposition(Entry::is_entry)
        .map_or(0, |entry| entry + 1);
    let mut at = inner;
    while let Some(entry) = entries.get(at) {
        let is_passing = entry.is_passing()
            || entries[at..]
                .iter()
                .find_map(|outer| outer.language)
                .is_some_and(|language| entry.is_interpreter(language));
        if !is_passing {
            return Some(at);
        }
        at += 1;
    }
    entries.len().checked_sub(1)
}

/// A function's name as the tables have it: without return type, parameters and the compiler's additions
/// (`sysmalloc.part.0`); for a method of a Rust trait the type it belongs to, from there on.
pub(super) fn plain(name: &str) -> &str {
    const UNNAMED: &str = "(anonymous namespace)";
    if let Some(inner) = name.strip_prefix('<') {
        return rust_owner(inner);
    }
    let mut depth = 0_u32;
    let mut start = 0;
    let mut at = 0;
    while let Some(character) = name[at..].chars().next() {
        let rest = &name[at..];
        if depth == 0 && is_operator(name, at) {
            // The name is made of the very signs that end others.
            return &name[start..];
        }
        if rest.starts_with(UNNAMED) {
            at += UNNAMED.len();
            continue;
        }
        match character {
            '<' | '{' | '[' => depth += 1,
            '>' | '}' | ']' => depth = depth.saturating_sub(1),
            '(' if depth == 0 => return without_addition(&name[start..at]),
            // What came before was the return type.
            ' ' if depth == 0 => start = at + 1,
            _ => {}
        }
        at += character.len_utf8();
    }
    without_addition(&name[start..])
}

/// Whether the word `operator` begins here.
fn is_operator(name: &str, at: usize) -> bool {
    let is_part_of_word = |character: char| character.is_alphanumeric() || character == '_';
    name[at..]
        .strip_prefix("operator")
        .is_some_and(|rest| !rest.starts_with(is_part_of_word))
        && !name[..at].ends_with(is_part_of_word)
}

/// Names in C have no full stops: what follows one is the compiler's.
fn without_addition(name: &str) -> &str {
    match name.find('.') {
        Some(at) if at > 0 && !name.contains(':') => &name[..at],
        _ => name,
    }
}

/// `alloc::vec::Vec<T> as core::…>::extend` belongs to `alloc::vec::Vec`; `T as alloc::…>::f` to what comes after `as`.
fn rust_owner(inner: &str) -> &str {
    let inner = inner.trim_start_matches(['&', '*', '[', '(']);
    let inner = inner.strip_prefix("mut ").unwrap_or(inner);
    let is_parameter = inner
        .split([' ', '>', '<'])
        .next()
        .is_some_and(|owner| !owner.contains("::"));
    match inner.split_once(" as ") {
        Some((_, of_trait)) if is_parameter => of_trait,
        _ => inner.strip_prefix('<').map_or(inner, rust_owner),
    }
}
