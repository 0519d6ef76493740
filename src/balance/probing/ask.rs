//! Asks over the connections of the calls.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::timeout;

use super::{Question, pool::Pool};
use crate::orca;

/// So many are asked at a time.
const AT_ONCE: usize = 16;
/// What has not come by then would be old news.
const PATIENCE: Duration = Duration::from_millis(250);

/// Asks whoever is to be asked, for as long as it is polled.
pub(super) async fn all(pool: Arc<Pool>) {
    let mut asking = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = pool.called() => {}
            Some(()) = asking.next() => {}
        }
        while asking.len() < AT_ONCE
            && let Some(question) = Question::of(&pool)
        {
            asking.push(one(question));
        }
    }
}

async fn one(question: Question) {
    let Some(connection) = question.endpoint().connection() else {
        return;
    };
    if let Ok(Some(load)) = timeout(PATIENCE, orca::probe(&connection)).await {
        question.answered(&load);
    }
}
