//! Why the other side hung up, when it said so.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A byte stream whose writes, when they fail before anything was heard, fail with what the other side
/// said last.
///
/// Since TLS 1.3 a server judges our certificate when we write already. Its alert is on the way, or has
/// come, while our write finds the connection closed, and only who reads would learn of it.
#[derive(Debug)]
pub(super) struct LastWords<S> {
    io: S,
    /// From then on, whoever reads hears for himself.
    heard: bool,
}

impl<S: AsyncRead + Unpin> LastWords<S> {
    pub(super) fn of(io: S) -> Self {
        Self { io, heard: false }
    }

    fn instead_of(&mut self, error: io::Error, cx: &mut Context<'_>) -> io::Error {
        let hung_up = matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
        );
        if self.heard || !hung_up {
            return error;
        }
        self.heard = true;
        let mut nothing = [0];
        match Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut nothing)) {
            Poll::Ready(Err(said)) if said.kind() == io::ErrorKind::InvalidData => said,
            _ => error,
        }
    }

    fn told<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        written.map_err(|error| self.instead_of(error, cx))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LastWords<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.heard |= read.is_ready();
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LastWords<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.told(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.told(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.told(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Closed by the other side, which has said something before.
    struct Closed(Option<io::Error>);

    impl AsyncRead for Closed {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(self.0.take().map_or(Ok(()), Err))
        }
    }

    impl AsyncWrite for Closed {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn alert() -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, "received fatal alert")
    }

    #[tokio::test]
    async fn a_write_that_fails_says_what_the_other_side_said_last() {
        let mut io = LastWords::of(Closed(Some(alert())));
        assert_eq!(
            io.write(b"x").await.unwrap_err().to_string(),
            alert().to_string()
        );

        let mut io = LastWords::of(Closed(Some(alert())));
        assert_eq!(
            io.flush().await.unwrap_err().to_string(),
            alert().to_string()
        );
    }

    #[tokio::test]
    async fn who_said_nothing_or_was_heard_before_has_merely_hung_up() {
        let mut silent = LastWords::of(Closed(None));
        let mut heard = LastWords::of(Closed(None));
        heard.read_u8().await.unwrap_err();
        heard.io.0 = Some(alert());

        for io in [&mut silent, &mut heard] {
            let error = io.write(b"x").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
