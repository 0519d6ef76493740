//! Whom TLS trusts, and what it says when it does not.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

use super::{super::Tls, *};

/// A certificate authority of the test's own.
struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, both PEM.
struct Identity {
    chain: String,
    key: String,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn identity(&self, name: &str) -> Identity {
        self.sign(CertificateParams::new([name.to_owned()]).unwrap())
    }

    fn sign(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.0).unwrap().pem();
        Identity {
            chain,
            key: key.serialize_pem(),
        }
    }

    fn server(&self, name: &str) -> Serving {
        Serving {
            identity: self.identity(name),
            clients: None,
            alpn: b"h2",
        }
    }
}

/// How the test's server does TLS.
struct Serving {
    identity: Identity,
    clients: Option<String>,
    alpn: &'static [u8],
}

impl Serving {
    fn acceptor(self) -> TlsAcceptor {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let builder = ServerConfig::builder();
        let builder = match self.clients {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots
                    .add(PemObject::from_pem_slice(ca.as_bytes()).unwrap())
                    .unwrap();
                builder.with_client_cert_verifier(
                    WebPkiClientVerifier::builder(roots.into()).build().unwrap(),
                )
            }
        };
        let chain = PemObject::from_pem_slice(self.identity.chain.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.identity.key.as_bytes()).unwrap();
        let mut config = builder.with_single_cert(vec![chain], key).unwrap();
        config.alpn_protocols = vec![self.alpn.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Dials an echo server behind TLS and calls it once: what came back, or why not.
async fn call(tls: &Tls, instance: &Instance, serving: Serving) -> Result<Bytes, Error> {
    let (pipe, mut peers) = mpsc::unbounded_channel();
    let dialer = Dialer::new(Arc::new(Pipe(pipe)), Some(tls.clone()), Settings::default());
    let acceptor = serving.acceptor();
    let server = tokio::spawn(async move {
        let stream = acceptor.accept(peers.recv().await?).await.ok()?;
        let mut server = h2::server::handshake(stream).await.ok()?;
        while let Some(Ok((request, respond))) = server.accept().await {
            assert_eq!(request.uri().scheme_str(), Some("https"));
            tokio::spawn(echo(request, respond));
        }
        Some(())
    });

    let (connection, driver) = dialer.dial(instance).await?;
    let driver = tokio::spawn(driver.run(|_| {}));
    let response = connection.call(&mut unary("hello")).await.unwrap();
    let (body, _) = read(response).await.unwrap();
    drop(connection);
    driver.await.unwrap();
    server.await.unwrap();
    Ok(body)
}

#[tokio::test]
async fn a_server_whose_ca_is_trusted_and_whose_name_fits_is_called() {
    let ca = Ca::new();
    let tls = Tls::new().ca_pem(ca.pem());

    let by_address = call(&tls, &instance(), ca.server("10.0.0.5")).await;
    let by_record = instance().server_name("echo.example");
    let by_record = call(&tls, &by_record, ca.server("echo.example")).await;
    let by_channel = tls.clone().server_name("fleet.example");
    let by_channel = call(
        &by_channel,
        &instance().server_name("other"),
        ca.server("fleet.example"),
    )
    .await;
    let bare = instance().server_name("2001:db8::1");
    let bare = call(&tls, &bare, ca.server("2001:db8::1")).await;

    assert_eq!(by_address.unwrap(), "hello");
    assert_eq!(bare.unwrap(), "hello");
    assert_eq!(by_record.unwrap(), "hello");
    assert_eq!(by_channel.unwrap(), "hello");
}

#[tokio::test]
async fn a_server_that_cannot_be_trusted_is_refused_in_one_sentence() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let tls = Tls::new().ca_pem(ca.pem());
    let mut expired = CertificateParams::new(["10.0.0.5".to_owned()]).unwrap();
    expired.not_after = rcgen::date_time_ymd(2001, 1, 1);
    expired.not_before = rcgen::date_time_ymd(2000, 1, 1);
    let expired = Serving {
        identity: ca.sign(expired),
        clients: None,
        alpn: b"h2",
    };
    for (serving, why) in [
        (
            stranger.server("10.0.0.5"),
            "no CA that is trusted here has signed its certificate",
        ),
        (
            ca.server("other.example"),
            "its certificate does not bear the name 10.0.0.5",
        ),
        (expired, "its certificate has expired"),
    ] {
        let error = call(&tls, &instance(), serving).await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Denied);
        assert_eq!(error.to_string(), format!("TLS with 10.0.0.5:50051: {why}"));
    }
}

#[tokio::test]
async fn a_server_without_http2_is_refused() {
    let ca = Ca::new();
    let serving = Serving {
        alpn: b"http/1.1",
        ..ca.server("10.0.0.5")
    };

    let error = call(&Tls::new().ca_pem(ca.pem()), &instance(), serving)
        .await
        .unwrap_err();

    assert!(
        error.to_string().contains("does not offer HTTP/2"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_without_tls_is_refused() {
    let (pipe, mut peers) = mpsc::unbounded_channel();
    let tls = Tls::new().ca_pem(Ca::new().pem());
    let dialer = Dialer::new(Arc::new(Pipe(pipe)), Some(tls), Settings::default());
    let plain = tokio::spawn(async move {
        let mut peer = peers.recv().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut peer, &[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        peer
    });

    let error = dialer.dial(&instance()).await.unwrap_err();

    assert_eq!(
        error.to_string(),
        "TLS with 10.0.0.5:50051: the server does not speak TLS on this port"
    );
    drop(plain);
}

#[tokio::test]
async fn a_server_that_asks_for_a_client_certificate_gets_ours() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let serving = || Serving {
        clients: Some(clients.pem()),
        ..ca.server("10.0.0.5")
    };
    let tls = Tls::new().ca_pem(ca.pem());
    let us = clients.identity("client");
    let stranger = ca.identity("client");

    let known = call(
        &tls.clone().identity_pem(us.chain, us.key),
        &instance(),
        serving(),
    )
    .await;
    let nobody = call(&tls, &instance(), serving()).await;
    let other = call(
        &tls.identity_pem(stranger.chain, stranger.key),
        &instance(),
        serving(),
    )
    .await;

    assert_eq!(known.unwrap(), "hello");
    let nobody = nobody.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::Denied);
    assert!(
        nobody.to_string().contains("wants a client certificate"),
        "{nobody}"
    );
    let other = other.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Denied);
    assert!(
        other
            .to_string()
            .contains("does not accept our client certificate"),
        "{other}"
    );
}

/// Its alert may be lost with the connection.
#[tokio::test]
async fn who_breaks_off_after_the_handshake_may_not_like_our_certificate() {
    let ca = Ca::new();
    let tls = Some(Tls::new().ca_pem(ca.pem()));
    let (pipe, mut peers) = mpsc::unbounded_channel();
    let dialer = Dialer::new(Arc::new(Pipe(pipe)), tls, Settings::default());
    let acceptor = ca.server("10.0.0.5").acceptor();
    let server = tokio::spawn(async move {
        drop(acceptor.accept(peers.recv().await.unwrap()).await.unwrap());
    });

    let why = dialer.dial(&instance()).await.err().unwrap();

    server.await.unwrap();
    assert_eq!(why.kind(), ErrorKind::Unavailable);
    assert!(
        why.chain()
            .contains("perhaps it wants a client certificate"),
        "{}",
        why.chain()
    );
}

#[test]
fn what_cannot_work_is_refused_before_any_connection() {
    let ca = Ca::new();
    let us = ca.identity("client");
    let other = ca.identity("client");
    let trusting = || Tls::new().ca_pem(ca.pem());
    for (tls, why) in [
        (Tls::new(), "nobody is trusted"),
        (
            Tls::new().ca_pem("no PEM"),
            "the CA given as text has no certificate",
        ),
        (
            Tls::new().ca_file("/nowhere/ca.pem"),
            "the CA file /nowhere/ca.pem cannot be read",
        ),
        (
            trusting().identity_pem(&us.chain, &us.chain),
            "has no private key",
        ),
        (
            trusting().identity_pem(&us.chain, &other.key),
            "does not fit the client certificate",
        ),
        (
            trusting().server_name("not a name"),
            "neither a host name nor an IP address",
        ),
    ] {
        let error = tls.check().unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(why), "{error}");
    }
    trusting()
        .identity_pem(&us.chain, &us.key)
        .server_name("fine")
        .check()
        .unwrap();
}

#[test]
fn a_private_key_is_never_shown() {
    let us = Ca::new().identity("client");

    let shown = format!("{:?}", Tls::new().identity_pem(&us.chain, &us.key));

    assert!(
        !shown.contains("PRIVATE") && !shown.contains(&us.key[40..60]),
        "{shown}"
    );
}

#[tokio::test]
async fn files_that_change_are_read_again_and_bad_ones_are_not_taken() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ca.pem");
    let write = |text: &str| write_later(&path, text);
    let (old, new) = (Ca::new(), Ca::new());
    write(&old.pem());
    let tls = Tls::new().ca_file(&path);
    assert_eq!(
        call(&tls, &instance(), old.server("10.0.0.5"))
            .await
            .unwrap(),
        "hello"
    );

    write("half a file");
    assert_eq!(
        call(&tls, &instance(), old.server("10.0.0.5"))
            .await
            .unwrap(),
        "hello"
    );
    write(&new.pem());

    assert_eq!(
        call(&tls, &instance(), new.server("10.0.0.5"))
            .await
            .unwrap(),
        "hello"
    );
    assert!(
        call(&tls, &instance(), old.server("10.0.0.5"))
            .await
            .is_err()
    );
}

/// Writes a file with a time that no file written so before has had.
fn write_later(path: &Path, text: &str) {
    use std::{fs, time::SystemTime};

    let before = fs::metadata(path)
        .and_then(|m| m.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH);
    fs::write(path, text).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(before + secs(1)).unwrap();
}
