//! What a backend works for: what should stand in the registry, and where to say what does.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::{Registration, State, registration::Ends};
use crate::{Error, ErrorKind, Instance, Result, ServiceName};

/// Two ends: the [`Registration`] wishes, and the backend's task makes it so through the [`Keeper`].
///
/// `key` says where the instance will stand, in words that a person finds it by.
///
/// # Errors
/// When no client could use the instance; see [`Instance::check`].
pub fn keep(
    service: &ServiceName,
    instance: Instance,
    key: impl Into<Arc<str>>,
) -> Result<(Registration, Keeper)> {
    instance.check()?;
    let instance = Arc::new(instance);
    let (wish, wished) = watch::channel(Wish {
        services: vec![service.clone()],
        own: Arc::clone(&instance),
        instance,
        unwell: None,
        gone: false,
        version: 1,
    });
    let (report, reported) = watch::channel(Report::default());
    let ends = Ends {
        wish,
        report: reported,
        key: key.into(),
        turn: Mutex::default(),
    };
    let keeper = Keeper {
        wished,
        taken: 0,
        goal: State::Registered,
        report,
    };
    Ok((Registration::new(ends), keeper))
}

/// What should stand in the registry.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Wish {
    /// Under which services; at least one.
    pub services: Vec<ServiceName>,
    /// What it should say. Not [serving](Instance::serving) once it drains.
    pub instance: Arc<Instance>,
    /// Nothing should stand there any more. Mark it as draining, then delete, within a time limit, and
    /// [end](Keeper::reached).
    pub gone: bool,
    /// What it says while it is well.
    pub(super) own: Arc<Instance>,
    /// Why it is not, if its checks say so.
    pub(crate) unwell: Option<Error>,
    /// Grows with every change.
    pub(super) version: u64,
}

impl Wish {
    /// What is unwell is to say that it takes no new calls.
    pub(super) fn settle(&mut self) {
        self.instance = match self.unwell {
            Some(_) => Arc::new((*self.own).clone().serving(false)),
            None => Arc::clone(&self.own),
        };
    }
}

/// What does stand there.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub(super) state: State,
    /// Why it is not as wished.
    pub(super) error: Option<Error>,
    /// Whether some of it stands, all the same.
    pub(super) partly: bool,
    /// The last wish that was tried, and the last that was fulfilled.
    pub(super) tried: u64,
    pub(super) reached: u64,
}

/// The backend's end of a registration; see [`keep`]. Its task ends with it, after a wish to be gone.
///
/// When the registration is dropped it wishes to be gone, so the task is never left behind.
#[derive(Debug)]
pub struct Keeper {
    wished: watch::Receiver<Wish>,
    /// The version of the wish that was last taken, and the state that fulfils it.
    taken: u64,
    goal: State,
    report: watch::Sender<Report>,
}

impl Drop for Keeper {
    /// A task that ends without having been asked to was dropped with its runtime, or has panicked: what it
    /// said last is true no longer.
    fn drop(&mut self) {
        if self.wished.borrow().gone {
            return;
        }
        self.report.send_if_modified(|report| {
            let stands = matches!(report.state, State::Registered | State::Draining);
            if stands {
                let why =
                    "nobody keeps it any more: the runtime that it was registered on has been shut down";
                report.state = State::Retrying;
                report.error = Some(Error::new(ErrorKind::Lost, why));
            }
            stands
        });
    }
}

impl Keeper {
    /// What should stand in the registry now. What is [`reached`](Self::reached) or
    /// [`failed`](Self::failed) next is this.
    pub fn wish(&mut self) -> Wish {
        let wish = self.wished.borrow_and_update().clone();
        self.taken = wish.version;
        self.goal = match (wish.gone, wish.instance.is_draining()) {
            (true, _) => State::Withdrawn,
            (false, true) => State::Draining,
            (false, false) => State::Registered,
        };
        wish
    }

    /// Returns when the wish is another than the one last taken.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) {
        if self.wished.changed().await.is_err() {
            // The last wish was to be gone, and it was taken.
            std::future::pending().await
        }
    }

    /// Returns when the wish is to be gone: work that takes long should stop then.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn leaving(&self) {
        let mut wished = self.wished.clone();
        if wished.wait_for(|wish| wish.gone).await.is_err() {
            std::future::pending().await
        }
    }

    /// The wish that was last taken is fulfilled.
    pub fn reached(&self) {
        self.tell(|report| {
            report.state = self.goal;
            report.error = None;
            report.partly = false;
            report.tried = self.taken;
            report.reached = self.taken;
        });
    }

    /// The wish that was last taken cannot be fulfilled now; the kind of the error tells the [`State`].
    pub fn failed(&self, error: Error) {
        self.not_reached(error, false);
    }

    /// The same, but some of what is wished does stand: in one of two layouts, say. A registration that
    /// begins like this is kept, and goes on trying.
    pub fn partly(&self, error: Error) {
        self.not_reached(error, true);
    }

    fn not_reached(&self, error: Error, partly: bool) {
        self.tell(|report| {
            report.state = State::after(&error);
            report.error = Some(error);
            report.partly = partly;
            report.tried = self.taken;
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
        let wish = self.wished.borrow();
        let (service, id, state) = (&wish.services[0], &wish.instance.id, report.state.code());
        match &report.error {
            Some(error) => {
                let error = error.chain();
                tracing::warn!(%service, %id, state, error, "registration is not as wished");
            }
            None => tracing::info!(%service, %id, state, "registration is as wished"),
        }
    }
}
