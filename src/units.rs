//! Addresses, sizes and times: the quantities that every layer speaks of.
//!
//! Each has one textual form. Addresses are hexadecimal strings in JSON, because a 64-bit address does not survive
//! readers that keep numbers as doubles; sizes are plain integers of bytes, times plain integers of nanoseconds.

use std::fmt;
use std::ops::Add;
use std::ops::Sub;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

/// A virtual address in the traced program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub u64);

impl Address {
    /// The first address of the page that holds this one.
    #[must_use]
    pub fn page_down(self, page_size: u64) -> Self {
        Self(self.0 & !(page_size - 1))
    }

    /// The first page boundary at or above this address; saturates at the last page of the address space.
    #[must_use]
    pub fn page_up(self, page_size: u64) -> Self {
        Self(page_up(self.0, page_size))
    }

    /// Bytes from `lower` up to this address; zero if `lower` lies above.
    #[must_use]
    pub fn above(self, lower: Self) -> u64 {
        self.0.saturating_sub(lower.0)
    }

    /// Signed distance from `other` to this address, in bytes.
    #[must_use]
    pub fn offset_from(self, other: Self) -> i64 {
        self.0.wrapping_sub(other.0).cast_signed()
    }
}

/// `length` rounded up to whole pages, as the kernel rounds the lengths of mapping calls; saturating.
#[must_use]
pub fn page_up(length: u64, page_size: u64) -> u64 {
    length
        .checked_add(page_size - 1)
        .map_or(!(page_size - 1), |sum| sum & !(page_size - 1))
}

impl Add<u64> for Address {
    type Output = Self;

    /// Saturates at the end of the address space.
    fn add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl Sub<u64> for Address {
    type Output = Self;

    /// Saturates at zero.
    fn sub(self, bytes: u64) -> Self {
        Self(self.0.saturating_sub(bytes))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| {
                serde::de::Error::custom(format!(
                    "`{text}` is not an address such as 0x55e0c0de1000"
                ))
            })
    }
}

/// Bytes as hexadecimal digits: build IDs.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
impl schemars::JsonSchema for Address {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^0x[0-9a-f]{1,16}$",
            "description": "An address in the traced program, hexadecimal."
        })
    }
}

/// Nanoseconds since the recording began, by `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This moment as seconds, for people.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "shown with at most four digits")]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

/// A count of bytes, shown with a binary unit and three or four digits: `132 KiB`, `1.50 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&human_bytes(self.0))
    }
}

/// A change in bytes, always shown with its sign: `+132 KiB`, `−4 KiB`, `0 B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteDelta(pub i64);

impl fmt::Display for ByteDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = human_bytes(self.0.unsigned_abs());
        match self.0.signum() {
            1 => f.pad(&format!("+{size}")),
            -1 => f.pad(&format!("−{size}")),
            _ => f.pad(&size),
        }
    }
}

/// A number to the last digit, in groups of three: `135,168`. For sums that add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exact(pub u64);

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut out = String::with_capacity(digits.len() + digits.len() / 3);
        for (index, digit) in digits.char_indices() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        f.pad(&out)
    }
}

fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 1)) != 0 {
        unit += 1;
    }
    let scale = 1_u64 << (10 * unit);
    if bytes.is_multiple_of(scale) {
        return format!("{} {}", bytes / scale, UNITS[unit]);
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let value = bytes as f64 / scale as f64;
    // Rounding must not yield "1024 KiB" where "1.00 MiB" is meant.
    if value >= 1023.5 && unit + 1 < UNITS.len() {
        return format!("1.00 {}", UNITS[unit + 1]);
    }
    let decimals = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_are_whole_units_have_no_decimals() {
        assert_eq!(ByteSize(0).to_string(), "0 B");
        assert_eq!(ByteSize(135_168).to_string(), "132 KiB");
        assert_eq!(ByteSize(64 << 20).to_string(), "64 MiB");
    }

    #[test]
    fn sizes_in_between_keep_three_digits() {
        assert_eq!(ByteSize(1_234_567).to_string(), "1.18 MiB");
        assert_eq!(ByteSize(67_821_424).to_string(), "64.7 MiB");
        assert_eq!(ByteSize((1 << 20) - 1).to_string(), "1.00 MiB");
        assert_eq!(ByteSize(u64::MAX).to_string(), "16.0 EiB");
    }

    #[test]
    fn changes_carry_their_sign() {
        assert_eq!(ByteDelta(4096).to_string(), "+4 KiB");
        assert_eq!(ByteDelta(-4096).to_string(), "−4 KiB");
        assert_eq!(ByteDelta(i64::MIN).to_string(), "−8 EiB");
    }

    #[test]
    fn exact_numbers_come_in_groups_of_three() {
        let shown = [0, 32, 656, 4096, 135_168, u64::MAX].map(|number| Exact(number).to_string());
        assert_eq!(
            shown,
            [
                "0",
                "32",
                "656",
                "4,096",
                "135,168",
                "18,446,744,073,709,551,615"
            ]
        );
        assert_eq!(format!("{:>8}", Exact(4096)), "   4,096");
    }

    #[test]
    fn lengths_round_up_to_pages_without_overflow() {
        assert_eq!(page_up(1, 4096), 4096);
        assert_eq!(page_up(4096, 4096), 4096);
        assert_eq!(page_up(u64::MAX, 4096), !4095);
        assert_eq!(Address(0x1fff).page_down(4096), Address(0x1000));
    }

    #[test]
    fn addresses_are_hexadecimal_strings_in_json() {
        let text = serde_json::to_string(&Address(0x5589_0000)).unwrap();
        assert_eq!(text, "\"0x55890000\"");
        assert_eq!(
            serde_json::from_str::<Address>(&text).unwrap(),
            Address(0x5589_0000)
        );
        assert!(serde_json::from_str::<Address>("\"5589\"").is_err());
    }
}
