package kubernetes

import (
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// fault breaks something, lets it be broken for a while and repairs it.
type fault struct {
	name  string
	brief bool // part of the shortest form
	// What must hold beyond that nothing is lost.
	noRelist  bool
	noError   bool          // no write fails
	readyWith time.Duration // longest time without a good /readyz; 0: any
	strike    func(t *testing.T, s *store)
}

var faults = []fault{
	{name: "a fanout is killed", brief: true, noRelist: true, strike: func(t *testing.T, s *store) {
		n := aFront(t, s)
		n.end(t, syscall.SIGKILL)
		time.Sleep(2 * time.Second)
		n.restart(t)
	}},
	{name: "the leader is killed", brief: true, readyWith: 5 * time.Second, strike: func(t *testing.T, s *store) {
		n := s.leader(t)
		n.end(t, syscall.SIGKILL)
		time.Sleep(4 * time.Second)
		n.restart(t)
	}},
	{name: "a fanout is drained", noRelist: true, noError: true, strike: func(t *testing.T, s *store) {
		n := aFront(t, s)
		n.end(t, syscall.SIGTERM)
		time.Sleep(time.Second)
		n.restart(t)
	}},
	{name: "members are rolled one by one", readyWith: 5 * time.Second, strike: func(t *testing.T, s *store) {
		for _, n := range s.members {
			n.end(t, syscall.SIGTERM)
			n.restart(t)
			time.Sleep(time.Second)
		}
	}},
}

// aFront gives something that API servers are connected to and that does not lead.
func aFront(t testing.TB, s *store) *node {
	if s.fronts[0] == s.members[0] {
		return s.follower(t)
	}
	fronts := len(s.fronts)
	return s.fronts[int(time.Now().UnixNano())%fronts]
}

// TestFaults breaks parts of the store while two API servers write and watch, ROUNDS times each. After each time every
// informer must have exactly what the store has, and what was acknowledged must be there.
func TestFaults(t *testing.T) {
	s := startStore(t, 3, 2)
	flags := []string{"--etcd-compaction-interval=30s", "--consistency-check-period=10s"}
	apis := []*apiServer{
		startAPIServer(t, "api0", s.endpoints(), flags...),
		startAPIServer(t, "api1", s.endpoints(), flags...),
	}
	widgets := define(t, apis[0], "widgets")
	awaitServed(t, apis[1], widgets)
	makeMany(t, apis[0], widgets, "object", 200)
	informers := []*informer{startInformer(t, apis[0], widgets), startInformer(t, apis[1], widgets)}
	known := s.versions(t, prefix(widgets))
	for round := range number("ROUNDS", 1) {
		for _, f := range faults {
			if f.brief || !short() {
				t.Run(f.name, func(t *testing.T) { f.run(t, round, s, apis, widgets, informers, known) })
			}
			if t.Failed() {
				return
			}
		}
	}
	for _, api := range apis {
		equal(t, "comparisons of a cache with the store that failed",
			api.metric(t, "apiserver_storage_consistency_checks_total", `status="failure"`), 0)
	}
}

func (f *fault) run(t *testing.T, round int, s *store, apis []*apiServer, widgets schema.GroupVersionResource,
	informers []*informer, known map[string]int64) {
	relists := func() (caches, clients int) {
		for _, api := range apis {
			caches += int(api.initializations(t, ""))
		}
		for _, i := range informers {
			clients += int(i.lists.Load())
		}
		return caches, clients
	}
	cachesBefore, clientsBefore := relists()
	l := startLoad(t, apis, widgets, nameOf(f.name, round), 8, 8, 10*time.Millisecond)
	var gaps []func() time.Duration
	for _, api := range apis {
		gaps = append(gaps, api.gaps("/readyz"))
	}
	// What asks nothing of the store: how long a busy machine lets an answer wait.
	ping := apis[0].gaps("/livez/ping")
	time.Sleep(time.Second)
	f.strike(t, s)
	time.Sleep(2 * time.Second)
	l.stop(t)
	var unready time.Duration
	for _, stop := range gaps {
		unready = max(unready, stop())
	}
	waited := ping()

	for name, version := range l.final {
		known[name] = version
	}
	if missing := difference(known, s.versions(t, prefix(widgets))); missing != "" {
		t.Fatalf("what was acknowledged is not what the store has: %s", missing)
	}
	for _, i := range informers {
		i.awaitEqual(t, known)
	}
	caches, clients := relists()
	caches, clients = caches-cachesBefore, clients-clientsBefore
	t.Logf("%v; /readyz not good for %v (/livez/ping %v); relists: caches %d, informers %d",
		l, unready.Round(time.Millisecond), waited.Round(time.Millisecond), caches, clients)
	if _, failed := l.counted(); f.noError && failed > 0 {
		t.Errorf("%d writes failed", failed)
	}
	if f.noRelist && caches+clients > 0 {
		t.Errorf("%d caches and %d informers listed again", caches, clients)
	}
	limit := f.readyWith
	if short() {
		// Debug builds, on machines that do other work: there an election takes as long as it takes.
		limit *= 4
	}
	if limit > 0 && unready > limit+2*waited {
		t.Errorf("/readyz was not good for %v", unready)
	}
	if caches+clients == 0 {
		for _, i := range informers {
			if missing := i.unseen(l.acknowledged); len(missing) > 0 {
				t.Errorf("the informer at %s saw %d of %d writes not, the first is %v",
					i.server.name, len(missing), len(l.acknowledged), missing[0])
			}
		}
	}
}
