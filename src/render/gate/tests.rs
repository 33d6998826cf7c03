use super::*;
use crate::render::TextOptions;
use crate::report::gate;
use crate::report::gate::Baseline;
use crate::report::gate::JudgeOptions;
use crate::report::gate::Judgement;
use crate::report::gate::Limits;
use crate::report::gate::PathFigures;
use crate::report::gate::Subject;
use crate::report::gate::tests::subject;

const HOSTILE: &str = "a<b>&\"'|`%\n::error::x\u{1b}[31m\u{202e}]]>";

fn judgement_of(before: &Subject, now: &Subject) -> Judgement {
    let options = JudgeOptions::default();
    gate::judge(
        now,
        Some(&Baseline::of(before)),
        &Limits::default(),
        &options,
    )
    .unwrap()
}

fn hostile() -> Judgement {
    let mut before = subject(&[("break.peak", &[100])]);
    let mut now = subject(&[("break.peak", &[200])]);
    for side in [&mut before, &mut now] {
        side.command = vec![HOSTILE.to_owned()];
        side.paths.insert("main".to_owned(), PathFigures::default());
    }
    let grown = PathFigures {
        grown_bytes: 100,
        net_bytes: 100,
        grow_calls: 1,
    };
    now.paths.insert(HOSTILE.to_owned(), grown);
    judgement_of(&before, &now)
}

#[test]
fn names_chosen_by_a_program_stay_within_their_place() {
    let judgement = hostile();
    let texts = [
        super::judgement(&judgement, TextOptions::default()),
        markdown(&judgement),
        junit(&judgement),
        annotations(&judgement),
    ];
    for text in &texts {
        assert!(
            !text.contains('\u{1b}') && !text.contains('\u{202e}'),
            "{text}"
        );
        assert!(
            !text.lines().any(|line| line.starts_with("::error::")),
            "{text}"
        );
    }
    assert!(!texts[2].contains("<b>"), "{}", texts[2]);
    // Each command of GitHub's is one line.
    assert!(
        texts[3]
            .lines()
            .all(|line| line.starts_with("::error title=")),
        "{}",
        texts[3]
    );
    // No row of a table has more cells for it.
    let rows = texts[1].lines().filter(|line| line.starts_with("| "));
    for row in rows {
        let bars = row.replace("\\|", "").matches('|').count();
        assert!([4, 7].contains(&bars), "{row}");
    }
}

#[test]
fn github_gets_no_more_errors_than_it_shows() {
    let names: Vec<&'static str> = gate::METRICS
        .iter()
        .filter(|metric| metric.repeatable)
        .map(|metric| metric.name)
        .collect();
    let before: Vec<(&str, &[u64])> = names.iter().map(|name| (*name, &[1][..])).collect();
    let now: Vec<(&str, &[u64])> = names.iter().map(|name| (*name, &[2][..])).collect();
    let judgement = judgement_of(&subject(&before), &subject(&now));
    assert!(judgement.failing().count() > 10);
    let text = annotations(&judgement);
    assert_eq!(text.lines().count(), 10);
    assert!(
        text.lines().last().unwrap().contains("more figures"),
        "{text}"
    );
}

#[test]
fn what_fails_comes_first_and_is_told_in_words() {
    let judgement = judgement_of(
        &subject(&[("break.peak", &[1 << 20]), ("heap.peak", &[2 << 20])]),
        &subject(&[("break.peak", &[1 << 21]), ("heap.peak", &[2 << 20])]),
    );
    let text = super::judgement(&judgement, TextOptions::default());
    let words: Vec<String> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        words,
        [
            "app --self-test",
            "1 run, against a baseline of 1 run",
            "",
            "metric baseline now change limit",
            "break.peak 1 MiB 2 MiB +1 MiB +100.0 % +0 REGRESSED",
            "1 other limited figure is as in the baseline (-v shows them)",
            "",
            "FAILED: 1 of 2 limited figures is beyond the limit",
        ]
    );
}
