package informer

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// The server is shared with other packages, so nothing is compacted here: the list at the end stands for one after that.
func TestTheCopyFollowsTheKeys(t *testing.T) {
	endpoints := os.Getenv("TAILWATER_ENDPOINTS")
	if endpoints == "" {
		t.Fatal("TAILWATER_ENDPOINTS names no server")
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: strings.Split(endpoints, ","), DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	prefix := fmt.Sprintf("informer-%d/", time.Now().UnixNano())
	put := func(name, value string) {
		t.Helper()
		if _, err := client.Put(ctx, prefix+name, value); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 2*pageSize + 10 {
		put(fmt.Sprintf("%04d", n), "listed")
	}

	told := map[string]string{}
	copied := &Informer{Client: client, Prefix: prefix, Changed: func(was, now *mvccpb.KeyValue) {
		if now == nil {
			delete(told, string(was.Key))
		} else {
			told[string(now.Key)] = string(now.Value)
		}
	}}
	running, stop := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- copied.Run(running) }()
	consistent := func() {
		t.Helper()
		if err := copied.Consistent(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for copied.Revision() == 0 {
		time.Sleep(time.Millisecond)
	}
	consistent()
	if n := len(copied.Keys()); n != 2*pageSize+10 {
		t.Fatalf("the list has %d keys", n)
	}
	put("0003", "watched")
	put("new", "watched")
	if _, err := client.Delete(ctx, prefix+"0004"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(ctx, "elsewhere", ""); err != nil {
		t.Fatal(err)
	}
	consistent()
	for name, want := range map[string]string{"0003": "watched", "new": "watched", "0005": "listed"} {
		if kv := copied.Get(prefix + name); kv == nil || string(kv.Value) != want {
			t.Errorf("%s is %v, not %s", name, kv, want)
		}
	}
	if kv := copied.Get(prefix + "0004"); kv != nil {
		t.Errorf("a deleted key is %v", kv)
	}

	// A list tells the difference, as after a compaction.
	stop()
	if err := <-done; err != context.Canceled {
		t.Errorf("it ended with %v", err)
	}
	put("0003", "missed")
	if _, err := client.Delete(ctx, prefix+"new"); err != nil {
		t.Fatal(err)
	}
	if err := copied.list(ctx); err != nil {
		t.Fatal(err)
	}
	if _, isTold := told[prefix+"new"]; isTold || told[prefix+"0003"] != "missed" || len(told) != 2*pageSize+9 {
		t.Errorf("told of %d keys: new %q, 0003 %q", len(told), told[prefix+"new"], told[prefix+"0003"])
	}
}
