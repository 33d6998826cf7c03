//! The tables by which culprits are found. `docs/recipes.md` says how to add a function.

/// In which modules a rule holds.
#[derive(Clone, Copy, Debug)]
enum Within {
    /// Its names mean the same everywhere.
    Any,
    /// In modules whose names begin like this.
    Modules(&'static [&'static str]),
}

/// Functions that share a rule.
pub(super) struct Group {
    within: Within,
    /// Whole names. C++ names count without return type, parameters and template arguments.
    names: &'static [&'static str],
    /// Beginnings of names.
    beginnings: &'static [&'static str],
}

pub(super) const LIBC: &[&str] = &["libc.so", "libc-2", "libc.musl", "ld-musl"];
pub(super) const LOADER: &[&str] = &["ld-linux", "ld-2", "ld.so", "ld64.so"];
pub(super) const CPYTHON: &[&str] = &["python", "libpython"];
const REDIS: &[&str] = &["redis", "valkey"];
const GCC: &[&str] = &[
    "cc1", "lto", "gcc", "g++", "cpp", "collect2", "f951", "gnat1",
];

const GIT: &[&str] = &["git"];
const QT: &[&str] = &["libQt", "libqt"];

/// Modules that are allocators: all that happens inside them serves a request.
pub(super) const ALLOCATORS: &[&str] = &[
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
pub(super) const ENTRIES: &[Group] = &[
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
            "jemalloc_",
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
    // OpenSSL and its relatives (crypto/mem.c).
    Group {
        within: Within::Any,
        names: &[
            "CRYPTO_malloc",
            "CRYPTO_zalloc",
            "CRYPTO_aligned_alloc",
            "CRYPTO_realloc",
            "CRYPTO_clear_realloc",
            "CRYPTO_free",
            "CRYPTO_clear_free",
            "OPENSSL_malloc",
            "OPENSSL_realloc",
            "OPENSSL_free",
        ],
        beginnings: &["CRYPTO_secure_"],
    },
    // PostgreSQL (mcxt.c, aset.c), nginx (ngx_palloc.c), the Apache Portable Runtime, libuv, PHP (zend_alloc.c), Ruby (gc.c).
    Group {
        within: Within::Any,
        names: &[
            "palloc",
            "palloc0",
            "palloc_extended",
            "repalloc",
            "repalloc_huge",
            "pfree",
            "pg_malloc",
            "pg_malloc0",
            "pg_realloc",
            "ngx_alloc",
            "ngx_calloc",
            "ngx_memalign",
            "ngx_palloc",
            "ngx_pcalloc",
            "ngx_pnalloc",
            "ngx_pmemalign",
            "ngx_palloc_block",
            "ngx_palloc_large",
            "apr_palloc",
            "apr_pcalloc",
            "allocator_alloc",
            "uv__malloc",
            "uv__calloc",
            "uv__realloc",
            "uv__reallocf",
            "uv__free",
            "_emalloc",
            "_ecalloc",
            "_erealloc",
            "_erealloc2",
            "_efree",
            "_safe_emalloc",
            "__zend_malloc",
            "__zend_calloc",
            "__zend_realloc",
            "heap_page_allocate",
        ],
        beginnings: &[
            "MemoryContextAlloc",
            "AllocSetAlloc",
            "AllocSetRealloc",
            "zend_mm_",
            "_emalloc_",
            "_efree_",
            "ruby_xmalloc",
            "ruby_xcalloc",
            "ruby_xrealloc",
            "ruby_xfree",
            "objspace_xmalloc",
            "objspace_xcalloc",
            "objspace_xrealloc",
            "objspace_xfree",
        ],
    },
    // V8's and Node's ways to the kernel, and memory that compilers in V8 throw away as a whole.
    Group {
        within: Within::Any,
        names: &[],
        beginnings: &[
            "v8::internal::AccountingAllocator::",
            "v8::internal::AllocWithRetry",
            "v8::internal::Zone::",
            "node::UncheckedMalloc",
            "node::UncheckedCalloc",
            "node::UncheckedRealloc",
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
pub(super) const PASSING: &[Group] = &[
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
            "pthread_join",
            "__pthread_join",
            "___pthread_join",
            "__pthread_clockjoin_ex",
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
            "CRYPTO_strdup",
            "CRYPTO_strndup",
            "CRYPTO_memdup",
            "OPENSSL_strdup",
            "OPENSSL_memdup",
            "pstrdup",
            "_estrdup",
            "_estrndup",
        ],
        beginnings: &[],
    },
    // OpenSSL's containers (crypto/stack, crypto/lhash, crypto/buffer).
    Group {
        within: Within::Any,
        names: &["sk_reserve", "BUF_MEM_grow", "BUF_MEM_grow_clean"],
        beginnings: &["OPENSSL_sk_", "OPENSSL_LH_"],
    },
    // CPython: objects are for who wants them, and go with the last reference. Not entries, as both run other people's code:
    // the collection of garbage, and `__del__`.
    Group {
        within: Within::Any,
        names: &[
            "gc_alloc",
            "PyType_GenericAlloc",
            "Py_DECREF",
            "Py_XDECREF",
            "_Py_DECREF",
            "_Py_XDECREF",
            "_Py_Dealloc",
        ],
        beginnings: &[
            "_PyObject_GC_",
            "PyObject_GC_",
            "_PyObject_New",
            "_PyType_AllocNoTrack",
            "_Py_DECREF_",
        ],
    },
    // Lua's (lmem.c), which may run its collector and what that calls.
    Group {
        within: Within::Any,
        names: &["l_alloc"],
        beginnings: &["luaM_"],
    },
    // Git's strings and pools (strbuf.c, mem-pool.c, alloc.c, wrapper.c).
    Group {
        within: Within::Modules(GIT),
        names: &[
            "xmmap",
            "xmmap_gently",
            "xstrfmt",
            "xstrvfmt",
            "xmemdupz",
            "alloc_node",
        ],
        beginnings: &["strbuf_", "mem_pool_", "string_list_"],
    },
    // gcc's containers (vec.h, hash-table.h, alloc-pool.h).
    Group {
        within: Within::Modules(GCC),
        names: &[],
        beginnings: &[
            "va_heap::",
            "va_gc::",
            "vec<",
            "vec_safe_",
            "hash_table<",
            "hash_map<",
            "hash_set<",
            "base_pool_allocator<",
            "object_allocator<",
            "memory_block_pool::",
        ],
    },
    // Qt's containers and strings.
    Group {
        within: Within::Modules(QT),
        names: &[],
        beginnings: &["QString::", "QByteArray::"],
    },
    Group {
        within: Within::Any,
        names: &[],
        beginnings: &[
            "QArrayData::",
            "QArrayDataPointer<",
            "QTypedArrayData<",
            "QListData::",
            "QHashData::",
            "QHashPrivate::",
            "QMapDataBase::",
            "QtPrivate::Q",
            "QList<",
            "QVector<",
            "QHash<",
            "QMap<",
        ],
    },
    // Containers of LLVM, Abseil, Boost and Eigen.
    Group {
        within: Within::Any,
        names: &[],
        beginnings: &[
            "llvm::safe_malloc",
            "llvm::safe_calloc",
            "llvm::safe_realloc",
            "llvm::allocate_buffer",
            "llvm::BumpPtrAllocatorImpl",
            "llvm::SmallVector",
            "llvm::DenseMap",
            "llvm::StringMap",
            "llvm::SmallPtrSet",
            "absl::container_internal::",
            "absl::inlined_vector_internal::",
            "boost::container::",
            "boost::unordered::",
            "Eigen::internal::aligned_",
            "Eigen::internal::conditional_aligned_",
            "Eigen::DenseStorage<",
        ],
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
        beginnings: &[
            "alloc::",
            "core::",
            "hashbrown::",
            "indexmap::",
            "smallvec::",
        ],
    },
];

/// Functions of the C library that nobody calls: programs and threads begin with them.
pub(super) const BEGINNINGS_OF_ALL: &[&str] = &["__libc_start", "_start", "clone", "__clone"];

/// Beginnings of names in `std::` that do work of their own: the start of a Rust program or thread.
pub(super) const NOT_PASSING: &[&str] = &[
    "std::rt::",
    "std::sys::backtrace::__rust_begin_short_backtrace",
];

/// Folders of the standard libraries' sources: what was inlined from there passes on, whatever it is called.
pub(super) const PASSING_SOURCES: &[&str] = &[
    "/include/c++/",
    "/library/alloc/src/",
    "/library/core/src/",
    "/library/std/src/collections/",
];

impl Group {
    /// Whether the rule is about this function.
    pub(super) fn has(&self, name: &str, module: &str) -> bool {
        let is_within = match self.within {
            Within::Any => true,
            Within::Modules(modules) => begins(module, modules),
        };
        is_within && (self.names.contains(&name) || begins(name, self.beginnings))
    }
}

/// Whether a text begins in one of these ways.
pub(super) fn begins(text: &str, beginnings: &[&str]) -> bool {
    beginnings
        .iter()
        .any(|beginning| text.starts_with(beginning))
}
