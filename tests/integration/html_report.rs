//! The page for a browser, as a browser shows it.

use std::path::Path;
use std::path::PathBuf;

use breaktrace::report::Report;
use tempfile::TempDir;

use crate::browser::Browser;
use crate::support::breaktrace;
use crate::support::fixture;
use crate::support::skip;

/// Records a program; the page, and the report that it is of.
fn recorded(folder: &TempDir, options: &[&str], command: &[&str]) -> (PathBuf, Report) {
    let (page, json) = (folder.path().join("r.html"), folder.path().join("r.json"));
    let output = breaktrace()
        .args(["run", "-q", "-o"])
        .arg(&page)
        .arg("-o")
        .arg(&json)
        .args(options)
        .arg("--")
        .args(command)
        .output()
        .unwrap();
    assert!(page.exists(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = breaktrace::report::from_json(&std::fs::read_to_string(json).unwrap()).unwrap();
    (page, report)
}

fn browser() -> Option<Browser> {
    let browser = Browser::start();
    if browser.is_none() {
        skip("Chromium is missing");
    }
    browser
}

fn open(browser: &mut Browser, page: &Path) {
    browser.open(page, "");
}

#[test]
fn the_page_says_what_the_report_says() {
    let Some(mut browser) = browser() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let program = "for i in range(3):\n  x = [str(n) * 9 for n in range(20000)]\n";
    let (page, report) = recorded(&folder, &[], &["python3", "-c", program]);
    open(&mut browser, &page);
    let verdict = browser.text("#verdict");
    assert!(verdict.contains("heap grew"), "{verdict}");
    let space = report.main().unwrap();
    let points = browser.evaluate("document.getElementById('chart').dataset.ready");
    assert_eq!(points, space.timeline.points.len().to_string());
    let kept = space.program_break.steps.kept.len() + space.anonymous.steps.kept.len();
    assert_eq!(browser.count("#steps tbody tr"), kept as u64);
    assert!(browser.count("#flames rect") > 10);
    assert!(browser.count("#map rect") > 3);
    assert!(browser.text("#alloc").contains("in use"));
}

#[test]
fn the_address_space_is_that_of_the_cursors_time() {
    let Some(mut browser) = browser() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let program = "import time, mmap\nkeep = []\nfor i in range(6):\n  keep.append(mmap.mmap(-1, 33 << 20,         flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))\n  time.sleep(0.06)\n";
    let (page, report) = recorded(&folder, &["--every", "50ms"], &["python3", "-c", program]);
    let space = report.main().unwrap();
    assert!(
        space.earlier_layouts.len() > 1,
        "{:#?}",
        space.earlier_layouts
    );
    open(&mut browser, &page);
    assert!(browser.text("#mapwhen").contains("at the end"));
    let hover = |share: f64| {
        format!(
            "(() => {{ const box = document.getElementById('chart'), r = box.getBoundingClientRect(); \
             box.dispatchEvent(new PointerEvent('pointermove', {{clientX: r.left + r.width * {share}, clientY: r.top + 50, \
             bubbles: true, pointerId: 1}})); return 1; }})()"
        )
    };
    browser.evaluate(&hover(0.35));
    let early = browser.text("#mapwhen");
    let drawn = browser.text("#map");
    browser.evaluate(&hover(0.9));
    let late = browser.text("#mapwhen");
    assert!(early.contains("as at the snapshot at"), "{early}");
    assert_ne!(early, late);
    assert_ne!(drawn, browser.text("#map"));
    // What was in use at the cursor stands beside it.
    assert!(browser.text("#allocwhen").contains("in use"));
}

#[test]
fn a_step_that_is_clicked_shows_its_stack_and_its_arithmetic() {
    let Some(mut browser) = browser() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (page, _) = recorded(
        &folder,
        &[],
        &["perl", "-e", "my @a = map { $_ x 9 } 1 .. 9000"],
    );
    open(&mut browser, &page);
    let clicked = browser.evaluate(
        "(() => { const row = [...document.querySelectorAll('#steps tbody tr')].find(r => r.children[1].textContent === 'brk'); \
         row.click(); return document.querySelectorAll('#step li').length; })()",
    );
    assert!(clicked.as_u64().unwrap() > 2, "{clicked}");
    let why = browser.text("#step .why");
    assert!(
        why.contains("top pad") && why.contains("a request of"),
        "{why}"
    );
    // The view is kept in the page's address.
    let hash = browser.evaluate("location.hash");
    assert!(hash.as_str().unwrap().contains("step="), "{hash}");
}

#[test]
fn a_range_that_is_dragged_over_filters_everything_and_escape_ends_it() {
    let Some(mut browser) = browser() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (page, _) = recorded(
        &folder,
        &[],
        &["perl", "-e", "my @a = map { $_ x 9 } 1 .. 9000"],
    );
    open(&mut browser, &page);
    let all = browser.count("#steps tbody tr");
    let drag = "(() => { const box = document.getElementById('chart'), r = box.getBoundingClientRect(); \
        box.setPointerCapture = () => {}; \
        const event = (type, share) => box.dispatchEvent(new PointerEvent(type, {clientX: r.left + r.width * share, clientY: r.top + 50, bubbles: true, pointerId: 1})); \
        event('pointerdown', 0.12); event('pointermove', 0.3); event('pointerup', 0.4); \
        return document.querySelectorAll('#steps tbody tr').length; })()";
    let some = browser.evaluate(drag).as_u64().unwrap();
    assert!(some < all, "{some} of {all}");
    assert_eq!(
        browser.count("#paths table"),
        0,
        "paths are sums over the whole time"
    );
    let again = "(() => { document.getElementById('chart').dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'})); \
        return document.querySelectorAll('#steps tbody tr').length; })()";
    assert_eq!(browser.evaluate(again), all);
}

#[test]
fn what_is_searched_for_is_found_in_steps_and_flames() {
    let Some(mut browser) = browser() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (page, _) = recorded(
        &folder,
        &[],
        &["perl", "-e", "my @a = map { $_ x 9 } 1 .. 9000"],
    );
    open(&mut browser, &page);
    let search = |id: &str, words: &str, then: &str| {
        format!(
            "(() => {{ const box = document.getElementById('{id}'); box.value = '{words}'; \
             box.dispatchEvent(new Event('input')); return {then}; }})()"
        )
    };
    let rows = "document.querySelectorAll('#steps tbody tr td.wide').length";
    let none = browser.evaluate(&search("search", "no such function", rows));
    assert_eq!(none, 0);
    let matched = "document.getElementById('matched').textContent";
    let found = browser.evaluate(&search("find", "perl", matched));
    assert!(
        found.as_str().unwrap().contains("goes through it"),
        "{found}"
    );
    let net = "(() => { document.querySelectorAll('#measure button')[1].click(); return location.hash; })()";
    assert!(
        browser
            .evaluate(net)
            .as_str()
            .unwrap()
            .contains("measure=net")
    );
}

#[test]
fn names_with_markup_do_no_harm() {
    let Some(mut browser) = browser() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let hostile = "</script><script>document.body.dataset.broken=1</script><img src=x onerror=\"document.body.dataset.broken=1\">";
    let (page, _) = recorded(&folder, &[], &["sh", "-c", "exit 0", hostile]);
    open(&mut browser, &page);
    assert_eq!(
        browser.evaluate("document.body.dataset.broken ?? 'whole'"),
        "whole"
    );
    assert_eq!(browser.count("img"), 0);
    assert!(browser.text("#facts").contains("onerror"));
}

#[test]
fn a_program_that_asks_for_nothing_has_a_page_too() {
    let Some(mut browser) = browser() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let program = fixture("ends");
    let (page, _) = recorded(
        &folder,
        &["--stacks", "off", "--no-heap"],
        &[program.to_str().unwrap()],
    );
    open(&mut browser, &page);
    assert!(!browser.text("#verdict").is_empty());
    assert!(
        browser
            .text("#flames")
            .contains("no call stacks were recorded")
    );
    assert!(browser.text("#alloc").contains("not visible"));
}

#[test]
fn two_recordings_lie_over_each_other_with_what_changed() {
    let Some(mut browser) = browser() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let names = ["before.json", "after.json"].map(|name| folder.path().join(name));
    for (name, count) in names.iter().zip(["2000", "9000"]) {
        let script = format!("my @a = map {{ $_ x 9 }} 1 .. {count}");
        let (_, report) = recorded(&folder, &["--no-aslr"], &["perl", "-e", &script]);
        std::fs::write(name, breaktrace::report::to_json(&report)).unwrap();
    }
    let page = folder.path().join("diff.html");
    let output = breaktrace()
        .arg("diff")
        .args(&names)
        .arg("-o")
        .arg(&page)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    open(&mut browser, &page);
    assert!(browser.text("#changes").contains("break.grown"));
    assert!(browser.count("#chart path.past") >= 1);
    let hidden = browser.evaluate("document.getElementById('changed').hidden");
    assert_eq!(hidden, false);
}
