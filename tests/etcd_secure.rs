//! What readers see of an etcd that asks who they are: passwords, tokens that run out, certificates.
#![cfg(all(feature = "etcd", feature = "_tls"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/reader.rs"]
mod reader;

use std::time::Duration;

use etcd::Etcd;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use proxy::{Mode, Proxy};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reader::Reader;
use tonic_fleet::{
    ErrorKind,
    etcd::{Etcd as Handle, Options, Registry},
    resolve::Resolve,
    transport::Tls,
};

fn registry(member: &str, options: Options) -> Registry {
    Registry::over(Handle::open(&[member], options).unwrap()).grace(Duration::from_millis(300))
}

fn read(registry: &Registry, service: &str) -> Reader {
    Reader::of(registry.resolve(&service.parse().unwrap()))
}

async fn put(etcd: &Etcd, service: &str, id: &str) {
    let value = format!(r#"{{"id":"{id}","addresses":["10.0.0.5:1"]}}"#);
    etcd.put(&format!("/services/{service}/{id}"), value).await;
}

#[tokio::test]
async fn tokens_that_run_out_are_a_formality() {
    let mut etcd = Etcd::with(&["--auth-token-ttl=1"]).await;
    put(&etcd, "greeter", "a").await;
    put(&etcd, "other", "a").await;
    etcd.lock_up("secret").await;
    let proxy = Proxy::before(&etcd.address()).await;
    let registry = registry(&proxy.address(), Options::default().user("root", "secret"));
    let mut reader = read(&registry, "greeter");
    reader
        .until("a is known", |reader| reader.ids() == ["a"])
        .await;

    // Three times as long as a token lives, with nothing asked but signs of life.
    reader.during(Duration::from_secs(4)).await;
    let mut other = read(&registry, "other");
    other
        .until("a is known", |reader| reader.ids() == ["a"])
        .await;
    put(&etcd, "greeter", "b").await;
    put(&etcd, "other", "b").await;
    reader
        .until("b is known", |reader| reader.ids() == ["a", "b"])
        .await;
    other
        .until("b is known", |reader| reader.ids() == ["a", "b"])
        .await;
    assert_eq!((reader.told(), other.told()), {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        (words(&["reset 1", "+b"]), words(&["reset 1", "+b"]))
    });

    proxy.set(Mode::Reset);
    reader
        .until("the cut is noticed", |reader| reader.stale.is_some())
        .await;
    etcd.restart().await;
    proxy.set(Mode::Pass);
    put(&etcd, "greeter", "c").await;
    reader
        .until("c is known", |reader| reader.ids() == ["a", "b", "c"])
        .await;
}

#[tokio::test]
async fn a_wrong_password_is_told_and_recovered_from_when_it_is_put_right() {
    let mut etcd = Etcd::start().await;
    put(&etcd, "greeter", "a").await;
    etcd.lock_up("secret").await;

    let options = Options::default().user("root", "hunter2");
    let mut reader = read(&registry(&etcd.address(), options), "greeter");
    reader
        .until("it is told", |reader| reader.stale.is_some())
        .await;
    let why = reader.stale.clone().unwrap();
    assert!(why.contains("authentication failed"), "{why}");
    assert!(!why.contains("hunter2"), "{why}");
    let mut client = etcd.client().await;
    client
        .user_change_password("root", "hunter2")
        .await
        .unwrap();

    reader
        .until("a is known", |reader| reader.ids() == ["a"])
        .await;
}

#[tokio::test]
async fn who_does_not_log_in_is_told_so() {
    let mut etcd = Etcd::start().await;
    etcd.lock_up("secret").await;

    let mut reader = read(&registry(&etcd.address(), Options::default()), "greeter");
    reader
        .until("it is told", |reader| reader.stale.is_some())
        .await;

    let why = reader.stale.unwrap();
    assert!(why.contains("user name is empty"), "{why}");
}

/// A certificate authority, and what it signs: PEM of a certificate and of its key.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self) -> (String, String) {
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// An etcd that shows a certificate of this authority, and wants to see one.
async fn secured(ca: &Ca) -> Etcd {
    let (certificate, key) = ca.sign();
    let identity = Identity::from_pem(&certificate, &key);
    let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca.0.pem()));
    let options = ConnectOptions::default().with_tls(tls.identity(identity));
    let mut etcd = Etcd::prepared(&[]);
    etcd.over_tls((&certificate, &key), Some(&ca.0.pem()), options);
    etcd.restart().await;
    etcd
}

#[tokio::test]
async fn both_sides_show_their_certificates() {
    let ca = Ca::new();
    let etcd = secured(&ca).await;
    let (certificate, key) = ca.sign();
    let tls = Tls::new().ca_pem(ca.0.pem()).identity_pem(certificate, key);

    let mut reader = read(
        &registry(&etcd.address(), Options::default().tls(tls)),
        "greeter",
    );
    reader.until("there is nobody", |reader| reader.begun).await;
    put(&etcd, "greeter", "a").await;

    reader
        .until("a is known", |reader| reader.ids() == ["a"])
        .await;
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told() {
    let ca = Ca::new();
    let etcd = secured(&ca).await;
    let (certificate, key) = ca.sign();
    let (stranger, with_key) = Ca::new().sign();
    let ours = || Tls::new().ca_pem(ca.0.pem());
    let both = |tls: Tls| tls.identity_pem(&certificate, &key);
    for (tls, words) in [
        (
            both(Tls::new().ca_pem(Ca::new().0.pem())),
            "invalid peer certificate",
        ),
        (both(ours().server_name("elsewhere")), "not valid for name"),
        (ours().identity_pem(&stranger, &with_key), ""),
        (ours(), ""),
    ] {
        let mut reader = read(
            &registry(&etcd.address(), Options::default().tls(tls)),
            "greeter",
        );

        reader
            .until("it is told", |reader| reader.stale.is_some())
            .await;

        let why = reader.stale.unwrap();
        println!("{why}");
        assert!(why.contains(words), "{words}: {why}");
        assert!(!reader.begun);
    }
}

#[tokio::test]
async fn a_certificate_that_is_none_is_refused_with_the_reason() {
    let tls = Tls::new().ca_pem("-----BEGIN CERTIFICATE-----\nnonsense\n");

    let refused = Handle::open(&["127.0.0.1:1"], Options::default().tls(tls)).unwrap_err();

    println!("{}", refused.chain());
    assert_eq!(refused.kind(), ErrorKind::Config);
}
