//! Arithmetic of spans of sequences. Pure.

use std::collections::BTreeMap;

/// The end of a span that reaches to the newest message, whichever that is. Also the largest rowid of SQLite.
pub(super) const OPEN: u64 = i64::MAX as u64;

/// From `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub first: u64,
    pub last: u64,
}

impl Span {
    pub fn new(first: u64, last: u64) -> Span {
        Span { first, last }
    }

    /// How many sequences it covers; an open span is to be clipped first.
    pub fn count(self) -> u64 {
        if self.first > self.last { 0 } else { self.last - self.first + 1 }
    }

    pub fn contains(self, sequence: u64) -> bool {
        self.first <= sequence && sequence <= self.last
    }

    /// What both cover.
    pub fn overlap(self, other: Span) -> Option<Span> {
        let both = Span::new(self.first.max(other.first), self.last.min(other.last));
        (both.first <= both.last).then_some(both)
    }
}

/// What is left of a span when a piece of it is cut out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub removed: Span,
    pub left: Option<Span>,
    pub right: Option<Span>,
}

/// Cuts `hole` out of `span`; `None` when they do not meet. `hole` is not open.
pub(super) fn cut(span: Span, hole: Span) -> Option<Cut> {
    let removed = span.overlap(hole)?;
    let left = (span.first < removed.first).then(|| Span::new(span.first, removed.first - 1));
    // What is left of an open span stays open, even if it is empty at the moment.
    let right = (removed.last < span.last).then(|| Span::new(removed.last + 1, span.last));
    Some(Cut { removed, left, right })
}

/// Sorted sequences as spans; repeats are taken once.
pub(super) fn runs(sorted: &[u64]) -> Vec<Span> {
    let mut runs: Vec<Span> = Vec::new();
    for sequence in sorted.iter().copied() {
        match runs.last_mut() {
            Some(run) if sequence <= run.last => {}
            Some(run) if run.last + 1 == sequence => run.last = sequence,
            _ => runs.push(Span::new(sequence, sequence)),
        }
    }
    runs
}

/// A set of sequences, kept as spans that neither overlap nor touch.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    by_first: BTreeMap<u64, u64>,
    count: u64,
}

impl Ranges {
    /// How many sequences are in it.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn insert(&mut self, span: Span) {
        let (mut first, mut last) = (span.first, span.last);
        // All that overlap or touch it, from the right: they become one with it.
        while let Some((other_first, other_last)) =
            self.by_first.range(..=last.saturating_add(1)).next_back().map(|(f, l)| (*f, *l))
            && other_last.saturating_add(1) >= first
        {
            self.by_first.remove(&other_first);
            self.count -= Span::new(other_first, other_last).count();
            (first, last) = (first.min(other_first), last.max(other_last));
        }
        self.by_first.insert(first, last);
        self.count += Span::new(first, last).count();
    }

    /// Puts in all of another one.
    pub fn extend(&mut self, other: Ranges) {
        for (first, last) in other.by_first {
            self.insert(Span::new(first, last));
        }
    }

    /// The lowest sequence.
    pub fn first(&self) -> Option<u64> {
        self.by_first.first_key_value().map(|(first, _)| *first)
    }

    /// The span that a sequence lies in.
    pub fn at(&self, sequence: u64) -> Option<Span> {
        let (first, last) = self.by_first.range(..=sequence).next_back()?;
        (*last >= sequence).then(|| Span::new(*first, *last))
    }

    /// The first span that begins after a sequence.
    pub fn after(&self, sequence: u64) -> Option<Span> {
        let (first, last) = self.by_first.range(sequence.checked_add(1)?..).next()?;
        Some(Span::new(*first, *last))
    }

    /// Takes out all that `hole` covers.
    pub fn remove(&mut self, hole: Span) {
        while let Some(span) = self.by_first.range(..=hole.last).next_back().map(|(f, l)| Span::new(*f, *l))
            && let Some(cut) = cut(span, hole)
        {
            self.by_first.remove(&span.first);
            self.count -= cut.removed.count();
            for rest in [cut.left, cut.right].into_iter().flatten() {
                self.by_first.insert(rest.first, rest.last);
            }
        }
    }

    /// Takes at most `count_max` sequences from the lowest span.
    pub fn take_first(&mut self, count_max: u64) -> Option<Span> {
        let (first, last) = self.by_first.pop_first()?;
        let end = last.min(first.saturating_add(count_max.saturating_sub(1)));
        if end < last {
            self.by_first.insert(end + 1, last);
        }
        let taken = Span::new(first, end);
        self.count -= taken.count();
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_hole_in_the_middle_leaves_two_pieces() {
        let cut = cut(Span::new(1, 9), Span::new(4, 5)).unwrap();
        assert_eq!((cut.left, cut.right), (Some(Span::new(1, 3)), Some(Span::new(6, 9))));
    }

    #[test]
    fn an_open_span_stays_open_when_all_that_is_there_is_cut_off() {
        let cut = cut(Span::new(3, OPEN), Span::new(3, 7)).unwrap();
        assert_eq!((cut.left, cut.right), (None, Some(Span::new(8, OPEN))));
    }

    #[test]
    fn sorted_sequences_become_runs() {
        assert_eq!(runs(&[1, 2, 2, 3, 7, 9, 10]), [Span::new(1, 3), Span::new(7, 7), Span::new(9, 10)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn ranges_are_the_set_of_what_was_put_in_and_not_taken_out(
            spans in prop::collection::vec((0_u64..60, 0_u64..9, any::<bool>()), 0..30),
            take: u8,
        ) {
            let mut ranges = Ranges::default();
            let mut model = BTreeSet::new();
            for (first, length, is_put_in) in spans {
                let span = Span::new(first, first + length);
                if is_put_in {
                    ranges.insert(span);
                    model.extend(first..=first + length);
                } else {
                    ranges.remove(span);
                    model.retain(|sequence| !span.contains(*sequence));
                }
                prop_assert_eq!((ranges.count(), ranges.first()), (model.len() as u64, model.first().copied()));
                for place in 0..70 {
                    let found = ranges.at(place);
                    prop_assert_eq!(found.is_some(), model.contains(&place));
                    prop_assert!(found.is_none_or(|span| span.contains(place)));
                    let next = ranges.after(place).map(|span| span.first);
                    let first = |it: &u64| *it > place && !model.contains(&(it - 1));
                    prop_assert_eq!(next, model.iter().copied().find(first));
                }
            }
            let mut taken = Vec::new();
            while let Some(span) = ranges.take_first(u64::from(take) + 1) {
                prop_assert!(span.count() <= u64::from(take) + 1);
                taken.extend(span.first..=span.last);
            }
            prop_assert_eq!(taken, model.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(ranges.count(), 0);
        }
    }
}
