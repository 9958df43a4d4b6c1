package kubernetes

import (
	"context"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestScale fills the store with OBJECTS objects and writes on for SECONDS_OF_LOAD, while two API servers compact it, compare
// their caches with it, and feed informers; then everything must be equal.
func TestScale(t *testing.T) {
	if short() {
		t.Skip("not in the shortest form")
	}
	objects := number("OBJECTS", 2000)
	seconds := time.Duration(number("SECONDS_OF_LOAD", 15)) * time.Second
	s := startStore(t, 3, 2)
	flags := []string{"--etcd-compaction-interval=3s", "--consistency-check-period=3s", "--etcd-count-metric-poll-period=2s"}
	apis := []*apiServer{
		startAPIServer(t, "api0", s.endpoints(), flags...),
		startAPIServer(t, "api1", s.endpoints(), flags...),
	}
	widgets := define(t, apis[0], "widgets")
	awaitServed(t, apis[1], widgets)
	informers := []*informer{startInformer(t, apis[0], widgets), startInformer(t, apis[1], widgets)}
	filled := make([]float64, len(apis))
	for i, api := range apis {
		filled[i] = api.initializations(t, "widgets")
	}
	old, err := apis[0].in(widgets).List(within(t), meta.ListOptions{})
	check(t, err)

	ready, health := apis[0].gaps("/readyz"), apis[1].gaps("/livez/etcd")
	started := time.Now()
	makeMany(t, apis[0], widgets, "object", objects)
	t.Logf("%d objects created in %v", objects, time.Since(started).Round(time.Second))
	l := startLoad(t, apis, widgets, "churn", 8, 20, 5*time.Millisecond)
	// These begin with all objects, while others change; an API server may end the watch of one that takes them slowly,
	// which then begins again.
	for _, api := range apis {
		informers = append(informers, startInformer(t, api, widgets))
	}
	consistent := 0
	for end := time.Now().Add(seconds); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		acknowledged, _ := l.counted()
		list, err := apis[consistent%2].in(widgets).List(within(t), meta.ListOptions{Limit: 50})
		check(t, err)
		l.mutex.Lock()
		newest := int64(0)
		for _, w := range l.acknowledged[:acknowledged] {
			newest = max(newest, w.version)
		}
		l.mutex.Unlock()
		if at := number64(list.GetResourceVersion()); at < newest {
			t.Fatalf("a list at %d does not see the write at %d, acknowledged before", at, newest)
		}
		consistent++
	}
	l.stop(t)
	t.Logf("%v; %d consistent lists beside them", l, consistent)
	for name, gap := range map[string]time.Duration{"/readyz": ready(), "/livez/etcd": health()} {
		t.Logf("longest time between good answers of %s: %v", name, gap.Round(time.Millisecond))
		if gap > 5*time.Second {
			t.Errorf("%s was not good for %v", name, gap)
		}
	}

	want := s.versions(t, prefix(widgets))
	for name, version := range l.final {
		equal(t, "version of "+name+", acknowledged", want[name], version)
	}
	equal(t, "objects", len(want), objects+len(l.final))
	for _, i := range informers {
		i.awaitEqual(t, want)
	}
	for _, i := range informers[:2] {
		if i.lists.Load() > 1 {
			// That is between it and an API server that finds it slow; its store was compared all the same.
			t.Logf("the informer at %s listed %d times", i.server.name, i.lists.Load())
			continue
		}
		if missing := i.unseen(l.acknowledged); len(missing) > 0 {
			t.Fatalf("the informer at %s saw %d of %d writes not, the first is %v",
				i.server.name, len(missing), len(l.acknowledged), missing[0])
		}
	}
	got := map[string]int64{}
	all, err := pages(within(t), apis[1].in(widgets), meta.ListOptions{Limit: 500}, nil)
	check(t, err)
	for _, page := range all {
		for _, o := range page.Items {
			got[o.GetName()] = version(&o)
		}
	}
	if missing := difference(want, got); missing != "" {
		t.Fatalf("a list in pages: %s", missing)
	}

	// The history of before is gone, and the API server says so in its own way.
	eventually(t, 20*time.Second, func() (string, bool) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := apis[0].in(widgets).List(ctx, meta.ListOptions{
			ResourceVersion: old.GetResourceVersion(), ResourceVersionMatch: meta.ResourceVersionMatchExact})
		return fmt.Sprintf("a list of what was compacted is refused as expired: %v", err), apierrors.IsResourceExpired(err)
	})
	for i, api := range apis {
		label := `resource="widgets"`
		checks := func(status string) float64 {
			return api.metric(t, "apiserver_storage_consistency_checks_total", label, `status="`+status+`"`)
		}
		eventually(t, time.Minute, func() (string, bool) {
			return api.name + " has compared its cache with the store", checks("success") >= 2
		})
		equal(t, "comparisons that failed", checks("failure"), 0)
		equal(t, "relists of the cache of "+api.name, api.initializations(t, "widgets")-filled[i], 0)
		equal(t, "consistent lists that fell back to the store",
			api.metric(t, "apiserver_watch_cache_consistent_read_total", label, `fallback="true"`), 0)
		t.Logf("%s: %v comparisons of its cache with the store, none failed", api.name, checks("success"))
		eventually(t, 20*time.Second, func() (string, bool) {
			counted := api.metric(t, "apiserver_resource_objects", label)
			return fmt.Sprintf("%s counts %v objects of %d", api.name, counted, len(want)), counted == float64(len(want))
		})
	}
}
