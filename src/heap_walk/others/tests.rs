//! Programs made up.
