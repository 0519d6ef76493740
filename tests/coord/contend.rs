//! Contenders in several processes, and everything that can happen to them and to etcd.

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use etcd_client::{Client, WatchOptions};
use nix::{
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use tonic_fleet::coord::{Coordinator, Guard, Lock, Txn, TxnOp};

use crate::{
    etcd::{Cluster, Etcd},
    until_keys,
};

/// What a contender finds in its environment: the URL and the directory.
const CONTENDER: &str = "FLEET_TEST_CONTENDER";
/// Contenders in each process.
const EACH: usize = 2;
/// Longer than anybody should wait for a lock that all want, whatever happens.
const FOR_EVER: Duration = Duration::from_secs(60);

/// One stay in the critical section.
#[derive(Debug)]
struct Stay {
    pid: u32,
    fence: i64,
    from: u64,
    until: u64,
    /// What it wrote into the counter.
    wrote: Option<u64>,
}

/// When a process stood still.
#[derive(Debug)]
struct Stop {
    pid: u32,
    from: u64,
    until: u64,
}

/// Processes that contend, and where they leave what they did.
struct Contest {
    url: String,
    dir: TempDir,
    children: Vec<Child>,
    stops: Vec<Stop>,
}

/// The clock that all processes of this machine share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(now.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap()
}

#[tokio::test]
#[ignore = "is run by the others, as a process of its own"]
async fn contender() {
    let Ok(given) = env::var(CONTENDER) else {
        return;
    };
    let (url, dir) = given.split_once(' ').unwrap();
    let coordinator = Coordinator::connect(url.parse().unwrap()).await.unwrap();
    let lock = coordinator.lock("contest").unwrap();
    let mut all = Vec::new();
    for _ in 0..EACH {
        all.push(tokio::spawn(contend(lock.clone(), dir.into())));
    }
    for one in all {
        one.await.unwrap();
    }
    coordinator.close().await.unwrap();
}

async fn contend(lock: Lock, dir: PathBuf) {
    let name = format!("log.{}.{}", std::process::id(), rand::random::<u32>());
    let mut log = OpenOptions::new();
    let mut log = log.create(true).append(true).open(dir.join(name)).unwrap();
    let mut had = Instant::now();
    while !dir.join("stop").exists() {
        let waited = Instant::now() - had;
        assert!(waited < FOR_EVER, "no lock for {waited:?}");
        // A contender that is impatient now and then must leave nothing behind.
        let patience = match rand::random_range(0..10) {
            0 => Duration::from_millis(rand::random_range(0..20)),
            _ => Duration::from_secs(5),
        };
        match lock.acquire_within(patience).await {
            Ok(guard) => {
                stay(guard, &dir, &mut log).await;
                had = Instant::now();
            }
            Err(why) => assert!(why.is_transient(), "{}", why.chain()),
        }
    }
}

/// Adds one to a counter that nothing else protects, and writes our fence where it is guarded.
async fn stay(guard: Guard, dir: &Path, log: &mut fs::File) {
    let fence = guard.fence();
    let counter = dir.join("counter");
    let mut came_in = false;
    let work = guard.run(async {
        // Who is told at the door that it is lost was not inside. In one piece, as others read it meanwhile.
        let line = format!("in {fence} {}\n", now());
        log.write_all(line.as_bytes()).unwrap();
        came_in = true;
        let count: u64 = fs::read_to_string(&counter).unwrap().parse().unwrap();
        let write = Txn::new().and_then([TxnOp::put("guarded", fence.to_string(), None)]);
        // Whether it was written is in etcd's history.
        drop(guard.guarded(write).await);
        sleep(Duration::from_micros(rand::random_range(0..2_000))).await;
        let next = dir.join(format!("counter.{fence}"));
        fs::write(&next, (count + 1).to_string()).unwrap();
        fs::rename(next, counter).unwrap();
        count + 1
    });
    let wrote = work.await.ok();
    if came_in {
        let wrote = wrote.map_or_else(|| "-".into(), |count| count.to_string());
        let line = format!("out {fence} {} {wrote}\n", now());
        log.write_all(line.as_bytes()).unwrap();
    }
    if rand::random() {
        drop(guard);
    } else {
        drop(guard.unlock().await);
    }
}

impl Contest {
    fn of(url: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("counter"), "0").unwrap();
        Self {
            url,
            dir,
            children: Vec::new(),
            stops: Vec::new(),
        }
    }

    fn enter(&mut self) {
        let given = format!("{} {}", self.url, self.dir.path().display());
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "contend::contender"])
            .env(CONTENDER, given)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.children.push(child);
    }

    fn anybody(&self) -> usize {
        rand::random_range(0..self.children.len())
    }

    /// Stops somebody for longer than a lease.
    async fn stop(&mut self, how_long: Duration) {
        let pid = self.children[self.anybody()].id();
        let process = Pid::from_raw(pid.try_into().unwrap());
        let from = now();
        kill(process, Signal::SIGSTOP).unwrap();
        sleep(how_long).await;
        kill(process, Signal::SIGCONT).unwrap();
        // It goes on when it has its turn, with what it was about to do.
        let until = now() + 1_000_000_000;
        self.stops.push(Stop { pid, from, until });
    }

    /// Kills somebody, and lets another in.
    fn replace(&mut self) {
        let mut child = self.children.swap_remove(self.anybody());
        child.kill().unwrap();
        child.wait().unwrap();
        self.enter();
    }

    fn rounds(&self) -> usize {
        self.stays().len()
    }

    /// Returns when there were so many rounds.
    async fn reaches(&self, rounds: usize) {
        let reached = timeout(2 * FOR_EVER, async {
            while self.rounds() < rounds {
                sleep(Duration::from_millis(50)).await;
            }
        });
        reached.await.expect("the contest stands still");
    }

    /// Ends it; nobody may have failed.
    async fn end(&mut self) {
        fs::write(self.dir.path().join("stop"), "").unwrap();
        let until = Instant::now() + FOR_EVER;
        for mut child in self.children.drain(..) {
            while child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < until, "a contender waits for ever");
                sleep(Duration::from_millis(10)).await;
            }
            assert!(child.wait().unwrap().success());
        }
    }

    fn stays(&self) -> Vec<Stay> {
        let mut stays = Vec::new();
        for file in fs::read_dir(self.dir.path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let Some(rest) = name.strip_prefix("log.") else {
                continue;
            };
            let pid = rest.split('.').next().unwrap().parse().unwrap();
            let text = fs::read_to_string(&path).unwrap();
            let whole = text
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'));
            for line in whole {
                let words: Vec<_> = line.split(' ').collect();
                let number = |at: usize| words[at].parse::<u64>().unwrap();
                match words[0] {
                    "in" => stays.push(Stay {
                        pid,
                        fence: words[1].parse().unwrap(),
                        from: number(2),
                        // Who was killed inside wrote no more.
                        until: number(2),
                        wrote: None,
                    }),
                    _ => {
                        let stay = stays.last_mut().unwrap();
                        stay.until = number(2);
                        stay.wrote = words[3].parse().ok();
                    }
                }
            }
        }
        stays.sort_by_key(|stay| stay.from);
        stays
    }

    /// Fails unless all overlaps are those of one who stood still meanwhile; says how many there were.
    fn check(&self) -> usize {
        let stays = self.stays();
        let frozen = |stay: &Stay| {
            let within = |stop: &Stop| stop.from < stay.until && stay.from < stop.until;
            self.stops
                .iter()
                .any(|stop| stop.pid == stay.pid && within(stop))
        };
        let mut overlaps = 0;
        for (at, first) in stays.iter().enumerate() {
            let over = |later: &&Stay| later.from < first.until;
            for later in stays[at + 1..].iter().take_while(over) {
                overlaps += 1;
                assert!(frozen(first) || frozen(later), "{first:?} and {later:?}");
            }
        }
        let mut awake: Vec<_> = stays.iter().filter(|stay| !frozen(stay)).collect();
        assert!(
            awake.windows(2).all(|two| two[0].fence < two[1].fence),
            "fences grow with every holder"
        );
        awake.sort_by_key(|stay| stay.wrote);
        let twice = awake
            .windows(2)
            .find(|two| two[0].wrote.is_some() && two[0].wrote == two[1].wrote);
        assert!(twice.is_none() || overlaps > 0, "{twice:?}");
        overlaps
    }
}

/// The fences that were written where the lock guards, in order.
async fn guarded(mut client: Client, enough: i64) -> Vec<i64> {
    let options = WatchOptions::new().with_start_revision(1);
    let mut stream = client.watch("guarded", Some(options)).await.unwrap();
    let mut fences = Vec::new();
    loop {
        let message = timeout(FOR_EVER, stream.message()).await.unwrap();
        for event in message.unwrap().unwrap().events() {
            let kv = event.kv().unwrap();
            fences.push(kv.value_str().unwrap().parse().unwrap());
            if kv.mod_revision() >= enough {
                return fences;
            }
        }
    }
}

async fn check_guarded(etcd: &Etcd) {
    let got = etcd.client().await.get("guarded", None).await.unwrap();
    let fences = guarded(etcd.client().await, got.kvs()[0].mod_revision()).await;
    assert!(fences.is_sorted(), "a stale write was accepted: {fences:?}");
    println!("{} guarded writes", fences.len());
}

/// Keys and leases are all gone, once the leases of those who were killed have ended.
async fn check_left(etcd: &Etcd) {
    until_keys(etcd, "contest/", 0).await;
    let gone = timeout(FOR_EVER, async {
        while crate::leases(etcd).await > 0 {
            sleep(Duration::from_millis(50)).await;
        }
    });
    gone.await.expect("leases are left");
}

#[tokio::test]
async fn contenders_exclude_each_other_while_they_and_etcd_are_frozen_and_killed() {
    let mut etcd = Etcd::start().await;
    let mut contest = Contest::of(etcd.url() + "?ttl=2s");
    for _ in 0..4 {
        contest.enter();
    }
    contest.reaches(40).await;

    contest.stop(Duration::from_millis(2_500)).await;
    contest.replace();
    contest.reaches(contest.rounds() + 20).await;
    etcd.restart().await;
    contest.reaches(contest.rounds() + 20).await;
    etcd.freeze();
    // Whoever is inside has two seconds to hear that it is lost, however busy the machine is.
    sleep(Duration::from_secs(4)).await;
    etcd.thaw();
    contest.reaches(contest.rounds() + 20).await;
    contest.end().await;

    let overlaps = contest.check();
    println!("{} rounds, {overlaps} overlaps", contest.rounds());
    check_guarded(&etcd).await;
    check_left(&etcd).await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn two_thousand_rounds_with_every_fault_on_three_members() {
    let mut cluster = Cluster::start().await;
    let mut contest = Contest::of(cluster.url() + "?ttl=2s");
    for _ in 0..4 {
        contest.enter();
    }
    contest.reaches(50).await;

    let (mut fault, until) = (0, Instant::now() + 10 * FOR_EVER);
    while contest.rounds() < 2_000 || fault < 12 {
        assert!(Instant::now() < until, "only {} rounds", contest.rounds());
        let leader = cluster.leader().await;
        match fault % 6 {
            0 => contest.stop(Duration::from_secs(3)).await,
            1 => contest.replace(),
            2 => cluster.0[leader].restart().await,
            3 => {
                cluster.0[(leader + 1) % 3].freeze();
                sleep(Duration::from_secs(4)).await;
                cluster.0[(leader + 1) % 3].thaw();
            }
            4 => {
                cluster.0[leader].kill();
                sleep(Duration::from_secs(1)).await;
                cluster.0[leader].restart().await;
            }
            _ => {
                cluster.0.iter().for_each(Etcd::freeze);
                sleep(Duration::from_secs(3)).await;
                cluster.0.iter().for_each(Etcd::thaw);
            }
        }
        cluster.ready().await;
        fault += 1;
        contest.reaches(contest.rounds() + 100).await;
    }
    contest.end().await;

    let overlaps = contest.check();
    println!(
        "{} rounds, {fault} faults, {overlaps} overlaps",
        contest.rounds()
    );
    check_guarded(&cluster.0[0]).await;
    check_left(&cluster.0[0]).await;
}
