//! Rooms that every node knows: `cargo run --features coord --example sync -- etcd://127.0.0.1:2379`.
//!
//! Start it in several terminals: each books seats at random, and all show the same.

use std::{error::Error, time::Duration};

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tonic_fleet::coord::{Changed, Coordinator, OnConflict};

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Room {
    seats: u32,
    booked: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("etcd://127.0.0.1:2379");
    let coordinator = Coordinator::connect(url.parse()?).await?;
    // Whole when this returns; what is read from here on is in memory.
    let rooms = coordinator.sync::<Room>("rooms").await?;

    if rooms.snapshot().is_empty() {
        let mut batch = rooms.batch();
        for at in 1..=300 {
            batch = batch.put(
                format!("room-{at:03}"),
                &Room {
                    seats: 4,
                    booked: 0,
                },
            );
        }
        // As many transactions as etcd makes necessary; each says what became of it.
        for chunk in batch.commit().await {
            println!("{} rooms at version {}", chunk.ids.len(), chunk.outcome?);
        }
    }

    let mut changes = rooms.changes();
    let showing = tokio::spawn(async move {
        while let Some(change) = changes.next().await {
            if let Ok(Changed::Set(entry)) = change
                && entry.value.booked > 0
            {
                println!("{}: {} booked", entry.name, entry.value.booked);
            }
        }
    });

    // Two who book the same room at the same moment do not both have its last seat.
    let careful = rooms.on_conflict(OnConflict::Refuse);
    for _ in 0..50 {
        let id = format!("room-{:03}", rand::random_range(1..=300));
        if let Some(room) = rooms
            .get(&id)
            .filter(|room| room.value.booked < room.value.seats)
        {
            let mut booked = room.value.clone();
            booked.booked += 1;
            if let Err(error) = careful.put(&id, &booked).await {
                println!("not booked: {}", error.chain());
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
    let taken: u32 = rooms.iter().map(|room| room.value.booked).sum();
    println!(
        "{taken} seats are booked; {} differences were repaired",
        rooms.repaired()
    );
    coordinator.close().await?;
    showing.await?;
    Ok(())
}
