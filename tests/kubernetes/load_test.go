package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// written is a write that was acknowledged: the object and its version from then on.
type written struct {
	name    string
	version int64
}

// load writes objects of one resource through several API servers. Each object has one writer, which therefore knows
// what it must find: what was acknowledged, or, after an error that leaves it open, that or the write itself.
type load struct {
	servers  []*apiServer
	resource schema.GroupVersionResource
	pause    time.Duration // of each writer between two writes

	cancel context.CancelFunc
	done   sync.WaitGroup

	mutex        sync.Mutex
	acknowledged []written
	final        map[string]int64 // what is left when it has stopped: name and version
	problems     []string
	slowest      time.Duration
	inDoubt      atomic.Int64 // writes that ended with an error
	failures     map[string]int
	steps        []atomic.Int64 // of each writer: writes that are settled
}

// startLoad begins to write with that many writers, each of whom owns that many objects named after it.
func startLoad(t testing.TB, servers []*apiServer, resource schema.GroupVersionResource, name string, writers, objects int, pause time.Duration) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{servers: servers, resource: resource, pause: pause, cancel: cancel,
		failures: map[string]int{}, final: map[string]int64{}, steps: make([]atomic.Int64, writers)}
	for writer := range writers {
		l.done.Add(1)
		go func() {
			defer l.done.Done()
			w := &author{load: l, server: servers[writer%len(servers)], last: make([]*unstructured.Unstructured, objects)}
			for ctx.Err() == nil {
				i := rand.IntN(objects)
				w.step(i, fmt.Sprintf("%s-%d-%d", name, writer, i))
				l.steps[writer].Add(1)
				time.Sleep(pause)
			}
			w.leave()
		}()
	}
	t.Cleanup(func() {
		cancel()
		l.done.Wait()
	})
	return l
}

// stop ends it when the writes that are under way are settled, and fails the test if one went wrong.
func (l *load) stop(t testing.TB) {
	t.Helper()
	l.cancel()
	l.done.Wait()
	if len(l.problems) > 0 {
		t.Fatalf("%d writes went wrong, the first: %s", len(l.problems), l.problems[0])
	}
	if len(l.acknowledged) == 0 {
		t.Fatal("nothing was written")
	}
}

func (l *load) String() string {
	return fmt.Sprintf("%d writes acknowledged, %d open, slowest %v, errors %v",
		len(l.acknowledged), l.inDoubt.Load(), l.slowest.Round(time.Millisecond), l.failures)
}

// author owns objects and knows each as it was acknowledged, nil when it is gone.
type author struct {
	load   *load
	server *apiServer
	last   []*unstructured.Unstructured
}

// step makes the object if it is gone, and otherwise changes it or, now and then, deletes it.
func (w *author) step(i int, name string) {
	l := w.load
	started := time.Now()
	was := w.last[i]
	remove := was != nil && rand.IntN(10) == 0
	var wanted int64 = 1
	if was != nil {
		wanted = count(was) + 1
	}
	bytes := objectBytes()
	for attempt := 0; ; attempt++ {
		result, err := w.try(name, w.last[i], wanted, bytes, remove)
		if err == nil {
			l.note(name, started, result)
			w.last[i] = result
			return
		}
		l.failed(err)
		found := w.find(name)
		switch {
		case remove && found == nil, !remove && found != nil && count(found) == wanted:
			// It was done all the same. The version of a delete is not known then.
			l.note(name, started, found)
			w.last[i] = found
			return
		case (found == nil) != (was == nil), found != nil && count(found) != count(was), found != nil && version(found) != version(was):
			l.problem(fmt.Sprintf("%s is %v, but was acknowledged as %v, and then %v", name, describe(found), describe(was), err))
			w.last[i] = found
			return
		case attempt == 0 && (apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err)):
			// A later attempt may be refused because an earlier one comes through while it is under way.
			l.problem(fmt.Sprintf("%s was refused although it is as it was acknowledged (%v): %v", name, describe(was), err))
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (w *author) try(name string, was *unstructured.Unstructured, wanted int64, bytes int, remove bool) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	client := w.server.in(w.load.resource)
	if was == nil {
		return client.Create(ctx, object(w.load.resource, name, wanted, bytes), meta.CreateOptions{})
	}
	if remove {
		uid, version := was.GetUID(), was.GetResourceVersion()
		return nil, client.Delete(ctx, name, meta.DeleteOptions{Preconditions: &meta.Preconditions{UID: &uid, ResourceVersion: &version}})
	}
	changed := object(w.load.resource, name, wanted, bytes)
	changed.SetResourceVersion(was.GetResourceVersion())
	return client.Update(ctx, changed, meta.UpdateOptions{})
}

// find reads the object until there is an answer.
func (w *author) find(name string) *unstructured.Unstructured {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		found, err := w.server.in(w.load.resource).Get(ctx, name, meta.GetOptions{})
		cancel()
		if err == nil {
			return found
		}
		if isGone(err) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// leave notes what the objects were at the end.
func (w *author) leave() {
	w.load.mutex.Lock()
	defer w.load.mutex.Unlock()
	for _, o := range w.last {
		if o != nil {
			w.load.final[o.GetName()] = version(o)
		}
	}
}

// awaitAll waits until every writer has settled a write that it began from now on, and gives how long that took.
func (l *load) awaitAll(t testing.TB) time.Duration {
	t.Helper()
	started := time.Now()
	for writer := range l.steps {
		step := &l.steps[writer]
		from := step.Load()
		eventually(t, time.Minute, func() (string, bool) {
			return fmt.Sprintf("writer %d of %s goes on", writer, l.resource.Resource), step.Load() >= from+2
		})
	}
	return time.Since(started)
}

// counted gives the numbers of acknowledged writes and of errors so far.
func (l *load) counted() (acknowledged int, errors int64) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return len(l.acknowledged), l.inDoubt.Load()
}

func (l *load) note(name string, started time.Time, result *unstructured.Unstructured) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.slowest = max(l.slowest, time.Since(started))
	if result != nil {
		l.acknowledged = append(l.acknowledged, written{name, version(result)})
	}
}

func (l *load) failed(err error) {
	l.inDoubt.Add(1)
	text := err.Error()
	if errors.Is(err, context.DeadlineExceeded) {
		text = "the client's deadline"
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.failures[text]++
}

func (l *load) problem(text string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.problems = append(l.problems, text)
}

func describe(o *unstructured.Unstructured) string {
	if o == nil {
		return "gone"
	}
	return fmt.Sprintf("count %d at version %s", count(o), o.GetResourceVersion())
}
