//! Everything at once: whatever peers and callers do, nothing is left behind.

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::*;

/// Answers, refuses, resets, stalls and leaves, as chance has it; the answer is `true` for a goodbye.
async fn whim(mut rng: SmallRng, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    match rng.random_range(0..10) {
        0 => respond.send_reset(h2::Reason::REFUSED_STREAM),
        1 => respond.send_reset(h2::Reason::INTERNAL_ERROR),
        2 => drop(respond.send_response(Response::new(()), true)),
        3 => {
            let half = respond.send_response(Response::new(()), false);
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..3))).await;
            drop(half);
        }
        _ => drop(echo(request, respond).await),
    }
}

/// Serves connections for a random time each, ending half of them in order and half in the middle.
fn whimsical(mut peers: mpsc::UnboundedReceiver<DuplexStream>, seed: u64) {
    tokio::spawn(async move {
        let mut rng = SmallRng::seed_from_u64(seed);
        while let Some(peer) = peers.recv().await {
            let (life, orderly) = (rng.random_range(5..50), rng.random::<bool>());
            let mut rng = SmallRng::seed_from_u64(rng.random());
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(8).initial_window_size(2_000);
                let mut server = builder.handshake::<_, Bytes>(peer).await?;
                let end = tokio::time::sleep(Duration::from_millis(life));
                tokio::pin!(end);
                let mut leaving = false;
                loop {
                    tokio::select! {
                        call = server.accept() => {
                            let Some(call) = call else { return Ok(()) };
                            let (request, respond) = call?;
                            let rng = SmallRng::seed_from_u64(rng.random());
                            tokio::spawn(whim(rng, request, respond));
                        }
                        () = &mut end, if !leaving => {
                            if !orderly {
                                return Ok::<_, h2::Error>(());
                            }
                            leaving = true;
                            server.graceful_shutdown();
                        }
                    }
                }
            });
        }
    });
}

/// Calls as chance has it: small or large, whole or given up half-way, read or not.
async fn caller(connection: Connection, mut rng: SmallRng) -> usize {
    let mut answered = 0;
    for _ in 0..50 {
        let size = if rng.random_ratio(1, 5) { 30_000 } else { 20 };
        let mut call = unary(vec![7; size]);
        let patience = Duration::from_micros(rng.random_range(0..20_000));
        let response = tokio::time::timeout(patience, connection.call(&mut call)).await;
        let Ok(Ok(response)) = response else { continue };
        if rng.random_ratio(4, 5)
            && let Ok(Ok((body, Some(_)))) = tokio::time::timeout(patience, read(response)).await
        {
            assert_eq!(body.len(), size);
            answered += 1;
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_leaves_nothing_behind() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let (dialer, peers) = dialer(Settings::default());
    whimsical(peers, seed);

    let mut answered = 0;
    for _ in 0..30 {
        let Ok(dialed) = dial(&dialer).await else {
            continue;
        };
        let callers = (0..24).map(|_| {
            let rng = SmallRng::seed_from_u64(rng.random());
            tokio::spawn(caller(dialed.connection.clone(), rng))
        });
        for caller in callers.collect::<Vec<_>>() {
            answered += caller.await.unwrap();
        }

        assert_eq!(dialed.connection.open(), 0);
        drop(dialed.connection);
        let ended = tokio::time::timeout(secs(60), dialed.driver).await;
        ended
            .expect("the driver ends with the last handle")
            .unwrap();
    }

    assert!(answered > 0);
}
