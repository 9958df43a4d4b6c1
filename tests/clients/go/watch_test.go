package clients

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// progressVariable says at which interval the server under test was told to notify idle watchers.
const progressVariable = "TAILWATER_WATCH_PROGRESS_INTERVAL"

func TestWatchSeesWritesInOrder(t *testing.T) {
	ctx, client, prefix := start(t)
	base := put(t, ctx, client, prefix+"outside", "")
	watch := client.Watch(ctx, prefix+"in/", clientv3.WithPrefix(), clientv3.WithRev(base+1))
	put(t, ctx, client, prefix+"in/a", "1")
	put(t, ctx, client, prefix+"in/a", "2")
	put(t, ctx, client, prefix+"out", "3")
	_, err := client.Delete(ctx, prefix+"in/a")
	check(t, err)
	put(t, ctx, client, prefix+"in/b", "4")

	events := collect(t, ctx, watch, 4)
	equal(t, "events", history(prefix+"in/", events), "+a=1 +a=2 -a +b=4")
	for i, offset := range []int64{1, 2, 4, 5} {
		equal(t, "mod revision", events[i].Kv.ModRevision, base+offset)
	}
	equal(t, "creates", fmt.Sprint(events[0].IsCreate(), events[1].IsModify(), events[3].IsCreate()), "true true true")
	equal(t, "version of a tombstone", events[2].Kv.Version, 0)
}

func TestTxnArrivesInOneResponse(t *testing.T) {
	ctx, client, prefix := start(t)
	base := put(t, ctx, client, prefix+"a", "0")
	watch := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(base+1))
	_, err := client.Txn(ctx).Then(
		clientv3.OpPut(prefix+"c", "1"), clientv3.OpDelete(prefix+"a"), clientv3.OpPut(prefix+"b", "2")).Commit()
	check(t, err)
	response := receive(t, ctx, watch)
	check(t, response.Err())
	equal(t, "events", history(prefix, response.Events), "+c=1 -a +b=2")
	for _, event := range response.Events {
		equal(t, "mod revision", event.Kv.ModRevision, base+1)
	}
}

func TestWatchWithPrevKV(t *testing.T) {
	ctx, client, prefix := start(t)
	first := put(t, ctx, client, prefix+"a", "1")
	put(t, ctx, client, prefix+"a", "2")
	_, err := client.Delete(ctx, prefix+"a")
	check(t, err)
	put(t, ctx, client, prefix+"a", "3")
	events := collect(t, ctx, client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithPrevKV()), 4)
	var previous []string
	for _, event := range events {
		if event.PrevKv == nil {
			previous = append(previous, "none")
		} else {
			previous = append(previous, fmt.Sprintf("%s@%d", event.PrevKv.Value, event.PrevKv.ModRevision-first))
		}
	}
	equal(t, "previous values", strings.Join(previous, " "), "none 1@0 2@1 none")
}

func TestWatchFilters(t *testing.T) {
	ctx, client, prefix := start(t)
	first := put(t, ctx, client, prefix+"a", "1")
	_, err := client.Delete(ctx, prefix+"a")
	check(t, err)
	put(t, ctx, client, prefix+"a", "2")
	_, err = client.Delete(ctx, prefix+"a")
	check(t, err)
	puts := client.Watch(ctx, prefix+"a", clientv3.WithRev(first), clientv3.WithFilterDelete())
	deletes := client.Watch(ctx, prefix+"a", clientv3.WithRev(first), clientv3.WithFilterPut())
	equal(t, "puts", history(prefix, collect(t, ctx, puts, 2)), "+a=1 +a=2")
	equal(t, "deletes", history(prefix, collect(t, ctx, deletes, 2)), "-a -a")
}

func TestWatchRanges(t *testing.T) {
	ctx, client, prefix := start(t)
	base := put(t, ctx, client, prefix, "")
	one := client.Watch(ctx, prefix+"b", clientv3.WithRev(base+1))
	middle := client.Watch(ctx, prefix+"b", clientv3.WithRange(prefix+"d"), clientv3.WithRev(base+1))
	from := client.Watch(ctx, prefix+"c", clientv3.WithFromKey(), clientv3.WithRev(base+1))
	putMany(t, ctx, client, prefix, "a", "b", "bb", "c", "d")
	equal(t, "one key", history(prefix, collect(t, ctx, one, 1)), "+b=b")
	equal(t, "range", history(prefix, collect(t, ctx, middle, 3)), "+b=b +bb=bb +c=c")
	equal(t, "from key", history(prefix, collect(t, ctx, from, 2)), "+c=c +d=d")
}

func TestWatchersShareAStream(t *testing.T) {
	const watchers, writes = 50, 40
	ctx, client, prefix := start(t)
	base := put(t, ctx, client, prefix, "")
	watches := make([]clientv3.WatchChan, watchers)
	for i := range watches {
		// Every other watcher sees everything; the rest see one key of ten.
		if i%2 == 0 {
			watches[i] = client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(base+1))
		} else {
			watches[i] = client.Watch(ctx, fmt.Sprint(prefix, i%10), clientv3.WithRev(base+1))
		}
	}
	var all []string
	byKey := map[int][]string{}
	for i := range writes {
		put(t, ctx, client, fmt.Sprint(prefix, i%10), fmt.Sprint(i))
		text := fmt.Sprintf("+%d=%d", i%10, i)
		all = append(all, text)
		byKey[i%10] = append(byKey[i%10], text)
	}
	for i, watch := range watches {
		want := all
		if i%2 == 1 {
			want = byKey[i%10]
		}
		equal(t, fmt.Sprint("history of watcher ", i), history(prefix, collect(t, ctx, watch, len(want))), strings.Join(want, " "))
	}
}

func TestWatchFromTheFuture(t *testing.T) {
	ctx, client, prefix := start(t)
	base := put(t, ctx, client, prefix+"a", "0")
	watch := client.Watch(ctx, prefix+"a", clientv3.WithRev(base+3), clientv3.WithCreatedNotify())
	equal(t, "created", receiveAny(t, ctx, watch).Created, true)
	for i := 1; i <= 4; i++ {
		put(t, ctx, client, prefix+"a", fmt.Sprint(i))
	}
	equal(t, "events", history(prefix, collect(t, ctx, watch, 2)), "+a=3 +a=4")
}

func TestWatchBelowACompactionIsCancelled(t *testing.T) {
	ctx, client, prefix := start(t)
	first := put(t, ctx, client, prefix+"a", "1")
	put(t, ctx, client, prefix+"a", "2")
	compacted := put(t, ctx, client, prefix+"a", "3")
	_, err := client.Compact(ctx, compacted)
	check(t, err)

	watch := client.Watch(ctx, prefix+"a", clientv3.WithRev(first))
	response := receive(t, ctx, watch)
	checkError(t, response.Err(), rpctypes.ErrCompacted)
	equal(t, "compact revision", response.CompactRevision, compacted)
	equal(t, "cancelled", response.Canceled, true)
	if _, open := <-watch; open {
		t.Fatal("the channel stays open after a cancel")
	}

	at := client.Watch(ctx, prefix+"a", clientv3.WithRev(compacted))
	equal(t, "a watch at the compacted revision", history(prefix, collect(t, ctx, at, 1)), "+a=3")
}

func TestRequestedProgress(t *testing.T) {
	ctx, client, prefix := start(t)
	watch := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	equal(t, "created", receiveAny(t, ctx, watch).Created, true)
	written := put(t, ctx, client, prefix+"a", "1")
	equal(t, "event", history(prefix, collect(t, ctx, watch, 1)), "+a=1")
	outside := put(t, ctx, client, newPrefix(t), "")
	equal(t, "revision", outside, written+1)

	// etcd answers nothing while a watcher is behind, so the request is repeated until it is answered.
	for {
		check(t, client.RequestProgress(ctx))
		select {
		case response := <-watch:
			check(t, response.Err())
			equal(t, "progress", response.IsProgressNotify(), true)
			if response.Header.Revision < written {
				t.Fatalf("progress goes back to %d, an event at %d was delivered", response.Header.Revision, written)
			}
			if response.Header.Revision >= outside {
				return
			}
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("no progress")
		}
	}
}

func TestPeriodicProgress(t *testing.T) {
	text := os.Getenv(progressVariable)
	if text == "" {
		t.Skipf("%s is not set; start the server with --watch-progress-notify-interval and set it to the same", progressVariable)
	}
	interval, err := time.ParseDuration(text)
	check(t, err)
	ctx, client, prefix := start(t)
	ctx, cancel := context.WithTimeout(ctx, 5*interval+5*time.Second)
	defer cancel()
	watch := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithProgressNotify())
	revision := put(t, ctx, client, newPrefix(t), "")
	for {
		response := receiveAny(t, ctx, watch)
		check(t, response.Err())
		equal(t, "progress", response.IsProgressNotify(), true)
		if response.Header.Revision >= revision {
			return
		}
	}
}

func TestFragmentedWatch(t *testing.T) {
	const count, size = 20, 256 << 10
	ctx, client, prefix := start(t)
	value := strings.Repeat("v", size)
	first := put(t, ctx, client, prefix+"00", value)
	for i := 1; i < count; i++ {
		put(t, ctx, client, fmt.Sprintf("%s%02d", prefix, i), value)
	}
	watch := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithFragment())
	for i, event := range collect(t, ctx, watch, count) {
		equal(t, "key", string(event.Kv.Key), fmt.Sprintf("%s%02d", prefix, i))
		equal(t, "value bytes", len(event.Kv.Value), size)
	}
}

func TestCancelledWatchLeavesOthersAlone(t *testing.T) {
	ctx, client, prefix := start(t)
	cancelled, cancel := context.WithCancel(ctx)
	first := client.Watch(cancelled, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	second := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	equal(t, "created", receiveAny(t, ctx, first).Created, true)
	equal(t, "created", receiveAny(t, ctx, second).Created, true)
	cancel()
	for range first {
	}
	put(t, ctx, client, prefix+"a", "1")
	equal(t, "events", history(prefix, collect(t, ctx, second, 1)), "+a=1")
}
