//! A few endpoints that follow each other, and what tables of all need of them.

use std::sync::OnceLock;

use super::{Endpoint, columns::Columns, signs::Strip};
use crate::InstanceId;

/// A part of [`Endpoints`](super::Endpoints).
///
/// What a policy's tables need of it is kept with it once somebody has asked: a change among thousands is a change
/// of one part, and the others need not be gone through again.
#[derive(Debug, Default)]
pub(crate) struct Members {
    all: Vec<Endpoint>,
    /// The id of the first, for those who look for one.
    first: OnceLock<InstanceId>,
    weights: OnceLock<Weights>,
    per_weight: OnceLock<Box<[f32; MOST]>>,
    columns: OnceLock<Columns>,
    strip: OnceLock<Box<Strip>>,
}

/// What the [weights](Endpoint::weight) of many come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Weights {
    pub(crate) sum: u64,
    /// What each weighs, if that is the same; of none it is.
    pub(crate) each: Option<u64>,
    /// Whether all have all of their [shares](Endpoint::share).
    pub(crate) whole: bool,
}

/// More make a change dearer, fewer a copy of all parts' handles.
pub(super) const MOST: usize = 128;

impl Members {
    pub(super) fn new(all: Vec<Endpoint>) -> Self {
        Self {
            all,
            ..Self::default()
        }
    }

    #[inline]
    pub(crate) fn all(&self) -> &[Endpoint] {
        &self.all
    }

    /// To be changed: nothing that was known of them is known any more.
    pub(super) fn change(&mut self) -> &mut Vec<Endpoint> {
        self.first.take();
        self.weights.take();
        self.per_weight.take();
        self.columns.take();
        self.strip.take();
        &mut self.all
    }

    /// Whether the first, of which there must be one, comes before this id or has it.
    #[inline]
    pub(super) fn begins_by(&self, id: &InstanceId) -> bool {
        let first = self.first.get_or_init(|| self.all[0].id().clone());
        first <= id
    }

    /// Where the one of this id is, or should be.
    pub(super) fn seek(&self, id: &InstanceId) -> Result<usize, usize> {
        self.all.binary_search_by(|endpoint| endpoint.id().cmp(id))
    }

    pub(crate) fn weights(&self) -> Weights {
        let weights = || Weights::of_all(self.all.iter().map(Weights::of));
        *self.weights.get_or_init(weights)
    }

    /// One over what each weighs.
    pub(super) fn per_weight(&self) -> &[f32] {
        let each = self.per_weight.get_or_init(|| {
            let mut each = Box::new([0.0; MOST]);
            for (each, endpoint) in each.iter_mut().zip(&self.all) {
                *each = per_weight(endpoint);
            }
            each
        });
        &each[..self.all.len()]
    }

    /// How one of them is drawn by weight.
    pub(crate) fn columns(&self) -> &Columns {
        self.columns.get_or_init(|| {
            let weights = self.all.iter().map(Endpoint::weight);
            Columns::by(self.weights().sum, self.all.len(), weights)
        })
    }

    /// Where their signs are.
    pub(super) fn strip(&self) -> &Strip {
        self.strip.get_or_init(|| Box::new(Strip::of(&self.all)))
    }
}

/// One over what it weighs, which is at least one hundredth.
pub(super) fn per_weight(endpoint: &Endpoint) -> f32 {
    1.0 / endpoint.weight().max(1) as f32
}

impl Clone for Members {
    /// To be changed, as a rule: what is known of them is left behind.
    fn clone(&self) -> Self {
        Self::new(self.all.clone())
    }
}

impl Weights {
    fn of(one: &Endpoint) -> Self {
        Self {
            sum: one.weight(),
            each: Some(one.weight()),
            whole: one.share() == 100,
        }
    }

    pub(super) fn of_all(mut all: impl Iterator<Item = Self>) -> Self {
        let first = all.next().unwrap_or_default();
        all.fold(first, Self::and)
    }

    fn and(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            each: self.each.filter(|_| self.each == other.each),
            whole: self.whole && other.whole,
        }
    }

    /// Whether nobody weighs more than another.
    pub(crate) fn are_equal(&self) -> bool {
        self.each.is_some()
    }
}

impl Default for Weights {
    /// Of none.
    fn default() -> Self {
        Self {
            sum: 0,
            each: Some(0),
            whole: true,
        }
    }
}
