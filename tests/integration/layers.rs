//! Modules use lower layers only: see the table in `docs/architecture.md`.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Each module with the modules that it may use besides itself.
const MAY_USE: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("mapping", &["units"]),
    ("stats_page", &[]),
    ("allocator", &["stats_page"]),
    ("preload", &["stats_page", "allocator"]),
    ("event", &["units", "mapping", "stats_page"]),
    ("inherited", &[]),
    ("event_log", &["units", "event", "report"]),
    ("heap_walk", &["units", "mapping", "event"]),
    (
        "tracer",
        &[
            "units",
            "mapping",
            "stats_page",
            "allocator",
            "event",
            "heap_walk",
            "inherited",
        ],
    ),
    ("doctor", &["event"]),
    (
        "model",
        &[
            "units",
            "mapping",
            "stats_page",
            "event",
            "event_log",
            "symbols",
            "report",
        ],
    ),
    ("symbols", &["units", "mapping", "event"]),
    ("report", &["units", "stats_page", "event", "symbols"]),
    (
        "render",
        &["units", "stats_page", "event", "symbols", "report"],
    ),
    ("tui", &["units", "event", "report", "render"]),
    ("demo", &["units", "event", "report", "tracer", "render"]),
    (
        "cli",
        &[
            "units",
            "stats_page",
            "event",
            "event_log",
            "heap_walk",
            "tracer",
            "doctor",
            "symbols",
            "model",
            "report",
            "render",
            "demo",
            "tui",
        ],
    ),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names after each `crate::`.
fn used_modules(text: &str) -> impl Iterator<Item = &str> {
    text.split("crate::").skip(1).map(|rest| {
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn modules_use_lower_layers_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut violations = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let module = relative
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        if matches!(module, "lib" | "main" | "build") {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            violations.push(format!(
                "{}: the module has no place in the table of layers",
                relative.display()
            ));
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        // Tests may look anywhere.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        if relative.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        for used in used_modules(code) {
            let known = MAY_USE.iter().any(|(name, _)| *name == used);
            if known && used != module && !allowed.contains(&used) {
                violations.push(format!("{} uses {used}", relative.display()));
            }
        }
    }
    assert!(
        violations.is_empty(),
        "upward or sideways uses:\n{}",
        violations.join("\n")
    );
}
