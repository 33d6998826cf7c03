//! Each move of the break is explained by glibc's arithmetic: held against what the program itself says of its requests.

use breaktrace::report::Report;
use breaktrace::report::Step;
use breaktrace::report::StepReason;
use breaktrace::report::StepTermKind;

use crate::support::breaktrace;
use crate::support::compile;
use crate::support::installed;
use crate::support::skip;

/// What the program says of a move of the break.
#[derive(Debug)]
struct Told {
    what: String,
    request: u64,
    delta: i64,
}

/// Runs the fixture under trace; what it said, and the moves that were recorded.
fn report_of(mode: &str, options: &[&str], tunables: Option<&str>) -> Option<(Vec<Told>, Report)> {
    let Some(program) = compile("malloc_steps", &["-g"]) else {
        skip("no C compiler");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("r.json");
    let mut command = breaktrace();
    command
        .args(["run", "-q", "-o"])
        .arg(&report)
        .args(options)
        .arg("--")
        .arg(&program)
        .arg(mode);
    if let Some(tunables) = tunables {
        command.env("GLIBC_TUNABLES", tunables);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let told = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            Told {
                what: words[0].to_owned(),
                request: words[1].parse().unwrap(),
                delta: words[2].parse().unwrap(),
            }
        })
        .collect();
    Some((told, read(&report)))
}

/// The same, and of the moves those of the break.
fn steps_of(
    mode: &str,
    options: &[&str],
    tunables: Option<&str>,
) -> Option<(Vec<Told>, Vec<Step>)> {
    let (told, report) = report_of(mode, options, tunables)?;
    let steps = report.main().unwrap().program_break.steps.kept.clone();
    Some((told, steps))
}

/// The moves of anonymous memory for this reason.
fn mapped_for(report: &Report, reason: StepReason) -> Vec<Step> {
    let steps = &report.main().unwrap().anonymous.steps.kept;
    let is_it = |step: &&Step| {
        let found = step.explanation.as_ref();
        found.is_some_and(|found| found.reason == reason)
    };
    steps.iter().filter(is_it).cloned().collect()
}

/// Each request that the program told of is the one that a step was for.
fn expect_requests(told: &[Told], what: &str, steps: &[Step]) {
    let told: Vec<&Told> = told.iter().filter(|told| told.what == what).collect();
    assert!(told.len() > 9, "{told:?}");
    assert_eq!(told.len(), steps.len(), "{told:?}: {steps:#?}");
    expect_sums(steps);
    for (told, step) in told.iter().zip(steps) {
        let found = step.explanation.as_ref().unwrap();
        let least = found.request_min_bytes.unwrap();
        let most = found.request_max_bytes.unwrap();
        assert!(
            (least..=most).contains(&told.request),
            "{told:?}: {step:#?}"
        );
    }
}

fn read(path: &std::path::Path) -> Report {
    breaktrace::report::from_json(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The sum of the terms is the move, always.
fn expect_sums(steps: &[Step]) {
    for step in steps {
        let Some(explanation) = &step.explanation else {
            continue;
        };
        if explanation.terms.is_empty() {
            continue;
        }
        let sum: i64 = explanation.terms.iter().map(|term| term.bytes).sum();
        assert_eq!(sum, step.delta_bytes, "{step:#?}");
    }
}

/// Each move that the program told of has the reason and the request that it told.
fn expect_told(told: &[Told], steps: &[Step]) {
    expect_sums(steps);
    // The C library's own, before the program begins, come first.
    let all: i64 = steps.iter().map(|step| step.delta_bytes).sum();
    let of_program: i64 = told.iter().map(|told| told.delta).sum();
    assert_eq!(all, of_program, "{told:?}: {steps:#?}");
    let mut steps = steps.iter();
    for told in told {
        // One call of malloc may move the break twice.
        let mut delta = 0;
        let mut group = Vec::new();
        while delta != told.delta {
            let step = steps
                .next()
                .unwrap_or_else(|| panic!("no step for {told:?}"));
            delta += step.delta_bytes;
            group.push(step);
        }
        let explanations: Vec<_> = group
            .iter()
            .filter_map(|step| step.explanation.as_ref())
            .collect();
        let reasons: Vec<StepReason> = explanations.iter().map(|found| found.reason).collect();
        assert_eq!(reasons.len(), group.len(), "{told:?}: {group:#?}");
        assert!(
            !reasons.contains(&StepReason::Unexplained),
            "{told:?}: {group:#?}"
        );
        match told.what.as_str() {
            "malloc" => {
                let request = explanations
                    .iter()
                    .find(|found| found.reason == StepReason::Request)
                    .unwrap_or_else(|| panic!("{told:?}: {group:#?}"));
                let least = request.request_min_bytes.unwrap();
                let most = request.request_max_bytes.unwrap();
                assert!(
                    (least..=most).contains(&told.request),
                    "{told:?}: {request:#?}"
                );
            }
            "begin" => assert_eq!(reasons, [StepReason::Request], "{told:?}"),
            "free" => assert_eq!(reasons, [StepReason::TrimByFree], "{told:?}"),
            "malloc_trim" => assert_eq!(reasons, [StepReason::MallocTrim], "{told:?}"),
            "sbrk" => assert_eq!(reasons, [StepReason::NotMalloc], "{told:?}"),
            other => panic!("{other}"),
        }
    }
}

/// How many requests are known to within the 16 sizes that share a chunk.
fn exact(steps: &[Step]) -> (usize, usize) {
    exact_of(steps, StepReason::Request)
}

fn exact_of(steps: &[Step], reason: StepReason) -> (usize, usize) {
    let requests = steps
        .iter()
        .filter_map(|step| step.explanation.as_ref())
        .filter(|found| found.reason == reason);
    let (mut exact, mut all) = (0, 0);
    for request in requests {
        all += 1;
        exact += usize::from(request.chunk_bytes.is_some());
    }
    (exact, all)
}

#[test]
fn each_request_that_raised_the_break_is_recovered() {
    let Some((told, steps)) = steps_of("plain", &[], None) else {
        return;
    };
    assert!(told.len() > 20, "{}", told.len());
    expect_told(&told, &steps);
    let (exact, all) = exact(&steps);
    assert!(
        exact * 10 >= all * 9,
        "{exact} of {all} chunks are known exactly"
    );
}

#[test]
fn without_stacks_the_window_still_holds_the_request() {
    let Some((told, steps)) = steps_of("plain", &["--stacks", "off"], None) else {
        return;
    };
    expect_told(&told, &steps);
}

#[test]
fn a_pad_set_by_the_program_is_read_and_not_assumed() {
    for (mode, pad) in [("pad", 20_000), ("no_pad", 0)] {
        let Some((told, steps)) = steps_of(mode, &[], None) else {
            return;
        };
        expect_told(&told, &steps);
        let pads: Vec<i64> = steps
            .iter()
            .filter_map(|step| step.explanation.as_ref())
            .filter(|found| found.reason == StepReason::Request)
            .flat_map(|found| &found.terms)
            .filter(|term| term.kind == StepTermKind::TopPad)
            .map(|term| term.bytes)
            .collect();
        // A part of no bytes is not named.
        assert_eq!(pads.is_empty(), pad == 0, "{mode}: {pads:?}");
        assert!(pads.iter().all(|bytes| *bytes == pad), "{mode}: {pads:?}");
    }
}

#[test]
fn tunables_are_read_in_the_process() {
    let tunables = "glibc.malloc.top_pad=4096:glibc.malloc.mmap_threshold=65536";
    let Some((told, steps)) = steps_of("plain", &[], Some(tunables)) else {
        return;
    };
    expect_told(&told, &steps);
    assert!(
        told.iter().all(|told| told.request < 65_536),
        "larger ones are mappings"
    );
}

#[test]
fn a_trim_threshold_from_a_tunable_is_reached_when_malloc_says_so() {
    let tunables = "glibc.malloc.trim_threshold=1000000";
    let Some((told, steps)) = steps_of("trim_by_free", &[], Some(tunables)) else {
        return;
    };
    expect_told(&told, &steps);
    let trims: Vec<i64> = told
        .iter()
        .filter(|told| told.what == "free")
        .map(|told| told.delta)
        .collect();
    assert!(!trims.is_empty(), "{told:?}");
    assert!(trims.iter().all(|delta| *delta <= -800_000), "{trims:?}");
}

#[test]
fn the_arena_of_a_thread_grows_for_the_requests_that_its_thread_told_of() {
    let Some((told, report)) = report_of("thread", &[], None) else {
        return;
    };
    let grown = mapped_for(&report, StepReason::ArenaGrew);
    expect_requests(&told, "arena", &grown);
    let (exact, all) = exact_of(&grown, StepReason::ArenaGrew);
    assert!(exact * 10 >= all * 9, "{exact} of {all}");
    assert_eq!(mapped_for(&report, StepReason::ArenaOpened).len(), 1);
    let malloc = report.main().unwrap().malloc.as_ref().unwrap();
    let explained = malloc.explained;
    assert!(explained.arena_shrinks > 0, "{explained:?}");
    // All of it but the first part went back, and malloc_trim was not called.
    let grew: i64 = grown.iter().map(|step| step.delta_bytes).sum();
    let shrank = i64::try_from(explained.arena_shrunk_bytes).unwrap();
    assert!(
        shrank <= grew + 135_168 && shrank > grew / 2,
        "{explained:?}"
    );
    assert_eq!(explained.malloc_trim_advices, 0);
}

#[test]
fn where_brk_is_refused_the_mappings_are_explained_by_the_requests() {
    let Some((told, report)) = report_of("refused", &[], None) else {
        return;
    };
    let mapped = mapped_for(&report, StepReason::BreakRefused);
    expect_requests(&told, "refused", &mapped);
    // mallinfo2 of the program saw the arena grow by the same bytes.
    let told = told.iter().filter(|told| told.what == "refused");
    for (told, step) in told.zip(&mapped) {
        assert_eq!(told.delta, step.delta_bytes, "{told:?}: {step:#?}");
    }
}

#[test]
fn what_free_gives_back_is_told_from_growth() {
    let Some((told, steps)) = steps_of("trim_by_free", &[], None) else {
        return;
    };
    assert!(told.iter().any(|told| told.what == "free"), "{told:?}");
    expect_told(&told, &steps);
}

#[test]
fn malloc_trim_is_told_from_free() {
    let Some((told, steps)) = steps_of("malloc_trim", &[], None) else {
        return;
    };
    assert!(
        told.iter().any(|told| told.what == "malloc_trim"),
        "{told:?}"
    );
    expect_told(&told, &steps);
}

#[test]
fn moves_by_the_program_itself_are_not_mallocs() {
    let Some((told, steps)) = steps_of("foreign", &[], None) else {
        return;
    };
    assert!(told.iter().any(|told| told.what == "sbrk"), "{told:?}");
    expect_told(&told, &steps);
}

#[test]
fn a_raised_mmap_threshold_brings_large_blocks_to_the_break() {
    let Some((told, report)) = report_of("threshold", &[], None) else {
        return;
    };
    assert!(told.iter().any(|told| told.request == 300_000), "{told:?}");
    expect_told(&told, &report.main().unwrap().program_break.steps.kept);
    let mapped = mapped_for(&report, StepReason::MappedChunk);
    let freed = mapped_for(&report, StepReason::UnmappedChunkRaisedThreshold);
    assert_eq!((mapped.len(), freed.len()), (1, 1), "{mapped:#?}{freed:#?}");
    expect_sums(&mapped);
    expect_sums(&freed);
    let found = mapped[0].explanation.as_ref().unwrap();
    let (least, most) = (found.request_min_bytes, found.request_max_bytes);
    assert!((least..=most).contains(&Some(300_000)), "{found:?}");
    assert_eq!(mapped[0].delta_bytes, -freed[0].delta_bytes);
}

#[test]
fn no_move_of_programs_that_others_wrote_is_left_unexplained() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("h.c");
    std::fs::write(
        &source,
        "#include <stdio.h>\nint main(void) { puts(\"x\"); return 0; }\n",
    )
    .unwrap();
    let object = folder.path().join("h.o");
    let gcc = format!("gcc -O1 -c {} -o {}", source.display(), object.display());
    let programs: [&[&str]; 6] = [
        &[
            "git",
            "-c",
            "safe.directory=*",
            "-C",
            env!("CARGO_MANIFEST_DIR"),
            "log",
            "--stat",
            "-n",
            "200",
        ],
        &[
            "/usr/bin/python3",
            "-c",
            "x = [str(i) * 9 for i in range(50000)]; del x",
        ],
        &["perl", "-e", "my %h; $h{$_} = $_ x 9 for 1 .. 50000"],
        &[
            "sqlite3",
            ":memory:",
            "create table t(a); with recursive c(i) as (select 1 union all select i + 1 from c limit 50000) insert into t select i from c; select count(*) from t",
        ],
        &["bash", "-c", "x=; for i in {1..3000}; do x+=$i; done"],
        &["sh", "-c", &gcc],
    ];
    for program in programs {
        if installed(&[program[0].rsplit('/').next().unwrap()]).is_none() {
            skip(program[0]);
            continue;
        }
        let report = folder.path().join("r.json");
        let output = breaktrace()
            .args(["run", "-q", "-o"])
            .arg(&report)
            .arg("--")
            .args(program)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{program:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let report = read(&report);
        let mut explained = 0;
        for space in &report.address_spaces {
            let steps = &space.program_break.steps.kept;
            expect_sums(steps);
            for step in steps {
                let Some(found) = &step.explanation else {
                    continue;
                };
                assert_ne!(
                    found.reason,
                    StepReason::Unexplained,
                    "{program:?}: {step:#?}"
                );
                explained += 1;
            }
        }
        assert!(explained > 0, "{program:?}");
    }
}
