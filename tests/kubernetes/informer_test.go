package kubernetes

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// informer is client-go's, and notes which versions of which objects its handlers saw.
type informer struct {
	server   *apiServer
	resource schema.GroupVersionResource
	inner    cache.SharedIndexInformer
	lists    atomic.Int64 // requests for all objects: lists, and watches that begin with all of them

	mutex    sync.Mutex
	seen     map[string]map[int64]bool // name, resource version
	backward []string                  // versions that came after newer ones
}

func startInformer(t testing.TB, s *apiServer, resource schema.GroupVersionResource) *informer {
	t.Helper()
	i := &informer{server: s, resource: resource, seen: map[string]map[int64]bool{}}
	config := rest.CopyConfig(s.config)
	config.Wrap(func(inner http.RoundTripper) http.RoundTripper { return countLists{inner, &i.lists} })
	client, err := dynamic.NewForConfig(config)
	check(t, err)
	i.inner = dynamicinformer.NewFilteredDynamicInformer(client, resource, namespace, 0, cache.Indexers{}, nil).Informer()
	// Payloads are not compared, and many informers live in this process.
	check(t, i.inner.SetTransform(func(o any) (any, error) {
		if custom, ok := o.(*unstructured.Unstructured); ok {
			unstructured.RemoveNestedField(custom.Object, "spec", "payload")
			custom.SetManagedFields(nil)
		}
		return o, nil
	}))
	newest := map[string]int64{}
	note := func(o any) {
		if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = unknown.Obj
		}
		custom := o.(*unstructured.Unstructured)
		name, version := custom.GetName(), version(custom)
		i.mutex.Lock()
		defer i.mutex.Unlock()
		if i.seen[name] == nil {
			i.seen[name] = map[int64]bool{}
		}
		if version < newest[name] {
			i.backward = append(i.backward, fmt.Sprintf("%s at %d after %d", name, version, newest[name]))
		}
		newest[name] = version
		i.seen[name][version] = true
	}
	_, err = i.inner.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: note, UpdateFunc: func(_, o any) { note(o) }, DeleteFunc: note,
	})
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		i.inner.RunWithContext(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	eventually(t, 5*time.Minute, func() (string, bool) {
		return fmt.Sprintf("the informer of %s has its first list", s.name), i.inner.HasSynced()
	})
	return i
}

type countLists struct {
	inner http.RoundTripper
	count *atomic.Int64
}

func (c countLists) RoundTrip(request *http.Request) (*http.Response, error) {
	query := request.URL.Query()
	if query.Get("watch") == "" || query.Get("sendInitialEvents") == "true" {
		c.count.Add(1)
	}
	return c.inner.RoundTrip(request)
}

func version(o *unstructured.Unstructured) int64 { return number64(o.GetResourceVersion()) }

// versions gives what the informer has: name and resource version.
func (i *informer) versions() map[string]int64 {
	found := map[string]int64{}
	for _, o := range i.inner.GetStore().List() {
		custom := o.(*unstructured.Unstructured)
		found[custom.GetName()] = version(custom)
	}
	return found
}

// awaitEqual waits until the informer has exactly these objects at these versions.
func (i *informer) awaitEqual(t testing.TB, want map[string]int64) {
	t.Helper()
	eventually(t, 30*time.Second, func() (string, bool) {
		missing := difference(want, i.versions())
		return fmt.Sprintf("the informer at %s has what the store has: %s", i.server.name, missing), missing == ""
	})
	i.mutex.Lock()
	defer i.mutex.Unlock()
	if len(i.backward) > 0 {
		t.Fatalf("the informer at %s went back: %v", i.server.name, i.backward[:min(5, len(i.backward))])
	}
}

// unseen gives those of the acknowledged writes that no handler saw. Only an informer that never listed again, behind a
// cache that never did, must have seen each.
func (i *informer) unseen(acknowledged []written) []written {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	var missing []written
	for _, w := range acknowledged {
		if !i.seen[w.name][w.version] {
			missing = append(missing, w)
		}
	}
	return missing
}

// difference says what is wrong with the second, or nothing.
func difference(want, got map[string]int64) string {
	wrong := 0
	first := ""
	names := slices.Sorted(maps.Keys(want))
	for name := range got {
		if _, known := want[name]; !known {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if want[name] != got[name] {
			if wrong == 0 {
				first = fmt.Sprintf("%s at %d, want %d (0: none)", name, got[name], want[name])
			}
			wrong++
		}
	}
	if wrong == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d objects differ, the first is %s", wrong, len(want), first)
}
