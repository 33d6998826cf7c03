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
//! Where that function has no known name but one that called it in the same module has, the latter is named: a program
//! stripped of its symbols still has names for what it offers to libraries.
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
const REDIS: &[&str] = &["redis", "valkey"];
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
        names: &[
            "mi_malloc",
            "mi_calloc",
            "mi_realloc",
            "mi_zalloc",
            "mi_free",
            "mi_new",
            "tc_malloc",
            "tc_calloc",
            "tc_realloc",
            "tc_free",
            "tc_new",
            "tc_newarray",
            "tc_memalign",
            "tc_posix_memalign",
        ],
        beginnings: &[
            "je_",
            "_rjem_",
            "mi_heap_",
            "mi_malloc_",
            "mi_realloc_",
            "_mi_",
            "tcmalloc::",
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
    // HotSpot's layer over the system (os_posix.cpp, os_linux.cpp, virtualspace.cpp, allocation.cpp).
    Group {
        within: Within::Modules(&["libjvm"]),
        names: &["AllocateHeap", "ReallocateHeap", "anon_mmap"],
        beginnings: &[
            "os::commit_memory",
            "os::pd_commit_memory",
            "os::uncommit_memory",
            "os::pd_uncommit_memory",
            "os::reserve_memory",
            "os::pd_reserve_memory",
            "os::attempt_reserve_memory",
            "os::pd_attempt_reserve_memory",
            "os::release_memory",
            "os::pd_release_memory",
            "os::malloc",
            "os::realloc",
            "os::free",
            "VirtualSpace::expand",
            "ReservedSpace::",
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
    // Redis' and Valkey's strings (sds.c, object.c), which are their callers'.
    Group {
        within: Within::Modules(REDIS),
        names: &[
            "createStringObject",
            "createRawStringObject",
            "createEmbeddedStringObject",
            "dupStringObject",
        ],
        beginnings: &["sds", "_sds"],
    },
    // glibc's streams (libio): their buffers are for who writes to them first.
    Group {
        within: Within::Modules(LIBC),
        names: &[
            "fputs",
            "putchar",
            "putc",
            "fputc",
            "getc",
            "fgetc",
            "getchar",
            "fgets",
            "outstring_func",
            "pad_func",
            "buffered_vfprintf",
            "open_memstream",
        ],
        beginnings: &[
            "_IO_",
            "__printf",
            "__fprintf",
            "__vprintf",
            "__vfprintf",
            "printf",
            "fprintf",
            "vprintf",
            "vfprintf",
            "puts",
            "fwrite",
            "fread",
        ],
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
    let is_passing = |at: usize| {
        entries[at].is_passing()
            || entries[at..]
                .iter()
                .find_map(|outer| outer.language)
                .is_some_and(|language| entries[at].is_interpreter(language))
    };
    let Some(first) = (inner..entries.len()).find(|at| !is_passing(*at)) else {
        return entries.len().checked_sub(1);
    };
    if entries[first].named.is_some() || entries[first].is_dynamic_linker() {
        return Some(first);
    }
    let module = entries[first].module;
    let named = (first..entries.len())
        .take_while(|at| entries[*at].module == module)
        .find(|at| entries[*at].named.is_some() && !is_passing(*at));
    Some(named.unwrap_or(first))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The function that is named of a stack: `function module` or `function module source` from the innermost on; `?`
    /// stands for a function that is not known, and `py:` begins one of Python.
    #[track_caller]
    fn named(stack: &[&str]) -> String {
        let parts: Vec<Vec<&str>> = stack
            .iter()
            .map(|line| line.split(" @ ").collect())
            .collect();
        let functions: Vec<Option<Function>> = parts
            .iter()
            .map(|parts| {
                (parts[0] != "?").then(|| Function {
                    name: parts[0].trim_start_matches("py:").to_owned(),
                    file: parts.get(2).map(|file| (*file).to_owned()),
                    line: None,
                })
            })
            .collect();
        let entries: Vec<Entry<'_>> = parts
            .iter()
            .zip(&functions)
            .zip(0..)
            .map(|((parts, function), depth)| {
                let is_python = parts[0].starts_with("py:");
                Entry {
                    depth,
                    function: 0,
                    named: function.as_ref(),
                    module: parts.get(1).copied().unwrap_or(""),
                    kind: (!is_python).then_some(ModuleKind::File),
                    language: is_python.then_some("python"),
                }
            })
            .collect();
        let at = find(&entries).unwrap();
        parts[at][0].to_owned()
    }

    #[test]
    fn what_glibc_does_for_malloc_is_passed_over_with_and_without_its_symbols() {
        assert_eq!(
            named(&[
                "__brk @ libc.so.6",
                "__sbrk @ libc.so.6",
                "__glibc_morecore @ libc.so.6",
                "sysmalloc @ libc.so.6",
                "_int_malloc @ libc.so.6",
                "__libc_malloc @ libc.so.6",
                "load @ a.out",
                "main @ a.out",
            ]),
            "load"
        );
        assert_eq!(
            named(&[
                "brk @ libc.so.6",
                "sbrk @ libc.so.6",
                "? @ libc.so.6",
                "? @ libc.so.6",
                "malloc @ libc.so.6",
                "load @ a.out",
            ]),
            "load"
        );
        assert_eq!(
            named(&["sysmalloc.part.0 @ libc.so.6", "? @ libc.so.6", "load @ a"]),
            "load"
        );
    }

    #[test]
    fn a_library_function_that_needs_memory_itself_is_named_and_one_that_returns_it_is_not() {
        assert_eq!(
            named(&["malloc @ libc.so.6", "fopen64 @ libc.so.6", "main @ a"]),
            "fopen64"
        );
        assert_eq!(
            named(&["malloc @ libc.so.6", "strdup @ libc.so.6", "copy @ a"]),
            "copy"
        );
        assert_eq!(
            named(&[
                "mmap64 @ libc.so.6",
                "? @ libc.so.6",
                "pthread_create @ libc.so.6",
                "start @ a"
            ]),
            "start"
        );
        // A stream's buffer is for the one who wrote to it first, be it by printf.
        assert_eq!(
            named(&[
                "malloc @ libc.so.6",
                "_IO_file_doallocate @ libc.so.6",
                "_IO_new_file_overflow @ libc.so.6",
                "vfprintf @ libc.so.6",
                "printf @ libc.so.6",
                "report @ a",
                "main @ a"
            ]),
            "report"
        );
        assert_eq!(
            named(&[
                "mmap64 @ libc.so.6",
                "je_malloc @ libjemalloc.so.2",
                "_sdsnewlen @ redis-server",
                "createStringObject @ redis-server",
                "processMultibulkBuffer @ redis-server"
            ]),
            "processMultibulkBuffer"
        );
    }

    #[test]
    fn a_program_may_have_functions_named_as_the_c_librarys_inner_ones() {
        assert_eq!(
            named(&["malloc @ libc.so.6", "new_heap @ a.out", "main @ a.out"]),
            "new_heap"
        );
    }

    #[test]
    fn containers_of_c_plus_plus_work_for_their_caller() {
        assert_eq!(
            named(&[
                "malloc @ libc.so.6",
                "operator new(unsigned long) @ libstdc++.so.6",
                "std::__new_allocator<Thing>::allocate(unsigned long, void const*) @ a @ /usr/include/c++/12/bits/new_allocator.h",
                "allocate @ a @ /usr/include/c++/12/bits/alloc_traits.h",
                "void std::vector<Thing, std::allocator<Thing> >::_M_realloc_insert<Thing>(__gnu_cxx::__normal_iterator<Thing*>, Thing&&) @ a",
                "Thing& std::vector<Thing, std::allocator<Thing> >::emplace_back<Thing>(Thing&&) @ a",
                "(anonymous namespace)::fill(int) @ a",
                "main @ a",
            ]),
            "(anonymous namespace)::fill(int)"
        );
        assert_eq!(
            named(&[
                "operator new[](unsigned long, std::align_val_t) @ libstdc++.so.6",
                "standard::work() @ a",
            ]),
            "standard::work()"
        );
    }

    #[test]
    fn collections_of_rust_work_for_their_caller() {
        for path in [
            &[
                "alloc::raw_vec::RawVecInner<A>::grow_amortized @ a",
                "alloc::vec::Vec<T,A>::push @ a",
            ][..],
            &[
                "<alloc::alloc::Global as core::alloc::Allocator>::grow @ a",
                "<alloc::raw_vec::RawVec<u8>>::grow_one @ a",
            ],
            &[
                "<I as alloc::vec::SpecFromIter<T>>::from_iter @ a",
                "core::iter::traits::iterator::Iterator::collect @ a",
            ],
            &[
                "<hashbrown::raw::RawTable<(u32, u32)>>::reserve_rehash @ a",
                "<std::collections::hash::map::HashMap<u32, u32>>::insert @ a",
            ],
        ] {
            let mut stack = vec!["malloc @ libc.so.6", "__rustc::__rust_alloc @ a"];
            stack.extend(path);
            stack.extend([
                "<demo::Table as core::convert::From<u8>>::from @ a",
                "demo::main @ a",
            ]);
            assert_eq!(
                named(&stack),
                "<demo::Table as core::convert::From<u8>>::from",
                "{path:?}"
            );
        }
    }

    #[test]
    fn the_start_of_a_rust_program_is_not_blamed_on_main() {
        assert_eq!(
            named(&[
                "__libc_malloc @ libc.so.6",
                "alloc::alloc::alloc @ a",
                "std::thread::Thread::new @ a",
                "std::rt::init @ a",
                "std::rt::lang_start_internal @ a",
                "main @ a",
            ]),
            "std::rt::init"
        );
    }

    #[test]
    fn other_allocators_are_passed_over_whole_as_library_and_linked_in() {
        assert_eq!(
            named(&[
                "mmap @ libc.so.6",
                "? @ libjemalloc.so.2",
                "malloc @ libjemalloc.so.2",
                "f @ a"
            ]),
            "f"
        );
        assert_eq!(
            named(&["? @ libbreaktrace.so", "? @ libbreaktrace.so", "f @ a"]),
            "f"
        );
        assert_eq!(
            named(&[
                "os_pages_map @ redis-server",
                "je_pages_map @ redis-server",
                "extent_grow_retained @ redis-server",
                "je_malloc @ redis-server",
                "ztrymalloc_usable_internal @ redis-server",
                "zmalloc @ redis-server",
                "sdsnewlen @ redis-server",
            ]),
            "sdsnewlen"
        );
        assert_eq!(
            named(&[
                "mmap @ libc.so.6",
                "_mi_prim_alloc @ a",
                "mi_malloc @ a",
                "f @ a"
            ]),
            "f"
        );
    }

    #[test]
    fn wrappers_that_many_programs_have_are_passed_over() {
        for wrapper in [
            "xmalloc",
            "do_xmalloc",
            "g_malloc0",
            "zcalloc",
            "sqlite3Malloc",
            "Perl_safesysmalloc",
            "_obstack_newchunk",
        ] {
            let wrapper = format!("{wrapper} @ prog");
            assert_eq!(
                named(&["malloc @ libc.so.6", &wrapper, "f @ prog"]),
                "f",
                "{wrapper}"
            );
        }
        assert_eq!(
            named(&[
                "mmap @ libc.so.6",
                "ggc_internal_alloc @ cc1",
                "make_node @ cc1"
            ]),
            "make_node"
        );
        assert_eq!(
            named(&["mmap @ libc.so.6", "ggc_start @ other", "f @ other"]),
            "ggc_start"
        );
    }

    #[test]
    fn in_python_it_is_the_python_function_unless_a_library_asked() {
        assert_eq!(
            named(&[
                "mmap @ libc.so.6",
                "? @ python3.11",
                "PyList_Append @ python3.11",
                "_PyEval_EvalFrameDefault @ python3.11",
                "py:load",
                "py:<module>",
                "Py_RunMain @ python3.11",
            ]),
            "py:load"
        );
        assert_eq!(
            named(&[
                "malloc @ libc.so.6",
                "PyObject_Malloc @ libpython3.12.so.1.0",
                "array_new @ _multiarray_umath.cpython-312-x86_64-linux-gnu.so",
                "_PyEval_EvalFrameDefault @ libpython3.12.so.1.0",
                "py:load",
            ]),
            "array_new"
        );
        assert_eq!(
            named(&[
                "malloc @ libc.so.6",
                "_PyMem_RawMalloc @ python3.11",
                "_PyRuntime_Initialize @ python3.11"
            ]),
            "_PyRuntime_Initialize"
        );
    }

    #[test]
    fn a_stripped_program_is_named_by_what_it_offers() {
        assert_eq!(
            named(&[
                "malloc @ libc.so.6",
                "? @ cc1",
                "toplev::main(int, char**) @ cc1",
                "main @ cc1"
            ]),
            "toplev::main(int, char**)"
        );
        assert_eq!(
            named(&[
                "malloc @ libc.so.6",
                "? @ a",
                "? @ a",
                "__libc_start_main @ libc.so.6"
            ]),
            "?"
        );
    }

    #[test]
    fn a_stack_that_breaks_off_inside_malloc_names_its_outermost_function() {
        assert_eq!(named(&["sbrk @ libc.so.6", "malloc @ libc.so.6"]), "malloc");
        assert!(find(&[]).is_none());
    }

    #[test]
    fn names_lose_what_is_not_theirs() {
        for (name, expected) in [
            ("malloc", "malloc"),
            ("sysmalloc.part.0", "sysmalloc"),
            ("operator new(unsigned long)", "operator new(unsigned long)"),
            (
                "void std::vector<int, std::allocator<int> >::push_back(int)",
                "std::vector<int, std::allocator<int> >::push_back",
            ),
            (
                "std::ostream& std::operator<< <char>(std::ostream&, char const*)",
                "std::operator<< <char>(std::ostream&, char const*)",
            ),
            (
                "(anonymous namespace)::pool::pool()",
                "(anonymous namespace)::pool::pool",
            ),
            (
                "main::{lambda(int)#1}::operator()(int) const",
                "main::{lambda(int)#1}::operator()(int) const",
            ),
            (
                "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
                "alloc::vec::Vec<T> as core::clone::Clone>::clone",
            ),
            (
                "<T as alloc::slice::Join>::join",
                "alloc::slice::Join>::join",
            ),
            (
                "<&mut demo::Thing as core::fmt::Debug>::fmt",
                "demo::Thing as core::fmt::Debug>::fmt",
            ),
            ("my_operator_x(int)", "my_operator_x"),
            ("", ""),
            ("<", ""),
            ("é<é(é", "é<é(é"),
        ] {
            assert_eq!(plain(name), expected, "{name}");
        }
    }
}
