//! The one task behind a channel: what the registry and the connections say becomes views.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, yield_now},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared, View,
    checking::Checking,
    configured::Configured,
    ended::unshaken,
    pace::{Pace, Rest},
};
use crate::{
    Endpoint, Endpoints, Error, ErrorKind, Event, InstanceId,
    balance::{LeastLoaded, Pick, Policy},
    endpoint::{Dial, Limits, Set, Step},
    resolve::{Update, Updates},
    stage::{Seat, Spread},
    transport::{Connection, Dialer, Told},
};

/// See the module's documentation. Ends when `stop` is cancelled, which the last channel does when dropped;
/// what is said when it is dropped before, `ended` knows.
pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) policy: Arc<dyn Policy>,
    pub(super) dialer: Arc<Dialer>,
    pub(super) limits: Limits,
    /// How long calls in flight may go on at an endpoint that has left.
    pub(super) drain: Option<Duration>,
    pub(super) checking: Checking,
    pub(super) configured: Configured,
    /// How long without a call until all connections are let go of.
    pub(super) idle: Option<Duration>,
    /// Where the channel's number among all clients comes from, if it has one.
    pub(super) seat: Option<Seat>,
    /// Endpoints whose connections have no room; each at most once until it was seen to.
    pub(super) crowded: mpsc::UnboundedReceiver<InstanceId>,
    pub(super) stop: CancellationToken,
}

/// What a connection's task has to say: three words in its life, and now and then that it is idle; so the
/// queue is bounded by their number.
struct Word {
    id: InstanceId,
    attempt: u64,
    news: News,
}

enum News {
    Up(Connection),
    GoingAway(Error),
    Idle,
    Down(Error),
}

/// How a connection's task speaks. Its last word is that it is down, even if a `Connect` of the user's
/// panics: a word that never came would leave the endpoint connecting for ever.
struct Voice {
    speak: mpsc::UnboundedSender<Word>,
    id: InstanceId,
    attempt: u64,
    why: Option<Error>,
}

struct Running {
    driver: Driver,
    set: Set,
    pace: Pace,
    rest: Option<Rest>,
    /// The policy is another one.
    repick: bool,
    dials: HashMap<u64, AbortHandle>,
    /// The connections that take calls.
    links: HashMap<u64, Arc<Connection>>,
    speak: mpsc::UnboundedSender<Word>,
    words: mpsc::UnboundedReceiver<Word>,
}

/// So many of a registry's words are taken at once: about two milliseconds' work.
const PART: usize = 1024;

/// So many words are heard before a view is made of them.
const BURST: usize = 1024;

/// A connection beside the first that carries no call for this long, or up to twice that, is closed. Short
/// enough to be gone after a rush, long enough not to be made again for each one.
const SPARE: Duration = Duration::from_secs(30);

impl Driver {
    pub(super) async fn run(self, updates: Updates) {
        let (speak, words) = mpsc::unbounded_channel();
        let running = Running {
            set: Set::new(self.limits.clone()),
            pace: Pace::new(),
            rest: self.idle.map(Rest::new),
            repick: false,
            dials: HashMap::new(),
            links: HashMap::new(),
            speak,
            words,
            driver: self,
        };
        running.run(updates).await;
    }
}

impl Running {
    async fn run(mut self, updates: Updates) {
        let stop = self.driver.stop.clone();
        let shared = Arc::clone(&self.driver.shared);
        let alarm = Arc::clone(&self.driver.limits.health.alarm);
        // The end of the updates keeps the set.
        let mut updates = unshaken(updates).chain(futures_util::stream::pending());
        let mut heard = Vec::new();
        loop {
            let due = self.set.next_due();
            let publish = self.pace.due();
            let rest = self
                .rest
                .as_ref()
                .map(|rest| rest.look)
                .filter(|_| !self.set.is_asleep());
            let hurried = publish.is_some() || self.set.is_asleep();
            tokio::select! {
                () = stop.cancelled() => break,
                _ = self.words.recv_many(&mut heard, BURST) => self.hear(&mut heard),
                () = self.driver.checking.news() => self.judge(),
                Some(update) = updates.next() => self.hear_of(update).await,
                Some(id) = self.driver.crowded.recv() => self.crowded(&id),
                said = self.driver.configured.next() => self.configured(said.as_deref()),
                () = alarm.rung() => self.alarmed(),
                () = reseated(&mut self.driver.seat) => self.reseated(),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.tick(),
                () = sleep_until(publish.unwrap_or_else(Instant::now)), if publish.is_some() => self.publish(),
                () = sleep_until(rest.unwrap_or_else(Instant::now)), if rest.is_some() => self.rest(),
                () = shared.hurry.notified(), if hurried => self.hurry(),
            }
            self.keep_pace();
        }
        self.end();
    }

    /// What there is very much of is taken in parts: whoever else runs on this thread is not to wait for all
    /// of it. The calls of this channel are not either, if they have nobody yet.
    async fn hear_of(&mut self, update: Update) {
        let (news, all) = match update {
            Update::Reset(all) if all.len() > PART => (self.set.newcomers(&all), Some(all)),
            Update::Delta(news) if news.len() > PART => (news, None),
            few => return self.apply(few),
        };
        self.set.make_room(&news);
        let mut news = news.into_iter();
        while news.len() > 0 {
            self.apply(Update::Delta(news.by_ref().take(PART).collect()));
            self.keep_pace();
            yield_now().await;
        }
        if let Some(all) = all {
            self.apply(Update::Reset(all));
        }
    }

    fn apply(&mut self, update: Update) {
        let steps = self.set.apply(update, Instant::now());
        self.take(steps);
    }

    /// What the service's owner wants of calls is this now.
    fn configured(&mut self, said: Option<&str>) {
        let driver = &mut self.driver;
        match driver.configured.adopt(said, &driver.shared) {
            Ok(None) => self.tell(Event::Configured),
            Ok(Some(policy)) => {
                driver.policy = policy;
                self.repick = true;
                self.publish();
                self.tell(Event::Configured);
            }
            Err(error) => self.tell(Event::Misconfigured(error)),
        }
    }

    fn judge(&mut self) {
        let now = Instant::now();
        let mut unwell = false;
        for (id, verdict) in self.driver.checking.take() {
            unwell |= !verdict.is_healthy();
            let steps = self.set.judged(&id, verdict, now);
            self.take(steps);
        }
        if unwell {
            // No view is held back that keeps calls from where they are not wanted.
            self.publish();
        }
    }

    /// Lets go of all connections when there was no call since it was last looked.
    fn rest(&mut self) {
        let endpoints = self.set.endpoints();
        let calls = endpoints.iter().map(Endpoint::calls);
        let calls = calls.fold(0, u64::wrapping_add);
        let busy = endpoints.iter().any(|endpoint| endpoint.in_flight() > 0)
            || self.driver.shared.waiting.load(Ordering::SeqCst) > 0;
        let now = Instant::now();
        if self
            .rest
            .as_mut()
            .is_some_and(|rest| rest.is_over(calls, busy, now))
        {
            tracing::debug!(service = %self.driver.shared.service, "no calls; connections are let go of");
            let steps = self.set.sleep(now);
            self.take(steps);
        }
    }

    fn tick(&mut self) {
        let steps = self.set.tick(Instant::now());
        self.take(steps);
    }

    fn hear(&mut self, words: &mut Vec<Word>) {
        let now = Instant::now();
        for Word { id, attempt, news } in words.drain(..) {
            let steps = match news {
                News::Up(connection) => self.up(&id, attempt, connection, now),
                News::GoingAway(why) => {
                    let answered = self.answered(attempt);
                    self.set.going_away(&id, attempt, why, answered, now)
                }
                News::Idle => self.set.idle(&id, attempt, now),
                News::Down(error) => {
                    let answered = self.answered(attempt);
                    self.dials.remove(&attempt);
                    if let Some(connection) = self.links.remove(&attempt)
                        && let Some(vitals) = self.set.vitals(&id)
                    {
                        vitals.links().remove(&connection);
                    }
                    let steps = self.set.down(&id, attempt, error, answered, now);
                    self.ask_elsewhere(attempt);
                    steps
                }
            };
            self.take(steps);
        }
    }

    fn up(
        &mut self,
        id: &InstanceId,
        attempt: u64,
        connection: Connection,
        now: Instant,
    ) -> Vec<Step> {
        self.dials.remove(&attempt);
        let (wanted, steps) = self.set.up(id, attempt, now);
        let Some(vitals) = self.set.vitals(id).filter(|_| wanted) else {
            // The endpoint moved or left while this was being made.
            connection.drain(None);
            return steps;
        };
        let address = connection.address().clone();
        let connection = Arc::new(connection);
        let is_another = vitals.links().first().is_some();
        vitals.links().add(Arc::clone(&connection));
        if is_another {
            // No view will tell of it, but calls may wait for it. Not before it is there to be seen.
            self.driver.shared.changed.send_modify(|_| {});
        }
        if let Some(endpoint) = self.set.endpoints().find(id) {
            let checking = &mut self.driver.checking;
            checking.begin(endpoint.instance_arc(), attempt, &connection);
        }
        self.links.insert(attempt, connection);
        self.tell(Event::Connected(id.clone(), address));
        steps
    }

    fn answered(&self, attempt: u64) -> bool {
        let link = self.links.get(&attempt);
        link.is_some_and(|connection| connection.answered())
    }

    /// Whoever was asked over this connection, which takes no more calls, is asked over another it has.
    fn ask_elsewhere(&mut self, attempt: u64) {
        let checking = &mut self.driver.checking;
        if let Some(id) = checking.end(attempt)
            && let Some(endpoint) = self.set.endpoints().find(&id)
            && let Some(oldest) = self.set.oldest(&id)
            && let Some(connection) = self.links.get(&oldest)
        {
            checking.begin(endpoint.instance_arc(), oldest, connection);
        }
    }

    fn reseated(&mut self) {
        let steps = self.set.reseated(Instant::now());
        self.take(steps);
    }

    /// Calls have seen something.
    fn alarmed(&mut self) {
        let notices = self.driver.limits.health.alarm.take();
        let steps = self.set.heard(notices, Instant::now());
        self.take(steps);
    }

    fn crowded(&mut self, id: &InstanceId) {
        let steps = self.set.crowded(id, Instant::now());
        self.take(steps);
    }

    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Dial(dial) => self.dial(dial),
                Step::Tell(event) => self.tell(event),
                Step::Drain(vitals, attempt) => {
                    if let Some(connection) = self.links.remove(&attempt) {
                        vitals.links().remove(&connection);
                        connection.drain(self.driver.drain);
                    }
                    self.ask_elsewhere(attempt);
                }
                Step::Abandon(attempt) => {
                    if let Some(dial) = self.dials.remove(&attempt) {
                        dial.abort();
                    }
                }
            }
        }
    }

    fn tell(&self, event: Event) {
        let service = &self.driver.shared.service;
        match event {
            Event::Panicked { .. } | Event::Misconfigured(_) => tracing::warn!(%service, "{event}"),
            Event::Ejected(..)
            | Event::Spared(..)
            | Event::Restored(..)
            | Event::Calmed { .. }
            | Event::Configured => {
                tracing::info!(%service, "{event}");
            }
            _ => tracing::debug!(%service, "{event}"),
        }
        // Nobody need listen.
        let _ = self.driver.shared.events.send(event);
    }

    /// One task for an attempt and, if it succeeds, for the connection's whole life. It ends with the
    /// connection, which ends when it breaks or when it is drained; both are this task's to see to.
    fn dial(&mut self, dial: Dial) {
        let dialer = Arc::clone(&self.driver.dialer);
        let Dial {
            instance,
            attempt,
            spare,
        } = dial;
        let voice = Voice {
            speak: self.speak.clone(),
            id: instance.id.clone(),
            attempt,
            why: None,
        };
        let task = tokio::spawn(async move {
            // In a box of its own, which is gone when the connection is up.
            let (connection, mut driver) = match Box::pin(dialer.dial(&instance)).await {
                Ok(made) => made,
                Err(error) => return voice.end(error),
            };
            if spare {
                driver = driver.tell_idle(SPARE);
            }
            voice.say(News::Up(connection));
            let why = driver.run(|told| match told {
                Told::GoingAway(why) => voice.say(News::GoingAway(why)),
                Told::Idle => voice.say(News::Idle),
                // Calls ask the connection for its room themselves.
                Told::Limit(calls) => {
                    tracing::debug!(id = %instance.id, calls, "new limit of calls at once")
                }
            });
            let why = why.await;
            voice.end(why);
        });
        self.dials.insert(attempt, task.abort_handle());
    }

    /// A view at once when there was peace; one for many changes in a storm; and no delay for a call that
    /// waits.
    fn keep_pace(&mut self) {
        if !self.set.take_changed() {
            return;
        }
        let now = Instant::now();
        if self.pace.may(now) || self.is_urgent() {
            self.publish();
        } else {
            self.pace.postpone();
        }
    }

    fn hurry(&mut self) {
        let waiting = self.driver.shared.waiting.load(Ordering::SeqCst) > 0;
        if self.set.is_asleep() && waiting {
            tracing::debug!(service = %self.driver.shared.service, "a call wakes the channel");
            let steps = self.set.wake(Instant::now());
            self.take(steps);
            self.rest = self.driver.idle.map(Rest::new);
        }
        if self.is_urgent() {
            self.publish();
        }
    }

    /// Whether calls wait because nobody in the view can take them.
    fn is_urgent(&self) -> bool {
        let shared = &self.driver.shared;
        let can_take = |endpoint: &Endpoint| endpoint.links().all().any(|c| c.accepts());
        shared.waiting.load(Ordering::SeqCst) > 0 && !shared.view.load().ready.iter().any(can_take)
    }

    fn publish(&mut self) {
        self.set.take_changed();
        let shared = &self.driver.shared;
        let before = shared.view.load();
        let ready = self.set.ready();
        let spread = self.set.spread();
        let as_before = match (&spread, &before.spread) {
            (Some(spread), Some(before)) => spread.is_like(before),
            (spread, before) => spread.is_none() && before.is_none(),
        };
        let other = std::mem::take(&mut self.repick) || !as_before;
        let same = ready.is_clone_of(&before.ready) && !other;
        let pick = if same {
            before.pick.clone()
        } else {
            (!ready.is_empty()).then(|| self.pick_over(ready, spread.as_ref()))
        };
        let number = before.number + 1;
        let known = self.set.endpoints();
        let size = known.len();
        shared.view.store(Arc::new(View {
            number,
            service: shared.service.clone(),
            known: known.clone(),
            ready: ready.clone(),
            on_trial: self.set.on_trial().clone(),
            panic: self.set.panic(),
            spread,
            pick,
            stale: self.set.stale().cloned(),
            held: self.set.held(),
            skipped: self.set.skipped().into(),
            listed: self.set.listed(),
            ended: None,
        }));
        shared.changed.send_replace(number);
        self.pace.published(Instant::now(), size);
    }

    /// A policy that panics must not take the channel along: another serves in its place.
    fn pick_over(&self, ready: &Endpoints, spread: Option<&Spread>) -> Arc<dyn Pick> {
        let policy = &self.driver.policy;
        let over = std::panic::AssertUnwindSafe(|| match spread {
            Some(spread) => spread.over(policy, ready),
            None => policy.over(ready),
        });
        let pick = std::panic::catch_unwind(over).unwrap_or_else(|_| {
            tracing::error!(
                ?policy,
                ready = ready.len(),
                "the policy panicked; least_loaded serves instead"
            );
            LeastLoaded.over(ready)
        });
        pick.into()
    }

    /// Attempts are given up; connections end when their calls in flight have ended.
    fn end(self) {
        for dial in self.dials.values() {
            dial.abort();
        }
        for connection in self.links.values() {
            connection.drain(self.driver.drain);
        }
    }
}

/// Returns when the number is another.
async fn reseated(seat: &mut Option<Seat>) {
    match seat {
        Some(seat) => seat.changed().await,
        None => std::future::pending().await,
    }
}

impl Voice {
    fn say(&self, news: News) {
        let (id, attempt) = (self.id.clone(), self.attempt);
        // Nobody listens any more when the channel is gone, and then nobody needs to know.
        let _ = self.speak.send(Word { id, attempt, news });
    }

    fn end(mut self, why: Error) {
        self.why = Some(why);
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        let cut_short = || Error::new(ErrorKind::Unavailable, "connecting was cut short");
        let why = self.why.take().unwrap_or_else(cut_short);
        self.say(News::Down(why));
    }
}
