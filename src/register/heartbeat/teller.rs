//! How an agent's task says how it stands.

use tokio::sync::watch;

use crate::{
    Error, InstanceId,
    register::{State, keeper::Report},
};

/// The task's end of the report.
pub(super) struct Teller {
    id: InstanceId,
    /// The version of the wish that was last taken.
    taken: u64,
    report: watch::Sender<Report>,
}

impl Teller {
    pub(super) fn new(id: InstanceId, report: watch::Sender<Report>) -> Self {
        Self {
            id,
            taken: 0,
            report,
        }
    }

    /// What is told next is about this version of the wish.
    pub(super) fn taken(&mut self, version: u64) {
        self.taken = version;
    }

    pub(super) fn online(&self) {
        self.reached(State::Registered);
    }

    pub(super) fn withdrawn(&self) {
        self.reached(State::Withdrawn);
    }

    fn reached(&self, state: State) {
        self.tell(|report| {
            report.state = state;
            report.error = None;
            report.tried = self.taken;
            report.reached = self.taken;
        });
    }

    /// The wish cannot be fulfilled now.
    pub(super) fn failed(&self, error: Error) {
        self.tell(|report| {
            report.state = State::after(&error);
            report.error = Some(error);
            report.tried = self.taken;
        });
    }

    /// Whether the wish can be fulfilled is not clear yet.
    pub(super) fn not_yet(&self, error: Error) {
        self.tell(|report| {
            report.state = State::after(&error);
            report.error = Some(error);
        });
    }

    /// Changes the report, and says a change of state once.
    fn tell(&self, what: impl FnOnce(&mut Report)) {
        let before = self.report.borrow().state;
        self.report.send_modify(what);
        let report = self.report.borrow();
        if report.state == before {
            return;
        }
        let (id, state) = (&self.id, report.state.code());
        match &report.error {
            Some(error) => {
                let error = error.chain();
                tracing::warn!(%id, state, error, "agent is not as wished");
            }
            None => tracing::info!(%id, state, "agent is as wished"),
        }
    }
}
