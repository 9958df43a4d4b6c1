package clients

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
)

func startKubernetes(t *testing.T) (context.Context, *kubernetes.Client, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	client, err := kubernetes.New(clientv3.Config{Endpoints: endpoints()})
	check(t, err)
	t.Cleanup(func() { client.Client.Close() })
	return ctx, client, newPrefix(t)
}

func TestKubernetesOptimisticWrites(t *testing.T) {
	ctx, client, prefix := startKubernetes(t)
	kube, key := client.Kubernetes, prefix+"pod"

	missing, err := kube.Get(ctx, key, kubernetes.GetOptions{})
	check(t, err)
	equal(t, "a missing key has no value", missing.KV == nil, true)
	created, err := kube.OptimisticPut(ctx, key, []byte("one"), 0, kubernetes.PutOptions{})
	check(t, err)
	equal(t, "created", created.Succeeded, true)
	refused, err := kube.OptimisticPut(ctx, key, []byte("two"), 0, kubernetes.PutOptions{GetOnFailure: true})
	check(t, err)
	equal(t, "created twice", refused.Succeeded, false)
	equal(t, "value in the way", string(refused.KV.Value), "one")
	equal(t, "revision in the way", refused.KV.ModRevision, created.Revision)
	updated, err := kube.OptimisticPut(ctx, key, []byte("two"), created.Revision, kubernetes.PutOptions{})
	check(t, err)
	equal(t, "updated", updated.Succeeded, true)
	old, err := kube.Get(ctx, key, kubernetes.GetOptions{Revision: created.Revision})
	check(t, err)
	equal(t, "old value", string(old.KV.Value), "one")
	equal(t, "revision of an old read", old.Revision, updated.Revision)

	kept, err := kube.OptimisticDelete(ctx, key, created.Revision, kubernetes.DeleteOptions{GetOnFailure: true})
	check(t, err)
	equal(t, "deleted at an old revision", kept.Succeeded, false)
	equal(t, "value kept", string(kept.KV.Value), "two")
	deleted, err := kube.OptimisticDelete(ctx, key, updated.Revision, kubernetes.DeleteOptions{})
	check(t, err)
	equal(t, "deleted", deleted.Succeeded, true)
	count, err := kube.Count(ctx, prefix, kubernetes.CountOptions{})
	check(t, err)
	equal(t, "count", count, 0)
}

// A list in pages, all at the revision of the first one, while writers go on. Its count is what is left from the
// continue key on, whatever the limit; and a watch from the next revision completes it exactly.
func TestKubernetesListThenWatch(t *testing.T) {
	const objects, page, writers, writes = 57, 10, 4, 30
	ctx, client, prefix := startKubernetes(t)
	kube := client.Kubernetes
	for i := range objects {
		put(t, ctx, client.KV, fmt.Sprintf("%s%03d", prefix, i), "0")
	}
	var group sync.WaitGroup
	failures := make(chan error, writers)
	release := make(chan struct{})
	for writer := range writers {
		group.Add(1)
		go func() {
			defer group.Done()
			<-release
			failures <- churn(ctx, client, prefix, writer, writers, writes)
		}()
	}

	state := map[string]int64{}
	var revision int64
	next := ""
	for seen := 0; ; {
		list, err := kube.List(ctx, prefix, kubernetes.ListOptions{Revision: revision, Limit: page, Continue: next})
		check(t, err)
		equal(t, "count from the continue key on", list.Count, int64(objects-seen))
		if revision == 0 {
			revision = list.Revision
			close(release)
		}
		for _, kv := range list.Kvs {
			equal(t, "key", string(kv.Key), fmt.Sprintf("%s%03d", prefix, seen))
			state[string(kv.Key)] = kv.ModRevision
			seen++
		}
		if seen == objects {
			break
		}
		next = string(list.Kvs[len(list.Kvs)-1].Key) + "\x00"
	}

	watch := client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(),
		clientv3.WithRev(revision+1), clientv3.WithPrevKV(), clientv3.WithProgressNotify())
	// Puts of each writer, and a delete of a key for every third of them.
	total := writers * (writes + (writes+2)/3)
	last := revision
	for _, event := range collect(t, ctx, watch, total) {
		if event.Kv.ModRevision <= last {
			t.Fatalf("event at %d behind one at %d", event.Kv.ModRevision, last)
		}
		last = event.Kv.ModRevision
		key := string(event.Kv.Key)
		var previous int64
		if event.PrevKv != nil {
			previous = event.PrevKv.ModRevision
		}
		equal(t, "previous revision of "+key, previous, state[key])
		if event.Type == clientv3.EventTypeDelete {
			delete(state, key)
		} else {
			state[key] = event.Kv.ModRevision
		}
	}
	group.Wait()
	close(failures)
	for err := range failures {
		check(t, err)
	}
	got, err := client.KV.Get(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	equal(t, "keys", int64(len(state)), got.Count)
	for _, kv := range got.Kvs {
		equal(t, "revision of "+string(kv.Key), state[string(kv.Key)], kv.ModRevision)
	}
}

// churn puts and deletes keys that no other writer touches, so that every delete deletes.
func churn(ctx context.Context, client *kubernetes.Client, prefix string, writer, writers, writes int) error {
	for i := range writes {
		key := fmt.Sprintf("%s%03d", prefix, writer+writers*(i%12))
		if _, err := client.Put(ctx, key, fmt.Sprint(i)); err != nil {
			return err
		}
		if i%3 == 0 {
			if _, err := client.Delete(ctx, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// The apiserver's compactor: one writer wins the txn on the version of a key, then it compacts.
func TestKubernetesCompactor(t *testing.T) {
	ctx, client, prefix := startKubernetes(t)
	key := prefix + "compact_rev_key"
	first := put(t, ctx, client.KV, prefix+"a", "1")
	put(t, ctx, client.KV, prefix+"a", "2")
	claim := func(version int64) *clientv3.TxnResponse {
		response, err := client.KV.Txn(ctx).
			If(clientv3.Compare(clientv3.Version(key), "=", version)).
			Then(clientv3.OpPut(key, "x")).Else(clientv3.OpGet(key)).Commit()
		check(t, err)
		return response
	}
	won := claim(0)
	equal(t, "first claim", won.Succeeded, true)
	lost := claim(0)
	equal(t, "second claim", lost.Succeeded, false)
	equal(t, "version", lost.Responses[0].GetResponseRange().Kvs[0].Version, 1)
	_, err := client.Compact(ctx, won.Header.Revision)
	check(t, err)
	_, err = client.Kubernetes.List(ctx, prefix, kubernetes.ListOptions{Revision: first, Limit: 1})
	checkError(t, err, rpctypes.ErrCompacted)
}
