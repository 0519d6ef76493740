//! One server of the demo: a process of its own, or a runtime of its own where the registry is in this one.

use std::{
    convert::Infallible,
    env,
    future::pending,
    io,
    process::{ExitCode, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process, runtime,
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server as Tonic, server::TcpIncoming};
use tonic_fleet::{Instance, Registrar, RegistryUrl, Scheme, register::State};

use crate::{
    echo::{Echo, EchoServer},
    flags::{self, Stop},
};

/// The service of the demo.
pub(crate) const SERVICE: &str = "demo";

/// How long each answer takes, so that there is always something in flight.
const DELAY: Duration = Duration::from_millis(2);

/// How long clients have to hear that a server leaves.
const NOTICE: Duration = Duration::from_millis(500);

/// How long the one that drains can be seen to.
const DRAINING: Duration = Duration::from_millis(1500);

/// How long a server that leaves may take.
const PARTING: Duration = Duration::from_secs(5);

/// A server, and the ways to end it.
pub(crate) enum Server {
    /// A process. It leaves when its standard input ends, so it cannot outlive us.
    Child(process::Child),
    /// A runtime on a thread; all its tasks and connections end with it.
    Thread {
        orders: Orders,
        die: CancellationToken,
        ended: oneshot::Receiver<()>,
    },
}

/// What a server is told to do.
#[derive(Clone, Default)]
pub(crate) struct Orders {
    /// Mark itself as draining, and stay.
    drain: CancellationToken,
    leave: CancellationToken,
}

impl Server {
    /// Starts one, and returns when it is registered or has failed to be, or when nobody waits for that
    /// any more.
    pub(crate) async fn start(
        registry: &RegistryUrl,
        url: &str,
        id: &str,
        unwaited: &CancellationToken,
    ) -> Result<Self, Stop> {
        match registry.scheme() {
            Scheme::Memory => Self::thread(registry.clone(), id.to_owned()).await,
            _ => Self::child(url, id, unwaited).await,
        }
    }

    async fn thread(registry: RegistryUrl, id: String) -> Result<Self, Stop> {
        let (orders, die) = (Orders::default(), CancellationToken::new());
        let (told_to, dead) = (orders.clone(), die.clone());
        let (tell, told) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let name = id.clone();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(cannot("start a runtime"))?;
        std::thread::Builder::new()
            .name(id.clone())
            .spawn(move || {
                let served = serve(&registry, &id, told_to, |result| {
                    // Whoever asked may have gone.
                    let _ = tell.send(result);
                });
                runtime.block_on(dead.run_until_cancelled(served));
                // Everything that runs on it is cut off, as in a process that is killed.
                runtime.shutdown_background();
                let _ = end.send(());
            })
            .map_err(cannot("start a thread"))?;
        let result = told.await;
        result.unwrap_or_else(|_| Err(Stop::Failed(format!("{name} ended before it began"))))?;
        Ok(Self::Thread { orders, die, ended })
    }

    async fn child(url: &str, id: &str, unwaited: &CancellationToken) -> Result<Self, Stop> {
        let mut child = process::Command::new(env::current_exe().map_err(cannot("find myself"))?)
            .args(["--registry", url, "--server", id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot("start a server"))?;
        // It says one byte when it is registered, or ends with a reason on standard error.
        let mut stdout = child.stdout.take();
        let mut byte = [0];
        let said = async {
            match &mut stdout {
                Some(stdout) => stdout.read_exact(&mut byte).await,
                None => Ok(0),
            }
        };
        if let Some(Err(_)) = unwaited.run_until_cancelled(said).await {
            let what = format!("server {id} did not start (see above)");
            return Err(Stop::Failed(what));
        }
        Ok(Self::Child(child))
    }

    /// Ends it as `kill -9` does: at once, and with no word to anybody.
    pub(crate) async fn kill(self) {
        match self {
            // It may be dead already.
            Self::Child(mut child) => drop(child.kill().await),
            Self::Thread { die, ended, .. } => {
                die.cancel();
                let _ = ended.await;
            }
        }
    }

    /// Lets it turn new calls away, for a while, and then leave.
    pub(crate) async fn drain(mut self) {
        match &mut self {
            // It may have died, which leaving finds out.
            Self::Child(child) => {
                if let Some(stdin) = &mut child.stdin {
                    let _ = stdin.write_all(b"d").await;
                }
            }
            Self::Thread { orders, .. } => orders.drain.cancel(),
        }
        sleep(DRAINING).await;
        self.leave().await;
    }

    /// Lets it leave in order, and returns when it has.
    pub(crate) async fn leave(self) {
        match self {
            Self::Child(mut child) => {
                drop(child.stdin.take());
                if timeout(PARTING, child.wait()).await.is_err() {
                    let _ = child.kill().await;
                }
            }
            Self::Thread { orders, die, ended } => {
                orders.leave.cancel();
                if timeout(PARTING, ended).await.is_err() {
                    die.cancel();
                }
            }
        }
    }
}

/// Is a server, until standard input ends.
pub(crate) async fn child(registry: &RegistryUrl, id: &str) -> Result<ExitCode, Stop> {
    let orders = Orders::default();
    let mut failed = None;
    let served = serve(registry, id, orders.clone(), |result| match result {
        Ok(()) => flags::print(&""),
        Err(stop) => failed = Some(stop),
    });
    tokio::select! {
        () = served => {}
        never = listen(&orders) => match never {},
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Takes orders from standard input: a byte to drain, its end to leave.
async fn listen(orders: &Orders) -> Infallible {
    // Ctrl-C reaches every process of the terminal: it is for the demo to say when we leave.
    let deaf = async {
        while tokio::signal::ctrl_c().await.is_ok() {}
        pending().await
    };
    let heard = async {
        let (mut stdin, mut word) = (tokio::io::stdin(), [0]);
        while let Ok(1) = stdin.read(&mut word).await {
            orders.drain.cancel();
        }
        orders.leave.cancel();
        pending().await
    };
    tokio::select! {
        never = deaf => never,
        never = heard => never,
    }
}

/// Answers until told to leave, then leaves in order.
async fn serve(
    registry: &RegistryUrl,
    id: &str,
    orders: Orders,
    tell: impl FnOnce(Result<(), Stop>),
) {
    let stop = CancellationToken::new();
    let begun = async {
        let registrar = Registrar::new(registry.clone()).map_err(Stop::refused("--registry"))?;
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(cannot("listen at 127.0.0.1"))?;
        let addr = listener
            .local_addr()
            .map_err(cannot("tell where it listens"))?;
        let instance = Instance::at(addr)
            .and_then(|instance| instance.id(id))
            .map_err(Stop::refused("--server"))?;
        let echo = Echo::new(id).delay(DELAY);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = Tonic::builder()
            .add_service(EchoServer::new(echo))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let serving = tokio::spawn(serving);
        let registration = registrar
            .register(SERVICE, instance)
            .await
            .map_err(|error| Stop::Failed(format!("cannot register {id}: {}", error.chain())))?;
        Ok((serving, registration))
    };
    let (serving, registration) = match begun.await {
        Ok(begun) => begun,
        Err(error) => return tell(Err(error)),
    };
    // Where the registry is out of reach, that may take for ever.
    let registered = registration.until(State::Registered);
    // One that has ended is told by its closing.
    if let Some(_told) = orders.leave.run_until_cancelled(registered).await {
        tell(Ok(()));
    }

    tokio::select! {
        () = orders.drain.cancelled() => drop(registration.drain().await),
        () = orders.leave.cancelled() => {}
    }
    orders.leave.cancelled().await;
    // Where it cannot be withdrawn its lease runs out, and there is nobody to tell.
    let _ = registration.close().await;
    sleep(NOTICE).await;
    stop.cancel();
    let _ = timeout(PARTING, serving).await;
}

fn cannot(what: &str) -> impl FnOnce(io::Error) -> Stop + '_ {
    move |error| Stop::Failed(format!("cannot {what}: {error}"))
}
