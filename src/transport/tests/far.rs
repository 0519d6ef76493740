//! A server far away: how much it may send at once is how fast it is.

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};

use super::*;
use crate::transport::Windows;

const ROUND_TRIP: Duration = Duration::from_millis(100);

/// Carries bytes as they come, each half a round trip later.
fn far(near: DuplexStream) -> DuplexStream {
    let (here, there) = duplex(64 << 20);
    let ((from_near, to_near), (from_here, to_here)) = (split(near), split(here));
    carry(from_near, to_here);
    carry(from_here, to_near);
    there
}

fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
    let (send, mut on_its_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        let mut piece = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut piece).await {
            let _ = send.send((Instant::now() + ROUND_TRIP / 2, piece[..n].to_vec()));
        }
    });
    tokio::spawn(async move {
        while let Some((at, piece)) = on_its_way.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
}

/// How long each of so many answers of 8 MiB takes over one connection.
async fn large_answers(windows: Windows, answers: usize) -> Vec<Duration> {
    let (dialer, mut peers) = dialer(Settings {
        windows,
        ..Settings::default()
    });
    let serve = async {
        let server = h2::server::handshake(far(peers.recv().await.unwrap()));
        server.await.unwrap()
    };
    let (dialed, server) = tokio::join!(dial(&dialer), serve);
    let (dialed, mut calls) = (dialed.unwrap(), accepting(server));
    tokio::spawn(async move {
        while let Some((_, mut respond)) = calls.recv().await {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            write(&mut send, vec![0; 8 << 20].into()).await.unwrap();
            send.send_trailers(ok_trailers()).unwrap();
        }
    });
    let mut took = Vec::new();
    for _ in 0..answers {
        let began = Instant::now();
        let response = dialed.connection.call(&mut unary("large")).await.unwrap();
        assert_eq!(read(response).await.unwrap().0.len(), 8 << 20);
        took.push(Instant::now() - began);
    }
    took
}

#[tokio::test(start_paused = true)]
async fn a_far_servers_answers_become_as_fast_as_the_path_when_windows_adapt() {
    let fixed = large_answers(Windows::default(), 2).await;
    let adaptive = large_answers(Windows::adaptive(), 3).await;

    println!("fixed {fixed:?}, adaptive {adaptive:?}");
    assert!(fixed[1] > ROUND_TRIP * 7, "{fixed:?}");
    assert!(adaptive[2] < ROUND_TRIP * 3, "{adaptive:?}");
}
