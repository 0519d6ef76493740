//! Which question to put to etcd next, so that nothing is missed and nothing told twice.

/// The next question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ask {
    /// All of it, as the cluster agrees on it.
    List,
    /// What changes, from this revision on.
    Watch(i64),
}

/// Whether revisions still count on from those we know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Epoch {
    Same,
    /// They went backwards: the cluster's data was replaced.
    New,
}

/// How much of the history of a cluster we know.
///
/// A watch goes on from the last *event's* revision, that revision included: one revision may come in
/// several messages, and the revision in a message's header may be ahead of what was delivered. A
/// fresh watch starts behind the list's revision; from the revision itself, etcd would serve it
/// out of its slow catch-up loop.
#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    /// The revision to watch from; older events are known.
    from: i64,
    /// The newest revision that is known to exist.
    seen: i64,
    trust: Trust,
}

/// Whether history can be gone on with from where we are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Trust {
    /// It is gone from here on, or there never was any.
    #[default]
    Gone,
    /// A member did not have it: whether the cluster has, a list tells.
    Doubt,
    Sure,
}

impl Cursor {
    pub(super) fn next(&self) -> Ask {
        match self.trust {
            Trust::Sure => Ask::Watch(self.from),
            Trust::Doubt | Trust::Gone => Ask::List,
        }
    }

    /// Up to before this revision, everything is known.
    pub(super) fn from(&self) -> i64 {
        self.from
    }

    /// The newest revision known, to be given to [`listed`](Self::listed) after a list that is
    /// asked for now.
    pub(super) fn seen(&self) -> i64 {
        self.seen
    }

    /// A list was answered, as of `revision`; before it was asked for, `seen` was known to exist.
    pub(super) fn listed(&mut self, revision: i64, seen: i64) -> Epoch {
        self.trust = Trust::Sure;
        // The cluster agrees on what it lists, so what is older than what was seen is another past.
        if revision < seen {
            self.from = revision + 1;
            self.seen = revision;
            return Epoch::New;
        }
        self.from = self.from.max(revision + 1);
        self.seen = self.seen.max(revision);
        Epoch::Same
    }

    /// A watch was opened on a member whose history goes as far as `revision`; says whether that is
    /// as far as what we know.
    ///
    /// A member that lags and one whose data was wiped look alike: only a list can tell.
    pub(super) fn opened(&mut self, revision: i64) -> bool {
        if revision >= self.seen {
            return true;
        }
        self.doubted();
        false
    }

    /// A member says that it does not have what we know.
    pub(super) fn doubted(&mut self) {
        if self.trust == Trust::Sure {
            self.trust = Trust::Doubt;
        }
    }

    /// The cluster agrees on a list as of `revision`, asked for when `seen` was known to exist; says whether
    /// it was only the member that was behind, so that the history we want is still there.
    pub(super) fn resumes(&mut self, revision: i64, seen: i64) -> bool {
        if self.trust == Trust::Doubt && revision >= seen {
            self.trust = Trust::Sure;
            return true;
        }
        false
    }

    /// An event came; says whether it can be news.
    pub(super) fn heard(&mut self, mod_revision: i64) -> bool {
        if mod_revision < self.from {
            return false;
        }
        self.from = mod_revision;
        self.seen = self.seen.max(mod_revision);
        true
    }

    /// The history from here on is gone.
    pub(super) fn compacted(&mut self) {
        self.trust = Trust::Gone;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fresh_watch_starts_behind_the_list() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.next(), Ask::List);

        assert_eq!(cursor.listed(7, cursor.seen()), Epoch::Same);

        assert_eq!(cursor.next(), Ask::Watch(8));
    }

    #[test]
    fn a_resumed_watch_asks_for_the_last_revision_again() {
        let mut cursor = Cursor::default();
        cursor.listed(7, 0);

        assert!(cursor.heard(9));
        assert!(cursor.heard(9), "the rest of the same revision");

        assert_eq!(cursor.next(), Ask::Watch(9));
        assert!(!cursor.heard(8), "a replay");
    }

    #[test]
    fn a_compaction_leads_to_a_list() {
        let mut cursor = Cursor::default();
        cursor.listed(7, 0);

        cursor.compacted();
        assert_eq!(cursor.next(), Ask::List);
        cursor.listed(20, cursor.seen());

        assert_eq!(cursor.next(), Ask::Watch(21));
    }

    #[test]
    fn a_member_that_is_behind_is_not_believed_before_a_list() {
        let mut cursor = Cursor::default();
        cursor.listed(100, 0);

        assert!(!cursor.opened(6));
        assert_eq!(cursor.next(), Ask::List);

        assert_eq!(cursor.listed(101, cursor.seen()), Epoch::Same, "it lagged");
        assert_eq!(cursor.next(), Ask::Watch(102));
    }

    #[test]
    fn where_only_a_member_was_behind_history_is_gone_on_with() {
        let mut cursor = Cursor::default();
        cursor.listed(100, 0);
        cursor.heard(120);
        cursor.opened(110);

        assert!(cursor.resumes(150, cursor.seen()));
        assert_eq!(cursor.next(), Ask::Watch(120), "nothing is passed over");

        cursor.opened(110);
        assert!(!cursor.resumes(115, cursor.seen()), "another past");
        cursor.compacted();
        assert!(!cursor.resumes(150, cursor.seen()), "history is gone");
        assert_eq!(cursor.next(), Ask::List);
    }

    #[test]
    fn a_list_that_is_behind_is_another_past() {
        let mut cursor = Cursor::default();
        cursor.listed(100, 0);
        cursor.opened(6);

        assert_eq!(cursor.listed(6, cursor.seen()), Epoch::New);

        assert_eq!(cursor.next(), Ask::Watch(7));
        assert!(cursor.opened(6));
    }

    #[test]
    fn a_list_that_was_overtaken_by_events_is_no_other_past() {
        let mut cursor = Cursor::default();
        cursor.listed(10, 0);
        let seen = cursor.seen();
        cursor.heard(12);

        assert_eq!(cursor.listed(11, seen), Epoch::Same);

        assert_eq!(cursor.next(), Ask::Watch(12));
    }

    proptest! {
        #[test]
        fn within_one_past_nothing_is_ever_asked_for_that_was_skipped(
            steps in prop::collection::vec((0..6u8, 0..4i64), 0..60)
        ) {
            let mut cursor = Cursor::default();
            // What the cluster has, and up to where all of it has reached us.
            let (mut head, mut told) = (1i64, 0i64);

            for (step, by) in steps {
                match step {
                    0 => head += by,
                    1 => {
                        prop_assert_eq!(cursor.listed(head, cursor.seen()), Epoch::Same);
                        told = head;
                    }
                    2 => if let Ask::Watch(from) = cursor.next() {
                        prop_assert!(from <= told + 1, "watch from {from}, told {told}");
                        let until = (from + by).min(head);
                        for revision in from..=until {
                            prop_assert!(cursor.heard(revision));
                        }
                        told = told.max(until);
                    },
                    3 => cursor.compacted(),
                    // A member that is behind, and a list that says that it is no more than that.
                    4 => drop(cursor.opened(cursor.seen() - by)),
                    _ => drop(cursor.resumes(head, cursor.seen())),
                }
            }
        }
    }
}
