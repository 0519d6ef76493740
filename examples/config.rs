//! Settings that follow etcd: `cargo run --features coord --example config -- etcd://127.0.0.1:2379`.
//!
//! Start it in several terminals: each doubles the limit once, and all of them see it. Or change it by hand:
//! `etcdctl put config/demo/limits '{"requests":7}'`; with something that is no limit, the last good one stays.

use std::{error::Error, time::Duration};

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tonic_fleet::coord::{Changed, Coordinator};

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Limits {
    requests: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("etcd://127.0.0.1:2379");
    let coordinator = Coordinator::connect(url.parse()?).await?;
    let config = coordinator.config("config/demo")?;

    // Each change, in order, beginning with how it stands.
    let mut changes = config.watch::<Limits>("limits")?;
    let watching = tokio::spawn(async move {
        while let Some(change) = changes.next().await {
            match change {
                Ok(Changed::Set(entry)) => println!("version {}: {:?}", entry.version, entry.value),
                Ok(Changed::Gone { .. }) => println!("there are no limits"),
                Ok(_) => println!("some changes were compacted before they were heard"),
                Err(error) => println!("{}", error.chain()),
            }
        }
    });

    // The last good value, at hand wherever it is needed.
    let limits = config.bind_or("limits", Limits { requests: 1 }).await?;
    // However many do so at once, each doubles what another left.
    let double = |old: Option<Limits>| Limits {
        requests: old.map_or(1, |old| old.requests.saturating_mul(2)),
    };
    let doubled = config.update("limits", double).await?;
    println!("doubled to {}", doubled.value.requests);

    // Several values at once, and only if nobody has changed the limits meanwhile.
    let mine = config
        .transaction()
        .when("limits", doubled.version)
        .set("doubled-by", &std::process::id())
        .set("doubled-to", &doubled.value.requests);
    if let Err(error) = mine.commit().await {
        println!("somebody was faster: {error}");
    }

    for _ in 0..30 {
        sleep(Duration::from_secs(1)).await;
        println!("requests may be {}", limits.load().requests);
    }
    coordinator.close().await?;
    watching.await?;
    Ok(())
}
