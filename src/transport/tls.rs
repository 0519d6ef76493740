//! TLS between a connection and its byte stream.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, AlertDescription, CertificateError, ClientConfig, RootCertStore,
        crypto::CryptoProvider,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::{Io, last_words::LastWords};
use crate::{Address, Error, ErrorKind, Instance};

/// Whom to trust, and who we are: TLS and mutual TLS to servers.
///
/// Nobody is trusted until roots are given. A server must speak HTTP/2 by ALPN, and its certificate
/// must bear its name: the one set [here](Self::server_name), or else the one in its record
/// ([`Instance::server_name`]), or else the host of its address.
///
/// What is given as a file is read again when the file has changed, at the next connection; while it
/// cannot be read, or does not fit together, the last that could holds.
///
/// ```
/// use tonic_fleet::transport::Tls;
///
/// let tls = Tls::new()
///     .ca_file("/etc/fleet/ca.pem")
///     .identity_files("/etc/fleet/client.pem", "/etc/fleet/client.key");
/// assert!(!format!("{tls:?}").contains("PRIVATE"));
/// ```
#[derive(Clone, Default)]
pub struct Tls {
    roots: Vec<Pem>,
    #[cfg(feature = "tls-webpki-roots")]
    webpki_roots: bool,
    identity: Option<(Pem, Pem)>,
    server_name: Option<Arc<str>>,
    loaded: Arc<Mutex<Loaded>>,
}

#[derive(Clone, Eq, PartialEq)]
enum Pem {
    Text(Arc<[u8]>),
    File(Arc<Path>),
}

/// The configuration made of what was given, and the files as they were then.
#[derive(Default)]
struct Loaded {
    config: Option<Arc<ClientConfig>>,
    files: Vec<Stamp>,
    /// What could not be loaded instead, so that it is complained about once.
    refused: Option<Vec<Stamp>>,
}

/// What tells that a file has changed: its time and its length.
type Stamp = Option<(SystemTime, u64)>;

impl Tls {
    /// TLS that trusts nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificate authorities in this PEM text too.
    #[must_use]
    pub fn ca_pem(self, pem: impl AsRef<[u8]>) -> Self {
        self.trust(Pem::Text(pem.as_ref().into()))
    }

    /// Trusts the certificate authorities in this PEM file too.
    #[must_use]
    pub fn ca_file(self, path: impl Into<PathBuf>) -> Self {
        self.trust(Pem::File(path.into().into()))
    }

    /// Trusts the authorities that browsers trust, as of the build, too.
    #[cfg(feature = "tls-webpki-roots")]
    #[must_use]
    pub fn webpki_roots(mut self) -> Self {
        self.webpki_roots = true;
        self.loaded = Arc::default();
        self
    }

    /// Shows servers this certificate chain and signs with this key, both PEM texts.
    #[must_use]
    pub fn identity_pem(self, chain: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        let text = |pem: &[u8]| Pem::Text(pem.into());
        self.identity(text(chain.as_ref()), text(key.as_ref()))
    }

    /// Shows servers this certificate chain and signs with this key, both PEM files.
    #[must_use]
    pub fn identity_files(self, chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        let file = |path: PathBuf| Pem::File(path.into());
        self.identity(file(chain.into()), file(key.into()))
    }

    /// Sets the name that every server's certificate must bear, whatever its record says.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    fn trust(mut self, pem: Pem) -> Self {
        self.roots.push(pem);
        self.loaded = Arc::default();
        self
    }

    fn identity(mut self, chain: Pem, key: Pem) -> Self {
        self.identity = Some((chain, key));
        self.loaded = Arc::default();
        self
    }

    /// Refuses what no connection could use, saying what and why.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if let Some(name) = &self.server_name {
            named(name)?;
        }
        self.load().map(drop)
    }

    pub(super) fn name(&self) -> Option<&Arc<str>> {
        self.server_name.as_ref()
    }

    /// Lays TLS over a byte stream.
    pub(super) async fn over(
        &self,
        io: Box<dyn Io>,
        instance: &Instance,
        address: &Address,
    ) -> Result<Box<dyn Io>, Error> {
        let name = self.name().or(instance.server_name.as_ref());
        let name = name.map_or_else(|| address.host(), |name| name.to_string());
        let config = self.config().await?;
        let stream = laid(config, io, &name, address).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            let what = format!("TLS with {address}: the server does not offer HTTP/2 (ALPN `h2`)");
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        Ok(Box::new(LastWords::of(stream)))
    }

    /// Lays TLS over a byte stream to one who speaks HTTP/1.1.
    #[cfg(feature = "consul")]
    pub(crate) async fn over_http1(
        &self,
        io: Box<dyn Io>,
        address: &Address,
    ) -> Result<Box<dyn Io>, Error> {
        let name = self.name();
        let name = name.map_or_else(|| address.host(), |name| name.to_string());
        let mut config = (*self.config().await?).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = laid(Arc::new(config), io, &name, address).await?;
        Ok(Box::new(stream))
    }

    /// What a failure of HTTP/2's beginning was, if it was TLS: since TLS 1.3 a server judges our
    /// certificate when the handshake is over for us.
    pub(super) fn late(&self, address: &Address, error: &h2::Error) -> Option<Error> {
        let io = error.get_io()?;
        // A reset throws away what was sent before it, such as an alert that nobody has read yet.
        if BROKEN_OFF.contains(&io.kind()) {
            let why = "it broke off after the handshake: perhaps it wants a client certificate, or \
                       does not accept ours";
            let doing = format!("TLS with {address}: {why}");
            return Some(Error::new(ErrorKind::Unavailable, doing).because(io.kind().to_string()));
        }
        let text = io.to_string();
        let alert = text.strip_prefix("received fatal alert: ")?;
        let required = std::iter::once(AlertDescription::CertificateRequired);
        let mut known = required.chain(UNACCEPTED);
        let why = known
            .find(|known| format!("{known:?}") == alert)
            .map(told_off)?;
        Some(Error::new(
            ErrorKind::Denied,
            format!("TLS with {address}: {why}"),
        ))
    }

    async fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        if self.files().next().is_none() {
            return self.load();
        }
        let tls = self.clone();
        let loaded = tokio::task::spawn_blocking(move || tls.load()).await;
        loaded.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Unavailable,
                "TLS: reading files was cut short",
            ))
        })
    }

    /// The configuration for what was given, as the files are now.
    fn load(&self) -> Result<Arc<ClientConfig>, Error> {
        // Before they are read: what changes meanwhile is read again next time.
        let files = self.files().map(stamp).collect::<Vec<_>>();
        let mut loaded = self
            .loaded
            .lock()
            .expect("no code here panics with the lock held");
        if let Some(config) = &loaded.config
            && (loaded.files == files || loaded.refused.as_ref() == Some(&files))
        {
            return Ok(Arc::clone(config));
        }
        match (self.build(), &loaded.config) {
            (Ok(config), _) => {
                let config = Arc::new(config);
                *loaded = Loaded {
                    config: Some(Arc::clone(&config)),
                    files,
                    refused: None,
                };
                Ok(config)
            }
            (Err(error), Some(last)) => {
                let error = error.chain();
                tracing::warn!(
                    error,
                    "new TLS files cannot be used, the ones before still hold"
                );
                let last = Arc::clone(last);
                loaded.refused = Some(files);
                Ok(last)
            }
            (Err(error), None) => Err(error),
        }
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let identity = self.identity.iter().flat_map(|(chain, key)| [chain, key]);
        self.roots
            .iter()
            .chain(identity)
            .filter_map(|pem| match pem {
                Pem::File(path) => Some(&**path),
                Pem::Text(_) => None,
            })
    }

    fn build(&self) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder_with_provider(provider()?)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::config("TLS: no protocol version is possible").because(error))?
            .with_root_certificates(self.trusted()?);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.certificates("client certificate")?, key.key()?)
                .map_err(|error| {
                    let what =
                        format!("TLS: the key {key} does not fit the client certificate {chain}");
                    Error::config(what).because(error)
                })?,
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn trusted(&self) -> Result<RootCertStore, Error> {
        let mut trusted = RootCertStore::empty();
        for pem in &self.roots {
            for certificate in pem.certificates("CA")? {
                trusted.add(certificate).map_err(|error| {
                    Error::config(format!(
                        "TLS: the CA {pem} has a certificate that cannot be used"
                    ))
                    .because(error)
                })?;
            }
        }
        #[cfg(feature = "tls-webpki-roots")]
        if self.webpki_roots {
            trusted.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        if trusted.is_empty() {
            return Err(Error::config(
                "TLS: nobody is trusted: give a CA (`ca_pem`, `ca_file`), or the webpki roots",
            ));
        }
        Ok(trusted)
    }
}

impl Pem {
    fn read(&self, what: &str) -> Result<Arc<[u8]>, Error> {
        match self {
            Self::Text(text) => Ok(Arc::clone(text)),
            Self::File(path) => match fs::read(path) {
                Ok(text) => Ok(text.into()),
                Err(error) => {
                    let what = format!("TLS: the {what} file {} cannot be read", path.display());
                    Err(Error::config(what).because(error))
                }
            },
        }
    }

    fn certificates(&self, what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let text = self.read(what)?;
        let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let found = found.map_err(|error| {
            Error::config(format!("TLS: the {what} {self} is no PEM")).because(error)
        })?;
        if found.is_empty() {
            let what = format!(
                "TLS: the {what} {self} has no certificate: it takes a `BEGIN CERTIFICATE`"
            );
            return Err(Error::config(what));
        }
        Ok(found)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        let text = self.read("key")?;
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            let what =
                format!("TLS: the key {self} has no private key: it takes a `BEGIN PRIVATE KEY`");
            Error::config(what).because(error)
        })
    }
}

async fn laid(
    config: Arc<ClientConfig>,
    io: Box<dyn Io>,
    name: &str,
    address: &Address,
) -> Result<TlsStream<Box<dyn Io>>, Error> {
    let stream = TlsConnector::from(config).connect(named(name)?, io).await;
    stream.map_err(|error| refused(address, name, error))
}

/// The crypto of the process if it has chosen one, or else that of the features.
fn provider() -> Result<Arc<CryptoProvider>, Error> {
    if let Some(chosen) = CryptoProvider::get_default() {
        return Ok(Arc::clone(chosen));
    }
    #[cfg(feature = "tls-aws-lc")]
    return Ok(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    #[cfg(all(feature = "tls-ring", not(feature = "tls-aws-lc")))]
    return Ok(Arc::new(rustls::crypto::ring::default_provider()));
    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
    return Err(Error::config(
        "TLS: no crypto provider: take the feature `tls-ring` or `tls-aws-lc`",
    ));
}

fn named(name: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(name.to_owned()).map_err(|error| {
        let what = format!("TLS: server name {name:?} is neither a host name nor an IP address");
        Error::config(what).because(error)
    })
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((found.modified().ok()?, found.len()))
}

/// One sentence on why TLS did not come about.
fn refused(address: &Address, name: &str, error: io::Error) -> Error {
    let known = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>());
    let (kind, why) = match known {
        Some(rustls::Error::InvalidCertificate(bad)) => (ErrorKind::Denied, untrusted(bad, name)),
        Some(rustls::Error::AlertReceived(alert)) => (ErrorKind::Denied, told_off(*alert)),
        Some(rustls::Error::InvalidMessage(_)) => (
            ErrorKind::Unavailable,
            "the server does not speak TLS on this port".to_owned(),
        ),
        _ => (ErrorKind::Unavailable, "the handshake failed".to_owned()),
    };
    Error::new(kind, format!("TLS with {address}: {why}")).because(error)
}

fn untrusted(bad: &CertificateError, name: &str) -> String {
    match bad {
        // A bad signature is an authority that bears the name of a trusted one.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no CA that is trusted here has signed its certificate".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("its certificate does not bear the name {name}")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet".into()
        }
        _ => "its certificate cannot be trusted".into(),
    }
}

fn told_off(alert: AlertDescription) -> String {
    if alert == AlertDescription::CertificateRequired {
        return "it wants a client certificate: give an identity".into();
    }
    if UNACCEPTED.contains(&alert) {
        return format!("it does not accept our client certificate ({alert:?})");
    }
    match alert {
        AlertDescription::NoApplicationProtocol => "it does not offer HTTP/2 (ALPN `h2`)".into(),
        other => format!("it refused the handshake ({other:?})"),
    }
}

const BROKEN_OFF: [io::ErrorKind; 3] = [
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::BrokenPipe,
    io::ErrorKind::UnexpectedEof,
];

/// What servers say of a client certificate that they do not accept.
const UNACCEPTED: [AlertDescription; 7] = [
    AlertDescription::UnknownCA,
    AlertDescription::BadCertificate,
    AlertDescription::CertificateUnknown,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateRevoked,
    AlertDescription::DecryptError,
    AlertDescription::AccessDenied,
];

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("given as text"),
            Self::File(path) => write!(f, "in {}", path.display()),
        }
    }
}

/// Whether both were given the same.
impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        #[cfg(feature = "tls-webpki-roots")]
        if self.webpki_roots != other.webpki_roots {
            return false;
        }
        (&self.roots, &self.identity, &self.server_name)
            == (&other.roots, &other.identity, &other.server_name)
    }
}

impl Eq for Tls {}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |pem: &Pem| pem.to_string();
        f.debug_struct("Tls")
            .field("roots", &self.roots.iter().map(shown).collect::<Vec<_>>())
            .field(
                "identity",
                &self.identity.as_ref().map(|(chain, _)| shown(chain)),
            )
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}
