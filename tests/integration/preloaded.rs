//! Programs on the bundled malloc without breaktrace around them: the library, preloaded as it is.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::OnceLock;

use crate::support::skip;

/// A way to set the allocator up: a name for messages, and variables of the environment.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) variables: &'static [(&'static str, &'static str)],
}

/// All that changes which way a request takes through the allocator.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        name: "as it comes",
        variables: &[],
    },
    Setting {
        name: "policy never",
        variables: &[("BREAKTRACE_HEAP_POLICY", "never")],
    },
    Setting {
        name: "policy eager",
        variables: &[("BREAKTRACE_HEAP_POLICY", "eager")],
    },
    Setting {
        name: "guard",
        variables: &[("BREAKTRACE_GUARD", "1")],
    },
    Setting {
        name: "guard, policy eager",
        variables: &[
            ("BREAKTRACE_GUARD", "1"),
            ("BREAKTRACE_HEAP_POLICY", "eager"),
        ],
    },
    Setting {
        name: "small mmap threshold",
        variables: &[("BREAKTRACE_MMAP_THRESHOLD", "8192")],
    },
    Setting {
        name: "one arena, no padding, trim at once",
        variables: &[
            ("BREAKTRACE_ARENA_MAX", "1"),
            ("BREAKTRACE_TOP_PAD", "0"),
            ("BREAKTRACE_TRIM_THRESHOLD", "0"),
        ],
    },
];

/// The library as breaktrace carries it, in a file.
///
/// Panics if a program that it is preloaded into does not use it: every test would pass on the C library's malloc.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let written = folder.path().join("libbreaktrace.so");
        fs::write(
            &written,
            include_bytes!(concat!(env!("OUT_DIR"), "/libbreaktrace.so")),
        )
        .unwrap();
        // In one step: another run of the tests may be using the file.
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libbreaktrace.so");
        fs::rename(&written, &place).unwrap();
        let maps = Command::new("cat")
            .arg("/proc/self/maps")
            .env("LD_PRELOAD", &place)
            .output()
            .unwrap();
        let maps = String::from_utf8_lossy(&maps.stdout).into_owned();
        assert!(
            maps.contains("breaktrace-stats"),
            "a program with the library preloaded has no statistics page:\n{maps}"
        );
        place
    })
}

/// Puts a program on the library, set up in one way. It dies if the library takes something for a heap error.
pub(crate) fn preload<'a>(command: &'a mut Command, setting: &Setting) -> &'a mut Command {
    command
        .env("LD_PRELOAD", library())
        .env("BREAKTRACE_ON_HEAP_ERROR", "abort")
        .envs(setting.variables.iter().copied())
}

/// Compiles a fixture with optimization, once; `None` if there is no compiler that can.
///
/// The compiler must not know malloc: it leaves out calls whose results it can guess.
pub(crate) fn compiled(source: &str) -> Option<PathBuf> {
    static COMPILED: Mutex<Option<HashMap<String, Option<PathBuf>>>> = Mutex::new(None);
    // A test that failed while it held the lock has left nothing half done.
    let mut guard = COMPILED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    guard
        .get_or_insert_default()
        .entry(source.to_owned())
        .or_insert_with(|| compile(source))
        .clone()
}

fn compile(source: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(source);
    let compiler = if source.ends_with(".cpp") {
        "c++"
    } else {
        "cc"
    };
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(path.file_stem().unwrap());
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let written = folder.path().join("program");
    let output = Command::new(compiler)
        .args(["-O3", "-g", "-w", "-fno-builtin", "-pthread", "-o"])
        .arg(&written)
        .arg(&path)
        .output();
    match output {
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => {
            skip(&format!("{compiler}, which compiles {source}: {error}"));
            return None;
        }
    }
    fs::rename(&written, &place).unwrap();
    Some(place)
}
