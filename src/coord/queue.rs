//! How those who want the same thing stand in line for it: as in Go's `concurrency`, so that both sides do.
//!
//! Everyone puts a key, named after a lease, under the same prefix. Who has the oldest key has what all want;
//! each of the others waits for the one just before it.

use std::sync::Arc;

use etcd_client::{
    Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use tokio::sync::oneshot;

use super::{
    leases::{Leases, Seat},
    retry::Twice,
};
use crate::{
    Backoff, Error, ErrorKind, Result,
    etcd::{
        known::KeyChange,
        kv::{Kv, Listing, Span},
        watch::{Seen, Watch},
    },
};

/// A line in which all stand who want the same thing.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    leases: Arc<Leases>,
    /// What all keys in it begin with; ends in `/`.
    prefix: Arc<str>,
}

/// A place in a queue. Dropping it leaves the queue, without waiting.
#[derive(Debug)]
pub(super) struct Place {
    /// Taken out when the place is left.
    seat: Option<Seat>,
    key: String,
    /// When the key came into being; nobody knows while it may not have.
    born: Option<i64>,
}

/// How one stands after joining.
#[derive(Debug)]
enum Joined {
    First(Place),
    /// Behind the one with this key, or one that is to be asked for.
    Behind(Place, Option<Before>),
    /// Somebody is there, and we wanted to be first or not at all.
    Taken,
}

/// The one before us, as of some revision.
#[derive(Debug)]
struct Before {
    kv: Kv,
    revision: i64,
}

/// Who may join.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Whether {
    /// Whoever is there.
    Always,
    /// Only if nobody is there.
    Empty,
}

impl Queue {
    /// The queue of this name.
    ///
    /// # Errors
    /// `Validation` when the name cannot be one.
    pub(super) fn named(leases: &Arc<Leases>, name: &str) -> Result<Self> {
        super::check_name(name)?;
        Ok(Self {
            leases: Arc::clone(leases),
            prefix: format!("{name}/").into(),
        })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    /// Joins, and waits until all who came before have left.
    ///
    /// A lease that is lost meanwhile costs the place, and another is taken at the end.
    pub(super) async fn stand(&self, value: &[u8]) -> Result<Place> {
        let mut losses = Backoff::between(FIRST_PAUSE, LAST_PAUSE).factor(2.0);
        loop {
            let waited = match self.join(value, Whether::Always).await? {
                Joined::First(place) => Ok(place),
                Joined::Behind(place, before) => self.turn(&place, before).await.map(|()| place),
                Joined::Taken => continue,
            };
            match waited.and_then(|place| self.still_held(place)) {
                Err(why) if why.kind() == ErrorKind::Lost => {
                    tracing::info!(queue = %self.prefix, why = why.chain(), "joining anew");
                    tokio::time::sleep(losses.next()).await;
                }
                ended => return ended,
            }
        }
    }

    /// Takes the first place, if nobody is there.
    pub(super) async fn first(&self, value: &[u8]) -> Result<Option<Place>> {
        loop {
            match self.join(value, Whether::Empty).await? {
                Joined::First(place) if place.seat().is_held() => return Ok(Some(place)),
                // We stood still meanwhile: the answer is of long ago.
                Joined::First(_) => {}
                // The place is left when it is dropped.
                Joined::Behind(..) | Joined::Taken => return Ok(None),
            }
        }
    }

    /// Joins by a task of its own: a question on its way must not be forgotten when its asker is.
    async fn join(&self, value: &[u8], whether: Whether) -> Result<Joined> {
        let lost = |why: &Error| why.kind() == ErrorKind::Lost;
        for last in [false, true] {
            let seat = self.leases.seat(&self.prefix).await?;
            let (reply, answer) = oneshot::channel();
            let (queue, value) = (self.clone(), value.to_owned());
            self.leases.spawn(async move {
                // A place that nobody waits for any more is left at once.
                let _ = reply.send(queue.put(seat, value, whether).await);
            });
            match answer.await {
                // The lease went before its time; the next seat is on another.
                Ok(Err(why)) if lost(&why) && !last => {}
                Ok(answer) => return answer,
                Err(_) => break,
            }
        }
        Err(Error::new(ErrorKind::Unavailable, self.doing()).because("its runtime is gone"))
    }

    async fn put(self, seat: Seat, value: Vec<u8>, whether: Whether) -> Result<Joined> {
        let key = seat.key();
        let lease = seat.session().lease();
        let txn = self.joining(&key, value, lease, whether);
        let asker = &self.leases.asker;
        let written = asker.write(self.doing(), txn, Twice::Harmless).await;
        let mut place = Place {
            seat: Some(seat),
            key,
            born: None,
        };
        if written.doubt {
            place.seat().doubt();
        }
        let answer = match written.answer {
            Ok(answer) => answer,
            Err(why) => {
                if why.kind() == ErrorKind::Lost {
                    place.seat().doubt();
                }
                if !written.doubt {
                    // Nothing stands there.
                    place.seat = None;
                }
                return Err(why);
            }
        };
        let found = Found::of(answer, &place.key);
        let Some(born) = found.born else {
            // Somebody else is there, and nothing of ours.
            if !written.doubt {
                place.seat = None;
            }
            return Ok(Joined::Taken);
        };
        place.born = Some(born);
        Ok(found.stands(place))
    }

    /// Puts the key unless it stands already, and tells who is there.
    fn joining(&self, key: &str, value: Vec<u8>, lease: i64, whether: Whether) -> Txn {
        let on_lease = PutOptions::new().with_lease(lease);
        let mut only = vec![Compare::create_revision(key, CompareOp::Equal, 0)];
        if whether == Whether::Empty {
            let nobody = Compare::create_revision(&*self.prefix, CompareOp::Equal, 0);
            only.push(nobody.with_prefix());
        }
        let newest = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_limit(2)
            .with_keys_only();
        let newest = TxnOp::get(&*self.prefix, Some(newest));
        Txn::new()
            .when(only)
            .and_then([TxnOp::put(key, value, Some(on_lease)), newest.clone()])
            .or_else([TxnOp::get(key, None), newest])
    }

    /// Who stood still meanwhile was given the place, and has lost it before he heard so.
    fn still_held(&self, place: Place) -> Result<Place> {
        if place.seat().is_held() {
            return Ok(place);
        }
        let why = "the lease ended while etcd's answer was on its way";
        Err(Error::new(ErrorKind::Lost, self.doing()).because(why))
    }

    /// Waits until all who came before have left.
    async fn turn(&self, place: &Place, mut before: Option<Before>) -> Result<()> {
        loop {
            let next = match before.take() {
                Some(next) => next,
                None => match self.next_before(place).await? {
                    Some(next) => next,
                    None => return Ok(()),
                },
            };
            tokio::select! {
                why = place.seat().lost() => return Err(why),
                gone = self.gone(next) => gone?,
            }
        }
    }

    /// The one just before this place, if there is one.
    async fn next_before(&self, place: &Place) -> Result<Option<Before>> {
        let born = place.born.unwrap_or_default();
        let just_before = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_max_create_revision(born - 1)
            .with_limit(1)
            .with_keys_only();
        let txn = Txn::new()
            .when([Compare::create_revision(
                &*place.key,
                CompareOp::Equal,
                born,
            )])
            .and_then([TxnOp::get(&*self.prefix, Some(just_before))]);
        let answer = self.leases.asker.ask(self.doing(), txn).await?;
        if !answer.succeeded() {
            let why = "somebody deleted our key, or our lease ended before its time";
            return Err(Error::new(ErrorKind::Lost, self.doing()).because(why));
        }
        let revision = answer.header().map_or(0, |header| header.revision());
        let kv = kvs(answer).into_iter().next().and_then(|mut kvs| kvs.pop());
        Ok(kv.map(|kv| Before { kv, revision }))
    }

    /// Returns when this key, as it stands there, is gone.
    async fn gone(&self, before: Before) -> Result<()> {
        let Before { kv, revision } = before;
        let Ok(key) = String::from_utf8(kv.key.to_vec()) else {
            let doing = format!("{}: {} is not UTF-8", self.doing(), kv.name());
            return Err(Error::new(ErrorKind::Decode, doing));
        };
        let born = kv.create_revision;
        let (tell, told) = oneshot::channel();
        let mut tell = Some(tell);
        let stands = Listing {
            all: vec![kv],
            revision,
        };
        let etcd = self.leases.asker.etcd.clone();
        let _watch = Watch::after(etcd, Span::Key(key), stands, move |seen| {
            if is_gone(&seen, born)
                && let Some(tell) = tell.take()
            {
                // Who no longer waits needs no word.
                let _ = tell.send(());
            }
        });
        told.await.map_err(|_| {
            Error::new(ErrorKind::Unavailable, self.doing()).because("its runtime is gone")
        })
    }

    fn doing(&self) -> String {
        format!("stand in line at {}", self.prefix)
    }
}

/// Whether a watch on a key tells that the one that was born then is gone.
pub(super) fn is_gone(seen: &Seen, born: i64) -> bool {
    let Seen::Changed(changes) = seen else {
        return false;
    };
    changes.iter().any(|change| match change {
        KeyChange::Put(kv) => kv.create_revision != born,
        KeyChange::Delete { .. } => true,
    })
}

/// What the answer to a question for a place tells.
#[derive(Debug)]
struct Found {
    /// When our key came into being, if it stands.
    born: Option<i64>,
    newest: Vec<Kv>,
    revision: i64,
}

impl Found {
    fn of(answer: TxnResponse, key: &str) -> Self {
        let put = answer.succeeded();
        let revision = answer.header().map_or(0, |header| header.revision());
        let mut lists = kvs(answer);
        let newest = lists.pop().unwrap_or_default();
        let own = lists.pop().and_then(|mut own| own.pop());
        let own = own.filter(|own| own.key == key.as_bytes());
        let born = if put {
            Some(revision)
        } else {
            own.map(|own| own.create_revision)
        };
        Self {
            born,
            newest,
            revision,
        }
    }

    /// How we stand, with a key there.
    fn stands(self, place: Place) -> Joined {
        let mut newest = self.newest.into_iter();
        let is_newest = newest
            .next()
            .is_some_and(|first| first.key == place.key.as_bytes());
        let revision = self.revision;
        match (is_newest, newest.next()) {
            (true, None) => Joined::First(place),
            (true, Some(kv)) => Joined::Behind(place, Some(Before { kv, revision })),
            (false, _) => Joined::Behind(place, None),
        }
    }
}

/// The lists in an answer, in order.
pub(super) fn kvs(answer: TxnResponse) -> Vec<Vec<Kv>> {
    let lists = answer.op_responses().into_iter().filter_map(|op| match op {
        TxnOpResponse::Get(mut got) => Some(got.take_kvs().into_iter().map(Kv::from).collect()),
        _ => None,
    });
    lists.collect()
}

impl Place {
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// When the key came into being: greater than that of all who held it before.
    pub(super) fn born(&self) -> i64 {
        self.born.unwrap_or_default()
    }

    pub(super) fn seat(&self) -> &Seat {
        self.seat
            .as_ref()
            .expect("the seat is taken out only when the place is consumed")
    }

    /// Leaves, and waits until that is certain.
    ///
    /// # Cancel safety
    /// The place is left all the same.
    pub(super) async fn leave(mut self) -> Result<()> {
        let Some(left) = self.begin_to_leave() else {
            return Ok(());
        };
        left.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, "leave").because("its runtime is gone"))
        })
    }

    fn begin_to_leave(&mut self) -> Option<oneshot::Receiver<Result<()>>> {
        let seat = self.seat.take()?;
        let (tell, told) = oneshot::channel();
        let (key, born) = (std::mem::take(&mut self.key), self.born);
        let leases = Arc::clone(seat.leases());
        leases.spawn(async move {
            let left = seat.leave(key, born).await;
            if let Err(Err(why)) = tell.send(left) {
                tracing::warn!(why = why.chain(), "a key stays until its lease ends");
            }
        });
        Some(told)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.begin_to_leave());
    }
}

/// Between joins of one whose places are lost.
const FIRST_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
const LAST_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);
