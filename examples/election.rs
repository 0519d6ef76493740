//! Candidates, one of whom leads: `cargo run --features coord --example election -- etcd://127.0.0.1:2379 [NAME]`.
//!
//! Start it in several terminals, and end some with Ctrl-C, or kill them: all say who leads, and the leader
//! says that it works.

use std::{error::Error, time::Duration};

use futures_util::StreamExt;
use tokio::{signal::ctrl_c, time::sleep};
use tonic_fleet::coord::{Coordinator, Leaders, Leadership};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next();
    let url = url.as_deref().unwrap_or("etcd://127.0.0.1:2379");
    let name = args.next();
    let name = name.unwrap_or_else(|| format!("candidate {}", std::process::id()));

    let coordinator = Coordinator::connect(url.parse()?).await?;
    let election = coordinator.election("elections/demo")?;
    let observing = tokio::spawn(observe(election.observe()));

    println!("{name} stands for election");
    let leading = async {
        loop {
            // In line, first come, first served.
            let leadership = election.campaign(&name).await?;
            if let Err(lost) = lead(&leadership, &name).await {
                println!("{name} leads no more: {}", lost.chain());
            }
        }
    };
    let ended: tonic_fleet::Result<()> = tokio::select! {
        ended = leading => ended,
        // Dropping a campaign or a leadership leaves the line.
        _ = ctrl_c() => Ok(()),
    };
    coordinator.close().await?;
    observing.await?;
    Ok(ended?)
}

async fn lead(leadership: &Leadership, name: &str) -> tonic_fleet::Result<()> {
    // Dropped when we lead no more, before anybody else does.
    let work = async {
        for hour in 1.. {
            sleep(Duration::from_secs(1)).await;
            leadership
                .proclaim(format!("{name}, at work for {hour} s"))
                .await?;
        }
        Ok(())
    };
    leadership.run(work).await?
}

async fn observe(mut leaders: Leaders) {
    while let Some(leader) = leaders.next().await {
        match leader {
            Some(leader) => println!("leader: {}", String::from_utf8_lossy(&leader.value)),
            None => println!("leader: nobody"),
        }
    }
}
