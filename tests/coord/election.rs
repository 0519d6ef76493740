//! What an election holds.

use std::time::Duration;

use etcd_client::PutOptions;
use futures_util::StreamExt;
use tokio::time::timeout;
use tonic_fleet::{
    ErrorKind,
    coord::{Election, Leader, Leaders, Leadership},
};

use crate::{SOON, coordinator, etcd::Etcd, keys, until_keys};

async fn leading(election: &Election, value: &str) -> Leadership {
    let leads = timeout(SOON, election.campaign(value)).await;
    leads.expect("nobody else leads").unwrap()
}

async fn next(leaders: &mut Leaders) -> Option<Leader> {
    let next = timeout(SOON, leaders.next()).await;
    next.expect("news").expect("it goes on")
}

/// What the next leader says whose word differs.
async fn word(leaders: &mut Leaders) -> Option<String> {
    let leader = next(leaders).await?;
    leader.text().map(str::to_owned)
}

#[tokio::test]
async fn a_key_stands_as_gos_election_writes_it() {
    let etcd = Etcd::start().await;
    let election = coordinator(&etcd).await.election("elections/a").unwrap();
    assert_eq!(election.leader().await.unwrap(), None);

    let leads = leading(&election, "one").await;

    let got = etcd.client().await.get(leads.key(), None).await.unwrap();
    let kv = &got.kvs()[0];
    assert_eq!(leads.key(), format!("elections/a/{:x}", kv.lease()));
    let leader = election.leader().await.unwrap().unwrap();
    assert_eq!(leader.text(), Some("one"));
    assert_eq!((leader.fence, &*leader.key), (leads.fence(), leads.key()));
}

#[tokio::test]
async fn the_next_in_line_leads_when_one_resigns_and_all_learn_of_it() {
    let etcd = Etcd::start().await;
    let (one, other) = (coordinator(&etcd).await, coordinator(&etcd).await);
    let mut leaders = other.election("a").unwrap().observe();
    assert_eq!(next(&mut leaders).await, None);

    let leads = leading(&one.election("a").unwrap(), "one").await;
    assert_eq!(word(&mut leaders).await.as_deref(), Some("one"));
    let election = other.election("a").unwrap();
    let waiting = tokio::spawn(async move { leading(&election, "other").await });
    until_keys(&etcd, "a/", 2).await;
    leads.proclaim("one again").await.unwrap();
    assert_eq!(word(&mut leaders).await.as_deref(), Some("one again"));
    let before = leads.fence();
    leads.resign().await.unwrap();

    let after = waiting.await.unwrap();
    assert!(after.fence() > before);
    assert_eq!(word(&mut leaders).await.as_deref(), Some("other"));
    drop(after);
    assert_eq!(next(&mut leaders).await, None);
}

#[tokio::test]
async fn a_leader_of_another_program_is_observed_and_waited_for() {
    let etcd = Etcd::start().await;
    let lease = etcd.put_leased("a/77", "go", 60).await;
    let election = coordinator(&etcd).await.election("a").unwrap();
    let mut leaders = election.observe();
    assert_eq!(word(&mut leaders).await.as_deref(), Some("go"));

    let limit = Duration::from_millis(50);
    assert!(timeout(limit, election.campaign("rust")).await.is_err());
    until_keys(&etcd, "a/", 1).await;
    etcd.client().await.lease_revoke(lease).await.unwrap();

    let leads = leading(&election, "rust").await;
    assert!(leads.is_held());
}

#[tokio::test]
async fn one_who_leads_no_more_proclaims_nothing() {
    let etcd = Etcd::start().await;
    let election = coordinator(&etcd).await.election("a").unwrap();
    let leads = leading(&election, "one").await;

    etcd.delete(leads.key()).await;
    let refused = leads.proclaim("more").await.unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::Lost);
    assert_eq!(leads.lost().await.kind(), ErrorKind::Lost);
    assert_eq!(keys(&etcd, "a/").await, [""; 0]);
}

#[tokio::test]
async fn what_somebody_else_wrote_into_our_key_is_proclaimed_over() {
    let etcd = Etcd::start().await;
    let election = coordinator(&etcd).await.election("a").unwrap();
    let leads = leading(&election, "one").await;
    let keep = PutOptions::new().with_ignore_lease();
    let mut client = etcd.client().await;
    client
        .put(leads.key(), "by hand", Some(keep))
        .await
        .unwrap();

    leads.proclaim("two").await.unwrap();
    leads.proclaim("three").await.unwrap();

    let leader = election.leader().await.unwrap().unwrap();
    assert_eq!(leader.text(), Some("three"));
}

#[tokio::test]
async fn observing_outlasts_a_restart_and_ends_when_the_coordinator_closes() {
    let mut etcd = Etcd::start().await;
    let coordinator = coordinator(&etcd).await;
    let election = coordinator.election("a").unwrap();
    let mut leaders = election.observe();
    assert_eq!(next(&mut leaders).await, None);

    etcd.restart().await;
    let leads = leading(&election, "one").await;
    assert_eq!(word(&mut leaders).await.as_deref(), Some("one"));
    coordinator.close().await.unwrap();

    assert!(!leads.is_held());
    let rest = timeout(SOON, leaders.collect::<Vec<_>>()).await.unwrap();
    assert!(rest.len() <= 1, "{rest:?}");
}
