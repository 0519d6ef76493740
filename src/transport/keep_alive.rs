//! When to ask a silent peer whether it is still there.

use std::time::Duration;

use tokio::time::Instant;

/// HTTP/2 PINGs after a silence, and how long their answer may take.
///
/// Many servers punish clients that ask often: grpc-go, unless told otherwise, closes connections on
/// which pings come more often than every five minutes while nothing else happens. A connection that
/// was closed so is asked half as often next time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct KeepAlive {
    /// The silence after which to ask. Shorter notices a frozen peer sooner, at more packets.
    pub(crate) every: Duration,
    /// How long to wait for any sign of life after asking.
    pub(crate) timeout: Duration,
    /// Whether to ask also while there is no call.
    pub(crate) while_idle: bool,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(20),
            timeout: Duration::from_secs(5),
            while_idle: false,
        }
    }
}

/// The state of one connection's keep-alive; fed with times, it does no waiting of its own.
#[derive(Debug)]
pub(super) struct Pulse {
    rule: KeepAlive,
    asked: Option<Instant>,
}

/// What a look at the pulse calls for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Act {
    /// Look again at this time, and not before.
    Wait(Instant),
    /// Nothing to do until a call begins.
    Rest,
    /// Send a PING, and look again.
    Ask,
    /// The peer did not answer in time.
    Dead,
}

impl Pulse {
    pub(super) fn new(rule: KeepAlive) -> Self {
        Self { rule, asked: None }
    }

    /// What to do at `now`, when the peer was last heard at `heard`.
    pub(super) fn look(&mut self, now: Instant, heard: Instant, busy: bool) -> Act {
        if let Some(asked) = self.asked {
            // Any sign of life will do: a pong may queue behind a large message.
            if heard < asked {
                let patience = asked + self.rule.timeout;
                return if now < patience {
                    Act::Wait(patience)
                } else {
                    Act::Dead
                };
            }
            self.asked = None;
        }
        if !busy && !self.rule.while_idle {
            return Act::Rest;
        }
        let due = heard + self.rule.every;
        if now < due {
            return Act::Wait(due);
        }
        self.asked = Some(now);
        Act::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: KeepAlive = KeepAlive {
        every: Duration::from_secs(20),
        timeout: Duration::from_secs(5),
        while_idle: false,
    };

    fn at(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    #[test]
    fn a_silent_peer_is_asked_and_then_given_up() {
        let start = Instant::now();
        let mut pulse = Pulse::new(RULE);

        assert_eq!(pulse.look(start, start, true), Act::Wait(at(start, 20)));
        assert_eq!(pulse.look(at(start, 20), start, true), Act::Ask);
        assert_eq!(
            pulse.look(at(start, 20), start, true),
            Act::Wait(at(start, 25))
        );
        assert_eq!(pulse.look(at(start, 25), start, true), Act::Dead);
    }

    #[test]
    fn any_sign_of_life_is_an_answer() {
        let start = Instant::now();
        let mut pulse = Pulse::new(RULE);
        pulse.look(at(start, 20), start, true);

        let act = pulse.look(at(start, 25), at(start, 23), true);

        assert_eq!(act, Act::Wait(at(start, 43)));
    }

    #[test]
    fn a_peer_that_is_heard_is_not_asked() {
        let start = Instant::now();
        let mut pulse = Pulse::new(RULE);

        let act = pulse.look(at(start, 20), at(start, 19), true);

        assert_eq!(act, Act::Wait(at(start, 39)));
    }

    #[test]
    fn an_idle_connection_rests_and_is_asked_with_the_first_call_after_a_long_silence() {
        let start = Instant::now();
        let mut pulse = Pulse::new(RULE);

        assert_eq!(pulse.look(at(start, 90), start, false), Act::Rest);
        assert_eq!(pulse.look(at(start, 90), start, true), Act::Ask);
    }

    #[test]
    fn an_idle_connection_is_asked_when_that_is_wanted() {
        let start = Instant::now();
        let mut pulse = Pulse::new(KeepAlive {
            while_idle: true,
            ..RULE
        });

        assert_eq!(pulse.look(at(start, 20), start, false), Act::Ask);
    }
}
