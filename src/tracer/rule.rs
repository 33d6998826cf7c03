//! How to get from one frame to its caller: the rules of unwind information (DWARF 5, section 6.4), and what they give for
//! the registers and the memory of a thread.

use std::ops::Range;

use gimli::CfaRule;
use gimli::CommonInformationEntry;
use gimli::Encoding;
use gimli::Evaluation;
use gimli::EvaluationResult;
use gimli::Expression;
use gimli::Format;
use gimli::Location;
use gimli::RegisterRule;
use gimli::UnwindExpression;
use gimli::UnwindTableRow;

use super::image::Image;
use super::image::Slice;
use super::sys::StackRegisters;

/// Most operations of one expression; those of compilers have some ten.
const MOST_OPERATIONS: u32 = 256;

/// The section that a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    EhFrame,
    DebugFrame,
}

/// How to get from a frame to its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    section: Section,
    /// The canonical frame address: the stack pointer of the caller, before it called.
    frame: FrameRule,
    /// Those registers of the caller that differ.
    registers: Box<[(usize, Value)]>,
    /// The register that holds the return address.
    return_register: usize,
    /// The frame of a signal handler's return: its caller was interrupted, and has called nothing.
    pub(super) is_signal: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum FrameRule {
    RegisterAndOffset(usize, i64),
    Expression(Range<usize>),
}

/// Where the caller's value of a register is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    /// It has none; as return address: this is the outermost frame.
    Undefined,
    Same,
    /// In memory, so far from the canonical frame address.
    At(i64),
    /// It is an address so far from the canonical frame address.
    Is(i64),
    Register(usize),
    AtExpression(Range<usize>),
    IsExpression(Range<usize>),
    Number(u64),
    /// Nobody says.
    Unknown,
}

/// Why a rule gave no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoCaller {
    /// The frame is the outermost one.
    Outermost,
    /// The rule makes no sense.
    Senseless,
    /// Memory that it needs cannot be had.
    Unreadable(Unreadable),
}

/// Why memory cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// There is none.
    Missing,
    /// More than is read of a stack.
    TooMuch,
}

impl Rule {
    pub(super) fn new(
        row: &UnwindTableRow<usize>,
        common: &CommonInformationEntry<Slice<'_>>,
        section: Section,
    ) -> Self {
        let frame = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                FrameRule::RegisterAndOffset(usize::from(register.0), *offset)
            }
            CfaRule::Expression(expression) => FrameRule::Expression(piece(expression)),
        };
        Self {
            section,
            frame,
            registers: row
                .registers()
                .filter(|(register, _)| usize::from(register.0) < StackRegisters::COUNT)
                .map(|(register, rule)| (usize::from(register.0), value(rule)))
                .collect(),
            return_register: usize::from(common.return_address_register().0),
            is_signal: common.is_signal_trampoline(),
        }
    }

    /// The registers of the caller.
    pub(super) fn caller(
        &self,
        registers: &StackRegisters,
        image: &Image,
        read: &mut impl FnMut(u64) -> Result<u64, Unreadable>,
    ) -> Result<StackRegisters, NoCaller> {
        let frame = match &self.frame {
            FrameRule::RegisterAndOffset(register, offset) => registers
                .by_number
                .get(*register)
                .ok_or(NoCaller::Senseless)?
                .wrapping_add_signed(*offset),
            FrameRule::Expression(piece) => {
                self.evaluate(piece.clone(), None, registers, image, read)?
            }
        };
        let mut caller = *registers;
        caller.by_number[StackRegisters::STACK_POINTER] = frame;
        let mut returns = None;
        for (register, value) in &self.registers {
            let found = match value {
                Value::Undefined => Err(NoCaller::Outermost),
                Value::Same => Ok(registers.by_number[*register]),
                Value::At(offset) => {
                    read(frame.wrapping_add_signed(*offset)).map_err(NoCaller::Unreadable)
                }
                Value::Is(offset) => Ok(frame.wrapping_add_signed(*offset)),
                Value::Register(other) => registers
                    .by_number
                    .get(*other)
                    .copied()
                    .ok_or(NoCaller::Senseless),
                Value::AtExpression(piece) => self
                    .evaluate(piece.clone(), Some(frame), registers, image, read)
                    .and_then(|address| read(address).map_err(NoCaller::Unreadable)),
                Value::IsExpression(piece) => {
                    self.evaluate(piece.clone(), Some(frame), registers, image, read)
                }
                Value::Number(number) => Ok(*number),
                Value::Unknown => Err(NoCaller::Senseless),
            };
            if *register == self.return_register {
                returns = Some(found);
            }
            // Another register that cannot be had matters only if a frame further out needs it.
            if let Ok(found) = found {
                caller.by_number[*register] = found;
            }
        }
        caller.instruction_pointer = match returns {
            Some(found) => found?,
            None if SAME_WHERE_UNSAID => *registers
                .by_number
                .get(self.return_register)
                .ok_or(NoCaller::Senseless)?,
            None => return Err(NoCaller::Senseless),
        };
        Ok(caller)
    }

    fn evaluate(
        &self,
        piece: Range<usize>,
        initial: Option<u64>,
        registers: &StackRegisters,
        image: &Image,
        read: &mut impl FnMut(u64) -> Result<u64, Unreadable>,
    ) -> Result<u64, NoCaller> {
        let bytes = image
            .piece(self.section, piece)
            .ok_or(NoCaller::Senseless)?;
        evaluate(Expression(bytes), initial, registers, read)
    }
}

/// Where no rule tells the return address: the link register has it until it is saved. On x86-64 it is always in memory,
/// and each entry says where.
const SAME_WHERE_UNSAID: bool = cfg!(target_arch = "aarch64");

fn piece(expression: &UnwindExpression<usize>) -> Range<usize> {
    expression.offset..expression.offset.saturating_add(expression.length)
}

fn value(rule: &RegisterRule<usize>) -> Value {
    match rule {
        RegisterRule::SameValue => Value::Same,
        RegisterRule::Offset(offset) => Value::At(*offset),
        RegisterRule::ValOffset(offset) => Value::Is(*offset),
        RegisterRule::Register(register) => Value::Register(usize::from(register.0)),
        RegisterRule::Expression(expression) => Value::AtExpression(piece(expression)),
        RegisterRule::ValExpression(expression) => Value::IsExpression(piece(expression)),
        RegisterRule::Constant(number) => Value::Number(*number),
        RegisterRule::Undefined => Value::Undefined,
        _ => Value::Unknown,
    }
}

/// What an expression gives (DWARF 5, section 2.5).
fn evaluate(
    expression: Expression<Slice<'_>>,
    initial: Option<u64>,
    registers: &StackRegisters,
    read: &mut impl FnMut(u64) -> Result<u64, Unreadable>,
) -> Result<u64, NoCaller> {
    let encoding = Encoding {
        address_size: 8,
        format: Format::Dwarf32,
        version: 4,
    };
    let senseless = |_| NoCaller::Senseless;
    let mut evaluation = Evaluation::new(expression.0, encoding);
    evaluation.set_max_iterations(MOST_OPERATIONS);
    if let Some(initial) = initial {
        evaluation.set_initial_value(initial);
    }
    let mut state = evaluation.evaluate().map_err(senseless)?;
    loop {
        state = match state {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = registers
                    .by_number
                    .get(usize::from(register.0))
                    .ok_or(NoCaller::Senseless)?;
                evaluation.resume_with_register(gimli::Value::Generic(*value))
            }
            EvaluationResult::RequiresMemory { address, size, .. } => {
                let word = read(address).map_err(NoCaller::Unreadable)?;
                let bits = u32::from(size).saturating_mul(8);
                // Little-endian: the first bytes are the lowest.
                let value = if bits < u64::BITS {
                    word & ((1 << bits) - 1)
                } else {
                    word
                };
                evaluation.resume_with_memory(gimli::Value::Generic(value))
            }
            _ => return Err(NoCaller::Senseless),
        }
        .map_err(senseless)?;
    }
    match evaluation.as_result().last().map(|piece| &piece.location) {
        Some(Location::Address { address }) => Ok(*address),
        _ => Err(NoCaller::Senseless),
    }
}
