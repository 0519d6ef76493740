//! Whether anything grows while servers come and go: see `scripts/soak`.
#![allow(clippy::all, reason = "generated code beside")]

#[path = "../../../../examples/echo/generated.rs"]
#[allow(dead_code, reason = "its servers are elsewhere")]
mod echo;
mod fleet;
#[path = "../../common/grpc.rs"]
mod grpc;

use std::{process::ExitCode, sync::Arc, time::Duration};

use fleet::Fleet;
use grpc::Grpc;
use load::{Burden, Callers, Failure, Peer, Tally, Work, resident};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};
use tonic_fleet::Channel;

const HELP: &str = "\
scripts/soak: 256 callers for ten minutes while servers come and go; fails when anything has grown since the first minute

  --minutes N    how long, two at least (10)";

const CALLERS: usize = 256;
const SERVERS: usize = 8;
const BURDEN: Burden = Burden {
    work: Work::Unary,
    callers: CALLERS,
    size: 16,
    rate: None,
};

/// How long nothing comes or goes before memory and tasks are looked at: a removed server has five seconds to end
/// what it serves, and one that was refused is dialled again within seconds.
const CALM: Duration = Duration::from_secs(15);

/// How much may have been added to the resident memory since the first minute. The allocator hands out what was
/// freed in other places than before, so pages come to be used that were not: a tenth, and four MiB for small ones.
/// A leak of one connection, some 30 KiB, for each of the hundreds of servers that have come and gone is above that.
const SLACK: (f64, u64) = (0.1, 4 << 20);

/// How many tasks more may be alive. Each connection has a few; one dial that is just under way has one or two.
const TASKS: usize = 4;

fn main() -> ExitCode {
    let minutes = match minutes(std::env::args().skip(1).collect()) {
        Ok(Some(minutes)) => minutes,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("soak: {wrong}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let soaked = runtime
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(soak(minutes)));
    match soaked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

fn minutes(words: Vec<String>) -> Result<Option<u64>, String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => Ok(Some(10)),
        ["--help" | "-h"] => Ok(None),
        ["--minutes", number] => match number.parse() {
            Ok(number @ 2..=100_000) => Ok(Some(number)),
            _ => Err(format!(
                "--minutes takes a number from 2 on, not {number:?}"
            )),
        },
        _ => Err(format!(
            "{} means nothing here; --help says what does",
            words.join(" ")
        )),
    }
}

/// The channel under test, as callers take it.
struct Soaked(Channel);

impl Peer for Soaked {
    type Caller = Grpc<Channel>;

    async fn open(_: &[std::net::SocketAddr]) -> Result<Self, Failure> {
        Err("is handed its channel".into())
    }

    fn caller(&self, message: Arc<str>) -> Self::Caller {
        Grpc::new(self.0.clone(), message)
    }
}

/// What a process holds.
#[derive(Clone, Copy)]
struct Held {
    resident: u64,
    tasks: usize,
}

async fn soak(minutes: u64) -> Result<(), Failure> {
    let mut fleet = Fleet::start(SERVERS).await?;
    let channel = Channel::over(fleet.service.clone(), fleet.registry.clone()).build()?;
    let soaked = Soaked(channel.clone());
    let tally: Arc<Tally> = Arc::default();
    let began = Instant::now();
    let end = began + Duration::from_secs(60 * minutes);
    let last = end + Duration::from_secs(120);
    let callers = Callers::start(&soaked, BURDEN, last, &tally);
    println!(
        "{CALLERS} callers, {SERVERS} servers of which one is replaced every second or so, for {minutes} minutes"
    );
    println!(
        "{:>6}{:>12}{:>8}{:>10}{:>12}{:>9}",
        "s", "MiB", "tasks", "servers", "calls", "failed"
    );
    let (mut total, mut failures) = (0, 0);
    let mut first = None;
    let mut looks = 0_u32;
    while Instant::now() < end {
        fleet.replace_one().await?;
        looks += 1;
        if looks % 10 == 0 {
            let (calls, failed, error) = tally.take();
            (total, failures) = (total + calls, failures + failed);
            report(began, fleet.replaced, calls, failed, error.as_deref());
        }
        if first.is_none() && Instant::now() - began >= Duration::from_secs(60) - CALM {
            first = Some(calm(&channel, began, fleet.replaced).await?);
        }
    }
    let then = first.ok_or("the first minute was never over")?;
    let now = calm(&channel, began, fleet.replaced).await?;
    drop(callers);
    let (calls, failed, _) = tally.take();
    (total, failures) = (total + calls, failures + failed);
    println!(
        "{} servers were replaced; {total} calls went well, {failures} failed",
        fleet.replaced
    );
    judge(then, now)
}

/// Waits until nothing comes or goes any more, then looks.
async fn calm(channel: &Channel, began: Instant, replaced: usize) -> Result<Held, Failure> {
    sleep(CALM).await;
    let all_ready = async {
        while channel.view().ready().len() != SERVERS {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(45), all_ready)
        .await
        .map_err(|_| format!("not all servers are ready: {}", channel.view()))?;
    report(began, replaced, 0, 0, Some("nothing comes or goes; looked"));
    Ok(held())
}

fn held() -> Held {
    let tasks = Handle::current().metrics().num_alive_tasks();
    Held {
        resident: resident(),
        tasks,
    }
}

fn report(began: Instant, replaced: usize, calls: u64, failed: u64, what: Option<&str>) {
    let seconds = (Instant::now() - began).as_secs();
    let Held { resident, tasks } = held();
    println!(
        "{seconds:>6}{:>12.1}{tasks:>8}{replaced:>10}{calls:>12}{failed:>9}  {}",
        mib(resident),
        what.unwrap_or("")
    );
}

fn judge(then: Held, now: Held) -> Result<(), Failure> {
    let most = then.resident + SLACK.1 + (then.resident as f64 * SLACK.0) as u64;
    println!(
        "resident memory: {:.1} MiB after the first minute, {:.1} at the end (at most {:.1})",
        mib(then.resident),
        mib(now.resident),
        mib(most)
    );
    println!(
        "tasks: {} after the first minute, {} at the end (at most {})",
        then.tasks,
        now.tasks,
        then.tasks + TASKS
    );
    if now.resident > most {
        return Err("the resident memory has grown".into());
    }
    if now.tasks > then.tasks + TASKS {
        return Err("there are more tasks than there were".into());
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
