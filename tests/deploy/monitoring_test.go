package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"tailwater/tests/metrics/prometheus"
)

// Scrapes with all nodes, and with one member dead: six minutes together in the time that Prometheus sees.
const scrapesWhole, scrapesBroken = 8, 4

// What nodes measure once a second grows within a rule's two minutes, which are four scrapes, whatever time those say they have.
const scrapesApart = 600 * time.Millisecond

// rules gives the rules of a file as `promtool check rules` reads it.
func rules(t testing.TB, text string) []rulefmt.Rule {
	t.Helper()
	groups, problems := rulefmt.Parse([]byte(text), false, model.LegacyValidation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	check(t, errors.Join(problems...))
	var all []rulefmt.Rule
	for _, group := range groups.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

func TestRulesAreRules(t *testing.T) {
	all := rules(t, read(t, root+"/deploy/prometheus/tailwater.yaml"))
	if len(all) < 20 {
		t.Fatalf("there are only %d rules", len(all))
	}
	names := map[string]bool{}
	for _, rule := range all {
		if names[rule.Alert] || rule.Labels["severity"] == "" || rule.Annotations["summary"] == "" {
			t.Errorf("%s is there twice, or says little: %v %v", rule.Alert, rule.Labels, rule.Annotations)
		}
		names[rule.Alert] = true
	}
	// The jobs are those of the scrape configuration.
	var configuration struct {
		ScrapeConfigs []struct {
			JobName string `json:"job_name"`
		} `json:"scrape_configs"`
	}
	check(t, yaml.Unmarshal([]byte(read(t, root+"/deploy/prometheus/scrape.yaml")), &configuration))
	jobs := map[string]bool{}
	for _, one := range configuration.ScrapeConfigs {
		jobs[one.JobName] = true
	}
	for _, rule := range all {
		expression, err := parser.NewParser(parser.Options{}).ParseExpr(rule.Expr)
		check(t, err)
		for _, selector := range prometheus.Selectors(expression) {
			job := regexp.MustCompile(`job="([^"]+)"`).FindStringSubmatch(selector)
			if job == nil || !jobs[job[1]] {
				t.Errorf("%s: %s is of no job that is scraped", rule.Alert, selector)
			}
		}
	}
}

// dashboard is what is looked at of Grafana's.
type dashboard struct {
	UID        string `json:"uid"`
	Title      string `json:"title"`
	Templating struct {
		List []struct{ Name, Type, Query string } `json:"list"`
	} `json:"templating"`
	Panels []struct {
		ID      int                            `json:"id"`
		Title   string                         `json:"title"`
		Type    string                         `json:"type"`
		GridPos struct{ X, Y, W, H int }       `json:"gridPos"`
		Targets []struct{ RefID, Expr string } `json:"targets"`
	} `json:"panels"`
}

func dashboards(t testing.TB, objects []runtime.Object) []dashboard {
	t.Helper()
	var all []dashboard
	for _, config := range of[*core.ConfigMap](objects) {
		for name, text := range config.Data {
			if strings.HasSuffix(name, ".json") {
				var one dashboard
				check(t, json.Unmarshal([]byte(text), &one))
				all = append(all, one)
			}
		}
	}
	return all
}

func TestDashboardsHaveRoomForTheirPanels(t *testing.T) {
	all := dashboards(t, installed(t, valuesOf(t, "relays-and-scopes")))
	if len(all) != 2 {
		t.Fatalf("there are %d dashboards", len(all))
	}
	for _, board := range all {
		taken := map[[2]int]string{}
		ids := map[int]bool{}
		for _, panel := range board.Panels {
			if ids[panel.ID] || panel.Type != "row" && len(panel.Targets) == 0 {
				t.Errorf("%s: %s has an id of another, or nothing to show", board.Title, panel.Title)
			}
			ids[panel.ID] = true
			at := panel.GridPos
			for x := at.X; x < at.X+at.W; x++ {
				for y := at.Y; y < at.Y+at.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
						t.Fatalf("%s: %s lies over %q, or beyond the edge", board.Title, panel.Title, other)
					}
					taken[[2]int{x, y}] = panel.Title
				}
			}
		}
	}
}

// adapterRule is one of prometheus-adapter.
type adapterRule struct {
	SeriesQuery  string `json:"seriesQuery"`
	MetricsQuery string `json:"metricsQuery"`
	Name         struct {
		As string `json:"as"`
	} `json:"name"`
	Resources struct {
		Overrides map[string]struct {
			Resource string `json:"resource"`
		} `json:"overrides"`
	} `json:"resources"`
}

// adapterRules gives what deploy/ configures, by the name of the metric that comes out.
func adapterRules(t testing.TB) map[string]adapterRule {
	t.Helper()
	var configuration struct {
		Rules struct {
			Default bool          `json:"default"`
			Custom  []adapterRule `json:"custom"`
		} `json:"rules"`
	}
	check(t, yaml.UnmarshalStrict([]byte(read(t, root+"/deploy/prometheus/adapter.yaml")), &configuration))
	all := map[string]adapterRule{}
	for _, rule := range configuration.Rules.Custom {
		all[rule.Name.As] = rule
	}
	return all
}

// podMetrics gives the metrics of pods that scalers read.
func podMetrics(objects []runtime.Object) []string {
	var names []string
	for _, scaler := range of[*autoscaling.HorizontalPodAutoscaler](objects) {
		for _, metric := range scaler.Spec.Metrics {
			if metric.Pods != nil && !slices.Contains(names, metric.Pods.Metric.Name) {
				names = append(names, metric.Pods.Metric.Name)
			}
		}
	}
	return names
}

// query puts into an adapter's rule what the adapter puts there.
func (r adapterRule) query(pods []string) string {
	series, _, _ := strings.Cut(r.SeriesQuery, "{")
	matchers := fmt.Sprintf(`namespace="%s",pod=~"%s"`, namespace, strings.Join(pods, "|"))
	return strings.NewReplacer("<<.Series>>", series, "<<.LabelMatchers>>", matchers, "<<.GroupBy>>", "pod").Replace(r.MetricsQuery)
}

func TestScalersReadWhatTheAdapterGives(t *testing.T) {
	adapted := adapterRules(t)
	read := map[string]bool{}
	for name, objects := range every(t) {
		for _, metric := range podMetrics(objects) {
			read[metric] = true
			if _, ok := adapted[metric]; !ok {
				t.Errorf("%s: nobody gives %s", name, metric)
			}
		}
	}
	for metric := range adapted {
		if !read[metric] {
			t.Errorf("nobody reads %s", metric)
		}
	}
}

// scraped gives the targets that a ServiceMonitor leads to, with the labels that Prometheus gets from its operator.
func (c *cluster) scraped(objects []runtime.Object) []prometheus.Target {
	var targets []prometheus.Target
	for _, monitor := range of[*monitoring.ServiceMonitor](objects) {
		selector, err := meta.LabelSelectorAsSelector(&monitor.Spec.Selector)
		check(c.t, err)
		for _, service := range of[*core.Service](objects) {
			if !selector.Matches(labels.Set(service.Labels)) {
				continue
			}
			for _, pod := range pick(c.nodes(), labels.SelectorFromSet(service.Spec.Selector)) {
				for _, endpoint := range monitor.Spec.Endpoints {
					at := slices.IndexFunc(service.Spec.Ports, func(port core.ServicePort) bool { return port.Name == endpoint.Port })
					if at < 0 {
						c.t.Fatalf("the Service %s has no port %s", service.Name, endpoint.Port)
					}
					instance := fmt.Sprintf("%s:%d", pod.ip, portOf(pod, service.Spec.Ports[at].TargetPort))
					targets = append(targets, prometheus.Target{
						Labels: map[string]string{
							"job": service.Labels[monitor.Spec.JobLabel], "instance": instance, "namespace": namespace,
							"pod": pod.name, "service": service.Name, "endpoint": endpoint.Port, "container": "tailwater",
						},
						Read: func() ([]byte, error) { return get("http://" + instance + "/metrics") },
					})
				}
			}
		}
	}
	return targets
}

// Every rule, every panel and every metric that scalers read has data on nodes that are scraped as the chart says, and so
// has each set of series that they read.
func TestWhatIsLookedAtHasData(t *testing.T) {
	objects := installed(t, valuesOf(t, "relays-and-scopes"))
	c := begin(t, objects)
	c.start()
	c.exercise()
	targets := c.scraped(objects)
	if len(targets) != len(c.nodes()) {
		t.Fatalf("%d of %d nodes are scraped", len(targets), len(c.nodes()))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	defer cancel()
	var clients []*clientv3.Client
	for _, pod := range c.serving() {
		client := c.client(pod)
		clients = append(clients, client)
		drain(client.Watch(ctx, "/registry/", clientv3.WithPrefix()))
		drain(client.Watch(ctx, "/registry/pods/", clientv3.WithPrefix(), clientv3.WithRev(1)))
	}
	scraper := prometheus.New()
	broken := c.only(release)[2]
	pace := time.NewTicker(scrapesApart)
	defer pace.Stop()
	for round := range scrapesWhole + scrapesBroken {
		if round == scrapesWhole {
			check(t, c.processes[broken.name].Process.Kill())
			_ = c.processes[broken.name].Wait()
		}
		var nodes errgroup.Group
		for i, pod := range c.serving() {
			if round < scrapesWhole || pod != broken {
				nodes.Go(func() error { return load(ctx, pod, clients[i], round) })
			}
		}
		check(t, nodes.Wait())
		if round == scrapesWhole/2 {
			// What folding tells comes with the first compaction.
			check(t, insist(ctx, func() error {
				found, err := clients[0].Get(ctx, "a")
				if err == nil {
					_, err = clients[0].Compact(ctx, found.Header.Revision)
				}
				return err
			}))
		}
		<-pace.C
		check(t, scraper.Scrape(targets))
	}
	for _, rule := range of[*monitoring.PrometheusRule](objects) {
		text, err := yaml.Marshal(rule.Spec)
		check(t, err)
		for _, rule := range rules(t, string(text)) {
			checkData(t, scraper, "the alert "+rule.Alert, rule.Expr)
		}
	}
	checkDashboards(t, scraper, dashboards(t, objects))
	var pods []string
	for _, pod := range c.nodes() {
		pods = append(pods, pod.name)
	}
	adapted := adapterRules(t)
	for _, name := range podMetrics(objects) {
		// Of a pod that idles there is a number, too; above 0 it is on those that have work.
		checkData(t, scraper, "the metric "+name, adapted[name].query(pods))
		if count, err := scraper.Count("(" + adapted[name].query(pods) + ") > 0"); err != nil || count == 0 {
			t.Errorf("%s is above 0 nowhere: %v", name, err)
		}
	}
}

// drain takes what a watch brings, so that it stays live.
func drain(watch clientv3.WatchChan) {
	go func() {
		for range watch {
		}
	}()
}

// insist does something until it succeeds: elections and a machine that is busy take their time.
func insist(ctx context.Context, attempt func() error) error {
	for {
		err := attempt()
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(pause)
	}
}

// load does a little of everything through one node, what fails included, and what the kubelet asks.
func load(ctx context.Context, pod *pod, client *clientv3.Client, round int) error {
	steps := []func() error{
		func() error {
			_, err := client.Get(ctx, "/registry/", clientv3.WithPrefix())
			return err
		},
		func() error {
			_, err := client.Get(ctx, "/registry/pods/", clientv3.WithPrefix(), clientv3.WithSerializable())
			return err
		},
		// A lease can't be granted twice.
		func() error {
			request := &etcdserverpb.LeaseGrantRequest{ID: int64(100 + round), TTL: 3600}
			_, err := clientv3.RetryLeaseClient(client).LeaseGrant(ctx, request)
			if status.Code(err) != codes.FailedPrecondition {
				return fmt.Errorf("not refused, but %w", errors.Join(err, errors.New("granted")))
			}
			return nil
		},
	}
	for i := range 2 {
		steps = append(steps, func() error {
			_, err := client.Put(ctx, fmt.Sprintf("/registry/pods/%s/%d", pod.name, i), strings.Repeat("x", 10*round))
			return err
		})
	}
	for _, probe := range []string{"/livez", "/readyz"} {
		steps = append(steps, func() error {
			_, err := get("http://" + pod.ip + ":2381" + probe)
			return err
		})
	}
	for _, step := range steps {
		if err := insist(ctx, step); err != nil {
			return fmt.Errorf("%s: %w", pod.name, err)
		}
	}
	return nil
}

// checkData fails when an expression, what it compares, or a set of series that it reads has no data.
func checkData(t testing.TB, scraper *prometheus.Prometheus, what, expression string) {
	t.Helper()
	whole, err := scraper.Parse(expression)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	parts := prometheus.Selectors(whole)
	for _, part := range prometheus.WithoutComparisons(whole) {
		if !slices.Contains(parts, part.String()) {
			parts = append(parts, part.String())
		}
	}
	for _, part := range parts {
		if count, err := scraper.Count(part); err != nil || count == 0 {
			t.Errorf("%s: no data of %s (%v)", what, part, err)
		}
	}
}

var labelValues = regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)

func checkDashboards(t testing.TB, scraper *prometheus.Prometheus, boards []dashboard) {
	t.Helper()
	queries := 0
	for _, board := range boards {
		job := release + strings.TrimPrefix(board.UID, "tailwater")
		fill := strings.NewReplacer("$__rate_interval", "2m", "$namespace", namespace, "$job", job, "$instance", ".*")
		for _, variable := range board.Templating.List {
			if variable.Type != "query" {
				continue
			}
			asked := labelValues.FindStringSubmatch(variable.Query)
			if asked == nil {
				t.Errorf("%s: the variable %s asks for %s", board.Title, variable.Name, variable.Query)
				continue
			}
			checkData(t, scraper, board.Title+" $"+variable.Name, fmt.Sprintf("count by (%s) (%s)", asked[2], fill.Replace(asked[1])))
		}
		for _, panel := range board.Panels {
			for _, target := range panel.Targets {
				queries++
				filled := fill.Replace(target.Expr)
				if strings.Contains(filled, "$") {
					t.Errorf("%s: %s has a variable that nobody fills: %s", board.Title, panel.Title, filled)
				}
				checkData(t, scraper, board.Title+": "+panel.Title, filled)
			}
		}
	}
	if queries < 40 {
		t.Errorf("there are only %d queries", queries)
	}
}

// The variables of dashboards and the chart's own copies have the names that are looked for above.
func TestDashboardsAreNamedAfterJobs(t *testing.T) {
	for _, path := range glob(t, root+"/deploy/grafana/*.json") {
		var board dashboard
		check(t, json.Unmarshal([]byte(read(t, path)), &board))
		if board.UID != strings.TrimSuffix(filepath.Base(path), ".json") {
			t.Errorf("%s has the uid %s", path, board.UID)
		}
	}
}
