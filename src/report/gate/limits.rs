//! Limits: what a metric may become, as written in a file or on the command line.
//!
//! ```text
//! <=64MiB            never above this; needs no baseline
//! +5%                may grow by so much of the baseline
//! +5%,256KiB         by either, whichever allows more
//! +0                 may not grow
//! ~5%,256KiB         may neither grow nor shrink by more: for what must not change
//! off                is no limit
//! ```
//!
//! A cap and a tolerance may stand together: `<=64MiB,+5%`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::metrics::METRICS;
use super::metrics::Metric;
use super::metrics::MetricUnit;

/// Limits files larger than this are none.
pub const LARGEST_LIMITS_FILE: u64 = 1 << 20;

/// A value as it was written, before it is known what it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Quantity(String);

impl Quantity {
    /// In the metric's unit; rounded down to a whole number.
    fn in_unit(&self, unit: MetricUnit) -> Result<u64, LimitError> {
        let wrong = || LimitError::Value {
            value: self.0.clone(),
            wanted: match unit {
                MetricUnit::Bytes => "bytes: 4096, 256KiB, 1.5MiB, 2GiB",
                MetricUnit::Count => "a whole number: 250",
                MetricUnit::Nanoseconds => "a time: 500ms, 10s, 1m30s",
                MetricUnit::BasisPoints => "a percentage: 12%, 7.5%",
            },
        };
        match unit {
            MetricUnit::Bytes => bytes(&self.0),
            MetricUnit::Count => self.0.replace('_', "").parse().ok(),
            MetricUnit::Nanoseconds => humantime::parse_duration(&self.0)
                .ok()
                .and_then(|time| u64::try_from(time.as_nanos()).ok()),
            MetricUnit::BasisPoints => self
                .0
                .strip_suffix('%')
                .and_then(|number| scaled(number.trim(), 100)),
        }
        .ok_or_else(wrong)
    }
}

/// `1.5MiB`. Binary units, and those of ten where they are written so: kB, MB, GB.
fn bytes(text: &str) -> Option<u64> {
    let at = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    scaled(number, scale)
}

/// A decimal number times `scale`, rounded down.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let mut part = 0;
    if !fraction.is_empty() {
        let digits: u128 = fraction.parse().ok()?;
        let tens = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        part = u64::try_from(digits * u128::from(scale) / tens).ok()?;
    }
    whole.checked_add(part)
}

/// How far a metric may be from its baseline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tolerance {
    /// Shrinking by more is a failure as well.
    pub both_ways: bool,
    /// Hundredths of a percent of the baseline.
    relative: Option<u64>,
    absolute: Option<Quantity>,
}

impl Tolerance {
    /// Nothing at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// How much it may differ from `baseline`, in the metric's unit.
    ///
    /// # Errors
    ///
    /// The tolerance is in another unit.
    pub fn allowance(&self, metric: &Metric, baseline: u64) -> Result<u64, LimitError> {
        let relative = self.relative.map_or(0, |points| {
            let share = u128::from(baseline) * u128::from(points) / 10_000;
            u64::try_from(share).unwrap_or(u64::MAX)
        });
        let absolute = match &self.absolute {
            Some(quantity) => quantity.in_unit(metric.unit)?,
            None => 0,
        };
        Ok(relative.max(absolute))
    }
}

/// What is said of a metric: a cap, a tolerance, both, or that there is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    cap: Option<Quantity>,
    tolerance: Option<Tolerance>,
    off: bool,
    text: String,
}

impl Limit {
    /// A cap alone: what `--max` takes.
    ///
    /// # Errors
    ///
    /// The value is empty.
    pub fn cap(text: &str) -> Result<Self, LimitError> {
        let text = text.trim();
        format!("<={}", text.strip_prefix("<=").unwrap_or(text)).parse()
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let mut limit = Self {
            text: text.trim().to_owned(),
            ..Self::default()
        };
        let malformed = || LimitError::Malformed(text.to_owned());
        for part in text.split(',').map(str::trim) {
            let quantity = |text: &str| match text.trim() {
                "" => Err(malformed()),
                text => Ok(text.to_owned()),
            };
            if part == "off" {
                limit.off = true;
            } else if let Some(value) = part.strip_prefix("<=") {
                limit.cap = Some(Quantity(quantity(value)?));
            } else if let Some(value) = part.strip_prefix('+') {
                let tolerance = limit.tolerance.insert(Tolerance::none());
                tolerance.add(&quantity(value)?)?;
            } else if let Some(value) = part.strip_prefix('~') {
                let tolerance = limit.tolerance.insert(Tolerance::none());
                tolerance.both_ways = true;
                tolerance.add(&quantity(value)?)?;
            } else if let Some(tolerance) = &mut limit.tolerance {
                tolerance.add(&quantity(part)?)?;
            } else {
                return Err(malformed());
            }
        }
        if limit.off && (limit.cap.is_some() || limit.tolerance.is_some()) {
            return Err(malformed());
        }
        Ok(limit)
    }
}

impl Tolerance {
    fn add(&mut self, text: &str) -> Result<(), LimitError> {
        match text.strip_suffix('%') {
            Some(number) => {
                let points = scaled(number.trim(), 100);
                self.relative = Some(points.ok_or_else(|| LimitError::Malformed(text.to_owned()))?);
            }
            None => self.absolute = Some(Quantity(text.to_owned())),
        }
        Ok(())
    }
}

/// Whose metrics a limit is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of the whole recording.
    Whole,
    /// Those of each program that runs in it.
    EachProgram,
    /// Those of programs with this name.
    Program(String),
}

/// Which metrics a limit is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Selector {
    /// All that are repeatable.
    All,
    /// Those of a group that are repeatable.
    Group(&'static str),
    /// The one with this name.
    One(&'static str),
}

impl Selector {
    fn parse(name: &str) -> Result<Self, LimitError> {
        let groups = || METRICS.iter().map(Metric::group);
        if let Some(group) = name.strip_prefix('@') {
            if group == "all" {
                return Ok(Self::All);
            }
            return groups()
                .find(|known| *known == group)
                .map(Self::Group)
                .ok_or_else(|| {
                    let known: Vec<String> = groups()
                        .chain(["all"])
                        .map(|group| format!("@{group}"))
                        .collect();
                    LimitError::unknown(name, known.iter().map(String::as_str))
                });
        }
        Metric::named(name)
            .map(|metric| Self::One(metric.name))
            .ok_or_else(|| LimitError::unknown(name, METRICS.iter().map(|metric| metric.name)))
    }

    fn covers(&self, metric: &Metric) -> bool {
        match self {
            Self::All => metric.repeatable,
            Self::Group(group) => metric.repeatable && metric.group() == *group,
            Self::One(name) => *name == metric.name,
        }
    }
}

/// One line of what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    scope: Scope,
    selector: Selector,
    limit: Limit,
}

/// All limits; of several for one metric, the last counts, for caps and tolerances apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    entries: Vec<Entry>,
}

/// What holds for one metric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// Most that it may be.
    pub cap: Option<u64>,
    /// How far it may be from its baseline.
    pub tolerance: Option<Tolerance>,
    /// A limit named this very metric, rather than its group.
    pub is_named: bool,
    /// The tolerance did.
    pub is_tolerance_named: bool,
    /// As it was written.
    pub text: String,
}

impl Limits {
    /// Adds a limit: `name` is a metric, `@group` or `@all`, with `PROGRAM:` before it for a program's own; `*:` stands for
    /// each program.
    ///
    /// # Errors
    ///
    /// There is no such metric, or its values are in another unit.
    pub fn add(&mut self, name: &str, limit: Limit) -> Result<(), LimitError> {
        let (scope, name) = match name.rsplit_once(':') {
            None => (Scope::Whole, name),
            Some(("*", name)) => (Scope::EachProgram, name),
            Some(("", _)) => return Err(LimitError::Malformed(name.to_owned())),
            Some((program, name)) => (Scope::Program(program.to_owned()), name),
        };
        self.add_to(scope, name.trim(), limit)
    }

    fn add_to(&mut self, scope: Scope, name: &str, limit: Limit) -> Result<(), LimitError> {
        let selector = Selector::parse(name)?;
        if let Selector::One(name) = selector
            && let Some(metric) = Metric::named(name)
        {
            if scope != Scope::Whole && matches!(metric.source, super::metrics::Source::Report(_)) {
                return Err(LimitError::NotOfPrograms(metric.name.to_owned()));
            }
            // Whatever cannot be right is told when it is read.
            if let Some(cap) = &limit.cap {
                cap.in_unit(metric.unit)?;
            }
            if let Some(tolerance) = &limit.tolerance {
                tolerance.allowance(metric, 0)?;
            }
        } else if limit.cap.is_some() {
            return Err(LimitError::CapOfGroup(name.to_owned()));
        }
        self.entries.push(Entry {
            scope,
            selector,
            limit,
        });
        Ok(())
    }

    /// Adds all of `others`, which count more.
    pub(super) fn append(&mut self, others: &Self) {
        self.entries.extend(others.entries.iter().cloned());
    }

    /// Adds what a limits file says.
    ///
    /// # Errors
    ///
    /// It is not TOML, or says something of metrics that there are not.
    pub fn add_file(&mut self, text: &str) -> Result<(), LimitError> {
        let document: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            LimitError::Toml(error.to_string().trim_end().to_owned())
        })?;
        for (key, value) in &document {
            match (key.as_str(), value) {
                ("limits", toml::Value::Table(table)) => self.add_table(table)?,
                _ => {
                    return Err(LimitError::unknown_key(key));
                }
            }
        }
        Ok(())
    }

    fn add_table(&mut self, table: &toml::Table) -> Result<(), LimitError> {
        for (key, value) in table {
            match (key.as_str(), value) {
                ("programs", toml::Value::Table(programs)) => {
                    for (program, value) in programs {
                        let scope = match program.as_str() {
                            "*" => Scope::EachProgram,
                            name => Scope::Program(name.to_owned()),
                        };
                        let toml::Value::Table(table) = value else {
                            return Err(LimitError::NoTable(format!("limits.programs.{program}")));
                        };
                        self.add_entries(&scope, "", table, 0)?;
                    }
                }
                ("programs", _) => return Err(LimitError::NoTable("limits.programs".to_owned())),
                _ => self.add_entry(&Scope::Whole, key, value, 0)?,
            }
        }
        Ok(())
    }

    /// `break.peak = "…"` without quotes is a table within a table.
    fn add_entries(
        &mut self,
        scope: &Scope,
        prefix: &str,
        table: &toml::Table,
        depth: u32,
    ) -> Result<(), LimitError> {
        for (key, value) in table {
            self.add_entry(scope, &format!("{prefix}{key}"), value, depth)?;
        }
        Ok(())
    }

    fn add_entry(
        &mut self,
        scope: &Scope,
        name: &str,
        value: &toml::Value,
        depth: u32,
    ) -> Result<(), LimitError> {
        let text = |value: &toml::Value| match value {
            toml::Value::String(text) => Ok(text.clone()),
            // A bare number is the most that it may be.
            toml::Value::Integer(number) => Ok(format!("<={number}")),
            _ => Err(LimitError::Kind(name.to_owned())),
        };
        match value {
            toml::Value::Table(table) if depth < 4 => {
                self.add_entries(scope, &format!("{name}."), table, depth + 1)
            }
            toml::Value::Array(values) => {
                for value in values {
                    self.add_to(scope.clone(), name, text(value)?.parse()?)?;
                }
                Ok(())
            }
            value => self.add_to(scope.clone(), name, text(value)?.parse()?),
        }
    }

    /// What holds for a metric of the whole recording (`None`) or of a program.
    ///
    /// # Errors
    ///
    /// A group's tolerance is in a unit that this metric does not have.
    pub fn of(&self, program: Option<&str>, metric: &Metric) -> Result<Effective, LimitError> {
        let mut cap: Option<&Limit> = None;
        let mut tolerance: Option<&Limit> = None;
        let mut is_named = false;
        let mut is_tolerance_named = false;
        for entry in &self.entries {
            let is_in_scope = match (&entry.scope, program) {
                (Scope::Whole, None) | (Scope::EachProgram, Some(_)) => true,
                (Scope::Program(name), Some(program)) => name == program,
                _ => false,
            };
            if !is_in_scope || !entry.selector.covers(metric) {
                continue;
            }
            let is_one = matches!(entry.selector, Selector::One(_));
            if entry.limit.off {
                (cap, tolerance, is_named) = (None, None, false);
                is_tolerance_named = false;
            }
            if entry.limit.cap.is_some() {
                cap = Some(&entry.limit);
                is_named |= is_one;
            }
            // A group is gated by what it counts: a tolerance in bytes says nothing of calls.
            if let Some(wanted) = &entry.limit.tolerance
                && (is_one || wanted.allowance(metric, 0).is_ok())
            {
                tolerance = Some(&entry.limit);
                is_named |= is_one;
                is_tolerance_named = is_one;
            }
        }
        let value = cap
            .and_then(|limit| limit.cap.as_ref())
            .map(|cap| cap.in_unit(metric.unit))
            .transpose()?;
        let mut texts: Vec<&str> = Vec::new();
        for limit in [cap, tolerance].into_iter().flatten() {
            if !texts.contains(&limit.text.as_str()) {
                texts.push(&limit.text);
            }
        }
        Ok(Effective {
            cap: value,
            tolerance: tolerance.and_then(|limit| limit.tolerance.clone()),
            is_named,
            is_tolerance_named,
            text: texts.join(", "),
        })
    }

    /// Programs that limits name.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(|entry| match &entry.scope {
            Scope::Program(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether there are limits of programs.
    #[must_use]
    pub fn concerns_programs(&self) -> bool {
        self.entries.iter().any(|entry| entry.scope != Scope::Whole)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Why a limit cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LimitError {
    /// The grammar is not followed.
    #[error("`{0}` is no limit")]
    Malformed(String),
    /// There is no such metric or group.
    #[error("there is no metric `{name}`")]
    Unknown {
        /// As written.
        name: String,
        /// The one that it resembles most.
        nearest: Option<String>,
    },
    /// A value is not in the metric's unit.
    #[error("`{value}` is no value for this metric, which takes {wanted}")]
    Value {
        /// As written.
        value: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// A cap for several metrics at once.
    #[error("`{0}` is a group, and its metrics have no common cap")]
    CapOfGroup(String),
    /// A metric that only whole recordings have.
    #[error("`{0}` is measured of the whole recording, not of each program")]
    NotOfPrograms(String),
    /// The limits file is no TOML.
    #[error("it is no TOML: {0}")]
    Toml(String),
    /// A key of the limits file that nothing is known of.
    #[error("`{0}` is nothing that a limits file has")]
    UnknownKey(String),
    /// Something else where a table of limits belongs.
    #[error("`{0}` is to be a table of limits")]
    NoTable(String),
    /// A value of another kind.
    #[error("the limit of `{0}` is neither text nor a number")]
    Kind(String),
}

impl LimitError {
    fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let nearest = known
            .map(|known| (strsim::jaro_winkler(known, name), known))
            .filter(|(likeness, _)| *likeness > 0.7)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        Self::Unknown {
            name: name.to_owned(),
            nearest: nearest.map(|(_, known)| known.to_owned()),
        }
    }

    fn unknown_key(key: &str) -> Self {
        Self::UnknownKey(key.to_owned())
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown {
                nearest: Some(nearest),
                ..
            } => format!("did you mean `{nearest}`? `breaktrace metrics` lists all"),
            Self::Unknown { nearest: None, .. } => "`breaktrace metrics` lists all".to_owned(),
            Self::CapOfGroup(_) => "give each metric a cap of its own".to_owned(),
            Self::UnknownKey(_) | Self::NoTable(_) | Self::Toml(_) => {
                "[limits] holds lines such as \"break.peak\" = \"+5%,256KiB\"".to_owned()
            }
            Self::NotOfPrograms(_) => "leave the program's name away".to_owned(),
            Self::Malformed(_) | Self::Kind(_) | Self::Value { .. } => {
                "limits are <=64MiB (a cap), +5% or +256KiB or +5%,256KiB (growth over the baseline), ~5% (change either way), off".to_owned()
            }
        }
    }
}
