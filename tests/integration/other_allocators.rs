//! Programs with other allocators than glibc's, looked at while they run: which they are is what the programs themselves say.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use breaktrace::event::AllocatorRole;
use breaktrace::event::RecognisedAllocator;
use breaktrace::heap_walk;
use breaktrace::heap_walk::Depth;
use breaktrace::heap_walk::Recogniser;
use breaktrace::tracer::LiveImage;

use crate::support::Running;
use crate::support::breaktrace;
use crate::support::child_running;
use crate::support::compile;
use crate::support::fact;
use crate::support::finish;
use crate::support::folder;
use crate::support::installed;
use crate::support::number;
use crate::support::python;
use crate::support::skip;
use crate::support::status;
use crate::support::trace;
use crate::support::valgrind;

/// Looks at a running program, both ways, which must agree.
#[track_caller]
fn allocators(pid: u32) -> Vec<RecognisedAllocator> {
    let image = LiveImage::of_process(pid).unwrap();
    let located = heap_walk::locate(&image);
    let found = heap_walk::recognise(&image, &located);
    let quick = Recogniser::default().recognise(&image, &located, Depth::Quick);
    for one in &quick {
        let same = found
            .iter()
            .find(|other| (&other.name, other.role) == (&one.name, one.role));
        assert!(same.is_some(), "{one:#?}\nis not among {found:#?}");
    }
    found
}

/// The one that serves malloc; there must not be two.
#[track_caller]
fn in_charge(found: &[RecognisedAllocator]) -> &RecognisedAllocator {
    let mut serving = found
        .iter()
        .filter(|found| found.role == AllocatorRole::InCharge);
    let (first, second) = (serving.next(), serving.next());
    assert!(second.is_none(), "{found:#?}");
    first.unwrap_or_else(|| panic!("nobody is in charge: {found:#?}"))
}

#[track_caller]
fn named<'a>(found: &'a [RecognisedAllocator], name: &str) -> &'a RecognisedAllocator {
    found
        .iter()
        .find(|found| found.name == name)
        .unwrap_or_else(|| panic!("no {name} among {found:#?}"))
}

/// Starts a program that prints a line once it has begun, and waits for the end of its input. Returns the line.
#[track_caller]
fn start(command: &mut Command) -> (Running, String) {
    let mut running = Running::start_obedient(command);
    let line = running.line();
    (running, line)
}

/// A library of Debian's, or of another distribution.
fn library(name: &str) -> Option<PathBuf> {
    let folders = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ];
    folders
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
}

/// Preloads a malloc into a Python that says by `version` which it is. Returns what is told of it, and what it says.
#[track_caller]
fn preloaded(name: &str, version: &str) -> Option<(Vec<RecognisedAllocator>, String)> {
    let (Some(python), Some(library)) = (python(), library(name)) else {
        skip(&format!("no python3, or no {name}"));
        return None;
    };
    let program = format!(
        "import ctypes, sys\nc = ctypes.CDLL(None)\n{version}\nprint(told, flush=True)\nsys.stdin.read()"
    );
    let mut command = Command::new(python);
    command.args(["-c", &program]).env("LD_PRELOAD", library);
    let (running, line) = start(&mut command);
    let found = allocators(running.pid());
    let ended = running.finish();
    assert_eq!(ended.ending(), (Some(0), None), "{ended:#?}");
    assert_eq!(
        in_charge(&found).file.as_deref().map(stem),
        Some(stem(name))
    );
    let glibc = named(&found, "glibc malloc");
    assert_eq!(glibc.role, AllocatorRole::Unused, "{found:#?}");
    assert_eq!(named(&found, "CPython").role, AllocatorRole::Above);
    Some((found, line))
}

/// The name of a library without folders and version.
fn stem(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".so").next().unwrap_or(file)
}

#[test]
fn a_preloaded_jemalloc_serves_malloc_and_has_the_version_that_it_says() {
    let version = "p = ctypes.c_char_p()\n\
        n = ctypes.c_size_t(8)\n\
        c.mallctl(b'version', ctypes.byref(p), ctypes.byref(n), None, ctypes.c_size_t(0))\n\
        told = p.value.decode()";
    let Some((found, told)) = preloaded("libjemalloc.so.2", version) else {
        return;
    };
    let jemalloc = in_charge(&found);
    assert_eq!(jemalloc.name, "jemalloc");
    let version = jemalloc.version.as_deref().unwrap();
    assert!(
        told.starts_with(&format!("{version}-")),
        "{version}, {told}"
    );
}

#[test]
fn a_preloaded_mimalloc_serves_malloc_and_has_the_version_that_it_says() {
    let version = "n = c.mi_version()\ntold = f'{n // 100}.{n // 10 % 10}.{n % 10}' if n < 1000 \
        else f'{n // 10000}.{n // 100 % 100}.{n % 100}'";
    let Some((found, told)) = preloaded("libmimalloc.so.2", version) else {
        return;
    };
    let mimalloc = in_charge(&found);
    assert_eq!(mimalloc.name, "mimalloc");
    assert_eq!(mimalloc.version.as_deref(), Some(told.as_str()));
}

#[test]
fn a_preloaded_tcmalloc_serves_malloc_and_has_the_version_that_it_says() {
    let version = "c.tc_version.restype = ctypes.c_char_p\n\
        told = c.tc_version(None, None, None).decode()";
    let Some((found, told)) = preloaded("libtcmalloc_minimal.so.4", version) else {
        return;
    };
    let tcmalloc = in_charge(&found);
    assert_eq!(tcmalloc.name, "tcmalloc (gperftools)");
    let version = tcmalloc.version.as_deref().unwrap();
    assert_eq!(told, format!("gperftools {version}"));
}

#[test]
fn redis_is_on_the_malloc_that_it_says() {
    let Some(redis) = installed(&["redis-server"]) else {
        return skip("redis-server is not installed");
    };
    // Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64
    let told = finish(Command::new(&redis).arg("--version")).stdout;
    let malloc = told
        .split_whitespace()
        .find_map(|word| word.strip_prefix("malloc="))
        .unwrap();
    let folder = folder();
    let mut command = Command::new(&redis);
    command
        .args(["--port", "0", "--save", "", "--unixsocket", "socket"])
        .current_dir(folder.path());
    let mut running = Running::start(&mut command);
    while !running.line().to_lowercase().contains("ready to accept") {}
    let found = allocators(running.pid());
    running.send(libc::SIGTERM);
    running.finish();
    let serving = in_charge(&found);
    match malloc.split_once('-') {
        Some((name, version)) => {
            assert_eq!(serving.name, name);
            assert_eq!(serving.version.as_deref(), Some(version));
            assert_eq!(named(&found, "glibc malloc").role, AllocatorRole::Unused);
        }
        None => assert_eq!(serving.name, "glibc malloc"),
    }
    let advice = serving.not_visible.as_deref();
    assert!(malloc == "libc" || advice.unwrap().contains("MEMORY PURGE"));
}

/// Compiles the fixture for musl.
fn musl(flags: &[&str]) -> Option<PathBuf> {
    let compiler = installed(&["musl-gcc"])?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/idle_blocks.c");
    let name = format!("idle_blocks_musl{}", flags.concat());
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = Command::new(compiler)
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(source)
        .output()
        .ok()?;
    output.status.success().then_some(program)
}

#[test]
fn musls_malloc_is_found_in_programs_linked_either_way() {
    for flags in [&[][..], &["-static"], &["-static", "-s"]] {
        let Some(program) = musl(flags) else {
            return skip("musl-gcc is not installed, or cannot make a program");
        };
        let (running, line) = start(&mut Command::new(&program));
        let found = allocators_thorough(running.pid());
        let data = status(running.pid(), "VmData").unwrap();
        let block = number(fact(&line, "block"));
        running.finish();
        let serving = in_charge(&found);
        assert_eq!(serving.name, "musl malloc", "{found:#?}");
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(
            serving.version.is_some(),
            flags.is_empty(),
            "musl's library alone has its version: {found:#?}"
        );
        // Nearly all blocks are in groups with mappings of their own.
        let mapped = serving.mapped_bytes.unwrap();
        let data = 1024 * number(data.trim_end_matches(" kB"));
        assert!(mapped >= 3_800_000 && mapped <= data, "{mapped} of {data}");
        assert!(serving.resident_bytes.unwrap() >= 3_800_000);
        assert_ne!(block, 0);
    }
}

/// Looks at a program of which a quick look sees less.
#[track_caller]
fn allocators_thorough(pid: u32) -> Vec<RecognisedAllocator> {
    let image = LiveImage::of_process(pid).unwrap();
    let located = heap_walk::locate(&image);
    heap_walk::recognise(&image, &located)
}

#[test]
fn a_static_program_has_glibcs_malloc() {
    let Some(program) = compile("idle_blocks", &["-static"]) else {
        return skip("cc cannot link statically");
    };
    let (running, _) = start(&mut Command::new(&program));
    let found = allocators(running.pid());
    running.finish();
    assert_eq!(in_charge(&found).name, "glibc malloc");
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn a_sanitizers_malloc_is_not_glibcs() {
    let Some(program) = compile("idle_blocks", &["-fsanitize=address"]) else {
        return skip("cc has no address sanitizer");
    };
    let (running, _) = start(&mut Command::new(&program));
    let found = allocators(running.pid());
    running.finish();
    assert_eq!(in_charge(&found).name, "AddressSanitizer");
    assert_eq!(named(&found, "glibc malloc").role, AllocatorRole::Unused);
}

#[test]
fn under_valgrind_its_malloc_serves() {
    let (Some(valgrind), Some(program)) = (valgrind(), compile("idle_blocks", &[])) else {
        return skip("no valgrind, or no C compiler");
    };
    let (running, _) = start(Command::new(valgrind).arg("-q").arg(program));
    let found = allocators(running.pid());
    running.finish();
    assert_eq!(in_charge(&found).name, "Valgrind");
    assert_eq!(named(&found, "glibc malloc").role, AllocatorRole::Unused);
}

const GO: &str = r#"package main
import ("bufio"; "fmt"; "os"; "runtime")
var kept [][]byte
func main() {
	for i := 0; i < 200; i++ { kept = append(kept, make([]byte, 100000)) }
	fmt.Println(runtime.Version())
	bufio.NewReader(os.Stdin).ReadString('\n')
	fmt.Println(len(kept))
}
"#;

const GO_WITH_C: &str = r#"package main
// #include <stdlib.h>
import "C"
import ("bufio"; "fmt"; "os"; "runtime")
func main() {
	block := C.malloc(1000)
	fmt.Println(runtime.Version())
	bufio.NewReader(os.Stdin).ReadString('\n')
	C.free(block)
}
"#;

/// Builds a program of Go's, and looks at it.
fn look_at_go(source: &str, flags: &[&str]) -> Option<(Vec<RecognisedAllocator>, String)> {
    let go = installed(&["go"])?;
    let folder = folder();
    fs::write(folder.path().join("main.go"), source).unwrap();
    let built = Command::new(go)
        .args(["build", "-o", "program"])
        .args(flags)
        .arg("main.go")
        .env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"))
        .env("GOFLAGS", "")
        .current_dir(folder.path())
        .output()
        .ok()?;
    if !built.status.success() {
        return None;
    }
    let (running, line) = start(&mut Command::new(folder.path().join("program")));
    let found = allocators(running.pid());
    running.finish();
    Some((found, line))
}

#[test]
fn programs_of_go_have_its_allocator_and_the_version_that_they_say() {
    for flags in [&[][..], &["-ldflags=-s -w"]] {
        let Some((found, told)) = look_at_go(GO, flags) else {
            return skip("go is not installed, or cannot build");
        };
        let go = in_charge(&found);
        assert_eq!(go.name, "Go");
        assert_eq!(format!("go{}", go.version.as_deref().unwrap()), told);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(go.mapped_bytes.unwrap() >= 20_000_000, "{go:#?}");
        assert!(go.resident_bytes.unwrap() <= go.mapped_bytes.unwrap());
        assert!(go.lazily_free_bytes.is_some(), "{go:#?}");
    }
}

#[test]
fn go_with_c_has_two_allocators() {
    let Some((found, told)) = look_at_go(GO_WITH_C, &[]) else {
        return skip("go is not installed, or there is no C compiler for it");
    };
    assert_eq!(in_charge(&found).name, "glibc malloc");
    let go = named(&found, "Go");
    assert_eq!(go.role, AllocatorRole::Beside);
    assert_eq!(format!("go{}", go.version.as_deref().unwrap()), told);
}

/// Looks at a program that prints its version; it is to be on glibc's malloc, with pools by `name` above.
#[track_caller]
fn expect_runtime(command: &mut Command, name: &str, told: impl Fn(&str) -> String) {
    let (running, line) = start(command);
    let found = allocators(running.pid());
    running.finish();
    assert_eq!(in_charge(&found).name, "glibc malloc");
    let runtime = named(&found, name);
    assert_eq!(runtime.role, AllocatorRole::Above);
    assert_eq!(runtime.version.as_deref(), Some(told(&line).as_str()));
    assert!(runtime.not_visible.is_some());
}

#[test]
fn pools_of_python_are_above_malloc() {
    let Some(python) = python() else {
        return skip("python3 is not installed");
    };
    let program =
        "import platform, sys\nprint(platform.python_version(), flush=True)\nsys.stdin.read()";
    expect_runtime(
        Command::new(python).args(["-c", program]),
        "CPython",
        |line| {
            // Before 3.11 no more than the file's name tells.
            let mut parts = line.split('.');
            let minor: u32 = parts.nth(1).unwrap().parse().unwrap();
            if minor < 11 {
                format!("3.{minor}")
            } else {
                line.to_owned()
            }
        },
    );
}

#[test]
fn pools_of_ruby_are_above_malloc() {
    let Some(ruby) = installed(&["ruby"]) else {
        return skip("ruby is not installed");
    };
    let program = "puts RUBY_VERSION; $stdout.flush; $stdin.read";
    expect_runtime(
        Command::new(ruby).args(["-e", program]),
        "Ruby",
        str::to_owned,
    );
}

#[test]
fn the_heap_of_node_is_above_malloc() {
    let Some(node) = installed(&["node", "nodejs"]) else {
        return skip("node is not installed");
    };
    let program = "console.log(process.versions.v8); process.stdin.resume()";
    expect_runtime(
        Command::new(node).args(["-e", program]),
        "V8 (Node.js)",
        str::to_owned,
    );
}

#[test]
fn the_heap_of_java_is_above_malloc() {
    let (Some(java), Some(compiler)) = (installed(&["java"]), installed(&["javac"])) else {
        return skip("java or javac is not installed");
    };
    let folder = folder();
    let source = "class Idle { public static void main(String[] a) throws Exception { \
        System.out.println(System.getProperty(\"java.vm.version\")); \
        while (System.in.read() >= 0) {} } }";
    fs::write(folder.path().join("Idle.java"), source).unwrap();
    finish(
        Command::new(compiler)
            .arg("Idle.java")
            .current_dir(folder.path()),
    )
    .expect_code(0);
    expect_runtime(
        Command::new(java)
            .args(["-Xmx64m", "-cp"])
            .arg(folder.path())
            .arg("Idle"),
        "HotSpot (Java)",
        str::to_owned,
    );
}

#[test]
fn perl_has_glibcs_malloc_and_nothing_else() {
    let Some(perl) = installed(&["perl"]) else {
        return skip("perl is not installed");
    };
    let program = "$| = 1; print \"ready\\n\"; <STDIN>";
    let (running, _) = start(Command::new(perl).args(["-e", program]));
    let found = allocators(running.pid());
    running.finish();
    assert_eq!(in_charge(&found).name, "glibc malloc");
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn the_bundled_malloc_is_known_from_outside() {
    let Some(program) = compile("idle_blocks", &[]) else {
        return skip("no C compiler");
    };
    let mut command = breaktrace();
    command
        .args(["run", "-q", "--allocator", "bundled", "--"])
        .arg(&program);
    let (running, _) = start(&mut command);
    let found = allocators(child_running(running.pid(), &program));
    running.finish();
    let bundled = in_charge(&found);
    assert_eq!(bundled.name, "breaktrace's bundled malloc");
    assert!(bundled.evidence.contains("page"), "{bundled:#?}");
    assert_eq!(named(&found, "glibc malloc").role, AllocatorRole::Unused);
}

#[test]
fn a_heap_looked_through_under_trace_comes_with_its_allocators() {
    let Some(python) = python() else {
        return skip("python3 is not installed");
    };
    let traced = trace(&[], [python.as_os_str(), "-c".as_ref(), "pass".as_ref()]);
    let examined: Vec<_> = traced
        .events
        .iter()
        .filter(|event| event["event"] == "heap_examined")
        .collect();
    assert!(!examined.is_empty());
    for event in examined {
        let names: Vec<_> = event["allocators"]
            .as_array()
            .unwrap()
            .iter()
            .map(|found| {
                (
                    found["name"].as_str().unwrap(),
                    found["role"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(names, [("glibc malloc", "in_charge"), ("CPython", "above")]);
    }
}

#[test]
fn a_program_under_trace_on_another_malloc_says_so_and_shows_no_heap() {
    let (Some(python), Some(library)) = (python(), library("libjemalloc.so.2")) else {
        return skip("no python3, or no libjemalloc.so.2");
    };
    let options = ["--allocator", library.to_str().unwrap()];
    let traced = trace(
        &options,
        [python.as_os_str(), "-c".as_ref(), "pass".as_ref()],
    );
    let heap = traced.report.address_spaces[0].heap.as_ref().unwrap();
    let found = &heap.examination.allocators;
    assert_eq!(in_charge(found).name, "jemalloc");
    assert_eq!(named(found, "glibc malloc").role, AllocatorRole::Unused);
    assert!(heap.examination.heaps.is_empty());
    // What cannot be seen is no figure.
    let account = traced.report.address_spaces[0].allocator.as_ref();
    assert!(account.is_none_or(|account| account.last.is_none()));
}
