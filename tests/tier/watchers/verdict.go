package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// verdict is the comparison of what all watchers were sent with the log.
type verdict struct {
	Watchers   int      `json:"watchers"`
	Log        int      `json:"log"`
	Events     int      `json:"events"`
	Moves      int      `json:"moves"`
	Missed     int      `json:"missed"`
	Duplicate  int      `json:"duplicate"`
	OutOfOrder int      `json:"out_of_order"`
	Different  int      `json:"different"`
	Broken     int      `json:"broken"`
	Ended      int      `json:"ended"`
	Examples   []string `json:"examples"`
}

func (v *verdict) example(w *watcher, format string, arguments ...any) {
	if len(v.Examples) < 20 {
		v.Examples = append(v.Examples, fmt.Sprintf("watcher %d: ", w.name)+fmt.Sprintf(format, arguments...))
	}
}

// finish waits until every watcher is at the end of the log, then compares.
func finish(ctx context.Context, s settings, watchers []*watcher, revision int64) (verdict, error) {
	log, err := readLog(ctx, s, revision)
	if err != nil {
		return verdict{}, err
	}
	deadline := time.Now().Add(s.patience)
	for _, w := range watchers {
		wanted := log[w.prefix]
		for !w.isAt(wanted) && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
	}
	// Something that comes twice may come late.
	time.Sleep(300 * time.Millisecond)
	result := verdict{Examples: []string{}}
	for _, wanted := range log {
		result.Log += len(wanted)
	}
	for _, w := range watchers {
		w.mu.Lock()
		result.compare(w, log[w.prefix])
		w.mu.Unlock()
	}
	return result, nil
}

// isAt is whether the watcher has been sent the end of wanted, or has ended.
func (w *watcher) isAt(wanted []event) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended != "" || len(wanted) == 0 || w.last >= wanted[len(wanted)-1].revision
}

// compare adds what is wrong with one watcher.
func (v *verdict) compare(w *watcher, wanted []event) {
	v.Watchers++
	v.Events += len(w.events)
	v.Moves += w.moves
	if w.ended != "" {
		v.Ended++
		v.example(w, "%s", w.ended)
	}
	if len(w.broken) > 0 {
		v.Broken++
		v.example(w, "%s", strings.Join(w.broken, "; "))
	}
	due := make(map[event]int, len(wanted))
	revisions := make(map[int64]bool, len(wanted))
	for at, e := range wanted {
		due[e] = at
		revisions[e.revision] = true
	}
	got := make(map[event]bool, len(w.events))
	last := -1
	for _, e := range w.events {
		at, known := due[e]
		switch {
		case !known:
			v.Different++
			v.example(w, "an event of revision %d that the log does not have (it has others of that revision: %v)", e.revision, revisions[e.revision])
		case got[e]:
			v.Duplicate++
			v.example(w, "revision %d twice", e.revision)
		case at < last:
			v.OutOfOrder++
			v.example(w, "revision %d behind %d", e.revision, wanted[last].revision)
		}
		got[e] = true
		last = max(last, at)
	}
	for _, e := range wanted {
		if !got[e] {
			v.Missed++
			v.example(w, "revision %d was missed; the last is %d", e.revision, w.last)
		}
	}
}

// readLog is every event from the first watched revision to revision, by group.
func readLog(ctx context.Context, s settings, revision int64) (map[string][]event, error) {
	client, err := connect(s.log, 0)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	log := make(map[string][]event)
	watch := client.Watch(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(s.from), clientv3.WithCreatedNotify())
	for response := range watch {
		if err := response.Err(); err != nil {
			return nil, fmt.Errorf("reading the log: %w", err)
		}
		for _, e := range response.Events {
			if e.Kv.ModRevision > revision {
				return log, nil
			}
			end := len(s.prefix) + 4
			if len(e.Kv.Key) < end {
				return nil, fmt.Errorf("a key outside of all groups: %q", e.Kv.Key)
			}
			group := string(e.Kv.Key[:end])
			log[group] = append(log[group], event{e.Kv.ModRevision, sum(e)})
			if e.Kv.ModRevision == revision {
				// Only the last put's revision is asked for, and it has one event.
				return log, nil
			}
		}
	}
	return nil, fmt.Errorf("the log ends before revision %d", revision)
}
