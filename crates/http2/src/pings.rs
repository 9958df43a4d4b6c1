//! Pings: those of clients that ask too often, and ours to clients that are silent.
//!
//! The first rule is grpc-go's: a ping is a strike when it follows the one before too soon, or, while no call is open,
//! within two hours; whatever the server sends of a call forgives all strikes; the third one ends the connection.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Pings that come too soon, in a row, which are put up with.
const STRIKES_MAX: u32 = 2;
/// Between pings of a connection without calls.
const IDLE_PINGS_APART: Duration = Duration::from_secs(2 * 3600);

/// What is known of a client's pings.
#[derive(Debug)]
pub(crate) struct Strikes {
    /// Zero: they may come as they like.
    pings_apart: Duration,
    last: Option<Instant>,
    count: u32,
    /// Whether anything of a call was sent since the last ping.
    is_forgiven: bool,
}

impl Strikes {
    pub(crate) fn new(pings_apart: Duration) -> Self {
        Self { pings_apart, last: None, count: 0, is_forgiven: false }
    }

    /// Something of a call was sent.
    pub(crate) fn forgive(&mut self) {
        self.is_forgiven = true;
    }

    /// Whether the client has asked too often.
    pub(crate) fn add(&mut self, has_calls: bool, now: Instant) -> bool {
        let last = self.last.replace(now);
        if self.pings_apart.is_zero() {
            return false;
        }
        if std::mem::take(&mut self.is_forgiven) {
            self.count = 0;
            return false;
        }
        let apart = if has_calls { self.pings_apart } else { IDLE_PINGS_APART };
        if last.is_some_and(|last| now.saturating_duration_since(last) < apart) {
            self.count += 1;
        }
        self.count > STRIKES_MAX
    }
}

/// What [`Keepalive::poll`] asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Ping,
    /// The client has not answered in time.
    End,
}

/// Asks a silent client whether it lives.
pub(crate) struct Keepalive {
    interval: Duration,
    timeout: Duration,
    heard: Instant,
    is_asked: bool,
    timer: Pin<Box<Sleep>>,
}

impl Keepalive {
    /// `None` for an interval of zero: clients are not asked.
    pub(crate) fn new(interval: Duration, timeout: Duration) -> Option<Self> {
        let timer = || Box::pin(sleep(interval));
        (!interval.is_zero()).then(|| Self {
            interval,
            timeout,
            heard: Instant::now(),
            is_asked: false,
            timer: timer(),
        })
    }

    /// Something was read.
    pub(crate) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Due> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let silent_since = self.heard;
            let asked_at = self.timer.deadline() - self.timeout;
            if self.is_asked && silent_since < asked_at {
                return Poll::Ready(Due::End);
            }
            self.is_asked = silent_since.elapsed() >= self.interval;
            let next = if self.is_asked { Instant::now() + self.timeout } else { silent_since + self.interval };
            self.timer.as_mut().reset(next);
            if self.is_asked {
                return Poll::Ready(Due::Ping);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APART: Duration = Duration::from_secs(5);

    #[test]
    fn pings_may_come_as_often_as_they_may() {
        let (mut strikes, begin) = (Strikes::new(APART), Instant::now());
        for nth in 0..20 {
            assert!(!strikes.add(true, begin + nth * APART));
        }
        let last = begin + 19 * APART;
        let too_soon: Vec<_> = (1..=3).map(|nth| strikes.add(true, last + Duration::from_secs(nth))).collect();
        assert_eq!(too_soon, [false, false, true]);
    }

    #[test]
    fn answers_forgive() {
        let (mut strikes, now) = (Strikes::new(APART), Instant::now());
        for _ in 0..50 {
            strikes.forgive();
            assert!(!strikes.add(true, now));
        }
    }

    #[test]
    fn a_connection_without_calls_has_no_reason_to_ping() {
        let (mut strikes, begin) = (Strikes::new(APART), Instant::now());
        let minutes: Vec<_> = (0..4).map(|nth| strikes.add(false, begin + Duration::from_secs(60 * nth))).collect();
        assert_eq!(minutes, [false, false, false, true]);
        let mut unlimited = Strikes::new(Duration::ZERO);
        assert!((0..50).all(|_| !unlimited.add(false, begin)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_asked_and_then_given_up() {
        let mut keepalive = Keepalive::new(Duration::from_secs(60), Duration::from_secs(20)).expect("an interval");
        let begin = Instant::now();
        let next = async |keepalive: &mut Keepalive| {
            let due = std::future::poll_fn(|cx| keepalive.poll(cx)).await;
            (due, begin.elapsed().as_secs())
        };
        tokio::time::advance(Duration::from_secs(30)).await;
        keepalive.heard();
        assert_eq!(next(&mut keepalive).await, (Due::Ping, 90));
        tokio::time::advance(Duration::from_secs(1)).await;
        keepalive.heard();
        assert_eq!(next(&mut keepalive).await, (Due::Ping, 151));
        assert_eq!(next(&mut keepalive).await, (Due::End, 171));
        assert!(Keepalive::new(Duration::ZERO, Duration::ZERO).is_none());
    }
}
