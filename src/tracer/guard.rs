//! A boundary for panics in code that reads what others wrote.
//!
//! ELF and DWARF readers are large, and hostile files find what nobody thought of. Where one panics, that file is done
//! without; the recording goes on.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Once;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The work panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Panicked;

/// Does some work; a panic in it is not printed, and costs its result only. The caller throws away what the work may have
/// left half done.
pub(super) fn run<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                others(panic);
            }
        }));
    });
    let outer = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(outer);
    result.map_err(|_| Panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_costs_the_result_only() {
        assert_eq!(run(|| 1 + 1), Ok(2));
        assert_eq!(run(|| [1, 2][std::env::args().count() + 2]), Err(Panicked));
        assert_eq!(run(|| 3), Ok(3));
    }
}
