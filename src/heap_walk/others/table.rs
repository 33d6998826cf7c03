//! The allocators that are known by what their files are called and export.

use super::versions;
use super::versions::Rule;

/// An allocator and how to tell it.
pub(super) struct Known {
    /// As its authors write it.
    pub(super) name: &'static str,
    /// How the names of its files begin.
    pub(super) files: &'static [&'static str],
    /// Names that only it exports; one of them is enough.
    pub(super) symbols: &'static [&'static str],
    /// A text in its constants, for programs into which it was linked; `None` when there is none that others would not have.
    /// In two halves, so that it does not stand in this program's own constants.
    pub(super) text: Option<[&'static [u8]; 2]>,
    /// Whether it is linked under other names than malloc too, so that its text is looked for in any program.
    pub(super) is_embedded: bool,
    /// What tells its version.
    pub(super) version: Rule,
    /// What it calls its mappings, where the kernel keeps such names (`PR_SET_VMA_ANON_NAME`).
    pub(super) mappings: &'static [&'static str],
    /// Whether it only looks on, and passes calls to the next malloc.
    pub(super) passes_on: bool,
    /// What cannot be told of it from outside, and what tells it instead.
    pub(super) not_visible: &'static str,
}

const NOTHING: Known = Known {
    name: "",
    files: &[],
    symbols: &[],
    text: None,
    is_embedded: false,
    version: versions::none,
    mappings: &[],
    passes_on: false,
    not_visible: "what of its memory is in use: its structures are not read",
};

/// Mallocs other than glibc's. The first that fits is it: those built on another one come before that.
pub(super) const MALLOCS: &[Known] = &[
    Known {
        name: "AddressSanitizer",
        files: &["libasan.so", "libclang_rt.asan", "libhwasan.so"],
        symbols: &["__asan_init", "__hwasan_init"],
        not_visible: "what is in use: freed blocks wait in a quarantine. \
            __sanitizer_print_memory_profile(100, 10), called in the program, tells; ASAN_OPTIONS=quarantine_size_mb=… sets \
            how much waits. Figures of this process say little about the same program without the sanitizer",
        ..NOTHING
    },
    Known {
        name: "ThreadSanitizer",
        files: &["libtsan.so", "libclang_rt.tsan"],
        symbols: &["__tsan_init"],
        not_visible: "what is in use. TSAN_OPTIONS=profile_memory=FILE writes it; figures of this process say little about the \
            same program without the sanitizer",
        ..NOTHING
    },
    Known {
        name: "MemorySanitizer",
        symbols: &["__msan_init"],
        not_visible: "what is in use; figures of this process say little about the same program without the sanitizer",
        ..NOTHING
    },
    Known {
        name: "LeakSanitizer",
        files: &["liblsan.so"],
        symbols: &["__lsan_init"],
        not_visible: "what is in use. It tells at the end what has leaked; __lsan_do_recoverable_leak_check(), called in the \
            program, tells earlier",
        ..NOTHING
    },
    Known {
        name: "Scudo",
        files: &["libscudo", "libclang_rt.scudo"],
        symbols: &["__scudo_print_stats", "__scudo_set_rss_limit"],
        text: Some([b"Scudo ", b"ERROR"]),
        mappings: &["[anon:scudo:"],
        not_visible: "what is in use and what waits in its quarantine. malloc_info(0, stdout) or __scudo_print_stats(), called \
            in the program, tells; mallopt(M_PURGE, 0) gives free memory back",
        ..NOTHING
    },
    Known {
        name: "breaktrace's bundled malloc",
        files: &["libbreaktrace.so"],
        not_visible: "nothing: it counts exactly, on a page that `breaktrace run` and `breaktrace attach` read. Look there",
        ..NOTHING
    },
    Known {
        name: "heaptrack",
        files: &["libheaptrack"],
        passes_on: true,
        not_visible: "nothing of its own: it notes calls and passes them on",
        ..NOTHING
    },
    Known {
        name: "memusage",
        files: &["libmemusage.so"],
        passes_on: true,
        not_visible: "nothing of its own: it counts calls and passes them on",
        ..NOTHING
    },
    Known {
        name: "Firefox's jemalloc",
        symbols: &["jemalloc_purge_freed_pages"],
        not_visible: "what is in use and what it keeps. about:memory tells, and its button \"Minimize memory usage\" gives back",
        ..NOTHING
    },
    Known {
        name: "jemalloc",
        files: &["libjemalloc"],
        symbols: &["mallctl", "je_mallctl", "_rjem_mallctl"],
        text: Some([b"<jemal", b"loc>"]),
        is_embedded: true,
        version: versions::jemalloc,
        mappings: &["[anon:jemalloc"],
        not_visible: "what is in use, what it keeps, how much of that is fragmented: its structures are not read. \
            malloc_stats_print() or mallctl(\"stats.allocated\"), called in the program, tells; MALLOC_CONF=stats_print:true \
            prints it at the end, MALLOC_CONF=dirty_decay_ms:0,muzzy_decay_ms:0 keeps nothing",
        ..NOTHING
    },
    Known {
        name: "mimalloc",
        files: &["libmimalloc"],
        symbols: &["mi_version", "mi_heap_new"],
        text: Some([b"mimalloc: ", b"warning"]),
        is_embedded: true,
        version: versions::mimalloc,
        mappings: &["[anon:mimalloc"],
        not_visible: "what is in use and what it keeps. MIMALLOC_SHOW_STATS=1 prints it at the end, mi_stats_print(NULL) \
            earlier; mi_collect(true) gives free memory back, MIMALLOC_PURGE_DELAY=0 at once",
        ..NOTHING
    },
    Known {
        name: "tcmalloc (gperftools)",
        files: &["libtcmalloc"],
        symbols: &["tc_version", "tc_malloc"],
        text: Some([b"gperf", b"tools 2"]),
        version: versions::gperftools,
        not_visible: "what is in use and what it keeps: it takes memory by brk and by mmap, and [heap] is not glibc's here. \
            MALLOCSTATS=1 prints it at the end, MallocExtension::instance()->GetStats() earlier; ReleaseFreeMemory() gives back, \
            TCMALLOC_RELEASE_RATE=10 sooner than it would by itself",
        ..NOTHING
    },
    Known {
        name: "tcmalloc (Google)",
        symbols: &[
            "TCMallocInternalMalloc",
            "MallocExtension_Internal_GetStats",
        ],
        text: Some([b"tcmalloc/", b"internal/"]),
        mappings: &["[anon:tcmalloc"],
        not_visible: "what is in use and what it keeps. tcmalloc::MallocExtension::GetStats(), called in the program, tells; \
            ReleaseMemoryToSystem() gives back",
        ..NOTHING
    },
    Known {
        name: "snmalloc",
        files: &["libsnmalloc"],
        symbols: &["sn_rust_alloc", "snmalloc_check_bounds"],
        text: Some([b"snmal", b"loc"]),
        ..NOTHING
    },
    Known {
        name: "rpmalloc",
        files: &["librpmalloc"],
        symbols: &["rpmalloc", "rpmalloc_initialize"],
        not_visible: "what is in use and what it keeps. rpmalloc_dump_statistics(stdout), called in the program, tells if it was \
            built with statistics",
        ..NOTHING
    },
    Known {
        name: "Hoard",
        files: &["libhoard"],
        symbols: &["hoard_malloc"],
        ..NOTHING
    },
    Known {
        name: "hardened_malloc",
        files: &["libhardened_malloc"],
        symbols: &["malloc_object_size_fast"],
        mappings: &["[anon:malloc slab"],
        not_visible: "what is in use. malloc_info(0, stdout), called in the program, tells if it was built with statistics",
        ..NOTHING
    },
    Known {
        name: "Intel TBB's scalable malloc",
        files: &["libtbbmalloc"],
        symbols: &["scalable_malloc"],
        not_visible: "what is in use and what it keeps. scalable_allocation_command(TBBMALLOC_CLEAN_ALL_BUFFERS, 0), called in \
            the program, gives free memory back",
        ..NOTHING
    },
    Known {
        name: "libumem",
        files: &["libumem"],
        symbols: &["umem_alloc"],
        ..NOTHING
    },
    Known {
        name: "dmalloc",
        files: &["libdmalloc"],
        symbols: &["dmalloc_shutdown"],
        not_visible: "what is in use. dmalloc_log_stats(), called in the program, tells",
        ..NOTHING
    },
    Known {
        name: "Electric Fence",
        files: &["libefence", "libduma"],
        not_visible: "what is in use. Each block has pages of its own: figures of this process say nothing about the same \
            program without it",
        ..NOTHING
    },
    Known {
        name: "PartitionAlloc",
        text: Some([b"partition_", b"alloc/"]),
        mappings: &["[anon:partition_alloc"],
        not_visible: "what is in use and what it keeps. chrome://tracing with memory-infra, or chrome://memory-internals, tells",
        ..NOTHING
    },
];

/// musl's own malloc.
pub(super) const MUSL: Known = Known {
    name: "musl malloc",
    version: versions::musl,
    not_visible: "what is in use. It keeps little: a group of slots whose last one is freed goes back at once, mostly; \
        there are no statistics to ask for",
    ..NOTHING
};

/// Valgrind's.
pub(super) const VALGRIND: Known = Known {
    name: "Valgrind",
    files: &[
        "vgpreload_memcheck",
        "vgpreload_massif",
        "vgpreload_dhat",
        "vgpreload_helgrind",
        "vgpreload_drd",
        "vgpreload_exp-",
    ],
    not_visible: "what is in use: the tool serves malloc, and keeps freed blocks for a while. Ask the tool itself (`vgdb leak_check \
        summary`, massif, dhat); figures of this process say little about the same program without it",
    ..NOTHING
};

/// Pools that runtimes deal out themselves, and libraries that serve a part of a program.
pub(super) struct Runtime {
    pub(super) known: Known,
    /// Whether it gets its memory from malloc or beside it.
    pub(super) is_beside: bool,
    /// Whether it may be told by its name alone: its file is called like nothing else.
    pub(super) by_name: bool,
    /// Its names are looked up in the program as well, whatever that is called.
    pub(super) in_program: bool,
}

const fn runtime(known: Known) -> Runtime {
    Runtime {
        known,
        is_beside: false,
        by_name: true,
        in_program: false,
    }
}

/// Runtimes; of one file the first that fits.
pub(super) const RUNTIMES: &[Runtime] = &[
    Runtime {
        by_name: false,
        in_program: true,
        ..runtime(Known {
            name: "CPython",
            files: &["libpython", "python"],
            symbols: &["Py_IsInitialized"],
            version: versions::python,
            mappings: &["[anon:cpython", "[anon: CPython"],
            not_visible: "which of its objects live: blocks up to 512 bytes come from arenas that it maps itself (256 KiB, since \
                3.10 1 MiB), unless PYTHONMALLOC=malloc is set; an arena goes back when all of it is free. \
                sys._debugmallocstats() prints how full they are, tracemalloc tells who allocated",
            ..NOTHING
        })
    },
    runtime(Known {
        name: "PyPy",
        files: &["libpypy", "pypy"],
        version: versions::pypy,
        not_visible: "which of its objects live: its collector maps its own memory. gc.get_stats() tells, gc.collect() collects, \
            PYPY_GC_MAX limits",
        ..NOTHING
    }),
    Runtime {
        by_name: false,
        in_program: true,
        ..runtime(Known {
            name: "Ruby",
            files: &["libruby", "ruby"],
            symbols: &["ruby_version"],
            version: versions::ruby,
            mappings: &["[anon: Ruby:"],
            not_visible: "which of its objects live: slots of objects are in pages of 64 KiB that it allocates aligned, the rest is \
                malloc's. GC.stat and ObjectSpace.memsize_of_all tell, GC.compact makes room",
            ..NOTHING
        })
    },
    Runtime {
        by_name: false,
        in_program: true,
        ..runtime(Known {
            name: "PHP (Zend memory manager)",
            files: &["php", "libphp", "mod_php"],
            symbols: &["_emalloc", "zend_mm_gc"],
            version: versions::php,
            mappings: &["[anon:zend_alloc"],
            not_visible: "what scripts use: it maps chunks of 2 MiB and deals them out itself. memory_get_usage() and \
                memory_get_usage(true) tell, gc_mem_caches() gives back; USE_ZEND_ALLOC=0 has malloc do all of it",
            ..NOTHING
        })
    },
    runtime(Known {
        name: "HotSpot (Java)",
        files: &["libjvm.so"],
        version: versions::hotspot,
        not_visible: "which objects live, and how much of the Java heap is free: that heap, metaspace and code are mapped beside \
            malloc. `jcmd PID GC.heap_info` tells, with -XX:NativeMemoryTracking=summary `jcmd PID VM.native_memory` too; \
            `jcmd PID System.trim_native_heap` (since 18) calls malloc_trim",
        ..NOTHING
    }),
    Runtime {
        by_name: false,
        in_program: true,
        ..runtime(Known {
            name: "V8 (Node.js)",
            files: &["node", "libnode"],
            symbols: &["napi_get_node_version"],
            version: versions::node,
            mappings: &["[anon:v8"],
            not_visible: "which objects live: V8 maps the JavaScript heap itself, beside malloc, which serves buffers and native \
                code. process.memoryUsage() and v8.getHeapStatistics() tell, global.gc() with --expose-gc collects, \
                --max-old-space-size limits",
            ..NOTHING
        })
    },
    Runtime {
        by_name: false,
        in_program: true,
        ..runtime(Known {
            name: "V8",
            files: &["libv8.so", "chrome", "electron", "d8"],
            symbols: &["_ZN2v82V810GetVersionEv"],
            mappings: &["[anon:v8"],
            not_visible: "which objects live: V8 maps the JavaScript heap itself, beside malloc",
            ..NOTHING
        })
    },
    runtime(Known {
        name: ".NET",
        files: &["libcoreclr.so"],
        version: versions::folder,
        not_visible: "which objects live: the managed heap is mapped beside malloc. `dotnet-counters monitor -p PID` and \
            GC.GetGCMemoryInfo() tell; DOTNET_GCConserveMemory=9 keeps less",
        ..NOTHING
    }),
    runtime(Known {
        name: "Mono",
        files: &["libmonosgen", "libmono-2", "mono-sgen"],
        not_visible: "which objects live: the managed heap is mapped beside malloc",
        ..NOTHING
    }),
    runtime(Known {
        name: "Erlang (erts_alloc)",
        files: &["beam.smp", "beam.jit", "beam.emu"],
        version: versions::erlang,
        not_visible: "what is in use in its carriers, which it gets from mmap and malloc. erlang:memory() and \
            recon_alloc:fragmentation(current) tell",
        ..NOTHING
    }),
    runtime(Known {
        name: "LuaJIT",
        files: &["libluajit", "luajit"],
        not_visible: "which objects live: it maps its own memory. collectgarbage(\"count\") tells",
        ..NOTHING
    }),
    runtime(Known {
        name: "Tcl",
        files: &["libtcl8", "libtcl9", "libtcl.so"],
        version: versions::tcl,
        not_visible: "what is in use: threaded builds keep caches of small blocks by thread, and never give those back. \
            `memory info` tells in builds with memory debugging",
        ..NOTHING
    }),
    runtime(Known {
        name: "OCaml",
        files: &["ocamlrun", "libasmrun", "libcamlrun"],
        not_visible: "which objects live. Gc.stat () tells, Gc.compact () gives back",
        ..NOTHING
    }),
    Runtime {
        is_beside: true,
        ..runtime(Known {
            name: "Boehm collector",
            files: &["libgc.so"],
            not_visible: "which objects live: it maps its own memory. GC_PRINT_STATS=1 and GC_get_heap_size() tell, \
                GC_gcollect_and_unmap() gives back",
            ..NOTHING
        })
    },
    Runtime {
        by_name: false,
        ..runtime(Known {
            name: "PostgreSQL (memory contexts)",
            files: &["postgres"],
            symbols: &["MemoryContextAlloc", "palloc"],
            not_visible: "what is in use in its contexts, which take blocks from malloc. pg_backend_memory_contexts tells, \
                pg_log_backend_memory_contexts(PID) writes it to the log",
            ..NOTHING
        })
    },
];

/// GLib's slices, which are malloc's blocks since 2.76.
pub(super) const GLIB: Known = Known {
    name: "GLib slices",
    files: &["libglib-2.0.so"],
    version: versions::glib,
    not_visible: "what is in use: GLib before 2.76 keeps small blocks by size, and never gives those back. G_SLICE=always-malloc leaves \
        them to malloc",
    ..NOTHING
};

/// Go's runtime.
pub(super) const GO: Known = Known {
    name: "Go",
    mappings: &["[anon: Go:", "[anon:Go:"],
    not_visible: "which objects live: spans are Go's own. GODEBUG=gctrace=1 prints each collection, runtime/metrics and \
        runtime.ReadMemStats tell, debug.FreeOSMemory() gives back, GOMEMLIMIT limits",
    ..NOTHING
};

/// What goes with programs that are known to make a service of it.
pub(super) const REDIS: &str =
    ". Redis tells itself: MEMORY STATS, MEMORY MALLOC-STATS; MEMORY PURGE gives back";

impl Known {
    /// Whether a file is called like one of its.
    pub(super) fn is_called(&self, file_name: &str) -> bool {
        self.files.iter().any(|file| file_name.starts_with(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = &'static Known> {
        MALLOCS
            .iter()
            .chain(RUNTIMES.iter().map(|runtime| &runtime.known))
            .chain([&MUSL, &VALGRIND, &GLIB, &GO])
    }

    #[test]
    fn each_allocator_has_a_name_and_says_what_is_not_visible() {
        for known in all() {
            assert!(!known.name.is_empty());
            assert!(!known.not_visible.is_empty());
            assert!(!known.not_visible.contains("  "), "{}", known.name);
        }
    }

    #[test]
    fn names_that_are_looked_up_fit_the_lookup() {
        for symbol in all().flat_map(|known| known.symbols) {
            assert!(symbol.len() < 95, "{symbol}");
        }
    }
}
