//! A contender's `main`.

use std::{io::BufRead, process::ExitCode, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};

use crate::{Ask, Burden, Callers, Failure, Figures, Peer, Sample, allocations, cpu, pin};

/// Does what standard input asks for until it ends: `PROGRAM WAY [CORE]`,
/// of which the way is for programs that hold several contenders.
pub fn run<P: Peer>() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let way = arguments.next().unwrap_or_default();
    if let Some(core) = arguments.next().and_then(|core| core.parse().ok()) {
        pin(core);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = runtime
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(obey::<P>()));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{way}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn obey<P: Peer>() -> Result<(), Failure> {
    let mut asked = asked();
    let mut peer = None;
    // Its callers end with it.
    let mut watch = None;
    while let Some(ask) = asked.recv().await {
        match (ask?, &mut peer) {
            (Ask::Open(servers), peer) => {
                *peer = Some(P::open(&servers).await?);
                answer(&"open")?;
            }
            (_, None) => return Err("asked to work before it was opened".into()),
            (
                Ask::Round {
                    burden,
                    millis,
                    count,
                },
                Some(peer),
            ) => {
                let time = Duration::from_millis(millis);
                answer(&round(peer, burden, time, count).await)?;
            }
            (
                Ask::Watch {
                    burden,
                    millis,
                    every,
                },
                Some(peer),
            ) => {
                watch = Some(start_watch(peer, burden, millis, every));
            }
            (Ask::Change(servers), Some(peer)) => peer.change(&servers)?,
        }
    }
    drop(watch);
    Ok(())
}

/// Read by a thread of its own, so that connections are looked after between rounds as well.
fn asked() -> mpsc::Receiver<Result<Ask, Failure>> {
    let (tell, told) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let ask = line
                .map_err(Failure::from)
                .and_then(|line| Ok(serde_json::from_str(&line)?));
            if tell.blocking_send(ask).is_err() {
                return;
            }
        }
    });
    told
}

fn answer(what: &impl serde::Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string(what)?);
    Ok(())
}

async fn round<P: Peer>(peer: &P, burden: Burden, time: Duration, count: bool) -> Figures {
    let tally = Arc::default();
    allocations::count(count);
    let before = (Instant::now(), cpu(), allocations::counted());
    Callers::start(peer, burden, before.0 + time, &tally)
        .done()
        .await;
    let after = (Instant::now(), cpu(), allocations::counted());
    allocations::count(false);
    let (calls, failed, error) = tally.take();
    Figures {
        calls,
        failed,
        error,
        seconds: (after.0 - before.0).as_secs_f64(),
        cpu_micros: (after.1 - before.1).as_secs_f64() * 1e6,
        p50: tally.latencies.quantile(0.5),
        p99: tally.latencies.quantile(0.99),
        p999: tally.latencies.quantile(0.999),
        allocations: after.2.0 - before.2.0,
        allocated: after.2.1 - before.2.1,
    }
}

fn start_watch<P: Peer>(
    peer: &P,
    burden: Burden,
    millis: u64,
    every: u64,
) -> tokio::task::JoinSet<()> {
    let tally = Arc::default();
    let began = Instant::now();
    let until = began + Duration::from_millis(millis);
    let callers = Callers::start(peer, burden, until, &tally);
    let mut watch = tokio::task::JoinSet::new();
    watch.spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(every));
        tick.tick().await;
        let mut last = false;
        while !last {
            tick.tick().await;
            last = Instant::now() >= until;
            let (calls, failed, error) = tally.take();
            let sample = Sample {
                at_millis: u64::try_from((Instant::now() - began).as_millis()).unwrap_or(u64::MAX),
                calls,
                failed,
                p50: tally.latencies.quantile(0.5),
                p99: tally.latencies.quantile(0.99),
                error,
                last,
            };
            tally.latencies.clear();
            if answer(&sample).is_err() {
                return;
            }
        }
        drop(callers);
    });
    watch
}
