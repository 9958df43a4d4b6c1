//! What delivery allocates. Measured: 3 allocations per response, however many events it holds, since a group's events
//! are encoded once: two for its bytes, one to notice when the transport is done with them. So far fewer than one per
//! event when a response holds a batch.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]
#![expect(unsafe_code, reason = "an allocator that counts")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use support::{World, config, start, watch};
use tailwater_eventlog::KeyRange;
use tailwater_fanout::{FanoutConfig, WatchStream};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// Counts the calling thread's allocations, so that the tail thread's work does not disturb.
struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const STREAMS: usize = 1000;
const BATCH: usize = 20;

fn pull(stream: &mut WatchStream) -> usize {
    let mut pieces = 0;
    while let Poll::Ready(Some(_)) = Pin::new(&mut *stream).poll_next(&mut Context::from_waker(Waker::noop())) {
        pieces += 1;
    }
    pieces
}

#[test]
fn delivery_allocates_little_and_by_response_rather_than_by_event() {
    let world = World::new();
    let fanout = start(&world, FanoutConfig { stream_chunk_bytes: 64 << 10, ..config() });
    let mut streams: Vec<_> = (0..STREAMS)
        .map(|_| {
            let (control, mut stream) = fanout.open_stream();
            control.create(watch(KeyRange::all(), 0), None);
            pull(&mut stream);
            (control, stream)
        })
        .collect();
    let (mut pieces, mut allocations) = (0, 0);
    for round in 0..5 {
        // Each batch of the tail costs an allocation more, so that all come as one.
        let puts: Vec<_> = (0..BATCH).map(|i| vec![(format!("k{i}").into(), Some(vec![b'v'; 100]))]).collect();
        world.commit_together(&puts);
        world.settle(&fanout);
        // Watchers are marked by the delivery worker after the revision is published.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let before = COUNT.with(Cell::get);
        let pulled: usize = streams.iter_mut().map(|(_, stream)| pull(stream)).sum();
        if round > 0 {
            (pieces, allocations) = (pieces + pulled, allocations + COUNT.with(Cell::get) - before);
        }
    }
    assert!(pieces >= 4 * STREAMS, "every stream gets its events: {pieces} pieces");
    let events = 4 * BATCH * STREAMS;
    eprintln!("{allocations} allocations for {pieces} pieces and {events} events");
    assert!(allocations < events, "{allocations} allocations for {events} events");
    assert!(allocations <= 3 * pieces + STREAMS, "{allocations} allocations for {pieces} pieces");
    fanout.stop();
}
