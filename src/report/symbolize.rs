//! Gives the frames of a report their functions, and derives from them whom to name.
//!
//! May be done again, with other files at hand: what is known already stays, and more is added.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;

use super::CallPath;
use super::Culprit;
use super::Growth;
use super::Report;
use super::SampledPath;
use super::Samples;
use super::StackFrame;
use super::StackGrowth;
use super::StackModule;
use super::Stacks;
use super::culprit;
use super::culprit::Entry;
use crate::event::Module;
use crate::event::ModuleId;
use crate::event::ModuleKind;
use crate::event::StackId;
use crate::symbols::Function;
use crate::symbols::SymbolSource;
use crate::symbols::Symbolizer;
use crate::units::Address;

/// Most call paths that are listed for one address space.
const MOST_CALL_PATHS: usize = 200;

/// Looks up the frames that lack something, and derives culprits and call paths anew.
///
/// Modules whose debug information was found before are not looked at again.
pub fn symbolize(report: &mut Report, symbolizer: &mut dyn Symbolizer) {
    if let Some(stacks) = &mut report.stacks {
        look_up_all(stacks, symbolizer);
    }
    name_culprits(report);
}

/// Derives culprits and call paths from what is known of the frames, and be it only their modules.
pub fn name_culprits(report: &mut Report) {
    let Some(stacks) = &mut report.stacks else {
        return;
    };
    let paths = find_culprits(stacks);
    for space in &mut report.address_spaces {
        space.call_paths = call_paths(&space.growth, &paths);
        if let Some(samples) = space
            .allocator
            .as_mut()
            .and_then(|allocator| allocator.samples.as_mut())
        {
            samples.paths = sampled_paths(samples, &paths);
        }
    }
}

fn look_up_all(stacks: &mut Stacks, symbolizer: &mut dyn Symbolizer) {
    for index in 0..stacks.modules.len() {
        look_up(stacks, index, symbolizer);
    }
}

/// Names the culprit of each stack.
fn find_culprits(stacks: &mut Stacks) -> HashMap<StackId, StackPath> {
    (0..stacks.stacks.len())
        .map(|index| {
            let path = StackPath::of(stacks, index);
            let stack = &mut stacks.stacks[index];
            stack.culprit = path.culprit;
            (stack.id, path)
        })
        .collect()
}

/// Looks up the frames of one module.
fn look_up(stacks: &mut Stacks, index: usize, symbolizer: &mut dyn Symbolizer) {
    let Some(known) = stacks.modules.get(index) else {
        return;
    };
    if known.symbols.source == SymbolSource::DebugInfo {
        return;
    }
    let is_of_module = |frame: &StackFrame| {
        frame
            .module
            .is_some_and(|module| usize::try_from(module) == Ok(index))
    };
    let places: Vec<Address> = stacks
        .frames
        .iter()
        .filter(|frame| is_of_module(frame))
        .filter(|frame| known.kind != ModuleKind::Generated || frame.functions.is_empty())
        .filter_map(|frame| frame.offset)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let found = if places.is_empty() {
        // Nothing is missing, or nothing lies in it.
        crate::symbols::Found::default()
    } else {
        symbolizer.look_up(&as_recorded(known, index), &places)
    };
    let is_better = rank(found.state.source) >= rank(known.symbols.source);
    let functions: HashMap<Address, Vec<Function>> =
        places.into_iter().zip(found.functions).collect();
    let mut is_named = false;
    for frame in stacks.frames.iter_mut().filter(|frame| is_of_module(frame)) {
        if let Some(functions) = frame.offset.and_then(|offset| functions.get(&offset))
            && !functions.is_empty()
            && (is_better || frame.functions.is_empty())
        {
            frame.functions.clone_from(functions);
        }
        is_named |= !frame.functions.is_empty();
    }
    let module = &mut stacks.modules[index];
    if is_better {
        module.symbols = found.state;
    }
    // Generated code was named while the program ran, all of it or parts.
    if is_named && rank(module.symbols.source) < rank(SymbolSource::Names) {
        module.symbols.source = SymbolSource::Names;
    }
}

/// How much there is.
fn rank(source: SymbolSource) -> u8 {
    match source {
        SymbolSource::NotLooked => 0,
        SymbolSource::None => 1,
        SymbolSource::Names => 2,
        SymbolSource::DebugInfo => 3,
    }
}

fn as_recorded(module: &StackModule, index: usize) -> Module {
    Module {
        id: ModuleId(u32::try_from(index + 1).unwrap_or(u32::MAX)),
        kind: module.kind,
        path: module.path.clone(),
        build_id: module.build_id.clone(),
        file: module.file,
    }
}

/// What a stack comes to: whom to name, and the way there.
struct StackPath {
    culprit: Option<Culprit>,
    /// The culprit; `None` of a stack without frames.
    function: Option<Function>,
    /// The functions from the culprit outwards, each as text and with the whole path of its file: functions of one name
    /// in files of one name are still different ones.
    steps: Vec<(String, String)>,
}

impl StackPath {
    fn of(stacks: &Stacks, index: usize) -> Self {
        let entries = entries(stacks, &stacks.stacks[index].frames);
        let Some(at) = culprit::find(&entries.iter().map(|(entry, _)| *entry).collect::<Vec<_>>())
        else {
            return Self {
                culprit: None,
                function: None,
                steps: Vec::new(),
            };
        };
        let (entry, frame) = &entries[at];
        let mut steps: Vec<(String, String)> = Vec::new();
        for (entry, frame) in &entries[at..] {
            let step = step(entry, frame, stacks);
            // The dynamic linker without its names is one step, and so is code without any.
            if entry.named.is_some() || steps.last() != Some(&step) {
                steps.push(step);
            }
        }
        Self {
            culprit: Some(Culprit {
                depth: entry.depth,
                function: entry.function,
            }),
            function: Some(entry.named.cloned().unwrap_or_else(|| Function {
                name: unnamed(entry, frame),
                file: None,
                line: None,
            })),
            steps,
        }
    }
}

/// The functions of a stack one after the other, inlined ones included, the innermost first.
fn entries<'a>(stacks: &'a Stacks, frames: &[u32]) -> Vec<(Entry<'a>, &'a StackFrame)> {
    let mut entries = Vec::new();
    for (depth, frame) in frames.iter().enumerate() {
        let Some(frame) = usize::try_from(*frame)
            .ok()
            .and_then(|frame| stacks.frames.get(frame))
        else {
            continue;
        };
        let module = module_of(stacks, frame);
        let entry = Entry {
            depth: u32::try_from(depth).unwrap_or(u32::MAX),
            function: 0,
            named: None,
            module: module.map_or("", |module| file_name(&module.path)),
            kind: module.map(|module| module.kind),
            language: frame.language.as_deref(),
        };
        if frame.functions.is_empty() {
            entries.push((entry, frame));
        }
        entries.extend(frame.functions.iter().zip(0..).map(|(function, number)| {
            let entry = Entry {
                function: number,
                named: Some(function),
                ..entry
            };
            (entry, frame)
        }));
    }
    entries
}

fn module_of<'a>(stacks: &'a Stacks, frame: &StackFrame) -> Option<&'a StackModule> {
    stacks.modules.get(usize::try_from(frame.module?).ok()?)
}

/// The last part of a path.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A function in a call path: `function (file)` as text, and the whole path of the file.
fn step(entry: &Entry<'_>, frame: &StackFrame, stacks: &Stacks) -> (String, String) {
    let module = module_of(stacks, frame).map_or("", |module| module.path.as_str());
    let Some(function) = entry.named else {
        return (unnamed(entry, frame), module.to_owned());
    };
    let file = function.file.as_deref().unwrap_or(module);
    let text = match file_name(file) {
        "" => function.name.clone(),
        name => format!("{} ({name})", function.name),
    };
    (text, file.to_owned())
}

/// What stands for a function that is not known. Addresses differ from run to run, so that only offsets in files are
/// told.
fn unnamed(entry: &Entry<'_>, frame: &StackFrame) -> String {
    let offset = frame.offset.unwrap_or_default();
    match entry.kind {
        Some(ModuleKind::File) if entry.is_dynamic_linker() => {
            format!("dynamic linker ({})", entry.module)
        }
        Some(ModuleKind::File | ModuleKind::Vdso) => format!("{}+{offset}", entry.module),
        Some(ModuleKind::Generated) => "(generated code)".to_owned(),
        Some(ModuleKind::Unknown) | None => "(unknown)".to_owned(),
    }
}

/// Growth by call path: the stacks whose functions are the same taken together, the largest net growth first.
///
/// What has no stack, and all paths beyond [`MOST_CALL_PATHS`], are one last entry without culprit and path.
fn call_paths(growth: &[StackGrowth], paths: &HashMap<StackId, StackPath>) -> Vec<CallPath> {
    let mut by_steps: BTreeMap<&[(String, String)], CallPath> = BTreeMap::new();
    let mut rest: Option<CallPath> = None;
    for one in growth {
        let path = one
            .stack
            .and_then(|id| Some((id, paths.get(&id)?)))
            .filter(|(_, path)| !path.steps.is_empty());
        match path {
            Some((id, path)) => {
                let sum = by_steps.entry(&path.steps).or_insert_with(|| CallPath {
                    culprit: path.function.clone(),
                    path: path.steps.iter().map(|(text, _)| text.clone()).collect(),
                    ..nobody()
                });
                same_line_or_none(sum.culprit.as_mut(), path.function.as_ref());
                sum.stacks.push(id);
                add(sum, one.program_break, one.anonymous);
            }
            None => {
                let sum = rest.get_or_insert_with(nobody);
                sum.stacks.extend(one.stack);
                add(sum, one.program_break, one.anonymous);
            }
        }
    }
    let mut all: Vec<CallPath> = by_steps.into_values().collect();
    all.sort_by(|one, other| {
        let size = |path: &CallPath| (path.growth.net_bytes, path.growth.grown_bytes);
        size(other)
            .cmp(&size(one))
            .then_with(|| one.path.cmp(&other.path))
            .then_with(|| one.stacks.cmp(&other.stacks))
    });
    for small in all.drain(MOST_CALL_PATHS.min(all.len())..) {
        let sum = rest.get_or_insert_with(nobody);
        sum.stacks.extend(small.stacks);
        add(sum, small.program_break, small.anonymous);
    }
    all.extend(rest);
    for path in &mut all {
        path.stacks.sort_unstable();
    }
    all
}

/// Samples by call path, as [`call_paths`] for growth: those with most lost bytes first, of equals those with most live ones,
/// then those that requested most.
fn sampled_paths(samples: &Samples, paths: &HashMap<StackId, StackPath>) -> Vec<SampledPath> {
    let mut by_steps: BTreeMap<&[(String, String)], SampledPath> = BTreeMap::new();
    let mut rest: Option<SampledPath> = None;
    let add = |sum: &mut SampledPath, stack: Option<StackId>, requested, live, lost| {
        sum.stacks.extend(stack);
        sum.requested.add(requested);
        sum.live.add(live);
        if let Some(lost) = lost {
            sum.lost.get_or_insert_default().add(lost);
        }
    };
    for one in &samples.by_stack {
        let path = one
            .stack
            .and_then(|id| paths.get(&id))
            .filter(|path| !path.steps.is_empty());
        let sum = match path {
            Some(path) => {
                let sum = by_steps.entry(&path.steps).or_insert_with(|| SampledPath {
                    culprit: path.function.clone(),
                    path: path.steps.iter().map(|(text, _)| text.clone()).collect(),
                    ..SampledPath::default()
                });
                same_line_or_none(sum.culprit.as_mut(), path.function.as_ref());
                sum
            }
            None => rest.get_or_insert_default(),
        };
        add(sum, one.stack, one.requested, one.live, one.lost);
    }
    let mut all: Vec<SampledPath> = by_steps.into_values().collect();
    all.sort_by(|one, other| {
        let size = |path: &SampledPath| (path.lost, path.live, path.requested);
        size(other)
            .cmp(&size(one))
            .then_with(|| one.path.cmp(&other.path))
            .then_with(|| one.stacks.cmp(&other.stacks))
    });
    for small in all.drain(MOST_CALL_PATHS.min(all.len())..) {
        let sum = rest.get_or_insert_default();
        sum.stacks.extend(small.stacks);
        add(sum, None, small.requested, small.live, small.lost);
    }
    if samples.left_out_requested.samples > 0 || samples.left_out_live.samples > 0 {
        let sum = rest.get_or_insert_default();
        add(
            sum,
            None,
            samples.left_out_requested,
            samples.left_out_live,
            None,
        );
    }
    all.extend(rest);
    for path in &mut all {
        path.stacks.sort_unstable();
    }
    all
}

fn nobody() -> CallPath {
    CallPath {
        culprit: None,
        path: Vec::new(),
        stacks: Vec::new(),
        growth: Growth::default(),
        program_break: Growth::default(),
        anonymous: Growth::default(),
    }
}

/// A path's culprit has a line if all its stacks agree on it.
fn same_line_or_none(culprit: Option<&mut Function>, other: Option<&Function>) {
    if let (Some(culprit), Some(other)) = (culprit, other)
        && culprit.line != other.line
    {
        culprit.line = None;
    }
}

fn add(path: &mut CallPath, program_break: Growth, anonymous: Growth) {
    path.program_break.add(program_break);
    path.anonymous.add(anonymous);
    path.growth.add(program_break);
    path.growth.add(anonymous);
}

impl Growth {
    /// Adds what another cause did; saturating.
    fn add(&mut self, other: Self) {
        for (sum, more) in [
            (&mut self.grown_bytes, other.grown_bytes),
            (&mut self.grow_calls, other.grow_calls),
            (&mut self.shrunk_bytes, other.shrunk_bytes),
            (&mut self.net_bytes, other.net_bytes),
            (&mut self.returned_bytes, other.returned_bytes),
            (&mut self.return_calls, other.return_calls),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::StackReport;
    use crate::symbols::Found;
    use crate::symbols::SymbolState;

    /// Knows the modules of these paths: the function at offset n is `f<n>`, in line `line`.
    struct Toy {
        knows: &'static [&'static str],
        source: SymbolSource,
        line: u32,
        asked: Vec<(String, usize)>,
    }

    impl Toy {
        fn that_knows(knows: &'static [&'static str], source: SymbolSource) -> Self {
            Self {
                knows,
                source,
                line: 7,
                asked: Vec::new(),
            }
        }
    }

    impl Symbolizer for Toy {
        fn look_up(&mut self, module: &Module, places: &[Address]) -> Found {
            self.asked.push((module.path.clone(), places.len()));
            let is_known = self.knows.contains(&module.path.as_str());
            let has_lines = self.source == SymbolSource::DebugInfo;
            Found {
                functions: places
                    .iter()
                    .map(|place| {
                        let function = Function {
                            name: if place.0 == 0 {
                                "malloc".to_owned()
                            } else {
                                format!("f{}", place.0 / 16)
                            },
                            file: has_lines.then(|| "/src/a.c".to_owned()),
                            line: has_lines.then_some(self.line),
                        };
                        if is_known { vec![function] } else { Vec::new() }
                    })
                    .collect(),
                state: SymbolState {
                    source: if is_known {
                        self.source
                    } else {
                        SymbolSource::None
                    },
                    reason: (!is_known).then(|| "it is not here".to_owned()),
                },
            }
        }
    }

    fn grown(bytes: u64) -> Growth {
        Growth {
            grown_bytes: bytes,
            grow_calls: 1,
            net_bytes: bytes,
            ..Growth::default()
        }
    }

    /// Stacks, with the C library as module 0 and a program as module 1; each is the offsets of the program's frames
    /// above malloc, with what it grew the break by.
    fn recorded(stacks: &[(&[u64], u64)]) -> (Stacks, Vec<StackGrowth>) {
        let module = |path: &str| StackModule {
            kind: ModuleKind::File,
            path: path.to_owned(),
            build_id: None,
            file: None,
            symbols: SymbolState::default(),
        };
        let frame = |module: u32, offset: u64| StackFrame {
            module: Some(module),
            offset: Some(Address(offset)),
            ..StackFrame::default()
        };
        let mut table = Stacks {
            modules: vec![module("/lib/libc.so.6"), module("/bin/prog")],
            frames: vec![frame(0, 0)],
            ..Stacks::default()
        };
        let mut growth = Vec::new();
        for ((offsets, bytes), id) in stacks.iter().zip(1..) {
            let mut frames = vec![0];
            for offset in *offsets {
                frames.push(u32::try_from(table.frames.len()).unwrap());
                table.frames.push(frame(1, *offset));
            }
            table.stacks.push(StackReport {
                id: StackId(id),
                frames,
                truncated: None,
                culprit: None,
            });
            growth.push(StackGrowth {
                stack: Some(StackId(id)),
                program_break: grown(*bytes),
                anonymous: grown(1),
            });
        }
        (table, growth)
    }

    fn paths(stacks: &mut Stacks, growth: &[StackGrowth]) -> Vec<CallPath> {
        call_paths(growth, &find_culprits(stacks))
    }

    const BOTH: &[&str] = &["/lib/libc.so.6", "/bin/prog"];

    #[test]
    fn stacks_with_the_same_functions_are_one_call_path() {
        let (mut stacks, growth) = recorded(&[(&[16, 32], 100), (&[17, 33], 50), (&[48, 32], 120)]);
        let mut toy = Toy::that_knows(BOTH, SymbolSource::Names);
        look_up_all(&mut stacks, &mut toy);
        assert_eq!(
            toy.asked,
            [("/lib/libc.so.6".into(), 1), ("/bin/prog".into(), 5)]
        );
        let paths = paths(&mut stacks, &growth);
        assert_eq!(paths[0].path, ["f1 (prog)", "f2 (prog)"]);
        assert_eq!(paths[0].stacks, [StackId(1), StackId(2)]);
        assert_eq!(
            paths[0].program_break,
            Growth {
                grow_calls: 2,
                ..grown(150)
            }
        );
        assert_eq!(
            paths[0].growth,
            Growth {
                grow_calls: 4,
                ..grown(152)
            }
        );
        assert_eq!(paths[1].path, ["f3 (prog)", "f2 (prog)"]);
        assert_eq!(paths.len(), 2);
        assert_eq!(
            stacks.stacks[0].culprit,
            Some(Culprit {
                depth: 1,
                function: 0
            })
        );
    }

    #[test]
    fn without_symbols_places_in_modules_stand_for_functions() {
        let (mut stacks, growth) = recorded(&[(&[16, 32], 100), (&[17, 32], 50)]);
        let paths = paths(&mut stacks, &growth);
        // Nothing tells malloc from others in the C library, but what has no name there is passed over.
        assert_eq!(paths[0].path, ["prog+0x10", "prog+0x20"]);
        assert_eq!(paths[0].culprit.as_ref().unwrap().name, "prog+0x10");
        assert_eq!(paths[1].path, ["prog+0x11", "prog+0x20"]);
    }

    #[test]
    fn what_is_found_later_is_added_and_what_was_known_stays() {
        let (mut stacks, _) = recorded(&[(&[16], 100)]);
        look_up_all(
            &mut stacks,
            &mut Toy::that_knows(&["/bin/prog"], SymbolSource::DebugInfo),
        );
        assert_eq!(stacks.modules[0].symbols.source, SymbolSource::None);
        assert!(stacks.modules[0].symbols.reason.is_some());
        let prog = stacks.frames[1].clone();
        assert_eq!(prog.functions[0].line, Some(7));
        // Elsewhere there is the C library only.
        let mut elsewhere = Toy::that_knows(&["/lib/libc.so.6"], SymbolSource::Names);
        look_up_all(&mut stacks, &mut elsewhere);
        assert_eq!(elsewhere.asked, [("/lib/libc.so.6".into(), 1)]);
        assert_eq!(stacks.frames[0].functions[0].name, "malloc");
        assert_eq!(stacks.frames[1], prog);
        assert_eq!(stacks.modules[0].symbols.reason, None);
        // And again, where there is nothing at all.
        let before = stacks.clone();
        look_up_all(&mut stacks, &mut Toy::that_knows(&[], SymbolSource::Names));
        assert_eq!(stacks, before);
    }

    #[test]
    fn lines_that_differ_are_not_told_of_a_path() {
        let (mut stacks, growth) = recorded(&[(&[16], 100), (&[17], 50)]);
        let mut toy = Toy::that_knows(BOTH, SymbolSource::DebugInfo);
        look_up_all(&mut stacks, &mut toy);
        let line = |paths: &[CallPath]| paths[0].culprit.as_ref().unwrap().line;
        assert_eq!(line(&paths(&mut stacks, &growth)), Some(7));
        stacks.frames[2].functions[0].line = Some(8);
        assert_eq!(line(&paths(&mut stacks, &growth)), None);
    }

    #[test]
    fn functions_of_one_name_in_files_of_one_name_are_kept_apart() {
        let (mut stacks, growth) = recorded(&[(&[16], 100), (&[17], 50)]);
        look_up_all(
            &mut stacks,
            &mut Toy::that_knows(BOTH, SymbolSource::DebugInfo),
        );
        stacks.frames[2].functions[0].file = Some("/other/a.c".into());
        assert_eq!(paths(&mut stacks, &growth).len(), 2);
    }

    #[test]
    fn what_has_no_stack_and_what_is_too_much_is_summed_up_last() {
        let offsets: Vec<[u64; 1]> = (1..=300).map(|number| [number * 16]).collect();
        let many: Vec<(&[u64], u64)> = offsets
            .iter()
            .zip(1..)
            .map(|(offsets, bytes)| (offsets.as_slice(), bytes))
            .collect();
        let (mut stacks, mut growth) = recorded(&many);
        growth.push(StackGrowth {
            stack: None,
            program_break: grown(5000),
            anonymous: Growth::default(),
        });
        let paths = paths(&mut stacks, &growth);
        assert_eq!(paths.len(), MOST_CALL_PATHS + 1);
        assert_eq!(paths[0].program_break.net_bytes, 300);
        let rest = paths.last().unwrap();
        assert!(rest.culprit.is_none() && rest.path.is_empty());
        assert_eq!(rest.stacks.len(), 100);
        assert_eq!(rest.program_break.net_bytes, 5000 + (1..=100).sum::<u64>());
        let all: u64 = paths.iter().map(|path| path.growth.net_bytes).sum();
        assert_eq!(all, 5000 + (1..=300).sum::<u64>() + 300);
    }

    #[test]
    fn names_of_generated_code_stay_and_what_lacks_them_says_why() {
        let (mut stacks, _) = recorded(&[(&[16, 32], 1)]);
        stacks.modules[1].kind = ModuleKind::Generated;
        stacks.frames[1].functions = vec![Function {
            name: "LazyCompile:f".into(),
            file: None,
            line: None,
        }];
        let mut toy = Toy::that_knows(&[], SymbolSource::Names);
        look_up_all(&mut stacks, &mut toy);
        assert_eq!(toy.asked[1], ("/bin/prog".into(), 1));
        assert_eq!(stacks.modules[1].symbols.source, SymbolSource::Names);
        assert!(stacks.modules[1].symbols.reason.is_some());
        assert_eq!(stacks.frames[1].functions[0].name, "LazyCompile:f");
    }

    #[test]
    fn tables_that_do_not_fit_together_cost_frames_only() {
        let (mut stacks, growth) = recorded(&[(&[16], 1)]);
        stacks.stacks[0].frames = vec![7, u32::MAX, 1];
        stacks.frames[1].module = Some(99);
        look_up_all(&mut stacks, &mut Toy::that_knows(BOTH, SymbolSource::Names));
        assert_eq!(paths(&mut stacks, &growth)[0].path, ["(unknown)"]);
    }
}
