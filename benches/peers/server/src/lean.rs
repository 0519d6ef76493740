//! An echo server on bare `h2`, so that it is the client that is measured: what comes in goes out, undecoded.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::CONTENT_TYPE};
use load::Failure;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub async fn serve(listener: TcpListener, delay: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((socket, _)) = listener.accept() => {
                connections.spawn(connection(socket, delay));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(socket: TcpStream, delay: Duration) {
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let opened = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_concurrent_streams(1024)
        .handshake(socket)
        .await;
    let Ok(mut connection) = opened else { return };
    let mut streams = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        streams.spawn(async move {
            // A caller that goes away is no concern of ours.
            let _ = answer(request, respond, delay).await;
        });
        while streams.try_join_next().is_some() {}
    }
}

const WINDOW: u32 = 2 << 20;

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    delay: Duration,
) -> Result<(), Failure> {
    let (head, mut body) = request.into_parts();
    let mut response = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    let mut send;
    if head.uri.path().ends_with("/UnaryEcho") {
        let asked = whole(&mut body).await?;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        send = respond.send_response(response, false)?;
        send.send_data(asked, false)?;
    } else {
        send = respond.send_response(response, false)?;
        each(&mut body, &mut send).await?;
    }
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    );
    send.send_trailers(trailers)?;
    Ok(())
}

async fn whole(body: &mut RecvStream) -> Result<Bytes, Failure> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        if first.is_empty() {
            first = data;
        } else if !data.is_empty() {
            if all.is_empty() {
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

async fn each(body: &mut RecvStream, send: &mut SendStream<Bytes>) -> Result<(), Failure> {
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        // The end of a client's stream may come as an empty frame; h2 takes a hundred of those for an attack.
        if !data.is_empty() {
            send.send_data(data, false)?;
        }
    }
    Ok(())
}
