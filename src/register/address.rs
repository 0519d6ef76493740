//! Which address clients reach a listener at.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpStream, UdpSocket, lookup_host},
    time::timeout,
};

use crate::{Address, Error, Instance, Result};

/// A host that clients reach, and the port if it is not the listener's own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Host {
    name: String,
    port: Option<u16>,
}

/// Names the host, or `host:port`, that clients reach listeners at which are bound to no host in particular.
const VARIABLE: &str = "FLEET_ADVERTISE";

/// Reserved for documentation: nobody is there, but whatever leads to everybody leads there.
const ANYBODY: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];

/// A look-up or a connection within our own machine takes no longer, or it never ends.
const PATIENCE: Duration = Duration::from_secs(1);

impl Host {
    /// Reads `10.0.0.5`, `::1`, `name`, or one of them with a port.
    pub(super) fn read(text: &str, whence: &str) -> Result<Self> {
        let refuse = |cause: Error| {
            let doing = format!("{whence} {text:?}: give a host or `host:port` that clients reach");
            Error::config(doing).because(cause)
        };
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        let (address, port) = match bare.unwrap_or(text).parse::<IpAddr>() {
            Ok(ip) => (Address::try_from(SocketAddr::new(ip, 1)), None),
            Err(_) => match text.parse::<Address>() {
                Ok(address) => (Ok(address.clone()), address.port()),
                Err(_) => (format!("{text}:1").parse(), None),
            },
        };
        let address = address.map_err(refuse)?;
        if address.is_unspecified() || address.port().is_none() {
            return Err(refuse(Error::config(format!("nobody reaches {address}"))));
        }
        let name = address.host();
        Ok(Self { name, port })
    }

    /// What the environment says, if anything.
    pub(super) fn from_env() -> Result<Option<Self>> {
        match env::var(VARIABLE) {
            Ok(text) if text.is_empty() => Ok(None),
            Ok(text) => Self::read(&text, VARIABLE).map(Some),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(error) => Err(Error::config(VARIABLE).because(error)),
        }
    }

    /// The address of a listener that clients reach here.
    fn with(&self, listener: &Address) -> Result<Address> {
        let Some(port) = self.port.or_else(|| listener.port()) else {
            return Ok(listener.clone());
        };
        match self.name.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, port).try_into(),
            Err(_) => format!("{}:{port}", self.name).parse(),
        }
    }
}

/// The instance at addresses that clients reach.
///
/// `chosen` replaces every host. Else those that are bound to no host in particular get, in this order: what
/// the environment says, the interface that leads to the registry, the one that leads to everybody.
pub(super) async fn routable(
    mut instance: Instance,
    chosen: Option<&Host>,
    toward: Option<&str>,
) -> Result<Instance> {
    for address in &mut instance.addresses {
        *address = match (chosen, &*address) {
            (Some(host), listener) => host.with(listener)?,
            (None, Address::Ip(listener)) if listener.ip().is_unspecified() => {
                place(*listener, Host::from_env()?, toward).await?
            }
            (None, known) => known.clone(),
        };
    }
    Ok(instance)
}

async fn place(listener: SocketAddr, named: Option<Host>, toward: Option<&str>) -> Result<Address> {
    if let Some(host) = named {
        return host.with(&Address::try_from(listener)?);
    }
    for target in toward.into_iter().chain(ANYBODY) {
        let Some(ip) = source(target, listener.ip()).await else {
            continue;
        };
        if ip.is_loopback() {
            tracing::info!(%ip, "registering a loopback address, which only this machine reaches");
        }
        return SocketAddr::new(ip, listener.port()).try_into();
    }
    Err(Error::config(format!(
        "no interface of this machine leads from {listener} to anybody: \
         name the host that clients reach, with `Registrar::advertise` or {VARIABLE}"
    )))
}

/// Our own address on the way to a target. Nothing is sent: the kernel only looks up the way.
async fn source(target: &str, listener: IpAddr) -> Option<IpAddr> {
    let found = timeout(PATIENCE, lookup_host(target)).await.ok()?.ok()?;
    for target in found {
        // A listener on `[::]` takes IPv4 too; one on `0.0.0.0` takes nothing else.
        if listener.is_ipv4() && !target.is_ipv4() {
            continue;
        }
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let Ok(socket) = UdpSocket::bind((any, 0)).await else {
            continue;
        };
        let ip = match socket.connect(target).await {
            Ok(()) => socket.local_addr().ok().map(|own| own.ip()),
            Err(_) => None,
        };
        if ip.is_some_and(|ip| !ip.is_unspecified()) {
            return ip;
        }
    }
    None
}

/// Refuses what nobody listens at: registered, it would only cost calls.
pub(super) async fn listening(instance: &Instance) -> Result<()> {
    for address in &instance.addresses {
        let connected = timeout(PATIENCE, connect(address)).await;
        let cause = match connected {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(_) => std::io::ErrorKind::TimedOut.into(),
        };
        let doing = format!(
            "register {}: nobody listens at {address}; bind first, then register",
            instance.id
        );
        return Err(Error::config(doing).because(cause));
    }
    Ok(())
}

/// The instance at addresses that this machine itself reaches.
pub(super) fn within(mut instance: Instance) -> Instance {
    for address in &mut instance.addresses {
        if let Address::Ip(listener) = address
            && listener.ip().is_unspecified()
        {
            listener.set_ip(own(listener.ip()));
        }
    }
    instance
}

/// Ourselves, in the family of this address.
fn own(any: IpAddr) -> IpAddr {
    match any {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Connects from within this machine, and hangs up.
pub(crate) async fn connect(address: &Address) -> std::io::Result<()> {
    match address {
        Address::Ip(addr) if addr.ip().is_unspecified() => {
            drop(TcpStream::connect((own(addr.ip()), addr.port())).await?);
        }
        Address::Ip(addr) => drop(TcpStream::connect(addr).await?),
        Address::Name(name, port) => drop(TcpStream::connect((&**name, *port)).await?),
        #[cfg(unix)]
        Address::Unix(path) => drop(tokio::net::UnixStream::connect(path).await?),
        #[cfg(not(unix))]
        Address::Unix(_) => return Err(std::io::ErrorKind::Unsupported.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn host(text: &str) -> Host {
        Host::read(text, "advertise").unwrap()
    }

    fn at(text: &str) -> Instance {
        Instance::at(text).unwrap()
    }

    #[test]
    fn a_host_is_read_with_or_without_a_port() {
        for (text, name, port) in [
            ("10.0.0.5", "10.0.0.5", None),
            ("10.0.0.5:80", "10.0.0.5", Some(80)),
            ("::1", "::1", None),
            ("[::1]", "::1", None),
            ("[::1]:80", "::1", Some(80)),
            ("greeter.svc", "greeter.svc", None),
            ("greeter.svc:80", "greeter.svc", Some(80)),
        ] {
            let name = name.to_owned();
            assert_eq!(host(text), Host { name, port }, "{text}");
        }
    }

    #[test]
    fn a_host_that_nobody_reaches_is_refused_with_the_place_it_came_from() {
        for text in [
            "", "0.0.0.0", "[::]:80", "a b", "h:0", "h:99999", "unix:/a", "http://h",
        ] {
            let error = Host::read(text, VARIABLE).unwrap_err();
            assert!(
                error.to_string().starts_with("FLEET_ADVERTISE "),
                "{text}: {error}"
            );
        }
    }

    #[tokio::test]
    async fn the_chosen_host_replaces_every_host_and_keeps_ports() {
        let instance = at("0.0.0.0:50051").also_at("unix:/run/a.sock").unwrap();

        let instance = routable(instance, Some(&host("::1")), None).await.unwrap();

        let addresses = instance.addresses.iter().map(ToString::to_string);
        assert_eq!(
            addresses.collect::<Vec<_>>(),
            ["[::1]:50051", "unix:/run/a.sock"]
        );
    }

    #[tokio::test]
    async fn an_address_of_its_own_is_left_alone() {
        let instance = routable(at("10.0.0.5:80"), None, None).await.unwrap();

        assert_eq!(instance.addresses[0].to_string(), "10.0.0.5:80");
    }

    #[tokio::test]
    async fn what_the_environment_names_comes_before_interfaces() {
        let listener = "0.0.0.0:50051".parse().unwrap();

        let named = place(listener, Some(host("h:7")), Some("127.0.0.1:1"))
            .await
            .unwrap();

        assert_eq!(named.to_string(), "h:7");
    }

    #[tokio::test]
    async fn the_interface_that_leads_to_the_registry_is_taken() {
        for listener in ["0.0.0.0:50051", "[::]:50051"] {
            let listener = listener.parse().unwrap();

            let placed = place(listener, None, Some("127.0.0.1:2379")).await.unwrap();

            assert_eq!(placed.to_string(), "127.0.0.1:50051");
        }
    }

    #[tokio::test]
    async fn only_what_listens_is_let_through() {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let instance = Instance::at(listener.local_addr().unwrap()).unwrap();
        assert!(listening(&instance).await.is_ok());

        drop(listener);
        let error = listening(&instance).await.unwrap_err();

        assert!(
            error.to_string().contains("nobody listens at 0.0.0.0:"),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_unix_socket_that_listens_is_let_through() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("echo.sock");
        let instance = at(&format!("unix:{}", path.display()));
        assert!(listening(&instance).await.is_err());

        let _listener = tokio::net::UnixListener::bind(&path).unwrap();

        assert!(listening(&instance).await.is_ok());
    }
}
