//! What happens in the demo, and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tonic_fleet::{Channel, Event, ServedBy};

use crate::{
    Plan, TTL,
    echo::{EchoClient, EchoRequest},
    flags::{self, Stop},
    picture::{Picture, Score},
    server::{SERVICE, Server},
    tally::Gap,
};

/// So many callers, each with a call every so often.
const CALLERS: usize = 10;
const PAUSE: Duration = Duration::from_millis(8);

const DEADLINE: Duration = Duration::from_secs(5);

/// How often the picture is drawn.
const FRAME: Duration = Duration::from_millis(200);

/// So many servers at first.
const SERVERS: usize = 4;

/// How long the first servers may take to be registered and connected.
const PATIENCE: Duration = Duration::from_secs(10);

/// What callers share.
struct Calls {
    ok: AtomicU64,
    failed: AtomicU64,
    repeated: AtomicU64,
    gap: Gap,
    /// Servers that were killed: what was in flight there may be called again, as an echo may.
    killed: Mutex<BTreeSet<String>>,
    last: Mutex<Option<Status>>,
}

/// What is done to the servers, in this order, again and again.
#[derive(Clone, Copy)]
enum Step {
    Kill,
    Add,
    Drain,
    Return,
}

const ROUND: [Step; 4] = [Step::Kill, Step::Add, Step::Drain, Step::Return];

/// The servers, by number: `s1` is the first.
struct Cast {
    plan: Plan,
    servers: BTreeMap<usize, Server>,
    starting: JoinSet<Result<(usize, Server), Stop>>,
    leaving: JoinSet<()>,
    /// Whether it is over, so that nobody waits for a server that is starting.
    over: CancellationToken,
    /// The number of the next new server.
    next: usize,
    /// The server killed last, and when.
    killed: Option<(usize, Instant)>,
}

/// Plays it, and says whether a call failed.
pub(crate) async fn play(plan: Plan) -> Result<ExitCode, Stop> {
    let target = plan.registry.service(SERVICE);
    let target = target.map_err(Stop::refused("--registry"))?;
    let channel = Channel::builder(target).build();
    let channel = channel.map_err(Stop::refused("--registry"))?;
    let mut cast = Cast::new(plan);
    let begun = tokio::select! {
        begun = cast.begin(&channel) => begun.map(|()| true),
        _ = tokio::signal::ctrl_c() => Ok(false),
    };
    let played = match begun {
        Ok(true) => Some(cast.act(&channel).await),
        _ => None,
    };
    // Whatever ended it, the servers leave in order.
    cast.leave().await;
    begun?;
    let Some(played) = played else {
        return Ok(ExitCode::SUCCESS);
    };
    let (picture, score, error) = played?;
    picture.end(score, error.as_ref(), Instant::now());
    // Who interrupts it before the first answer has seen no failure.
    Ok(ExitCode::from(u8::from(score.failed > 0)))
}

impl Cast {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            servers: BTreeMap::new(),
            starting: JoinSet::new(),
            leaving: JoinSet::new(),
            over: CancellationToken::new(),
            next: 1,
            killed: None,
        }
    }

    /// The first servers are up, and connected.
    async fn begin(&mut self, channel: &Channel) -> Result<(), Stop> {
        for _ in 0..SERVERS {
            self.add();
        }
        let up = async {
            while let Some(started) = self.starting.join_next().await {
                let (number, server) = sound(started)?;
                self.servers.insert(number, server);
            }
            channel.ready(SERVERS).await;
            Ok(())
        };
        timeout(PATIENCE, up).await.unwrap_or_else(|_| {
            Err(Stop::Failed(format!(
                "not all servers are up after {} s: is the registry in reach? {}",
                PATIENCE.as_secs(),
                channel.view()
            )))
        })
    }

    /// Lets things happen until the time is over, or Ctrl-C.
    async fn act(&mut self, channel: &Channel) -> Result<(Picture, Score, Option<Status>), Stop> {
        let began = Instant::now();
        let mut picture = Picture::new(self.plan.title.clone(), began);
        let calls = Arc::new(Calls::new(began));
        let stop = CancellationToken::new();
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let client = EchoClient::new(channel.clone());
            callers.spawn(call(client, Arc::clone(&calls), stop.clone()));
        }
        let mut events = channel.events();
        let mut frames = interval(FRAME);
        frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drawn = began;
        let mut lost = BTreeSet::new();
        // The first tick is at once, and nothing happens at it.
        let mut steps = interval(self.plan.round / (ROUND.len() as u32 + 1));
        let mut step = 0;
        loop {
            tokio::select! {
                at = frames.tick() => {
                    picture.show(&channel.view(), calls.score(at), at - drawn, at);
                    drawn = at;
                }
                Some(event) = events.next() => {
                    let what = event.to_string();
                    // A server that stays away is lost again at each attempt: that is no news.
                    if !matches!(event, Event::Lost(..)) || lost.insert(what.clone()) {
                        picture.tell(&what, Instant::now());
                    }
                }
                at = steps.tick() => {
                    if step > ROUND.len() && !self.plan.forever {
                        break;
                    }
                    if let Some(&next) = (step % (ROUND.len() + 1)).checked_sub(1).and_then(|n| ROUND.get(n)) {
                        picture.tell(&self.step(next, &calls, at), at);
                    }
                    step += 1;
                }
                Some(started) = self.starting.join_next() => {
                    let (number, server) = sound(started)?;
                    self.servers.insert(number, server);
                }
                Some(_) = self.leaving.join_next() => {}
                _ = tokio::signal::ctrl_c() => break,
            }
        }
        stop.cancel();
        callers.join_all().await;
        let now = Instant::now();
        let error = calls
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Ok((picture, calls.score(now), error))
    }

    /// Does the next thing, and says what.
    fn step(&mut self, step: Step, calls: &Calls, now: Instant) -> String {
        match step {
            Step::Add => format!("--- s{} is added", self.add()),
            Step::Kill => {
                // Not the oldest, which is the next to drain.
                let Some(number) = self.servers.keys().nth(1).copied() else {
                    return "--- nobody is left to kill".into();
                };
                calls.forgive(number);
                self.killed = Some((number, now));
                if let Some(server) = self.servers.remove(&number) {
                    self.leaving.spawn(server.kill());
                }
                format!("--- s{number} is killed")
            }
            Step::Drain => {
                let Some((number, server)) = self.servers.pop_first() else {
                    return "--- nobody is left to drain".into();
                };
                self.leaving.spawn(server.drain());
                format!("--- s{number} drains")
            }
            Step::Return => match self.killed {
                Some((number, _)) => {
                    self.start(number);
                    format!("--- s{number} is back")
                }
                None => "--- nobody was killed".into(),
            },
        }
    }

    fn add(&mut self) -> usize {
        let number = self.next;
        self.next += 1;
        self.start(number);
        number
    }

    fn start(&mut self, number: usize) {
        let (registry, url) = (self.plan.registry.clone(), self.plan.url.clone());
        let over = self.over.clone();
        self.starting.spawn(async move {
            let server = Server::start(&registry, &url, &format!("s{number}"), &over).await?;
            Ok((number, server))
        });
    }

    /// Nothing is left behind: no task, no process, no key.
    async fn leave(&mut self) {
        self.over.cancel();
        while let Some(started) = self.starting.join_next().await {
            if let Ok(Ok((number, server))) = started {
                self.servers.insert(number, server);
            }
        }
        while let Some((_, server)) = self.servers.pop_first() {
            self.leaving.spawn(server.leave());
        }
        while self.leaving.join_next().await.is_some() {}
        // A killed server's key goes with its lease.
        if let Some((number, at)) = self.killed
            && !self.plan.is_local()
        {
            let gone = at + TTL + Duration::from_secs(1);
            if gone > Instant::now() {
                flags::print(&format!(
                    "waiting for the lease of s{number}, which was killed, to run out"
                ));
                tokio::time::sleep_until(gone).await;
            }
        }
    }
}

/// What a task gave; its panic goes on here.
fn sound<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// One caller, until told to stop.
async fn call(mut client: EchoClient<Channel>, calls: Arc<Calls>, stop: CancellationToken) {
    while stop
        .run_until_cancelled(tokio::time::sleep(PAUSE))
        .await
        .is_some()
    {
        let mut outcome = client.unary_echo(ask()).await;
        if outcome.as_ref().is_err_and(|status| calls.was_cut(status)) {
            calls.repeated.fetch_add(1, Relaxed);
            outcome = client.unary_echo(ask()).await;
        }
        match outcome {
            Ok(_) => {
                calls.ok.fetch_add(1, Relaxed);
                calls.gap.success(Instant::now());
            }
            Err(status) => {
                calls.failed.fetch_add(1, Relaxed);
                *calls.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
            }
        }
    }
}

fn ask() -> Request<EchoRequest> {
    let mut request = Request::new(EchoRequest {
        message: "hello".into(),
    });
    request.set_timeout(DEADLINE);
    request
}

impl Calls {
    fn new(began: Instant) -> Self {
        Self {
            ok: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            gap: Gap::new(began),
            killed: Mutex::default(),
            last: Mutex::default(),
        }
    }

    /// Calls that are in flight at this server may be repeated from now on.
    fn forgive(&self, number: usize) {
        let mut killed = self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        killed.insert(format!("s{number}"));
    }

    /// Whether a call failed because its server was killed under it.
    fn was_cut(&self, status: &Status) -> bool {
        let killed = self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        status.code() == Code::Unavailable
            && ServedBy::of(status).is_some_and(|server| killed.contains(server.id().as_str()))
    }

    fn score(&self, now: Instant) -> Score {
        Score {
            ok: self.ok.load(Relaxed),
            failed: self.failed.load(Relaxed),
            repeated: self.repeated.load(Relaxed),
            gap: self.gap.longest(now),
        }
    }
}
