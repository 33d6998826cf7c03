//! The doctor on this machine, whatever it allows.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

use super::*;

/// Set in the process that a test starts for itself.
const INNER: &str = "BREAKTRACE_DOCTOR_TEST_ALONE";

/// Runs the test of this name once more, in a process of its own, where nothing else opens files or makes children;
/// `false` in that process.
fn runs_elsewhere(name: &str) -> bool {
    if env::var_os(INNER).is_some() {
        return false;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

fn descriptors() -> BTreeSet<String> {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let target = fs::read_link(&path).ok()?;
            // The listing's own descriptor is gone by now.
            Some(format!("{} {}", path.display(), target.display()))
        })
        .filter(|line| !line.ends_with("/fd"))
        .collect()
}

/// The sets of signals in this thread's status: blocked, ignored, caught, pending.
fn signals() -> Vec<String> {
    fs::read_to_string("/proc/thread-self/status")
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("Sig") || line.starts_with("ShdPnd"))
        // Sizes of queues come and go with other processes of the same user.
        .filter(|line| !line.starts_with("SigQ"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn an_examination_leaves_nothing_behind_in_a_process_with_threads() {
    if runs_elsewhere(
        "doctor::tests::an_examination_leaves_nothing_behind_in_a_process_with_threads",
    ) {
        return;
    }
    static STOP: AtomicBool = AtomicBool::new(false);
    // Threads that hold the allocator's lock much of the time, so that a fork often finds it held.
    let threads: Vec<_> = (0..3)
        .map(|_| {
            thread::spawn(|| {
                while !STOP.load(Ordering::Relaxed) {
                    drop(std::hint::black_box(vec![0_u8; 3000]));
                }
            })
        })
        .collect();
    let before = (descriptors(), signals());
    let diagnosis = examine();
    assert_eq!((descriptors(), signals()), before);
    // SAFETY: this process has no children but those of the examination.
    let child = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
    assert_eq!((child, Errno::last()), (-1, Errno::ECHILD));
    STOP.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(diagnosis.findings.len() > 10);
}

#[test]
fn an_examination_names_each_finding_once_and_gives_remedies() {
    let diagnosis = examine();
    let names: BTreeSet<_> = diagnosis.findings.iter().map(|one| one.name).collect();
    assert_eq!(names.len(), diagnosis.findings.len());
    for finding in &diagnosis.findings {
        assert!(!finding.found.is_empty() && !finding.means.is_empty());
        assert_eq!(
            finding.remedy.is_some(),
            finding.status != Status::Good,
            "{finding:?}"
        );
    }
}

#[test]
fn two_examinations_agree() {
    assert_eq!(examine(), examine());
}

#[test]
fn ptrace_is_good_exactly_when_a_program_can_be_run() {
    let diagnosis = examine();
    let good = |name| diagnosis.finding(name).unwrap().status == Status::Good;
    assert_eq!(diagnosis.can_run(), good("ptrace") && good("syscall_info"));
    assert!(!diagnosis.can_attach() || diagnosis.can_run());
}

#[test]
fn the_verdict_depends_on_what_is_needed_alone() {
    let with = |missing: &[&'static str]| {
        let findings = ["ptrace", "syscall_info", "attach", "proc", "procmap_query"]
            .map(|name| Finding {
                name,
                status: if missing.contains(&name) {
                    Status::Missing
                } else {
                    Status::Good
                },
                found: "found".into(),
                means: "means".into(),
                remedy: None,
            })
            .to_vec();
        let diagnosis = Diagnosis::new(kernel_probes::machine(), findings);
        (diagnosis.can_run(), diagnosis.can_attach())
    };
    assert_eq!(with(&[]), (true, true));
    assert_eq!(with(&["procmap_query"]), (true, true));
    assert_eq!(with(&["attach"]), (true, false));
    assert_eq!(with(&["proc"]), (true, false));
    assert_eq!(with(&["ptrace"]), (false, false));
    assert_eq!(with(&["syscall_info"]), (false, false));
}

#[test]
fn json_holds_what_the_diagnosis_holds() {
    let diagnosis = examine();
    let value: serde_json::Value = serde_json::from_str(&to_json(&diagnosis)).unwrap();
    assert_eq!(value["schema"]["name"], "breaktrace.doctor");
    assert_eq!(value["schema"]["version"], 1);
    assert_eq!(value["can_run"], diagnosis.can_run());
    let findings = value["findings"].as_array().unwrap();
    assert_eq!(findings.len(), diagnosis.findings.len());
    for (written, finding) in findings.iter().zip(&diagnosis.findings) {
        assert_eq!(written["name"], finding.name);
        assert_eq!(written["found"], finding.found.as_str());
        assert_eq!(written["means"], finding.means.as_str());
        assert_eq!(written["remedy"].as_str(), finding.remedy.as_deref());
        let status = match finding.status {
            Status::Good => "good",
            Status::Limited => "limited",
            Status::Missing => "missing",
        };
        assert_eq!(written["status"], status);
    }
}

#[test]
fn the_schema_names_every_field_that_is_written() {
    let schema = serde_json::to_value(schemars::schema_for!(Diagnosis)).unwrap();
    let value = serde_json::to_value(examine()).unwrap();
    for field in value.as_object().unwrap().keys() {
        assert!(schema["properties"].get(field).is_some(), "{field}");
    }
    let finding = &value["findings"][0];
    for field in finding.as_object().unwrap().keys() {
        let described = &schema["$defs"]["Finding"]["properties"];
        assert!(described.get(field).is_some(), "{field}");
    }
}
