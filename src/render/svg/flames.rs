//! What grew, by call path: a flame graph, outermost functions on top.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::CHARACTER;
use super::WIDTH;
use super::escaped;
use super::fit;
use super::text;
use crate::event::StackId;
use crate::render::words;
use crate::report::SpaceReport;
use crate::report::Stacks;
use crate::units::ByteSize;

/// Height of a row.
const ROW: f64 = 18.0;
/// Rows that a stack has at most: so many of its outermost and innermost functions, and one for those between them.
const OUTERMOST: usize = 9;
const INNERMOST: usize = 14;
/// Percent of the bytes that make a beginning the trunk of them all.
const TRUNK: u128 = 97;
/// Stands for the functions that are left out.
const ELLIPSIS: &str = "…";
/// Between the functions of the trunk.
const CALLS: &str = " → ";
/// Boxes narrower than this are left out.
const NARROWEST: f64 = 1.5;

/// A function, with those that it called.
#[derive(Default)]
struct Node {
    bytes: u64,
    children: BTreeMap<String, Node>,
}

/// A call path, outermost function first, and what grew by it.
type Path = (Vec<String>, u64);

/// Draws what grew by call path; returns the picture's height.
pub(super) fn draw(out: &mut String, space: &SpaceReport, stacks: &Stacks, top: f64) -> f64 {
    let mut paths: Vec<Path> = space
        .growth
        .iter()
        .filter_map(|growth| {
            let bytes = growth
                .program_break
                .grown_bytes
                .saturating_add(growth.anonymous.grown_bytes);
            let mut names = names(stacks, growth.stack?)?;
            names.reverse();
            (bytes > 0).then_some((names, bytes))
        })
        .collect();
    join_trunk(&mut paths);
    let left_out = paths
        .iter_mut()
        .map(|(names, _)| leave_out_middle(names))
        .max()
        .unwrap_or(0);
    let mut root = Node::default();
    for (names, bytes) in paths {
        root.bytes = root.bytes.saturating_add(bytes);
        let mut node = &mut root;
        for name in names {
            node = node.children.entry(name).or_default();
            node.bytes = node.bytes.saturating_add(bytes);
        }
    }
    if root.bytes == 0 {
        text(
            out,
            12.0,
            top + 14.0,
            "f",
            "start",
            "nothing grew with a recorded stack",
        );
        return top + 30.0;
    }
    let mut heading = format!(
        "who asked for it: {} grown, by call path",
        ByteSize(root.bytes)
    );
    if left_out > 0 {
        let _ = write!(heading, "; {ELLIPSIS} stands for up to {left_out} calls");
    }
    text(out, 12.0, top + 14.0, "f", "start", &heading);
    let mut rows = 0;
    let place = Place {
        x: 12.0,
        width: WIDTH - 24.0,
        row: 0,
    };
    boxes(out, &root, place, top + 24.0, root.bytes, &mut rows);
    #[expect(clippy::cast_precision_loss, reason = "some dozens")]
    let rows = rows as f64;
    top + 24.0 + rows * ROW + 12.0
}

/// What nearly all of the bytes begin with tells nothing: it becomes one box.
fn join_trunk(paths: &mut [Path]) {
    let sum = |paths: &[Path]| {
        paths
            .iter()
            .fold(0_u128, |sum, (_, bytes)| sum + u128::from(*bytes))
    };
    let all = sum(paths);
    // Those that share it are kept in front of the others.
    let mut sharing = paths.len();
    let mut common = 0;
    loop {
        let mut by_name: BTreeMap<&str, u128> = BTreeMap::new();
        for (names, bytes) in &paths[..sharing] {
            // The innermost function of each stays by itself.
            if let Some(name) = names.get(common).filter(|_| names.len() > common + 1) {
                *by_name.entry(name).or_default() += u128::from(*bytes);
            }
        }
        let Some((name, bytes)) = by_name.into_iter().max_by_key(|(_, bytes)| *bytes) else {
            break;
        };
        if bytes * 100 < all * TRUNK {
            break;
        }
        let name = name.to_owned();
        let shares =
            |(names, _): &Path| names.len() > common + 1 && names.get(common) == Some(&name);
        paths[..sharing].sort_by_key(|path| !shares(path));
        sharing = paths[..sharing]
            .iter()
            .take_while(|path| shares(path))
            .count();
        common += 1;
    }
    if common < 2 {
        return;
    }
    for (names, _) in &mut paths[..sharing] {
        let trunk = names.drain(..common).collect::<Vec<_>>().join(CALLS);
        names.insert(0, trunk);
    }
}

/// Leaves out functions in the middle of a path that is too long; returns how many.
fn leave_out_middle(names: &mut Vec<String>) -> usize {
    let Some(more) = names
        .len()
        .checked_sub(OUTERMOST + INNERMOST + 1)
        .filter(|more| *more > 0)
    else {
        return 0;
    };
    names.splice(OUTERMOST..names.len() - INNERMOST, [ELLIPSIS.to_owned()]);
    more + 1
}

#[derive(Clone, Copy)]
struct Place {
    x: f64,
    width: f64,
    row: usize,
}

#[expect(clippy::cast_precision_loss, reason = "drawn to a tenth of a point")]
fn boxes(out: &mut String, node: &Node, place: Place, top: f64, all: u64, rows: &mut usize) {
    let mut children: Vec<_> = node.children.iter().collect();
    children.sort_by(|a, b| (b.1.bytes, a.0).cmp(&(a.1.bytes, b.0)));
    let mut x = place.x;
    for (name, child) in children {
        let width = place.width * child.bytes as f64 / node.bytes.max(1) as f64;
        let here = Place {
            x,
            width,
            row: place.row,
        };
        x += width;
        if width < NARROWEST {
            continue;
        }
        *rows = (*rows).max(place.row + 1);
        let y = top + place.row as f64 * ROW;
        let class = name.bytes().fold(0_u32, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        }) % 4;
        let share = words::percent(child.bytes as f64 / all as f64);
        let _ = writeln!(
            out,
            "<rect class=\"c{class}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}: {}, {share}</title></rect>",
            here.x,
            (width - 0.6).max(0.4),
            ROW - 1.0,
            escaped(name),
            ByteSize(child.bytes)
        );
        if width > 30.0 {
            text(
                out,
                here.x + 4.0,
                y + 12.5,
                "",
                "start",
                &fit(name, width - 8.0, CHARACTER),
            );
        }
        let below = Place {
            row: place.row + 1,
            ..here
        };
        boxes(out, child, below, top, all, rows);
    }
}

/// The functions of a stack, innermost first.
fn names(stacks: &Stacks, id: StackId) -> Option<Vec<String>> {
    let index = stacks
        .stacks
        .binary_search_by_key(&id, |stack| stack.id)
        .ok()?;
    let mut names = Vec::new();
    for frame in &stacks.stacks[index].frames {
        let frame = stacks.frames.get(usize::try_from(*frame).ok()?)?;
        let module = frame
            .module
            .and_then(|module| stacks.modules.get(usize::try_from(module).ok()?))
            .map_or("?", |module| module.path.as_str());
        if frame.functions.is_empty() {
            let offset = frame.offset.unwrap_or_default();
            names.push(format!("{}+{offset}", words::program(module)));
        }
        names.extend(frame.functions.iter().map(|function| function.name.clone()));
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(names: &[&str]) -> Path {
        (names.iter().map(|name| (*name).to_owned()).collect(), 1)
    }

    #[test]
    fn what_all_paths_begin_with_is_one_box() {
        let mut paths = [
            path(&["_start", "main", "read", "malloc"]),
            path(&["_start", "main", "write"]),
        ];
        join_trunk(&mut paths);
        assert_eq!(paths[0].0, ["_start → main", "read", "malloc"]);
        assert_eq!(paths[1].0, ["_start → main", "write"]);
    }

    #[test]
    fn a_path_that_is_the_beginning_of_another_keeps_its_last_function() {
        let mut paths = [path(&["a", "b", "c"]), path(&["a", "b", "c", "d"])];
        join_trunk(&mut paths);
        assert_eq!(paths[0].0, ["a → b", "c"]);
        // What only few bytes begin with otherwise does not split the trunk.
        let mut paths = [path(&["x", "y"]), (path(&["a", "b", "c"]).0, 99)];
        join_trunk(&mut paths);
        assert_eq!(paths[0].0, ["a → b", "c"]);
        assert_eq!(paths[1].0, ["x", "y"]);
        let mut one = [path(&["a"])];
        join_trunk(&mut one);
        assert_eq!(one[0].0, ["a"]);
    }

    #[test]
    fn of_a_long_path_both_ends_stay() {
        let mut names: Vec<String> = (0..60).map(|n| n.to_string()).collect();
        let left_out = leave_out_middle(&mut names);
        assert_eq!(names.len(), OUTERMOST + INNERMOST + 1);
        assert_eq!(names[0], "0");
        assert_eq!(names[OUTERMOST], ELLIPSIS);
        assert_eq!(names.last().map(String::as_str), Some("59"));
        assert_eq!(names.len() - 1 + left_out, 60);
        // One more than fits is not replaced by something as long.
        let mut names: Vec<String> = (0..OUTERMOST + INNERMOST + 1)
            .map(|n| n.to_string())
            .collect();
        assert_eq!(leave_out_middle(&mut names), 0);
    }
}
