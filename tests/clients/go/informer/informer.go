// Package informer keeps a copy of the keys under a prefix, with nothing but etcd's own client. docs/CLIENTS.md shows it.
package informer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	pageSize    = 500
	callTimeout = 5 * time.Second
	retryPause  = 500 * time.Millisecond
)

// Informer is a copy of the keys under Prefix. Changed hears of each change: was is nil for a new key, now for a deleted one.
type Informer struct {
	Client  *clientv3.Client
	Prefix  string
	Changed func(was, now *mvccpb.KeyValue)

	mu       sync.Mutex
	keys     map[string]*mvccpb.KeyValue
	revision int64         // each change up to it is in keys
	moved    chan struct{} // closed when revision moves
}

// Run lists, then watches, until ctx ends.
func (i *Informer) Run(ctx context.Context) error {
	for listed := false; ; {
		var err error
		if !listed {
			err = i.list(ctx)
		}
		if err == nil {
			listed = true
			err = i.watch(ctx)
		}
		// Only then is something lost. After any other error the watch goes on at the revision that it needs next.
		if errors.Is(err, rpctypes.ErrCompacted) {
			listed = false
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryPause):
		}
	}
}

// list takes the whole prefix at one revision, and tells how it differs from what was known.
func (i *Informer) list(ctx context.Context) error {
	keys, revision := map[string]*mvccpb.KeyValue{}, int64(0)
	for from, more := i.Prefix, true; more; {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		page, err := i.Client.Get(call, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(i.Prefix)),
			clientv3.WithLimit(pageSize), clientv3.WithRev(revision)) // 0, the newest, for the first page
		cancel()
		if err != nil {
			return err
		}
		if revision == 0 {
			revision = page.Header.Revision // of the first page; later headers tell newer ones
		}
		for _, kv := range page.Kvs {
			keys[string(kv.Key)] = kv
			from = string(kv.Key) + "\x00"
		}
		more = page.More
	}
	for _, kv := range i.Keys() {
		if keys[string(kv.Key)] == nil {
			i.set(string(kv.Key), nil)
		}
	}
	for key, kv := range keys {
		if was := i.Get(key); was == nil || was.ModRevision != kv.ModRevision {
			i.set(key, kv)
		}
	}
	i.reach(revision)
	return nil
}

// watch follows all changes after the known revision. The client resumes it by itself when a connection breaks, on any of
// its endpoints, where the last event or progress left it.
func (i *Informer) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel() // else the watch would stay open
	answers := i.Client.Watch(ctx, i.Prefix, clientv3.WithPrefix(), clientv3.WithRev(i.Revision()+1), clientv3.WithProgressNotify())
	for answer := range answers {
		if err := answer.Err(); err != nil {
			return err
		}
		for _, event := range answer.Events {
			if event.Type == clientv3.EventTypeDelete {
				i.set(string(event.Kv.Key), nil)
			} else {
				i.set(string(event.Kv.Key), event.Kv)
			}
		}
		if n := len(answer.Events); n > 0 {
			i.reach(answer.Events[n-1].Kv.ModRevision) // not the header's: the server may have more on its way
		} else if answer.IsProgressNotify() {
			i.reach(answer.Header.Revision)
		}
	}
	return errors.New("the watch ended")
}

// Consistent returns when everything that was written before the call is in the copy.
func (i *Informer) Consistent(ctx context.Context) error {
	now, err := i.Client.Get(ctx, i.Prefix, clientv3.WithCountOnly()) // linearizable
	if err != nil {
		return err
	}
	for {
		i.mu.Lock()
		if i.revision >= now.Header.Revision {
			i.mu.Unlock()
			return nil
		}
		if i.moved == nil {
			i.moved = make(chan struct{})
		}
		moved := i.moved
		i.mu.Unlock()
		// Of the same metadata as the watch, so that it goes to its stream; again, since a busy server drops it.
		if err := i.Client.RequestProgress(clientv3.WithRequireLeader(ctx)); err != nil {
			return err
		}
		select {
		case <-moved:
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Revision is the one that the copy is of; 0 before the first list.
func (i *Informer) Revision() int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.revision
}

// Get is what the copy has of a key, or nil.
func (i *Informer) Get(key string) *mvccpb.KeyValue {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[key]
}

// Keys is all that the copy has, in no order.
func (i *Informer) Keys() []*mvccpb.KeyValue {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Values(i.keys))
}

func (i *Informer) set(key string, now *mvccpb.KeyValue) {
	i.mu.Lock()
	was := i.keys[key]
	if now == nil {
		delete(i.keys, key)
	} else {
		if i.keys == nil {
			i.keys = map[string]*mvccpb.KeyValue{}
		}
		i.keys[key] = now
	}
	i.mu.Unlock()
	i.Changed(was, now)
}

func (i *Informer) reach(revision int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.revision = max(i.revision, revision)
	if i.moved != nil {
		close(i.moved)
		i.moved = nil
	}
}
