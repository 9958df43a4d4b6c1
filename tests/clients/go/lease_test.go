package clients

import (
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestLeaseLife(t *testing.T) {
	ctx, client, prefix := start(t)
	lease, err := client.Grant(ctx, 100)
	check(t, err)
	equal(t, "granted TTL", lease.TTL, 100)
	put(t, ctx, client, prefix+"b", "", clientv3.WithLease(lease.ID))
	put(t, ctx, client, prefix+"a", "", clientv3.WithLease(lease.ID))

	left, err := client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	check(t, err)
	equal(t, "granted", left.GrantedTTL, 100)
	if left.TTL < 98 || left.TTL > 100 {
		t.Fatalf("TTL is %d right after a grant of 100", left.TTL)
	}
	attached := map[string]bool{}
	for _, key := range left.Keys {
		attached[string(key)] = true
	}
	equal(t, "attached keys", len(left.Keys) == 2 && attached[prefix+"a"] && attached[prefix+"b"], true)

	all, err := client.Leases(ctx)
	check(t, err)
	found := false
	for _, status := range all.Leases {
		found = found || status.ID == lease.ID
	}
	equal(t, "listed", found, true)

	alive, err := client.KeepAliveOnce(ctx, lease.ID)
	check(t, err)
	equal(t, "renewed TTL", alive.TTL, 100)

	revision := put(t, ctx, client, prefix+"c", "")
	watch := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	revoked, err := client.Revoke(ctx, lease.ID)
	check(t, err)
	equal(t, "revision of the revoke", revoked.Header.Revision, revision+1)
	events := collect(t, ctx, watch, 2)
	equal(t, "deleted in key order", history(prefix, events), "-a -b")
	equal(t, "in one revision", events[1].Kv.ModRevision, events[0].Kv.ModRevision)

	_, err = client.Revoke(ctx, lease.ID)
	checkError(t, err, rpctypes.ErrLeaseNotFound)
	_, err = client.KeepAliveOnce(ctx, lease.ID)
	checkError(t, err, rpctypes.ErrLeaseNotFound)
	gone, err := client.TimeToLive(ctx, lease.ID)
	check(t, err)
	equal(t, "TTL of a lease that is gone", gone.TTL, -1)
}

func TestLeaseOfAKeyMoves(t *testing.T) {
	ctx, client, prefix := start(t)
	first, err := client.Grant(ctx, 100)
	check(t, err)
	second, err := client.Grant(ctx, 100)
	check(t, err)
	put(t, ctx, client, prefix+"moved", "", clientv3.WithLease(first.ID))
	put(t, ctx, client, prefix+"moved", "", clientv3.WithLease(second.ID))
	put(t, ctx, client, prefix+"freed", "", clientv3.WithLease(first.ID))
	put(t, ctx, client, prefix+"freed", "")
	_, err = client.Revoke(ctx, first.ID)
	check(t, err)
	got, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	equal(t, "keys", keys(prefix, got.Kvs), "freed moved")
}

func TestLeaseExpires(t *testing.T) {
	ctx, client, prefix := start(t)
	lease, err := client.Grant(ctx, 2)
	check(t, err)
	granted := time.Now()
	revision := put(t, ctx, client, prefix+"a", "1", clientv3.WithLease(lease.ID))
	put(t, ctx, client, prefix+"b", "2", clientv3.WithLease(lease.ID))
	watch := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+2), clientv3.WithPrevKV())
	events := collect(t, ctx, watch, 2)
	equal(t, "events", history(prefix, events), "-a -b")
	equal(t, "previous value", string(events[0].PrevKv.Value), "1")
	if lived := time.Since(granted); lived < 2*time.Second-100*time.Millisecond {
		t.Fatalf("a lease of 2 s lived only %v", lived)
	}
}

func TestKeepAliveKeepsALease(t *testing.T) {
	ctx, client, prefix := start(t)
	lease, err := client.Grant(ctx, 2)
	check(t, err)
	alive, err := client.KeepAlive(ctx, lease.ID)
	check(t, err)
	put(t, ctx, client, prefix+"key", "", clientv3.WithLease(lease.ID))
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		select {
		case response, open := <-alive:
			if !open {
				t.Fatal("the keep-alive ended")
			}
			equal(t, "TTL", response.TTL, 2)
		case <-ctx.Done():
			t.Fatal("no keep-alive answer")
		}
	}
	got, err := client.Get(ctx, prefix+"key")
	check(t, err)
	equal(t, "keys", got.Count, 1)
	_, err = client.Revoke(ctx, lease.ID)
	check(t, err)
	for open := true; open; {
		select {
		case _, open = <-alive:
		case <-ctx.Done():
			t.Fatal("the keep-alive of a revoked lease does not end")
		}
	}
}

func TestLeaseErrors(t *testing.T) {
	ctx, client, prefix := start(t)
	_, err := client.Put(ctx, prefix+"key", "", clientv3.WithLease(424242))
	checkError(t, err, rpctypes.ErrLeaseNotFound)
	_, err = client.Grant(ctx, 9_000_000_001)
	checkError(t, err, rpctypes.ErrLeaseTTLTooLarge)
}
