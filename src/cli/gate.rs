//! What `check` and measured runs share: baselines and limits are read, verdicts written.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::IsTerminal;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use super::Ending;
use super::Failure;
use super::USAGE;
use super::args::GateOptions;
use super::output::cannot_write;
use super::output::excuse_closed_pipe;
use super::output::probe;
use super::output::write_whole;
use crate::render;
use crate::render::TextOptions;
use crate::report::gate;
use crate::report::gate::Baseline;
use crate::report::gate::JudgeOptions;
use crate::report::gate::Judgement;
use crate::report::gate::LARGEST_BASELINE;
use crate::report::gate::LARGEST_LIMITS_FILE;
use crate::report::gate::Limit;
use crate::report::gate::LimitError;
use crate::report::gate::Limits;
use crate::report::gate::Refusal;
use crate::report::gate::Subject;
use crate::report::gate::Verdict;

/// Something is worse than it may be.
pub(super) const REGRESSED: u8 = 3;
/// There is no baseline, or one of something else.
pub(super) const NO_BASELINE: u8 = 4;
/// GitHub takes so much for the summary of a step.
const LARGEST_SUMMARY: usize = 1 << 20;

/// Forms of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    Markdown,
    Junit,
    OpenMetrics,
}

impl Form {
    fn of_path(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "txt" | "text" => Self::Text,
            "json" => Self::Json,
            "md" | "markdown" => Self::Markdown,
            "xml" => Self::Junit,
            "om" | "openmetrics" => Self::OpenMetrics,
            _ => return None,
        })
    }

    fn write(self, judgement: &Judgement, options: TextOptions) -> String {
        match self {
            Self::Text => render::gate::judgement(judgement, options),
            Self::Json => judgement.to_json(),
            Self::Markdown => render::gate::markdown(judgement),
            Self::Junit => render::gate::junit(judgement),
            Self::OpenMetrics => render::gate::openmetrics(judgement),
        }
    }
}

/// How the verdict is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    /// On stdout, instead of on stderr.
    pub(super) to_stdout: bool,
    /// As JSON.
    pub(super) json: bool,
    /// With all metrics.
    pub(super) verbose: bool,
}

/// What to hold a recording against, and where the verdict goes; all that can be wrong with it is found before anything
/// runs.
pub(super) struct Gate {
    baseline: Option<(PathBuf, Baseline)>,
    limits: Limits,
    options: JudgeOptions,
    fail_on_inconclusive: bool,
    files: Vec<(PathBuf, Form)>,
    shown: Shown,
    github: bool,
}

impl Gate {
    /// Reads baseline and limits. `files` are where the verdict goes besides; the text goes to stdout if nobody else uses it.
    pub(super) fn prepare(
        options: &GateOptions,
        baseline: Option<&Path>,
        files: &[PathBuf],
        shown: Shown,
    ) -> Result<Self, Failure> {
        let mut limits = Limits::default();
        if let Some(path) = &options.limits {
            let text = read_text(path, LARGEST_LIMITS_FILE)
                .map_err(|error| cannot_read(path, &error).code(USAGE))?;
            limits
                .add_file(&text)
                .map_err(|error| limit_failure(&error, &format!("`{}`", path.display())))?;
        }
        for (words, is_cap) in options
            .limit
            .iter()
            .map(|words| (words, false))
            .chain(options.max.iter().map(|words| (words, true)))
        {
            add(&mut limits, words, is_cap)?;
        }
        let mut places = Vec::new();
        for path in files {
            let form = Form::of_path(path).ok_or_else(|| {
                Failure::new(format!(
                    "cannot tell the form of `{}` from its name",
                    path.display()
                ))
                .hint("end its name in .txt, .json, .md (Markdown), .xml (JUnit) or .om (OpenMetrics, for GitLab)")
                .code(USAGE)
            })?;
            probe(path).map_err(|error| cannot_write(path, &error))?;
            places.push((path.clone(), form));
        }
        let baseline = baseline
            .map(|path| Ok::<_, Failure>((path.to_path_buf(), read_baseline(path)?)))
            .transpose()?;
        Ok(Self {
            baseline,
            limits,
            options: JudgeOptions {
                allowed_mismatches: options.allow_mismatch.clone(),
                expected_exit: options.expect_exit,
            },
            fail_on_inconclusive: options.fail_on_inconclusive,
            files: places,
            shown,
            github: options.github,
        })
    }

    /// Whether there is anything to hold figures against.
    pub(super) fn is_empty(&self) -> bool {
        self.baseline.is_none() && self.limits.is_empty()
    }

    /// The baseline that was read.
    pub(super) fn baseline(&self) -> Option<&Baseline> {
        self.baseline.as_ref().map(|(_, baseline)| baseline)
    }

    /// Judges, writes the verdict everywhere, and tells the exit code.
    pub(super) fn judge(&self, subject: &Subject) -> Result<Ending, Failure> {
        let judgement = gate::judge(subject, self.baseline(), &self.limits, &self.options)
            .map_err(|refusal| self.refusal(&refusal))?;
        self.write(&judgement)?;
        Ok(Ending::Code(match judgement.verdict {
            Verdict::Passed => 0,
            Verdict::Inconclusive if !self.fail_on_inconclusive => 0,
            Verdict::Inconclusive | Verdict::Failed => REGRESSED,
        }))
    }

    fn refusal(&self, refusal: &Refusal) -> Failure {
        let path = self
            .baseline
            .as_ref()
            .map_or_else(String::new, |(path, _)| path.display().to_string());
        match refusal {
            Refusal::Incomparable(mismatches) => {
                let kinds: Vec<&str> = mismatches
                    .iter()
                    .map(|mismatch| mismatch.kind.name())
                    .collect();
                let mut kinds = kinds;
                kinds.dedup();
                Failure::new(format!("`{path}`: {refusal}"))
                    .hint(format!(
                        "record one here with --save-baseline, or, if that makes no difference to this program, --allow-mismatch {}",
                        kinds.join(",")
                    ))
                    .code(NO_BASELINE)
            }
            Refusal::NothingToHoldAgainst => Failure::new(refusal)
                .hint("--baseline FILE, --limits FILE, --limit METRIC=LIMIT or --max METRIC=VALUE")
                .code(USAGE),
            Refusal::Limit(error) => limit_failure(error, "limits"),
        }
    }

    /// Writes the verdict to every place; goes on to the next when one fails.
    fn write(&self, judgement: &Judgement) -> Result<(), Failure> {
        let mut result = Ok(());
        for (path, form) in &self.files {
            let options = TextOptions::for_file(self.shown.verbose);
            let written = write_whole(path, form.write(judgement, options).as_bytes())
                .map_err(|error| cannot_write(path, &error));
            result = result.and(written);
        }
        let form = if self.shown.json {
            Form::Json
        } else {
            Form::Text
        };
        let written = if self.shown.to_stdout {
            let options = TextOptions::for_stream(io::stdout(), self.shown.verbose);
            print(
                "stdout",
                &mut io::stdout().lock(),
                &form.write(judgement, options),
            )
        } else {
            let options = TextOptions::for_stream(io::stderr(), self.shown.verbose);
            print(
                "stderr",
                &mut io::stderr().lock(),
                &form.write(judgement, options),
            )
        };
        result = result.and(written);
        if self.github {
            result = result.and(self.tell_github(judgement));
        }
        result
    }

    fn tell_github(&self, judgement: &Judgement) -> Result<(), Failure> {
        // GitHub reads commands from both streams; JSON on stdout is to stay JSON.
        let annotations = render::gate::annotations(judgement);
        let told = if self.shown.to_stdout && !self.shown.json {
            print("stdout", &mut io::stdout().lock(), &annotations)
        } else {
            print("stderr", &mut io::stderr().lock(), &annotations)
        };
        let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY") else {
            return told;
        };
        let path = PathBuf::from(path);
        let mut summary = render::gate::markdown(judgement);
        if summary.len() > LARGEST_SUMMARY / 2 {
            summary =
                "### Heap: the summary is larger than GitHub takes; see the verdict's files\n"
                    .to_owned();
        }
        let written = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| file.write_all(summary.as_bytes()))
            .map_err(|error| cannot_write(&path, &error));
        told.and(written)
    }
}

fn print(name: &str, stream: &mut dyn Write, text: &str) -> Result<(), Failure> {
    stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.flush())
        .or_else(|error| excuse_closed_pipe(name, error))
}

/// `METRIC=LIMIT`, or `METRIC=VALUE` for caps.
fn add(limits: &mut Limits, words: &str, is_cap: bool) -> Result<(), Failure> {
    let option = if is_cap { "--max" } else { "--limit" };
    let place = format!("{option} {words}");
    // `heap.peak<=64MiB` is as clear.
    let (name, text) = match words.split_once("<=") {
        Some((name, value)) => (name.trim_end_matches('='), format!("<={value}")),
        None => words
            .split_once('=')
            .map(|(name, value)| (name, value.to_owned()))
            .ok_or_else(|| {
                Failure::new(format!("`{place}` limits nothing"))
                    .hint(format!(
                        "write {option} METRIC={}",
                        if is_cap { "64MiB" } else { "+5%,256KiB" }
                    ))
                    .code(USAGE)
            })?,
    };
    let limit = if is_cap {
        Limit::cap(&text)
    } else {
        text.parse()
    };
    limit
        .and_then(|limit| limits.add(name.trim(), limit))
        .map_err(|error| limit_failure(&error, &format!("`{place}`")))
}

fn limit_failure(error: &LimitError, place: &str) -> Failure {
    Failure::new(format!("{place}: {error}"))
        .hint(error.hint())
        .code(USAGE)
}

/// Reads a baseline.
pub(super) fn read_baseline(path: &Path) -> Result<Baseline, Failure> {
    let text = read_text(path, LARGEST_BASELINE).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(format!("there is no baseline `{}`", path.display()))
                .hint(format!(
                    "breaktrace run --save-baseline {} -- PROGRAM makes it",
                    path.display()
                ))
                .code(NO_BASELINE)
        }
        _ => cannot_read(path, &error).code(NO_BASELINE),
    })?;
    Baseline::from_json(&text).map_err(|error| {
        Failure::new(format!(
            "cannot use the baseline `{}`: {error}",
            path.display()
        ))
        .hint(error.hint())
        .code(NO_BASELINE)
    })
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot read `{}`: {error}", path.display()))
}

/// The text of a file of at most `largest` bytes.
pub(super) fn read_text(path: &Path, largest: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(largest + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > largest {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is larger than any such file",
        ));
    }
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text"))
}

/// Writes a baseline, whole or not at all, and tells of it.
pub(super) fn save_baseline(path: &Path, baseline: &Baseline) -> Result<(), Failure> {
    write_whole(path, baseline.to_json().as_bytes()).map_err(|error| cannot_write(path, &error))?;
    let runs = match baseline.runs {
        1 => "1 run".to_owned(),
        runs => format!("{runs} runs"),
    };
    let next = if io::stderr().is_terminal() {
        "; commit it, and hold later runs against it with --baseline"
    } else {
        ""
    };
    super::output::say(format_args!(
        "breaktrace: wrote the baseline `{}` of {runs}{next}\n",
        path.display()
    ));
    Ok(())
}

/// Whether a file is a document with this schema.
pub(super) fn begins_with_schema(path: &Path, name: &str) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(512).read_to_end(&mut head));
    let text = String::from_utf8_lossy(&head);
    let dense: String = text.split_ascii_whitespace().collect();
    read.is_ok() && dense.starts_with(&format!(r#"{{"schema":{{"name":"{name}""#))
}
