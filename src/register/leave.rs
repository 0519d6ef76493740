//! How a server leaves without losing a call.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{Registration, registration::Ends};
use crate::Result;

impl Registration {
    /// Sets how long clients have to notice that it left, before the server stops taking calls. Half a
    /// second, unless set.
    ///
    /// A watch tells them within milliseconds; the rest is for those that are slow, or far away. Less of it
    /// is made up for by clients that pick again what a closing server refused, as ours do.
    pub fn notice(mut self, notice: Duration) -> Self {
        self.notice = notice;
        self
    }

    /// Leaves when the process is asked to end: for `serve_with_incoming_shutdown`.
    ///
    /// On SIGINT or SIGTERM it is marked as draining and withdrawn, which takes two seconds at most; then
    /// clients have half a second to [notice](Self::notice), and the future is ready.
    pub fn until_signal(&self) -> impl Future<Output = ()> + Send + use<> {
        self.leave_on(signal())
    }

    /// Leaves when something else is ready, as [`until_signal`](Self::until_signal) does.
    pub fn leave_on<F>(&self, stop: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future + Send,
    {
        let (ends, notice) = (Arc::clone(&self.ends), self.notice);
        async move {
            stop.await;
            // Said in a log line by the keeper; a server that cannot withdraw stops all the same.
            drop(ends.depart(notice).await);
        }
    }
}

impl Ends {
    /// Withdraws, and lets clients notice if there was something to notice.
    pub(super) async fn depart(&self, notice: Duration) -> Result<()> {
        self.close().await?;
        sleep(notice).await;
        Ok(())
    }
}

/// Returns when the process is asked to end: by SIGINT or SIGTERM, where there are such.
pub(super) async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};

        let asked = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        );
        match asked {
            (Ok(mut interrupt), Ok(mut terminate)) => tokio::select! {
                _ = interrupt.recv() => tracing::info!("SIGINT: leaving"),
                _ = terminate.recv() => tracing::info!("SIGTERM: leaving"),
            },
            (Err(error), _) | (_, Err(error)) => never(error).await,
        }
    }
    #[cfg(not(unix))]
    if let Err(error) = tokio::signal::ctrl_c().await {
        never(error).await
    }
}

async fn never(error: std::io::Error) {
    tracing::warn!(%error, "signals cannot be heard, so none ends this server in order");
    std::future::pending().await
}
