//! Who serves what, for those who do not balance: `cargo run --features coord --example directory -- etcd://127.0.0.1:2379`.
//!
//! Registers two instances, finds them, follows what happens to them, and leaves nothing behind.

use std::error::Error;

use futures_util::StreamExt;
use tonic_fleet::{
    Instance,
    coord::{Coordinator, Event, EventKind},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("etcd://127.0.0.1:2379");
    let coordinator = Coordinator::connect(url.parse()?).await?;
    let registry = coordinator.registry()?;

    // Each is there from here on, whatever happens to etcd, until it is unregistered or the coordinator is closed.
    let blue = Instance::at("10.0.0.1:50051")?.id("blue")?;
    registry.register("demo/printer", blue.clone()).await?;
    let green = Instance::at("10.0.0.2:50051")?.id("green")?;
    registry.register("demo/printer", green).await?;
    // One that was registered here is changed by registering it again.
    registry.register("demo/printer", blue.weight(3)).await?;

    // As the cluster agrees on it, now.
    for service in registry.services().await? {
        println!("service {service}");
    }
    for instance in registry.discover("demo/printer").await? {
        println!("{} at {}", instance.id, instance.addresses[0]);
    }

    // Who is there, and then what happens, until the coordinator is closed.
    let mut events = registry.watch("demo/printer")?;
    for _ in 0..2 {
        events.next().await.iter().for_each(tell);
    }
    // It is marked first, so that nobody takes its going for a crash.
    registry.unregister("demo/printer", "blue").await?;
    while let Some(event) = events.next().await {
        tell(&event);
        if event.kind == EventKind::Delete {
            break;
        }
    }

    // Withdraws the other.
    coordinator.close().await?;
    Ok(())
}

fn tell(event: &Event) {
    let id = &event.instance.id;
    match event.kind {
        EventKind::Put if event.instance.is_draining() => println!("{id} is leaving"),
        EventKind::Put => println!("{id} is there since version {}", event.at),
        EventKind::Delete => println!("{id} is gone"),
        _ => {}
    }
}
