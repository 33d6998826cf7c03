//! Which variables of a program's environment change how it uses memory.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::stats_page;

/// Names that matter.
const NAMES: &[&str] = &[
    "GLIBC_TUNABLES",
    "GOGC",
    "GOMAXPROCS",
    "GOMEMLIMIT",
    "GODEBUG",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LANG",
    "LANGUAGE",
    "LD_PRELOAD",
    "NODE_OPTIONS",
    "OMP_NUM_THREADS",
    "PERL_HASH_SEED",
    "PERL_PERTURB_KEYS",
    "RUBYOPT",
    "UV_THREADPOOL_SIZE",
];

/// Beginnings of names that matter: the settings of mallocs and of runtimes' pools, and the locale.
const PREFIXES: &[&str] = &[
    "JEMALLOC_",
    "LC_",
    "MALLOC_",
    "MIMALLOC_",
    "PYTHON",
    "RUBY_GC_",
    "TCMALLOC_",
];

/// Variables of Python's that say where files are, and not how memory is used: they differ from machine to machine.
const OF_PLACES: &[&str] = &[
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONPYCACHEPREFIX",
    "PYTHONUSERBASE",
];

/// Settings of the bundled allocator that change how it uses memory.
const OF_OUR_MALLOC: &[&str] = &[
    stats_page::environment::POLICY,
    stats_page::environment::GUARD,
    stats_page::environment::MMAP_THRESHOLD,
    stats_page::environment::TRIM_THRESHOLD,
    stats_page::environment::TOP_PAD,
    stats_page::environment::ARENA_MAX,
];

fn matters(name: &str) -> bool {
    let is_named = NAMES.contains(&name)
        || OF_OUR_MALLOC.contains(&name)
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    is_named && !OF_PLACES.contains(&name)
}

/// The variables that matter, of those that a program gets: ours, and `set` for it.
pub(super) fn that_matters(set: &[(OsString, OsString)]) -> BTreeMap<String, String> {
    std::env::vars_os()
        .chain(set.iter().cloned())
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| matters(name))
        .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_mallocs_matter_and_places_of_files_do_not() {
        for name in [
            "MALLOC_ARENA_MAX",
            "GLIBC_TUNABLES",
            "PYTHONMALLOC",
            "LC_ALL",
        ] {
            assert!(matters(name), "{name}");
        }
        for name in [
            "HOME",
            "PATH",
            "PYTHONPATH",
            "MALLOCX",
            "GITHUB_SHA",
            "BREAKTRACE_TEST_REQUIRE",
        ] {
            assert!(!matters(name), "{name}");
        }
    }

    #[test]
    fn what_is_set_for_the_program_counts_last() {
        let set = [
            ("MALLOC_TOP_PAD_".into(), "1".into()),
            ("MALLOC_TOP_PAD_".into(), "2".into()),
        ];
        assert_eq!(that_matters(&set)["MALLOC_TOP_PAD_"], "2");
    }
}
