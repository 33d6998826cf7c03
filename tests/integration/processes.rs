//! Processes, threads and execs: who is recorded, and whose memory it was.

use std::path::Path;

use breaktrace::event::Origin;
use breaktrace::event::Outcome;
use breaktrace::report::ProcessReport;
use breaktrace::report::Report;
use breaktrace::report::SpaceOrigin;
use breaktrace::report::SpaceReport;
use breaktrace::units::Address;

use crate::support::Traced;
use crate::support::fixture;
use crate::support::trace;
use crate::support::trace_unchecked;

#[track_caller]
fn process(report: &Report, pid: u64) -> &ProcessReport {
    report
        .processes
        .iter()
        .find(|process| u64::from(process.pid) == pid)
        .unwrap_or_else(|| panic!("no process {pid} among {:#?}", report.processes))
}

#[track_caller]
fn last_space<'a>(report: &'a Report, process: &ProcessReport) -> &'a SpaceReport {
    report
        .space(*process.address_spaces.last().expect("a space"))
        .expect("a known space")
}

/// `kind pid bytes`, as the fixture printed it.
fn child(traced: &Traced, kind: &str) -> (u64, u64) {
    let (pid, bytes) = traced.ended.fact(kind).split_once(' ').unwrap();
    (pid.parse().unwrap(), bytes.parse().unwrap())
}

#[test]
fn every_kind_of_child_moves_the_right_break() {
    for options in [&[][..], &["--no-seccomp"]] {
        let traced = trace(options, [fixture("fork_tree")]);
        traced.ended.expect_code(0);
        let report = &traced.report;
        let (parent, _) = child(&traced, "parent");
        let own = process(report, parent);
        assert_eq!(own.origin, Origin::Launched);
        let own_space = last_space(report, own);

        let (forked, grown) = child(&traced, "forked");
        let forked = process(report, forked);
        assert_eq!(
            (forked.origin, forked.parent),
            (Origin::Forked, Some(own.pid))
        );
        let space = last_space(report, forked);
        assert_eq!(space.origin, SpaceOrigin::Forked(own_space.id));
        assert_eq!(space.program_break.grown_bytes, grown);
        assert_eq!(space.program_break.start, own_space.program_break.start);

        let (vforked, first) = child(&traced, "vforked");
        let vforked = process(report, vforked);
        assert_eq!(
            (vforked.origin, vforked.parent),
            (Origin::Vforked, Some(own.pid))
        );
        assert_eq!(vforked.address_spaces, own.address_spaces);
        let (cloned, second) = child(&traced, "cloned");
        let cloned = process(report, cloned);
        assert_eq!(
            (cloned.origin, cloned.parent),
            (Origin::Cloned, Some(own.pid))
        );
        assert_eq!(cloned.address_spaces, own.address_spaces);
        assert_eq!(first + second, traced.ended.number("break_moved"));
        assert_eq!(own_space.program_break.grown_bytes, first + second);

        let (spawned, grown) = child(&traced, "spawned");
        let spawned = process(report, spawned);
        assert_eq!(
            (spawned.origin, spawned.parent),
            (Origin::Vforked, Some(own.pid))
        );
        let space = last_space(report, spawned);
        assert_eq!(space.origin, SpaceOrigin::Exec);
        assert_eq!(space.program_break.grown_bytes, grown);
        assert_eq!(
            spawned.arguments.last().map(String::as_str),
            Some("spawned")
        );

        assert_eq!(
            (report.totals.processes, report.totals.address_spaces),
            (5, 3)
        );
        assert!(
            report
                .processes
                .iter()
                .all(|process| process.outcome == Some(Outcome::Exited(0)))
        );
    }
}

#[test]
fn only_the_first_process_is_recorded_on_request() {
    for options in [&["--no-follow"][..], &["--no-follow", "--no-seccomp"]] {
        let traced = trace_unchecked(options, [fixture("fork_tree")]);
        // All children lived and told: none missed a call.
        traced.ended.expect_code(0);
        let report = &traced.report;
        assert_eq!(report.totals.processes, 1, "{:#?}", report.processes);
        assert_eq!(
            u64::from(report.processes[0].pid),
            child(&traced, "parent").0
        );
        assert!(child(&traced, "forked").1 > 0 && child(&traced, "spawned").1 > 0);
        assert_eq!(report.totals.address_spaces, 1);
        // Two of the children moved the parent's break unseen. Its next call told.
        let heap = &report.address_spaces[0].program_break;
        let moved = heap.end_bytes.unwrap() - heap.start_bytes.unwrap();
        assert_eq!(moved, traced.ended.number("break_moved"));
    }
}

#[test]
fn a_thread_that_execs_takes_over_its_process() {
    for options in [&[][..], &["--no-seccomp"]] {
        let traced = trace(options, [fixture("exec_from_thread")]);
        traced.ended.expect_code(7);
        let report = &traced.report;
        assert_eq!(report.totals.processes, 1, "{:#?}", report.processes);
        let own = &report.processes[0];
        assert_eq!(
            (own.outcome, own.address_spaces.len()),
            (Some(Outcome::Exited(7)), 2)
        );
        assert_eq!(own.threads, 4);
        let space = last_space(report, own);
        assert_eq!(space.origin, SpaceOrigin::Exec);
        let heap = &space.program_break;
        assert_eq!(heap.start, Some(Address(traced.ended.number("heap_start"))));
        assert_eq!(heap.end, Some(Address(traced.ended.number("last"))));
        assert_eq!(heap.grown_bytes, 0x55000);
    }
}

#[test]
fn a_pipeline_is_recorded_program_by_program() {
    let traced = trace(&[], ["sh", "-c", "cat /etc/passwd | sort | wc -l; exit 4"]);
    traced.ended.expect_code(4);
    let ran = |name: &str| {
        let is = |space: &&SpaceReport| {
            space
                .arguments
                .first()
                .is_some_and(|first| Path::new(first).ends_with(name))
        };
        traced
            .report
            .address_spaces
            .iter()
            .filter(is)
            .filter(|space| space.origin == SpaceOrigin::Exec)
            .count()
    };
    assert_eq!(
        (ran("sh"), ran("cat"), ran("sort"), ran("wc")),
        (1, 1, 1, 1)
    );
    assert_eq!(traced.report.totals.processes, 4);
}

#[test]
fn a_process_that_is_left_behind_is_recorded_to_its_end() {
    // The pipe tells the child when its parent has gone: `read` ends.
    let script = "exec 3<&0; (while kill -0 $$ 2>/dev/null; do :; done; exec perl -e 'my @l = (1) x 300000') & exit 6";
    if crate::support::installed(&["perl"]).is_none() {
        return crate::support::skip("perl is not installed");
    }
    let traced = trace(&[], ["sh", "-c", script]);
    traced.ended.expect_code(6);
    let report = &traced.report;
    assert_eq!(report.totals.processes, 2, "{:#?}", report.processes);
    assert!(
        report
            .processes
            .iter()
            .all(|process| process.outcome.is_some())
    );
    let left = report
        .processes
        .iter()
        .find(|process| process.origin == Origin::Forked)
        .unwrap();
    assert!(
        last_space(report, left).program.contains("perl"),
        "{left:#?}"
    );
}
