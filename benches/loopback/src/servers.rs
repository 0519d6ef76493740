//! The servers: a process of their own, which does what it is told on its standard input.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::stream::Empty;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    sync::{Semaphore, watch},
    time::{Instant, sleep},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::{AsciiMetadataValue, MetadataMap},
    transport::Server,
};

use crate::{
    echo::{BACKEND, EchoRequest, EchoResponse, EchoServer, Service},
    runtime,
};

/// The word that makes this program the servers.
pub const SERVE: &str = "--serve";

/// The header that says how many microseconds a call's work took too long.
pub const OVER: &str = "over";

/// One server: some permits, and a speed.
struct Worker {
    id: AsciiMetadataValue,
    permits: Semaphore,
    speed: watch::Sender<f64>,
    fails: AtomicBool,
}

#[derive(Clone)]
struct Shared(Arc<Worker>);

/// So many servers with so many permits; their addresses go to standard output, a line each. They end when standard
/// input does.
pub fn serve(words: &[String]) -> Result<(), Box<dyn Error>> {
    let [servers, permits] = words else {
        return Err("it wants two numbers".into());
    };
    let (servers, permits): (usize, usize) = (servers.parse()?, permits.parse()?);
    runtime()?.block_on(async {
        let mut workers = Vec::new();
        for n in 0..servers {
            let worker = Worker {
                id: n.into(),
                permits: Semaphore::new(permits),
                speed: watch::Sender::new(1.0),
                fails: AtomicBool::new(false),
            };
            workers.push(Arc::new(worker));
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("{}", listener.local_addr()?);
            let incoming = TcpListenerStream::new(listener);
            let service = EchoServer::new(Shared(Arc::clone(&workers[n])));
            let server = Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(incoming));
        }
        let mut told = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = told.next_line().await? {
            obey(&line, &workers).ok_or_else(|| format!("{line:?} is no order"))?;
        }
        Ok(())
    })
}

/// `speed 3 0.5` or `fails 3 true`.
fn obey(line: &str, workers: &[Arc<Worker>]) -> Option<()> {
    let mut words = line.split_whitespace();
    let (what, whom, how) = (words.next()?, words.next()?, words.next()?);
    let worker = workers.get(whom.parse::<usize>().ok()?)?;
    match what {
        "speed" => drop(worker.speed.send_replace(how.parse().ok()?)),
        "fails" => worker.fails.store(how.parse().ok()?, Relaxed),
        _ => return None,
    }
    Some(())
}

impl Worker {
    /// Sleeps as long as so much work takes, at a speed that may change meanwhile; how much longer it was.
    async fn work(&self, mut seconds: f64) -> Duration {
        let mut speed = self.speed.subscribe();
        loop {
            let now = *speed.borrow_and_update();
            let began = Instant::now();
            let ends = async {
                if now > 0.0 {
                    let time = Duration::from_secs_f64(seconds.max(0.0) / now);
                    sleep(time).await;
                    time
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                time = ends => return (Instant::now() - began).saturating_sub(time),
                // The sender lives as long as the worker does.
                _ = speed.changed() => {
                    let passed = Instant::now() - began;
                    seconds -= passed.as_secs_f64() * now;
                }
            }
        }
    }

    /// Who answered, whatever the answer is.
    fn signature(&self) -> MetadataMap {
        let mut map = MetadataMap::new();
        map.insert(BACKEND, self.id.clone());
        map
    }
}

type Nothing = Empty<Result<EchoResponse, Status>>;

#[tonic::async_trait]
impl Service for Shared {
    /// The message is the work in microseconds.
    async fn unary_echo(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<EchoResponse>, Status> {
        let worker = &self.0;
        if worker.fails.load(Relaxed) {
            let mut status = Status::unavailable("out of order");
            *status.metadata_mut() = worker.signature();
            return Err(status);
        }
        let message = request.into_inner().message;
        let micros: f64 = message
            .parse()
            .map_err(|_| Status::invalid_argument(format!("{message:?} is no work")))?;
        let permit = worker.permits.acquire().await;
        let _permit = permit.map_err(|_| Status::internal("nobody closes it"))?;
        let over = worker.work(micros / 1e6).await;
        let mut answer = Response::new(EchoResponse { message });
        *answer.metadata_mut() = worker.signature();
        let over = (over.as_micros() as u64).into();
        answer.metadata_mut().insert(OVER, over);
        Ok(answer)
    }

    type ServerStreamingEchoStream = Nothing;

    async fn server_streaming_echo(
        &self,
        _: Request<EchoRequest>,
    ) -> Result<Response<Nothing>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }

    async fn client_streaming_echo(
        &self,
        _: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoResponse>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }

    type BidirectionalStreamingEchoStream = Nothing;

    async fn bidirectional_streaming_echo(
        &self,
        _: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Nothing>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_takes_its_time_at_the_speed_there_is() {
        let worker = Arc::new(Worker {
            id: 0_usize.into(),
            permits: Semaphore::new(1),
            speed: watch::Sender::new(1.0),
            fails: AtomicBool::new(false),
        });
        let began = Instant::now();
        let working = tokio::spawn({
            let worker = Arc::clone(&worker);
            async move { worker.work(1.0).await }
        });

        sleep(Duration::from_millis(500)).await;
        assert!(obey("speed 0 0", std::slice::from_ref(&worker)).is_some());
        sleep(Duration::from_secs(1)).await;
        assert!(obey("speed 0 0.25", std::slice::from_ref(&worker)).is_some());
        working.await.unwrap();

        let took = (Instant::now() - began).as_secs_f64();
        assert!((took - 3.5).abs() < 0.01, "{took}");
        assert!(obey("speed 1 1", std::slice::from_ref(&worker)).is_none());
        assert!(obey("stop 0 1", std::slice::from_ref(&worker)).is_none());
    }
}
