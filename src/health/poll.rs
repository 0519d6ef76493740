//! Asking again and again.

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    Tell, Verdict,
    rule::{Rule, Tally},
};
use crate::{Error, ErrorKind, Result};

/// Asks at once, and then every so often, for as long as it is polled. At the gate it waits its turn; none is
/// no answer, neither good nor bad.
pub(super) async fn poll<F>(rule: &Rule, gate: &Semaphore, tell: &Tell<'_>, ask: impl Fn() -> F)
where
    F: Future<Output = Option<Result<()>>>,
{
    let mut tally = Tally::default();
    let mut wait = rule.first_wait();
    loop {
        let answer = {
            // Nobody closes it; and who holds a place has a time limit.
            let _turn = gate.acquire().await;
            let answer = timeout(rule.timeout, ask()).await;
            answer.unwrap_or_else(|_| Some(Err(late(rule))))
        };
        if let Some(answer) = answer
            && tally.hear(&answer, rule)
        {
            tell(answer.map_or_else(Verdict::Unhealthy, |()| Verdict::Healthy));
        }
        sleep(wait).await;
        wait = rule.wait();
    }
}

fn late(rule: &Rule) -> Error {
    let what = format!("no answer to a health check within {:?}", rule.timeout);
    Error::new(ErrorKind::Timeout, what)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        time::Duration,
    };

    use futures_util::future::join_all;
    use tokio::time::Instant;

    use super::*;

    fn unwell() -> Error {
        Error::new(ErrorKind::Unavailable, "unwell")
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_in_time_is_unwell() {
        let (rule, gate) = (Rule::default(), Semaphore::new(1));
        let heard = Mutex::new(Vec::new());
        let began = Instant::now();
        let tell = |verdict: Verdict| heard.lock().unwrap().push((verdict, Instant::now()));

        let asking = poll(&rule, &gate, &tell, std::future::pending);
        let _ = timeout(Duration::from_secs(60), asking).await;

        let heard = heard.lock().unwrap();
        let [(Verdict::Unhealthy(why), at)] = &heard[..] else {
            panic!("{heard:?}")
        };
        assert_eq!(why.to_string(), "no answer to a health check within 2s");
        assert_eq!(*at - began, rule.timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_falls_by_the_third_bad_answer_and_rises_by_the_second_good_one_and_none_is_neither()
     {
        let (rule, gate) = (Rule::default(), Semaphore::new(1));
        let asked = AtomicUsize::new(0);
        let heard = Mutex::new(Vec::new());
        let tell = |verdict: Verdict| {
            let nth = asked.load(SeqCst);
            heard.lock().unwrap().push((nth, verdict.code()));
        };
        let ask = || {
            let nth = asked.fetch_add(1, SeqCst) + 1;
            let answer = match nth {
                6 => None,
                5..=10 => Some(Err(unwell())),
                _ => Some(Ok(())),
            };
            async { answer }
        };

        let _ = timeout(Duration::from_secs(100), poll(&rule, &gate, &tell, ask)).await;

        let heard = heard.lock().unwrap();
        assert_eq!(
            heard[..],
            [(1, "healthy"), (8, "unhealthy"), (12, "healthy")]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_asked_at_once_than_there_is_room_for() {
        let (rule, gate) = (Rule::default(), Semaphore::new(3));
        let (now, most, asked) = <(AtomicUsize, AtomicUsize, AtomicUsize)>::default();
        let ask = || async {
            let n = now.fetch_add(1, SeqCst) + 1;
            most.fetch_max(n, SeqCst);
            asked.fetch_add(1, SeqCst);
            sleep(Duration::from_millis(50)).await;
            now.fetch_sub(1, SeqCst);
            Some(Ok(()))
        };
        let tell = |_| {};

        let all = (0..100).map(|_| poll(&rule, &gate, &tell, ask));
        let _ = timeout(Duration::from_secs(60), join_all(all)).await;

        assert_eq!(most.load(SeqCst), 3);
        let asked = asked.load(SeqCst);
        assert!((1000..1300).contains(&asked), "{asked} in a minute");
    }
}
