//! A byte stream that is listened to.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Io;

/// A byte stream, and who listens to it.
pub(super) struct Overheard<E> {
    io: Box<dyn Io>,
    ear: E,
}

/// Listens to a byte stream, and changes nothing.
pub(super) trait Ear {
    /// It has brought these.
    fn read(&mut self, bytes: &[u8]);

    /// A write has taken something along.
    fn wrote(&mut self) {}
}

impl<E> Overheard<E> {
    pub(super) fn by(ear: E, io: Box<dyn Io>) -> Self {
        Self { io, ear }
    }
}

impl<E: Ear> Overheard<E> {
    fn note(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(_))) {
            self.ear.wrote();
        }
        written
    }
}

impl<E: Ear + Unpin> AsyncRead for Overheard<E> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.ear.read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<E: Ear + Unpin> AsyncWrite for Overheard<E> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
