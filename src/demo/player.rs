//! The program of the founding experiment, played by breaktrace itself.
//!
//! Its numbers hold for a heap that nobody has used, so it plays in a constructor, which runs before Rust's runtime
//! makes its first allocation, and calls the C library alone. It says what it saw, a line for each step, and exits.

use core::ffi::CStr;
use core::ffi::c_void;
use core::fmt;
use core::fmt::Write;
use core::ptr;

use super::script;
use super::script::Act;
use super::script::BLOCKS;
use super::script::SCRIPT;

/// The variable that makes a process play the program; only the demonstration sets it.
pub(super) const PART_VARIABLE: &CStr = c"BREAKTRACE_DEMO_PART";
/// The variable's value for that.
pub(super) const PLAYER: &CStr = c"player";
/// The last line, by which a whole account is known.
pub(super) const LAST_LINE: &str = "end";
/// The program could not say what it saw.
const UNTOLD: i32 = 74;

#[used]
// SAFETY: `.init_array` holds pointers to functions of this type (System V ABI).
#[unsafe(link_section = ".init_array")]
static PLAY_IF_ASKED: extern "C" fn() = {
    extern "C" fn play_if_asked() {
        if is_asked() {
            let status = if play().is_some() { 0 } else { UNTOLD };
            // SAFETY: ends the process without running anything else of it.
            unsafe { libc::_exit(status) }
        }
    }
    play_if_asked
};

fn is_asked() -> bool {
    // SAFETY: the C library has set up the environment before constructors run, and no other thread changes it.
    // A value is a string that ends with NUL.
    unsafe {
        let part = libc::getenv(PART_VARIABLE.as_ptr());
        !part.is_null() && CStr::from_ptr(part) == PLAYER
    }
}

/// Plays the program; `None` when it could not say what it saw.
fn play() -> Option<()> {
    let mut blocks = [ptr::null_mut(); BLOCKS];
    for (step, action) in SCRIPT.into_iter().enumerate() {
        let mut line = StackLine::new();
        write!(line, "step {step}").ok()?;
        act(action, &mut blocks, &mut line).ok()?;
        // SAFETY: an increment of zero moves nothing.
        let program_break = unsafe { libc::sbrk(0) };
        writeln!(line, " break {:#x}", program_break.addr()).ok()?;
        line.print()?;
        // SAFETY: advice on no bytes concerns no memory.
        unsafe {
            let nothing = ptr::without_provenance_mut(script::mark(step));
            libc::madvise(nothing, 0, libc::MADV_NORMAL);
        }
    }
    let mut line = StackLine::new();
    writeln!(line, "{LAST_LINE}").ok()?;
    line.print()
}

fn act(action: Act, blocks: &mut [*mut c_void; BLOCKS], line: &mut StackLine) -> fmt::Result {
    match action {
        Act::Begin => Ok(()),
        Act::Malloc { block, bytes } => {
            // SAFETY: malloc may be called with any size, and malloc_usable_size with what it returned.
            let (pointer, usable) = unsafe {
                let pointer = libc::malloc(bytes);
                (pointer, libc::malloc_usable_size(pointer))
            };
            blocks[block] = pointer;
            write!(
                line,
                " malloc {bytes} block {:#x} usable {usable}",
                pointer.addr()
            )
        }
        Act::Free { block } => {
            let pointer = core::mem::replace(&mut blocks[block], ptr::null_mut());
            // SAFETY: malloc made the block, or it is null; nobody uses it any more.
            unsafe { libc::free(pointer) };
            write!(line, " free block {:#x}", pointer.addr())
        }
    }
}

/// A line that lives on the stack: a buffer from malloc would change what is shown.
struct StackLine {
    bytes: [u8; 160],
    length: usize,
}

impl StackLine {
    fn new() -> Self {
        Self {
            bytes: [0; 160],
            length: 0,
        }
    }

    /// Writes it to standard output; `None` when that fails.
    fn print(&self) -> Option<()> {
        let mut rest = self.bytes.get(..self.length)?;
        while !rest.is_empty() {
            // SAFETY: the pointer and the length are those of a slice.
            let written =
                unsafe { libc::write(libc::STDOUT_FILENO, rest.as_ptr().cast(), rest.len()) };
            rest = rest.get(usize::try_from(written).ok().filter(|&count| count > 0)?..)?;
        }
        Some(())
    }
}

impl fmt::Write for StackLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        self.bytes
            .get_mut(self.length..end)
            .ok_or(fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_does_not_fit_is_an_error_and_keeps_its_beginning() {
        let mut line = StackLine::new();
        write!(line, "step {}", 3).unwrap();
        assert!(write!(line, "{}", "x".repeat(155)).is_err());
        assert_eq!(&line.bytes[..line.length], b"step 3");
    }

    #[test]
    fn a_process_that_was_not_asked_does_not_play() {
        assert!(!is_asked());
    }
}
