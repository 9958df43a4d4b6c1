package metrics

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// interval is between two scrapes in the time that Prometheus sees. The scrapes themselves follow each other sooner.
const interval = 30 * time.Second

// prometheus is a Prometheus whose clock goes on by a scrape.
type prometheus struct {
	storage memory
	engine  *promql.Engine
	parser  parser.Parser
	now     time.Time
}

func newPrometheus() *prometheus {
	storage := memory{series: map[string]*scraped{}}
	parser := parser.NewParser(parser.Options{})
	options := promql.EngineOpts{MaxSamples: 1 << 20, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: parser}
	return &prometheus{storage: storage, engine: promql.NewEngine(options), parser: parser, now: time.Now()}
}

// scrape takes what every member exposes, with the labels job and instance, and up.
func (p *prometheus) scrape(t testing.TB, members []*member) {
	t.Helper()
	p.now = p.now.Add(interval)
	for _, m := range members {
		exposed, err := m.metrics()
		up := 1.0
		if err != nil {
			up = 0
		}
		all := append(samples(t, exposed), sample{labels.FromStrings(labels.MetricName, "up"), up})
		for _, sample := range all {
			series := labels.NewBuilder(sample.labels)
			series.Set("job", "etcd")
			series.Set("instance", strings.TrimPrefix(m.url, "http://"))
			p.storage.add(series.Labels(), p.now.UnixMilli(), sample.value)
		}
	}
}

type sample struct {
	labels labels.Labels
	value  float64
}

// samples reads an exposition as Prometheus does, which takes all of it or nothing.
func samples(t testing.TB, exposed []byte) []sample {
	t.Helper()
	var all []sample
	for parser := textparse.NewPromParser(exposed, labels.NewSymbolTable(), false); ; {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		check(t, err)
		if entry == textparse.EntrySeries {
			_, _, value := parser.Series()
			var series labels.Labels
			parser.Labels(&series)
			all = append(all, sample{labels: series, value: value})
		}
	}
}

// count evaluates an expression and gives how many samples come that are numbers.
func (p *prometheus) count(t testing.TB, expression string) int {
	t.Helper()
	query, err := p.engine.NewInstantQuery(context.Background(), p.storage.queryable(), nil, expression, p.now)
	check(t, err)
	defer query.Close()
	result := query.Exec(context.Background())
	check(t, result.Err)
	vector, err := result.Vector()
	check(t, err)
	count := 0
	for _, sample := range vector {
		if !math.IsNaN(sample.F) {
			count++
		}
	}
	return count
}

// withoutComparisons gives what an alert compares: of "a > 1 and b < c" that is a, b and c.
func withoutComparisons(expression parser.Expr) []parser.Expr {
	switch e := expression.(type) {
	case *parser.NumberLiteral:
		return nil
	case *parser.ParenExpr:
		return withoutComparisons(e.Expr)
	case *parser.BinaryExpr:
		if e.Op == parser.LAND || e.Op.IsComparisonOperator() && !e.ReturnBool {
			return append(withoutComparisons(e.LHS), withoutComparisons(e.RHS)...)
		}
	}
	return []parser.Expr{expression}
}

// selectors gives every set of series that an expression reads.
func selectors(expression parser.Expr) []string {
	var found []string
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			found = append(found, selector.String())
		}
		return nil
	})
	return found
}
