//! What a report can be written as: names, file names, and what each format needs.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// What a report can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// For people: one screen of text.
    Text,
    /// For people: a page for the browser, which needs no network.
    Html,
    /// For documents: timeline and flame graph as one picture.
    Svg,
    /// The timeline alone.
    SvgTimeline,
    /// The flame graph alone.
    SvgFlameGraph,
    /// For programs: `docs/report-schema.md`.
    Json,
    /// Growth by call stack, one line per stack: flamegraph.pl, inferno, speedscope.
    Folded,
    /// Growth by call stack, as a profile: `go tool pprof`, Pyroscope.
    Pprof,
    /// Growth by call stack: speedscope.
    Speedscope,
    /// Memory over time, and what moved it: Perfetto, chrome://tracing.
    ChromeTrace,
    /// The timelines as a table: spreadsheets, data frames.
    Csv,
    /// The state at the end as metrics, in the text format that node_exporter's textfile collector reads.
    Prometheus,
    /// The same in OpenMetrics 1.0.
    OpenMetrics,
    /// The main address space over time: ms_print, massif-visualizer.
    Massif,
}

impl Format {
    /// Every format, in the order in which help texts list them.
    pub const ALL: [Self; 14] = [
        Self::Text,
        Self::Html,
        Self::Svg,
        Self::SvgTimeline,
        Self::SvgFlameGraph,
        Self::Json,
        Self::Folded,
        Self::Pprof,
        Self::Speedscope,
        Self::ChromeTrace,
        Self::Csv,
        Self::Prometheus,
        Self::OpenMetrics,
        Self::Massif,
    ];

    /// The name by which [`FromStr`] knows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Html => "html",
            Self::Svg => "svg",
            Self::SvgTimeline => "svg-timeline",
            Self::SvgFlameGraph => "svg-flamegraph",
            Self::Json => "json",
            Self::Folded => "folded",
            Self::Pprof => "pprof",
            Self::Speedscope => "speedscope",
            Self::ChromeTrace => "chrome-trace",
            Self::Csv => "csv",
            Self::Prometheus => "prometheus",
            Self::OpenMetrics => "openmetrics",
            Self::Massif => "massif",
        }
    }

    /// What the names of its files end in; the first is the usual one.
    #[must_use]
    pub fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Text => &[".txt", ".text"],
            Self::Html => &[".html", ".htm"],
            Self::Svg => &[".svg"],
            Self::SvgTimeline => &[".timeline.svg"],
            Self::SvgFlameGraph => &[".flamegraph.svg", ".flame.svg"],
            Self::Json => &[".json"],
            Self::Folded => &[".folded"],
            Self::Pprof => &[".pb.gz", ".pprof"],
            Self::Speedscope => &[".speedscope.json"],
            Self::ChromeTrace => &[".trace.json", ".chrome.json"],
            Self::Csv => &[".csv"],
            Self::Prometheus => &[".prom"],
            Self::OpenMetrics => &[".openmetrics", ".om"],
            Self::Massif => &[".massif"],
        }
    }

    /// Whether it is no text, and would only upset a terminal.
    #[must_use]
    pub fn is_binary(self) -> bool {
        match self {
            Self::Pprof => true,
            Self::Text
            | Self::Html
            | Self::Svg
            | Self::SvgTimeline
            | Self::SvgFlameGraph
            | Self::Json
            | Self::Folded
            | Self::Speedscope
            | Self::ChromeTrace => false,
            Self::Csv | Self::Prometheus | Self::OpenMetrics | Self::Massif => false,
        }
    }

    /// Whether it shows call stacks and nothing else, so that a recording without any has nothing to show.
    #[must_use]
    pub fn is_of_stacks(self) -> bool {
        match self {
            Self::Folded | Self::Pprof | Self::Speedscope | Self::SvgFlameGraph => true,
            Self::Text | Self::Html | Self::Svg | Self::SvgTimeline => false,
            Self::Json | Self::ChromeTrace => false,
            Self::Csv | Self::Prometheus | Self::OpenMetrics | Self::Massif => false,
        }
    }

    /// The format that a file's name asks for; `None` when its end is no format's.
    ///
    /// The longest end decides, as `.speedscope.json` ends in `.json` too.
    #[must_use]
    pub fn of_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .flat_map(|format| {
                format
                    .suffixes()
                    .iter()
                    .map(move |suffix| (format, *suffix))
            })
            .filter(|(_, suffix)| name.len() > suffix.len() && name.ends_with(suffix))
            .max_by_key(|(_, suffix)| suffix.len())
            .map(|(format, _)| format)
    }

    /// The names of all formats, in words: `text, json and folded`.
    #[must_use]
    pub fn names() -> String {
        in_words(Self::ALL.map(Self::name))
    }

    /// How files of all formats are called, in words: `.txt, .json and .folded`.
    #[must_use]
    pub fn usual_suffixes() -> String {
        in_words(Self::ALL.map(|format| format.suffixes()[0]))
    }
}

fn in_words<const N: usize>(names: [&str; N]) -> String {
    match names.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [others @ .., last] => format!("{} and {last}", others.join(", ")),
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|format| format.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

/// A name that is no format's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a format; there are {formats}", formats = Format::names())]
pub struct UnknownFormat(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_known_by_its_name_and_by_its_files() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            assert_eq!(format.name().to_uppercase().parse(), Ok(format));
            for suffix in format.suffixes() {
                let path = format!("some.folder/run{suffix}");
                assert_eq!(Format::of_path(Path::new(&path)), Some(format), "{path}");
                // A hidden file without a name before the suffix is not of that format.
                assert_ne!(Format::of_path(Path::new(suffix)), Some(format), "{suffix}");
            }
        }
    }

    #[test]
    fn no_two_formats_share_a_name_or_a_suffix() {
        let mut names: Vec<&str> = Format::ALL
            .iter()
            .flat_map(|format| {
                [format.name()]
                    .into_iter()
                    .chain(format.suffixes().iter().copied())
            })
            .collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn the_error_for_an_unknown_format_lists_all() {
        let error = "docx".parse::<Format>().unwrap_err().to_string();
        for format in Format::ALL {
            assert!(error.contains(format.name()), "{error}");
        }
    }
}
