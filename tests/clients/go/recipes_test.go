package clients

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
)

func newSession(t *testing.T, client *clientv3.Client) *concurrency.Session {
	t.Helper()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(5))
	check(t, err)
	t.Cleanup(func() { session.Close() })
	return session
}

func TestSessionEndsWithItsLease(t *testing.T) {
	ctx, client, prefix := start(t)
	session := newSession(t, client)
	put(t, ctx, client, prefix+"key", "", clientv3.WithLease(session.Lease()))
	_, err := client.Revoke(ctx, session.Lease())
	check(t, err)
	select {
	case <-session.Done():
	case <-ctx.Done():
		t.Fatal("the session outlives its lease")
	}
	got, err := client.Get(ctx, prefix+"key")
	check(t, err)
	equal(t, "keys", got.Count, 0)
}

func TestMutexExcludes(t *testing.T) {
	const workers, rounds = 4, 5
	ctx, client, prefix := start(t)
	inside, total := 0, 0
	var group sync.WaitGroup
	failures := make(chan error, workers)
	for range workers {
		session := newSession(t, client)
		group.Add(1)
		go func() {
			defer group.Done()
			mutex := concurrency.NewMutex(session, prefix+"lock")
			for range rounds {
				if err := mutex.Lock(ctx); err != nil {
					failures <- err
					return
				}
				inside++
				if inside != 1 {
					failures <- fmt.Errorf("%d holders of one mutex", inside)
				}
				total++
				inside--
				if err := mutex.Unlock(ctx); err != nil {
					failures <- err
					return
				}
			}
		}()
	}
	group.Wait()
	close(failures)
	check(t, <-failures)
	equal(t, "locks taken", total, workers*rounds)

	holder := concurrency.NewMutex(newSession(t, client), prefix+"lock")
	check(t, holder.Lock(ctx))
	owned, err := client.Txn(ctx).If(holder.IsOwner()).Commit()
	check(t, err)
	equal(t, "owner", owned.Succeeded, true)
	other := concurrency.NewMutex(newSession(t, client), prefix+"lock")
	if err := other.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Fatalf("a held mutex gives %v", err)
	}
}

func TestElection(t *testing.T) {
	ctx, client, prefix := start(t)
	firstSession, secondSession := newSession(t, client), newSession(t, client)
	first := concurrency.NewElection(firstSession, prefix+"seat")
	second := concurrency.NewElection(secondSession, prefix+"seat")
	observer := concurrency.NewElection(newSession(t, client), prefix+"seat")
	leaders := observer.Observe(ctx)
	expect := func(want string) {
		t.Helper()
		select {
		case response := <-leaders:
			equal(t, "leader", string(response.Kvs[0].Value), want)
		case <-ctx.Done():
			t.Fatalf("%s is never seen to lead", want)
		}
	}

	check(t, first.Campaign(ctx, "first"))
	expect("first")
	won := make(chan error, 1)
	go func() { won <- second.Campaign(ctx, "second") }()
	check(t, first.Proclaim(ctx, "first again"))
	expect("first again")
	select {
	case err := <-won:
		t.Fatalf("two leaders (%v)", err)
	case <-time.After(100 * time.Millisecond):
	}
	// The first leader goes away by losing its lease, as a process that died does.
	check(t, firstSession.Close())
	check(t, <-won)
	expect("second")
	leader, err := second.Leader(ctx)
	check(t, err)
	equal(t, "leader", string(leader.Kvs[0].Value), "second")
	check(t, second.Resign(ctx))
	_, err = second.Leader(ctx)
	checkError(t, err, concurrency.ErrElectionNoLeader)
}

func TestNamespace(t *testing.T) {
	ctx, client, prefix := start(t)
	kv := namespace.NewKV(client.KV, prefix)
	watcher := namespace.NewWatcher(client.Watcher, prefix)
	lease := namespace.NewLease(client.Lease, prefix)

	granted, err := lease.Grant(ctx, 60)
	check(t, err)
	revision := put(t, ctx, kv, "a", "1", clientv3.WithLease(granted.ID))
	put(t, ctx, client, prefix+"b", "2")
	got, err := kv.Get(ctx, "", clientv3.WithPrefix())
	check(t, err)
	equal(t, "keys inside", keys("", got.Kvs), "a b")
	events := collect(t, ctx, watcher.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(revision)), 2)
	equal(t, "events inside", history("", events), "+a=1 +b=2")
	attached, err := lease.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys())
	check(t, err)
	equal(t, "attached key", string(attached.Keys[0]), "a")
	response, err := kv.Txn(ctx).If(clientv3.Compare(clientv3.Value("b"), "=", "2")).Then(clientv3.OpDelete("", clientv3.WithPrefix())).Commit()
	check(t, err)
	equal(t, "deleted", response.Responses[0].GetResponseDeleteRange().Deleted, 2)
}

func TestOrderingSeesNoStepBack(t *testing.T) {
	ctx, client, prefix := start(t)
	kv := ordering.NewKV(client.KV, func(op clientv3.Op, _ clientv3.OpResponse, revision int64) error {
		return fmt.Errorf("a read of %s is older than %d", op.KeyBytes(), revision)
	})
	for range 20 {
		put(t, ctx, client, prefix+"key", "")
		_, err := kv.Get(ctx, prefix+"key", clientv3.WithSerializable())
		check(t, err)
		_, err = kv.Txn(ctx).Then(clientv3.OpGet(prefix + "key")).Commit()
		check(t, err)
	}
}

func TestLeasingCache(t *testing.T) {
	ctx, client, prefix := start(t)
	first, closeFirst, err := leasing.NewKV(client, prefix+"leases/", concurrency.WithTTL(5))
	check(t, err)
	defer closeFirst()
	second, closeSecond, err := leasing.NewKV(connect(t), prefix+"leases/", concurrency.WithTTL(5))
	check(t, err)
	defer closeSecond()
	key := prefix + "key"
	for i := range 5 {
		value := fmt.Sprint(i)
		put(t, ctx, first, key, value)
		for name, kv := range map[string]clientv3.KV{"first": first, "second": second} {
			got, err := kv.Get(ctx, key)
			check(t, err)
			equal(t, "value seen by the "+name, string(got.Kvs[0].Value), value)
		}
	}
}

func TestMirrorFollows(t *testing.T) {
	const before, after = 1500, 60
	ctx, client, prefix := start(t)
	for at := 0; at < before; at += 100 {
		ops := make([]clientv3.Op, 100)
		for i := range ops {
			ops[i] = clientv3.OpPut(fmt.Sprintf("%s%05d", prefix, at+i), "base")
		}
		_, err := client.Txn(ctx).Then(ops...).Commit()
		check(t, err)
	}
	syncer := mirror.NewSyncer(client, prefix, 0)
	failure := make(chan error, 1)
	go func() { failure <- scribble(ctx, client, prefix, after) }()

	copied := map[string]string{}
	pages, failures := syncer.SyncBase(ctx)
	for page := range pages {
		for _, kv := range page.Kvs {
			copied[string(kv.Key)] = string(kv.Value)
		}
	}
	check(t, <-failures)
	watch := syncer.SyncUpdates(ctx)
	for done := false; !done; {
		response := receive(t, ctx, watch)
		check(t, response.Err())
		for _, event := range response.Events {
			key := string(event.Kv.Key)
			if event.Type == clientv3.EventTypeDelete {
				delete(copied, key)
			} else {
				copied[key] = string(event.Kv.Value)
			}
			done = done || key == prefix+"end"
		}
	}
	check(t, <-failure)
	got, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	equal(t, "copied keys", int64(len(copied)), got.Count)
	for _, kv := range got.Kvs {
		equal(t, "copy of "+string(kv.Key), copied[string(kv.Key)], string(kv.Value))
	}
}

func scribble(ctx context.Context, client *clientv3.Client, prefix string, count int) error {
	for i := range count {
		if _, err := client.Put(ctx, fmt.Sprintf("%s%05d", prefix, i*7), fmt.Sprint("new", i)); err != nil {
			return err
		}
		if _, err := client.Delete(ctx, fmt.Sprintf("%s%05d", prefix, i*11)); err != nil {
			return err
		}
	}
	_, err := client.Put(ctx, prefix+"end", "")
	return err
}
