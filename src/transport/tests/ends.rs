//! How connections begin and end, and what that means to calls.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn a_goaway_stops_new_calls_and_lets_open_ones_finish() {
    let (mut dialed, mut server) = served().await;
    let mut call = unary("hello");
    let calling = dialed.connection.call(&mut call);
    let serving = async {
        let (request, respond) = server.accept().await.unwrap().unwrap();
        server.graceful_shutdown();
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        assert!(matches!(dialed.told.recv().await, Some(Told::GoingAway(_))));
        echo(request, respond).await.unwrap();
    };

    let (response, ()) = tokio::join!(calling, serving);

    assert!(!dialed.connection.accepts());
    assert_eq!(read(response.unwrap()).await.unwrap().0, "hello");
    let late = dialed
        .connection
        .call(&mut unary("late"))
        .await
        .unwrap_err();
    assert!(matches!(late, Failure::NotSent(_)));
    let why = dialed.driver.await.unwrap();
    assert!(why.to_string().contains("went away in order"), "{why}");
}

#[tokio::test]
async fn a_call_past_the_goaways_last_stream_was_not_processed_and_can_be_sent_again() {
    let (dialer, mut peers) = dialer(Settings::default());
    let (dialed, mut peer) = tokio::join!(dial(&dialer), async {
        let mut peer = peers.recv().await.unwrap();
        peer.write_all(&SETTINGS).await.unwrap();
        peer
    });
    let dialed = dialed.unwrap();
    let mut call = unary("hello");

    let (failure, ()) = tokio::join!(dialed.connection.call(&mut call), async {
        // The goodbye crosses the call on the wire: stream 1 is past stream 0.
        until_headers(&mut peer).await;
        peer.write_all(&GOAWAY).await.unwrap();
    });

    assert!(matches!(failure.unwrap_err(), Failure::Refused(_)));
    assert!(call.rewind());
    let (elsewhere, server) = served().await;
    echoing(server);
    let response = elsewhere.connection.call(&mut call).await.unwrap();
    assert_eq!(read(response).await.unwrap().0, "hello");
}

#[tokio::test]
async fn a_refused_stream_was_not_processed() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let mut call = unary("hello");

    let (failure, ()) = tokio::join!(dialed.connection.call(&mut call), async {
        let (_, mut respond) = calls.recv().await.unwrap();
        respond.send_reset(h2::Reason::REFUSED_STREAM);
    });

    assert!(matches!(failure.unwrap_err(), Failure::Refused(_)));
    assert!(dialed.connection.accepts());
}

#[tokio::test]
async fn a_reset_is_the_calls_own_end_with_the_code_grpc_prescribes() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    for (reason, code) in [
        (h2::Reason::CANCEL, tonic::Code::Cancelled),
        (
            h2::Reason::ENHANCE_YOUR_CALM,
            tonic::Code::ResourceExhausted,
        ),
        (
            h2::Reason::INADEQUATE_SECURITY,
            tonic::Code::PermissionDenied,
        ),
        (h2::Reason::INTERNAL_ERROR, tonic::Code::Internal),
    ] {
        let mut call = unary("hello");

        let (failure, ()) = tokio::join!(dialed.connection.call(&mut call), async {
            let (_, mut respond) = calls.recv().await.unwrap();
            respond.send_reset(reason);
        });

        assert!(matches!(failure.unwrap_err(), Failure::Reset(status) if status.code() == code));
    }
    assert!(dialed.connection.accepts());
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_its_calls_in_doubt_and_takes_no_more() {
    let (dialed, mut server) = served().await;
    let mut call = unary("hello");

    let (failure, ()) = tokio::join!(dialed.connection.call(&mut call), async {
        let _call = server.accept().await.unwrap().unwrap();
        drop(server);
    });

    let Failure::Broken(error) = failure.unwrap_err() else {
        panic!("it was sent");
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.chain().contains("10.0.0.5:50051"),
        "{}",
        error.chain()
    );
    dialed.driver.await.unwrap();
    assert!(!dialed.connection.accepts());
    let late = dialed
        .connection
        .call(&mut unary("late"))
        .await
        .unwrap_err();
    assert!(matches!(late, Failure::NotSent(_)));
}

#[tokio::test]
async fn a_call_given_to_a_connection_that_is_dead_already_has_not_left() {
    let (dialed, server) = served().await;
    let mut call = unary("hello");
    call.headers_mut()
        .insert("x-key", HeaderValue::from_static("v"));
    // The end is there to be read, but the driver has not run yet.
    drop(server);

    let failure = dialed.connection.call(&mut call).await.unwrap_err();

    assert!(matches!(failure, Failure::NotSent(_)), "{failure:?}");
    assert_eq!(call.headers()["x-key"], "v");
    let (elsewhere, server) = served().await;
    echoing(server);
    let response = elsewhere.connection.call(&mut call).await.unwrap();
    assert_eq!(read(response).await.unwrap().0, "hello");
}

#[tokio::test]
async fn a_response_cut_off_is_unavailable() {
    let (dialed, mut server) = served().await;
    let mut call = unary("hello");

    let (response, ()) = tokio::join!(dialed.connection.call(&mut call), async {
        let (_, mut respond) = server.accept().await.unwrap().unwrap();
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send.send_data(Bytes::from_static(b"wor"), false).unwrap();
        // One turn of the server carries the answer out.
        let _ = poll_fn(|cx| std::task::Poll::Ready(server.poll_accept(cx).is_ready())).await;
        drop(server);
    });
    let status = read(response.unwrap()).await.unwrap_err();

    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert_eq!(dialed.connection.open(), 0);
}

#[tokio::test]
async fn a_drained_connection_closes_when_its_last_call_has_ended() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let mut call = unary("hello");

    let (response, ()) = tokio::join!(dialed.connection.call(&mut call), async {
        let (request, respond) = calls.recv().await.unwrap();
        dialed.connection.drain(None);
        assert!(!dialed.connection.accepts());
        echo(request, respond).await.unwrap();
    });

    assert_eq!(read(response.unwrap()).await.unwrap().0, "hello");
    let why = dialed.driver.await.unwrap();
    assert!(why.to_string().contains("drained"), "{why}");
    assert!(calls.recv().await.is_none(), "the server was told");
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_outlast_its_limit() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let began = Instant::now();
    let mut call = unary("hello");

    let (failure, _accepted) = tokio::join!(dialed.connection.call(&mut call), async {
        let accepted = calls.recv().await.unwrap();
        dialed.connection.drain(Some(secs(3)));
        accepted
    });

    let Failure::Broken(error) = failure.unwrap_err() else {
        panic!("it was sent");
    };
    assert!(error.to_string().contains("1 calls open"), "{error}");
    assert_eq!(Instant::now() - began, secs(3));
}

#[tokio::test]
async fn who_waits_for_room_is_sent_elsewhere_by_a_drain() {
    let mut one = h2::server::Builder::new();
    one.max_concurrent_streams(1);
    let (dialed, server) = served_by(one, Settings::default()).await;
    let mut calls = accepting(server);
    let (mut first, mut second) = (unary("first"), unary("second"));

    let (first, second, ()) = tokio::join!(
        dialed.connection.call(&mut first),
        dialed.connection.call(&mut second),
        async {
            let (request, respond) = calls.recv().await.unwrap();
            dialed.connection.drain(None);
            echo(request, respond).await.unwrap();
        }
    );

    assert_eq!(read(first.unwrap()).await.unwrap().0, "first");
    assert!(matches!(second.unwrap_err(), Failure::NotSent(_)));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_handed_to_one_who_is_sent_away_holds_up_no_drain() {
    let mut one = h2::server::Builder::new();
    one.max_concurrent_streams(1);
    let (dialed, server) = served_by(one, Settings::default()).await;
    let _calls = accepting(server);
    let slot = dialed.connection.try_slot().unwrap();
    let mut second = Box::pin(dialed.connection.slot());
    assert!(futures_util::poll!(&mut second).is_pending());

    drop(slot);
    dialed.connection.drain(None);
    // Time stands still until the driver has seen to the drain: the place is still taken then.
    tokio::time::sleep(secs(1)).await;
    assert!(second.await.is_none());

    // Sooner than the keep-alive would look.
    let ended = tokio::time::timeout(secs(5), dialed.driver).await;
    ended.expect("nobody is left").unwrap();
}

#[tokio::test]
async fn the_last_handle_takes_the_connection_with_it_but_not_the_calls() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let mut call = unary("hello");
    let (response, (request, respond)) = tokio::join!(dialed.connection.call(&mut call), async {
        let (request, mut respond) = calls.recv().await.unwrap();
        let send = respond.send_response(Response::new(()), false).unwrap();
        (request, send)
    });

    drop(dialed.connection);

    let mut send = respond;
    drop(request);
    send.send_data(Bytes::from_static(b"bye"), false).unwrap();
    send.send_trailers(ok_trailers()).unwrap();
    assert_eq!(read(response.unwrap()).await.unwrap().0, "bye");
    dialed.driver.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_frozen_peer_is_noticed_while_a_call_is_open() {
    let (dialed, mut server) = served().await;
    let began = Instant::now();
    let mut call = unary("hello");

    // The server accepts it, and from then on its connection is not polled.
    let (failure, _accepted) = tokio::join!(dialed.connection.call(&mut call), server.accept());

    let Failure::Broken(error) = failure.unwrap_err() else {
        panic!("it was sent");
    };
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.chain().contains("ping"), "{}", error.chain());
    assert_eq!(Instant::now() - began, secs(25));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_only_listens_does_not_make_a_frozen_peer_look_dead_and_the_next_call_does() {
    let (dialed, mut server) = served().await;
    let _listening = dialed.connection.listen();
    let mut watch = unary("watch");
    let listens = dialed.connection.call(&mut watch);
    tokio::pin!(listens);
    let accepted = tokio::select! {
        _ = &mut listens => panic!("nobody answered"),
        accepted = server.accept() => accepted,
    };

    let quiet = tokio::time::timeout(secs(3600), &mut listens).await;
    assert!(quiet.is_err());
    let began = Instant::now();
    let failure = dialed.connection.call(&mut unary("hello")).await;

    assert!(matches!(failure, Err(Failure::Broken(_))));
    assert!(Instant::now() - began <= secs(25));
    drop(accepted);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_left_alone_and_a_living_peer_is_kept() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);

    tokio::time::sleep(secs(3600)).await;
    let mut call = unary("hello");
    let (response, ()) = tokio::join!(dialed.connection.call(&mut call), async {
        let (request, respond) = calls.recv().await.unwrap();
        tokio::time::sleep(secs(3600)).await;
        echo(request, respond).await.unwrap();
    });

    assert_eq!(read(response.unwrap()).await.unwrap().0, "hello");
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_given_up_at_the_connect_timeout() {
    let (dialer, mut peers) = dialer(Settings::default());
    let began = Instant::now();

    let (dialed, _silent) = tokio::join!(dial(&dialer), peers.recv());

    let error = dialed.err().unwrap();
    assert_eq!(Instant::now() - began, secs(5));
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(
        error.to_string(),
        "connect to 10.0.0.5:50051: no answer from HTTP/2 within 5s"
    );
}

#[tokio::test]
async fn a_peer_that_speaks_something_else_is_one_error() {
    for words in [
        &b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"[..],
        &[0xff; 64],
        b"",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ] {
        let (dialer, mut peers) = dialer(Settings::default());

        let (dialed, ()) = tokio::join!(dial(&dialer), async {
            let mut peer = peers.recv().await.unwrap();
            peer.write_all(words).await.unwrap();
            peer.shutdown().await.unwrap();
            let _ = peer.read_to_end(&mut Vec::new()).await;
        });

        let error = dialed.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let chain = error.chain();
        assert!(
            chain.starts_with("begin HTTP/2 with 10.0.0.5:50051: "),
            "{chain}"
        );
    }
}

#[tokio::test]
async fn a_refused_connection_says_so() {
    let (dialer, peers) = dialer(Settings::default());
    drop(peers);

    let error = dial(&dialer).await.err().unwrap();

    assert_eq!(
        error.chain(),
        "connect to 10.0.0.5:50051: connection refused"
    );
}

/// An empty SETTINGS frame.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// GOAWAY after stream 0, without error.
const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Reads frames up to the first HEADERS.
async fn until_headers(peer: &mut DuplexStream) {
    let mut preface = [0; 24];
    peer.read_exact(&mut preface).await.unwrap();
    loop {
        let mut head = [0; 9];
        peer.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        peer.read_exact(&mut payload).await.unwrap();
        if head[3] == 1 {
            return;
        }
    }
}
