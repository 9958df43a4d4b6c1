//! Bounded queues between the threads, whose receiver sleeps as soon as nothing is there.
//!
//! A crossbeam channel's own receiver first spins, then gives its core away several times, before it sleeps. Where the
//! threads have fewer cores than there are threads awake, each of those turns is a switch of context that takes the core
//! from whoever is to send: a put of one client, on one core, cost 26 switches; without them, and with fewer wake-ups,
//! 13.

use crossbeam::channel::{self, TryRecvError, TrySendError};
use crossbeam::sync::{Parker, Unparker};

/// A queue of at most `bound` items.
pub(crate) fn queue<T>(bound: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = channel::bounded(bound);
    let parker = Parker::new();
    (Sender { sender, wake: Wake(parker.unparker().clone()) }, Receiver { receiver, parker })
}

/// Puts items in; clones share the queue.
pub(crate) struct Sender<T> {
    // Dropped in this order: the receiver is woken when it can see that this one is gone.
    sender: channel::Sender<T>,
    wake: Wake,
}

/// Takes items out. One thread's.
pub(crate) struct Receiver<T> {
    receiver: channel::Receiver<T>,
    parker: Parker,
}

/// All senders are gone, and everything they sent was taken.
#[derive(Debug)]
pub(crate) struct Ended;

#[derive(Clone)]
struct Wake(Unparker);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.unpark();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), wake: self.wake.clone() }
    }
}

impl<T> Sender<T> {
    /// Waits while the queue is full; `Err` when the receiver is gone.
    pub(crate) fn send(&self, item: T) -> Result<(), Ended> {
        self.sender.send(item).map_err(|_| Ended)?;
        self.wake.0.unpark();
        Ok(())
    }

    /// Never waits.
    pub(crate) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        self.sender.try_send(item)?;
        self.wake.0.unpark();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The oldest item; sleeps until there is one.
    pub(crate) fn recv(&self) -> Result<T, Ended> {
        loop {
            match self.receiver.try_recv() {
                Ok(item) => return Ok(item),
                Err(TryRecvError::Disconnected) => return Err(Ended),
                // What was sent since then has left a token.
                Err(TryRecvError::Empty) => self.parker.park(),
            }
        }
    }

    /// The oldest item if there is one.
    pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
        self.receiver.try_recv()
    }

    /// The items that are there.
    pub(crate) fn try_iter(&self) -> impl Iterator<Item = T> {
        self.receiver.try_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_sleeps_is_woken_by_an_item_and_by_the_end() {
        let (sender, receiver) = queue(2);
        let taker = std::thread::spawn(move || {
            let mut taken = Vec::new();
            while let Ok(item) = receiver.recv() {
                taken.push(item);
            }
            taken
        });
        let other = sender.clone();
        for item in 0..100 {
            if item % 10 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(if item % 2 == 0 { sender.send(item) } else { other.send(item) }.is_ok(), "somebody receives");
        }
        drop(sender);
        std::thread::sleep(Duration::from_millis(5));
        drop(other);
        assert_eq!(taker.join().expect("ends"), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_queue_refuses_and_one_without_a_receiver_ends() {
        let (sender, receiver) = queue(1);
        assert!(sender.try_send(1).is_ok());
        assert!(matches!(sender.try_send(2), Err(TrySendError::Full(2))));
        drop(receiver);
        assert!(matches!(sender.try_send(3), Err(TrySendError::Disconnected(3))));
        assert!(sender.send(4).is_err());
    }
}
