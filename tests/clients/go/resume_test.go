package clients

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Connections are cut again and again while a writer writes. The client resumes by itself behind the last revision
// it saw, and its watchers get every event once and in order, whatever was under way when the connection broke.
func TestWatchResumesAcrossCuts(t *testing.T) {
	const writes, cuts = 400, 8
	ctx, writer, prefix := start(t)
	between := startProxy(t)
	watcher := connectTo(t, between.address())
	base := put(t, ctx, writer, prefix, "")

	all := watcher.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(base+1), clientv3.WithPrevKV())
	one := watcher.Watch(ctx, prefix+"3", clientv3.WithRev(base+1))
	// The client opens one gRPC stream per set of metadata: requiring a leader gives this watch a stream of its own.
	fragmented := watcher.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(base+1), clientv3.WithFragment())

	failure := make(chan error, 1)
	go func() { failure <- writePairs(ctx, writer, prefix, writes) }()
	closed := make(chan int, 1)
	go func() {
		count := 0
		for range cuts {
			time.Sleep(60 * time.Millisecond)
			count += between.cut()
		}
		closed <- count
	}()

	checkPairs(t, ctx, "all", all, prefix, base, writes)
	checkPairs(t, ctx, "fragmented", fragmented, prefix, base, writes)
	for i, event := range collect(t, ctx, one, writes/5) {
		equal(t, "event of one key", render(prefix, event), fmt.Sprintf("+3=%d", i*5+3))
	}
	check(t, <-failure)
	if count := <-closed; count < cuts {
		t.Fatalf("only %d connections were cut: this tested nothing", count)
	}

	// And the streams still work after the last cut.
	put(t, ctx, writer, prefix+"last", "1")
	equal(t, "last event", history(prefix, collect(t, ctx, all, 1)), "+last=1")
}

// writePairs writes in each of count revisions the keys i%5 and "twin" by one txn.
func writePairs(ctx context.Context, client *clientv3.Client, prefix string, count int) error {
	for i := range count {
		if _, err := client.Txn(ctx).Then(
			clientv3.OpPut(fmt.Sprint(prefix, i%5), fmt.Sprint(i)),
			clientv3.OpPut(prefix+"twin", fmt.Sprint(i)),
		).Commit(); err != nil {
			return fmt.Errorf("write %d: %w", i, err)
		}
	}
	return nil
}

func checkPairs(t *testing.T, ctx context.Context, name string, watch clientv3.WatchChan, prefix string, base int64, count int) {
	t.Helper()
	last := base
	for i, event := range collect(t, ctx, watch, 2*count) {
		want := fmt.Sprintf("+%d=%d", i/2%5, i/2)
		if i%2 == 1 {
			want = fmt.Sprintf("+twin=%d", i/2)
		}
		equal(t, fmt.Sprintf("%s: event %d", name, i), render(prefix, event), want)
		// Another test's lease may expire meanwhile and take a revision, so that they grow by more than one.
		if i%2 == 0 && event.Kv.ModRevision <= last {
			t.Fatalf("%s: event %d has revision %d after %d", name, i, event.Kv.ModRevision, last)
		}
		if i%2 == 1 {
			equal(t, fmt.Sprintf("%s: revision of event %d and its pair", name, i), event.Kv.ModRevision, last)
		}
		last = event.Kv.ModRevision
	}
}

// A watch that was created, saw nothing and lost its connection must not miss what is written meanwhile: the
// client resumes from the header revision of the answer that created it.
func TestIdleWatchResumesWhereItWasCreated(t *testing.T) {
	ctx, writer, prefix := start(t)
	between := startProxy(t)
	watcher := connectTo(t, between.address())
	watch := watcher.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	equal(t, "created", receiveAny(t, ctx, watch).Created, true)
	between.cut()
	putMany(t, ctx, writer, prefix, "a", "b")
	between.cut()
	putMany(t, ctx, writer, prefix, "c")
	equal(t, "events", history(prefix, collect(t, ctx, watch, 3)), "+a=a +b=b +c=c")
}

func TestLeaseOutlivesCuts(t *testing.T) {
	ctx, direct, prefix := start(t)
	between := startProxy(t)
	client := connectTo(t, between.address())
	lease, err := client.Grant(ctx, 4)
	check(t, err)
	alive, err := client.KeepAlive(ctx, lease.ID)
	check(t, err)
	put(t, ctx, client, prefix+"key", "", clientv3.WithLease(lease.ID))
	go func() {
		for range alive {
		}
	}()
	for range 6 {
		time.Sleep(time.Second)
		between.cut()
	}
	got, err := direct.Get(ctx, prefix+"key")
	check(t, err)
	equal(t, "keys kept past the first TTL", got.Count, 1)
}
