//! Many endpoints in order: cheap to copy, cheap to change, and quick to look one up by its place.

use std::{
    fmt,
    ops::Index,
    sync::{Arc, OnceLock},
};

use super::{
    Endpoint, Weights,
    members::{MOST, Members, per_weight},
    signs::Chart,
};
use crate::InstanceId;

/// Endpoints in the order of their ids.
///
/// Clones share what they hold: one change to a set of any size copies about a hundred endpoints, and the
/// clones that were made before it stay as they were.
///
/// ```
/// use tonic_fleet::{Endpoint, Endpoints, Instance};
///
/// let ids = ["b", "a"].map(|id| Instance::at("10.0.0.1:1")?.id(id).map(Endpoint::idle));
/// let endpoints = ids.into_iter().collect::<Result<Endpoints, _>>()?;
/// assert_eq!(endpoints.len(), 2);
/// assert_eq!(endpoints[0].id().as_str(), "a");
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Endpoints {
    spine: Arc<Spine>,
}

#[derive(Clone, Default)]
struct Spine {
    chunks: Vec<Chunk>,
    len: usize,
    /// How many chunks there are for each endpoint, of 2^32.
    dense: u64,
    /// Where their signs are, once somebody has asked: what is said of them anew changes nothing about that.
    chart: OnceLock<Chart>,
    /// One over what each weighs, once somebody has asked.
    per_weight: OnceLock<Arc<[f32]>>,
}

/// Never empty.
#[derive(Clone)]
struct Chunk {
    /// The place of its first.
    start: usize,
    members: Arc<Members>,
}

/// A chunk, and where in it one of some id is or should be.
type Seat = (usize, Result<usize, usize>);

/// In how many chunks around where it should be a place is looked for first.
const NEAR: usize = 8;

impl Endpoints {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.spine.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one at this place.
    pub fn get(&self, place: usize) -> Option<&Endpoint> {
        let chunk = self.spine.chunks.get(self.spine.chunk_of(place))?;
        chunk.members.all().get(place - chunk.start)
    }

    /// The one of this id.
    pub fn find(&self, id: &InstanceId) -> Option<&Endpoint> {
        let (at, found) = self.spine.seek(id);
        // Looked at first: where there is none, there is no chunk either.
        let place = found.ok()?;
        Some(&self.spine.chunks[at].members.all()[place])
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> + Clone {
        self.spine
            .chunks
            .iter()
            .flat_map(|chunk| chunk.members.all().iter())
    }

    /// All in parts, each of which keeps what tables need of it from one change of the others to the next.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Members> {
        self.spine.chunks.iter().map(|chunk| &*chunk.members)
    }

    /// All, beginning at this place and ending before it.
    pub(crate) fn iter_from(&self, place: usize) -> impl Iterator<Item = &Endpoint> {
        self.iter().skip(place).chain(self.iter().take(place))
    }

    /// What their weights come to: cheap where little has changed since it was last asked.
    pub(crate) fn weights(&self) -> Weights {
        Weights::of_all(self.parts().map(Members::weights))
    }

    /// One over what each weighs, by their places, as near as a policy needs it.
    pub(crate) fn per_weight(&self) -> &Arc<[f32]> {
        let each = || self.parts().flat_map(Members::per_weight).copied();
        let all = || each().collect::<Vec<_>>().into();
        self.spine.per_weight.get_or_init(all)
    }

    /// Where their signs are.
    pub(super) fn chart(&self) -> &Chart {
        self.spine.chart.get_or_init(|| Chart::of(self))
    }

    /// Whether nothing was changed between the two, told at a glance: clones are, equals need not be.
    pub(crate) fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.spine, &other.spine)
    }

    /// Adds an endpoint, or takes it in place of the one that has its id, unless that is the same.
    pub(crate) fn put(&mut self, endpoint: Endpoint) {
        let seat = self.spine.seek(endpoint.id());
        self.put_at(seat, endpoint);
    }

    /// The same for one that was at this place when it was last put; where it is now.
    pub(crate) fn put_again(&mut self, endpoint: Endpoint, place: usize) -> usize {
        let seat = self.spine.seek_at(place, endpoint.id());
        self.put_at(seat, endpoint)
    }

    fn put_at(&mut self, (at, found): Seat, endpoint: Endpoint) -> usize {
        let chunk = self.spine.chunks.get(at);
        let (Ok(here) | Err(here)) = found;
        let place = chunk.map_or(0, |chunk| chunk.start) + here;
        let known = chunk.filter(|_| found.is_ok());
        if known.is_some_and(|chunk| chunk.members.all()[here].is_clone_of(&endpoint)) {
            return place;
        }
        let spine = Arc::make_mut(&mut self.spine);
        if spine.chunks.is_empty() {
            spine.chunks.push(Chunk {
                start: 0,
                members: Arc::default(),
            });
        }
        let members = spine.chunks[at].change();
        match found {
            Ok(_) => {
                if !Arc::ptr_eq(members[here].vitals(), endpoint.vitals()) {
                    spine.chart.take();
                }
                if let Some(all) = spine.per_weight.get_mut()
                    && all[place] != per_weight(&endpoint)
                {
                    Arc::make_mut(all)[place] = per_weight(&endpoint);
                }
                members[here] = endpoint;
            }
            Err(_) => {
                members.insert(here, endpoint);
                if members.len() > MOST {
                    spine.split(at);
                }
                spine.renumber(at);
            }
        }
        place
    }

    /// Takes out the one of this id, if there is one.
    pub(crate) fn remove(&mut self, id: &InstanceId) {
        let (at, Ok(place)) = self.spine.seek(id) else {
            return;
        };
        let spine = Arc::make_mut(&mut self.spine);
        let members = spine.chunks[at].change();
        members.remove(place);
        if members.is_empty() {
            spine.chunks.remove(at);
        } else {
            spine.join(at);
        }
        spine.renumber(at);
    }
}

impl Spine {
    /// The chunk that this place is in, if it is in any.
    ///
    /// All are about as long as each other: it is near where it would be if they were, and seldom has to be looked
    /// for among all.
    #[inline]
    fn chunk_of(&self, place: usize) -> usize {
        if self.chunks.len() <= NEAR {
            return self.chunk_of_all(place);
        }
        let about = ((place as u64).wrapping_mul(self.dense) >> 32) as usize;
        let first = about.saturating_sub(NEAR).min(self.chunks.len());
        let end = about.saturating_add(NEAR).min(self.chunks.len());
        let near = &self.chunks[first..end];
        let begins = near.first().is_some_and(|chunk| chunk.start <= place);
        let ends = self.chunks.get(end).is_none_or(|next| place < next.start);
        if begins && ends {
            return first + near.partition_point(|chunk| chunk.start <= place) - 1;
        }
        self.chunk_of_all(place)
    }

    fn chunk_of_all(&self, place: usize) -> usize {
        let after = self.chunks.partition_point(|chunk| chunk.start <= place);
        after.saturating_sub(1)
    }

    /// The chunk that this id belongs in, and where it is in it or should be.
    fn seek(&self, id: &InstanceId) -> Seat {
        let at = self.chunk_for(id);
        let chunk = self.chunks.get(at);
        (at, chunk.map_or(Err(0), |chunk| chunk.members.seek(id)))
    }

    /// The same for one that should be at this place: to make sure of that costs a look or two at memory, and to
    /// seek it among thousands dozens.
    fn seek_at(&self, place: usize, id: &InstanceId) -> Seat {
        let at = self.chunk_of(place);
        if let Some(chunk) = self.chunks.get(at)
            && let here = place - chunk.start
            && chunk.members.all().get(here).is_some_and(|e| e.id() == id)
        {
            return (at, Ok(here));
        }
        self.seek(id)
    }

    fn chunk_for(&self, id: &InstanceId) -> usize {
        let begins = |chunk: &Chunk| chunk.members.begins_by(id);
        self.chunks.partition_point(begins).saturating_sub(1)
    }

    /// Makes two of a full chunk; of the last one only the newcomer is taken off, for many arrive in order.
    fn split(&mut self, at: usize) {
        let is_last = at + 1 == self.chunks.len();
        let members = self.chunks[at].change();
        let right = members.split_off(if is_last { MOST } else { MOST / 2 });
        members.shrink_to_fit();
        let right = Chunk {
            start: 0,
            members: Arc::new(Members::new(right)),
        };
        self.chunks.insert(at + 1, right);
    }

    /// Makes one of a small chunk and a small one after it.
    fn join(&mut self, at: usize) {
        let next = self
            .chunks
            .get(at + 1)
            .map(|next| Arc::clone(&next.members));
        let here = self.chunks[at].members.all().len();
        if let Some(next) = next.filter(|next| here + next.all().len() <= MOST / 2) {
            self.chunks[at].change().extend_from_slice(next.all());
            self.chunks.remove(at + 1);
        }
    }

    /// Tells the chunks from this one on where they start, and all that others may be there.
    fn renumber(&mut self, from: usize) {
        self.chart.take();
        self.per_weight.take();
        let before = from.checked_sub(1).map(|before| &self.chunks[before]);
        let mut start = before.map_or(0, |chunk| chunk.start + chunk.members.all().len());
        for chunk in &mut self.chunks[from..] {
            chunk.start = start;
            start += chunk.members.all().len();
        }
        self.len = start;
        self.dense = ((self.chunks.len() as u64) << 32) / (start.max(1) as u64);
    }
}

impl Chunk {
    /// Its endpoints, to be changed: those of clones stay as they are.
    fn change(&mut self) -> &mut Vec<Endpoint> {
        Arc::make_mut(&mut self.members).change()
    }
}

impl Index<usize> for Endpoints {
    type Output = Endpoint;

    /// # Panics
    /// If there are not so many.
    fn index(&self, place: usize) -> &Endpoint {
        let chunk = &self.spine.chunks[self.spine.chunk_of(place)];
        &chunk.members.all()[place - chunk.start]
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        let mut all = Self::default();
        endpoints.into_iter().for_each(|endpoint| all.put(endpoint));
        all
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{Instance, balance::conform};

    fn endpoint(n: u16, weight: u32) -> Endpoint {
        let instance = Instance::at("10.0.0.1:1").and_then(|i| i.id(format!("i{n:05}")));
        Endpoint::idle(instance.unwrap().weight(weight))
    }

    /// What is told by looking at each: ids and weights in order.
    fn told<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>) -> Vec<(String, u32)> {
        let tell = |e: &Endpoint| (e.id().to_string(), e.instance().weight);
        endpoints.into_iter().map(tell).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_holds_what_a_map_would_and_clones_stay_as_they_were(
            first in 0_u16..1_000,
            changes in proptest::collection::vec((0_u16..1_000, 0_u32..3), 0..1_500),
        ) {
            let mut endpoints: Endpoints = (0..first).map(|n| endpoint(n, 9)).collect();
            let mut map: BTreeMap<u16, u32> = (0..first).map(|n| (n, 9)).collect();
            let before = (endpoints.clone(), told(endpoints.iter()));

            for (n, weight) in changes {
                if n % 64 == 0 {
                    endpoints.weights();
                    assert_eq!(endpoints.per_weight().len(), endpoints.len());
                }
                if weight == 0 {
                    endpoints.remove(endpoint(n, 0).id());
                    map.remove(&n);
                } else {
                    endpoints.put(endpoint(n, weight));
                    map.insert(n, weight);
                }
            }

            let should: Vec<_> = map.iter().map(|(n, w)| (format!("i{n:05}"), *w)).collect();
            prop_assert_eq!(&told(endpoints.iter()), &should);
            prop_assert_eq!(told((0..endpoints.len()).map(|place| &endpoints[place])), should);
            prop_assert!(endpoints.get(endpoints.len()).is_none());
            prop_assert!(endpoints.iter().all(|e| endpoints.find(e.id()).is_some()));
            prop_assert_eq!(told(before.0.iter()), before.1);
            let weights = || endpoints.iter().map(Endpoint::weight);
            let told = endpoints.weights();
            prop_assert_eq!(told.sum, weights().sum::<u64>());
            prop_assert_eq!(told.are_equal(), weights().all(|w| Some(w) == weights().next()));
            let each = weights().map(|weight| 1.0 / weight as f32);
            prop_assert!(each.eq(endpoints.per_weight().iter().copied()));
            let sizes = endpoints.spine.chunks.iter().map(|c| c.members.all().len());
            let sizes: Vec<_> = sizes.collect();
            prop_assert!(sizes.iter().all(|size| (1..=MOST).contains(size)), "{:?}", sizes);
        }
    }

    #[test]
    fn each_is_at_its_place_however_uneven_the_chunks_are() {
        let all: Vec<_> = (0..6_000).map(|n| endpoint(n, 1)).collect();
        let mut endpoints: Endpoints = all.iter().cloned().collect();

        // Full chunks at the end, and nearly empty ones before them.
        for (n, gone) in all.iter().enumerate().take(4_000) {
            if n % 90 != 0 {
                endpoints.remove(gone.id());
            }
        }
        let far = endpoints.get(usize::MAX).is_some() || endpoints.get(endpoints.len()).is_some();

        let by_place = (0..endpoints.len()).map(|place| endpoints[place].id());
        assert!(by_place.eq(endpoints.iter().map(Endpoint::id)));
        assert!(!far);
    }

    #[test]
    fn nobody_is_found_among_none() {
        assert!(Endpoints::default().find(endpoint(1, 1).id()).is_none());
    }

    #[test]
    fn one_change_copies_one_chunk_and_shares_the_rest() {
        let before: Endpoints = conform::endpoints(&[1; 10_000]);
        let mut after = before.clone();
        after.put(before[5_000].clone());
        assert!(after.is_clone_of(&before), "nothing is new");

        after.put(endpoint(5_000, 7));

        assert!(!after.is_clone_of(&before));
        let chunks = before.spine.chunks.iter().zip(&after.spine.chunks);
        let copied = chunks.filter(|(old, new)| !Arc::ptr_eq(&old.members, &new.members));
        assert_eq!(copied.count(), 1);
    }

    #[test]
    fn all_are_met_from_wherever_one_begins() {
        let endpoints = conform::endpoints(&[1; 300]);

        for start in [0, 1, 127, 128, 299] {
            let mut met = told(endpoints.iter_from(start));

            assert_eq!(met[0].0, format!("i{start:05}"));
            met.sort_unstable();
            assert_eq!(met, told(endpoints.iter()));
        }
    }
}
