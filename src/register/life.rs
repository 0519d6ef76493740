//! Whether one who has our id is alive.

use std::{io, time::Duration};

use tokio::time::timeout;

use super::address::connect;
use crate::{Address, Instance};

/// A living server accepts within this.
const PATIENCE: Duration = Duration::from_millis(500);
/// So many addresses are looked at: each may be silent, one after the other.
const MOST: usize = 8;

/// What is seen of a stranger.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Life {
    Answers,
    Refuses,
    Silent,
}

/// Connects to a stranger, to see whether it is alive; four seconds at most.
pub(crate) async fn look(instance: &Instance) -> Life {
    look_by(instance, connect).await
}

async fn look_by(instance: &Instance, connect: impl AsyncFn(&Address) -> io::Result<()>) -> Life {
    // What was not looked at refuses nothing.
    let mut life = match instance.addresses.len() {
        ..=MOST => Life::Refuses,
        _ => Life::Silent,
    };
    for address in instance.addresses.iter().take(MOST) {
        match timeout(PATIENCE, connect(address)).await {
            Ok(Ok(())) => return Life::Answers,
            Ok(Err(error)) if is_refusal(address, &error) => {}
            Ok(Err(_)) | Err(_) => life = Life::Silent,
        }
    }
    life
}

/// Whether a failure to connect proves that nobody is there.
fn is_refusal(address: &Address, error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};

    match address {
        // Another machine's sockets are not to be seen from here.
        Address::Unix(_) => matches!(error.kind(), ConnectionRefused | NotFound),
        _ => error.kind() == ConnectionRefused,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn one_who_accepts_is_alive_and_one_who_refuses_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let instance = Instance::at(listener.local_addr().unwrap()).unwrap();
        assert_eq!(look(&instance).await, Life::Answers);

        drop(listener);

        assert_eq!(look(&instance).await, Life::Refuses);
    }

    #[tokio::test]
    async fn one_with_many_addresses_is_looked_at_for_a_while_only() {
        let [listener, closed] = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let refusing = Address::try_from(closed.local_addr().unwrap()).unwrap();
        drop(closed);
        let mut instance = Instance::at(listener.local_addr().unwrap()).unwrap();
        let answering = instance.addresses[0].clone();
        instance.addresses = vec![refusing; MOST];
        instance.addresses.push(answering);

        assert_eq!(look(&instance).await, Life::Silent);

        instance.addresses.remove(0);
        assert_eq!(look(&instance).await, Life::Answers);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_is_silent_may_be_either() {
        let instance = Instance::at("192.0.2.1:9").unwrap();

        let seen = look_by(&instance, async |_| std::future::pending().await);

        assert_eq!(seen.await, Life::Silent);
    }
}
