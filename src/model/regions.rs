//! What is mapped where, as far as events tell.
//!
//! Neighbours of the same kind are one region, whatever the kernel makes of them: it merges and splits its own areas
//! as it likes, and nothing here depends on that.

use std::collections::BTreeMap;

use super::growth::Owner;
use crate::event::StackId;
use crate::units::Address;

/// A range of addresses: from `start` up to, but not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: Address,
    pub(super) end: Address,
}

impl Span {
    /// `length` bytes from `start` on; ends with the address space at the latest.
    pub(super) fn of(start: Address, length: u64) -> Self {
        Self {
            start,
            end: start + length,
        }
    }

    pub(super) fn bytes(self) -> u64 {
        self.end.above(self.start)
    }

    pub(super) fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// What lies in both; possibly empty.
    pub(super) fn within(self, other: Self) -> Self {
        Self {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        }
    }
}

/// What a region is, as far as accounting needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Between the start of the heap and the program break, whatever its protection.
    Heap,
    /// Private memory without a file.
    Anonymous {
        /// Some access is allowed; otherwise it is address space in reserve.
        usable: bool,
        /// Grows down by itself when touched below (`MAP_GROWSDOWN`).
        grows_down: bool,
    },
    /// Files, private or shared, and shared memory.
    Other,
    /// A System V segment. All parts of one attachment have the same base, the address shmdt(2) wants.
    Attachment { base: Address },
    /// The first thread's stack, which grows by itself.
    Stack,
    /// The kernel's own: vdso, vvar.
    Kernel,
}

impl Kind {
    /// Anonymous memory that may be used.
    pub(super) const USABLE: Self = Self::anonymous(true);

    /// Private memory without a file, of the ordinary sort that does not grow by itself.
    pub(super) const fn anonymous(usable: bool) -> Self {
        Self::Anonymous {
            usable,
            grows_down: false,
        }
    }

    fn is_usable(self) -> bool {
        matches!(self, Self::Anonymous { usable: true, .. })
    }

    fn is_reserved(self) -> bool {
        matches!(self, Self::Anonymous { usable: false, .. })
    }

    /// Whether the kernel extends it at its lower end without a call.
    pub(super) fn grows_by_itself(self) -> bool {
        matches!(
            self,
            Self::Stack
                | Self::Anonymous {
                    grows_down: true,
                    ..
                }
        )
    }

    /// What pages of this kind are once mremap(2) has put them elsewhere.
    fn moved(self, from: Address, to: Address) -> Self {
        match self {
            // The heap and the stack are what they are by their place.
            Self::Heap | Self::Stack => Self::USABLE,
            Self::Attachment { base } => Self::Attachment {
                base: Address(base.0.wrapping_add(to.0.wrapping_sub(from.0))),
            },
            other => other,
        }
    }

    /// What pages are by which mremap(2) extends a region of this kind.
    fn extension(self) -> Self {
        match self {
            Self::Heap | Self::Stack => Self::USABLE,
            other => other,
        }
    }
}

/// A stretch of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) span: Span,
    pub(super) kind: Kind,
}

/// A successful mremap(2), lengths rounded to pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remap {
    pub(super) old: Span,
    pub(super) new: Span,
    /// The old range stays mapped, empty.
    pub(super) keep_old: bool,
}

/// Most regions that are told apart by owner only.
const MOST_OWNED: usize = 1 << 17;

/// What a region is, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    end: Address,
    kind: Kind,
    /// Always `None` where the kind is not usable.
    owner: Owner,
}

/// A stretch of one kind and owner.
#[derive(Clone, Copy, Debug)]
struct Piece {
    region: Region,
    owner: Owner,
}

/// All regions of an address space. They never overlap, none is empty, and neighbours that touch differ in kind or owner.
#[derive(Clone, Debug, Default)]
pub(super) struct Regions {
    by_start: BTreeMap<Address, Held>,
    /// To whom memory belongs that becomes usable.
    owner: Owner,
    /// Usable bytes by owner; what is missing to all of them has none.
    owned: BTreeMap<StackId, u64>,
    usable_bytes: u64,
    reserved_bytes: u64,
}

impl Regions {
    /// Bytes of anonymous memory that may be used.
    pub(super) fn usable_bytes(&self) -> u64 {
        self.usable_bytes
    }

    /// Bytes of anonymous memory to which no access is allowed.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }

    /// Number of stretches of usable anonymous memory with something else, or nothing, between them.
    pub(super) fn usable_areas(&self) -> u64 {
        let mut areas = 0;
        let mut end_of_last = None;
        for region in self.iter().filter(|region| region.kind.is_usable()) {
            if end_of_last != Some(region.span.start) {
                areas += 1;
            }
            end_of_last = Some(region.span.end);
        }
        areas
    }

    /// From now on, memory that becomes usable belongs to this stack.
    pub(super) fn set_owner(&mut self, owner: Owner) {
        self.owner = owner.filter(|_| self.by_start.len() < MOST_OWNED);
    }

    /// Usable bytes that belong to a stack.
    pub(super) fn owned_bytes(&self, owner: Owner) -> u64 {
        owner
            .and_then(|stack| self.owned.get(&stack))
            .copied()
            .unwrap_or(0)
    }

    /// Usable bytes by owner.
    pub(super) fn owned(&self) -> &BTreeMap<StackId, u64> {
        &self.owned
    }

    /// The same regions, owned by nobody.
    pub(super) fn without_owners(&self) -> Self {
        let mut copy = Self::default();
        for region in self.iter() {
            copy.insert(region.span, region.kind, None);
        }
        copy
    }

    /// All regions from bottom to top, whoever owns them.
    pub(super) fn iter(&self) -> impl Iterator<Item = Region> {
        let mut held = self.by_start.iter().peekable();
        std::iter::from_fn(move || {
            let (&start, first) = held.next()?;
            let mut end = first.end;
            while let Some((_, next)) =
                held.next_if(|(next_start, next)| **next_start == end && next.kind == first.kind)
            {
                end = next.end;
            }
            Some(Region {
                span: Span { start, end },
                kind: first.kind,
            })
        })
    }

    /// The region that holds this address; of one that several own, the owner's part.
    pub(super) fn at(&self, address: Address) -> Option<Region> {
        self.piece_at(address).map(|piece| piece.region)
    }

    fn piece_at(&self, address: Address) -> Option<Piece> {
        let (&start, held) = self.by_start.range(..=address).next_back()?;
        (address < held.end).then_some(piece(start, held))
    }

    /// End of the highest region that begins below this address; the address itself if that one reaches beyond.
    pub(super) fn end_below(&self, address: Address) -> Address {
        self.by_start
            .range(..address)
            .next_back()
            .map_or(Address(0), |(_, held)| held.end.min(address))
    }

    /// What lies in this range, cut to it, from bottom to top.
    pub(super) fn pieces(&self, span: Span) -> Vec<Region> {
        self.owned_pieces(span)
            .into_iter()
            .map(|piece| piece.region)
            .collect()
    }

    fn owned_pieces(&self, span: Span) -> Vec<Piece> {
        if span.is_empty() {
            return Vec::new();
        }
        let first = self.piece_at(span.start).into_iter();
        // The region at the start, if any, begins at or below it and comes first.
        let rest = self
            .by_start
            .range(span.start..span.end)
            .filter(|&(&start, _)| start > span.start)
            .map(|(&start, held)| piece(start, held));
        first
            .chain(rest)
            .map(|piece| Piece {
                region: Region {
                    span: piece.region.span.within(span),
                    ..piece.region
                },
                ..piece
            })
            .collect()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Maps this range, replacing what it covers.
    pub(super) fn map(&mut self, span: Span, kind: Kind) {
        self.map_for(span, kind, self.owner);
    }

    fn map_for(&mut self, span: Span, kind: Kind, owner: Owner) {
        if span.is_empty() {
            return;
        }
        self.unmap(span);
        self.insert(span, kind, owner);
        self.join(span.start);
        self.join(span.end);
    }

    /// Unmaps whatever lies in this range.
    pub(super) fn unmap(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        self.cut(span.start);
        self.cut(span.end);
        while let Some((&start, _)) = self.by_start.range(span.start..span.end).next() {
            self.remove(start);
        }
    }

    /// Gives every page that is mapped in this range the kind that `change` makes of its present one.
    pub(super) fn change(&mut self, span: Span, change: impl Fn(Kind) -> Kind) {
        if span.is_empty() {
            return;
        }
        self.cut(span.start);
        self.cut(span.end);
        let pieces = self.owned_pieces(span);
        for Piece { region, owner } in &pieces {
            let kind = change(region.kind);
            if kind != region.kind {
                let owner = if region.kind.is_usable() {
                    *owner
                } else {
                    self.owner
                };
                self.remove(region.span.start);
                self.insert(region.span, kind, owner);
            }
        }
        for piece in &pieces {
            self.join(piece.region.span.start);
        }
        self.join(span.end);
    }

    /// mprotect(2): opens anonymous memory to some access, or closes it to all. Other kinds stay what they are, and
    /// what is not mapped stays so.
    pub(super) fn protect(&mut self, span: Span, usable: bool) {
        self.change(span, |kind| match kind {
            Kind::Anonymous { grows_down, .. } => Kind::Anonymous { usable, grows_down },
            other => other,
        });
    }

    /// mremap(2): shrinks, extends, moves, or copies the mapping of `remap.old`.
    pub(super) fn remap(&mut self, remap: Remap) {
        let Remap { old, new, keep_old } = remap;
        let moves = old.start != new.start;
        let kept = Span::of(old.start, old.bytes().min(new.bytes()));
        let pieces = self.owned_pieces(kept);
        let last_kind = self.at(old.end - 1).map(|region| region.kind);
        if !keep_old {
            self.unmap(old);
        }
        self.unmap(new);
        for Piece { region, owner } in pieces {
            let start = new.start + region.span.start.above(old.start);
            let kind = if moves {
                region.kind.moved(old.start, new.start)
            } else {
                region.kind
            };
            let owner = if region.kind.is_usable() {
                owner
            } else {
                self.owner
            };
            self.map_for(Span::of(start, region.span.bytes()), kind, owner);
        }
        if let Some(kind) = last_kind
            && new.bytes() > old.bytes()
        {
            let added = Span {
                start: new.start + old.bytes(),
                end: new.end,
            };
            let kind = if moves {
                kind.moved(old.start, new.start)
            } else {
                kind
            };
            self.map(added, kind.extension());
        }
    }

    /// shmdt(2): unmaps every part of the segment that was attached here.
    pub(super) fn detach(&mut self, base: Address) {
        let parts: Vec<Span> = self
            .iter()
            .filter(|region| region.kind == Kind::Attachment { base })
            .map(|region| region.span)
            .collect();
        for part in parts {
            self.unmap(part);
        }
    }

    /// Makes two regions of one that holds this address in its middle.
    fn cut(&mut self, at: Address) {
        if let Some((_, held)) = self.by_start.range_mut(..at).next_back()
            && held.end > at
        {
            let upper = *held;
            held.end = at;
            self.by_start.insert(at, upper);
        }
    }

    /// Makes one region of two that meet here and are alike.
    fn join(&mut self, at: Address) {
        let Some(&upper) = self.by_start.get(&at) else {
            return;
        };
        if let Some((_, held)) = self.by_start.range_mut(..at).next_back()
            && held.end == at
            && held.kind == upper.kind
            && held.owner == upper.owner
        {
            held.end = upper.end;
            self.by_start.remove(&at);
        }
    }

    fn insert(&mut self, span: Span, kind: Kind, owner: Owner) {
        let owner = owner.filter(|_| kind.is_usable());
        if kind.is_usable() {
            self.usable_bytes += span.bytes();
        } else if kind.is_reserved() {
            self.reserved_bytes += span.bytes();
        }
        if let Some(stack) = owner {
            *self.owned.entry(stack).or_default() += span.bytes();
        }
        let held = Held {
            end: span.end,
            kind,
            owner,
        };
        self.by_start.insert(span.start, held);
    }

    fn remove(&mut self, start: Address) {
        let Some(held) = self.by_start.remove(&start) else {
            return;
        };
        let bytes = held.end.above(start);
        if held.kind.is_usable() {
            self.usable_bytes -= bytes;
        } else if held.kind.is_reserved() {
            self.reserved_bytes -= bytes;
        }
        if let Some(stack) = held.owner
            && let Some(owned) = self.owned.get_mut(&stack)
        {
            *owned -= bytes;
        }
    }
}

fn piece(start: Address, held: &Held) -> Piece {
    Piece {
        region: Region {
            span: Span {
                start,
                end: held.end,
            },
            kind: held.kind,
        },
        owner: held.owner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn pages(start: u64, count: u64) -> Span {
        Span::of(Address(start * PAGE), count * PAGE)
    }

    fn shape(regions: &Regions) -> Vec<(u64, u64, Kind)> {
        regions
            .iter()
            .map(|region| {
                (
                    region.span.start.0 / PAGE,
                    region.span.end.0 / PAGE,
                    region.kind,
                )
            })
            .collect()
    }

    const RESERVED: Kind = Kind::anonymous(false);

    #[test]
    fn neighbours_of_one_kind_become_one_region() {
        let mut regions = Regions::default();
        regions.map(pages(10, 2), Kind::USABLE);
        regions.map(pages(14, 2), Kind::USABLE);
        assert_eq!(regions.usable_areas(), 2);
        regions.map(pages(12, 2), Kind::USABLE);
        assert_eq!(shape(&regions), [(10, 16, Kind::USABLE)]);
        assert_eq!(regions.usable_areas(), 1);
        assert_eq!(regions.usable_bytes(), 6 * PAGE);
    }

    #[test]
    fn unmapping_the_middle_leaves_both_ends() {
        let mut regions = Regions::default();
        regions.map(pages(10, 10), Kind::USABLE);
        regions.unmap(pages(12, 3));
        assert_eq!(
            shape(&regions),
            [(10, 12, Kind::USABLE), (15, 20, Kind::USABLE)]
        );
        regions.unmap(pages(0, 100));
        assert_eq!(shape(&regions), []);
        assert_eq!(regions.usable_bytes(), 0);
    }

    #[test]
    fn protecting_changes_anonymous_memory_only() {
        let mut regions = Regions::default();
        regions.map(pages(0, 2), Kind::Other);
        regions.map(pages(2, 4), Kind::USABLE);
        regions.map(pages(8, 2), RESERVED);
        regions.protect(pages(0, 5), false);
        assert_eq!(
            shape(&regions),
            [
                (0, 2, Kind::Other),
                (2, 5, RESERVED),
                (5, 6, Kind::USABLE),
                (8, 10, RESERVED)
            ]
        );
        regions.protect(pages(0, 20), true);
        assert_eq!(
            shape(&regions),
            [
                (0, 2, Kind::Other),
                (2, 6, Kind::USABLE),
                (8, 10, Kind::USABLE)
            ]
        );
    }

    #[test]
    fn a_mapping_that_moves_takes_its_parts_along() {
        let mut regions = Regions::default();
        regions.map(pages(0, 2), Kind::USABLE);
        regions.map(pages(2, 2), RESERVED);
        regions.remap(Remap {
            old: pages(0, 4),
            new: pages(100, 6),
            keep_old: false,
        });
        assert_eq!(
            shape(&regions),
            [(100, 102, Kind::USABLE), (102, 106, RESERVED)]
        );
    }

    #[test]
    fn an_attachment_is_detached_with_all_its_parts() {
        let mut regions = Regions::default();
        let kind = Kind::Attachment {
            base: Address(10 * PAGE),
        };
        regions.map(pages(10, 5), kind);
        regions.map(pages(12, 1), Kind::USABLE);
        regions.map(pages(15, 1), Kind::Other);
        regions.detach(Address(10 * PAGE));
        assert_eq!(
            shape(&regions),
            [(12, 13, Kind::USABLE), (15, 16, Kind::Other)]
        );
    }

    #[test]
    fn the_end_of_the_address_space_is_no_trap() {
        let mut regions = Regions::default();
        regions.map(Span::of(Address(u64::MAX - 10), u64::MAX), Kind::USABLE);
        regions.map(Span::of(Address(0), u64::MAX), RESERVED);
        regions.protect(Span::of(Address(0), u64::MAX), true);
        regions.remap(Remap {
            old: Span::of(Address(0), u64::MAX),
            new: Span::of(Address(5), u64::MAX),
            keep_old: true,
        });
        regions.remap(Remap {
            old: Span::of(Address(0), 0),
            new: Span::of(Address(0), 0),
            keep_old: false,
        });
        regions.unmap(Span::of(Address(1), u64::MAX));
    }

    /// A page-by-page model of the same thing, too plain to be wrong.
    struct Naive(Vec<Option<Kind>>);

    impl Naive {
        fn set(&mut self, start: usize, count: usize, kind: Option<Kind>) {
            self.0[start..start + count].fill(kind);
        }

        fn protect(&mut self, start: usize, count: usize, usable: bool) {
            for kind in self.0[start..start + count].iter_mut().flatten() {
                if let Kind::Anonymous { usable: is, .. } = kind {
                    *is = usable;
                }
            }
        }

        fn remap(&mut self, old: (usize, usize), new: (usize, usize), keep_old: bool) {
            let moves = old.0 != new.0;
            let last = self.0[old.0 + old.1 - 1];
            let mut content: Vec<Option<Kind>> = self.0[old.0..old.0 + old.1].to_vec();
            content.truncate(new.1);
            let by_place = |kind: Kind| match kind {
                Kind::Heap => Kind::USABLE,
                other => other,
            };
            if moves {
                content
                    .iter_mut()
                    .flatten()
                    .for_each(|kind| *kind = by_place(*kind));
            }
            content.resize(new.1, last.map(by_place));
            if !keep_old {
                self.set(old.0, old.1, None);
            }
            for (offset, kind) in content.into_iter().enumerate() {
                self.0[new.0 + offset] = kind;
            }
        }
    }

    #[test]
    fn random_calls_do_what_a_page_by_page_model_says() {
        const SPACE: usize = 300;
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        let kinds = [Kind::USABLE, RESERVED, Kind::Other, Kind::Heap];
        let mut regions = Regions::default();
        let mut naive = Naive(vec![None; SPACE]);
        for round in 0..20_000 {
            let start = random(SPACE - 40);
            let count = 1 + random(20);
            let span = pages(start as u64, count as u64);
            match random(4) {
                0 => {
                    let kind = kinds[random(kinds.len())];
                    regions.map(span, kind);
                    naive.set(start, count, Some(kind));
                }
                1 => {
                    regions.unmap(span);
                    naive.set(start, count, None);
                }
                2 => {
                    let usable = random(2) == 0;
                    regions.protect(span, usable);
                    naive.protect(start, count, usable);
                }
                _ => {
                    let new = if random(2) == 0 {
                        (start, 1 + random(40))
                    } else {
                        (random(SPACE - 40), 1 + random(40))
                    };
                    // mremap(2) refuses a new range that overlaps the old one, unless it stays in place.
                    if new.0 != start && new.0 < start + count && start < new.0 + new.1 {
                        continue;
                    }
                    let keep_old = new.0 != start && random(4) == 0;
                    regions.remap(Remap {
                        old: span,
                        new: pages(new.0 as u64, new.1 as u64),
                        keep_old,
                    });
                    naive.remap((start, count), new, keep_old);
                }
            }
            let mut seen = vec![None; SPACE];
            let mut last: Option<Region> = None;
            for region in regions.iter() {
                if let Some(last) = last {
                    assert!(
                        last.span.end <= region.span.start,
                        "overlap in round {round}"
                    );
                    assert!(
                        last.span.end < region.span.start || last.kind != region.kind,
                        "neighbours not joined in round {round}"
                    );
                }
                for page in region.span.start.0 / PAGE..region.span.end.0 / PAGE {
                    seen[usize::try_from(page).unwrap()] = Some(region.kind);
                }
                last = Some(region);
            }
            assert_eq!(seen, naive.0, "round {round}");
            let count = |wanted: Kind| {
                naive.0.iter().filter(|kind| **kind == Some(wanted)).count() as u64 * PAGE
            };
            assert_eq!(regions.usable_bytes(), count(Kind::USABLE), "round {round}");
            assert_eq!(regions.reserved_bytes(), count(RESERVED), "round {round}");
        }
    }
}
