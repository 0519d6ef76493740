//! A list that is given once.

use std::{collections::BTreeSet, sync::Arc};

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::{Publisher, Resolve, Skipped, Updates, publish};
use crate::{Address, Error, Instance, InstanceId, ServiceName, Target};

/// Every service is at these instances, and that never changes.
///
/// ```
/// use tonic_fleet::resolve::Fixed;
///
/// let two = Fixed::at(["10.0.0.1:50051", "10.0.0.2:50051"])?;
/// assert_eq!(two.instances()[0].id.as_str(), "10.0.0.1:50051");
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
///
/// For a set that changes there is `memory://`, or a resolver of your own.
#[derive(Clone, Debug)]
pub struct Fixed(Arc<[Arc<Instance>]>);

/// What may not stand in an id.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'/')
    .add(b'?')
    .add(b'#')
    .add(b'\\')
    .add(b'%');

impl Fixed {
    /// These instances. Those that no client could use are passed over and reported.
    pub fn new<I>(instances: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Arc<Instance>>,
    {
        Self(instances.into_iter().map(Into::into).collect())
    }

    /// An instance at each of these addresses, named after it.
    pub fn at<I>(addresses: I) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: TryInto<Address>,
        <I::Item as TryInto<Address>>::Error: Into<Error>,
    {
        let instances = addresses.into_iter().map(|address| {
            let instance = named_after(address.try_into().map_err(Into::into)?)?;
            instance.check()?;
            Ok(Arc::new(instance))
        });
        Ok(Self(instances.collect::<Result<_, Error>>()?))
    }

    /// The addresses of a `static://` target, with its weights.
    pub(super) fn of(target: &Target) -> Result<Self, Error> {
        let weights = target.registry().weights().iter().copied();
        let weights = weights.chain(std::iter::repeat(1));
        let instances = target
            .members()
            .iter()
            .zip(weights)
            .map(|(address, weight)| {
                let instance = named_after(address.clone())?.weight(weight);
                instance.check()?;
                Ok(Arc::new(instance))
            });
        Ok(Self(instances.collect::<Result<_, Error>>()?))
    }

    /// The list as it was given.
    pub fn instances(&self) -> &[Arc<Instance>] {
        &self.0
    }

    /// Tells a reader the whole list.
    pub(super) fn tell(&self, publisher: &Publisher) {
        let (good, skipped) = sort_out("instance ", self.0.iter().cloned());
        publisher.reset(good);
        if !skipped.is_empty() {
            publisher.skipped(skipped);
        }
    }
}

impl Resolve for Fixed {
    fn resolve(&self, _service: &ServiceName) -> Updates {
        let (publisher, updates) = publish();
        self.tell(&publisher);
        updates
    }
}

/// An instance at this address, which is its id too.
pub(super) fn named_after(address: Address) -> Result<Instance, Error> {
    let id = address.to_string();
    let id = utf8_percent_encode(&id, ESCAPED).to_string();
    Instance::at(address)?.id(id)
}

/// Those that can be used, and why the others cannot. Of two with one id, the first is used.
pub(super) fn sort_out(
    place: &str,
    instances: impl IntoIterator<Item = Arc<Instance>>,
) -> (Vec<Arc<Instance>>, Vec<Skipped>) {
    let mut seen = BTreeSet::<InstanceId>::new();
    let (mut good, mut skipped) = (Vec::new(), Vec::new());
    for instance in instances {
        let fresh = seen.insert(instance.id.clone());
        let checked = match instance.check() {
            Ok(()) if !fresh => Err(Error::config("another has the same id: give it its own")),
            checked => checked,
        };
        match checked {
            Ok(()) => good.push(instance),
            Err(why) => skipped.push(Skipped::new(format!("{place}{}", instance.id), why)),
        }
    }
    (good, skipped)
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::{super::Update, *};

    fn all(updates: Updates) -> Vec<Update> {
        updates.collect().now_or_never().unwrap()
    }

    #[test]
    fn the_list_is_told_once_and_then_the_stream_ends() {
        let fixed = Fixed::at(["10.0.0.1:1", "unix:/run/a b.sock"]).unwrap();

        let updates = all(fixed.resolve(&"greeter".parse().unwrap()));

        let [Update::Reset(set)] = &updates[..] else {
            panic!("{updates:?}")
        };
        let ids: Vec<_> = set.iter().map(|i| i.id.as_str()).collect();
        assert_eq!(ids, ["10.0.0.1:1", "unix:%2Frun%2Fa%20b.sock"]);
    }

    #[test]
    fn a_static_url_gives_each_address_its_weight() {
        let target = "static://10.0.0.1:1,10.0.0.2:1?weights=3,0"
            .parse()
            .unwrap();

        let fixed = Fixed::of(&target).unwrap();

        let weights: Vec<_> = fixed.instances().iter().map(|i| i.weight).collect();
        assert_eq!(weights, [3, 0]);
    }

    #[test]
    fn what_cannot_be_used_is_passed_over_and_reported() {
        let good = Instance::at("10.0.0.1:1").unwrap().id("a").unwrap();
        let twin = Instance::at("10.0.0.2:1").unwrap().id("a").unwrap();
        let nowhere = Instance::at("0.0.0.0:1").unwrap().id("b").unwrap();

        let updates = all(Fixed::new([good, twin, nowhere]).resolve(&"greeter".parse().unwrap()));

        let [Update::Reset(set), Update::Skipped(skipped)] = &updates[..] else {
            panic!("{updates:?}")
        };
        let keys: Vec<_> = skipped.iter().map(|s| &*s.key).collect();
        assert_eq!((set.len(), keys), (1, vec!["instance a", "instance b"]));
        assert!(Fixed::at(["0.0.0.0:1"]).is_err());
        assert!(Fixed::at(["nonsense"]).is_err());
    }
}
