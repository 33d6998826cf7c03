//! Programs and libraries with damaged ELF and DWARF: they cost their own stacks and symbols, and nothing else.

use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use breaktrace::report::Report;
use object::Object;
use object::ObjectSection;

use crate::support::breaktrace;
use crate::support::finish;
use crate::support::folder;
use crate::support::installed;
use crate::support::skip;

/// More rounds with BREAKTRACE_SOAK=1.
fn rounds(usual: usize) -> usize {
    if std::env::var_os("BREAKTRACE_SOAK").is_some() {
        usual * 50
    } else {
        usual
    }
}

/// No file may take longer, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Numbers that are the same in each run (Marsaglia, "Xorshift RNGs").
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        match self.below(4) {
            0 => 0,
            1 => 0xff,
            _ => u8::try_from(self.below(256)).unwrap(),
        }
    }
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/culprits/table.cpp")
}

/// The program, with all kinds of debug information in it; `None` without a compiler.
fn build(place: &Path) -> Option<()> {
    let status = Command::new(installed(&["c++", "g++"])?)
        .args(["-O2", "-g"])
        .arg("-o")
        .arg(place)
        .arg(source())
        .status()
        .unwrap();
    assert!(status.success());
    Some(())
}

/// Stretches of the file that belong to these sections, and its headers.
fn stretches(file: &[u8], sections: &[&str], with_headers: bool) -> Vec<Range<usize>> {
    let elf = object::File::parse(file).unwrap();
    let mut found: Vec<Range<usize>> = sections
        .iter()
        .filter_map(|name| elf.section_by_name(name)?.file_range())
        .map(|(start, length)| {
            let start = usize::try_from(start).unwrap();
            start..start + usize::try_from(length).unwrap()
        })
        .filter(|stretch| !stretch.is_empty())
        .collect();
    if with_headers {
        // The ELF header but for what makes it one, and the section headers, which come last.
        found.push(32..64);
        found.push(file.len() - 64 * 30..file.len());
    }
    found
}

fn damage(whole: &[u8], stretches: &[Range<usize>], random: &mut Random) -> Vec<u8> {
    let mut damaged = whole.to_vec();
    let stretch = &stretches[random.below(stretches.len())];
    for _ in 0..=random.below(40) {
        let at = stretch.start + random.below(stretch.len());
        damaged[at] = random.byte();
    }
    damaged
}

fn read(path: &Path) -> Report {
    let text = std::fs::read_to_string(path).unwrap();
    breaktrace::report::from_json(&text).unwrap()
}

/// How many frames have a function with a line.
fn lines(report: &Report) -> usize {
    let stacks = report.stacks.as_ref().unwrap();
    stacks
        .frames
        .iter()
        .flat_map(|frame| &frame.functions)
        .filter(|function| {
            function.line.is_some()
                && function
                    .file
                    .as_deref()
                    .is_some_and(|file| file.contains("table.cpp"))
        })
        .count()
}

#[test]
fn damaged_debug_information_costs_its_symbols_and_nothing_else() {
    let folder = folder();
    let program = folder.path().join("program");
    if build(&program).is_none() {
        return skip("there is no C++ compiler");
    }
    let recorded = folder.path().join("recorded.json");
    finish(
        breaktrace()
            .args(["run", "-q", "--no-symbols", "-o"])
            .arg(&recorded)
            .arg("--")
            .arg(&program),
    )
    .expect_code(0);
    let whole = std::fs::read(&program).unwrap();
    std::fs::remove_file(&program).unwrap();
    // The libraries' symbols are looked up once.
    finish(breaktrace().arg("symbolize").arg(&recorded)).expect_code(0);
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let answer = folder.path().join("answer.json");
    let symbolize = |bytes: &[u8]| {
        std::fs::write(elsewhere.join("program"), bytes).unwrap();
        let begin = Instant::now();
        let ended = finish(
            breaktrace()
                .arg("symbolize")
                .arg(&recorded)
                .arg("--debug-dir")
                .arg(&elsewhere)
                .arg("-o")
                .arg(&answer),
        );
        ended.expect_code(0);
        assert!(begin.elapsed() < PATIENCE, "it took too long");
        let report = read(&answer);
        let frames = |report: &Report| report.stacks.as_ref().unwrap().frames.len();
        assert_eq!(frames(&report), frames(&read(&recorded)));
        report
    };
    let sound = lines(&symbolize(&whole));
    assert!(sound > 10, "{sound}");
    let sections = [
        ".debug_info",
        ".debug_abbrev",
        ".debug_line",
        ".debug_str",
        ".debug_line_str",
        ".debug_rnglists",
        ".debug_aranges",
        ".symtab",
        ".strtab",
        ".shstrtab",
    ];
    let stretches = stretches(&whole, &sections, true);
    assert!(stretches.len() > 6, "{stretches:?}");
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut fewer = 0;
    for round in 0..rounds(80) {
        let mut damaged = damage(&whole, &stretches, &mut random);
        if round % 12 == 0 {
            damaged.truncate(random.below(whole.len()));
        }
        let report = symbolize(&damaged);
        fewer += usize::from(lines(&report) != sound);
        // The C library's symbols are not that file's business.
        let stacks = report.stacks.as_ref().unwrap();
        let is_of_libc = |frame: &&breaktrace::report::StackFrame| {
            frame
                .module
                .and_then(|module| stacks.modules.get(module as usize))
                .is_some_and(|module| module.path.contains("libc.so"))
        };
        assert!(
            stacks
                .frames
                .iter()
                .filter(is_of_libc)
                .any(|frame| !frame.functions.is_empty())
        );
    }
    assert!(fewer > 20, "the damage was not felt: {fewer}");
}

#[test]
fn damaged_unwind_information_costs_its_stacks_and_nothing_else() {
    let folder = folder();
    let program = folder.path().join("program");
    // Errors are not thrown here, so that the program itself never reads its unwind information.
    if build(&program).is_none() {
        return skip("there is no C++ compiler");
    }
    let alone = finish(&mut Command::new(&program));
    alone.expect_code(0);
    let whole = std::fs::read(&program).unwrap();
    let sections = [".eh_frame", ".eh_frame_hdr", ".note.gnu.build-id"];
    let stretches = stretches(&whole, &sections, true);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let report = folder.path().join("report.json");
    let mut short = 0;
    for _ in 0..rounds(40) {
        let damaged = damage(&whole, &stretches, &mut random);
        std::fs::remove_file(&program).unwrap();
        std::fs::write(&program, damaged).unwrap();
        let mut permissions = std::fs::metadata(&program).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        std::fs::set_permissions(&program, permissions).unwrap();
        let by_itself = Command::new(&program).output();
        let Ok(by_itself) = by_itself else {
            // The kernel does not take it for a program.
            continue;
        };
        let begin = Instant::now();
        let ended = finish(
            breaktrace()
                .args(["run", "-q", "--no-symbols", "-o"])
                .arg(&report)
                .arg("--")
                .arg(&program),
        );
        assert!(begin.elapsed() < PATIENCE, "it took too long");
        assert_eq!(ended.ending().0, by_itself.status.code());
        assert_eq!(ended.stdout.as_bytes(), by_itself.stdout);
        let report = read(&report);
        assert!(report.totals.break_grown_bytes + report.totals.anonymous_grown_bytes > 1 << 20);
        short += u64::from(report.stacks.unwrap().truncated > 0);
    }
    assert!(short > 3, "the damage was not felt: {short}");
}

/// Functions that each ask for a megabyte.
const NAMED_PROGRAM: &str = "#include <stdlib.h>
#define ASKS(name) __attribute__((noinline, noclone)) char *name(void) \\
    { char *memory = malloc(1 << 20); memory[0] = 1; return memory; }
ASKS(escapes) ASKS(endless) ASKS(grows) ASKS(deep) ASKS(sound)
int main(void) { return 5 - escapes()[0] - endless()[0] - grows()[0] - deep()[0] - sound()[0]; }
";

#[test]
fn hostile_names_are_shown_harmlessly_and_in_part() {
    let (Some(cc), Some(objcopy)) = (installed(&["cc"]), installed(&["objcopy"])) else {
        return skip("there is no C compiler, or no objcopy");
    };
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("named.c"), NAMED_PROGRAM).unwrap();
    // Each level names the one before twice.
    let levels: String = ["", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
        .into_iter()
        .map(str::to_owned)
        .chain((b'A'..=b'Z').map(|letter| char::from(letter).to_string()))
        .skip(2)
        .map(|before| format!("S_IS{before}_S{before}_E"))
        .collect();
    let names = format!(
        "escapes \u{1b}]0;owned\u{7}\u{1b}[2J\u{202e}\nendless {}\ngrows _Z1f1AI1BS0_E{levels}\ndeep _Z1f{}i\n",
        "a".repeat(1 << 20),
        "P".repeat(60_000)
    );
    std::fs::write(path("names"), names).unwrap();
    let compiled = Command::new(cc)
        .args(["-O1", "-o"])
        .arg(path("plain"))
        .arg(path("named.c"))
        .status()
        .unwrap();
    assert!(compiled.success());
    let mut option = std::ffi::OsString::from("--redefine-syms=");
    option.push(path("names"));
    let renamed = Command::new(objcopy)
        .arg(option)
        .args([path("plain"), path("named")])
        .status()
        .unwrap();
    assert!(renamed.success());

    let begin = Instant::now();
    let ended = finish(
        breaktrace()
            .args(["run", "-v", "-o"])
            .arg(path("report.json"))
            .args(["-o", "-", "--format", "text", "--"])
            .arg(path("named")),
    );
    assert!(begin.elapsed() < PATIENCE, "it took too long");
    ended.expect_code(0);
    let report = read(&path("report.json"));
    let named: Vec<&str> = report
        .address_spaces
        .iter()
        .flat_map(|space| &space.call_paths)
        .filter(|call_path| call_path.growth.grown_bytes >= 1 << 20)
        .filter_map(|call_path| Some(call_path.culprit.as_ref()?.name.as_str()))
        .collect();
    assert_eq!(named.len(), 5, "{named:?}");
    assert!(named.iter().all(|name| name.chars().count() <= 4097));
    for beginning in [
        "\u{1b}]0;owned",
        "aaaaaaaa",
        "f(A<B, B>, A<A<B, B>, ",
        "_Z1fPPPP",
        "sound",
    ] {
        assert!(
            named.iter().any(|name| name.starts_with(beginning)),
            "{beginning:?}: {named:?}"
        );
    }
    let shown = ended.stdout + &ended.stderr;
    assert!(shown.contains("owned"));
    let is_harmful =
        |character: char| (character.is_control() && character != '\n') || character == '\u{202e}';
    assert!(!shown.contains(is_harmful));
    assert!(shown.lines().all(|line| line.chars().count() < 20_000));
}
