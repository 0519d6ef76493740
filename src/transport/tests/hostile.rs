//! Peers that break the rules, or keep them to the letter only: one connection fails, with one error.

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use super::*;

/// An HTTP/2 frame.
pub(in crate::transport) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

/// SETTINGS that allow this many streams at once.
fn streams(limit: u32) -> Vec<u8> {
    let mut setting = vec![0, 3];
    setting.extend(limit.to_be_bytes());
    frame(SETTINGS, 0, 0, &setting)
}

/// A connection to a peer that has sent its settings, and both halves of the peer.
async fn raw(first: &[u8]) -> (Dialed, ReadHalf<DuplexStream>, WriteHalf<DuplexStream>) {
    let (dialer, mut peers) = dialer(Settings::default());
    let (dialed, peer) = tokio::join!(dial(&dialer), async {
        let mut peer = peers.recv().await.unwrap();
        peer.write_all(first).await.unwrap();
        peer
    });
    let (read, write) = tokio::io::split(peer);
    (dialed.unwrap(), read, write)
}

/// Reads and forgets.
fn swallow(mut read: ReadHalf<DuplexStream>) {
    tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
}

#[tokio::test]
async fn broken_http2_fails_the_call_and_the_connection_with_one_error() {
    let large = vec![0; 20_000];
    for (words, what) in [
        (frame(HEADERS, 4, 2, b""), "headers on a stream of its own"),
        (
            frame(HEADERS, 4, 1, &[0xff; 32]),
            "headers that do not decode",
        ),
        (frame(0, 0, 1, &large), "a frame larger than allowed"),
        (frame(0, 0, 7, b"x"), "data on a stream that does not exist"),
        (
            frame(RST_STREAM, 0, 9, &[0; 4]),
            "a reset of a stream that does not exist",
        ),
        (frame(SETTINGS, 0, 0, b"odd"), "settings of a wrong size"),
        (frame(PING, 0, 0, b"short"), "a ping of a wrong size"),
        (frame(CONTINUATION, 4, 1, b""), "a continuation of nothing"),
        (vec![0xff; 100], "no frame at all"),
    ] {
        let (dialed, read, mut write) = raw(&frame(SETTINGS, 0, 0, b"")).await;
        swallow(read);
        let mut call = unary("hello");

        let (failure, ()) = tokio::join!(dialed.connection.call(&mut call), async {
            // The call is open when the words come.
            while dialed.connection.open() == 0 {
                tokio::task::yield_now().await;
            }
            write.write_all(&words).await.unwrap();
        });

        let failure = failure.err().unwrap();
        assert!(matches!(failure, Failure::Broken(_)), "{what}: {failure:?}");
        let why = dialed.driver.await.unwrap();
        assert_eq!(why.kind(), ErrorKind::Unavailable, "{what}");
        assert!(!dialed.connection.accepts(), "{what}");
    }
}

#[tokio::test]
async fn a_flood_of_pings_from_a_peer_that_does_not_read_is_not_hoarded() {
    let (dialed, _unread, mut write) = raw(&frame(SETTINGS, 0, 0, b"")).await;
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(1_000);

    let flood = async {
        for n in 0..1_000 {
            let written =
                tokio::time::timeout(Duration::from_millis(200), write.write_all(&pings)).await;
            if written.is_err() {
                return n;
            }
        }
        1_000
    };

    assert!(
        flood.await < 100,
        "the flood stands still when its answers do"
    );
    drop((write, _unread));
    dialed.driver.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_reads_is_noticed() {
    let (dialed, _unread, _write) = raw(&frame(SETTINGS, 0, 0, b"")).await;
    let began = Instant::now();
    let mut large = unary(vec![0; 1 << 20]);

    let failure = dialed.connection.call(&mut large).await.unwrap_err();

    let Failure::Broken(error) = failure else {
        panic!("it was sent")
    };
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(Instant::now() - began, secs(25));
}

#[tokio::test]
async fn a_window_of_zero_holds_a_call_until_it_opens() {
    let mut shut = h2::server::Builder::new();
    shut.initial_window_size(0);
    let (dialed, mut server) = served_by(shut, Settings::default()).await;
    let mut small = unary("hello");
    let mut large = unary(vec![1; 100_000]);
    let small = dialed.connection.call(&mut small);
    let large = dialed.connection.call(&mut large);
    let serving = async {
        let mut accepted = Vec::new();
        for _ in 0..2 {
            accepted.push(server.accept().await.unwrap().unwrap());
        }
        server.set_initial_window_size(1_000).unwrap();
        echoing(server);
        for (request, respond) in accepted {
            tokio::spawn(echo(request, respond));
        }
    };

    let (small, large, ()) = tokio::join!(small, large, serving);

    let (small, large) = tokio::join!(read(small.unwrap()), read(large.unwrap()));
    assert_eq!(small.unwrap().0, "hello");
    assert_eq!(large.unwrap().0.len(), 100_000);
}

#[tokio::test]
async fn a_limit_on_streams_that_changes_is_kept_to_and_told() {
    let (mut dialed, read, mut write) = raw(&streams(0)).await;
    swallow(read);
    assert!(dialed.connection.accepts());
    assert_eq!(dialed.connection.room(), 0);
    let mut call = unary("hello");
    let mut calling = Box::pin(dialed.connection.call(&mut call));
    assert!(futures_util::poll!(&mut calling).is_pending());
    assert_eq!(dialed.connection.open(), 0);

    write.write_all(&streams(3)).await.unwrap();

    assert!(matches!(dialed.told.recv().await, Some(Told::Limit(3))));
    assert!(futures_util::poll!(&mut calling).is_pending());
    assert_eq!((dialed.connection.open(), dialed.connection.room()), (1, 2));
}

#[tokio::test]
async fn metadata_beyond_the_limit_fails_its_call_alone() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let mut call = unary("hello");

    let (failed, ()) = tokio::join!(dialed.connection.call(&mut call), async {
        let (_, mut respond) = calls.recv().await.unwrap();
        let mut response = Response::new(());
        let long = HeaderValue::from_bytes(&[b'x'; 20_000]).unwrap();
        response.headers_mut().insert("x-long", long);
        respond.send_response(response, true).unwrap();
    });

    assert!(!matches!(failed, Err(Failure::Broken(_))), "{failed:?}");
    let mut call = unary("hello");
    let (answer, ()) = tokio::join!(dialed.connection.call(&mut call), async {
        let (request, respond) = calls.recv().await.unwrap();
        echo(request, respond).await.unwrap();
    });
    assert_eq!(read(answer.unwrap()).await.unwrap().0, "hello");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_wants_fewer_pings_gets_half_as_many_next_time() {
    let (dialer, mut peers) = dialer(Settings::default());
    let mut complaint = vec![0, 0, 0, 0, 0, 0, 0, 11];
    complaint.extend(b"too_many_pings");
    let (dialed, peer) = tokio::join!(dial(&dialer), async {
        let mut peer = peers.recv().await.unwrap();
        peer.write_all(&frame(SETTINGS, 0, 0, b"")).await.unwrap();
        peer
    });
    let first = dialed.unwrap();
    let (read, mut write) = tokio::io::split(peer);
    swallow(read);
    write
        .write_all(&frame(GOAWAY, 0, 0, &complaint))
        .await
        .unwrap();
    let why = first.driver.await.unwrap();
    assert!(why.chain().contains("too_many_pings"), "{}", why.chain());

    let (second, _peer) = tokio::join!(dial(&dialer), async {
        let mut peer = peers.recv().await.unwrap();
        peer.write_all(&frame(SETTINGS, 0, 0, b"")).await.unwrap();
        peer
    });
    let began = Instant::now();
    let second = second.unwrap();
    let failure = second
        .connection
        .call(&mut unary("hello"))
        .await
        .unwrap_err();

    assert!(matches!(failure, Failure::Broken(_)));
    assert_eq!(Instant::now() - began, secs(45));
}

#[tokio::test]
async fn headers_without_end_are_not_hoarded() {
    let (dialed, read, mut write) = raw(&frame(SETTINGS, 0, 0, b"")).await;
    swallow(read);
    let mut call = unary("hello");

    let (failure, ()) = tokio::join!(dialed.connection.call(&mut call), async {
        while dialed.connection.open() == 0 {
            tokio::task::yield_now().await;
        }
        let _ = write.write_all(&frame(HEADERS, 0, 1, &[0x88])).await;
        // Literal fields, never the last: `x: y`, 16 KiB at a time.
        let fields = [0x40, 1, b'x', 1, b'y'].repeat(3_000);
        for _ in 0..1_000 {
            if write
                .write_all(&frame(CONTINUATION, 0, 1, &fields))
                .await
                .is_err()
            {
                return;
            }
        }
        panic!("fifteen megabytes of headers were taken");
    });

    assert!(failure.is_err());
    dialed.driver.await.unwrap();
}
