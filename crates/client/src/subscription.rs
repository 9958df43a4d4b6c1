//! The changes of a cache as a stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tokio_stream::Stream;

use crate::object::{Change, Snapshot};

/// What is sent to a subscriber.
pub(crate) enum Item<T> {
    /// The state that the subscription begins with.
    State(Arc<Snapshot<T>>),
    /// A change of it.
    Change(Change<T>),
}

/// The changes of one informer in order, the state first: see [`Change`]. It ends when the informer is dropped.
pub struct Subscription<T> {
    receiver: mpsc::Receiver<Item<T>>,
    /// What is left of the state to tell.
    state: Option<Box<dyn Iterator<Item = Change<T>> + Send + Sync>>,
}

impl<T> std::fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("waiting", &self.receiver.len()).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Subscription<T> {
    pub(crate) fn new(receiver: mpsc::Receiver<Item<T>>) -> Self {
        Self { receiver, state: None }
    }

    /// The next change; none when the informer has ended. It may be given up and called again.
    pub async fn next(&mut self) -> Option<Change<T>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Change<T>>> {
        loop {
            if let Some(change) = self.state.as_mut().and_then(Iterator::next) {
                return Poll::Ready(Some(change));
            }
            match ready!(self.receiver.poll_recv(context)) {
                Some(Item::State(state)) => self.state = Some(Box::new(Snapshot::clone(&state).into_changes())),
                Some(Item::Change(change)) => return Poll::Ready(Some(change)),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl<T: Send + Sync + 'static> Stream for Subscription<T> {
    type Item = Change<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Change<T>>> {
        self.poll(context)
    }
}
