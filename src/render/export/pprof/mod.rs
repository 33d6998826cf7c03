//! pprof's profile.proto, gzipped
//! (<https://github.com/google/pprof/blob/main/proto/profile.proto>, which gives the numbers of the fields).

mod names;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::Measure;
use super::frames::NOT_RECORDED;
use super::frames::NamedFrame;
use super::frames::StackTable;
use super::frames::TRUNCATED;
use super::frames::file_name;
use super::frames::growths;
use super::protobuf::Message;
use crate::render::words::harmless;
use crate::report::Growth;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::StackFrame;
use crate::report::StackGrowth;

/// Most names of functions that pprof is told to leave out.
const MOST_DROPPED: usize = 2000;

/// Which memory a value is of.
type Part = fn(&StackGrowth, Measure) -> u64;

/// The values of each sample: each measure of break and anonymous memory together, then of either.
const PARTS: [(&str, Part); 3] = [
    ("", |growth, measure| measure.of_both(growth)),
    ("break_", |growth, measure| {
        of(&growth.program_break, measure)
    }),
    ("anonymous_", |growth, measure| {
        of(&growth.anonymous, measure)
    }),
];

fn of(growth: &Growth, measure: Measure) -> u64 {
    measure.of(growth)
}

/// A profile with one sample per address space and stack. `measure` is what pprof shows first.
pub(crate) fn pprof(report: &Report, measure: Measure) -> Vec<u8> {
    compressed(&Profile::of(report, measure).into_bytes())
}

/// Writing to memory does not fail; if it did, nothing would be there.
fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .unwrap_or_default()
}

/// A profile in the making. Numbers of locations, functions and mappings count from 1.
struct Profile<'a> {
    table: StackTable<'a>,
    message: Message,
    strings: Interned<String>,
    functions: Interned<NamedFunction>,
    locations: Interned<Location>,
    samples: BTreeMap<SampleKey, Vec<u64>>,
}

/// What tells samples apart: numbers of locations, the innermost first, and the labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SampleKey {
    stack: Vec<u64>,
    pid: u32,
    space: u32,
    /// The number of a string.
    program: u64,
}

/// What tells functions apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct NamedFunction {
    name: String,
    system_name: Option<String>,
    file: Option<String>,
}

/// A place, or what stands for one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Location {
    /// A position in the report's `frames`.
    Frame(u32),
    /// A placeholder of this name.
    Placeholder(&'static str),
}

/// Values in the order in which they came, each once.
struct Interned<T> {
    positions: HashMap<T, u64>,
    values: Vec<T>,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self {
            positions: HashMap::new(),
            values: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Interned<T> {
    /// The value's position, from 0.
    fn position(&mut self, value: T) -> u64 {
        let next = self.values.len() as u64;
        *self.positions.entry(value).or_insert_with_key(|value| {
            self.values.push(value.clone());
            next
        })
    }
}

impl<'a> Profile<'a> {
    fn of(report: &'a Report, measure: Measure) -> Self {
        let mut profile = Self {
            table: StackTable::of(report),
            message: Message::default(),
            strings: Interned::default(),
            functions: Interned::default(),
            locations: Interned::default(),
            samples: BTreeMap::new(),
        };
        // The first string is empty: number 0 means that there is none.
        profile.text("");
        profile.sample_types();
        for (space, growth) in growths(report) {
            profile.add(space, growth);
        }
        profile.samples();
        profile.mappings(report);
        profile.locations();
        profile.functions();
        profile.drop_frames(report);
        profile.times(report);
        profile.comments(report);
        let default = profile.text(measure.name());
        profile.message.number(14, default);
        profile
    }

    /// The strings come last, as all else may add to them; fields may stand in any order.
    fn into_bytes(mut self) -> Vec<u8> {
        for text in &self.strings.values {
            self.message.text(6, text);
        }
        self.message.into_bytes()
    }

    /// The number of a string.
    fn text(&mut self, text: &str) -> u64 {
        self.strings.position(text.to_owned())
    }

    fn sample_types(&mut self) {
        for (part, _) in PARTS {
            for measure in Measure::ALL {
                let mut value_type = Message::default();
                value_type.number(1, self.text(&format!("{part}{}", measure.name())));
                let unit = if measure.is_bytes() { "bytes" } else { "count" };
                value_type.number(2, self.text(unit));
                self.message.message(1, &value_type);
            }
        }
    }

    fn add(&mut self, space: &SpaceReport, growth: &StackGrowth) {
        // pprof's numbers are signed.
        let values = PARTS.iter().flat_map(|(_, part)| {
            Measure::ALL.map(|measure| part(growth, measure).min(i64::MAX.unsigned_abs()))
        });
        let values: Vec<u64> = values.collect();
        if values.iter().all(|&value| value == 0) {
            return;
        }
        let stack = self.locations_of(growth);
        let program = self.text(&file_name(&space.program));
        let sums = self
            .samples
            .entry(SampleKey {
                stack,
                pid: space.pid,
                space: space.id.0,
                program,
            })
            .or_insert_with(|| vec![0; values.len()]);
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = sum.saturating_add(value).min(i64::MAX.unsigned_abs());
        }
    }

    /// The numbers of a stack's locations, the innermost first.
    fn locations_of(&mut self, growth: &StackGrowth) -> Vec<u64> {
        let Some(stack) = self.table.stack(growth.stack) else {
            return vec![self.location(Location::Placeholder(NOT_RECORDED))];
        };
        let known = |position: &&u32| self.table.frame(**position).is_some();
        let mut places: Vec<Location> = stack
            .frames
            .iter()
            .filter(known)
            .map(|position| Location::Frame(*position))
            .collect();
        if stack.truncated.is_some() {
            places.push(Location::Placeholder(TRUNCATED));
        }
        places
            .into_iter()
            .map(|place| self.location(place))
            .collect()
    }

    fn location(&mut self, location: Location) -> u64 {
        self.locations.position(location) + 1
    }

    fn samples(&mut self) {
        for (key, values) in std::mem::take(&mut self.samples) {
            let mut sample = Message::default();
            sample.numbers(1, key.stack);
            sample.numbers(2, values);
            let mut label = Message::default();
            label.number(1, self.text("program"));
            label.number(2, key.program);
            sample.message(3, &label);
            for (name, value) in [("pid", key.pid), ("space", key.space)] {
                let mut label = Message::default();
                label.number(1, self.text(name));
                label.number(3, u64::from(value));
                sample.message(3, &label);
            }
            self.message.message(2, &sample);
        }
    }

    /// The modules. A location's address is its offset in the file, so each mapping begins at 0.
    ///
    /// All claim to have functions, names of files and lines: whatever is known stands here, and pprof must not look for
    /// more in files that happen to have the same names where it runs.
    fn mappings(&mut self, report: &Report) {
        let Some(stacks) = &report.stacks else {
            return;
        };
        let mut ends = vec![0; stacks.modules.len()];
        for frame in &stacks.frames {
            if let (Some(module), Some(offset)) = (module_of(frame), frame.offset)
                && let Some(end) = ends.get_mut(module)
            {
                *end = (*end).max(offset.0.saturating_add(1));
            }
        }
        let mut modules: Vec<_> = (1..).zip(stacks.modules.iter().zip(ends)).collect();
        // pprof takes the first for the program.
        let program = report.main().map(|space| space.program.as_str());
        modules.sort_by_key(|(_, (module, _))| Some(module.path.as_str()) != program);
        for (number, (module, end)) in modules {
            let mut mapping = Message::default();
            mapping.number(1, number);
            mapping.number(3, end);
            mapping.number(5, self.text(&harmless(&module.path)));
            if let Some(build_id) = &module.build_id {
                mapping.number(6, self.text(&harmless(build_id)));
            }
            for flag in 7..=10 {
                mapping.number(flag, 1);
            }
            self.message.message(3, &mapping);
        }
    }

    fn locations(&mut self) {
        let modules = self.table.modules();
        for (number, place) in (1..).zip(std::mem::take(&mut self.locations.values)) {
            let mut location = Message::default();
            location.number(1, number);
            let functions = match place {
                Location::Placeholder(name) => vec![NamedFrame::placeholder(name)],
                Location::Frame(position) => match self.table.frame(position) {
                    None => Vec::new(),
                    Some(frame) => {
                        if let Some(module) = module_of(frame).filter(|module| *module < modules) {
                            location.number(2, module as u64 + 1);
                            location.number(3, frame.offset.unwrap_or_default().0);
                        }
                        self.table.functions(frame)
                    }
                },
            };
            for function in functions {
                let mut line = Message::default();
                let (name, system_name) = names::of(&function);
                let key = NamedFunction {
                    name,
                    system_name,
                    file: function.file,
                };
                line.number(1, self.functions.position(key) + 1);
                line.number(2, function.line.map_or(0, u64::from));
                location.message(4, &line);
            }
            self.message.message(4, &location);
        }
    }

    fn functions(&mut self) {
        for (number, function) in (1..).zip(std::mem::take(&mut self.functions.values)) {
            let name = self.text(&function.name);
            let mut optional = |text: Option<String>| text.map_or(0, |text| self.text(&text));
            let (system_name, file) = (optional(function.system_name), optional(function.file));
            let mut function = Message::default();
            function.number(1, number);
            function.number(2, name);
            function.number(3, system_name);
            function.number(4, file);
            self.message.message(5, &function);
        }
    }

    /// Tells pprof which functions merely pass requests on, so that it shows the culprits in their place.
    ///
    /// pprof cuts a stack at the outermost function whose name matches, so that only names count that stand nowhere else.
    fn drop_frames(&mut self, report: &Report) {
        let (mut inside, mut outside) = (BTreeSet::new(), HashSet::new());
        for stack in report.stacks.iter().flat_map(|stacks| &stacks.stacks) {
            let Some(culprit) = stack.culprit else {
                continue;
            };
            for (depth, position) in (0..).zip(&stack.frames) {
                let Some(frame) = self.table.frame(*position) else {
                    continue;
                };
                for (number, function) in (0..).zip(self.table.functions(frame)) {
                    let name = names::compared(&names::of(&function).0).to_owned();
                    if (depth, number) < (culprit.depth, culprit.function) {
                        inside.insert(name);
                    } else {
                        outside.insert(name);
                    }
                }
            }
        }
        let names: Vec<String> = inside
            .into_iter()
            .filter(|name| !outside.contains(name))
            .take(MOST_DROPPED)
            .map(|name| names::escaped(&name))
            .collect();
        if !names.is_empty() {
            let expression = self.text(&names.join("|"));
            self.message.number(7, expression);
        }
    }

    fn times(&mut self, report: &Report) {
        let started = report
            .recording
            .started_at_unix
            .saturating_mul(1_000_000_000);
        self.message.number(9, started.min(i64::MAX.unsigned_abs()));
        self.message
            .number(10, report.end.duration_ns.0.min(i64::MAX.unsigned_abs()));
    }

    fn comments(&mut self, report: &Report) {
        let tool = format!("{} {}", report.tool.name, report.tool.version);
        let command = report.recording.command.join(" ");
        let comments = [tool, command]
            .iter()
            .filter(|comment| !comment.is_empty())
            .map(|comment| self.text(&harmless(comment)))
            .collect::<Vec<_>>();
        self.message.numbers(13, comments);
    }
}

/// The position of a frame's module.
fn module_of(frame: &StackFrame) -> Option<usize> {
    usize::try_from(frame.module?).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::protobuf::tests::Value;
    use super::super::protobuf::tests::fields;
    use super::super::protobuf::tests::packed;
    use super::super::tests;
    use super::*;

    /// A message, its fields looked up by number.
    struct Fields(Vec<(u64, Value)>);

    impl Fields {
        fn numbers(&self, field: u64) -> Vec<u64> {
            self.values(field)
                .flat_map(|value| match value {
                    Value::Number(number) => vec![*number],
                    Value::Bytes(bytes) => packed(bytes),
                })
                .collect()
        }

        fn number(&self, field: u64) -> u64 {
            match self.numbers(field)[..] {
                [] => 0,
                [number] => number,
                ref several => panic!("{several:?}"),
            }
        }

        fn messages(&self, field: u64) -> Vec<Self> {
            self.values(field)
                .map(|value| match value {
                    Value::Bytes(bytes) => Self(fields(bytes)),
                    Value::Number(_) => panic!("field {field} is a number"),
                })
                .collect()
        }

        fn texts(&self, field: u64) -> Vec<String> {
            self.values(field)
                .map(|value| match value {
                    Value::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
                    Value::Number(_) => panic!("field {field} is a number"),
                })
                .collect()
        }

        fn values(&self, field: u64) -> impl Iterator<Item = &Value> {
            self.0
                .iter()
                .filter(move |(number, _)| *number == field)
                .map(|(_, value)| value)
        }
    }

    fn decoded(report: &Report, measure: Measure) -> Fields {
        let bytes = pprof(report, measure);
        let mut profile = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_end(&mut profile)
            .unwrap();
        Fields(fields(&profile))
    }

    /// Each sample's functions, innermost first, and its values.
    fn samples(profile: &Fields) -> Vec<(Vec<String>, Vec<u64>)> {
        let strings = profile.texts(6);
        let names: HashMap<u64, &String> = profile
            .messages(5)
            .iter()
            .map(|function| {
                let name = usize::try_from(function.number(2)).unwrap();
                (function.number(1), &strings[name])
            })
            .collect();
        let lines: HashMap<u64, Vec<String>> = profile
            .messages(4)
            .iter()
            .map(|location| {
                let lines = location.messages(4);
                let lines = lines.iter().map(|line| names[&line.number(1)].clone());
                (location.number(1), lines.collect())
            })
            .collect();
        profile
            .messages(2)
            .iter()
            .map(|sample| {
                let names = sample.numbers(1);
                let names = names.iter().flat_map(|id| lines[id].clone());
                (names.collect(), sample.numbers(2))
            })
            .collect()
    }

    #[test]
    fn inlined_functions_are_lines_of_one_location_innermost_first() {
        let profile = decoded(&tests::with_stacks(), Measure::Net);
        let samples = samples(&profile);
        let (names, _) = samples
            .iter()
            .find(|(_, values)| values[0] == 104_096)
            .unwrap();
        assert_eq!(
            names,
            &[
                "brk",
                "sysmalloc",
                "malloc",
                "fast.so+0x1234",
                "load",
                "<module>"
            ]
        );
        let inlined = profile
            .messages(4)
            .iter()
            .map(|location| location.messages(4).len())
            .max();
        assert_eq!(inlined, Some(2));
    }

    #[test]
    fn every_value_of_every_report_adds_up() {
        for (name, report) in tests::every_report() {
            let profile = decoded(&report, Measure::Net);
            for (index, measure) in Measure::ALL.into_iter().enumerate() {
                let limit = i64::MAX.unsigned_abs();
                let sum = samples(&profile)
                    .iter()
                    .fold(0, |sum: u64, (_, values)| sum.saturating_add(values[index]));
                let expected = tests::total(&report, measure);
                assert_eq!(sum.min(limit), expected.min(limit), "{name}: {measure:?}");
            }
        }
    }

    #[test]
    fn numbers_of_strings_functions_mappings_and_locations_lead_somewhere() {
        for (name, report) in tests::every_report() {
            let profile = decoded(&report, Measure::Net);
            let strings = profile.texts(6);
            assert_eq!(strings[0], "", "{name}");
            let is_string = |number: u64| number < strings.len() as u64;
            let [types, mappings, locations] = [1, 3, 4].map(|field| profile.messages(field));
            let ends: HashMap<u64, u64> = mappings
                .iter()
                .map(|mapping| (mapping.number(1), mapping.number(3)))
                .collect();
            for sample in profile.messages(2) {
                let known = 1..=locations.len() as u64;
                assert!(sample.numbers(1).iter().all(|id| known.contains(id)));
                assert_eq!(sample.numbers(2).len(), types.len());
                assert_eq!(sample.messages(3).len(), 3);
            }
            for location in &locations {
                if location.number(2) != 0 {
                    let end = ends[&location.number(2)];
                    assert!(location.number(3) < end, "{name}: outside its mapping");
                }
                assert!(
                    !location.messages(4).is_empty(),
                    "{name}: nothing to look up"
                );
            }
            for function in profile.messages(5) {
                assert!([2, 3, 4].map(|field| is_string(function.number(field))) == [true; 3]);
            }
        }
    }

    #[test]
    fn mappings_have_their_build_ids_and_leave_nothing_to_look_up() {
        let profile = decoded(&tests::with_stacks(), Measure::Net);
        let strings = profile.texts(6);
        let text = |number: u64| strings[usize::try_from(number).unwrap()].as_str();
        let mappings = profile.messages(3);
        assert_eq!(text(mappings[0].number(5)), "/usr/lib/libc.so.6");
        assert_eq!(
            text(mappings[0].number(6)),
            "6196744a316dbd57c0fc8968df1680aac482cef4"
        );
        assert_eq!(text(mappings[1].number(6)), "");
        for mapping in &mappings {
            assert_eq!([7, 8, 9, 10].map(|flag| mapping.number(flag)), [1; 4]);
        }
    }

    #[test]
    fn the_measure_that_was_asked_for_is_shown_first() {
        let profile = decoded(&tests::with_stacks(), Measure::Calls);
        let strings = profile.texts(6);
        let default = usize::try_from(profile.number(14)).unwrap();
        assert_eq!(strings[default], "calls");
        assert_eq!(profile.messages(1).len(), 12);
    }
}
