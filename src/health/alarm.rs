//! How a call that sees something wrong tells the channel's task.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{Error, InstanceId};

/// What calls have to say about endpoints, until the channel's task hears it. No more than one notice of
/// each kind is kept for an endpoint.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    notices: Mutex<BTreeMap<InstanceId, Notices>>,
    bell: Notify,
}

#[derive(Debug, Default)]
struct Notices {
    turned: Option<Notice>,
    overloaded: Option<Duration>,
}

/// What a call saw.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    /// The last straw.
    Tripped(Error),
    /// The last success that was wanted.
    Proved,
    /// It asks to be spared for so long.
    Overloaded(Duration),
}

impl Alarm {
    pub(crate) fn raise(&self, id: &InstanceId, notice: Notice) {
        let mut notices = self.notices();
        let about = notices.entry(id.clone()).or_default();
        match notice {
            Notice::Overloaded(time) => about.overloaded = Some(time),
            turned => about.turned = Some(turned),
        }
        drop(notices);
        self.bell.notify_one();
    }

    /// It has left: what was said about it says nothing about the next of its name.
    pub(crate) fn forget(&self, id: &InstanceId) {
        self.notices().remove(id);
    }

    /// Returns when something may have been said. Nothing is lost by dropping the future.
    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }

    /// What has been said since this was last asked.
    pub(crate) fn take(&self) -> Vec<(InstanceId, Notice)> {
        let notices = mem::take(&mut *self.notices());
        let each = notices.into_iter().flat_map(|(id, about)| {
            let overloaded = about.overloaded.map(Notice::Overloaded);
            let all = about.turned.into_iter().chain(overloaded);
            all.map(move |notice| (id.clone(), notice))
        });
        each.collect()
    }

    fn notices(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Notices>> {
        // Each write is whole, so a panic elsewhere leaves nothing half done.
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[tokio::test]
    async fn the_last_word_of_each_kind_is_heard_once() {
        let alarm = Alarm::default();
        let id: InstanceId = "a".parse().unwrap();
        let error = Error::new(ErrorKind::Unavailable, "five failures");

        alarm.raise(&id, Notice::Proved);
        alarm.raise(&id, Notice::Overloaded(Duration::from_secs(1)));
        alarm.raise(&id, Notice::Tripped(error));
        alarm.rung().await;

        let said = alarm.take();
        assert!(
            matches!(
                &said[..],
                [(_, Notice::Tripped(_)), (_, Notice::Overloaded(_))]
            ),
            "{said:?}"
        );
        assert!(alarm.take().is_empty());
    }
}
