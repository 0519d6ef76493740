//! What a watch told and nobody has read yet: state, not history.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{client::locked, known::KeyChange, kv::Kv, watch::Seen};
use crate::Error;

/// Two ends of the same box: any clone may put in, one takes out.
#[derive(Clone, Default)]
pub(super) struct Mailbox(Arc<Inner>);

#[derive(Default)]
struct Inner {
    pending: Mutex<Pending>,
    news: Notify,
}

#[derive(Default)]
struct Pending {
    listed: Option<(BTreeMap<Bytes, Kv>, i64)>,
    changes: BTreeMap<Bytes, KeyChange>,
    link: Option<Link>,
}

enum Link {
    Fresh,
    Stale(Error),
}

impl Mailbox {
    pub(super) fn put(&self, seen: Seen) {
        locked(&self.0.pending).put(seen);
        self.0.news.notify_one();
    }

    /// The next word; waits for one.
    pub(super) async fn take(&self) -> Seen {
        loop {
            let news = self.0.news.notified();
            if let Some(seen) = locked(&self.0.pending).take() {
                return seen;
            }
            news.await;
        }
    }
}

impl Pending {
    fn put(&mut self, seen: Seen) {
        match seen {
            Seen::Listed { all, revision } => {
                let all = all.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
                self.listed = Some((all, revision));
                self.changes.clear();
                self.link = None;
            }
            Seen::Changed(changes) => {
                if changes.is_empty() || matches!(self.link, Some(Link::Stale(_))) {
                    self.link = Some(Link::Fresh);
                }
                for change in changes {
                    self.change(change);
                }
            }
            Seen::Stale(why) => self.link = Some(Link::Stale(why)),
        }
    }

    fn change(&mut self, change: KeyChange) {
        let Some((all, _)) = &mut self.listed else {
            let key = match &change {
                KeyChange::Put(kv) => kv.key.clone(),
                KeyChange::Delete { key, .. } => key.clone(),
            };
            self.changes.insert(key, change);
            return;
        };
        match change {
            KeyChange::Put(kv) => drop(all.insert(kv.key.clone(), kv)),
            KeyChange::Delete { key, .. } => drop(all.remove(&key)),
        }
    }

    fn take(&mut self) -> Option<Seen> {
        if let Some((all, revision)) = self.listed.take() {
            let all = all.into_values().collect();
            return Some(Seen::Listed { all, revision });
        }
        if !self.changes.is_empty() {
            if matches!(self.link, Some(Link::Fresh)) {
                self.link = None;
            }
            let changes = std::mem::take(&mut self.changes);
            return Some(Seen::Changed(changes.into_values().collect()));
        }
        Some(match self.link.take()? {
            Link::Fresh => Seen::Changed(Vec::new()),
            Link::Stale(why) => Seen::Stale(why),
        })
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::ErrorKind;

    fn kv(key: &'static str, mod_revision: i64) -> Kv {
        Kv {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::new(),
            create_revision: 1,
            mod_revision,
            lease: 0,
        }
    }

    fn gone(key: &'static str) -> KeyChange {
        KeyChange::Delete {
            key: Bytes::from_static(key.as_bytes()),
            mod_revision: 9,
            last: kv(key, 3),
        }
    }

    fn read(mailbox: &Mailbox) -> Vec<String> {
        let mut words = Vec::new();
        while let Some(seen) = mailbox.take().now_or_never() {
            words.push(match seen {
                Seen::Listed { all, revision } => format!("={}@{revision}", all.len()),
                Seen::Changed(changes) => format!("~{}", changes.len()),
                Seen::Stale(_) => "stale".into(),
            });
        }
        words
    }

    #[test]
    fn a_slow_reader_finds_the_state_and_not_the_history() {
        let mailbox = Mailbox::default();
        mailbox.put(Seen::Listed {
            all: vec![kv("a", 2), kv("b", 2)],
            revision: 2,
        });
        mailbox.put(Seen::Changed(vec![KeyChange::Put(kv("c", 3)), gone("a")]));
        mailbox.put(Seen::Changed(vec![gone("b")]));
        assert_eq!(read(&mailbox), ["=1@2"]);

        for revision in 4..1_000 {
            mailbox.put(Seen::Changed(vec![KeyChange::Put(kv("c", revision))]));
        }

        assert_eq!(read(&mailbox), ["~1"]);
    }

    #[test]
    fn being_out_of_reach_is_told_last_and_taken_back_when_it_is_over() {
        let mailbox = Mailbox::default();
        mailbox.put(Seen::Changed(vec![gone("b")]));
        mailbox.put(Seen::Stale(Error::new(ErrorKind::Unavailable, "watch")));
        assert_eq!(read(&mailbox), ["~1", "stale"]);

        mailbox.put(Seen::Stale(Error::new(ErrorKind::Unavailable, "watch")));
        mailbox.put(Seen::Changed(Vec::new()));

        assert_eq!(read(&mailbox), ["~0"]);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let mailbox = Mailbox::default();
        let writer = mailbox.clone();

        let (seen, ()) = tokio::join!(mailbox.take(), async move {
            tokio::task::yield_now().await;
            writer.put(Seen::Changed(Vec::new()));
        });

        assert!(matches!(seen, Seen::Changed(changes) if changes.is_empty()));
    }
}
