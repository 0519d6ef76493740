//! What a call does on a good connection.

use super::*;

#[tokio::test]
async fn a_unary_call_is_one_frame_that_ends_the_stream_and_its_answer_comes_back() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let answered = tokio::spawn(async move {
        let (request, mut respond) = calls.recv().await.unwrap();
        let (head, mut body) = request.into_parts();
        let data = body.data().await.unwrap().unwrap();
        let ended_with_the_data = body.is_end_stream();
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send.send_data(Bytes::from_static(b"world"), false).unwrap();
        send.send_trailers(ok_trailers()).unwrap();
        (head, data, ended_with_the_data)
    });

    let response = dialed.connection.call(&mut unary("hello")).await.unwrap();
    let (body, trailers) = read(response).await.unwrap();

    assert_eq!(body, "world");
    assert_eq!(trailers.unwrap()["grpc-status"], "0");
    let (head, data, ended_with_the_data) = answered.await.unwrap();
    assert_eq!(
        head.uri,
        "http://10.0.0.5:50051/grpc.examples.echo.Echo/UnaryEcho"
    );
    assert_eq!(head.headers["te"], "trailers");
    assert!(
        head.headers["user-agent"]
            .to_str()
            .unwrap()
            .starts_with("tonic-fleet/")
    );
    assert_eq!(data, "hello");
    assert!(ended_with_the_data);
    assert_eq!(dialed.connection.open(), 0);
}

#[tokio::test]
async fn a_call_without_a_body_ends_with_its_head() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let ended = tokio::spawn(async move {
        let (request, mut respond) = calls.recv().await.unwrap();
        respond.send_response(Response::new(()), true).unwrap();
        request.body().is_end_stream()
    });

    let response = dialed
        .connection
        .call(&mut request(Body::empty()))
        .await
        .unwrap();

    assert!(http_body::Body::is_end_stream(response.body()));
    assert!(ended.await.unwrap());
    assert_eq!(dialed.connection.open(), 0);
}

#[tokio::test]
async fn large_messages_go_both_ways_through_small_windows() {
    let mut small = h2::server::Builder::new();
    small
        .initial_window_size(1_000)
        .initial_connection_window_size(65_535);
    let settings = Settings {
        windows: crate::transport::Windows::fixed(2_000, 1 << 20),
        ..Settings::default()
    };
    let (dialed, server) = served_by(small, settings).await;
    echoing(server);
    let message: Bytes = (0..1_000_000u32)
        .map(|n| n as u8)
        .collect::<Vec<_>>()
        .into();

    let response = dialed
        .connection
        .call(&mut unary(message.clone()))
        .await
        .unwrap();
    let (body, _) = read(response).await.unwrap();

    assert!(body == message);
}

#[tokio::test]
async fn a_stream_is_answered_message_by_message() {
    let (dialed, server) = served().await;
    echoing(server);
    let (send, mut call) = streaming();

    send.send("one".into()).unwrap();
    let response = dialed.connection.call(&mut call).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "one"
    );
    for message in ["two", "three"] {
        send.send(message.into()).unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    drop(send);

    assert!(body.frame().await.unwrap().unwrap().is_trailers());
    assert!(body.frame().await.is_none());
    assert_eq!(dialed.connection.open(), 0);
}

#[tokio::test]
async fn a_body_is_sent_on_while_nobody_reads_the_response() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let (send, mut call) = streaming();
    let (response, accepted) = tokio::join!(dialed.connection.call(&mut call), async {
        let (request, mut respond) = calls.recv().await.unwrap();
        (
            request,
            respond.send_response(Response::new(()), false).unwrap(),
        )
    });
    let (request, _answer) = accepted;
    let mut body = request.into_body();

    send.send("later".into()).unwrap();

    assert_eq!(body.data().await.unwrap().unwrap(), "later");
    drop(response);
}

#[tokio::test]
async fn a_call_that_is_dropped_is_cancelled_at_the_server() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let mut call = unary("hello");
    let accepted = {
        let calling = dialed.connection.call(&mut call);
        tokio::select! {
            _ = calling => unreachable!("nobody answers"),
            accepted = calls.recv() => accepted.unwrap(),
        }
    };
    let (_request, mut respond) = accepted;

    let reason = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();

    assert_eq!(reason, h2::Reason::CANCEL);
    assert_eq!(dialed.connection.open(), 0);
}

#[tokio::test]
async fn a_response_that_is_dropped_is_cancelled_at_the_server() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let (_send, mut call) = streaming();
    let (response, mut answer) = tokio::join!(dialed.connection.call(&mut call), async {
        let (_, mut respond) = calls.recv().await.unwrap();
        respond.send_response(Response::new(()), false).unwrap()
    });

    drop(response);

    let reason = poll_fn(|cx| answer.poll_reset(cx)).await.unwrap();
    assert_eq!(reason, h2::Reason::CANCEL);
    assert_eq!(dialed.connection.open(), 0);
}

#[tokio::test]
async fn an_early_answer_ends_a_call_whose_body_is_unfinished() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let (send, mut call) = streaming();
    send.send("first".into()).unwrap();
    tokio::spawn(async move {
        let (request, mut respond) = calls.recv().await.unwrap();
        let mut refused = Response::new(());
        refused.headers_mut().extend(ok_trailers());
        respond.send_response(refused, true).unwrap();
        drop(request);
    });

    let response = dialed.connection.call(&mut call).await.unwrap();

    assert_eq!(response.headers()["grpc-status"], "0");
    assert!(http_body::Body::is_end_stream(response.body()));
    assert_eq!(dialed.connection.open(), 0);
}

#[tokio::test]
async fn a_body_that_fails_is_the_callers_own_failure() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let broken = futures_util::stream::iter([Err::<http_body::Frame<Bytes>, _>(
        tonic::Status::data_loss("no more"),
    )]);
    let mut call = request(Body::new(http_body_util::StreamBody::new(broken)));

    let failure = dialed.connection.call(&mut call).await.unwrap_err();

    assert!(matches!(failure, Failure::Body(status) if status.code() == tonic::Code::DataLoss));
    let (_request, mut respond) = calls.recv().await.unwrap();
    let reason = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
    assert_eq!(reason, h2::Reason::CANCEL);
}

#[tokio::test]
async fn a_body_that_fails_after_the_response_began_is_told_by_the_response() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let (fail, failing) = tokio::sync::oneshot::channel::<()>();
    let broken = futures_util::stream::once(async {
        let _ = failing.await;
        Err::<http_body::Frame<Bytes>, _>(tonic::Status::data_loss("no more"))
    });
    let mut call = request(Body::new(http_body_util::StreamBody::new(Box::pin(broken))));
    let (response, _answer) = tokio::join!(dialed.connection.call(&mut call), async {
        let (_, mut respond) = calls.recv().await.unwrap();
        respond.send_response(Response::new(()), false).unwrap()
    });

    fail.send(()).unwrap();
    let status = read(response.unwrap()).await.unwrap_err();

    assert_eq!(
        (status.code(), status.message()),
        (tonic::Code::DataLoss, "no more")
    );
}

#[tokio::test]
async fn a_request_that_http2_forbids_is_the_callers_own_failure() {
    let (dialed, server) = served().await;
    echoing(server);
    let mut call = unary("hello");
    call.headers_mut()
        .insert("connection", HeaderValue::from_static("close"));

    let failure = dialed.connection.call(&mut call).await.unwrap_err();

    assert!(matches!(failure, Failure::Body(status) if status.code() == tonic::Code::Internal));
    assert!(dialed.connection.accepts());
    assert_eq!(dialed.connection.open(), 0);
}

#[tokio::test]
async fn a_slow_reader_of_many_small_messages_harms_nobody_else() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let mut call = unary("subscribe");
    let (response, mut flood) = tokio::join!(dialed.connection.call(&mut call), async {
        let (_, mut respond) = calls.recv().await.unwrap();
        respond.send_response(Response::new(()), false).unwrap()
    });
    tokio::spawn(async move {
        for _ in 0..30_000 {
            write(&mut flood, Bytes::from_static(b"twenty-one bytes here")).await?;
        }
        flood.send_trailers(ok_trailers()).ok()
    });

    for _ in 0..100 {
        let mut call = unary("hello");
        let (answer, ()) = tokio::join!(dialed.connection.call(&mut call), async {
            let (request, respond) = calls.recv().await.unwrap();
            echo(request, respond).await.unwrap();
        });
        assert_eq!(read(answer.unwrap()).await.unwrap().0, "hello");
    }

    let (body, trailers) = read(response.unwrap()).await.unwrap();
    assert_eq!(body.len(), 30_000 * 21);
    assert!(trailers.is_some());
}

#[tokio::test]
async fn calls_beyond_what_the_server_allows_wait_their_turn() {
    let mut one = h2::server::Builder::new();
    one.max_concurrent_streams(1);
    let (dialed, server) = served_by(one, Settings::default()).await;
    assert_eq!(dialed.connection.room(), 1);
    echoing(server);

    let calls = (0..50).map(|n| {
        let connection = dialed.connection.clone();
        tokio::spawn(async move {
            let response = connection.call(&mut unary(format!("call {n}"))).await;
            read(response.unwrap()).await.unwrap().0
        })
    });

    for (n, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), format!("call {n}"));
    }
    assert_eq!((dialed.connection.open(), dialed.connection.room()), (0, 1));
}

#[tokio::test]
async fn a_response_that_breaks_the_rules_fails_though_the_request_goes_on() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let (_open, mut call) = streaming();
    let calling = dialed.connection.call(&mut call);
    let responding = async {
        let (request, mut respond) = calls.recv().await.unwrap();
        // Shorter than what follows.
        let head = Response::builder().header("content-length", "1");
        let mut send = respond
            .send_response(head.body(()).unwrap(), false)
            .unwrap();
        write(&mut send, "four".into()).await;
        (request, send)
    };

    let (response, _peer) = tokio::join!(calling, responding);
    let ended = tokio::time::timeout(secs(5), read(response.unwrap())).await;

    let status = ended.expect("an end, in time").unwrap_err();
    assert_eq!(status.code(), tonic::Code::Internal, "{status}");
}

#[tokio::test]
async fn a_response_that_is_given_up_is_over_though_it_is_held_on_to() {
    let (dialed, server) = served().await;
    let mut calls = accepting(server);
    let mut call = unary("hello");
    let (response, (_, mut respond)) = tokio::join!(dialed.connection.call(&mut call), async {
        let (request, mut respond) = calls.recv().await.unwrap();
        let send = respond.send_response(Response::new(()), false).unwrap();
        (request, send)
    });
    let mut held = response.unwrap().into_body();
    assert_eq!(dialed.connection.open(), 1);

    held.cancel();

    assert_eq!(dialed.connection.open(), 0);
    let reset = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
    assert_eq!(reset, h2::Reason::CANCEL);
}

#[tokio::test]
async fn a_head_that_is_more_than_the_server_takes_stays_here_and_harms_nobody() {
    let mut server = h2::server::Builder::new();
    server.max_header_list_size(1_000);
    let (dialed, server) = served_by(server, Settings::default()).await;
    echoing(server);
    let with = |bytes: usize| {
        let mut call = unary("hello");
        let value = HeaderValue::try_from("v".repeat(bytes)).unwrap();
        call.headers_mut().insert("x-large", value);
        call
    };

    let refused = dialed.connection.call(&mut with(5_000)).await;
    let taken = dialed.connection.call(&mut with(500)).await.unwrap();

    let Err(Failure::Body(status)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert!(status.message().contains("takes 1000 at most"), "{status}");
    assert_eq!(read(taken).await.unwrap().0, "hello");
    assert_eq!(dialed.connection.open(), 0);
}

#[tokio::test]
async fn a_stream_of_messages_that_panics_after_the_answer_has_begun_ends_the_call() {
    let (dialed, server) = served().await;
    echoing(server);
    let (first, told) = tokio::sync::oneshot::channel::<()>();
    let messages = futures_util::stream::once(async { Ok::<_, tonic::Status>(Bytes::from("one")) });
    let panics = futures_util::stream::once(async {
        let _ = told.await;
        panic!("a caller's own fault");
    });
    let frames = futures_util::StreamExt::chain(messages, panics);
    let frames = futures_util::StreamExt::map(frames, |one| one.map(http_body::Frame::data));
    let mut call = request(Body::new(http_body_util::StreamBody::new(frames)));

    let response = dialed.connection.call(&mut call).await.unwrap();
    let mut body = response.into_body();
    let one = body.frame().await.unwrap().unwrap().into_data().unwrap();
    first.send(()).unwrap();
    let end = body.frame().await.unwrap();

    assert_eq!(one, "one");
    let status = end.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Internal);
    assert!(status.message().contains("panicked"), "{status}");
    drop(body);
    assert_eq!(dialed.connection.open(), 0);
}
