//! Workers that take turns: `cargo run --features coord --example lock -- etcd://127.0.0.1:2379`.
//!
//! Start it as often as you like, and kill (SIGKILL) or stop (SIGSTOP) some: one worker at a time is at work,
//! and what one that was stopped for too long would write is refused.

use std::{error::Error, time::Duration};

use tokio::time::sleep;
use tonic_fleet::coord::{Coordinator, Guard, Lock, Txn, TxnOp};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("etcd://127.0.0.1:2379");
    let coordinator = Coordinator::connect(url.parse()?).await?;
    let lock = coordinator.lock("locks/demo")?;

    let workers: Vec<_> = ["a", "b", "c"]
        .map(|name| tokio::spawn(work(name, lock.clone())))
        .into();
    for worker in workers {
        worker.await??;
    }

    if let Some(guard) = lock.try_acquire().await? {
        println!("nobody wants it any more");
        guard.unlock().await?;
    }
    coordinator.close().await?;
    Ok(())
}

async fn work(name: &str, lock: Lock) -> tonic_fleet::Result<()> {
    let process = std::process::id();
    for turn in 1..=5 {
        let guard = lock.acquire().await?;
        println!(
            "{process} {name}: turn {turn}, with fence {}",
            guard.fence()
        );
        // What is under way is dropped when the lock is lost, before anybody else has it.
        match guard.run(write_report(name, &guard)).await {
            Ok(written) => written?,
            Err(lost) => println!("{process} {name}: {}", lost.chain()),
        }
        // Dropping the guard would do, too; this waits until etcd has confirmed it.
        guard.unlock().await?;
    }
    Ok(())
}

async fn write_report(name: &str, guard: &Guard) -> tonic_fleet::Result<()> {
    sleep(Duration::from_millis(200)).await;
    // etcd itself refuses it when the lock is not ours any more, whatever our clock says.
    let write = Txn::new().and_then([TxnOp::put("demo/report", name, None)]);
    guard.guarded(write).await.map(drop)
}
