//! speedscope's file format (<https://www.speedscope.app/file-format-schema.json>): one sampled profile per measure.

use std::collections::BTreeMap;
use std::collections::HashMap;

use serde::Serialize;

use super::Measure;
use super::frames::NamedFrame;
use super::frames::StackTable;
use super::frames::growths;
use super::frames::program_name;
use crate::render::words::harmless;
use crate::report::Report;

/// The name by which speedscope knows its format.
const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

#[derive(Serialize)]
struct File {
    #[serde(rename = "$schema")]
    schema: &'static str,
    name: String,
    exporter: String,
    /// The profile that is shown first.
    #[serde(rename = "activeProfileIndex")]
    active_profile: usize,
    shared: Shared,
    profiles: Vec<Profile>,
}

#[derive(Serialize)]
struct Shared {
    frames: Vec<Frame>,
}

#[derive(Serialize)]
struct Frame {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

impl From<NamedFrame> for Frame {
    fn from(frame: NamedFrame) -> Self {
        Self {
            name: frame.name,
            file: frame.file,
            line: frame.line,
        }
    }
}

#[derive(Serialize)]
struct Profile {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'static str,
    unit: &'static str,
    #[serde(rename = "startValue")]
    start: u64,
    #[serde(rename = "endValue")]
    end: u64,
    /// Each stack's positions in the shared frames, the outermost first.
    samples: Vec<Vec<usize>>,
    /// Each stack's value.
    weights: Vec<u64>,
}

/// All measures; `measure` is the one that is shown first.
pub(crate) fn speedscope(report: &Report, measure: Measure) -> Vec<u8> {
    let mut frames = Frames::default();
    let stacks = stacks(report, &mut frames);
    let file = File {
        schema: SCHEMA,
        name: harmless(&report.recording.command.join(" ")),
        exporter: format!("{} {}", report.tool.name, report.tool.version),
        active_profile: Measure::ALL
            .iter()
            .position(|one| *one == measure)
            .unwrap_or_default(),
        profiles: Measure::ALL
            .into_iter()
            .enumerate()
            .map(|(index, measure)| profile(measure, index, &stacks))
            .collect(),
        shared: Shared {
            frames: frames.list.into_iter().map(Frame::from).collect(),
        },
    };
    super::json_line(&file)
}

/// Frames in the order in which they came, each once.
#[derive(Default)]
struct Frames {
    positions: HashMap<NamedFrame, usize>,
    list: Vec<NamedFrame>,
}

impl Frames {
    fn position(&mut self, frame: NamedFrame) -> usize {
        let next = self.list.len();
        *self.positions.entry(frame).or_insert_with_key(|frame| {
            self.list.push(frame.clone());
            next
        })
    }
}

/// What each stack measures, by every measure.
type Values = [u64; Measure::ALL.len()];

fn stacks(report: &Report, frames: &mut Frames) -> BTreeMap<Vec<usize>, Values> {
    let table = StackTable::of(report);
    let mut stacks: BTreeMap<Vec<usize>, Values> = BTreeMap::new();
    for (space, growth) in growths(report) {
        let root = NamedFrame::placeholder(&program_name(report, space));
        let mut positions = vec![frames.position(root)];
        for frame in table.outermost_first(table.stack(growth.stack)) {
            positions.push(frames.position(frame));
        }
        let values = stacks.entry(positions).or_default();
        for (value, measure) in values.iter_mut().zip(Measure::ALL) {
            *value = value.saturating_add(measure.of_both(growth));
        }
    }
    stacks
}

fn profile(measure: Measure, index: usize, stacks: &BTreeMap<Vec<usize>, Values>) -> Profile {
    let (samples, weights): (Vec<_>, Vec<_>) = stacks
        .iter()
        .filter(|(_, values)| values[index] != 0)
        .map(|(stack, values)| (stack.clone(), values[index]))
        .unzip();
    Profile {
        kind: "sampled",
        name: measure.name(),
        unit: if measure.is_bytes() { "bytes" } else { "none" },
        start: 0,
        end: weights.iter().fold(0, |sum, one| one.saturating_add(sum)),
        samples,
        weights,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::tests;
    use super::*;

    fn parsed(report: &Report, measure: Measure) -> Value {
        serde_json::from_slice(&speedscope(report, measure)).unwrap()
    }

    #[test]
    fn every_report_follows_speedscopes_own_schema() {
        let schema = include_str!("../../../tests/data/speedscope/file-format-schema.json");
        let schema: Value = serde_json::from_str(schema).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        for (name, report) in tests::every_report() {
            let mut file = parsed(&report, Measure::Net);
            let complaints: Vec<String> = validator
                .iter_errors(&file)
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            assert!(complaints.is_empty(), "{name}: {complaints:?}");
            file["profiles"][0]["unit"] = "pages".into();
            assert!(
                !validator.is_valid(&file),
                "the schema refuses what is wrong"
            );
        }
    }

    #[test]
    fn weights_add_up_and_samples_name_frames_that_are_there() {
        for (name, report) in tests::every_report() {
            let file = parsed(&report, Measure::Net);
            let frames = file["shared"]["frames"].as_array().unwrap().len() as u64;
            for (index, measure) in Measure::ALL.into_iter().enumerate() {
                let profile = &file["profiles"][index];
                let weights = profile["weights"].as_array().unwrap();
                let samples = profile["samples"].as_array().unwrap();
                assert_eq!(weights.len(), samples.len(), "{name}");
                let sum = weights
                    .iter()
                    .fold(0, |sum: u64, one| sum.saturating_add(one.as_u64().unwrap()));
                assert_eq!(sum, tests::total(&report, measure), "{name}: {measure:?}");
                assert_eq!(profile["endValue"], sum, "{name}");
                let positions = samples.iter().flat_map(|one| one.as_array().unwrap());
                assert!(
                    positions
                        .map(|one| one.as_u64().unwrap())
                        .all(|one| one < frames)
                );
            }
        }
    }

    #[test]
    fn frames_have_their_files_and_lines_where_known() {
        let file = parsed(&tests::with_stacks(), Measure::Grown);
        assert_eq!(file["activeProfileIndex"], 1);
        let frames = file["shared"]["frames"].as_array().unwrap();
        let frame = |name: &str| frames.iter().find(|one| one["name"] == name).unwrap();
        assert_eq!(
            *frame("load"),
            serde_json::json!({"name": "load", "file": "/srv/app/build.py", "line": 12})
        );
        assert_eq!(*frame("brk"), serde_json::json!({"name": "brk"}));
    }
}
