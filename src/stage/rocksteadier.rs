//! Who takes which servers when clients and servers have numbers.

use std::collections::BTreeMap;

/// Clients and servers are looked at in lots of so many.
const LOT: u32 = 10;

/// The servers in the order in which the client of this number takes them, as far as they have numbers.
///
/// Rocksteadier subsetting, as Google published it. The ten clients of a lot each take another of the ten
/// servers of a lot, by a permutation for each pair of lots, so that all servers of a lot are taken equally
/// often. Lots of servers stand on a circle, in the order of the van der Corput sequence, where a new lot goes
/// between two others and moves nobody; a lot of clients begins at its own place on it.
pub(super) fn ranking<T>(client: u32, servers: &BTreeMap<u32, T>) -> impl Iterator<Item = &T> {
    let (lot, place) = (client / LOT, client % LOT);
    let mut lots: Vec<u32> = servers.keys().map(|number| number / LOT).collect();
    lots.dedup();
    lots.sort_unstable_by_key(|lot| lot.reverse_bits());
    let start = lots.partition_point(|other| other.reverse_bits() < lot.reverse_bits());
    let all = lots.len();
    lots.rotate_left(if start < all { start } else { 0 });
    let drawn: Vec<_> = lots.iter().map(|&other| permutation(lot, other)).collect();
    let rounds = (0..LOT).flat_map(move |round| {
        let nth = ((place + round) % LOT) as usize;
        let lots = lots.clone().into_iter().zip(drawn.clone());
        lots.map(move |(lot, drawn)| (lot * LOT).checked_add(drawn[nth]))
    });
    // The last lot of all has no room for ten.
    rounds.filter_map(|number| servers.get(&number?))
}

/// In which order the clients of one lot take the servers of another.
fn permutation(clients: u32, servers: u32) -> [u32; LOT as usize] {
    let mut state = u64::from(clients) << 32 | u64::from(servers);
    let mut order = std::array::from_fn(|nth| nth as u32);
    for last in (1..LOT as usize).rev() {
        let other = ((mix(&mut state) >> 32) * (last as u64 + 1)) >> 32;
        order.swap(last, other as usize);
    }
    order
}

/// SplitMix64: the same everywhere, and nothing that is to be a secret.
fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut bits = *state;
    bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    type Fleet = BTreeMap<u32, u32>;

    fn fleet(servers: u32) -> Fleet {
        (0..servers).map(|number| (number, number)).collect()
    }

    /// What each client takes.
    fn taken(clients: u32, servers: &Fleet, size: usize) -> Vec<BTreeSet<u32>> {
        let taken = |client| ranking(client, servers).take(size).copied().collect();
        (0..clients).map(taken).collect()
    }

    /// The most clients of a server, and the mean.
    fn most_of_mean(taken: &[BTreeSet<u32>], servers: &Fleet) -> f64 {
        let mut counts: BTreeMap<u32, usize> = servers.values().map(|&one| (one, 0)).collect();
        for one in taken.iter().flatten() {
            *counts.get_mut(one).unwrap() += 1;
        }
        let sum: usize = counts.values().sum();
        *counts.values().max().unwrap() as f64 * servers.len() as f64 / sum as f64
    }

    /// How many connections a client makes anew on average.
    fn new(before: &[BTreeSet<u32>], after: &[BTreeSet<u32>]) -> f64 {
        let pairs = before.iter().zip(after);
        let new: usize = pairs
            .map(|(before, after)| after.difference(before).count())
            .sum();
        new as f64 / before.len() as f64
    }

    const ALL: [(u32, u32, usize); 5] = [
        (40, 100, 10),
        (40, 40, 10),
        (100, 40, 20),
        (500, 100, 20),
        (2000, 100, 20),
    ];
    /// The largest takes its time when it is not optimised.
    const FLEETS: &[(u32, u32, usize)] = ALL.split_at(if cfg!(debug_assertions) { 3 } else { 5 }).0;

    #[test]
    fn every_server_is_taken_by_as_many_clients() {
        for &(clients, servers, size) in FLEETS {
            let servers = fleet(servers);
            let taken = taken(clients, &servers, size);

            assert!(taken.iter().all(|one| one.len() == size.min(servers.len())));
            let most = most_of_mean(&taken, &servers);
            assert!(
                most <= 1.05,
                "{clients} x {} by {size}: {most}",
                servers.len()
            );
        }
    }

    #[test]
    fn one_more_or_less_moves_hardly_more_than_it_must() {
        for &(clients, servers, size) in FLEETS {
            let (fewer, more) = (fleet(servers), fleet(servers + 1));
            let before = taken(clients, &fewer, size);
            let after = taken(clients, &more, size);
            let ideal = size as f64 / f64::from(servers + 1);

            let [came, went] = [new(&before, &after), new(&after, &before)];

            assert!(
                came <= ideal * 1.1,
                "{clients} x {servers} by {size}: {came}, ideal {ideal}"
            );
            assert!(
                went <= ideal * 1.1,
                "{clients} x {servers} by {size}: {went}, ideal {ideal}"
            );
        }
    }

    #[test]
    fn a_tenth_more_or_less_moves_hardly_more_than_it_must() {
        for &(clients, servers, size) in FLEETS {
            let tenth = servers / 10;
            let (fewer, more) = (fleet(servers), fleet(servers + tenth));
            let before = taken(clients, &fewer, size);
            let after = taken(clients, &more, size);
            let ideal = size as f64 * f64::from(tenth) / f64::from(servers + tenth);

            let [came, went] = [new(&before, &after), new(&after, &before)];

            let hardly = ideal * 1.1 + 1e-9;
            assert!(
                came <= hardly,
                "{clients} x {servers} by {size}: {came}, ideal {ideal}"
            );
            assert!(
                went <= hardly,
                "{clients} x {servers} by {size}: {went}, ideal {ideal}"
            );
            // Four lots of clients cannot share out eleven lots of servers evenly: one connection is a tenth there.
            let most = if clients >= 100 { 1.06 } else { 1.11 };
            assert!(
                most_of_mean(&after, &more) <= most,
                "{clients} x {servers} by {size}"
            );
        }
    }

    #[test]
    fn a_rolling_restart_moves_those_of_the_server_that_is_away() {
        for &(clients, servers, size) in FLEETS {
            let whole = fleet(servers);
            let before = taken(clients, &whole, size);
            let mut moved = 0.0;
            for number in 0..servers {
                let mut without = whole.clone();
                without.remove(&number);
                moved += new(&before, &taken(clients, &without, size));
            }

            // Each has a subset's worth of stand-ins over the whole restart.
            assert!(
                moved <= size as f64 * 1.1,
                "{clients} x {servers} by {size}: {moved}"
            );
        }
    }

    #[test]
    fn numbers_with_gaps_however_large_are_all_reached() {
        let servers: Fleet = [0, 7, 4_294_967_295, 1_000_000]
            .map(|number| (number, number))
            .into();

        for client in [0, 9, 4_294_967_295] {
            let all: BTreeSet<_> = ranking(client, &servers).copied().collect();
            assert_eq!(all.len(), 4);
        }
        assert_eq!(ranking(3, &Fleet::new()).count(), 0);
    }
}
