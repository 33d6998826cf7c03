//! What must hold of a sound heap, and whether it does: what the figures' confidence rests on.

use super::examine::Examiner;
use super::examine::Walked;
use super::mapped::MappedFound;
use super::sums;
use crate::event::ArenaFigures;
use crate::event::CheckOutcome;
use crate::event::HeapCheck;

impl Examiner<'_> {
    /// All checks.
    pub(super) fn checks(
        &self,
        walked: &[Walked],
        mapped: &MappedFound,
        total: &ArenaFigures,
        is_still: bool,
    ) -> Vec<HeapCheck> {
        let standing = self.standing;
        let in_the_middle = walked.iter().any(|arena| arena.state.is_locked);
        let judge = |holds: bool| match (holds, is_still && !in_the_middle) {
            (true, _) => CheckOutcome::Holds,
            (false, true) => CheckOutcome::Fails,
            (false, false) => CheckOutcome::Moving,
        };
        let check = |what: &str, outcome, detail| HeapCheck {
            what: what.to_owned(),
            outcome,
            detail,
        };
        let mut checks = vec![check(
            "the list of arenas leads back to its beginning",
            // Read while the program stood still.
            if standing.arenas_problem.is_none() {
                CheckOutcome::Holds
            } else {
                CheckOutcome::Fails
            },
            standing
                .arenas_problem
                .clone()
                .or_else(|| Some(format!("{} arenas", walked.len()))),
        )];
        let broken = walked.iter().find_map(|arena| arena.problem.clone());
        let too_much = walked
            .iter()
            .find_map(Walked::too_much)
            .or_else(|| sums::is_saturated(total).then(|| "a sum is more than can be".to_owned()));
        let broken = broken.or(too_much);
        let adds_up = total.not_found_bytes == 0 && broken.is_none();
        let missing = || {
            let bytes = total.not_found_bytes;
            format!("{bytes} of {} bytes were not found", total.system_bytes)
        };
        checks.push(check(
            "chunks lead from one to the next, and add up to what the arenas obtained",
            judge(adds_up),
            match (broken, adds_up) {
                (Some(why), _) => Some(format!("{why}; {}", missing())),
                (None, true) => Some(format!("{} bytes", total.system_bytes)),
                (None, false) => Some(missing()),
            },
        ));
        let met = walked
            .iter()
            .map(|arena| arena.found.freed_met)
            .fold(0, u64::saturating_add);
        let freed = self.freed.len() as u64;
        let lists_hold =
            met == freed && standing.fast.problem.is_none() && !self.freed.has_doubles();
        checks.push(check(
            "every chunk in thread caches and fast bins was met once",
            judge(lists_hold),
            Some(match &standing.fast.problem {
                Some(problem) => problem.clone(),
                None if self.freed.has_doubles() => "a chunk is in two lists".to_owned(),
                None => format!("{met} of {freed}"),
            }),
        ));
        let odd = walked
            .iter()
            .map(|arena| arena.found.odd_free_chunks)
            .fold(0, u64::saturating_add);
        let first_odd = walked.iter().find_map(|arena| arena.found.first_odd);
        checks.push(check(
            "free chunks repeat their size at their end, and have links",
            judge(odd == 0),
            first_odd.map(|at| format!("{odd} do not, the first at {at:#x}")),
        ));
        checks.push(match standing.mapped {
            Some(expected) => check(
                "chunks that are mappings were found, as many as malloc counts",
                judge(mapped.chunks == expected.chunks && mapped.bytes == expected.bytes),
                Some(format!(
                    "{} of {}, {} of {} bytes",
                    mapped.chunks, expected.chunks, mapped.bytes, expected.bytes
                )),
            ),
            None => check(
                "chunks that are mappings were found, as many as malloc counts",
                CheckOutcome::Unknown,
                Some("malloc's parameters were not found".to_owned()),
            ),
        });
        // Before 2.26 there are none, and they can be switched off.
        let may_have_caches = standing
            .settings
            .is_none_or(|settings| settings.tcache_count.is_some_and(|count| count != 0));
        if may_have_caches {
            let caches = &standing.caches;
            let is_known = standing.threads_are_known && caches.found > 0;
            checks.push(check(
                "thread caches were found",
                match (&caches.problem, is_known) {
                    (Some(_), _) => judge(false),
                    (None, true) => CheckOutcome::Holds,
                    (None, false) => CheckOutcome::Unknown,
                },
                Some(match &caches.problem {
                    Some(problem) => {
                        format!(
                            "in {} of {} threads; {problem}",
                            caches.found, caches.threads
                        )
                    }
                    None if standing.threads_are_known => format!(
                        "in {} of {} threads; the others have none, or it hides",
                        caches.found, caches.threads
                    ),
                    None => "threads could not be asked; cached chunks count as in use".to_owned(),
                }),
            ));
        }
        checks
    }
}
