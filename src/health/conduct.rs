//! What an endpoint's calls have shown lately, in one word that every caller reads and writes without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How an endpoint is treated, and how its last calls ended.
///
/// A success of an endpoint that has done nothing wrong costs one load.
#[derive(Debug)]
pub(crate) struct Conduct(AtomicU64);

/// Which calls an endpoint is given. Only the channel's task says so, but for [`Mode::Barred`], which the
/// caller who sees the last straw sets at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    /// Any.
    Free,
    /// Any, though it fails: there are too few others.
    Spared,
    /// None.
    Barred,
    /// One at a time, until enough have succeeded.
    Trial,
}

/// What follows from the end of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Turn {
    /// Nothing.
    None,
    /// It has failed so often in a row that it is barred from now on.
    Tripped,
    /// It has done so well in a row that it may be free.
    Proved,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Word {
    mode: Mode,
    /// A call is on trial.
    pending: bool,
    /// So many failures in a row are too many; 0: there never are.
    limit: u16,
    failed: u16,
    /// Calls on trial that were begun, that were answered at all, and that succeeded in a row; a success of
    /// one that is spared counts as well.
    tries: u8,
    answers: u8,
    proven: u8,
    /// How much of its good name is lost, of 65,536.
    blame: u16,
}

/// So many calls in a row must succeed before an endpoint is free again. Four bits hold it.
pub(crate) const PROOF: u8 = 3;

/// A good name in full.
const FULL: u32 = 256;

impl Conduct {
    /// Free, until so many failures in a row; 0 for ever.
    pub(crate) fn new(limit: u16) -> Self {
        Self(AtomicU64::new(Word::free(limit).pack()))
    }

    /// It is another's, and as new.
    pub(crate) fn begin_anew(&self, limit: u16) {
        self.0.store(Word::free(limit).pack(), Relaxed);
    }

    /// From now on. Where that is something new, what was shown before is forgotten, and so is the blame of
    /// one that is free.
    pub(crate) fn treat(&self, mode: Mode, limit: u16) {
        self.update(|word| {
            if word.mode == mode {
                return Word { limit, ..word };
            }
            Word {
                mode,
                blame: if mode == Mode::Free { 0 } else { word.blame },
                ..Word::free(limit)
            }
        });
    }

    pub(crate) fn mode(&self) -> Mode {
        self.word().mode
    }

    /// Whether it is given calls as the policy likes.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.mode(), Mode::Free | Mode::Spared)
    }

    /// Whether nothing is held against it.
    #[inline]
    pub(crate) fn is_spotless(&self) -> bool {
        self.0.load(Relaxed) & !LIMIT == 0
    }

    /// Begins a call on trial, if one is wanted now.
    pub(crate) fn try_one(&self) -> bool {
        let mut begun = false;
        self.update(|mut word| {
            begun = word.mode == Mode::Trial && !word.pending && word.tries < PROOF;
            if begun {
                word.pending = true;
                word.tries += 1;
            }
            word
        });
        begun
    }

    /// A call on trial shows that the server answers; the next may begin, were this one to take for ever.
    pub(crate) fn answered(&self) {
        self.update(|mut word| {
            // A late one says nothing about what came after the trial.
            if word.mode == Mode::Trial {
                word.pending = false;
                word.answers = (word.answers + 1).min(PROOF);
            }
            word
        });
    }

    /// A call on trial ended and showed nothing. The next may begin, but it is not made up for: one that
    /// never shows anything would be given every call of a caller who asks one at a time.
    pub(crate) fn undecided(&self) {
        self.update(|mut word| {
            word.pending = false;
            word
        });
    }

    /// A call on trial never left.
    pub(crate) fn untried(&self) {
        self.update(|mut word| {
            word.pending = false;
            word.tries = word.tries.saturating_sub(1);
            word
        });
    }

    /// The calls on trial take long. Whether any was answered; if not, others are tried.
    pub(crate) fn try_anew(&self) -> bool {
        let answered = self.word().answers > 0;
        if !answered {
            self.update(|mut word| {
                word.pending = false;
                word.tries = 0;
                word
            });
        }
        answered
    }

    pub(crate) fn succeeded(&self, on_trial: bool) -> Turn {
        // Nearly every call ends here.
        if self.is_spotless() {
            return Turn::None;
        }
        let mut turn = Turn::None;
        self.update(|mut word| {
            turn = Turn::None;
            word.failed = 0;
            word.blame -= word.blame.div_ceil(8);
            let tried = on_trial && word.mode == Mode::Trial;
            word.pending &= !tried;
            if (tried || word.mode == Mode::Spared) && word.proven < PROOF {
                word.proven += 1;
                if word.proven == PROOF {
                    turn = Turn::Proved;
                }
            }
            word
        });
        turn
    }

    pub(crate) fn failed(&self, on_trial: bool) -> Turn {
        let mut turn = Turn::None;
        self.update(|mut word| {
            word.failed = word.failed.saturating_add(1);
            word.proven = 0;
            word.blame += ((u32::from(u16::MAX - word.blame)) * 3 / 10) as u16;
            turn = match word.mode {
                Mode::Free if word.limit > 0 && word.failed >= word.limit => Turn::Tripped,
                Mode::Trial if on_trial => Turn::Tripped,
                _ => Turn::None,
            };
            if turn == Turn::Tripped {
                word.mode = Mode::Barred;
            }
            word
        });
        turn
    }

    /// Failures since the last success.
    pub(crate) fn failed_in_a_row(&self) -> u16 {
        self.word().failed
    }

    /// How good its name is, of 256; never nothing.
    pub(crate) fn name(&self) -> u32 {
        let lost = u32::from(self.word().blame) / FULL;
        FULL - lost.min(FULL - 4)
    }

    /// It lost a comparison, and perhaps did for a while: blame fades, or it would never be tried again.
    pub(crate) fn lost(&self, a_while: bool) {
        let blame = self.word().blame;
        if blame > 0 {
            self.update(|mut word| {
                word.blame -= word.blame.div_ceil(if a_while { 4 } else { 256 });
                word
            });
        }
    }

    /// So much of the blame is left, of 1.
    pub(crate) fn fades(&self, left: impl Fn() -> f32) {
        if self.word().blame > 0 {
            let left = left();
            self.update(|word| Word {
                blame: (f32::from(word.blame) * left) as u16,
                ..word
            });
        }
    }

    fn word(&self) -> Word {
        Word::unpack(self.0.load(Relaxed))
    }

    fn update(&self, mut with: impl FnMut(Word) -> Word) {
        let mut with = |bits| Some(with(Word::unpack(bits)).pack());
        // It never declines, so it never fails.
        let _ = self.0.fetch_update(Relaxed, Relaxed, &mut with);
    }
}

/// The bits of the limit, which say nothing about the calls.
const LIMIT: u64 = 0xffff << 16;

impl Word {
    /// Free, with nothing shown yet.
    fn free(limit: u16) -> Self {
        Self {
            mode: Mode::Free,
            pending: false,
            limit,
            failed: 0,
            tries: 0,
            answers: 0,
            proven: 0,
            blame: 0,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.failed)
            | u64::from(self.limit) << 16
            | u64::from(self.blame) << 32
            | u64::from(self.proven & 0xf) << 48
            | u64::from(self.tries & 0xf) << 52
            | u64::from(self.answers & 0xf) << 56
            | (self.mode as u64) << 60
            | u64::from(self.pending) << 63
    }

    fn unpack(bits: u64) -> Self {
        let four = |from: u32| (bits >> from) as u8 & 0xf;
        Self {
            failed: bits as u16,
            limit: (bits >> 16) as u16,
            blame: (bits >> 32) as u16,
            proven: four(48),
            tries: four(52),
            answers: four(56),
            mode: match four(60) & 0x7 {
                0 => Mode::Free,
                1 => Mode::Spared,
                2 => Mode::Barred,
                _ => Mode::Trial,
            },
            pending: bits >> 63 == 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_straw_bars_at_once_and_only_once() {
        let conduct = Conduct::new(3);

        let turns = [0; 5].map(|_| conduct.failed(false));

        use Turn::{None, Tripped};
        assert_eq!(turns, [None, None, Tripped, None, None]);
        assert_eq!((conduct.mode(), conduct.is_open()), (Mode::Barred, false));
        assert_eq!(conduct.failed_in_a_row(), 5);
    }

    #[test]
    fn a_success_between_failures_keeps_it_free() {
        let conduct = Conduct::new(3);

        for _ in 0..100 {
            conduct.failed(false);
            conduct.failed(false);
            conduct.succeeded(false);
        }

        assert_eq!(conduct.mode(), Mode::Free);
    }

    #[test]
    fn without_a_limit_nothing_bars() {
        let conduct = Conduct::new(0);

        let turns = [0; 1000].map(|_| conduct.failed(false));

        assert_eq!(turns, [Turn::None; 1000]);
    }

    #[test]
    fn a_trial_is_one_call_at_a_time_until_enough_succeed() {
        let conduct = Conduct::new(3);
        conduct.treat(Mode::Trial, 3);

        for n in 1..=PROOF {
            assert!(conduct.try_one() && !conduct.try_one());
            let turn = conduct.succeeded(true);
            assert_eq!(turn == Turn::Proved, n == PROOF);
        }

        assert!(!conduct.try_one(), "enough were tried");
    }

    #[test]
    fn a_call_on_trial_that_never_left_is_made_up_for_and_a_long_one_holds_up_nobody() {
        let conduct = Conduct::new(3);
        conduct.treat(Mode::Trial, 3);

        for _ in 0..10 {
            assert!(conduct.try_one());
            conduct.untried();
        }
        for _ in 0..PROOF {
            assert!(!conduct.try_anew());
            assert!(conduct.try_one());
        }
        conduct.answered();

        assert!(conduct.try_anew(), "an answer is better than nothing");
    }

    #[test]
    fn one_failure_ends_a_trial_and_calls_from_before_it_do_not_count() {
        let conduct = Conduct::new(3);
        conduct.treat(Mode::Trial, 3);
        assert!(conduct.try_one());

        assert_eq!(conduct.failed(false), Turn::None);
        assert_eq!(conduct.succeeded(false), Turn::None);
        assert_eq!(conduct.failed(true), Turn::Tripped);

        assert_eq!(conduct.mode(), Mode::Barred);
    }

    #[test]
    fn one_that_is_spared_takes_calls_and_proves_itself_by_them() {
        let conduct = Conduct::new(3);
        conduct.treat(Mode::Spared, 3);

        for _ in 0..100 {
            assert_eq!(conduct.failed(false), Turn::None);
        }
        assert!(conduct.is_open());
        let turns = [0; PROOF as usize].map(|_| conduct.succeeded(false));

        assert_eq!(turns.last(), Some(&Turn::Proved));
    }

    #[test]
    fn a_good_name_is_lost_sooner_than_it_is_won() {
        let conduct = Conduct::new(0);
        assert_eq!(conduct.name(), 256);

        for _ in 0..5 {
            conduct.failed(false);
        }
        let worst = conduct.name();
        for _ in 0..5 {
            conduct.succeeded(false);
        }

        assert!((40..50).contains(&worst), "{worst}");
        assert!((130..150).contains(&conduct.name()), "{}", conduct.name());
        for _ in 0..100 {
            conduct.succeeded(false);
        }
        assert_eq!(conduct.name(), 256);
        assert_eq!(conduct.word(), Conduct::new(0).word());
    }

    #[test]
    fn a_success_after_a_silence_finds_old_blame_faded() {
        let conduct = Conduct::new(0);
        for _ in 0..5 {
            conduct.failed(false);
        }

        conduct.fades(|| 0.1);

        assert!((230..250).contains(&conduct.name()), "{}", conduct.name());
    }

    #[test]
    fn blame_fades_with_lost_comparisons() {
        let conduct = Conduct::new(0);
        for _ in 0..50 {
            conduct.failed(false);
        }
        let worst = conduct.name();

        for _ in 0..1_000 {
            conduct.lost(false);
        }

        assert!(worst <= 6, "{worst}");
        assert!(conduct.name() > 240, "{}", conduct.name());
    }
}
