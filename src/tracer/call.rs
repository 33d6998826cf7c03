//! A traced call from its entry to its return: arguments and result become an event.

use super::abi;
use super::abi::Abi;
use super::abi::Call;
use super::sys;
use crate::event::Advice;
use crate::event::AllocatorCall;
use crate::event::AllocatorCause;
use crate::event::CallResult;
use crate::event::Errno;
use crate::event::EventKind;
use crate::event::MapFlags;
use crate::event::Protection;
use crate::event::RemapFlags;
use crate::mapping;
use crate::stats_page::Cause;
use crate::stats_page::DETAIL;
use crate::stats_page::SIGNATURE;
use crate::units::Address;

/// The kernel's own codes for "start this call again": no results (include/linux/errno.h, ERESTARTSYS and after).
const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;

/// A call that has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    call: Call,
    abi: &'static Abi,
    number: u64,
    arguments: [u64; 6],
}

/// What the bundled allocator tells by a call that it signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signed {
    /// It makes a memory call.
    Call(AllocatorCall),
    /// Its page is at this address.
    Page(u64),
    /// It has recorded a heap error.
    HeapError,
    /// It has handed out a block that is a sample.
    Sampled { address: u64, size_bytes: u64 },
    /// A sample is freed, or resized.
    SampleFreed { address: u64 },
}

impl Signed {
    /// Whether it is no memory call at all.
    pub(super) fn is_announcement(self) -> bool {
        !matches!(self, Self::Call(_))
    }
}

/// What a signed madvise call tells that is no memory call.
fn announcement(cause: u64, value: u64) -> Option<Signed> {
    let detail = cause >> DETAIL;
    match Cause::from_number(cause & ((1 << DETAIL) - 1))? {
        Cause::Announce if detail == 0 => Some(Signed::Page(value)),
        Cause::HeapError if detail == 0 => Some(Signed::HeapError),
        Cause::Sampled => Some(Signed::Sampled {
            address: value,
            size_bytes: detail,
        }),
        Cause::SampleFreed if detail == 0 => Some(Signed::SampleFreed { address: value }),
        _ => None,
    }
}

/// A stretch of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Range {
    fn new(start: u64, length: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(length),
        }
    }

    /// Whether the two have an address in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// What a finished call was.
#[derive(Debug, PartialEq)]
pub(super) enum Finished {
    /// An event of the caller's own address space.
    Event(EventKind),
    /// Advice about the memory of the process behind this descriptor of the caller.
    AdviceTo {
        /// The caller's descriptor.
        pidfd: i32,
        /// An event for each stretch of memory.
        events: Vec<EventKind>,
    },
    /// Nothing that concerns memory; or a call that will be made again.
    Nothing,
}

impl Pending {
    /// A call at its entry; `None` if it is not traced.
    pub(super) fn entered(architecture: u32, number: u64, arguments: [u64; 6]) -> Option<Self> {
        let (abi, call) = abi::find(architecture, number)?;
        if call == Call::Mprotect && !abi::is_traced_protection(arguments[2]) {
            return None;
        }
        Some(Self {
            call,
            abi,
            number,
            arguments,
        })
    }

    /// Whether it is a clone, which is looked at only to keep the child under trace.
    pub(super) fn is_clone(&self) -> bool {
        matches!(self.call, Call::Clone | Call::Clone3)
    }

    /// Whether it would replace the program.
    pub(super) fn is_exec(&self) -> bool {
        self.call == Call::Exec
    }

    /// Whether its return is of interest.
    pub(super) fn is_memory_call(&self) -> bool {
        !self.is_clone() && !self.is_exec()
    }

    /// What the bundled allocator tells by it; `None` if another made the call.
    pub(super) fn signed(&self) -> Option<Signed> {
        let is_native = self.abi.architecture == abi::ABIS[0].architecture && !self.is_variant();
        let [_, _, _, cause, value, signature] = self.arguments;
        if !is_native || signature != SIGNATURE {
            return None;
        }
        // Signatures may be left over in the register of a later call by somebody else; causes are less likely to fit.
        let told = AllocatorCause::from_argument(cause).map(|cause| {
            Signed::Call(AllocatorCall {
                cause: Some(cause),
                request_bytes: (value != 0).then_some(value),
            })
        });
        let no_room = Signed::Call(AllocatorCall {
            cause: None,
            request_bytes: None,
        });
        match self.call {
            Call::Madvise => announcement(cause, value).or(told),
            Call::Brk | Call::Munmap => told,
            // The offset of other mappings means something.
            Call::Mmap if MapFlags(low(self.arguments[3])).is_private_anonymous() => Some(no_room),
            Call::Mremap => Some(no_room),
            _ => None,
        }
    }

    /// Whether it asks to move the program break.
    pub(super) fn moves_break(&self) -> bool {
        self.call == Call::Brk && self.arguments[0] != 0
    }

    /// The addresses that this call may free for others before it has returned, if any.
    pub(super) fn frees(&self) -> Option<Range> {
        let [first, second, ..] = self.arguments;
        match self.call {
            Call::Munmap | Call::Mremap => Some(Range::new(first, second)),
            Call::Mmap | Call::MmapPages if first != 0 => Some(Range::new(first, second)),
            // The length of the segment is not among the arguments.
            Call::Shmdt => Some(Range::new(first, 1)),
            _ => None,
        }
    }

    /// Turns the result into what happened.
    ///
    /// `tid` is the caller, at its exit stop: its memory may be read. `break_before` is the break before this call,
    /// where it is known.
    pub(super) fn finish(
        &self,
        tid: u32,
        value: i64,
        is_error: bool,
        break_before: Option<Address>,
    ) -> Finished {
        if is_error && RESTARTS.contains(&self.sign_extended(value)) {
            return Finished::Nothing;
        }
        let value = Returned {
            value: if self.abi.is_32_bit {
                value & 0xffff_ffff
            } else {
                value
            }
            .cast_unsigned(),
            error: is_error.then(|| Errno(int(self.sign_extended(value).unsigned_abs()))),
        };
        let [first, second, third, fourth, fifth, sixth] = self.arguments;
        let signed = self.signed();
        if signed.is_some_and(Signed::is_announcement) {
            return Finished::Nothing;
        }
        // The signature is none of the program's business.
        let sixth = if signed.is_some() { 0 } else { sixth };
        Finished::Event(match self.call {
            Call::Brk => EventKind::Brk {
                requested: Address(first),
                before: break_before,
                after: Address(value.value),
            },
            Call::Mmap => self.mmap([first, second, third, fourth, fifth, sixth], 1, value),
            Call::MmapPages => self.mmap([first, second, third, fourth, fifth, sixth], 4096, value),
            Call::MmapIndirect => match read_old_arguments(tid, first) {
                Some(arguments) => self.mmap(arguments, 1, value),
                None => self.not_decoded(),
            },
            Call::Munmap => EventKind::Munmap {
                address: Address(first),
                length: second,
                result: value.nothing(),
            },
            Call::Mremap => EventKind::Mremap {
                address: Address(first),
                old_length: second,
                new_length: third,
                flags: RemapFlags(low(fourth)),
                new_address: Address(fifth),
                result: value.address(),
            },
            Call::Mprotect => EventKind::Mprotect {
                address: Address(first),
                length: second,
                protection: Protection(low(third)),
                result: value.nothing(),
            },
            Call::Madvise => EventKind::Madvise {
                address: Address(first),
                length: second,
                advice: Advice(int(third)),
                result: value.nothing(),
            },
            Call::ProcessMadvise => return self.process_madvise(tid, value),
            Call::Shmat => EventKind::Shmat {
                shmid: int(first),
                length: value
                    .address()
                    .done()
                    .and_then(|start| mapped_length(tid, start)),
                result: value.address(),
            },
            Call::Shmdt => EventKind::Shmdt {
                address: Address(first),
                result: value.nothing(),
            },
            Call::Ipc if is_shared_memory_ipc(first) => self.not_decoded(),
            Call::RemapFilePages => EventKind::RemapFilePages {
                address: Address(first),
                length: second,
                result: value.nothing(),
            },
            Call::MapShadowStack => EventKind::MapShadowStack {
                length: second,
                result: value.address(),
            },
            Call::Ipc | Call::Clone | Call::Clone3 | Call::Exec => return Finished::Nothing,
        })
    }

    /// Results of 32-bit calls may come zero-extended.
    fn sign_extended(&self, value: i64) -> i64 {
        if self.abi.is_32_bit {
            i64::from(low(value.cast_unsigned()).cast_signed())
        } else {
            value
        }
    }

    #[expect(clippy::unused_self, reason = "one of the decoders")]
    fn mmap(&self, arguments: [u64; 6], offset_unit: u64, value: Returned) -> EventKind {
        let [hint, length, protection, flags, fd, offset] = arguments;
        EventKind::Mmap {
            hint: Address(hint),
            length,
            protection: Protection(low(protection)),
            flags: MapFlags(low(flags)),
            fd: int(fd),
            offset: offset.wrapping_mul(offset_unit),
            result: value.address(),
        }
    }

    fn not_decoded(&self) -> EventKind {
        EventKind::NotDecoded {
            abi: self.abi_name(),
            number: self.number,
        }
    }

    fn abi_name(&self) -> String {
        if self.is_variant() {
            "x32".into()
        } else {
            self.abi.name.into()
        }
    }

    fn is_variant(&self) -> bool {
        self.number & u64::from(self.abi.variant_bits) != 0
    }

    fn process_madvise(&self, tid: u32, value: Returned) -> Finished {
        let [pidfd, vector, count, advice, ..] = self.arguments;
        // Its vector has another layout with 32-bit pointers.
        if self.abi.is_32_bit || self.is_variant() {
            return Finished::Event(self.not_decoded());
        }
        let Some(ranges) = read_vector(tid, vector, count) else {
            return Finished::Event(self.not_decoded());
        };
        let advice = Advice(int(advice));
        let events = match value.error {
            Some(errno) => vec![EventKind::Madvise {
                address: Address(ranges.first().map_or(0, |range| range.start)),
                length: ranges.iter().map(|range| range.end - range.start).sum(),
                advice,
                result: CallResult::Failed(errno),
            }],
            // It returns how many bytes it advised on, from the first on (process_madvise(2)).
            None => first_bytes(&ranges, value.value)
                .map(|range| EventKind::Madvise {
                    address: Address(range.start),
                    length: range.end - range.start,
                    advice,
                    result: CallResult::Done(()),
                })
                .collect(),
        };
        Finished::AdviceTo {
            pidfd: int(pidfd),
            events,
        }
    }
}

/// A call's result, sorted into value and error.
#[derive(Clone, Copy)]
struct Returned {
    value: u64,
    error: Option<Errno>,
}

impl Returned {
    fn address(self) -> CallResult<Address> {
        match self.error {
            None => CallResult::Done(Address(self.value)),
            Some(errno) => CallResult::Failed(errno),
        }
    }

    fn nothing(self) -> CallResult<()> {
        match self.error {
            None => CallResult::Done(()),
            Some(errno) => CallResult::Failed(errno),
        }
    }
}

/// The half of a register that the kernel reads of an `unsigned int` argument.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel ignores the upper half, too"
)]
fn low(register: u64) -> u32 {
    register as u32
}

/// The half of a register that the kernel reads of an `int` argument.
fn int(register: u64) -> i32 {
    low(register).cast_signed()
}

/// SHMAT and SHMDT of linux/ipc.h; the upper half of the first argument is a version.
fn is_shared_memory_ipc(operation: u64) -> bool {
    matches!(operation & 0xffff, 21 | 22)
}

/// The six 32-bit words to which the old mmap points (`struct mmap_arg_struct32`).
fn read_old_arguments(tid: u32, address: u64) -> Option<[u64; 6]> {
    let mut bytes = [0_u8; 24];
    (sys::read_memory(tid, address, &mut bytes) == Ok(24)).then_some(())?;
    let (words, _) = bytes.as_chunks::<4>();
    let mut arguments = [0; 6];
    for (argument, word) in arguments.iter_mut().zip(words) {
        *argument = u64::from(u32::from_ne_bytes(*word));
    }
    Some(arguments)
}

/// The stretches of memory that a `struct iovec` array names.
fn read_vector(tid: u32, address: u64, count: u64) -> Option<Vec<Range>> {
    // UIO_MAXIOV, linux/uio.h: the kernel refuses more.
    let count = usize::try_from(count).ok().filter(|count| *count <= 1024)?;
    let mut bytes = vec![0_u8; 16 * count];
    (sys::read_memory(tid, address, &mut bytes) == Ok(bytes.len())).then_some(())?;
    let (words, _) = bytes.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    let range = |[base, length]: &[[u8; 8]; 2]| {
        Range::new(u64::from_ne_bytes(*base), u64::from_ne_bytes(*length))
    };
    Some(pairs.iter().map(range).collect())
}

/// The first `bytes` of `ranges`.
fn first_bytes(ranges: &[Range], bytes: u64) -> impl Iterator<Item = Range> + '_ {
    let mut left = bytes;
    ranges.iter().map_while(move |range| {
        let length = (range.end - range.start).min(left);
        left -= length;
        (length > 0).then(|| Range::new(range.start, length))
    })
}

/// Length of the mapping that begins at `start`: shmat(2) does not tell.
fn mapped_length(tid: u32, start: Address) -> Option<u64> {
    mapping::read(tid)
        .ok()?
        .iter()
        .find(|mapping| mapping.start == start)
        .map(mapping::Mapping::bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn native(number: i64, arguments: [u64; 6]) -> Pending {
        let number = u64::try_from(number).unwrap();
        Pending::entered(abi::ABIS[0].architecture, number, arguments).unwrap()
    }

    #[test]
    fn a_refused_brk_returns_the_old_break_and_no_error() {
        let pending = native(libc::SYS_brk, [0x9000, 0, 0, 0, 0, 0]);
        assert_eq!(
            pending.finish(0, 0x5000, false, Some(Address(0x5000))),
            Finished::Event(EventKind::Brk {
                requested: Address(0x9000),
                before: Some(Address(0x5000)),
                after: Address(0x5000),
            })
        );
    }

    #[test]
    fn the_allocators_own_calls_are_known_by_their_signature() {
        let call = |cause, request_bytes| {
            Some(Signed::Call(AllocatorCall {
                cause,
                request_bytes,
            }))
        };
        let request = Cause::Request as u64;
        let pending = native(libc::SYS_brk, [0x9000, 0, 0, request, 100, SIGNATURE]);
        assert_eq!(
            pending.signed(),
            call(Some(AllocatorCause::Request), Some(100))
        );
        let pending = native(libc::SYS_brk, [0x9000, 0, 0, 77, 0, SIGNATURE]);
        assert_eq!(pending.signed(), None);
        let pending = native(libc::SYS_brk, [0x9000, 0, 0, request, 100, SIGNATURE + 1]);
        assert_eq!(pending.signed(), None);
        let pending = native(libc::SYS_mmap, [0, 4096, 3, 0x22, u64::MAX, SIGNATURE]);
        assert_eq!(pending.signed(), call(None, None));
        let Finished::Event(EventKind::Mmap { offset, .. }) =
            pending.finish(0, 0x7000, false, None)
        else {
            panic!("an mmap event");
        };
        assert_eq!(offset, 0);
        let file = native(libc::SYS_mmap, [0, 4096, 3, 0x2, 5, SIGNATURE]);
        assert_eq!(file.signed(), None);
    }

    #[test]
    fn announcements_are_no_memory_calls() {
        for (cause, told) in [
            (Cause::Announce, Signed::Page(0x7000)),
            (Cause::HeapError, Signed::HeapError),
            (Cause::SampleFreed, Signed::SampleFreed { address: 0x7000 }),
            (
                Cause::Sampled,
                Signed::Sampled {
                    address: 0x7000,
                    size_bytes: 0,
                },
            ),
        ] {
            let arguments = [0x7000, 0, 4, cause as u64, 0x7000, SIGNATURE];
            let pending = native(libc::SYS_madvise, arguments);
            assert_eq!(pending.signed(), Some(told));
            assert_eq!(pending.finish(0, 0, false, None), Finished::Nothing);
            let unmapping = native(libc::SYS_munmap, arguments);
            assert_eq!(unmapping.signed(), None);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn calls_of_other_abis_are_never_the_allocators() {
        let arguments = [0x9000, 0, 0, 1, 100, SIGNATURE];
        let i386 = Pending::entered(0x4000_0003, 45, arguments).unwrap();
        assert_eq!(i386.signed(), None);
        let x32 = u64::from(abi::X32_BIT) | 12;
        let x32 = Pending::entered(abi::ABIS[0].architecture, x32, arguments).unwrap();
        assert_eq!(x32.signed(), None);
    }

    #[test]
    fn a_call_that_starts_again_is_no_result() {
        let pending = native(libc::SYS_mmap, [0, 4096, 3, 0x22, u64::MAX, 0]);
        for code in -516..=-512 {
            assert_eq!(pending.finish(0, code, true, None), Finished::Nothing);
        }
        let Finished::Event(EventKind::Mmap { fd, result, .. }) =
            pending.finish(0, -12, true, None)
        else {
            panic!("an mmap event");
        };
        assert_eq!((fd, result), (-1, CallResult::Failed(Errno(libc::ENOMEM))));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn thirty_two_bit_results_are_taken_by_their_low_half() {
        let pending =
            Pending::entered(0x4000_0003, 192, [0, 4096, 3, 0x22, 0xffff_ffff, 3]).unwrap();
        let Finished::Event(EventKind::Mmap { offset, result, .. }) =
            pending.finish(0, i64::from(0xf7fc_1000_u32.cast_signed()), false, None)
        else {
            panic!("an mmap event");
        };
        assert_eq!(
            (offset, result),
            (3 * 4096, CallResult::Done(Address(0xf7fc_1000)))
        );
        let Finished::Event(EventKind::Mmap { result, .. }) =
            pending.finish(0, 0xffff_fff4, true, None)
        else {
            panic!("an mmap event");
        };
        assert_eq!(result, CallResult::Failed(Errno(libc::ENOMEM)));
    }

    #[test]
    fn making_pages_readable_is_not_traced() {
        let enter = |protection| {
            let number = u64::try_from(libc::SYS_mprotect).unwrap();
            Pending::entered(
                abi::ABIS[0].architecture,
                number,
                [0, 4096, protection, 0, 0, 0],
            )
        };
        assert!(enter(1).is_none());
        assert!(enter(0).is_some());
        assert!(enter(3).is_some());
    }

    #[test]
    fn partial_advice_covers_the_first_ranges_only() {
        let ranges = [Range::new(0x1000, 0x1000), Range::new(0x8000, 0x2000)];
        let covered: Vec<_> = first_bytes(&ranges, 0x2000).collect();
        assert_eq!(
            covered,
            [Range::new(0x1000, 0x1000), Range::new(0x8000, 0x1000)]
        );
        assert_eq!(first_bytes(&ranges, 0).count(), 0);
    }
}
