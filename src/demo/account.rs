//! What the program says it did and saw: the lines that the player prints.

use super::player::LAST_LINE;
use super::script::Act;
use super::script::SCRIPT;
use crate::units::Address;

/// What the program saw at one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// What sbrk(0) returned.
    pub(super) program_break: Address,
    /// The block that was made or freed; absent at the beginning.
    pub(super) block: Option<Address>,
    /// `malloc_usable_size` of a block that was made; absent otherwise.
    pub(super) usable_bytes: Option<u64>,
}

/// What the program printed is not an account of its steps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// A line is not the one that belongs there.
    #[error("line {number} of what the program printed is no account of its step: `{}`", .line.escape_debug())]
    Line {
        /// Which line, counted from 1.
        number: usize,
        /// What stands there, cut when it is long.
        line: String,
    },
    /// It breaks off.
    #[error("what the program printed breaks off after line {lines}")]
    BreaksOff {
        /// Whole lines that were read.
        lines: usize,
    },
    /// There is more than the account.
    #[error("the program printed more than its account")]
    GoesOn,
}

/// Reads the account of the whole program, one entry for each step of the script.
pub(super) fn read(text: &str) -> Result<Vec<Seen>, AccountError> {
    let mut lines = text.split_inclusive('\n');
    let mut seen = Vec::with_capacity(SCRIPT.len());
    for (step, action) in SCRIPT.into_iter().enumerate() {
        let line = whole(lines.next(), step)?;
        seen.push(read_line(line, step, action).ok_or_else(|| strange(line, step))?);
    }
    let last = whole(lines.next(), SCRIPT.len())?;
    if last != LAST_LINE {
        return Err(strange(last, SCRIPT.len()));
    }
    match lines.next() {
        None => Ok(seen),
        Some(_) => Err(AccountError::GoesOn),
    }
}

/// The line without its end; a line without one may be half a line.
fn whole(line: Option<&str>, lines: usize) -> Result<&str, AccountError> {
    line.and_then(|line| line.strip_suffix('\n'))
        .ok_or(AccountError::BreaksOff { lines })
}

fn strange(line: &str, step: usize) -> AccountError {
    AccountError::Line {
        number: step + 1,
        line: line.chars().take(80).collect(),
    }
}

fn read_line(line: &str, step: usize, action: Act) -> Option<Seen> {
    let mut words = Words(line.split(' '));
    words
        .number("step")
        .filter(|&number| number == step as u64)?;
    let (block, usable_bytes) = match action {
        Act::Begin => (None, None),
        Act::Malloc { bytes, .. } => {
            words
                .number("malloc")
                .filter(|&asked| asked == bytes as u64)?;
            (Some(words.address("block")?), Some(words.number("usable")?))
        }
        Act::Free { .. } => {
            words.word("free")?;
            (Some(words.address("block")?), None)
        }
    };
    let program_break = words.address("break")?;
    words.0.next().is_none().then_some(Seen {
        program_break,
        block: block.filter(|&block| block != NULL),
        usable_bytes,
    })
}

/// What malloc returns when it has nothing.
const NULL: Address = Address(0);

/// The words of a line, most of them a name and its value.
struct Words<'a>(std::str::Split<'a, char>);

impl<'a> Words<'a> {
    fn word(&mut self, word: &str) -> Option<()> {
        (self.0.next()? == word).then_some(())
    }

    fn value(&mut self, name: &str) -> Option<&'a str> {
        self.word(name)?;
        self.0.next()
    }

    fn number(&mut self, name: &str) -> Option<u64> {
        let digits = self.value(name)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok())?
    }

    fn address(&mut self, name: &str) -> Option<Address> {
        let digits = self.value(name)?.strip_prefix("0x")?;
        let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_number
            .then(|| u64::from_str_radix(digits, 16).ok())?
            .map(Address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> String {
        let mut text = String::new();
        for (step, action) in SCRIPT.into_iter().enumerate() {
            text += &match action {
                Act::Begin => format!("step {step} break 0x1000\n"),
                Act::Malloc { bytes, .. } => {
                    format!("step {step} malloc {bytes} block 0x2a0 usable 16392 break 0x22000\n")
                }
                Act::Free { .. } => format!("step {step} free block 0x2a0 break 0x22000\n"),
            };
        }
        text + "end\n"
    }

    #[test]
    fn a_whole_account_is_read_step_by_step() {
        let seen = read(&account()).unwrap();
        assert_eq!(seen.len(), SCRIPT.len());
        assert_eq!(
            seen[0],
            Seen {
                program_break: Address(0x1000),
                block: None,
                usable_bytes: None
            }
        );
        assert_eq!(
            seen[1],
            Seen {
                program_break: Address(0x22000),
                block: Some(Address(0x2a0)),
                usable_bytes: Some(16392)
            }
        );
        assert_eq!(seen[6].usable_bytes, None);
    }

    #[test]
    fn an_account_that_breaks_off_anywhere_is_refused() {
        let text = account();
        for length in 0..text.len() {
            let error = read(&text[..length]).unwrap_err();
            let lines = text[..length].matches('\n').count();
            assert_eq!(error, AccountError::BreaksOff { lines }, "{length}");
        }
    }

    #[test]
    fn an_account_with_something_added_is_refused() {
        assert_eq!(read(&(account() + "x")), Err(AccountError::GoesOn));
        let doubled = account().replacen("step 3 ", "step 3  ", 1);
        assert!(matches!(
            read(&doubled),
            Err(AccountError::Line { number: 4, .. })
        ));
    }

    #[test]
    fn lines_that_are_not_their_steps_are_refused() {
        for (whole, hostile) in [
            ("step 4 ", "step 5 "),
            ("step 0 ", "step +0 "),
            ("malloc 92160", "malloc 92161"),
            ("block 0x2a0", "block 2a0"),
            ("block 0x2a0", "block 0x+2a0"),
            ("usable 16392", "usable 99999999999999999999"),
            ("break 0x1000", "break 0x"),
            ("break 0x1000", "break 0x1000 \u{1b}[2J"),
            ("end", "End"),
        ] {
            let text = account().replacen(whole, hostile, 1);
            assert_ne!(text, account(), "{whole}");
            let error = read(&text).unwrap_err();
            assert!(
                matches!(error, AccountError::Line { .. }),
                "{hostile}: {error}"
            );
            assert!(!error.to_string().contains('\u{1b}'));
        }
    }

    #[test]
    fn a_block_that_malloc_refused_is_absent() {
        let text = account().replacen("block 0x2a0", "block 0x0", 1);
        assert_eq!(read(&text).unwrap()[1].block, None);
    }
}
