//! The bundled malloc keeps what the C standard, POSIX and glibc's manual promise, however it is set up.
//!
//! `fixtures/malloc_conformance.c` makes the claims; its sections are run one by one.

use std::process::Command;

use crate::preloaded::SETTINGS;
use crate::preloaded::Setting;
use crate::preloaded::compiled;
use crate::preloaded::preload;
use crate::support::Ended;
use crate::support::finish;

/// Runs a section under each setting, and fails with the claims that do not hold.
#[track_caller]
fn expect_promises_kept(section: &str) {
    let Some(program) = compiled("malloc_conformance.c") else {
        return;
    };
    let mut broken = Vec::new();
    for setting in SETTINGS.iter().filter(|setting| applies(setting, section)) {
        let mut command = Command::new(&program);
        let ended = finish(preload(command.arg(section), setting));
        let last = ended.stdout.lines().last().unwrap_or_default();
        let complete = last.starts_with(section) && last.ends_with(" failed 0");
        if ended.ending() != (Some(0), None) || !complete {
            broken.push(told(setting.name, &ended));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Freed blocks stay in guard's quarantine for a while, and are no free memory there: that is its purpose.
fn applies(setting: &Setting, section: &str) -> bool {
    let guarded = setting.variables.contains(&("BREAKTRACE_GUARD", "1"));
    !(guarded && section == "figures")
}

fn told(setting: &str, ended: &Ended) -> String {
    format!(
        "{setting}: ended with {}\n{}{}",
        ended.status, ended.stdout, ended.stderr
    )
}

macro_rules! promises {
    ($($test:ident: $section:literal;)*) => {
        $(
            #[test]
            fn $test() {
                expect_promises_kept($section);
            }
        )*

        /// Sections that have a test.
        const TESTED: &[&str] = &[$($section),*];
    };
}

promises! {
    blocks_of_any_size_are_aligned_and_keep_their_bytes: "sizes";
    blocks_of_zero_bytes_are_blocks_of_their_own: "zero_sizes";
    success_leaves_errno_alone: "errno_is_kept";
    requests_beyond_any_object_fail_with_enomem: "impossible_sizes";
    calloc_zeroes_memory_that_was_used_before: "zeroed_memory";
    realloc_keeps_the_bytes_both_ways: "reallocation";
    alignments_are_kept_and_bad_ones_refused: "alignments";
    all_usable_bytes_can_be_used: "usable_sizes";
    mallinfo_follows_what_the_program_does: "figures";
    mallopt_knows_its_parameters: "tuning";
    malloc_trim_gives_back_what_is_free: "trimming";
    malloc_stats_and_malloc_info_write_where_they_should: "statements";
    other_names_of_malloc_share_its_heap: "other_names";
    a_forked_child_of_a_threaded_program_can_allocate: "forks";
    children_that_borrow_memory_do_no_harm: "vforks_and_spawns";
    the_smallest_stack_is_large_enough: "small_stacks";
    destructors_of_threads_can_allocate: "destructors";
    handlers_at_exit_can_allocate: "late_calls";
    threads_that_come_and_go_leave_nothing_behind: "coming_and_going";
    a_break_moved_by_the_program_stays_the_programs: "foreign_break";
    a_break_lowered_by_the_program_does_no_harm: "falling_break";
    a_refused_break_is_no_refused_request: "blocked_break";
    a_limit_of_the_address_space_is_met_with_enomem: "address_limit";
    a_limit_of_data_is_met_with_enomem: "data_limit";
    threads_at_a_limit_get_enomem: "limited_threads";
    free_memory_serves_when_the_kernel_gives_none: "no_room_at_all";
    the_dynamic_linker_can_allocate_beside_threads: "dynamic_linking";
    blocks_from_before_main_last: "early_calls";
}

#[test]
fn each_section_of_promises_has_a_test() {
    let source = include_str!("../../fixtures/malloc_conformance.c");
    let table = source.split("} sections[] = {").nth(1).unwrap();
    let sections: Vec<_> = table
        .lines()
        .map_while(|line| match line.trim() {
            "" => Some(None),
            "};" => None,
            entry => Some(entry.split('"').nth(1)),
        })
        .flatten()
        .collect();
    assert_eq!(sections, TESTED);
}

#[test]
fn operators_of_cpp_stand_on_the_bundled_malloc() {
    let Some(program) = compiled("malloc_operators.cpp") else {
        return;
    };
    for setting in SETTINGS {
        let ended = finish(preload(&mut Command::new(&program), setting));
        assert_eq!(
            ended.ending(),
            (Some(0), None),
            "{}",
            told(setting.name, &ended)
        );
        assert!(
            ended.stdout.ends_with(" failed 0\n"),
            "{}",
            told(setting.name, &ended)
        );
    }
}
