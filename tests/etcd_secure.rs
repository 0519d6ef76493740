//! What readers see of an etcd that asks who they are: passwords, tokens that run out, certificates.
#![cfg(all(feature = "etcd", feature = "_tls"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/echo/mod.rs"]
mod echo;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/log.rs"]
mod log;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/reader.rs"]
mod reader;

use std::{env, fs, time::Duration};

use echo::{EchoClient, EchoRequest};
use etcd::Etcd;
use etcd_client::{Certificate, ConnectOptions, Identity, Permission, PermissionType, TlsOptions};
use fleet::Member;
use futures_util::StreamExt;
use log::Log;
use proxy::{Mode, Proxy};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reader::Reader;
use tokio::time::{Instant, sleep, timeout};
use tonic_fleet::{
    Channel, Error, ErrorKind, Instance, Registrar, RegistryUrl, Target, View,
    etcd::{Etcd as Handle, Options, Registry},
    register::{self, State},
    resolve::{self, Resolve, Update, Updates},
    transport::Tls,
};

/// Longer than anything is waited for, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);

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
    assert_eq!((reader.changes(), other.changes()), {
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
        // How etcd says that there is none depends on its version.
        (
            ours().identity_pem(&stranger, &with_key),
            "client certificate",
        ),
        (ours(), "client certificate"),
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

/// An etcd whose tokens live for three seconds, used or not, and a user who may only work in `/services/`.
async fn forgetful() -> (Etcd, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let key = home.path().join("jwt.key");
    fs::write(&key, "a key for this test alone, thirty-two bytes long").unwrap();
    let key = key.display();
    let flag = format!("--auth-token=jwt,priv-key={key},sign-method=HS256,ttl=3s");
    // What a password costs to check is not what is tried here, and would be most of the work.
    let mut etcd = Etcd::with(&[&flag, "--bcrypt-cost=4"]).await;
    admit(&etcd, "fleet", "hunter2").await;
    etcd.lock_up("secret").await;
    (etcd, home)
}

/// A user who may do what servers and clients do, and nothing else.
async fn admit(etcd: &Etcd, user: &str, password: &str) {
    let mut client = etcd.client().await;
    client.user_add(user, password, None).await.unwrap();
    client.role_add(user).await.unwrap();
    client.user_grant_role(user, user).await.unwrap();
    grant(etcd, user).await;
}

async fn grant(etcd: &Etcd, role: &str) {
    let all = Permission::new(PermissionType::Readwrite, "/services/").with_prefix();
    let mut client = etcd.client().await;
    client.role_grant_permission(role, all).await.unwrap();
}

fn url(etcd: &Etcd, password: &str) -> String {
    format!("etcd://fleet:{password}@{}", etcd.address())
}

/// Servers that register, change, come and go, and a channel that finds them, while tokens run out: no call
/// fails, all is told in time, and the log stays silent.
async fn served_for(time: Duration) {
    let (etcd, _home) = forgetful().await;
    let log = Log::of("tonic_fleet=debug");
    let place = url(&etcd, "hunter2") + "?ttl=9s";
    let first = Member::start("s0", &place).await;
    let _second = Member::start("s1", &place).await;
    let target = place.replace('?', "/greeter?");
    let channel = Channel::builder(target.parse().unwrap()).build().unwrap();
    timeout(SOON, channel.ready(2)).await.expect("both connect");
    let begun = log.said().len();

    let mut client = EchoClient::new(channel.clone());
    let (mut calls, mut changes, mut late) = (0, 0, 0);
    let (mut guest, mut slowest) = (None, Duration::ZERO);
    let end = Instant::now() + time;
    while Instant::now() < end {
        for _ in 0..20 {
            let message = String::from("hello");
            client.unary_echo(EchoRequest { message }).await.unwrap();
            calls += 1;
            sleep(Duration::from_millis(25)).await;
        }
        changes += 1;
        let (began, weight) = (Instant::now(), 1 + changes % 9);
        // On a machine that is busy, an answer may take longer than is waited for; the wish stays.
        if let Err(why) = first.registration.update(|i| i.weight(weight)).await {
            println!(
                "late: {}; {:#?}",
                why.chain(),
                log.lines().iter().rev().take(20).rev()
            );
            late += 1;
        }
        shows(&channel, |view| {
            let mut known = view.known().iter();
            known.any(|e| e.id().as_str() == "s0" && e.instance().weight == weight)
        })
        .await;
        slowest = slowest.max(Instant::now() - began);
        // Somebody who logs in anew, and leaves again.
        guest = match guest {
            None => Some(Member::start("guest", &place).await),
            Some(guest) => {
                guest.registration.close().await.unwrap();
                shows(&channel, |view| view.known().len() == 2).await;
                None
            }
        };
    }

    let logged = log.said().len() - begun;
    let warnings = log.warnings();
    println!(
        "{calls} calls, none failed; {changes} changes, {late} of them late, the slowest seen after {slowest:?}; \
         {logged} lines logged, {} of them warnings",
        warnings.len(),
    );
    // A token that runs out would say so twenty times a minute; a machine that is busy does not.
    let most = 4 + time.as_secs() as usize / 60;
    assert!(
        warnings.len() <= most,
        "{} warnings: {warnings:#?}",
        warnings.len()
    );
    // Each guest comes and goes, and that is all there is to say.
    let most = 5 * changes as usize + 10 * warnings.len();
    assert!(logged <= most, "{logged} lines: {:#?}", log.said());
    assert!(
        late <= 3 + changes / 100,
        "{late} of {changes} changes were late"
    );
}

async fn shows(channel: &Channel, is: impl Fn(&View) -> bool) {
    let shown = async {
        loop {
            let view = channel.view();
            if is(&view) {
                return;
            }
            channel.changed(view.number()).await;
        }
    };
    let shown = timeout(SOON, shown).await;
    assert!(shown.is_ok(), "never shown: {}", channel.view());
}

#[tokio::test]
async fn tokens_of_three_seconds_cost_no_call_and_no_line_in_the_log() {
    served_for(Duration::from_secs(20)).await;
}

#[tokio::test]
#[ignore = "takes ten minutes: scripts/soak-auth"]
async fn for_ten_minutes_tokens_of_three_seconds_cost_no_call_and_no_line_in_the_log() {
    let seconds = env::var("FLEET_AUTH_SECONDS").map_or(600, |text| text.parse().unwrap());
    served_for(Duration::from_secs(seconds)).await;
}

/// The first word of a resolver that is refused.
async fn refused(updates: &mut Updates) -> Error {
    let next = timeout(SOON, updates.next()).await;
    match next.expect("a word") {
        Some(Update::Stale(why)) => why,
        other => panic!("it is not refused: {other:?}"),
    }
}

/// One clear error at the start, as `Denied`, for who reads and who registers; both recover when it is put
/// right, and the log has said it a few times and no more.
async fn denied_until(place: &str, words: &str, put_right: impl AsyncFnOnce()) {
    let log = Log::of("tonic_fleet=info");
    let place: RegistryUrl = place.parse().unwrap();
    let target = place.service("greeter").unwrap();
    let service = "greeter".parse().unwrap();
    let server = Instance::at("10.0.0.9:1").unwrap().id("ours").unwrap();
    let resolver = resolve::open(&target).unwrap();
    let registrar = register::open(&place).unwrap();

    let mut updates = resolver.resolve(&service);
    let read = refused(&mut updates).await;
    let wrote = registrar.register(&service, server.clone()).await;
    let wrote = wrote.expect_err("it is refused");
    for error in [&read, &wrote] {
        println!("{}", error.chain());
        assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.chain());
        assert!(error.chain().contains(words), "{words}: {}", error.chain());
    }
    // It goes on trying, and says no more of it than a person wants to read.
    sleep(Duration::from_secs(5)).await;
    let warnings = log.warnings();
    assert!((1..=6).contains(&warnings.len()), "{warnings:#?}");
    put_right().await;

    let mut reader = Reader::of(updates);
    reader
        .until_within(Duration::from_secs(60), "it is let in", |reader| {
            reader.begun
        })
        .await;
    let registration = registrar.register(&service, server).await.unwrap();
    assert_eq!(registration.state(), State::Registered);
    reader
        .until("ours is known", |reader| reader.ids() == ["ours"])
        .await;
}

#[tokio::test]
async fn a_wrong_password_is_denied_until_it_is_right() {
    let (etcd, _home) = forgetful().await;

    denied_until(&url(&etcd, "wrong"), "authentication failed", async || {
        let mut root = etcd.client().await;
        root.user_change_password("fleet", "wrong").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_missing_permission_is_denied_until_it_is_granted() {
    let (etcd, _home) = forgetful().await;
    let mut root = etcd.client().await;
    root.user_revoke_role("fleet", "fleet").await.unwrap();

    denied_until(&url(&etcd, "hunter2"), "permission denied", async || {
        let mut root = etcd.client().await;
        root.user_grant_role("fleet", "fleet").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_wrong_ca_is_denied_until_the_file_is_right() {
    let ca = Ca::new();
    let etcd = secured(&ca).await;
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = home.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (certificate, key) = ca.sign();
    let trusted = file("ca.pem", Ca::new().0.pem());
    let certificate = file("cert.pem", certificate);
    let key = file("key.pem", key);
    let place = format!(
        "etcd://{}?ca={trusted}&cert={certificate}&key={key}",
        etcd.address()
    );

    denied_until(&place, "no CA that is trusted here", async || {
        file("ca.pem", ca.0.pem());
    })
    .await;
}

#[tokio::test]
async fn a_registration_whose_rights_are_taken_away_is_denied_and_then_restored() {
    let (etcd, _home) = forgetful().await;
    let registrar = register::open(&(url(&etcd, "hunter2") + "?ttl=20s").parse().unwrap()).unwrap();
    let server = Instance::at("10.0.0.9:1").unwrap().id("ours").unwrap();
    let service = "greeter".parse().unwrap();
    let registration = registrar.register(&service, server).await.unwrap();
    let mut root = etcd.client().await;

    root.user_revoke_role("fleet", "fleet").await.unwrap();
    let refused = registration.update(|i| i.weight(2)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{}", refused.chain());
    assert_eq!(registration.state(), State::Denied);
    root.user_grant_role("fleet", "fleet").await.unwrap();

    let back = timeout(
        Duration::from_secs(60),
        registration.until(State::Registered),
    )
    .await;
    back.expect("it is registered again").unwrap();
    // Another client: the rights of this one's token are those of before.
    let mut root = etcd.client().await;
    let got = root.get("/services/greeter/ours", None).await.unwrap();
    assert!(got.kvs()[0].value_str().unwrap().contains(r#""weight":2"#));
}

/// Everything that can be said of a registry, whether it is well or not.
async fn all_that_is_said(place: &str, wait: Duration) -> String {
    let mut said = String::new();
    let url: RegistryUrl = place.parse().unwrap();
    let target = url.service("greeter").unwrap();
    let channel = Channel::builder(target.clone());
    said += &format!("{url} {url:?} {target} {target:?} {channel:?}\n");
    let channel = channel.build().unwrap();
    let registrar = Registrar::new(url.clone()).unwrap();
    let server = Instance::at("10.0.0.9:1").unwrap().id("ours").unwrap();
    match registrar.register("greeter", server).await {
        Ok(registration) => {
            let changed = registration.update(|i| i.weight(2)).await;
            said += &format!("{registration:?} {changed:?}\n");
        }
        Err(error) => said += &format!("{error} {error:?} {}\n", error.chain()),
    }
    sleep(wait).await;
    let mut client = EchoClient::new(channel.clone());
    let mut request = tonic::Request::new(EchoRequest::default());
    request.set_timeout(Duration::from_millis(300));
    let status = client.unary_echo(request).await.unwrap_err();
    let view = channel.view();
    said += &format!("{status} {status:?} {view} {view:?} {channel:?} {registrar:?}\n");
    said + &format!("{:?}\n", Registry::open(&url))
}

#[tokio::test]
async fn secrets_are_in_nothing_that_is_printed_shown_or_logged() {
    let log = Log::of("trace");
    let (etcd, _home) = forgetful().await;
    let mut all = String::new();

    // Right, wrong, unreachable, and not even URLs.
    all += &all_that_is_said(&url(&etcd, "hunter2"), Duration::from_secs(4)).await;
    all += &all_that_is_said(&url(&etcd, "wr0ng-pass"), Duration::ZERO).await;
    all += &all_that_is_said("etcd://fleet:wr0ng-pass@127.0.0.1:1", Duration::ZERO).await;
    #[cfg(feature = "consul")]
    {
        let place = "consul://127.0.0.1:1?token=hunter2";
        all += &all_that_is_said(place, Duration::from_secs(1)).await;
    }
    for (before, after) in [
        ("etcd://fleet:", "@"),
        ("etcd://fleet:", "@h:1?layout=none"),
        ("etcd://fleet:", "@h:0"),
        ("etcd://fleet:", "@h:1,h:x/greeter"),
        ("etcd://fleet:", "@h:1?ttl=soon"),
        ("etcd//fleet:", "@h:1"),
        ("fleet:", "@h:1"),
        ("etcd://:", "@h:1"),
        ("etcd://h:1,fleet:", "@h:2"),
        ("http://fleet:", "@h:1"),
        ("etcd://h:1?password=", ""),
        ("etcd://h:1?token=", ""),
        ("consul://h:1?token=", ""),
        ("consul://h:1?tokn=", ""),
        ("consul://h:1?dc=x&token=", "&nonsense=1"),
        ("consul://fleet:", "@h:1"),
    ] {
        for secret in ["hunter2", "hunter2%2", "hunter2/x", "hunter2 "] {
            let text = format!("{before}{secret}{after}");
            let registry = text
                .parse::<RegistryUrl>()
                .and_then(|url| Registry::open(&url));
            let target = text
                .parse::<Target>()
                .and_then(|t| resolve::open(&t).map(drop));
            all += &format!("{registry:?} {target:?}\n");
            all += &registry.err().map_or(String::new(), |e| e.chain());
            all += &target.err().map_or(String::new(), |e| e.chain());
        }
    }
    all += &log.text();

    assert!(
        all.contains("authentication failed"),
        "the log is listened to"
    );
    assert!(all.len() > 10_000, "only {} bytes", all.len());
    // Passwords, and what every token of this etcd begins with.
    for secret in ["hunter2", "wr0ng-pass", "eyJ", "PRIVATE KEY"] {
        let told = all.lines().find(|line| line.contains(secret));
        assert!(told.is_none(), "{secret}: {told:?}");
    }
}
