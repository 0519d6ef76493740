//! The rules of retries.

use super::*;

#[tokio::test(start_paused = true)]
async fn max_attempts_includes_the_original_request() {
    let stage = Stage::with([unavailable(), unavailable(), unavailable()]);

    let (code, _) = retried(&stage, policy(3)).await;

    assert_eq!((code, stage.attempts()), (Code::Unavailable, 3));
}

#[tokio::test(start_paused = true)]
async fn ok_is_returned_and_nothing_is_sent_again() {
    let stage = Stage::with([Fine]);

    assert_eq!(retried(&stage, policy(3)).await, (Code::Ok, 0));

    let headers = &stage.seen()[0].headers;
    assert!(!headers.contains_key(&PREVIOUS));
}

#[tokio::test(start_paused = true)]
async fn backoff_grows_by_the_multiplier_up_to_its_maximum() {
    let stage = Stage::with((0..5).map(|_| unavailable()));

    retried(&stage, policy(5)).await;

    assert_eq!(stage.waits(), [100, 200, 400, 400]);
}

#[tokio::test(start_paused = true)]
async fn backoff_has_a_jitter_of_a_fifth() {
    let mut waits = Vec::new();
    for _ in 0..200 {
        let stage = Stage::with([unavailable(), Fine]);
        retried(&stage, policy(2).jitter(0.2)).await;
        waits.extend(stage.waits());
    }

    assert!(
        waits.iter().all(|wait| (80..=121).contains(wait)),
        "{waits:?}"
    );
    assert!(waits.iter().any(|&wait| wait < 90) && waits.iter().any(|&wait| wait > 110));
}

#[tokio::test(start_paused = true)]
async fn only_retryable_codes_are_retried() {
    for (said, sent) in [
        (Code::Unavailable, 2),
        (Code::Aborted, 2),
        (Code::Internal, 1),
    ] {
        let stage = Stage::with([Says(said, &[]), Fine]);

        retried(&stage, policy(2).on([Code::Unavailable, Code::Aborted])).await;

        assert_eq!(stage.attempts(), sent, "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_is_unavailable() {
    let stage = Stage::with([Breaks, Fine]);

    assert_eq!(retried(&stage, policy(2)).await, (Code::Ok, 100));
}

#[tokio::test(start_paused = true)]
async fn a_response_of_http_without_a_status_has_the_code_that_stands_for_it() {
    let mut first = true;
    let send = move |_| -> Trying<()> {
        let mut response = Response::new(());
        response.extensions_mut().insert(ServedBy::at(&id(0)));
        if std::mem::take(&mut first) {
            *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        }
        future::ready(Ok(response)).boxed()
    };

    let answer = retry(policy(2), repeated(None), Gates::default(), send).await;

    assert_eq!(answer.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn response_headers_commit_the_call() {
    // What follows the headers is the caller's to read, were it a failure.
    let stage = Stage::with([Fine]);
    let call = repeated(None);
    let body = call.recording.body(7);

    let answer = retry(policy(3), call, Gates::default(), stage.send()).await;

    assert!(answer.is_ok());
    assert!(
        body.collect().await.is_err(),
        "the body belongs to the answer's attempt"
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_buffer_commits_the_call() {
    let stage = Stage::with([unavailable()]);
    let call = Repeated::new(request(), None, None, 4);

    let answer = retry(policy(3), call, Gates::default(), stage.send()).await;

    assert_eq!((code(&answer), stage.attempts()), (Code::Unavailable, 1));
    assert_eq!(stage.seen()[0].body, "hello");
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_sent_the_whole_body() {
    let stage = Stage::with([unavailable(), Breaks, Fine]);

    retried(&stage, policy(3)).await;

    assert!(stage.seen().iter().all(|seen| seen.body == "hello"));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_the_caller_failed_to_make_is_not_sent_again() {
    let stage = Stage::with([unavailable()]);
    let frame = Err::<Frame<Bytes>, _>(Status::unavailable("mine"));
    let body = Body::new(StreamBody::new(stream::iter([frame])));
    let call = Repeated::new(Request::new(body), None, None, 1000);

    let answer = retry(policy(3), call, Gates::default(), stage.send()).await;

    assert_eq!((code(&answer), stage.attempts()), (Code::Unavailable, 1));
}

#[tokio::test(start_paused = true)]
async fn previous_rpc_attempts_is_absent_at_first_and_then_counts() {
    let stage = Stage::with([unavailable(), unavailable(), Fine]);
    let mut asked = request();
    asked.headers_mut().insert(&PREVIOUS, HeaderValue::from(7));
    let call = Repeated::new(asked, None, None, 1000);

    let answer = retry(policy(3), call, Gates::default(), stage.send()).await;

    let said: Vec<_> = (stage.seen().iter())
        .map(|seen| {
            seen.headers
                .get(&PREVIOUS)
                .map(|value| value.to_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(said, [None, Some("1".into()), Some("2".into())]);
    assert_eq!(answer.unwrap().headers()[&PREVIOUS], "2");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_spans_attempts_and_each_is_told_what_is_left() {
    let stage = Stage::with([
        After(50 * MS, unavailable().into()),
        After(50 * MS, unavailable().into()),
    ]);

    let call = repeated(Some(399 * MS));
    let answer = retry(policy(5), call, Gates::default(), stage.send()).await;

    let told: Vec<_> = (stage.seen().iter())
        .map(|seen| seen.headers[&TIMEOUT].to_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, ["399000u", "249000u"]);
    // There is no time for a third, so the failure is not held back.
    assert_eq!(code(&answer), Code::Unavailable);
    assert_eq!(Instant::now() - stage.began, 200 * MS);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_ran_out_of_its_own_time_is_retried() {
    let stage = Stage::with([RunsOut, Fine]);

    assert_eq!(retried(&stage, policy(2)).await, (Code::Ok, 100));
}

#[tokio::test(start_paused = true)]
async fn pushback_of_n_is_exact_and_resets_the_backoff() {
    let stage = Stage::with([
        unavailable(),
        unavailable(),
        pushed(LATER),
        unavailable(),
        Fine,
    ]);

    retried(&stage, policy(5)).await;

    assert_eq!(stage.waits(), [100, 200, 700, 100]);
}

#[tokio::test(start_paused = true)]
async fn pushback_of_zero_is_at_once() {
    let stage = Stage::with([pushed(NOW), Fine]);

    assert_eq!(retried(&stage, policy(2)).await, (Code::Ok, 0));
}

#[tokio::test(start_paused = true)]
async fn pushback_that_is_negative_or_garbled_stops_retries() {
    for no in [NEVER, GARBLED] {
        let stage = Stage::with([pushed(no)]);

        assert_eq!(retried(&stage, policy(3)).await, (Code::Unavailable, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn pushback_does_not_add_attempts() {
    let stage = Stage::with([pushed(NOW), pushed(NOW)]);

    retried(&stage, policy(2)).await;

    assert_eq!(stage.attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn pushback_does_not_make_a_fatal_code_retryable() {
    let stage = Stage::with([Says(Code::Internal, NOW)]);

    assert_eq!(retried(&stage, policy(2)).await, (Code::Internal, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_is_not_retried_while_tokens_are_at_half_or_less() {
    let gates = throttled(Throttle::new(4, 1.0));
    let sent = async |acts: Vec<Act>| {
        let stage = Stage::with(acts);
        let _ = retry(policy(5), repeated(None), gates.clone(), stage.send()).await;
        stage.attempts()
    };

    // Four tokens: after the second failure there are two, which is half.
    assert_eq!(sent(vec![unavailable(), unavailable()]).await, 2);
    // A success brings a third.
    assert_eq!(sent(vec![Fine]).await, 1);
    assert_eq!(sent(vec![Fine]).await, 1);
    assert_eq!(sent(vec![unavailable(), Fine]).await, 2);
}

#[tokio::test(start_paused = true)]
async fn only_retryable_failures_and_pushbacks_take_tokens() {
    let gates = throttled(Throttle::new(4, 0.001));
    let sent = async |acts: Vec<Act>| {
        let stage = Stage::with(acts);
        let _ = retry(policy(2), repeated(None), gates.clone(), stage.send()).await;
        stage.attempts()
    };
    for _ in 0..10 {
        sent(vec![Says(Code::InvalidArgument, &[])]).await;
    }
    sent(vec![Says(Code::InvalidArgument, NEVER)]).await;

    // One token is gone: this takes the second, and half is not enough.
    assert_eq!(sent(vec![unavailable()]).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_spent_stops_retries() {
    let gates = Gates {
        throttle: None,
        budget: Some(Arc::new(Spent::of(&Budget::share(0.2).floor(0)))),
    };
    let mut sent = 0;
    for _ in 0..100 {
        let stage = Stage::with((0..3).map(|_| unavailable()));
        let _ = retry(policy(3), repeated(None), gates.clone(), stage.send()).await;
        sent += stage.attempts();
    }

    assert!((115..=120).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_call_cancels_the_attempt() {
    let stage = Stage::with([Never]);
    let mut call = Box::pin(retry(
        policy(3),
        repeated(None),
        Gates::default(),
        stage.send(),
    ));
    assert!(poll!(&mut call).is_pending());

    drop(call);

    assert_eq!(*stage.given_up.lock().unwrap(), [0]);
}
