//! Judgements and differences: for people, and in the forms that CI systems show.

mod diff;
mod github;
mod junit;
mod markdown;
mod metrics;
mod openmetrics;
#[cfg(test)]
mod tests;
mod text;
mod value;

pub use diff::diff;
pub use diff::diff_markdown;
pub use github::annotations;
pub use junit::junit;
pub use markdown::markdown;
pub use metrics::metrics;
pub use metrics::metrics_json;
pub use openmetrics::openmetrics;
pub use text::how_it_ended;
pub use text::judgement;
pub use text::update;
pub(super) use value::value;
