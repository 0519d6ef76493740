//! A suite that passes everybody shows nothing: one backend that keeps its word, and some that do not.

use std::sync::Mutex;

use futures_util::{StreamExt, stream};

use super::*;
use crate::{
    Memory,
    resolve::{Change, Update, Updates},
};

/// How a resolver breaks its word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    None,
    /// It says one instance of the first set later.
    Piecemeal,
    /// It says nothing of an empty set.
    Silent,
    /// It takes every deletion for a death.
    Killer,
    /// It takes no deletion for one.
    Doubter,
    /// An update is a departure and an arrival.
    Restless,
    /// It ends at the first outage.
    Fragile,
    /// It is never stale.
    Proud,
    /// It says all again, one by one, after an outage.
    Stammerer,
    /// It leaves out what has an odd id.
    Prim,
    /// Its task outlives its readers.
    Lingering,
    /// It panics.
    Panics,
}

#[derive(Clone)]
struct Mine {
    memory: Memory,
    fault: Fault,
    known: Arc<Mutex<Vec<Arc<Instance>>>>,
}

impl Mine {
    fn with(fault: Fault) -> Self {
        Self {
            memory: Memory::default(),
            fault,
            known: Arc::default(),
        }
    }

    fn distort(&self, update: Update) -> Vec<Update> {
        match (self.fault, update) {
            (Fault::Panics, _) => panic!("no more"),
            (Fault::Piecemeal, Update::Reset(mut all)) => {
                let last = all.pop().map(|last| Update::Delta(vec![Change::Put(last)]));
                [Update::Reset(all)].into_iter().chain(last).collect()
            }
            (Fault::Silent, Update::Reset(all)) if all.is_empty() => vec![],
            (Fault::Proud, Update::Stale(_)) => vec![],
            (Fault::Stammerer, Update::Reset(all)) => {
                self.known.lock().unwrap().clone_from(&all);
                vec![Update::Reset(all)]
            }
            (Fault::Stammerer, Update::Delta(changes)) if changes.is_empty() => {
                let known = self.known.lock().unwrap().clone();
                vec![Update::Delta(known.into_iter().map(Change::Put).collect())]
            }
            (Fault::Prim, Update::Reset(all)) => {
                let plain = |i: &Arc<Instance>| i.id.as_str().is_ascii();
                vec![Update::Reset(all.into_iter().filter(plain).collect())]
            }
            (_, Update::Delta(changes)) => {
                let changes = changes.into_iter().flat_map(|change| self.twist(change));
                vec![Update::Delta(changes.collect())]
            }
            (_, update) => vec![update],
        }
    }

    fn twist(&self, change: Change) -> Vec<Change> {
        match (self.fault, change) {
            (Fault::Killer, Change::Vanish(id)) => vec![Change::Remove(id)],
            (Fault::Doubter, Change::Remove(id)) => vec![Change::Vanish(id)],
            (Fault::Restless, Change::Put(instance)) => {
                vec![Change::Remove(instance.id.clone()), Change::Put(instance)]
            }
            (_, change) => vec![change],
        }
    }
}

impl Resolve for Mine {
    fn resolve(&self, service: &ServiceName) -> Updates {
        if self.fault == Fault::Lingering {
            tokio::spawn(std::future::pending::<()>());
        }
        let mine = self.clone();
        let updates = self.memory.resolve(service);
        let lasts = self.fault != Fault::Fragile;
        let updates = updates.take_while(move |update| {
            std::future::ready(lasts || !matches!(update, Update::Stale(_)))
        });
        Box::pin(updates.flat_map(move |update| stream::iter(mine.distort(update))))
    }
}

impl Backend for Mine {
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(self.clone())
    }

    fn registrar(&self) -> Result<Arc<dyn Register>, Stop> {
        Ok(Arc::new(self.memory.clone()))
    }

    async fn put(&mut self, service: &ServiceName, instances: &[Instance]) -> Done {
        for instance in instances {
            self.memory.put(service, instance.clone());
        }
        Ok(())
    }

    async fn remove(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
        ids.iter().for_each(|id| self.memory.remove(service, id));
        Ok(())
    }

    async fn vanish(&mut self, service: &ServiceName, ids: &[InstanceId]) -> Done {
        ids.iter().for_each(|id| self.memory.vanish(service, id));
        Ok(())
    }

    async fn cut(&mut self) -> Done {
        self.memory.outage(true);
        Ok(())
    }

    async fn heal(&mut self) -> Done {
        self.memory.outage(false);
        Ok(())
    }

    async fn expire(&mut self, service: &ServiceName, id: &InstanceId) -> Done {
        self.memory.vanish(service, id);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_keeps_its_word_passes() {
    let report = conform(async || Mine::with(Fault::None)).await;

    report.assert_held_but(&[]);
    assert_eq!(report.verdicts().count(), Case::ALL.len());
    assert!(
        report.to_string().ends_with("33 held, 0 skipped, 0 failed"),
        "{report}"
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_breaks_it_is_found_out_by_the_case_for_it() {
    for (fault, case, says) in [
        (
            Fault::Piecemeal,
            Case::WholeSetFirst,
            "instead of [\"reset 2\"]",
        ),
        (
            Fault::Piecemeal,
            Case::Thousand,
            "instead of [\"reset 1000\"]",
        ),
        (
            Fault::Silent,
            Case::EmptySet,
            "not within half a minute: exactly 0",
        ),
        (
            Fault::Killer,
            Case::Vanishing,
            "b alone is a suspect; known 2",
        ),
        (Fault::Killer, Case::Collapse, "all are suspects; known 0"),
        (Fault::Doubter, Case::ComingAndGoing, "suspects 2 (a b)"),
        (Fault::Doubter, Case::Registered, "suspects 1 (a)"),
        (
            Fault::Restless,
            Case::UpdateInPlace,
            "was told of changes to a alone",
        ),
        (Fault::Restless, Case::RegistrationUpdate, "-a was told"),
        (
            Fault::Fragile,
            Case::Outage,
            "the updates ended before it is stale",
        ),
        (
            Fault::Proud,
            Case::StartInAnOutage,
            "not within half a minute: it is stale",
        ),
        (Fault::Stammerer, Case::QuietCut, "nothing changed, and"),
        (Fault::Prim, Case::OddIds, "exactly 6 are known"),
        (Fault::Lingering, Case::NothingLeftRunning, "8 tasks run"),
        (Fault::Panics, Case::EmptySet, "it panicked: no more"),
    ] {
        let verdict = case.hold(&mut Mine::with(fault)).await;

        let Verdict::Failed(what) = verdict else {
            panic!("{fault:?} passes {case}: {verdict:?}");
        };
        assert!(what.contains(says), "{fault:?} in {case}: {what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_case_that_ends_in_a_cut_does_not_leave_the_registry_so() {
    let mut proud = Mine::with(Fault::Proud);
    let mut none = Mine {
        fault: Fault::None,
        ..proud.clone()
    };

    let failed = Case::Outage.hold(&mut proud).await;
    let next = Case::WholeSetFirst.hold(&mut none).await;

    assert!(matches!(failed, Verdict::Failed(_)), "{failed:?}");
    assert_eq!(next, Verdict::Held);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "not as expected: who_vanishes_is_a_suspect_until_he_is_back")]
async fn a_report_that_is_not_as_expected_stops_a_test() {
    let mut report = Report::default();
    let mut backend = Mine::with(Fault::Killer);
    for case in [Case::WholeSetFirst, Case::Vanishing] {
        report.add(case, case.hold(&mut backend).await);
    }

    report.assert_held_but(&[]);
}

#[test]
fn cases_are_called_by_different_sentences() {
    let mut codes: Vec<_> = Case::ALL.iter().map(|case| case.code()).collect();
    assert_eq!(
        Case::Emptied.to_string(),
        "a set that is emptied on purpose is empty"
    );

    codes.sort_unstable();
    codes.dedup();

    assert_eq!(codes.len(), Case::ALL.len());
}
