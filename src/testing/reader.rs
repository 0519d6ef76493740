//! Somebody who reads a resolver's updates, and keeps what a channel would.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;

use super::{Done, Stop};
use crate::{
    Instance, InstanceId,
    resolve::{Change, Update, Updates},
};

/// How long a case waits for what it expects.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was read so far.
pub(super) struct Reader {
    updates: Updates,
    pub(super) known: BTreeMap<InstanceId, Arc<Instance>>,
    /// Those of the known who vanished unannounced.
    pub(super) suspects: BTreeSet<InstanceId>,
    /// Why the registry is out of reach, if it is.
    pub(super) stale: Option<String>,
    /// Whether there ever was a set.
    begun: bool,
    /// Every word since the case last looked.
    words: Vec<String>,
}

impl Reader {
    pub(super) fn of(updates: Updates) -> Self {
        Self {
            updates,
            known: BTreeMap::new(),
            suspects: BTreeSet::new(),
            stale: None,
            begun: false,
            words: Vec::new(),
        }
    }

    /// Reads until it knows exactly these, and has nothing to fear.
    pub(super) async fn knows(&mut self, set: &[Instance]) -> Done {
        self.knows_minding(set, |_| Ok(())).await
    }

    /// The same; after each update, this must hold.
    pub(super) async fn knows_minding(
        &mut self,
        set: &[Instance],
        holds: impl FnMut(&Self) -> Done,
    ) -> Done {
        let set: BTreeMap<_, _> = set.iter().map(|i| (&i.id, i)).collect();
        let ids: Vec<_> = set.keys().take(12).map(|id| id.as_str()).collect();
        let what = format!("exactly {} are known: {}", set.len(), ids.join(" "));
        let is = |reader: &Self| {
            let known = reader.known.iter().map(|(id, i)| (id, &**i));
            reader.begun
                && reader.stale.is_none()
                && reader.suspects.is_empty()
                && known.eq(set.iter().map(|(id, i)| (*id, *i)))
        };
        self.until_minding(&what, is, holds).await
    }

    /// Reads until the registry is said to be out of reach.
    pub(super) async fn is_told_of_the_outage(&mut self) -> Done {
        self.until("it is stale", |reader| reader.stale.is_some())
            .await?;
        match self.stale.as_deref() {
            Some("") => Err(Stop::failed("it is stale, and does not say why")),
            _ => Ok(()),
        }
    }

    /// Reads until it is so.
    pub(super) async fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) -> Done {
        self.until_minding(what, is, |_| Ok(())).await
    }

    async fn until_minding(
        &mut self,
        what: &str,
        is: impl Fn(&Self) -> bool,
        mut holds: impl FnMut(&Self) -> Done,
    ) -> Done {
        let reading = async {
            while !is(self) {
                let Some(update) = self.updates.next().await else {
                    return Ok(false);
                };
                self.take(update)?;
                holds(self)?;
            }
            Ok::<_, Stop>(true)
        };
        let seen = match timeout(PATIENCE, reading).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => "the updates ended before",
            Ok(Err(stop)) => return Err(stop),
            Err(_) => "not within half a minute:",
        };
        Err(Stop::failed(format!("{seen} {what}; {}", self.picture())))
    }

    /// Reads what is there already.
    pub(super) fn now(&mut self) -> Done {
        while let Some(Some(update)) = self.updates.next().now_or_never() {
            self.take(update)?;
        }
        Ok(())
    }

    /// Whether this was told since the last look.
    pub(super) fn heard(&self, word: &str) -> bool {
        self.words.iter().any(|told| told == word)
    }

    /// The words since the last look.
    pub(super) fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.words)
    }

    /// Nobody was said to have left or vanished since the last look.
    pub(super) fn nobody_left(&mut self) -> Done {
        let told = self.told();
        let left = told.iter().find(|word| word.starts_with(['-', '?']));
        match left {
            Some(word) => Err(Stop::failed(format!(
                "{word} was told; all of it: {told:?}"
            ))),
            None => Ok(()),
        }
    }

    /// What it has, for a person who looks into a failure.
    pub(super) fn picture(&self) -> String {
        let some = |ids: Vec<&InstanceId>| {
            let first: Vec<_> = ids.iter().take(12).map(|id| id.as_str()).collect();
            format!("{} ({})", ids.len(), first.join(" "))
        };
        let last: Vec<_> = self.words.iter().rev().take(12).rev().collect();
        format!(
            "known {}, suspects {}, stale {:?}, told last {last:?}",
            some(self.known.keys().collect()),
            some(self.suspects.iter().collect()),
            self.stale,
        )
    }

    fn take(&mut self, update: Update) -> Done {
        match update {
            Update::Reset(all) => {
                self.words.push(format!("reset {}", all.len()));
                self.known = all.into_iter().map(|i| (i.id.clone(), i)).collect();
                self.suspects.clear();
                (self.begun, self.stale) = (true, None);
            }
            Update::Delta(changes) => {
                if !self.begun && !changes.is_empty() {
                    return Err(Stop::failed("a change was told before the first set"));
                }
                self.stale = None;
                if changes.is_empty() {
                    self.words.push("fresh".into());
                }
                changes.into_iter().for_each(|change| self.change(change));
            }
            Update::Stale(why) => {
                self.words.push("stale".into());
                self.stale = Some(why.chain());
            }
            Update::Skipped(skipped) => self.words.push(format!("skipped {}", skipped.len())),
        }
        Ok(())
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Put(instance) => {
                self.words.push(format!("+{}", instance.id));
                self.suspects.remove(&instance.id);
                self.known.insert(instance.id.clone(), instance);
            }
            Change::Remove(id) => {
                self.words.push(format!("-{id}"));
                self.suspects.remove(&id);
                self.known.remove(&id);
            }
            Change::Vanish(id) => {
                self.words.push(format!("?{id}"));
                self.suspects.insert(id);
            }
        }
    }
}
