//! Barriers of one node share what is asked of a leader elsewhere: one question at a time, and whoever comes while it is
//! under way waits for the next, since a read joins only a confirmation that starts after it arrived.

use parking_lot::Mutex;
use tailwater_consensus::ProposeError;
use tailwater_eventlog::Position;
use tokio::sync::oneshot;

use super::codec::{self, Failed};

/// Barriers that may wait at once.
const WAITERS_MAX: usize = 1 << 16;

/// Who waits for one barrier.
pub(super) type BarrierWaiter = oneshot::Sender<Result<Position, ProposeError>>;

/// Those who wait for the next question.
#[derive(Default)]
pub(super) struct Barriers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    gathering: Vec<BarrierWaiter>,
    is_asking: bool,
}

impl Barriers {
    /// Joins the next question: the answer to come, and whether the caller must see to it that questions are asked.
    ///
    /// # Errors
    /// `TooManyRequests`.
    pub(super) fn join(&self) -> Result<(oneshot::Receiver<Result<Position, ProposeError>>, bool), ProposeError> {
        let (waiter, answer) = oneshot::channel();
        let mut state = self.state.lock();
        if state.gathering.len() >= WAITERS_MAX {
            return Err(ProposeError::TooManyRequests);
        }
        state.gathering.push(waiter);
        Ok((answer, !std::mem::replace(&mut state.is_asking, true)))
    }

    /// Those whose question is asked now; `None` when nobody waits, and with that the asking ends.
    pub(super) fn next(&self) -> Option<Vec<BarrierWaiter>> {
        let mut state = self.state.lock();
        state.gathering.retain(|waiter| !waiter.is_closed());
        state.is_asking = !state.gathering.is_empty();
        state.is_asking.then(|| std::mem::take(&mut state.gathering))
    }
}

/// Tells all the same.
pub(super) fn answer_all(waiters: Vec<BarrierWaiter>, answer: Result<Position, ProposeError>) {
    let answer = answer.map_err(|error| codec::encode_error(&error));
    for waiter in waiters {
        let answer = answer.clone().map_err(|failure| match codec::decode_failure(failure) {
            Failed::Error(error) => error,
            Failed::NotLeader(_) | Failed::UnknownRequest => ProposeError::NoLeader,
        });
        // Who is gone needs no answer.
        drop(waiter.send(answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_while_it_is_asked_waits_for_the_next() {
        let barriers = Barriers::default();
        let (mut first, must_ask) = barriers.join().expect("room");
        assert!(must_ask);
        let asked = barriers.next().expect("one waits");
        let (mut second, must_ask) = barriers.join().expect("room");
        assert!(!must_ask, "somebody asks already");
        answer_all(asked, Ok(Position(5)));
        assert_eq!(first.try_recv().expect("answered").expect("passed"), Position(5));
        assert!(second.try_recv().is_err(), "it came after the question was asked");
        answer_all(barriers.next().expect("the second"), Err(ProposeError::Timeout));
        assert!(matches!(second.try_recv(), Ok(Err(ProposeError::Timeout))));
        assert!(barriers.next().is_none());
        assert!(barriers.join().expect("room").1, "the asking has ended");
    }
}
