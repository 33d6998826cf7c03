use std::collections::BTreeMap;

use super::*;
use crate::event::Outcome;

pub(crate) fn subject(values: &[(&str, &[u64])]) -> Subject {
    Subject {
        command: vec!["app".to_owned(), "--self-test".to_owned()],
        fingerprint: Fingerprint {
            architecture: "x86_64".to_owned(),
            page_size: 4096,
            libc: Some("glibc 2.36".to_owned()),
            allocator: "system".to_owned(),
            randomized: false,
            environment: BTreeMap::new(),
        },
        recorded_on: RecordedOn {
            kernel: "6.1".to_owned(),
            processors: Some(2),
        },
        outcome: Outcome::Exited(0),
        runs: values
            .iter()
            .map(|(_, values)| u32::try_from(values.len()).unwrap())
            .max()
            .unwrap_or(1),
        metrics: values
            .iter()
            .map(|(name, values)| ((*name).to_owned(), Measurement::of(values).unwrap()))
            .collect(),
        programs: BTreeMap::new(),
        paths: BTreeMap::new(),
        has_threads: false,
    }
}

fn limits(entries: &[(&str, &str)]) -> Limits {
    let mut limits = Limits::default();
    for (name, limit) in entries {
        limits.add(name, limit.parse().unwrap()).unwrap();
    }
    limits
}

fn judged(
    before: &[(&str, &[u64])],
    now: &[(&str, &[u64])],
    entries: &[(&str, &str)],
) -> Judgement {
    let baseline = Baseline::of(&subject(before));
    judge(
        &subject(now),
        Some(&baseline),
        &limits(entries),
        &JudgeOptions::default(),
    )
    .unwrap()
}

fn outcome_of(judgement: &Judgement, name: &str) -> MetricOutcome {
    let mut metrics = judgement.metrics.iter();
    metrics
        .find(|metric| metric.full_name() == name)
        .unwrap()
        .outcome
}

const PEAK: &str = "break.peak";

fn verdict(before: &[u64], now: &[u64], entries: &[(&str, &str)]) -> Verdict {
    judged(&[(PEAK, before)], &[(PEAK, now)], entries).verdict
}

#[test]
fn with_a_baseline_nothing_repeatable_may_grow() {
    assert_eq!(verdict(&[100], &[100], &[]), Verdict::Passed);
    assert_eq!(verdict(&[100], &[101], &[]), Verdict::Failed);
    assert_eq!(verdict(&[100], &[99], &[]), Verdict::Passed);
    assert_eq!(verdict(&[0], &[1], &[]), Verdict::Failed);
}

#[test]
fn time_and_resident_memory_gate_only_where_a_limit_names_them() {
    let before: &[(&str, &[u64])] = &[("resident.peak", &[100])];
    let now: &[(&str, &[u64])] = &[("resident.peak", &[200])];
    assert_eq!(judged(before, now, &[]).verdict, Verdict::Passed);
    assert_eq!(
        judged(before, now, &[("@all", "+5%")]).verdict,
        Verdict::Passed
    );
    let named = judged(before, now, &[("resident.peak", "+5%")]);
    assert_eq!(named.verdict, Verdict::Failed);
}

#[test]
fn of_a_relative_and_an_absolute_tolerance_the_larger_counts() {
    let limit = &[(PEAK, "+5%,64KiB")][..];
    let mib = 1 << 20;
    assert_eq!(verdict(&[mib], &[mib + (64 << 10)], limit), Verdict::Passed);
    assert_eq!(
        verdict(&[mib], &[mib + (64 << 10) + 1], limit),
        Verdict::Failed
    );
    assert_eq!(verdict(&[100 * mib], &[105 * mib], limit), Verdict::Passed);
    assert_eq!(
        verdict(&[100 * mib], &[105 * mib + 1], limit),
        Verdict::Failed
    );
}

#[test]
fn what_must_not_change_fails_either_way() {
    assert_eq!(verdict(&[100], &[99], &[(PEAK, "~0")]), Verdict::Failed);
    assert_eq!(verdict(&[100], &[101], &[(PEAK, "~0")]), Verdict::Failed);
    assert_eq!(verdict(&[100], &[95], &[(PEAK, "~5%")]), Verdict::Passed);
    assert_eq!(verdict(&[100], &[94], &[(PEAK, "~5%")]), Verdict::Failed);
}

#[test]
fn a_cap_holds_beside_a_tolerance_and_without_a_baseline() {
    let both = &[(PEAK, "<=120"), (PEAK, "+50%")][..];
    assert_eq!(verdict(&[100], &[120], both), Verdict::Passed);
    assert_eq!(verdict(&[100], &[121], both), Verdict::Failed);
    let alone = |value| {
        let options = JudgeOptions::default();
        let subject = subject(&[(PEAK, &[value])]);
        judge(&subject, None, &limits(&[(PEAK, "<=120")]), &options)
            .unwrap()
            .verdict
    };
    assert_eq!((alone(120), alone(121)), (Verdict::Passed, Verdict::Failed));
}

#[test]
fn the_last_limit_counts_and_off_takes_all_away() {
    assert_eq!(
        verdict(&[100], &[110], &[("@all", "+5%"), (PEAK, "+20%")]),
        Verdict::Passed
    );
    assert_eq!(
        verdict(&[100], &[110], &[(PEAK, "+20%"), ("@break", "+5%")]),
        Verdict::Failed
    );
    assert_eq!(verdict(&[100], &[900], &[("@all", "off")]), Verdict::Passed);
}

#[test]
fn a_median_beyond_its_limit_is_inconclusive_while_the_runs_overlap() {
    assert_eq!(
        verdict(&[100, 100, 130], &[100, 120, 125], &[]),
        Verdict::Inconclusive
    );
    assert_eq!(
        verdict(&[100, 100, 130], &[131, 131, 140], &[]),
        Verdict::Failed
    );
    assert_eq!(
        verdict(&[100, 100, 130], &[99, 100, 900], &[]),
        Verdict::Passed
    );
}

#[test]
fn a_cap_that_some_runs_keep_is_inconclusive_even_where_all_grew_as_far_as_they_may() {
    let limit = &[(PEAK, "<=120,+50%")][..];
    assert_eq!(
        verdict(&[100], &[110, 125, 130], limit),
        Verdict::Inconclusive
    );
    assert_eq!(verdict(&[100], &[121, 125, 130], limit), Verdict::Failed);
}

#[test]
fn what_is_limited_and_was_not_measured_fails() {
    let gone = judged(
        &[(PEAK, &[100]), ("break.end", &[1])],
        &[("break.end", &[1])],
        &[],
    );
    assert_eq!(gone.verdict, Verdict::Failed);
    assert_eq!(outcome_of(&gone, PEAK), MetricOutcome::Missing);
    let capped = judged(
        &[("break.end", &[1])],
        &[("break.end", &[1])],
        &[("allocator.heap_errors", "<=0")],
    );
    assert_eq!(
        outcome_of(&capped, "allocator.heap_errors"),
        MetricOutcome::Missing
    );
    assert_eq!(capped.verdict, Verdict::Failed);
}

#[test]
fn a_program_that_is_limited_and_did_not_run_fails() {
    let judgement = judged(
        &[(PEAK, &[100])],
        &[(PEAK, &[100])],
        &[("cc1:break.peak", "<=64MiB")],
    );
    assert_eq!(judgement.verdict, Verdict::Failed);
    assert_eq!(
        outcome_of(&judgement, "cc1:break.peak"),
        MetricOutcome::Missing
    );
}

#[test]
fn a_figure_that_the_baseline_does_not_have_is_new_unless_a_limit_names_it() {
    let now: &[(&str, &[u64])] = &[(PEAK, &[100]), ("break.end", &[50])];
    let judgement = judged(&[(PEAK, &[100])], now, &[]);
    assert_eq!(judgement.verdict, Verdict::Passed);
    assert_eq!(outcome_of(&judgement, "break.end"), MetricOutcome::New);
    let judgement = judged(&[(PEAK, &[100])], now, &[("break.end", "+5%")]);
    assert_eq!(judgement.verdict, Verdict::Failed);
    // A cap needs no baseline.
    let judgement = judged(&[(PEAK, &[100])], now, &[("break.end", "<=60")]);
    assert_eq!(judgement.verdict, Verdict::Passed);
    let judgement = judged(&[(PEAK, &[100])], now, &[("break.end", "<=40")]);
    assert_eq!(judgement.verdict, Verdict::Failed);
}

#[test]
fn another_ending_fails_even_if_every_figure_is_better() {
    let baseline = Baseline::of(&subject(&[(PEAK, &[100])]));
    let mut crashed = subject(&[(PEAK, &[10])]);
    crashed.outcome = Outcome::Killed {
        signal: 11,
        core_dumped: false,
    };
    let options = JudgeOptions::default();
    let judgement = judge(&crashed, Some(&baseline), &Limits::default(), &options).unwrap();
    assert_eq!(judgement.verdict, Verdict::Failed);
}

#[test]
fn a_baseline_of_something_else_is_refused_with_the_reason() {
    let baseline = Baseline::of(&subject(&[(PEAK, &[100])]));
    let options = JudgeOptions::default();
    let mut other = subject(&[(PEAK, &[100])]);
    other.fingerprint.libc = Some("glibc 2.41".to_owned());
    other
        .fingerprint
        .environment
        .insert("MALLOC_ARENA_MAX".to_owned(), "1".to_owned());
    let refusal = judge(&other, Some(&baseline), &Limits::default(), &options).unwrap_err();
    let words = refusal.to_string();
    assert!(
        words.contains("the C library was glibc 2.36 and is glibc 2.41"),
        "{words}"
    );
    assert!(
        words.contains("MALLOC_ARENA_MAX was unset and is `1`"),
        "{words}"
    );
    let allowed = JudgeOptions {
        allowed_mismatches: vec![MismatchKind::Libc, MismatchKind::Environment],
        ..options
    };
    let judgement = judge(&other, Some(&baseline), &Limits::default(), &allowed).unwrap();
    assert_eq!(judgement.verdict, Verdict::Passed);
}

#[test]
fn without_a_baseline_and_limits_nothing_is_judged() {
    let options = JudgeOptions::default();
    let subject = subject(&[(PEAK, &[1])]);
    let refusal = judge(&subject, None, &Limits::default(), &options).unwrap_err();
    assert_eq!(refusal, Refusal::NothingToHoldAgainst);
}

#[test]
fn what_neither_way_is_better_gates_only_where_it_is_named() {
    let name = "break.shrunk";
    let judgement = |entries| judged(&[(name, &[10])], &[(name, &[20])], entries).verdict;
    assert_eq!(judgement(&[]), Verdict::Passed);
    assert_eq!(judgement(&[("@all", "+0")]), Verdict::Passed);
    assert_eq!(judgement(&[("@all", "~0")]), Verdict::Failed);
    assert_eq!(judgement(&[(name, "+0")]), Verdict::Failed);
}

#[test]
fn a_baseline_survives_being_written_and_read() {
    let baseline = Baseline::of(&subject(&[(PEAK, &[3, 1, 2]), ("break.end", &[7, 7, 7])]));
    let text = baseline.to_json();
    assert_eq!(Baseline::from_json(&text).unwrap(), baseline);
    assert!(text.contains("\"break.end\": 7"), "{text}");
    let cut = &text[..text.len() / 2];
    assert!(matches!(
        Baseline::from_json(cut),
        Err(BaselineError::Broken(_))
    ));
    assert_eq!(Baseline::from_json("{}"), Err(BaselineError::Foreign));
    let later = text.replacen("\"version\": 1", "\"version\": 9", 1);
    assert_eq!(Baseline::from_json(&later), Err(BaselineError::Version(9)));
    let emptied = text.replacen("\"break.end\": 7", "\"break.end\": []", 1);
    assert_eq!(Baseline::from_json(&emptied), Err(BaselineError::Empty));
}

#[test]
fn an_update_tells_old_and_new() {
    let before = Baseline::of(&subject(&[(PEAK, &[1]), ("break.end", &[5])]));
    let after = Baseline::of(&subject(&[(PEAK, &[2]), ("heap.end", &[5])]));
    assert_eq!(
        update_of(&before, &after),
        [
            ("break.end".to_owned(), Some(5), None),
            (PEAK.to_owned(), Some(1), Some(2)),
            ("heap.end".to_owned(), None, Some(5)),
        ]
    );
}

#[test]
fn limits_say_what_they_mean() {
    let most = |limit: &str, metric: &str| {
        let mut limits = Limits::default();
        limits.add(metric, limit.parse()?)?;
        let metric = Metric::named(metric).unwrap();
        Ok::<_, LimitError>(limits.of(None, metric)?.cap)
    };
    assert_eq!(most("<=1.5MiB", PEAK), Ok(Some(3 << 19)));
    assert_eq!(most("<=2MB", PEAK), Ok(Some(2_000_000)));
    assert_eq!(most("<= 4k", PEAK), Ok(Some(4096)));
    assert_eq!(most("<=1_000", "calls.brk"), Ok(Some(1000)));
    assert_eq!(most("<=1m30s", "time"), Ok(Some(90_000_000_000)));
    assert_eq!(most("<=7.5%", "allocator.fragmentation"), Ok(Some(750)));
    for wrong in [
        "",
        "5",
        "<=",
        "+",
        "<=x",
        "<=-5",
        "+x%",
        "+5%,,",
        "off,+5%",
        "<=99999999999999999999",
        "<=1e9",
    ] {
        assert!(most(wrong, PEAK).is_err(), "{wrong}");
    }
    assert!(most("<=5MiB", "calls.brk").is_err());
    assert!(most("+5s", PEAK).is_err());
}

#[test]
fn an_unknown_metric_is_an_error_that_names_the_nearest() {
    for (wrong, nearest) in [
        ("brk.peak", "break.peak"),
        ("heap.peek", "heap.peak"),
        ("@brake", "@break"),
        ("cc1:break.paek", "break.peak"),
    ] {
        let mut limits = Limits::default();
        let error = limits.add(wrong, "+0".parse().unwrap()).unwrap_err();
        assert!(
            error.hint().contains(&format!("`{nearest}`")),
            "{wrong}: {}",
            error.hint()
        );
    }
}

#[test]
fn a_limits_file_may_write_names_with_quotes_or_as_tables() {
    let mut limits = Limits::default();
    limits
        .add_file(
            "[limits]\n\"@all\" = \"+5%\"\nbreak.peak = [\"<=64MiB\", \"+1%,4KiB\"]\ncalls.brk = 20\n\
             [limits.programs.cc1]\n\"break.peak\" = \"<=80MiB\"\n[limits.programs.\"*\"]\nheap.end = \"+0\"\n",
        )
        .unwrap();
    let peak = Metric::named(PEAK).unwrap();
    let own = limits.of(None, peak).unwrap();
    assert_eq!(own.cap, Some(64 << 20));
    assert_eq!(own.tolerance.unwrap().allowance(peak, 1000), Ok(4096));
    assert_eq!(limits.of(Some("cc1"), peak).unwrap().cap, Some(80 << 20));
    assert_eq!(limits.of(Some("as"), peak).unwrap().cap, None);
    let end = Metric::named("heap.end").unwrap();
    assert!(limits.of(Some("as"), end).unwrap().tolerance.is_some());
    let calls = Metric::named("calls.brk").unwrap();
    assert_eq!(limits.of(None, calls).unwrap().cap, Some(20));
}

#[test]
fn a_limits_file_with_anything_else_in_it_is_refused() {
    for wrong in [
        "limits = 3",
        "[limit]\nheap.peak = \"+0\"",
        "[limits]\nheap.peak = true",
        "[limits]\nheap.pek = \"+0\"",
        "[limits]\nprograms = 3",
        "[limits.programs]\ncc1 = 3",
        "[limits",
        "[limits]\n\"@all\" = \"<=5\"",
        "[limits]\nheap.peak.x.y.z.w.v = 3",
    ] {
        assert!(Limits::default().add_file(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_path_that_a_full_baseline_has_no_room_for_is_not_told_as_new() {
    let figures = |grown_bytes| PathFigures {
        grown_bytes,
        net_bytes: grown_bytes,
        grow_calls: 1,
    };
    let mut before = subject(&[(PEAK, &[1])]);
    for number in 0..60 {
        before
            .paths
            .insert(format!("function_{number:02}"), figures(1000 - number));
    }
    let baseline = Baseline::of(&before);
    let same = judge(
        &before,
        Some(&baseline),
        &Limits::default(),
        &JudgeOptions::default(),
    );
    assert_eq!(same.unwrap().call_paths, []);
    let mut now = before.clone();
    now.paths.insert("larger".to_owned(), figures(5000));
    now.paths.insert("smaller".to_owned(), figures(1));
    now.paths.remove("function_03");
    let judgement = judge(
        &now,
        Some(&baseline),
        &Limits::default(),
        &JudgeOptions::default(),
    )
    .unwrap();
    let names: Vec<&str> = judgement
        .call_paths
        .iter()
        .map(|change| change.path.as_str())
        .collect();
    assert_eq!(names, ["larger", "function_03"]);
}
