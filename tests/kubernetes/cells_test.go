package kubernetes

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// down is how long a group is down, at least.
const down = 4 * time.Second

// TestCells puts leases and events into a group of their own, by --etcd-servers-overrides. While either group is down
// no request for what the other one holds fails.
func TestCells(t *testing.T) {
	if short() {
		t.Skip("not in the shortest form")
	}
	home, cell := startStore(t, 1, 1), startStore(t, 1, 1)
	servers := strings.Join(cell.endpoints(), ";")
	api := startAPIServer(t, "api", home.endpoints(),
		"--etcd-servers-overrides=coordination.k8s.io/leases#"+servers+",/events#"+servers)
	widgets := define(t, api, "widgets")
	_, err := api.in(events).Create(within(t), event("one"), meta.CreateOptions{})
	check(t, err)
	watched := []*informer{startInformer(t, api, widgets), startInformer(t, api, leases)}
	loads := []*load{
		startLoad(t, []*apiServer{api}, widgets, "home", 4, 8, 10*time.Millisecond),
		startLoad(t, []*apiServer{api}, leases, "cell", 4, 8, 10*time.Millisecond),
	}
	time.Sleep(2 * time.Second)
	for i, broken := range []*store{cell, home} {
		other := loads[i]
		before, errorsBefore := other.counted()
		for _, n := range broken.nodes() {
			n.end(t, syscall.SIGKILL)
		}
		for end := time.Now().Add(down); time.Now().Before(end); {
			// Reads of what the other holds: from its cache, from the store, all of it.
			_, err := api.in(other.resource).List(within(t), meta.ListOptions{})
			check(t, err)
			time.Sleep(100 * time.Millisecond)
		}
		_, ready := api.get("/readyz", 5*time.Second)
		for _, n := range broken.nodes() {
			n.start(t)
		}
		for _, n := range broken.nodes() {
			n.awaitReady(t)
		}
		after, errorsAfter := other.counted()
		equal(t, "requests to the other group that failed", errorsAfter-errorsBefore, 0)
		if after-before < 20 {
			t.Errorf("only %d writes to the other group while one was down", after-before)
		}
		if ready == nil {
			t.Error("/readyz was good although a group was down")
		}
		back := loads[1-i].awaitAll(t)
		t.Logf("group %d down: %d writes to the other one, none failed; /readyz said no; its own writers were all back %v after it",
			i, after-before, back.Round(100*time.Millisecond))
	}
	for _, l := range loads {
		l.stop(t)
		t.Logf("%s: %v", l.resource.Resource, l)
		// Each fails, or waits until the group is back.
		if _, errors := l.counted(); errors == 0 && l.slowest < down {
			t.Errorf("no write of %s noticed that its group was down", l.resource.Resource)
		}
	}
	for i, s := range []*store{home, cell} {
		want := s.versions(t, prefix(loads[i].resource))
		if missing := difference(loads[i].final, want); missing != "" {
			t.Fatalf("what was acknowledged is not what the store has: %s", missing)
		}
		watched[i].awaitEqual(t, want)
		equal(t, "objects of the other group", len(s.versions(t, prefix(loads[1-i].resource))), 0)
	}
	equal(t, "events in the cell", len(cell.versions(t, "/registry/events/")), 1)
	equal(t, "events at home", len(home.versions(t, "/registry/events/")), 0)
	eventually(t, 30*time.Second, func() (string, bool) {
		_, err := api.get("/readyz", 5*time.Second)
		return fmt.Sprintf("/readyz is good again: %v", err), err == nil
	})
}

func nameOf(words string, round int) string {
	return fmt.Sprintf("%s-%d", strings.ReplaceAll(words, " ", "-"), round)
}
