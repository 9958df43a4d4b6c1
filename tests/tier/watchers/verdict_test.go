package main

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// change is one put of key at revision.
func change(key string, revision int64) *clientv3.Event {
	return &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), Value: []byte("v"), ModRevision: revision}}
}

func response(member uint64, events ...*clientv3.Event) clientv3.WatchResponse {
	header := pb.ResponseHeader{MemberId: member}
	if len(events) > 0 {
		header.Revision = events[len(events)-1].Kv.ModRevision
	}
	return clientv3.WatchResponse{Header: &header, Events: events}
}

func progress(revision int64) clientv3.WatchResponse {
	return clientv3.WatchResponse{Header: &pb.ResponseHeader{MemberId: 1, Revision: revision}}
}

func judged(responses ...clientv3.WatchResponse) verdict {
	var log []event
	for _, e := range []*clientv3.Event{change("a", 2), change("b", 2), change("a", 3), change("a", 5)} {
		log = append(log, event{e.Kv.ModRevision, sum(e)})
	}
	var w watcher
	for _, r := range responses {
		w.note(r, time.Now())
	}
	var v verdict
	v.compare(&w, log)
	v.Examples = nil
	return v
}

func TestVerdicts(t *testing.T) {
	whole := response(1, change("a", 2), change("b", 2))
	for _, c := range []struct {
		name      string
		responses []clientv3.WatchResponse
		want      func(verdict) bool
	}{
		{"all", []clientv3.WatchResponse{whole, progress(2), response(1, change("a", 3)), progress(4), response(2, change("a", 5))}, func(v verdict) bool {
			return v.Missed+v.Duplicate+v.OutOfOrder+v.Different+v.Broken+v.Ended == 0 && v.Moves == 1 && v.Events == 4
		}},
		{"missed", []clientv3.WatchResponse{whole, response(1, change("a", 5))}, func(v verdict) bool { return v.Missed == 1 && v.Broken == 0 }},
		{"missed at the end", []clientv3.WatchResponse{whole, response(1, change("a", 3))}, func(v verdict) bool { return v.Missed == 1 }},
		{"duplicate", []clientv3.WatchResponse{whole, response(1, change("a", 3)), response(2, change("a", 3)), response(2, change("a", 5))}, func(v verdict) bool { return v.Duplicate == 1 && v.Broken == 1 }},
		{"out of order", []clientv3.WatchResponse{whole, response(1, change("a", 5)), response(1, change("a", 3))}, func(v verdict) bool { return v.OutOfOrder == 1 && v.Broken == 1 }},
		{"out of order within a revision", []clientv3.WatchResponse{response(1, change("b", 2), change("a", 2), change("a", 3), change("a", 5))}, func(v verdict) bool { return v.OutOfOrder == 1 }},
		{"a revision in two", []clientv3.WatchResponse{response(1, change("a", 2)), response(1, change("b", 2), change("a", 3), change("a", 5))}, func(v verdict) bool { return v.Broken == 1 }},
		{"progress too high", []clientv3.WatchResponse{whole, progress(3), response(1, change("a", 3), change("a", 5))}, func(v verdict) bool { return v.Broken == 1 }},
		{"another event", []clientv3.WatchResponse{whole, response(1, change("a", 3), change("a", 4), change("a", 5))}, func(v verdict) bool { return v.Different == 1 }},
		{"canceled", []clientv3.WatchResponse{whole, response(1, change("a", 3), change("a", 5)), {Canceled: true}}, func(v verdict) bool { return v.Ended == 1 }},
		{"compacted", []clientv3.WatchResponse{{CompactRevision: 9, Canceled: true}}, func(v verdict) bool { return v.Ended == 1 && v.Missed == 4 }},
	} {
		if v := judged(c.responses...); !c.want(v) {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
}

func TestInterruption(t *testing.T) {
	begin := time.Now()
	late := change("a", 2)
	late.Kv.Value = []byte("00000000000000000000")
	at := begin.Add(time.Second).UnixNano()
	for i := 19; i >= 0; i-- {
		late.Kv.Value[i] = byte('0' + at%10)
		at /= 10
	}
	moved, silent, other := &watcher{member: 7}, &watcher{member: 7}, &watcher{member: 8}
	all := []*watcher{moved, silent, other}
	for _, w := range all {
		w.judge(7, begin)
	}
	moved.note(response(8, late), begin.Add(1500*time.Millisecond))
	got := settled(all, begin.Add(3*time.Second))
	if got.Watchers != 2 || got.Silent != 1 || len(got.Milliseconds) != 2 || got.Milliseconds[0] != 500 || got.Milliseconds[1] != 3000 {
		t.Errorf("%+v", got)
	}
}
