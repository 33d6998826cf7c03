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
fn steps_of(
    mode: &str,
    options: &[&str],
    tunables: Option<&str>,
) -> Option<(Vec<Told>, Vec<Step>)> {
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
    Some((told, moves(&report)))
}

fn read(path: &std::path::Path) -> Report {
    breaktrace::report::from_json(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn moves(path: &std::path::Path) -> Vec<Step> {
    let report = read(path);
    report.main().unwrap().program_break.steps.kept.clone()
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
    let requests = steps
        .iter()
        .filter_map(|step| step.explanation.as_ref())
        .filter(|found| found.reason == StepReason::Request);
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
    let Some((told, steps)) = steps_of("threshold", &[], None) else {
        return;
    };
    assert!(told.iter().any(|told| told.request == 300_000), "{told:?}");
    expect_told(&told, &steps);
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
    let programs: [&[&str]; 5] = [
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
