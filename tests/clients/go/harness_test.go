package clients

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// testTimeout bounds every single test, so that a server that does not answer fails it rather than hangs it.
const testTimeout = 30 * time.Second

const endpointsVariable = "TAILWATER_ENDPOINTS"

func TestMain(m *testing.M) {
	if os.Getenv(endpointsVariable) == "" {
		fmt.Fprintf(os.Stderr, "%s is not set: start a server and name its client address, for example\n"+
			"  %s=127.0.0.1:2379 go test -count=1 ./...\n", endpointsVariable, endpointsVariable)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func endpoints() []string {
	return strings.Split(os.Getenv(endpointsVariable), ",")
}

// connect gives a client of the server under test that is closed when the test ends.
func connect(t testing.TB) *clientv3.Client {
	t.Helper()
	return connectTo(t, endpoints()...)
}

func connectTo(t testing.TB, targets ...string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   targets,
		DialTimeout: 5 * time.Second,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		t.Fatalf("cannot connect to %v: %v", targets, err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// start gives what nearly every test begins with: a context with a deadline, a client, and a prefix nobody else uses.
func start(t *testing.T) (context.Context, *clientv3.Client, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx, connect(t), newPrefix(t)
}

func newPrefix(t testing.TB) string {
	t.Helper()
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		t.Fatalf("no randomness: %v", err)
	}
	return t.Name() + "/" + hex.EncodeToString(id[:]) + "/"
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
}

func checkError(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("error is %v (%T), want %v", got, got, want)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s is %v, want %v", what, got, want)
	}
}

// put writes a key and gives the revision of that write.
func put(t testing.TB, ctx context.Context, kv clientv3.KV, key, value string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	response, err := kv.Put(ctx, key, value, opts...)
	check(t, err)
	return response.Header.Revision
}

// putMany writes prefix+suffix = suffix for each suffix and gives the revision of the last write.
func putMany(t testing.TB, ctx context.Context, kv clientv3.KV, prefix string, suffixes ...string) int64 {
	t.Helper()
	var revision int64
	for _, suffix := range suffixes {
		revision = put(t, ctx, kv, prefix+suffix, suffix)
	}
	return revision
}

// keys renders the keys of a response without the test's prefix: "a b c".
func keys(prefix string, kvs []*mvccpb.KeyValue) string {
	names := make([]string, len(kvs))
	for i, kv := range kvs {
		names[i] = strings.TrimPrefix(string(kv.Key), prefix)
	}
	return strings.Join(names, " ")
}

// render writes an event as "+key=value" or "-key", without the test's prefix.
func render(prefix string, event *clientv3.Event) string {
	key := strings.TrimPrefix(string(event.Kv.Key), prefix)
	if event.Type == clientv3.EventTypeDelete {
		return "-" + key
	}
	return "+" + key + "=" + string(event.Kv.Value)
}

// receive gives the next response of a watch that carries events, a cancel or an error; progress is passed over.
func receive(t testing.TB, ctx context.Context, watch clientv3.WatchChan) clientv3.WatchResponse {
	t.Helper()
	for {
		response := receiveAny(t, ctx, watch)
		if len(response.Events) > 0 || response.Canceled {
			return response
		}
	}
}

func receiveAny(t testing.TB, ctx context.Context, watch clientv3.WatchChan) clientv3.WatchResponse {
	t.Helper()
	select {
	case response, open := <-watch:
		if !open {
			t.Fatal("the watch ended")
		}
		return response
	case <-ctx.Done():
		t.Fatalf("the watch stays silent: %v", ctx.Err())
	}
	panic("unreachable: Fatal does not return")
}

// collect reads events until it has count of them and fails on a cancel.
func collect(t testing.TB, ctx context.Context, watch clientv3.WatchChan, count int) []*clientv3.Event {
	t.Helper()
	var events []*clientv3.Event
	for len(events) < count {
		response := receive(t, ctx, watch)
		check(t, response.Err())
		events = append(events, response.Events...)
	}
	if len(events) != count {
		t.Fatalf("got %d events, want %d", len(events), count)
	}
	return events
}

// history renders events joined by blanks.
func history(prefix string, events []*clientv3.Event) string {
	texts := make([]string, len(events))
	for i, event := range events {
		texts[i] = render(prefix, event)
	}
	return strings.Join(texts, " ")
}

// proxy forwards TCP connections to the server under test and can cut all of them at once.
type proxy struct {
	listener net.Listener
	target   string

	mutex sync.Mutex
	open  map[net.Conn]struct{}
}

func startProxy(t testing.TB) *proxy {
	t.Helper()
	target := endpoints()[0]
	if parsed, err := url.Parse(target); err == nil && parsed.Host != "" {
		target = parsed.Host
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	p := &proxy{listener: listener, target: target, open: map[net.Conn]struct{}{}}
	go p.accept()
	t.Cleanup(func() {
		listener.Close()
		p.cut()
	})
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

// cut breaks every open connection and gives how many ends it closed.
func (p *proxy) cut() int {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	count := len(p.open)
	for connection := range p.open {
		connection.Close()
	}
	clear(p.open)
	return count
}

func (p *proxy) accept() {
	for {
		inner, err := p.listener.Accept()
		if err != nil {
			return
		}
		outer, err := net.Dial("tcp", p.target)
		if err != nil {
			inner.Close()
			continue
		}
		p.mutex.Lock()
		p.open[inner], p.open[outer] = struct{}{}, struct{}{}
		p.mutex.Unlock()
		go p.pump(inner, outer)
		go p.pump(outer, inner)
	}
}

func (p *proxy) pump(to, from net.Conn) {
	// The error only says that the connection ended, which is what a cut looks like.
	_, _ = io.Copy(to, from)
	to.Close()
	from.Close()
	p.mutex.Lock()
	delete(p.open, to)
	delete(p.open, from)
	p.mutex.Unlock()
}
