//! A stack, from its innermost frame outwards.
//!
//! Where there is unwind information, it alone decides: what it marks as outermost ends a whole stack. Where there is none,
//! code is taken for what it does (a return from a signal handler, the end of a function), and otherwise as keeping
//! frame pointers, which both ABIs let end in zero (System V ABI, AMD64 supplement, 3.4.1; AAPCS64, 6.4.6). Return
//! addresses found in that way must follow a call, so that an odd frame pointer ends a stack, and does not invent one.

use std::collections::HashMap;
use std::rc::Rc;

use gimli::UnwindContext;

use super::modules::Code;
use super::modules::Loaded;
use super::modules::Modules;
use super::rule::NoCaller;
use super::rule::Rule;
use super::rule::Unreadable;
use super::stack_memory::StackMemory;
use super::sys::StackRegisters;
use crate::event::Frame;
use crate::event::ModuleId;
use crate::event::Truncation;

/// Most rules that are kept; then all are found anew. One takes some 200 bytes.
const MOST_RULES: usize = 1 << 15;
/// How often the stack may go on at a lower address, as it does from an alternate signal stack or between the pieces of a
/// split stack.
const MOST_TURNS: u32 = 16;

/// Finds the frames of stacks.
#[derive(Debug, Default)]
pub(super) struct Walker {
    context: UnwindContext<usize>,
    /// How to get on from places in files, which do not change.
    known: HashMap<(ModuleId, u64), How>,
    /// Where it is.
    at: Option<ModuleId>,
}

/// How to get from a frame to its caller.
#[derive(Clone, Debug)]
enum How {
    /// As unwind information says.
    Rule(Rc<Rule>),
    /// The kernel left the interrupted registers on the stack.
    SignalReturn,
    /// The function is about to return: the stack pointer moves, registers are popped.
    Ending { skipped: u64, popped: Vec<usize> },
    /// Nothing is on the stack above the return address.
    JustCalled,
    /// By frame pointer.
    FramePointer,
}

impl How {
    fn is_signal(&self) -> bool {
        match self {
            Self::Rule(rule) => rule.is_signal,
            Self::SignalReturn => true,
            Self::Ending { .. } | Self::JustCalled | Self::FramePointer => false,
        }
    }
}

/// A frame on the way.
struct Here<'a> {
    registers: StackRegisters,
    /// The address whose rule holds.
    address: u64,
    /// The address is that of the next instruction: nothing has been called.
    is_exact: bool,
    loaded: Option<&'a Loaded>,
}

impl Walker {
    /// The frames of a stopped thread, innermost first, and why there are no more.
    pub(super) fn walk(
        &mut self,
        registers: StackRegisters,
        depth: usize,
        memory: &mut StackMemory,
        code: &Code,
        modules: &mut Modules,
    ) -> (Vec<Frame>, Option<Truncation>) {
        let mut frames = Vec::with_capacity(32);
        let mut registers = registers;
        let mut is_exact = true;
        let mut turns = 0;
        loop {
            if frames.len() >= depth {
                return (frames, Some(Truncation::Depth));
            }
            let pc = registers.instruction_pointer;
            let address = if is_exact { pc } else { pc.wrapping_sub(1) };
            let here = Here {
                registers,
                address,
                is_exact,
                loaded: code.find(address),
            };
            let how = self.how(&here, memory, code, modules);
            let is_signal = how.is_signal();
            // Nothing has called the trampoline: its address is where the handler returns to.
            let place = code.place(if is_signal { pc } else { address }, modules);
            frames.push(Frame::Code(place.module, place.offset));
            let caller = match caller(&how, &here, memory, code) {
                Ok(caller) => caller,
                Err(NoCaller::Outermost) => return (frames, None),
                Err(NoCaller::Unreadable(Unreadable::TooMuch)) => {
                    return (frames, Some(Truncation::Bytes));
                }
                Err(NoCaller::Senseless | NoCaller::Unreadable(Unreadable::Missing)) => {
                    return (frames, Some(Truncation::Lost));
                }
            };
            let caller = StackRegisters {
                instruction_pointer: code.without_signature(caller.instruction_pointer),
                ..caller
            };
            if caller.instruction_pointer == 0 {
                return (frames, None);
            }
            let advances = caller.stack_pointer() > registers.stack_pointer();
            let stays = caller.stack_pointer() == registers.stack_pointer();
            let leaf = is_exact && stays && caller.instruction_pointer != pc;
            if !advances && !leaf {
                turns += 1;
            }
            let is_code = code
                .find(caller.instruction_pointer.wrapping_sub(1))
                .is_some();
            if turns > MOST_TURNS || !(is_code || is_signal) {
                return (frames, Some(Truncation::Lost));
            }
            registers = caller;
            is_exact = is_signal;
        }
    }

    /// How to get on from a frame.
    fn how(
        &mut self,
        here: &Here<'_>,
        memory: &mut StackMemory,
        code: &Code,
        modules: &Modules,
    ) -> How {
        let Some(loaded) = here.loaded else {
            return without_information(here, memory, code);
        };
        let key = (loaded.module, loaded.linked(here.address));
        self.at = Some(loaded.module);
        if let Some(how) = self.known.get(&key) {
            return how.clone();
        }
        let rule = loaded
            .image
            .as_ref()
            .filter(|_| !modules.is_broken(loaded.module))
            .and_then(|image| image.rule(key.1, &mut self.context));
        match rule {
            Some(rule) => {
                let how = How::Rule(Rc::new(rule));
                if self.known.len() >= MOST_RULES {
                    self.known.clear();
                }
                self.known.insert(key, how.clone());
                how
            }
            None => without_information(here, memory, code),
        }
    }

    /// The module whose frames it looked at last.
    pub(super) fn last_place(&self) -> Option<ModuleId> {
        self.at
    }

    /// Forgets what half-finished work may have left.
    pub(super) fn begin_anew(&mut self) {
        *self = Self::default();
    }
}

/// How to get on where no unwind information tells.
fn without_information(here: &Here<'_>, memory: &mut StackMemory, code: &Code) -> How {
    let mut bytes = [0; 24];
    let read = memory.code(here.registers.instruction_pointer, &mut bytes);
    let next = bytes.get(..read).unwrap_or_default();
    if instructions::returns_from_signal(next) {
        return How::SignalReturn;
    }
    if let Some((skipped, popped)) = instructions::ending(next) {
        return How::Ending { skipped, popped };
    }
    // Where a module has unwind information, but not for this place, that is a stub or a few lines of assembly.
    let is_stub = here.is_exact
        && here
            .loaded
            .and_then(|loaded| loaded.image.as_ref())
            .is_some_and(|image| !image.is_bare());
    if is_stub
        && JUST_CALLED_IS_ON_STACK
        && memory
            .word(here.registers.stack_pointer())
            .is_ok_and(|word| is_after_call(word, memory, code))
    {
        return How::JustCalled;
    }
    How::FramePointer
}

/// A call puts its return address on the stack.
const JUST_CALLED_IS_ON_STACK: bool = cfg!(target_arch = "x86_64");

/// The registers of a frame's caller.
fn caller(
    how: &How,
    here: &Here<'_>,
    memory: &mut StackMemory,
    code: &Code,
) -> Result<StackRegisters, NoCaller> {
    let registers = &here.registers;
    let mut read = |address| memory.word(address);
    match how {
        How::Rule(rule) => {
            let image = here.loaded.and_then(|loaded| loaded.image.as_ref());
            rule.caller(registers, image.ok_or(NoCaller::Senseless)?, &mut read)
        }
        How::SignalReturn => {
            instructions::interrupted(registers, &mut read).map_err(NoCaller::Unreadable)
        }
        How::Ending { skipped, popped } => {
            let mut caller = *registers;
            let mut top = registers.stack_pointer().wrapping_add(*skipped);
            for register in popped {
                caller.by_number[*register] = read(top).map_err(NoCaller::Unreadable)?;
                top = top.wrapping_add(8);
            }
            returned(caller, top, &mut read)
        }
        How::JustCalled => returned(*registers, registers.stack_pointer(), &mut read),
        How::FramePointer => by_frame_pointer(registers, memory, code),
    }
}

/// The registers after a return address at `top` was taken from the stack.
fn returned(
    mut registers: StackRegisters,
    top: u64,
    read: &mut impl FnMut(u64) -> Result<u64, Unreadable>,
) -> Result<StackRegisters, NoCaller> {
    registers.instruction_pointer = read(top).map_err(NoCaller::Unreadable)?;
    registers.by_number[StackRegisters::STACK_POINTER] = top.wrapping_add(8);
    Ok(registers)
}

/// Both architectures keep the caller's frame pointer where the own one points to, and the return address above it.
fn by_frame_pointer(
    registers: &StackRegisters,
    memory: &mut StackMemory,
    code: &Code,
) -> Result<StackRegisters, NoCaller> {
    let frame = registers.frame_pointer();
    if frame == 0 {
        return Err(NoCaller::Outermost);
    }
    if frame < registers.stack_pointer() || !frame.is_multiple_of(8) {
        return Err(NoCaller::Senseless);
    }
    let mut caller = *registers;
    caller.by_number[StackRegisters::FRAME_POINTER] =
        memory.word(frame).map_err(NoCaller::Unreadable)?;
    let caller = returned(caller, frame.wrapping_add(8), &mut |address| {
        memory.word(address)
    })?;
    let address = code.without_signature(caller.instruction_pointer);
    if address == 0 || is_after_call(address, memory, code) {
        Ok(caller)
    } else {
        Err(NoCaller::Senseless)
    }
}

/// Whether an address is one to which a function may return.
fn is_after_call(address: u64, memory: &mut StackMemory, code: &Code) -> bool {
    if code.find(address.wrapping_sub(1)).is_none() {
        return false;
    }
    let mut before = [0; 8];
    let mut at = [0; 24];
    let read = memory.code(address.wrapping_sub(8), &mut before);
    if read == before.len() && instructions::end_with_call(&before) {
        return true;
    }
    // A signal handler returns to where nothing has called it.
    let read = memory.code(address, &mut at);
    instructions::returns_from_signal(at.get(..read).unwrap_or_default())
}

/// What instructions of this architecture do.
#[cfg(target_arch = "x86_64")]
mod instructions {
    use super::StackRegisters;
    use super::Unreadable;

    /// By their numbers in instructions, the numbers of registers in unwind information.
    const NUMBERS: [usize; 8] = [0, 2, 1, 3, 7, 6, 4, 5];

    /// `mov $15, %rax` or `%eax`, `syscall`: rt_sigreturn(2), which only signal handlers return to.
    pub(super) fn returns_from_signal(code: &[u8]) -> bool {
        code.starts_with(&[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05])
            || code.starts_with(&[0xb8, 15, 0, 0, 0, 0x0f, 0x05])
    }

    /// What the end of a function takes from the stack before its return address: bytes, then registers.
    pub(super) fn ending(code: &[u8]) -> Option<(u64, Vec<usize>)> {
        let (skipped, mut rest) = match code {
            // add $n, %rsp
            [0x48, 0x83, 0xc4, bytes @ 0..0x80, rest @ ..] => (u64::from(*bytes), rest),
            [0x48, 0x81, 0xc4, a, b, c, d @ 0..0x80, rest @ ..] => {
                (u64::from(u32::from_le_bytes([*a, *b, *c, *d])), rest)
            }
            rest => (0, rest),
        };
        let mut popped = Vec::new();
        loop {
            (popped, rest) = match rest {
                // ret, also with a prefix that means nothing
                [0xc3, ..] | [0xf2 | 0xf3, 0xc3, ..] => return Some((skipped, popped)),
                // pop of any register but the stack pointer
                [pop @ (0x58..=0x5b | 0x5d..=0x5f), rest @ ..] => {
                    popped.push(NUMBERS[usize::from(pop - 0x58)]);
                    (popped, rest)
                }
                [0x41, pop @ 0x58..=0x5f, rest @ ..] => {
                    popped.push(usize::from(8 + pop - 0x58));
                    (popped, rest)
                }
                _ => return None,
            };
        }
    }

    /// Whether code ends with a call: relative, or through a register or memory.
    pub(super) fn end_with_call(code: &[u8; 8]) -> bool {
        code[3] == 0xe8 || (1..=6).any(|at| code[at] == 0xff && (code[at + 1] >> 3) & 7 == 2)
    }

    /// The registers that a signal interrupted: `struct rt_sigframe` and `struct sigcontext` of the kernel
    /// (arch/x86/include/asm/sigframe.h, uapi/asm/sigcontext.h), whose first word the handler's return has taken.
    pub(super) fn interrupted(
        registers: &StackRegisters,
        read: &mut impl FnMut(u64) -> Result<u64, Unreadable>,
    ) -> Result<StackRegisters, Unreadable> {
        // In the order in which they are stored: r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
        const STORED: [usize; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7];
        let context = registers.stack_pointer().wrapping_add(40);
        let mut interrupted = *registers;
        let mut address = context;
        for register in STORED {
            interrupted.by_number[register] = read(address)?;
            address = address.wrapping_add(8);
        }
        interrupted.instruction_pointer = read(address)?;
        Ok(interrupted)
    }
}

/// What instructions of this architecture do.
#[cfg(target_arch = "aarch64")]
mod instructions {
    use super::StackRegisters;
    use super::Unreadable;

    /// `mov x8, #139`, `svc #0`: rt_sigreturn(2), which only signal handlers return to.
    pub(super) fn returns_from_signal(code: &[u8]) -> bool {
        code.starts_with(&[0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4])
    }

    /// Ends of functions are not told apart: the link register is in a frame or in its register.
    pub(super) fn ending(_code: &[u8]) -> Option<(u64, Vec<usize>)> {
        None
    }

    /// Whether code ends with `bl` or `blr`, the latter also with authentication.
    pub(super) fn end_with_call(code: &[u8; 8]) -> bool {
        let last = u32::from_le_bytes([code[4], code[5], code[6], code[7]]);
        last & 0xfc00_0000 == 0x9400_0000
            || last & 0xffff_fc1f == 0xd63f_0000
            || last & 0xfeff_f800 == 0xd63f_0800
    }

    /// The registers that a signal interrupted: `struct rt_sigframe` and `struct sigcontext` of the kernel
    /// (arch/arm64/kernel/signal.c, uapi/asm/sigcontext.h).
    pub(super) fn interrupted(
        registers: &StackRegisters,
        read: &mut impl FnMut(u64) -> Result<u64, Unreadable>,
    ) -> Result<StackRegisters, Unreadable> {
        // siginfo_t has 128 bytes, uc_mcontext begins 176 bytes into ucontext_t, and the registers 8 bytes into that.
        let mut address = registers.stack_pointer().wrapping_add(128 + 176 + 8);
        let mut interrupted = *registers;
        for register in 0..StackRegisters::COUNT {
            interrupted.by_number[register] = read(address)?;
            address = address.wrapping_add(8);
        }
        interrupted.instruction_pointer = read(address)?;
        Ok(interrupted)
    }
}
