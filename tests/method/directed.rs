//! Calls whose callers say where they go.

use super::*;

fn in_zone(server: &Running, zone: &str) -> Instance {
    server.instance.clone().zone(zone)
}

#[tokio::test(start_paused = true)]
async fn a_pinned_call_goes_there_and_nowhere_else() {
    let net = Net::default();
    let all = ["a", "b", "c"].map(|id| net.serve(id));
    let (_publisher, channel) = to(&net, all.iter().map(|one| one.instance.clone())).await;

    let answered = who(&channel, &Direct::to(id("b")), 30).await;

    assert_eq!(answered, ["b".to_owned()].into());
}

#[tokio::test(start_paused = true)]
async fn a_call_pinned_to_one_that_drains_still_goes_there() {
    let net = Net::default();
    let all = ["a", "b"].map(|id| net.serve(id));
    let (publisher, channel) = to(&net, all.iter().map(|one| one.instance.clone())).await;
    let idle = all[1].instance.clone().weight(0);
    publisher.delta([Change::Put(Arc::new(idle))]);
    has(&channel, 2, 1).await;

    let answered = ask_directed(&channel, &Direct::to(id("b"))).await;

    assert_eq!(answered.unwrap(), "b");
    assert_eq!(ask(&channel).await.unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_call_pinned_to_one_who_is_not_there_says_so() {
    let net = Net::default();
    let (a, broken) = (net.serve("a"), net.refusing("b"));
    let (publisher, channel) = to(&net, [a.instance.clone()]).await;
    publisher.delta([Change::Put(Arc::new(broken))]);
    has(&channel, 2, 1).await;
    let began = Instant::now();

    let unknown = ask_directed(&channel, &Direct::to(id("z")))
        .await
        .unwrap_err();
    let at_once = Instant::now() - began;
    let away = ask_directed(&channel, &Direct::to(id("b")))
        .await
        .unwrap_err();

    assert_eq!(
        (unknown.code(), away.code()),
        (Code::Unavailable, Code::Unavailable)
    );
    assert_eq!(at_once, Duration::ZERO);
    let said = unknown.message();
    assert!(
        said.contains("instance z is wanted, and is not among the "),
        "{said}"
    );
    assert_eq!(
        Instant::now() - began,
        Duration::from_secs(5),
        "it may be back in time"
    );
    let said = away.message();
    assert!(
        said.contains("; wanted: instance b, which is broken"),
        "{said}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pinned_call_waits_until_its_server_is_back() {
    let net = Net::default();
    let a = net.serve("a");
    let (publisher, channel) = to(&net, [a.instance.clone()]).await;
    publisher.delta([Change::Put(Arc::new(net.refusing("b")))]);
    has(&channel, 2, 1).await;
    let pinned = Direct::to(id("b"));
    let calling = ask_directed(&channel, &pinned);
    tokio::pin!(calling);
    assert!(timeout(ms(1000), &mut calling).await.is_err());

    let _b = net.serve("b");

    assert_eq!(calling.await.unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn who_is_to_be_avoided_is() {
    let net = Net::default();
    let all = ["a", "b", "c"].map(|id| net.serve(id));
    let (_publisher, channel) = to(&net, all.iter().map(|one| one.instance.clone())).await;

    let two = who(&channel, &Direct::avoiding([id("b")]), 100).await;
    let nobody = Direct::avoiding(["a", "b", "c"].map(id)).or_any();
    let refused = ask_directed(&channel, &nobody).await.unwrap_err();

    assert_eq!(two, ["a", "c"].map(str::to_owned).into());
    assert_eq!(refused.code(), Code::Unavailable);
    let said = refused.message();
    assert!(
        said.contains("; wanted: not a, not b, not c, or any"),
        "{said}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_for_a_zone_or_a_tag_goes_elsewhere_only_if_it_may() {
    let net = Net::default();
    let all = ["a", "b", "c", "d"].map(|id| net.serve(id));
    let zones = ["eu", "eu", "us", "us"];
    let tiers = ["gold", "iron", "gold", "iron"];
    let placed = |n: usize| in_zone(&all[n], zones[n]).tag("tier", tiers[n]);
    let (publisher, channel) = to(&net, (0..4).map(placed)).await;

    let europe = who(&channel, &Direct::zone("eu"), 60).await;
    let gold = who(&channel, &Direct::tag("tier", "gold"), 60).await;
    let both = who(&channel, &Direct::tag("tier", "gold").and_zone("us"), 30).await;
    publisher.delta(["a", "b"].map(|name| Change::Remove(id(name))));
    has(&channel, 2, 2).await;
    let anywhere = who(&channel, &Direct::zone("eu").or_any(), 60).await;
    let nowhere = ask_directed(&channel, &Direct::zone("eu"))
        .await
        .unwrap_err();

    assert_eq!(europe, ["a", "b"].map(str::to_owned).into());
    assert_eq!(gold, ["a", "c"].map(str::to_owned).into());
    assert_eq!(both, ["c".to_owned()].into());
    assert_eq!(anywhere, ["c", "d"].map(str::to_owned).into());
    let said = nowhere.message();
    assert!(
        said.contains("2 of 2 endpoints ready; wanted: zone eu"),
        "{said}"
    );
}

/// What has the same key goes to the same place.
#[derive(Debug)]
struct ByKey;

#[derive(Debug)]
struct Places(usize);

impl Policy for ByKey {
    fn over(&self, ready: &Endpoints) -> Box<dyn Pick> {
        Box::new(Places(ready.len()))
    }
}

impl Pick for Places {
    fn pick(&self, call: &Call<'_>) -> usize {
        let key = call.key().expect("every call here has one");
        key.iter().map(|&byte| usize::from(byte)).sum::<usize>() % self.0
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_sees_the_key_of_a_call() {
    let net = Net::default();
    let all = ["a", "b", "c"].map(|id| net.serve(id));
    let (publisher, builder) = builder(&net);
    let channel = builder.policy(ByKey).build().unwrap();
    publisher.reset(all.iter().map(|one| one.instance.clone()));
    channel.ready(3).await;

    for (key, place) in [([0], "a"), ([1], "b"), ([2], "c"), ([4], "b")] {
        assert_eq!(
            who(&channel, &Direct::by_key(key), 10).await,
            [place.to_owned()].into()
        );
    }
}
