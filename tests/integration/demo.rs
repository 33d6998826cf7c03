//! The founding experiment, on the C library of this machine.

use std::process::Command;
use std::process::Output;

fn demo(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_breaktrace"))
        .arg("demo")
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .expect("cargo has built breaktrace")
}

fn json(environment: &[(&str, &str)]) -> serde_json::Value {
    let output = demo(&["--json"], environment);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("--json prints JSON")
}

fn address(value: &serde_json::Value) -> u64 {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x"));
    u64::from_str_radix(digits.expect("an address"), 16).expect("hexadecimal digits")
}

#[test]
fn the_program_and_the_trace_agree_at_every_step() {
    let shown = json(&[]);
    assert_eq!(shown["agrees"], true);
    let steps = shown["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 10);
    for step in steps {
        assert_eq!(step["seen_break"], step["traced_break"], "{step:#}");
    }
    // The heap was untouched when the program began, though breaktrace itself allocates.
    assert_eq!(steps[0]["seen_break"], shown["heap_start"]);
}

#[test]
fn every_change_that_the_program_saw_is_the_sum_of_traced_calls() {
    let shown = json(&[]);
    for step in shown["steps"].as_array().unwrap() {
        let traced: i64 = step["calls"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|call| call["call"] == "brk")
            .map(|call| {
                address(&call["after"])
                    .wrapping_sub(address(&call["before"]))
                    .cast_signed()
            })
            .sum();
        assert_eq!(step["change_bytes"], traced, "{step:#}");
    }
}

#[test]
fn sums_add_up_to_the_byte() {
    let shown = json(&[]);
    for sum in shown["sums"].as_array().unwrap() {
        let terms = sum["terms"].as_array().unwrap();
        let total: i64 = terms.iter().filter_map(|term| term["bytes"].as_i64()).sum();
        assert_eq!(sum["bytes"], total, "{sum:#}");
    }
}

#[test]
#[cfg(all(target_env = "gnu", target_pointer_width = "64"))]
fn on_glibc_without_tunables_every_step_is_explained() {
    let shown = json(&[]);
    if shown["influences"].as_array().unwrap().is_empty() && shown["machine"]["page_size"] == 4096 {
        let reasons = shown["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| &step["reason"]["kind"]);
        assert!(
            reasons.clone().all(|kind| kind != "unexplained"),
            "{shown:#}"
        );
        assert_eq!(shown["sums"].as_array().unwrap().len(), 3);
    }
}

#[test]
#[cfg(target_env = "gnu")]
fn another_top_pad_is_read_in_the_program_and_explains_the_numbers() {
    let shown = json(&[("MALLOC_TOP_PAD_", "0")]);
    assert_eq!(shown["agrees"], true);
    assert_eq!(shown["influences"], serde_json::json!(["MALLOC_TOP_PAD_"]));
    assert_eq!(shown["steps"][9]["reason"]["kind"], "grown");
    assert_eq!(shown["steps"][9]["malloc"]["top_pad_bytes"], 0);
    let sums = shown["sums"].as_array().unwrap();
    let terms = sums.last().unwrap()["terms"].as_array().unwrap();
    let pad = terms.iter().find(|term| term["kind"] == "top_pad").unwrap();
    assert_eq!(pad["bytes"], 0, "{shown:#}");
}

#[test]
fn text_fits_the_width_and_a_pipe_gets_no_escapes() {
    for width in ["60", "80", "120"] {
        let output = demo(&[], &[("COLUMNS", width)]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text is UTF-8");
        assert!(
            text.starts_with("The program and the trace agree"),
            "{text}"
        );
        assert!(!text.contains('\x1b'));
        let columns: usize = width.parse().unwrap();
        // No character of it is wider than a column.
        assert!(
            text.lines().all(|line| line.chars().count() <= columns),
            "{text}"
        );
    }
}

#[test]
fn another_value_of_the_players_variable_changes_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_breaktrace"))
        .arg("--version")
        .env("BREAKTRACE_DEMO_PART", "audience")
        .output()
        .expect("cargo has built breaktrace");
    assert!(
        String::from_utf8_lossy(&output.stdout).starts_with("breaktrace "),
        "{output:?}"
    );
}
