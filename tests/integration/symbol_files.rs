//! Where symbols come from: files beside the program and elsewhere, compressed, split, of another build, or not at all.
//!
//! The tools that make such files are binutils' and the compiler's own.

use std::ffi::OsStr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use breaktrace::report::Report;
use breaktrace::report::StackModule;
use breaktrace::symbols::SymbolSource;

use crate::culprits::build;
use crate::culprits::expect_marks;
use crate::culprits::paths;
use crate::culprits::source;
use crate::support::breaktrace;
use crate::support::finish;
use crate::support::folder;
use crate::support::installed;
use crate::support::skip;

/// A program with debug information in a folder of its own, and what its symbols are looked up with.
struct Bench {
    folder: tempfile::TempDir,
    source: PathBuf,
    program: PathBuf,
    objcopy: PathBuf,
}

impl Bench {
    /// `None` without a compiler or binutils.
    fn of(name: &str) -> Option<Self> {
        let folder = folder();
        let source = source(name);
        let program = build(&source, folder.path())?;
        Some(Self {
            folder,
            source,
            program,
            objcopy: installed(&["objcopy"])?,
        })
    }

    /// Whether objcopy does this; it may be too old for it.
    fn objcopy<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> bool {
        let mut command = Command::new(&self.objcopy);
        command.args(arguments).output().unwrap().status.success()
    }

    fn compile(&self, options: &[&str]) -> bool {
        let compiler = match self.source.extension().and_then(OsStr::to_str) {
            Some("c") => installed(&["cc"]),
            _ => installed(&["c++", "g++"]),
        };
        Command::new(compiler.unwrap())
            .current_dir(self.folder.path())
            .args(options)
            .arg("-o")
            .arg(&self.program)
            .arg(&self.source)
            .output()
            .unwrap()
            .status
            .success()
    }

    /// Puts the debug information into a file of its own, and strips the program of all symbols.
    fn separate(&self, debug: &Path) {
        std::fs::create_dir_all(debug.parent().unwrap()).unwrap();
        let made = self.objcopy([
            "--only-keep-debug".as_ref(),
            self.program.as_os_str(),
            debug.as_os_str(),
        ]);
        assert!(made && self.objcopy(["--strip-all".as_ref(), self.program.as_os_str()]));
    }

    fn report_path(&self) -> PathBuf {
        self.folder.path().join("report.json")
    }

    fn run(&self, options: &[&OsStr]) -> Report {
        let ended = finish(
            breaktrace()
                .args(["run", "-q", "-o"])
                .arg(self.report_path())
                .args(options)
                .arg("--")
                .arg(&self.program),
        );
        ended.expect_code(0);
        self.report()
    }

    /// What `symbolize` makes of the last report; and what it says.
    fn symbolize(&self, debug_folder: Option<&Path>) -> (Report, String) {
        let mut command = breaktrace();
        command.arg("symbolize").arg(self.report_path());
        if let Some(folder) = debug_folder {
            command.arg("--debug-dir").arg(folder);
        }
        let ended = finish(&mut command);
        ended.expect_code(0);
        (self.report(), ended.stderr)
    }

    fn report(&self) -> Report {
        let text = std::fs::read_to_string(self.report_path()).unwrap();
        breaktrace::report::from_json(&text).unwrap()
    }

    /// The program's module.
    fn module(&self, report: &Report) -> StackModule {
        let stacks = report.stacks.as_ref().unwrap();
        let mut modules = stacks.modules.iter();
        let found = modules.find(|module| Path::new(&module.path) == self.program);
        found.unwrap().clone()
    }

    #[track_caller]
    fn expect_all(&self, report: &Report) {
        let symbols = self.module(report).symbols;
        assert_eq!(symbols.source, SymbolSource::DebugInfo, "{symbols:?}");
        assert_eq!(symbols.reason, None);
        expect_marks(report, &self.source);
    }

    /// Places in the program without a name.
    fn offsets(&self, report: &Report) -> usize {
        let name = self.program.file_name().unwrap().to_str().unwrap();
        let beginning = format!("{name}+0x");
        paths(report)
            .flat_map(|path| &path.path)
            .filter(|step| step.starts_with(&beginning))
            .count()
    }
}

macro_rules! bench {
    ($name:literal) => {
        match Bench::of($name) {
            Some(bench) => bench,
            None => return skip("there is no compiler, or no objcopy"),
        }
    };
}

#[test]
fn debug_files_are_found_by_build_id_in_a_folder() {
    let bench = bench!("table.cpp");
    let with_symbols = bench.run(&[]);
    bench.expect_all(&with_symbols);
    let id = bench.module(&with_symbols).build_id.unwrap();
    let folder = bench.folder.path().join("symbols");
    bench.separate(
        &folder
            .join(".build-id")
            .join(&id[..2])
            .join(format!("{}.debug", &id[2..])),
    );
    let without = bench.run(&[]);
    assert_eq!(
        bench.module(&without).symbols.source,
        SymbolSource::None,
        "stripped, and nobody said where the rest is"
    );
    let with = bench.run(&["--debug-dir".as_ref(), folder.as_os_str()]);
    bench.expect_all(&with);
}

#[test]
fn debug_files_are_found_by_their_link() {
    let bench = bench!("table.c");
    // Without a build ID, so that the link is all there is.
    if !bench.compile(&["-O2", "-g", "-fomit-frame-pointer", "-Wl,--build-id=none"]) {
        return skip("this linker always makes build IDs");
    }
    let folder = bench.folder.path();
    let debug = folder.join("linked.dbg");
    bench.separate(&debug);
    let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
    link.push(&debug);
    assert!(bench.objcopy([&link, bench.program.as_os_str()]));
    let beside = bench.run(&[]);
    assert_eq!(bench.module(&beside).build_id, None);
    bench.expect_all(&beside);
    // In the folder that gdb looks into as well.
    std::fs::create_dir(folder.join(".debug")).unwrap();
    std::fs::rename(&debug, folder.join(".debug/linked.dbg")).unwrap();
    bench.expect_all(&bench.run(&[]));
    // A file of that name that is another one.
    std::fs::write(folder.join(".debug/linked.dbg"), "not it").unwrap();
    let other = bench.run(&[]);
    assert_eq!(bench.module(&other).symbols.source, SymbolSource::None);
}

#[test]
fn all_versions_of_dwarf_are_read() {
    let bench = bench!("table.cpp");
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        assert!(bench.compile(&["-O2", "-g", version]));
        bench.expect_all(&bench.run(&[]));
    }
}

#[test]
fn compressed_debug_information_is_read_or_the_way_to_decompress_it_is_told() {
    let bench = bench!("table.cpp");
    let plain = bench.folder.path().join("plain");
    std::fs::copy(&bench.program, &plain).unwrap();
    for method in ["zlib", "zlib-gnu", "zstd"] {
        let how = format!("--compress-debug-sections={method}");
        if !bench.objcopy([how.as_ref(), plain.as_os_str(), bench.program.as_os_str()]) {
            skip("this objcopy does not compress so");
            continue;
        }
        let report = bench.run(&[]);
        let symbols = bench.module(&report).symbols;
        if symbols.source == SymbolSource::DebugInfo {
            bench.expect_all(&report);
            continue;
        }
        assert_ne!(method, "zlib", "what compilers and distributions do");
        assert_eq!(symbols.source, SymbolSource::Names);
        let reason = symbols.reason.unwrap();
        assert!(reason.contains("--decompress-debug-sections"), "{reason}");
        // And that is the way.
        let folder = bench.folder.path().join(format!("from {method}"));
        std::fs::create_dir(&folder).unwrap();
        let decompressed = folder.join(bench.program.file_name().unwrap());
        assert!(bench.objcopy([
            "--decompress-debug-sections".as_ref(),
            bench.program.as_os_str(),
            decompressed.as_os_str(),
        ]));
        bench.expect_all(&bench.symbolize(Some(&folder)).0);
    }
}

#[test]
fn of_split_debug_information_it_is_said_what_is_missing() {
    let bench = bench!("table.c");
    if !bench.compile(&["-O2", "-g", "-gsplit-dwarf"]) {
        return skip("this compiler does not split debug information");
    }
    let report = bench.run(&[]);
    let symbols = bench.module(&report).symbols;
    assert_eq!(symbols.source, SymbolSource::DebugInfo);
    let reason = symbols.reason.unwrap();
    assert!(reason.contains("inlined functions are missing"), "{reason}");
    // The table of lines stays in the program.
    expect_marks(&report, &bench.source);
}

#[test]
fn a_program_stripped_of_its_symbols_gets_them_elsewhere() {
    let bench = bench!("table.c");
    let folder = bench.folder.path().join("symbols");
    bench.separate(&folder.join("table_of_c.debug"));
    let before = bench.run(&[]);
    let module = bench.module(&before);
    assert_eq!(module.symbols.source, SymbolSource::None);
    assert!(module.build_id.is_some());
    assert!(bench.offsets(&before) > 3);
    let (after, said) = bench.symbolize(Some(&folder));
    bench.expect_all(&after);
    assert_eq!(bench.offsets(&after), 0);
    assert!(said.contains("names and lines"), "{said}");
    // Once known it stays known, whatever is still there.
    std::fs::remove_file(&bench.program).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    bench.expect_all(&bench.symbolize(None).0);
}

#[test]
fn a_file_of_another_build_is_refused_and_the_right_one_taken() {
    let bench = bench!("table.c");
    let right = bench.folder.path().join("as it ran");
    std::fs::create_dir(&right).unwrap();
    std::fs::copy(
        &bench.program,
        right.join(bench.program.file_name().unwrap()),
    )
    .unwrap();
    bench.run(&["--no-symbols".as_ref()]);
    // The same source, but another program: what was recorded would be at wrong lines in it.
    std::fs::remove_file(&bench.program).unwrap();
    assert!(bench.compile(&["-O0", "-g"]));
    let (refused, said) = bench.symbolize(None);
    assert_eq!(bench.module(&refused).symbols.source, SymbolSource::None);
    assert!(said.contains("build IDs differ"), "{said}");
    assert!(bench.offsets(&refused) > 3);
    bench.expect_all(&bench.symbolize(Some(&right)).0);
}

#[test]
fn a_file_that_is_gone_is_asked_for() {
    let bench = bench!("table.c");
    bench.run(&["--no-symbols".as_ref()]);
    let elsewhere = bench.folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::rename(&bench.program, elsewhere.join("other name")).unwrap();
    let (missing, said) = bench.symbolize(Some(&elsewhere));
    assert_eq!(bench.module(&missing).symbols.source, SymbolSource::None);
    assert!(said.contains("--debug-dir"), "{said}");
    std::fs::rename(
        elsewhere.join("other name"),
        elsewhere.join(bench.program.file_name().unwrap()),
    )
    .unwrap();
    bench.expect_all(&bench.symbolize(Some(&elsewhere)).0);
}
