//! The rules of hedging.

use http_body_util::Full;

use super::*;

/// One more every 100 ms, and these codes do not end the call.
fn policy(attempts: u32) -> Hedge {
    Hedge::after(100 * MS)
        .attempts(attempts)
        .non_fatal([Code::Unavailable])
}

#[tokio::test(start_paused = true)]
async fn attempts_are_sent_at_intervals_of_the_delay() {
    let stage = Stage::with([Never, Never, After(30 * MS, Fine.into())]);

    assert_eq!(hedged(&stage, policy(3)).await, (Code::Ok, 230));

    assert_eq!(stage.waits(), [100, 100]);
    let said = stage.seen()[2].headers[&PREVIOUS].clone();
    assert_eq!(said, "2");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_max_attempts_are_sent() {
    let stage = Stage::with([After(900 * MS, Fine.into()), Never]);

    assert_eq!(hedged(&stage, policy(2)).await, (Code::Ok, 900));

    assert_eq!(stage.attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_delay_all_are_sent_at_once() {
    let stage = Stage::with([Never, Never, After(5 * MS, Fine.into())]);
    let policy = Hedge::after(Duration::ZERO).attempts(3);

    assert_eq!(hedged(&stage, policy).await, (Code::Ok, 5));
    assert_eq!(stage.waits(), [0, 0]);
}

#[tokio::test]
async fn a_delay_of_next_to_nothing_does_not_spin() {
    let stage = Stage::with([Never, After(5 * MS, Fine.into())]);
    let policy = Hedge::after(Duration::from_nanos(1));

    let (code, _) = hedged(&stage, policy).await;

    assert_eq!((code, stage.attempts()), (Code::Ok, 2));
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_cancels_the_others() {
    let stage = Stage::with([Never, Fine]);

    hedged(&stage, policy(3)).await;

    assert_eq!(*stage.given_up.lock().unwrap(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_non_fatal_failure_sends_the_next_at_once_and_the_delay_counts_from_there() {
    let stage = Stage::with([After(20 * MS, unavailable().into()), Never, Fine]);

    assert_eq!(hedged(&stage, policy(3)).await, (Code::Ok, 120));

    assert_eq!(stage.waits(), [20, 100]);
}

#[tokio::test(start_paused = true)]
async fn what_failed_keeps_no_place_while_others_are_under_way() {
    let place = Arc::new(());
    let mut acts = [Says(Code::Unavailable, &[]), Never].into_iter();
    let send = |_| -> Trying<Arc<()>> {
        let (act, place) = (acts.next().unwrap(), Arc::clone(&place));
        async move { act.come(0).await.map(|answer| answer.map(|()| place)) }.boxed()
    };
    let call = Repeated::new(Request::new(Body::empty()), None, None, 1024);

    let call = hedge(policy(2), call, Gates::default(), Arc::default(), send);
    let mut call = Box::pin(call);
    assert!(poll!(&mut call).is_pending());

    // The second attempt has the other.
    assert_eq!(Arc::strong_count(&place), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fatal_failure_cancels_the_others_and_is_returned() {
    let stage = Stage::with([Never, After(10 * MS, Says(Code::Internal, &[]).into())]);

    assert_eq!(hedged(&stage, policy(3)).await, (Code::Internal, 110));

    assert_eq!(*stage.given_up.lock().unwrap(), [0]);
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_when_the_body_has_become_anothers_ends_nothing() {
    let sent = Arc::new(Mutex::new(Vec::<Body>::new()));
    let send = |request: Request<Body>| -> Trying<()> {
        let mut all = sent.lock().unwrap();
        all.push(request.into_body());
        let (nth, sent) = (all.len(), Arc::clone(&sent));
        async move {
            if nth == 2 {
                sleep(200 * MS).await;
                return Fine.come(1).await;
            }
            sleep(150 * MS).await;
            // A connection's own task reads what the second sends just before the first fails.
            let second = sent.lock().unwrap().pop().unwrap();
            let read = second.collect().now_or_never();
            assert_eq!(read.unwrap().unwrap().to_bytes().len(), 9);
            unavailable().come(0).await
        }
        .boxed()
    };
    let body = Body::new(Full::from("too large"));
    let call = Repeated::new(Request::new(body), None, None, 4);
    let at_once = Hedge::after(Duration::ZERO).attempts(2);
    let policy = at_once.non_fatal([Code::Unavailable]);

    let answer = hedge(policy, call, Gates::default(), Arc::default(), send).await;

    assert_eq!(code(&answer), Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_there_are_no_more_and_the_last_failure_is_returned() {
    let stage = Stage::with([unavailable(), unavailable(), Breaks]);

    assert_eq!(hedged(&stage, policy(3)).await, (Code::Unavailable, 0));

    assert_eq!(stage.attempts(), 3);
}

#[tokio::test(start_paused = true)]
async fn pushback_not_to_retry_stops_further_hedges_and_waits_for_those_under_way() {
    let stage = Stage::with([After(150 * MS, Fine.into()), pushed(NEVER)]);

    assert_eq!(hedged(&stage, policy(5)).await, (Code::Ok, 150));

    assert_eq!(stage.attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn pushback_of_n_sends_the_next_after_n_and_the_delay_counts_from_there() {
    let stage = Stage::with([pushed(LATER), Never, Fine]);

    assert_eq!(hedged(&stage, policy(3)).await, (Code::Ok, 800));

    assert_eq!(stage.waits(), [700, 100]);
}

#[tokio::test(start_paused = true)]
async fn the_first_is_always_sent_and_no_other_while_tokens_are_at_half_or_less() {
    let gates = throttled(Throttle::new(2, 0.1));
    gates.failed();
    let stage = Stage::with([After(500 * MS, Fine.into())]);

    let pace = Arc::<Pace>::default();
    let call = hedge(policy(3), repeated(None), gates, pace, stage.send());

    assert_eq!(code(&call.await), Code::Ok);
    assert_eq!(stage.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_buffer_commits_to_one_and_cancels_the_others() {
    let frames = [b"hello", b"world"].map(|frame| Bytes::from_static(frame));
    let frames = stream::iter(frames).then(|frame| async move {
        sleep(150 * MS).await;
        Ok::<_, Status>(Frame::data(frame))
    });
    let body = Body::new(StreamBody::new(Box::pin(frames)));
    let call = Repeated::new(Request::new(body), None, None, 7);
    let stage = Stage::with([Fine, Fine, Fine, Fine]);

    let pace = Arc::<Pace>::default();
    let answer = hedge(policy(4), call, Gates::default(), pace, stage.send()).await;

    assert_eq!(code(&answer), Code::Ok);
    assert_eq!(stage.attempts(), 1);
    assert_eq!(stage.seen()[0].body, "helloworld");
    assert!(!stage.given_up.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_has_a_long_body_alone_may_still_be_sending_it_when_the_others_are_cancelled() {
    let frames = [&b"hello"[..], b"world", b"again"].map(Bytes::from_static);
    let frames = stream::iter(frames).then(|frame| async move {
        sleep(150 * MS).await;
        Ok::<_, Status>(Frame::data(frame))
    });
    let body = Body::new(StreamBody::new(Box::pin(frames)));
    let call = Repeated::new(Request::new(body), None, None, 7);
    let stage = Stage::with([Fine, Fine, Fine, Fine]);

    let pace = Arc::<Pace>::default();
    let answer = hedge(policy(3), call, Gates::default(), pace, stage.send()).await;

    assert_eq!(code(&answer), Code::Ok);
    assert_eq!(stage.attempts(), 1);
    assert_eq!(stage.seen()[0].body, "helloworldagain");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_spans_all_and_each_is_told_what_is_left() {
    let stage = Stage::with([Never, Never, After(MS, Fine.into())]);
    let call = repeated(Some(250 * MS));

    let pace = Arc::<Pace>::default();
    let answer = hedge(policy(5), call, Gates::default(), pace, stage.send()).await;

    assert_eq!(code(&answer), Code::Ok);
    let told: Vec<_> = (stage.seen().iter())
        .map(|seen| seen.headers[&TIMEOUT].to_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, ["250000u", "150000u", "50000000n"]);
}

#[tokio::test(start_paused = true)]
async fn a_percentile_hedges_nothing_before_it_is_known() {
    let pace = Arc::<Pace>::default();
    let policy = Hedge::at_percentile(95.0);
    let once = async |act: Act| {
        let stage = Stage::with([act, Fine]);
        let call = hedge(
            policy.clone(),
            repeated(None),
            Gates::default(),
            Arc::clone(&pace),
            stage.send(),
        );
        call.await.unwrap();
        (stage.attempts(), (Instant::now() - stage.began).as_millis())
    };
    assert_eq!(once(After(500 * MS, Fine.into())).await, (1, 500));
    for _ in 0..200 {
        once(After(10 * MS, Fine.into())).await;
    }

    let (attempts, took) = once(After(500 * MS, Fine.into())).await;

    assert_eq!(attempts, 2);
    assert!((10..=12).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_call_cancels_every_attempt() {
    let stage = Stage::with([Never, Never, Never]);
    let pace = Arc::<Pace>::default();
    let mut call = Box::pin(hedge(
        policy(3),
        repeated(None),
        Gates::default(),
        pace,
        stage.send(),
    ));
    let waited = tokio::time::timeout(250 * MS, &mut call).await;
    assert!(waited.is_err());

    drop(call);

    let mut given_up = stage.given_up.lock().unwrap().clone();
    given_up.sort_unstable();
    assert_eq!(given_up, [0, 1, 2]);
}
