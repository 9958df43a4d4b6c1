package kubernetes

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/retry"
)

// TestSmoke is what one API server does with a quiet store: each kind of request, and the features that depend on the
// store's promises (consistent lists from the cache, lists that come as a watch, exact lists, TTL).
func TestSmoke(t *testing.T) {
	s := startStore(t, 3, 2)
	api := startAPIServer(t, "api", s.endpoints(), "--event-ttl=5s")
	widgets := define(t, api, "widgets")
	for _, part := range []struct {
		name string
		run  func(*testing.T, *store, *apiServer, schema.GroupVersionResource)
	}{
		{"health", testHealth},
		{"objects", testObjects},
		{"updates under conflict", testConflicts},
		{"finalizers", testFinalizers},
		{"lists in pages", testPages},
		{"lists at an exact version", testExact},
		{"consistent lists from the cache", testConsistent},
		{"a list that comes as a watch", testWatchList},
		{"informers", testInformer},
		{"events with a TTL", testEvents},
		{"leases", testLeases},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, s, api, widgets) })
	}
}

// within gives every part a deadline, so that what does not answer fails it.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func testHealth(t *testing.T, _ *store, api *apiServer, _ schema.GroupVersionResource) {
	for _, path := range []string{"/readyz", "/healthz", "/livez", "/livez/etcd", "/readyz/etcd-readiness"} {
		_, err := api.get(path, 5*time.Second)
		check(t, err)
	}
}

func testObjects(t *testing.T, s *store, api *apiServer, widgets schema.GroupVersionResource) {
	ctx, client := within(t), api.in(widgets)
	created, err := client.Create(ctx, object(widgets, "one", 1, 2000), meta.CreateOptions{})
	check(t, err)
	equal(t, "version in the store", s.versions(t, prefix(widgets))["one"], version(created))
	_, err = client.Create(ctx, object(widgets, "one", 1, 10), meta.CreateOptions{})
	equal(t, "a second create is refused", apierrors.IsAlreadyExists(err), true)
	got, err := client.Get(ctx, "one", meta.GetOptions{})
	check(t, err)
	equal(t, "version of a get", version(got), version(created))

	patched, err := client.Patch(ctx, "one", types.MergePatchType, []byte(`{"spec":{"count":2}}`), meta.PatchOptions{})
	check(t, err)
	equal(t, "count after a merge patch", count(patched), 2)
	same, err := client.Patch(ctx, "one", types.MergePatchType, []byte(`{"spec":{"count":2}}`), meta.PatchOptions{})
	check(t, err)
	equal(t, "version after a patch that changes nothing", version(same), version(patched))
	patched, err = client.Patch(ctx, "one", types.JSONPatchType,
		[]byte(`[{"op":"replace","path":"/spec/count","value":3}]`), meta.PatchOptions{})
	check(t, err)
	equal(t, "count after a JSON patch", count(patched), 3)
	applied := object(widgets, "one", 4, 10)
	patched, err = client.Apply(ctx, "one", applied, meta.ApplyOptions{FieldManager: "test", Force: true})
	check(t, err)
	equal(t, "count after an apply", count(patched), 4)

	setCount(t, got, 9)
	_, err = client.Update(ctx, got, meta.UpdateOptions{})
	equal(t, "an update of an old version is refused", apierrors.IsConflict(err), true)
	old := got.GetResourceVersion()
	err = client.Delete(ctx, "one", meta.DeleteOptions{Preconditions: &meta.Preconditions{ResourceVersion: &old}})
	equal(t, "a delete of an old version is refused", apierrors.IsConflict(err), true)
	check(t, client.Delete(ctx, "one", meta.DeleteOptions{}))
	_, err = client.Get(ctx, "one", meta.GetOptions{})
	equal(t, "it is gone", isGone(err), true)
	list, err := client.List(ctx, meta.ListOptions{})
	check(t, err)
	equal(t, "objects that are left", len(list.Items), 0)
}

// Many clients increment one number, each by reading and writing it again when another was faster.
func testConflicts(t *testing.T, _ *store, api *apiServer, widgets schema.GroupVersionResource) {
	const clients, increments = 8, 25
	ctx, client := within(t), api.in(widgets)
	_, err := client.Create(ctx, object(widgets, "counter", 0, 100), meta.CreateOptions{})
	check(t, err)
	var group sync.WaitGroup
	failures := make(chan error, clients)
	backoff := retry.DefaultRetry
	backoff.Steps = 1000
	for range clients {
		group.Go(func() {
			for range increments {
				if err := retry.RetryOnConflict(backoff, func() error {
					o, err := client.Get(ctx, "counter", meta.GetOptions{})
					if err != nil {
						return err
					}
					if err := unstructured.SetNestedField(o.Object, count(o)+1, "spec", "count"); err != nil {
						return err
					}
					_, err = client.Update(ctx, o, meta.UpdateOptions{})
					return err
				}); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(failures)
	for err := range failures {
		check(t, err)
	}
	o, err := client.Get(ctx, "counter", meta.GetOptions{})
	check(t, err)
	equal(t, "count", count(o), int64(clients*increments))
	check(t, client.Delete(ctx, "counter", meta.DeleteOptions{}))
}

func testFinalizers(t *testing.T, _ *store, api *apiServer, widgets schema.GroupVersionResource) {
	ctx, client := within(t), api.in(widgets)
	o := object(widgets, "held", 1, 100)
	o.SetFinalizers([]string{group + "/test"})
	created, err := client.Create(ctx, o, meta.CreateOptions{})
	check(t, err)
	watcher, err := client.Watch(ctx, meta.ListOptions{ResourceVersion: created.GetResourceVersion()})
	check(t, err)
	defer watcher.Stop()
	check(t, client.Delete(ctx, "held", meta.DeleteOptions{}))
	held, err := client.Get(ctx, "held", meta.GetOptions{})
	check(t, err)
	equal(t, "marked as deleted", held.GetDeletionTimestamp() != nil, true)
	held.SetFinalizers(nil)
	_, err = client.Update(ctx, held, meta.UpdateOptions{})
	check(t, err)
	_, err = client.Get(ctx, "held", meta.GetOptions{})
	equal(t, "gone without its finalizer", isGone(err), true)

	marked := next(t, watcher, watch.Modified)
	equal(t, "version of the mark", version(marked), version(held))
	deleted := next(t, watcher, watch.Deleted)
	if version(deleted) <= version(marked) {
		t.Fatalf("deleted at %d, after %d", version(deleted), version(marked))
	}
}

// next gives the object of the next event, which must be of that type; bookmarks are passed over.
func next(t testing.TB, watcher watch.Interface, want watch.EventType) *unstructured.Unstructured {
	t.Helper()
	for {
		select {
		case event, open := <-watcher.ResultChan():
			if !open {
				t.Fatal("the watch ended")
			}
			if event.Type == watch.Bookmark && want != watch.Bookmark {
				continue
			}
			if event.Type != want {
				t.Fatalf("event %v, want %v: %v", event.Type, want, event.Object)
			}
			return event.Object.(*unstructured.Unstructured)
		case <-time.After(30 * time.Second):
			t.Fatalf("no event for 30 s, want %v", want)
		}
	}
}

func makeMany(t testing.TB, api *apiServer, resource schema.GroupVersionResource, name string, objects int) {
	t.Helper()
	var group sync.WaitGroup
	failures := make(chan error, objects)
	names := make(chan string)
	for range 16 {
		group.Go(func() {
			for name := range names {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				_, err := api.in(resource).Create(ctx, object(resource, name, 0, objectBytes()), meta.CreateOptions{})
				cancel()
				if err != nil {
					failures <- err
				}
			}
		})
	}
	for i := range objects {
		names <- fmt.Sprintf("%s-%05d", name, i)
	}
	close(names)
	group.Wait()
	close(failures)
	for err := range failures {
		check(t, err)
	}
}

// A list in pages is one list as of its first page, whatever is written between the pages.
func testPages(t *testing.T, s *store, api *apiServer, widgets schema.GroupVersionResource) {
	const objects, limit = 57, 10
	ctx, client := within(t), api.in(widgets)
	makeMany(t, api, widgets, "page", objects)
	// "0" takes the cache, which may be pages of a snapshot; "" must be as new as the store.
	for _, from := range []string{"", "0"} {
		want := s.versions(t, prefix(widgets))
		seen := 0
		all, err := pages(ctx, client, meta.ListOptions{Limit: limit, ResourceVersion: from}, func(page int) {
			name := fmt.Sprintf("page-%05d", 50+page)
			if page%2 == 0 {
				check(t, client.Delete(ctx, name, meta.DeleteOptions{}))
			}
			_, err := client.Patch(ctx, "page-00056", types.MergePatchType,
				fmt.Appendf(nil, `{"spec":{"count":%d}}`, page+seen+1000*len(from)), meta.PatchOptions{})
			check(t, err)
		})
		check(t, err)
		got := map[string]int64{}
		for i, page := range all {
			equal(t, "version of each page", page.GetResourceVersion(), all[0].GetResourceVersion())
			seen += len(page.Items)
			// With resourceVersion=0 a server may answer with all at once.
			if left := page.GetRemainingItemCount(); left != nil {
				equal(t, fmt.Sprintf("what is left after page %d", i), *left, int64(len(want)-seen))
			} else {
				equal(t, "the last page says that nothing is left", i, len(all)-1)
			}
			for _, o := range page.Items {
				got[o.GetName()] = version(&o)
			}
		}
		if from == "" {
			equal(t, "pages", len(all), (len(want)+limit-1)/limit)
		}
		if missing := difference(want, got); missing != "" {
			t.Fatalf("pages from version %q: %s", from, missing)
		}
		for page := 2; page <= len(all); page += 2 {
			o := object(widgets, fmt.Sprintf("page-%05d", 50+page), 0, 100)
			if _, err := client.Create(ctx, o, meta.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				t.Fatal(err)
			}
		}
	}
	check(t, client.DeleteCollection(ctx, meta.DeleteOptions{}, meta.ListOptions{}))
}

func testExact(t *testing.T, _ *store, api *apiServer, widgets schema.GroupVersionResource) {
	ctx, client := within(t), api.in(widgets)
	var lists []*unstructured.UnstructuredList
	for i := range 5 {
		_, err := client.Create(ctx, object(widgets, fmt.Sprintf("exact-%d", i), 0, 100), meta.CreateOptions{})
		check(t, err)
		list, err := client.List(ctx, meta.ListOptions{})
		check(t, err)
		equal(t, "objects", len(list.Items), i+1)
		lists = append(lists, list)
	}
	for _, limit := range []int64{0, 2} {
		for i, list := range lists {
			all, err := pages(ctx, client, meta.ListOptions{Limit: limit,
				ResourceVersion: list.GetResourceVersion(), ResourceVersionMatch: meta.ResourceVersionMatchExact}, nil)
			check(t, err)
			found := 0
			for _, page := range all {
				found += len(page.Items)
				equal(t, "version of an exact list", page.GetResourceVersion(), list.GetResourceVersion())
			}
			equal(t, "objects of an exact list", found, i+1)
		}
	}
	// Without a client, which would try again.
	_, err := api.get(fmt.Sprintf("/apis/%s/v1/namespaces/%s/widgets?resourceVersionMatch=Exact&resourceVersion=%d",
		group, namespace, version(&lists[4].Items[4])+1_000_000), 30*time.Second)
	if err == nil || !strings.Contains(err.Error(), "504") || !strings.Contains(err.Error(), "Too large resource version") {
		t.Fatalf("a list at a version of the future: %v", err)
	}
	check(t, client.DeleteCollection(ctx, meta.DeleteOptions{}, meta.ListOptions{}))
}

// A list without a version sees every write that was acknowledged before it, and is answered by the watch cache: the
// API server asks the store for its revision and, over the watch, for progress.
func testConsistent(t *testing.T, _ *store, api *apiServer, widgets schema.GroupVersionResource) {
	const rounds = 60
	ctx, client := within(t), api.in(widgets)
	label := `resource="widgets"`
	read := func(success, fallback string) float64 {
		return api.metric(t, "apiserver_watch_cache_consistent_read_total", label,
			`success="`+success+`"`, `fallback="`+fallback+`"`)
	}
	lists, bookmarks := read("true", "false"), api.metric(t, "etcd_bookmark_total", label)
	for i := range rounds {
		_, err := client.Create(ctx, object(widgets, fmt.Sprintf("fresh-%02d", i), 0, 100), meta.CreateOptions{})
		check(t, err)
		// What another resource writes moves the store's revision without an event of this one: only progress tells.
		_, err = api.in(leases).Create(ctx, lease(fmt.Sprintf("other-%02d", i)), meta.CreateOptions{})
		check(t, err)
		list, err := client.List(ctx, meta.ListOptions{})
		check(t, err)
		equal(t, "objects in the list", len(list.Items), i+1)
	}
	if done := read("true", "false") - lists; done < rounds {
		t.Fatalf("%v of %d consistent lists came from the cache", done, rounds)
	}
	equal(t, "consistent lists that fell back to the store", read("true", "true")+read("false", "true")+read("false", "false"), 0)
	progress := api.metric(t, "etcd_bookmark_total", label) - bookmarks
	if progress < rounds/2 {
		t.Fatalf("%v progress notifications for %d lists", progress, rounds)
	}
	t.Logf("%d consistent lists from the cache, %v progress notifications", rounds, progress)
	check(t, client.DeleteCollection(ctx, meta.DeleteOptions{}, meta.ListOptions{}))
	check(t, api.in(leases).DeleteCollection(ctx, meta.DeleteOptions{}, meta.ListOptions{}))
}

func testWatchList(t *testing.T, s *store, api *apiServer, widgets schema.GroupVersionResource) {
	const objects = 40
	ctx, client := within(t), api.in(widgets)
	makeMany(t, api, widgets, "listed", objects)
	yes := true
	watcher, err := client.Watch(ctx, meta.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true,
		ResourceVersionMatch: meta.ResourceVersionMatchNotOlderThan})
	check(t, err)
	defer watcher.Stop()
	got := map[string]int64{}
	for range objects {
		o := next(t, watcher, watch.Added)
		got[o.GetName()] = version(o)
	}
	if missing := difference(s.versions(t, prefix(widgets)), got); missing != "" {
		t.Fatal(missing)
	}
	bookmark := next(t, watcher, watch.Bookmark)
	equal(t, "the bookmark ends the list", bookmark.GetAnnotations()[meta.InitialEventsAnnotationKey], "true")
	changed, err := client.Patch(ctx, "listed-00007", types.MergePatchType, []byte(`{"spec":{"count":1}}`), meta.PatchOptions{})
	check(t, err)
	equal(t, "version of the event", version(next(t, watcher, watch.Modified)), version(changed))
	if version(bookmark) >= version(changed) {
		t.Fatalf("the bookmark at %d covers what came later, at %d", version(bookmark), version(changed))
	}
	check(t, client.DeleteCollection(ctx, meta.DeleteOptions{}, meta.ListOptions{}))
}

func testInformer(t *testing.T, s *store, api *apiServer, widgets schema.GroupVersionResource) {
	makeMany(t, api, widgets, "informed", 30)
	i := startInformer(t, api, widgets)
	i.awaitEqual(t, s.versions(t, prefix(widgets)))
	l := startLoad(t, []*apiServer{api}, widgets, "churn", 4, 10, 5*time.Millisecond)
	time.Sleep(2 * time.Second)
	l.stop(t)
	i.awaitEqual(t, s.versions(t, prefix(widgets)))
	if missing := i.unseen(l.acknowledged); len(missing) > 0 {
		t.Fatalf("the informer saw %d of %d writes not, the first is %v", len(missing), len(l.acknowledged), missing[0])
	}
	equal(t, "lists of the informer", i.lists.Load(), 1)
	equal(t, "errors", l.inDoubt.Load(), 0)
	check(t, api.in(widgets).DeleteCollection(within(t), meta.DeleteOptions{}, meta.ListOptions{}))
	i.awaitEqual(t, map[string]int64{})
}

// Events live as long as the store's lease that they are written with. Their end is an event of the watch.
func testEvents(t *testing.T, s *store, api *apiServer, _ schema.GroupVersionResource) {
	const objects, ttl = 20, 5 * time.Second
	ctx, client := within(t), api.in(events)
	first := time.Now()
	var from string
	for i := range objects {
		created, err := client.Create(ctx, event(fmt.Sprintf("event-%02d", i)), meta.CreateOptions{})
		check(t, err)
		if i == 0 {
			from = created.GetResourceVersion()
		}
	}
	last := time.Now()
	list, err := client.List(ctx, meta.ListOptions{})
	check(t, err)
	equal(t, "events", len(list.Items), objects)
	watcher, err := client.Watch(ctx, meta.ListOptions{ResourceVersion: from})
	check(t, err)
	defer watcher.Stop()
	for range objects - 1 {
		next(t, watcher, watch.Added)
	}
	for range objects {
		deleted := next(t, watcher, watch.Deleted)
		if age := time.Since(first); age < ttl {
			t.Fatalf("%s expired after %v at most", deleted.GetName(), age)
		}
	}
	// A lease is used again for a while, with the TTL counted from its grant and made longer for that.
	if age := time.Since(last); age > ttl+10*time.Second {
		t.Fatalf("the events expired after %v", age)
	}
	equal(t, "events in the store", len(s.versions(t, "/registry/events/")), 0)
}

func testLeases(t *testing.T, _ *store, api *apiServer, _ schema.GroupVersionResource) {
	ctx, client := within(t), api.in(leases)
	held, err := client.Create(ctx, lease("node"), meta.CreateOptions{})
	check(t, err)
	for i := range 20 {
		setHolder(t, held, fmt.Sprint(i))
		held, err = client.Update(ctx, held, meta.UpdateOptions{})
		check(t, err)
	}
	got, err := client.Get(ctx, "node", meta.GetOptions{})
	check(t, err)
	equal(t, "version", version(got), version(held))
	check(t, client.Delete(ctx, "node", meta.DeleteOptions{}))
}

func lease(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
		"metadata": map[string]any{"name": name, "namespace": namespace},
		"spec":     map[string]any{"holderIdentity": name, "leaseDurationSeconds": int64(40)},
	}}
}

func setHolder(t testing.TB, o *unstructured.Unstructured, holder string) {
	check(t, unstructured.SetNestedField(o.Object, holder, "spec", "holderIdentity"))
}

func event(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata":       map[string]any{"name": name, "namespace": namespace},
		"involvedObject": map[string]any{"kind": "Pod", "name": name, "namespace": namespace},
		"reason":         "Tested", "message": text(300), "type": "Normal",
	}}
}
