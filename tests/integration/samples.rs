//! Samples of the bundled allocator's blocks: who asked for what was never freed, and where the blocks of heap errors come
//! from. The program says itself what it keeps.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use breaktrace::report::AllocatorReport;
use breaktrace::report::FoundHeapError;
use breaktrace::report::Report;
use breaktrace::report::SampledPath;
use breaktrace::report::Samples;

use crate::support::Traced;
use crate::support::breaktrace;
use crate::support::compile;
use crate::support::finish;
use crate::support::folder;
use crate::support::installed;
use crate::support::number;
use crate::support::python;
use crate::support::skip;
use crate::support::trace;
use crate::support::valgrind;

const EVERY_BLOCK: [&str; 4] = ["--allocator", "bundled", "--sample-allocations", "1"];

fn program() -> Option<PathBuf> {
    compile("samples", &["-O2", "-g", "-pthread"])
}

#[track_caller]
fn run(options: &[&str], words: &[&str]) -> Option<Traced> {
    let Some(program) = program() else {
        skip("there is no C compiler");
        return None;
    };
    let command = std::iter::once(program.as_os_str()).chain(words.iter().map(AsRef::as_ref));
    Some(trace(options, command))
}

#[track_caller]
fn allocator(report: &Report, space: usize) -> &AllocatorReport {
    report.address_spaces[space].allocator.as_ref().unwrap()
}

#[track_caller]
fn samples(report: &Report, space: usize) -> &Samples {
    allocator(report, space).samples.as_ref().unwrap()
}

/// The call path that a function is named for.
fn path_of<'a>(samples: &'a Samples, function: &str) -> Option<&'a SampledPath> {
    samples.paths.iter().find(|path| {
        path.culprit
            .as_ref()
            .is_some_and(|culprit| culprit.name == function)
    })
}

/// What the program says of its functions is what samples of every block say.
#[track_caller]
fn expect_told(samples: &Samples, ended: &crate::support::Ended) {
    for function in ["lose_names", "keep_list", "keep_array"] {
        let path = path_of(samples, function).unwrap_or_else(|| panic!("{function} is not named"));
        assert_eq!(path.live.samples, ended.number(function), "{function}");
        let bytes = ended.number(&format!("bytes_{function}"));
        assert_eq!(path.live.estimated_bytes, bytes, "{function}");
    }
}

#[test]
fn every_block_that_was_never_freed_is_told_with_who_asked_for_it() {
    let Some(traced) = run(&EVERY_BLOCK, &[]) else {
        return;
    };
    traced.ended.expect_code(0);
    let samples = samples(&traced.report, 0);
    expect_told(samples, &traced.ended);
    // The heap as looked through from outside has the same blocks.
    let allocator = allocator(&traced.report, 0);
    let walk = allocator.walk.as_ref().unwrap();
    assert!(walk.complete);
    assert_eq!(samples.live.samples, walk.live_blocks);
    assert_eq!(samples.live.estimated_bytes, walk.live_bytes);
    let churned = path_of(samples, "grow_and_free").unwrap();
    assert_eq!(churned.live.samples, 0);
    assert_eq!(churned.requested.samples, 3 * 20, "each realloc counts");
    assert_eq!(
        churned.requested.estimated_bytes,
        20 * (500 + 900 + 400_000)
    );
}

#[test]
fn threads_are_sampled_like_any_other() {
    let Some(traced) = run(&EVERY_BLOCK, &["threads"]) else {
        return;
    };
    let names = samples(&traced.report, 0).paths.iter().filter(|path| {
        path.path[..]
            .first()
            .is_some_and(|step| step.starts_with("lose_names"))
    });
    let live: u64 = names.map(|path| path.live.samples).sum();
    assert_eq!(live, 50 + 8 * 10);
}

#[test]
fn a_forked_child_has_the_blocks_of_its_parent_until_it_frees_them() {
    let Some(traced) = run(&EVERY_BLOCK, &["fork"]) else {
        return;
    };
    let [parent, child] = [0, 1].map(|space| samples(&traced.report, space));
    expect_told(parent, &traced.ended);
    let live =
        |samples: &Samples, function| path_of(samples, function).map(|path| path.live.samples);
    assert_eq!(live(child, "keep_array"), Some(40));
    assert!(live(child, "keep_list").is_none_or(|live| live == 0));
    let names = child.paths.iter().filter(|path| {
        path.path
            .first()
            .is_some_and(|step| step.starts_with("lose_names"))
    });
    assert_eq!(names.map(|path| path.live.samples).sum::<u64>(), 57);
    assert_eq!(path_of(child, "keep_array").unwrap().requested.samples, 0);
}

/// Line of a comment in the fixture.
fn line_of(mark: &str) -> u32 {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/samples.c");
    let text = std::fs::read_to_string(source).unwrap();
    let (_, line) = text
        .lines()
        .zip(1..)
        .find(|(line, _)| line.contains(mark))
        .unwrap();
    line
}

/// The function named for each of an error's stacks: found, freed, allocated.
fn named(report: &Report, found: &FoundHeapError) -> [Option<(String, u32)>; 3] {
    let stacks = report.stacks.as_ref().unwrap();
    [found.stack, found.freed_stack, found.allocated_stack].map(|id| {
        let stack = stacks.stacks.iter().find(|stack| Some(stack.id) == id)?;
        let culprit = stack.culprit?;
        let frame = &stacks.frames[stack.frames[culprit.depth as usize] as usize];
        let function = &frame.functions[culprit.function as usize];
        Some((function.name.clone(), function.line?))
    })
}

#[test]
fn a_double_free_is_told_with_where_the_block_was_allocated_freed_and_freed_again() {
    let Some(traced) = run(&EVERY_BLOCK, &["double-free"]) else {
        return;
    };
    let errors = &allocator(&traced.report, 0).heap_errors;
    assert_eq!(errors.total, 1);
    let expected = [
        ("take_back_again", "found here"),
        ("take_back", "freed here"),
        ("give_out", "allocated here"),
    ]
    .map(|(name, mark)| Some((name.to_owned(), line_of(mark))));
    assert_eq!(named(&traced.report, &errors.kept[0]), expected);
}

#[test]
fn a_write_past_the_end_is_told_with_where_the_block_was_allocated() {
    for guard in [&[][..], &["--guard"]] {
        let options = [&EVERY_BLOCK[..], guard].concat();
        let Some(traced) = run(&options, &["past-end"]) else {
            return;
        };
        let errors = &allocator(&traced.report, 0).heap_errors;
        assert_eq!(errors.total, 1);
        let [found, freed, allocated] = named(&traced.report, &errors.kept[0]);
        assert_eq!(found, Some(("take_back".into(), line_of("freed here"))));
        assert_eq!(freed, None, "it is not free yet");
        assert_eq!(
            allocated,
            Some(("give_out".into(), line_of("allocated here")))
        );
    }
}

#[test]
fn the_text_tells_what_was_never_freed_and_where_blocks_of_errors_come_from() {
    let Some(program) = program() else {
        return skip("there is no C compiler");
    };
    let ended = finish(
        breaktrace()
            .arg("run")
            .args(EVERY_BLOCK)
            .arg("--")
            .arg(program)
            .arg("double-free"),
    );
    let text = &ended.stderr;
    for part in [
        "found by      take_back_again (samples.c:",
        "freed by      take_back (samples.c:",
        "allocated by  give_out (samples.c:",
        "never freed",
        "lose_names (samples.c:",
        "every block was recorded",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "a ratio needs few digits")]
fn rare_samples_stand_for_what_was_asked_for() {
    for interval in ["4KiB", "65536"] {
        let options = ["--allocator", "bundled", "--sample-allocations", interval];
        let Some(traced) = run(&options, &["churn"]) else {
            return;
        };
        let samples = samples(&traced.report, 0);
        let asked = number(crate::support::fact(&traced.ended.stdout, "asked")) as f64;
        let estimated = samples.requested.estimated_bytes as f64;
        // The numbers of each run are the same: some 20,000 samples, and some 1,500.
        assert!(samples.requested.samples > 500, "{samples:?}");
        assert!(
            (estimated / asked - 1.0).abs() < 0.15,
            "{estimated} of {asked}"
        );
        assert!(samples.live.samples <= 1, "{samples:?}");
    }
}

/// With `--leaks`: lost blocks and bytes.
fn lost(report: &Report) -> (u64, u64) {
    let walk = allocator(report, 0).walk.as_ref().unwrap();
    let leaks = walk.leaks.as_ref().unwrap();
    assert!(leaks.complete, "{leaks:?}");
    (leaks.lost_blocks, leaks.lost_bytes)
}

#[test]
fn lost_blocks_are_told_from_those_that_the_program_can_still_reach() {
    let options = [&EVERY_BLOCK[..], &["--leaks"]].concat();
    for guard in [&[][..], &["--guard"]] {
        let options = [&options[..], guard].concat();
        let Some(traced) = run(&options, &["ring"]) else {
            return;
        };
        let (blocks, bytes) = lost(&traced.report);
        // One word that nobody uses any more may look like a pointer: to a name, or to the ring as a whole.
        let all = (50 + 20, 5_000 + 20 * 48);
        assert!(
            [all, (all.0 - 1, all.1 - 100)].contains(&(blocks, bytes)),
            "{blocks} {bytes}"
        );
        let samples = samples(&traced.report, 0);
        assert_eq!(samples.lost.unwrap().samples, blocks);
        let of = |function| path_of(samples, function).unwrap().lost.unwrap().samples;
        assert_eq!(of("keep_list") + of("keep_array"), 0);
        assert_eq!(of("lose_ring"), 20);
    }
}

/// Definitely and indirectly lost, blocks and bytes, as valgrind sees a program.
fn by_valgrind(command: &[&std::ffi::OsStr]) -> Option<(u64, u64)> {
    let output = Command::new(valgrind()?)
        .args(["--leak-check=full", "--show-leak-kinds=none"])
        .args(command)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let mut sums = (0, 0);
    for kind in ["definitely lost: ", "indirectly lost: "] {
        let Some((_, rest)) = text.split_once(kind) else {
            assert!(text.contains("no leaks are possible"), "{text}");
            continue;
        };
        let numbers: Vec<u64> = rest
            .lines()
            .next()
            .unwrap()
            .split(' ')
            .filter_map(|word| word.replace(',', "").parse().ok())
            .collect();
        sums = (sums.0 + numbers[1], sums.1 + numbers[0]);
    }
    Some(sums)
}

#[test]
fn what_is_lost_valgrind_calls_lost_too() {
    let perl = installed(&["perl"]);
    let Some(program) = program() else {
        return skip("there is no C compiler");
    };
    let mut commands: Vec<Vec<&std::ffi::OsStr>> = vec![vec![program.as_os_str()]];
    if let Some(perl) = &perl {
        let script = "my $x = {a => 1}; $x->{me} = $x; undef $x;";
        commands.push(vec![perl.as_os_str(), "-e".as_ref(), script.as_ref()]);
    }
    for command in commands {
        let Some(expected) = by_valgrind(&command) else {
            return skip("valgrind is not installed");
        };
        let traced = trace(&["--allocator", "bundled", "--leaks"], &command);
        let found = lost(&traced.report);
        assert!(expected.0 > 0, "{command:?}");
        // Stacks differ a little, and so what lies about on them.
        assert!(found.0.abs_diff(expected.0) <= 2, "{found:?} {expected:?}");
        assert!(
            found.1.abs_diff(expected.1) <= expected.1 / 10,
            "{found:?} {expected:?}"
        );
    }
}

#[test]
fn a_replayed_log_gives_the_same_report() {
    let Some(program) = program() else {
        return skip("there is no C compiler");
    };
    let folder = folder();
    let (events, report) = (folder.path().join("e.jsonl"), folder.path().join("r.json"));
    finish(
        breaktrace()
            .args(["run", "-q"])
            .args(EVERY_BLOCK)
            .arg("--leaks")
            .arg("--events")
            .arg(&events)
            .arg("-o")
            .arg(&report)
            .arg("--")
            .arg(program)
            .arg("double-free"),
    )
    .expect_code(0);
    let again = finish(breaktrace().arg("report").arg(&events).arg("--json"));
    assert!(again.stdout == std::fs::read_to_string(&report).unwrap());
}

#[test]
fn programs_do_the_same_while_their_blocks_are_sampled() {
    let script = "print(sum(len(str(i) * 3) for i in range(20000)))";
    let sql = "with recursive n(i) as (select 1 union all select i+1 from n where i<5000) \
               select count(*), sum(length(hex(i))) from n;";
    let programs = [
        python().map(|path| (path, vec!["-c", script])),
        installed(&["perl"])
            .map(|path| (path, vec!["-e", "print join ',', map { $_ x 5 } 1..2000"])),
        installed(&["sqlite3"]).map(|path| (path, vec![":memory:", sql])),
    ];
    for (program, words) in programs.into_iter().flatten() {
        let alone = Command::new(&program).args(&words).output().unwrap();
        for interval in ["1", "2000"] {
            let ended = finish(
                breaktrace()
                    .args([
                        "run",
                        "-q",
                        "--allocator",
                        "bundled",
                        "--sample-allocations",
                        interval,
                        "--",
                    ])
                    .arg(&program)
                    .args(&words),
            );
            ended.expect_code(0);
            assert_eq!(
                ended.stdout.as_bytes(),
                alone.stdout,
                "{}",
                program.display()
            );
        }
    }
}

#[test]
fn what_samples_need_is_said() {
    for (options, part) in [
        (&["--sample-allocations", "1"][..], "--allocator bundled"),
        (
            &[
                "--allocator",
                "bundled",
                "--sample-allocations",
                "1",
                "--stacks",
                "off",
            ],
            "call stacks",
        ),
        (
            &["--allocator", "bundled", "--sample-allocations", "0"],
            "from 1 byte",
        ),
        (
            &["--allocator", "bundled", "--sample-allocations", "some"],
            "whole number",
        ),
    ] {
        let ended = finish(breaktrace().arg("run").args(options).args(["--", "true"]));
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
        assert_ne!(ended.ending().0, Some(0));
    }
}
