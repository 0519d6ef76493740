//! So many servers of a fleet, others for each client.

use twox_hash::XxHash64;

use super::Seat;
use crate::{Error, Instance};

/// How many servers a channel connects to, and which.
///
/// A thousand clients with a thousand servers are a million connections, each with its buffers, keep-alive and
/// health checks, and with a few calls an hour over each of them no client learns which server is slow. A
/// subset of twenty is enough as a rule; a client that makes very many calls needs more, and there should be
/// so many clients that `size x clients / servers` is 20 or more, or else some servers are in few subsets.
///
/// # Which
/// Servers are ranked by the XXH64 of their address with a seed, and the first are taken: gRPC's random
/// subsetting (gRFC A68). A server that comes or goes changes one connection of a client at most. For the same
/// seed and addresses the choice is that of grpc-go's `random_subsetting`, to the bit; it hashes the first
/// address as its resolver prints it, `{Addr: "10.0.0.5:50051", ServerName: "", }`, and so does this.
///
/// The seed is drawn when the channel is built and stays while it lives. With [`client`](Self::client) it
/// outlives the process.
///
/// # Which, by number
/// A ranking by hashes is even on average: of a hundred servers that forty clients take ten of, one has nine
/// clients and others none. Where clients and servers have numbers without gaps, a [`seat`](Self::seat) for
/// each client and the tag `ordinal` for each server, the choice is exact: Google's Rocksteadier subsetting.
/// Every server has the same number of clients where both come in whole tens; from a hundred clients on, none had
/// more than 1.06 times the mean in any fleet that was measured, and four lots of clients differ by a connection
/// or two. A server that comes or goes, and a tenth of them, cost at most 1.1 times the
/// connections that they must. In etcd, `?ordinals=true` (or
/// [`Registry::ordinals`]) has each server that registers take the smallest number that is free, on the lease of
/// its registration. Gaps that crashes leave are filled within some minutes; until then, servers next to them have a few more.
///
/// While more than a tenth of the servers have no number, all are ranked by hash. Numbers are those of the whole
/// fleet: beside a filter or zones that leave much out, the choice is no more even than one by hash.
///
/// [`Registry::ordinals`]: https://docs.rs/tonic-fleet/latest/tonic_fleet/etcd/struct.Registry.html#method.ordinals
///
/// # When they are unwell
/// The next in the ranking are taken in as soon as the well ones, times 1.4, are fewer than the size: so up to
/// 28 of a hundred may be unwell, or drain, at no cost. No more than twice the size is taken in while any of
/// them is well; while nobody is, there is no limit, for a subset is not to leave a channel without a server
/// while the fleet has one. Whoever was taken in is let go of when the first are well again.
///
/// ```
/// use tonic_fleet::stage::Subset;
///
/// let subset = Subset::of(20).client("cart-7");
/// ```
#[derive(Clone, Debug)]
pub struct Subset {
    size: usize,
    seed: Option<u64>,
    seat: Option<Seat>,
}

/// The tag that bears a server's number among all servers of its service.
pub(crate) const ORDINAL: &str = "ordinal";

impl Subset {
    /// So many servers: 20 to 100 is usual.
    pub fn of(size: usize) -> Self {
        Self {
            size,
            seed: None,
            seat: None,
        }
    }

    /// Ranks by this seed, as another program with the same does.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        let seed = Some(seed);
        Self { seed, ..self }
    }

    /// Ranks by the name of this client, so that it comes back to the same servers after a restart. The seed is
    /// the XXH64 of the name. Clients of one name have one subset: name each, by its pod or its host and port.
    #[must_use]
    pub fn client(self, name: impl AsRef<str>) -> Self {
        self.seed(XxHash64::oneshot(0, name.as_ref().as_bytes()))
    }

    /// Goes by numbers: this client's, and those of the servers.
    #[must_use]
    pub fn seat(self, seat: Seat) -> Self {
        let seat = Some(seat);
        Self { seat, ..self }
    }

    /// Where its number comes from, if it has one.
    pub(crate) fn seated(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Gives it a seed, if it has none.
    pub(super) fn settled(self, random: u64) -> Self {
        let seed = self.seed.or(Some(random));
        Self { seed, ..self }
    }

    /// Where an instance stands in the ranking.
    pub(super) fn rank(&self, instance: &Instance) -> u64 {
        let seed = self.seed.unwrap_or_default();
        match instance.addresses.first() {
            Some(address) => rank(&address.to_string(), seed),
            None => XxHash64::oneshot(seed, instance.id.as_str().as_bytes()),
        }
    }

    /// The number of a server, where that counts.
    pub(super) fn ordinal(&self, instance: &Instance) -> Option<u32> {
        self.seat.as_ref()?;
        instance.tags.get(ORDINAL)?.parse().ok()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.size == 0 {
            let why = "a subset of 0: nobody could be called; give a size, or leave it out";
            return Err(Error::config(why));
        }
        Ok(())
    }
}

/// As grpc-go prints an address before it hashes it.
fn rank(address: &str, seed: u64) -> u64 {
    let printed = format!("{{Addr: {address:?}, ServerName: \"\", }}");
    XxHash64::oneshot(seed, printed.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_five(seed: u64) -> Vec<usize> {
        let mut all: Vec<_> = (0..10).collect();
        all.sort_by_key(|n| rank(&format!("endpoint-{n}"), seed));
        all.truncate(5);
        all
    }

    /// What grpc-go's own test expects of ten endpoints and the seed 0.
    #[test]
    fn the_choice_is_that_of_grpc_go() {
        assert_eq!(first_five(0), [6, 0, 1, 7, 3]);
        assert_ne!(first_five(1), first_five(0));
    }

    #[test]
    fn the_name_of_a_client_is_its_seed() {
        let instance = Instance::at("10.0.0.5:50051").unwrap();
        let named = Subset::of(2).client("cart-7");

        let seed = XxHash64::oneshot(0, b"cart-7");

        assert_eq!(
            named.rank(&instance),
            Subset::of(9).seed(seed).rank(&instance)
        );
        assert_eq!(
            named.clone().settled(5).rank(&instance),
            named.rank(&instance)
        );
        assert_eq!(
            Subset::of(2).settled(seed).rank(&instance),
            named.rank(&instance)
        );
    }

    #[test]
    fn a_subset_of_nobody_is_refused() {
        let error = Subset::of(0).check().unwrap_err();

        assert!(error.to_string().contains("nobody could be called"));
    }
}
