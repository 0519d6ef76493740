//! Calls over TLS and mutual TLS, through a channel and against tonic's own server over sockets.
#![cfg(feature = "tls-ring")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../examples/echo/mod.rs"]
mod echo;

use std::{
    fs, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use echo::{Echo, EchoClient, EchoRequest, EchoServer};
use futures_util::stream;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};
use tonic::{
    Code, Status,
    transport::{Server, server::Connected},
};
use tonic_fleet::{Builder, Channel, Instance, resolve::Fixed, transport::Tls};

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

    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let chain = params.signed_by(&key, &self.0).unwrap().pem();
        Identity {
            chain,
            key: key.serialize_pem(),
        }
    }
}

/// A server that proves to be this, to clients of that authority only: where it listens, and what ends it
/// in order when it is dropped.
async fn serve(identity: &Identity, clients: &Ca) -> (String, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    serve_on(listener, "old", identity, clients)
}

fn serve_on(
    listener: TcpListener,
    id: &str,
    identity: &Identity,
    clients: &Ca,
) -> (String, oneshot::Sender<()>) {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let mut roots = RootCertStore::empty();
    roots
        .add(PemObject::from_pem_slice(clients.0.pem().as_bytes()).unwrap())
        .unwrap();
    let chain = PemObject::from_pem_slice(identity.chain.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build().unwrap())
        .with_single_cert(vec![chain], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));

    let address = listener.local_addr().unwrap().to_string();
    let streams = stream::unfold((listener, acceptor), |(listener, acceptor)| async {
        loop {
            let (stream, _) = listener.accept().await.ok()?;
            if let Ok(stream) = acceptor.accept(stream).await {
                return Some((Ok::<_, io::Error>(Secure(stream)), (listener, acceptor)));
            }
        }
    });
    let (stop, stopped) = oneshot::channel();
    let stopped = async { drop(stopped.await) };
    let server = Server::builder().add_service(EchoServer::new(Echo::new(id)));
    tokio::spawn(server.serve_with_incoming_shutdown(Box::pin(streams), stopped));
    (address, stop)
}

fn builder(address: &str) -> Builder {
    let instance = Instance::at(address).unwrap().server_name("echo.example");
    Channel::over("echo".parse().unwrap(), Fixed::new([instance]))
}

/// One call; who answered.
async fn asked(channel: &Channel) -> Result<String, Status> {
    let message = "hello".to_owned();
    let response = EchoClient::new(channel.clone())
        .unary_echo(EchoRequest { message })
        .await?;
    Ok(response
        .metadata()
        .get(echo::BACKEND)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned())
}

#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let (address, _server) = serve(&theirs.identity("echo.example"), &ours).await;
    let us = ours.identity("client");
    let tls = Tls::new()
        .ca_pem(theirs.0.pem())
        .identity_pem(us.chain, us.key);

    let channel = builder(&address).tls(tls).build().unwrap();

    assert_eq!(asked(&channel).await.unwrap(), "old");
}

#[tokio::test]
async fn a_call_says_why_nobody_could_be_trusted() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let (address, _server) = serve(&theirs.identity("echo.example"), &ours).await;
    let us = ours.identity("client");
    let trusting = || Tls::new().ca_pem(theirs.0.pem());
    for (tls, why) in [
        (
            Tls::new().ca_pem(ours.0.pem()),
            "no CA that is trusted here has signed its certificate",
        ),
        (
            trusting().server_name("other.example"),
            "does not bear the name other.example",
        ),
        (trusting(), "it wants a client certificate"),
        (trusting().identity_pem(us.chain, us.key), ""),
    ] {
        let patience = Duration::from_millis(500);
        let channel = builder(&address)
            .tls(tls)
            .patience(patience)
            .build()
            .unwrap();

        let answer = asked(&channel).await;

        if why.is_empty() {
            assert_eq!(answer.unwrap(), "old");
            continue;
        }
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains(why), "{status}");
    }
}

#[tokio::test]
async fn new_certificates_are_taken_up_without_a_restart() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = |name: &str| dir.path().join(name);
    let write = |ca: &Ca, us: &Identity| {
        fs::write(file("ca.pem"), ca.0.pem()).unwrap();
        fs::write(file("us.pem"), &us.chain).unwrap();
        fs::write(file("us.key"), &us.key).unwrap();
    };
    let (old, new) = (Ca::new(), Ca::new());
    write(&old, &old.identity("client"));
    let (address, server) = serve(&old.identity("echo.example"), &old).await;
    let tls = Tls::new()
        .ca_file(file("ca.pem"))
        .identity_files(file("us.pem"), file("us.key"));
    let channel = builder(&address).tls(tls).build().unwrap();
    assert_eq!(asked(&channel).await.unwrap(), "old");

    // Everybody's certificates are replaced, and the server starts again with its new one.
    write(&new, &new.identity("client"));
    drop(server);
    let listener = loop {
        match TcpListener::bind(&address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let _server = serve_on(listener, "new", &new.identity("echo.example"), &new);

    // The news of the old one's end may still be on its way.
    let answered = async { while asked(&channel).await.unwrap() != "new" {} };
    tokio::time::timeout(Duration::from_secs(60), answered)
        .await
        .unwrap();
}

/// A TLS stream as tonic's server takes it.
struct Secure(TlsStream<TcpStream>);

impl Connected for Secure {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Secure {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
