package metrics

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-jsonnet"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"tailwater/tests/metrics/prometheus"
)

// The release of etcd whose mixin is evaluated, unless MIXIN names a directory with another one.
const mixinModule = "go.etcd.io/etcd/v3@v3.6.8"

// Scrapes with all members, and behind the end of one of them: 15 minutes together, as the longest ranges want.
const scrapesWhole, scrapesBroken, putsPerScrape = 20, 10, 10

// substitutes has what is looked at in the place of an alert that has no data here, by the alert's name. There is none.
var substitutes = map[string]string{}

type rule struct {
	Alert, Expr string
}

// mixinRules gives the alert rules of etcd's mixin.
func mixinRules(t *testing.T) []rule {
	t.Helper()
	dir := os.Getenv("MIXIN")
	if dir == "" {
		output, err := exec.Command("go", "mod", "download", "-json", mixinModule).Output()
		if err != nil {
			t.Skipf("%s can't be had: %v", mixinModule, err)
		}
		var module struct{ Dir string }
		check(t, json.Unmarshal(output, &module))
		dir = filepath.Join(module.Dir, "contrib", "mixin")
	}
	vm := jsonnet.MakeVM()
	vm.Importer(&jsonnet.FileImporter{JPaths: []string{dir}})
	text, err := vm.EvaluateAnonymousSnippet("rules", `((import "config.libsonnet") + (import "alerts/alerts.libsonnet")).prometheusAlerts`)
	check(t, err)
	var alerts struct {
		Groups []struct{ Rules []rule }
	}
	check(t, json.Unmarshal([]byte(text), &alerts))
	var rules []rule
	for _, group := range alerts.Groups {
		rules = append(rules, group.Rules...)
	}
	if len(rules) < 13 {
		t.Fatalf("the mixin has only %d rules", len(rules))
	}
	return rules
}

// load writes through every member that lives.
func load(t *testing.T, members []*member, round int) {
	t.Helper()
	// Round trips are measured with heartbeats, ten a second; etcd measures them twice a minute. Rates want some between two scrapes.
	wait := 50 * time.Millisecond
	if os.Getenv("REFERENCE") == "1" {
		wait = 3 * time.Second
	}
	time.Sleep(wait)
	for i := range putsPerScrape {
		for at, m := range members {
			check(t, m.put(fmt.Sprintf("key/%d/%d", at, i), strings.Repeat("x", round*10)))
		}
	}
}

// Each rule's expression has data when its comparison is taken away, and so has each set of series that it reads.
func TestAlertsOfTheMixinHaveData(t *testing.T) {
	rules := mixinRules(t)
	members := startMembers(t, 3)
	scraper := prometheus.New()
	for round := range scrapesWhole {
		load(t, members, round)
		check(t, scraper.Scrape(targets(members)))
	}
	// Some of what is counted are failures.
	members[2].stop()
	waitForLeader(t, members[:2])
	for round := range scrapesBroken {
		load(t, members[:2], round)
		check(t, scraper.Scrape(targets(members)))
	}
	for _, rule := range rules {
		whole, err := scraper.Parse(rule.Expr)
		check(t, err)
		var parts []string
		for _, part := range prometheus.WithoutComparisons(whole) {
			parts = append(parts, part.String())
		}
		var counts []string
		isComplete := true
		for _, part := range append(parts, prometheus.Selectors(whole)...) {
			count, err := scraper.Count(part)
			check(t, err)
			isComplete = isComplete && count > 0
			counts = append(counts, fmt.Sprintf("%4d  %s", count, part))
		}
		t.Logf("%s\n%s", rule.Alert, strings.Join(counts, "\n"))
		if _, hasSubstitute := substitutes[rule.Alert]; isComplete == hasSubstitute {
			t.Errorf("%s: has data: %v, has a substitute: %v", rule.Alert, isComplete, hasSubstitute)
		}
	}
}

func targets(members []*member) []prometheus.Target {
	var all []prometheus.Target
	for _, m := range members {
		labels := map[string]string{"job": "etcd", "instance": strings.TrimPrefix(m.url, "http://")}
		all = append(all, prometheus.Target{Labels: labels, Read: m.metrics})
	}
	return all
}

func waitForLeader(t *testing.T, members []*member) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(pause) {
		if members[0].put("key", "") == nil && members[1].put("key", "") == nil {
			return
		}
	}
	t.Fatal("no leader comes")
}

// What promtool's "check metrics" says of the exposition: it is read as a whole, and what is wrong with a name is the
// name that etcd gave it.
func TestExpositionIsWellFormed(t *testing.T) {
	members := startMembers(t, 1)
	load(t, members, 1)
	exposed, err := members[0].metrics()
	check(t, err)
	read, err := prometheus.Samples(exposed)
	check(t, err)
	if len(read) < 100 {
		t.Fatalf("there are only %d samples", len(read))
	}
	problems, err := promlint.New(strings.NewReader(string(exposed))).Lint()
	check(t, err)
	for _, problem := range problems {
		t.Logf("%s: %s", problem.Metric, problem.Text)
		if strings.Contains(problem.Text, "help") || !isNamedByOthers(problem.Metric) {
			t.Errorf("%s: %s", problem.Metric, problem.Text)
		}
	}
}

func isNamedByOthers(metric string) bool {
	for _, prefix := range []string{"etcd_", "grpc_", "process_", "os_", "go_", "promhttp_"} {
		if strings.HasPrefix(metric, prefix) {
			return true
		}
	}
	return false
}
