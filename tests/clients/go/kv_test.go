package clients

import (
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestPutGetDelete(t *testing.T) {
	ctx, client, prefix := start(t)
	key := prefix + "key"

	first := put(t, ctx, client, key, "one")
	second := put(t, ctx, client, key, "two")
	equal(t, "second revision", second, first+1)

	got, err := client.Get(ctx, key)
	check(t, err)
	equal(t, "count", got.Count, 1)
	equal(t, "more", got.More, false)
	equal(t, "value", string(got.Kvs[0].Value), "two")
	equal(t, "create revision", got.Kvs[0].CreateRevision, first)
	equal(t, "mod revision", got.Kvs[0].ModRevision, second)
	equal(t, "version", got.Kvs[0].Version, 2)
	equal(t, "header revision", got.Header.Revision, second)

	deleted, err := client.Delete(ctx, key, clientv3.WithPrevKV())
	check(t, err)
	equal(t, "deleted", deleted.Deleted, 1)
	equal(t, "previous value", string(deleted.PrevKvs[0].Value), "two")
	equal(t, "delete revision", deleted.Header.Revision, second+1)

	again, err := client.Delete(ctx, key, clientv3.WithPrevKV())
	check(t, err)
	equal(t, "deleted again", again.Deleted, 0)
	equal(t, "a delete of nothing takes no revision", again.Header.Revision, second+1)

	third := put(t, ctx, client, key, "three")
	got, err = client.Get(ctx, key)
	check(t, err)
	equal(t, "version after the delete", got.Kvs[0].Version, 1)
	equal(t, "create revision after the delete", got.Kvs[0].CreateRevision, third)
}

func TestPutOptions(t *testing.T) {
	ctx, client, prefix := start(t)
	key := prefix + "key"

	_, err := client.Put(ctx, key, "", clientv3.WithIgnoreValue())
	checkError(t, err, rpctypes.ErrKeyNotFound)
	_, err = client.Put(ctx, key, "x", clientv3.WithIgnoreLease())
	checkError(t, err, rpctypes.ErrKeyNotFound)

	lease, err := client.Grant(ctx, 60)
	check(t, err)
	response, err := client.Put(ctx, key, "one", clientv3.WithLease(lease.ID), clientv3.WithPrevKV())
	check(t, err)
	if response.PrevKv != nil {
		t.Fatalf("a first put has a previous value: %v", response.PrevKv)
	}
	response, err = client.Put(ctx, key, "two", clientv3.WithIgnoreLease(), clientv3.WithPrevKV())
	check(t, err)
	equal(t, "previous value", string(response.PrevKv.Value), "one")
	equal(t, "previous lease", response.PrevKv.Lease, int64(lease.ID))
	put(t, ctx, client, key, "", clientv3.WithIgnoreValue())

	got, err := client.Get(ctx, key)
	check(t, err)
	equal(t, "kept value", string(got.Kvs[0].Value), "two")
	equal(t, "lease left out", got.Kvs[0].Lease, 0)
	equal(t, "version", got.Kvs[0].Version, 3)
}

func TestEmptyValueIsAPut(t *testing.T) {
	ctx, client, prefix := start(t)
	revision := put(t, ctx, client, prefix+"key", "")
	got, err := client.Get(ctx, prefix+"key")
	check(t, err)
	equal(t, "count", got.Count, 1)
	equal(t, "value bytes", len(got.Kvs[0].Value), 0)
	events := collect(t, ctx, client.Watch(ctx, prefix+"key", clientv3.WithRev(revision)), 1)
	equal(t, "event", history(prefix, events), "+key=")
}

func TestRangeOptions(t *testing.T) {
	ctx, client, prefix := start(t)
	base := putMany(t, ctx, client, prefix, "b", "a", "d", "c")
	putMany(t, ctx, client, prefix, "a", "e")
	below := clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix))

	cases := []struct {
		name, key string
		opts      []clientv3.OpOption
		keys      string
		count     int64
		more      bool
	}{
		{"one key", "a", nil, "a", 1, false},
		{"no such key", "zz", nil, "", 0, false},
		{"prefix", "", []clientv3.OpOption{clientv3.WithPrefix()}, "a b c d e", 5, false},
		{"half-open range", "b", []clientv3.OpOption{clientv3.WithRange(prefix + "d")}, "b c", 2, false},
		{"empty range", "d", []clientv3.OpOption{clientv3.WithRange(prefix + "b")}, "", 0, false},
		{"from a key", "c", []clientv3.OpOption{below}, "c d e", 3, false},
		{"limit", "", []clientv3.OpOption{below, clientv3.WithLimit(2)}, "a b", 5, true},
		{"limit equal to count", "", []clientv3.OpOption{below, clientv3.WithLimit(5)}, "a b c d e", 5, false},
		{"old revision", "", []clientv3.OpOption{below, clientv3.WithRev(base)}, "a b c d", 4, false},
		{"count only", "", []clientv3.OpOption{below, clientv3.WithCountOnly()}, "", 5, false},
		{"serializable", "", []clientv3.OpOption{below, clientv3.WithSerializable()}, "a b c d e", 5, false},
		{"descending", "", []clientv3.OpOption{below, clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)}, "e d c b a", 5, false},
		{"by creation", "", []clientv3.OpOption{below, clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend)}, "b a d c e", 5, false},
		{"by modification", "", []clientv3.OpOption{below, clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend)}, "e a c d b", 5, false},
		{"by value", "", []clientv3.OpOption{below, clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend)}, "e d c b a", 5, false},
		{"by version, limited", "", []clientv3.OpOption{below, clientv3.WithSort(clientv3.SortByVersion, clientv3.SortDescend), clientv3.WithLimit(1)}, "a", 5, true},
		{"least mod revision", "", []clientv3.OpOption{below, clientv3.WithMinModRev(base)}, "a c e", 5, false},
		{"greatest mod revision", "", []clientv3.OpOption{below, clientv3.WithMaxModRev(base)}, "b c d", 5, false},
		{"least create revision", "", []clientv3.OpOption{below, clientv3.WithMinCreateRev(base)}, "c e", 5, false},
		{"greatest create revision", "", []clientv3.OpOption{below, clientv3.WithMaxCreateRev(base - 1)}, "a b d", 5, false},
		{"first key", "", clientv3.WithFirstKey(), "a", 5, true},
		{"last key", "", clientv3.WithLastKey(), "e", 5, true},
		{"first created", "", clientv3.WithFirstCreate(), "b", 5, true},
		{"last modified", "", clientv3.WithLastRev(), "e", 5, true},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			got, err := client.Get(ctx, prefix+test.key, test.opts...)
			check(t, err)
			equal(t, "keys", keys(prefix, got.Kvs), test.keys)
			equal(t, "count", got.Count, test.count)
			equal(t, "more", got.More, test.more)
			equal(t, "header revision", got.Header.Revision, base+2)
		})
	}
}

func TestKeysOnlyLeavesOutValues(t *testing.T) {
	ctx, client, prefix := start(t)
	lease, err := client.Grant(ctx, 60)
	check(t, err)
	revision := put(t, ctx, client, prefix+"key", "value", clientv3.WithLease(lease.ID))
	got, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	check(t, err)
	equal(t, "value bytes", len(got.Kvs[0].Value), 0)
	equal(t, "mod revision", got.Kvs[0].ModRevision, revision)
	equal(t, "lease", got.Kvs[0].Lease, int64(lease.ID))
}

func TestDeleteRange(t *testing.T) {
	ctx, client, prefix := start(t)
	revision := putMany(t, ctx, client, prefix, "a", "b", "c", "d")
	response, err := client.Delete(ctx, prefix+"b", clientv3.WithRange(prefix+"d"), clientv3.WithPrevKV())
	check(t, err)
	equal(t, "deleted", response.Deleted, 2)
	equal(t, "previous keys", keys(prefix, response.PrevKvs), "b c")
	equal(t, "one revision for all", response.Header.Revision, revision+1)
	response, err = client.Delete(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	equal(t, "deleted by prefix", response.Deleted, 2)
	equal(t, "previous keys not asked for", len(response.PrevKvs), 0)
	old, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	check(t, err)
	equal(t, "keys before", keys(prefix, old.Kvs), "a b c d")
}

func TestCompactHidesOlderRevisions(t *testing.T) {
	ctx, client, prefix := start(t)
	first := put(t, ctx, client, prefix+"key", "one")
	second := put(t, ctx, client, prefix+"key", "two")
	_, err := client.Compact(ctx, second, clientv3.WithCompactPhysical())
	check(t, err)

	_, err = client.Get(ctx, prefix+"key", clientv3.WithRev(first))
	checkError(t, err, rpctypes.ErrCompacted)
	got, err := client.Get(ctx, prefix+"key", clientv3.WithRev(second))
	check(t, err)
	equal(t, "value at the compacted revision", string(got.Kvs[0].Value), "two")
	_, err = client.Compact(ctx, second)
	checkError(t, err, rpctypes.ErrCompacted)
	_, err = client.Compact(ctx, second+1_000_000)
	checkError(t, err, rpctypes.ErrFutureRev)
}

func TestManyKeysAndLargeValues(t *testing.T) {
	ctx, client, prefix := start(t)
	value := strings.Repeat("v", 64<<10)
	for i := 0; i < 100; i++ {
		put(t, ctx, client, fmt.Sprintf("%s%03d", prefix, i), value)
	}
	// More than gRPC's default receive limit of 4 MiB in one answer.
	got, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	equal(t, "count", got.Count, 100)
	for i, kv := range got.Kvs {
		equal(t, "key", string(kv.Key), fmt.Sprintf("%s%03d", prefix, i))
		equal(t, "value bytes", len(kv.Value), len(value))
	}
}

func TestBinaryKeysSortByBytes(t *testing.T) {
	ctx, client, prefix := start(t)
	putMany(t, ctx, client, prefix, "\xff", "\x00", "a\x00b", "a", "\x7f", "\x80")
	got, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	equal(t, "keys", fmt.Sprintf("%q", keys(prefix, got.Kvs)), `"\x00 a a\x00b \x7f \x80 \xff"`)
}
