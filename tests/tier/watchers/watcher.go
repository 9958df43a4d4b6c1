package main

import (
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// event is what is kept of an event: enough to find it in the log, and a sum of all that it says.
type event struct {
	revision int64
	sum      uint64
}

// watcher notes what one watch is sent. Its channel is the client's: that one resumes broken streams by itself.
type watcher struct {
	name   int
	prefix string

	mu     sync.Mutex
	events []event
	// The first violations of what a single stream must keep, as text.
	broken []string
	// Why the channel ended, if it did: Kubernetes would list again.
	ended string
	// All events up to here have been sent, by the server's word.
	progressed int64
	// The revision that the last response ended with.
	last int64
	// Who sent the last response, and how often that changed.
	member uint64
	moves  int

	judged bool
	since  time.Time
	latest time.Duration
	heard  bool
}

func (w *watcher) follow(watch clientv3.WatchChan, created func()) {
	for response := range watch {
		if response.Created {
			if created != nil {
				created()
				created = nil
			}
			continue
		}
		w.note(response, time.Now())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended == "" {
		w.ended = "the channel was closed"
	}
}

func (w *watcher) note(response clientv3.WatchResponse, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := response.Err(); err != nil {
		w.ended = fmt.Sprintf("canceled: %v (compact revision %d)", err, response.CompactRevision)
		return
	}
	if id := response.Header.GetMemberId(); id != w.member {
		if w.member != 0 {
			w.moves++
		}
		w.member = id
	}
	if len(response.Events) == 0 {
		if response.Header.GetRevision() < w.progressed {
			w.violation("progress goes back from %d to %d", w.progressed, response.Header.GetRevision())
		}
		w.progressed = max(w.progressed, response.Header.GetRevision())
		return
	}
	if first := response.Events[0].Kv.ModRevision; first == w.last {
		w.violation("revision %d comes in two responses", first)
	} else if first <= w.progressed {
		w.violation("revision %d comes after progress %d", first, w.progressed)
	}
	for _, e := range response.Events {
		if e.Kv.ModRevision < w.last {
			w.violation("revision %d comes after %d", e.Kv.ModRevision, w.last)
		}
		w.last = e.Kv.ModRevision
		w.events = append(w.events, event{e.Kv.ModRevision, sum(e)})
		w.time(e, now)
	}
}

func (w *watcher) violation(format string, arguments ...any) {
	if len(w.broken) < 3 {
		w.broken = append(w.broken, fmt.Sprintf(format, arguments...))
	}
}

// time notes how late an event is that was sent after the watcher began to be judged. Values begin with the time of
// sending; this machine's clock is on both ends.
func (w *watcher) time(e *clientv3.Event, now time.Time) {
	var nanoseconds int64
	if !w.judged || len(e.Kv.Value) < 20 {
		return
	}
	if _, err := fmt.Sscanf(string(e.Kv.Value[:20]), "%d", &nanoseconds); err != nil {
		return
	}
	if sent := time.Unix(0, nanoseconds); sent.After(w.since) {
		w.heard = true
		w.latest = max(w.latest, now.Sub(sent))
	}
}

// judge begins to time the watcher if member serves it.
func (w *watcher) judge(member uint64, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.judged, w.since, w.latest, w.heard = w.member == member, now, 0, false
}

// interruption is how late the latest event of each judged watcher was, in milliseconds: for so long it was not live.
type interruption struct {
	Watchers     int   `json:"watchers"`
	Milliseconds []int `json:"milliseconds"`
	Silent       int   `json:"silent"`
}

func settled(watchers []*watcher, now time.Time) interruption {
	result := interruption{Milliseconds: []int{}}
	for _, w := range watchers {
		w.mu.Lock()
		if w.judged {
			result.Watchers++
			if !w.heard {
				// Nothing has come since: not live again yet.
				result.Silent++
				w.latest = now.Sub(w.since)
			}
			result.Milliseconds = append(result.Milliseconds, int(w.latest.Milliseconds()))
			w.judged = false
		}
		w.mu.Unlock()
	}
	slices.Sort(result.Milliseconds)
	return result
}

// sum is a hash of everything that an event says.
func sum(e *clientv3.Event) uint64 {
	hash := fnv.New64a()
	fmt.Fprintln(hash, e.Type, e.Kv.CreateRevision, e.Kv.ModRevision, e.Kv.Version, e.Kv.Lease, len(e.Kv.Key), len(e.Kv.Value))
	hash.Write(e.Kv.Key)
	hash.Write(e.Kv.Value)
	if e.PrevKv != nil {
		fmt.Fprintln(hash, "before", e.PrevKv.CreateRevision, e.PrevKv.ModRevision, e.PrevKv.Version, len(e.PrevKv.Key), len(e.PrevKv.Value))
		hash.Write(e.PrevKv.Key)
		hash.Write(e.PrevKv.Value)
	}
	return hash.Sum64()
}
