// Package prometheus evaluates PromQL on what was scraped, by Prometheus' own parsers and engine, with a clock that goes
// on by a scrape.
package prometheus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// Interval is between two scrapes in the time that Prometheus sees. The scrapes themselves follow each other sooner.
const Interval = 30 * time.Second

// Prometheus is a Prometheus whose clock goes on by a scrape.
type Prometheus struct {
	storage memory
	engine  *promql.Engine
	parser  parser.Parser
	now     time.Time
}

// Target is what is scraped.
type Target struct {
	// Labels are added to every sample: job and instance at least.
	Labels map[string]string
	// Read gives the exposition, or an error when it can't be had.
	Read func() ([]byte, error)
}

// New gives one that has seen nothing.
func New() *Prometheus {
	storage := memory{series: map[string]*scraped{}}
	parser := parser.NewParser(parser.Options{})
	options := promql.EngineOpts{MaxSamples: 1 << 20, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: parser}
	return &Prometheus{storage: storage, engine: promql.NewEngine(options), parser: parser, now: time.Now()}
}

// Scrape takes what every target exposes, and whether it is up.
func (p *Prometheus) Scrape(targets []Target) error {
	p.now = p.now.Add(Interval)
	for _, target := range targets {
		exposed, err := target.Read()
		up := 1.0
		if err != nil {
			exposed, up = nil, 0
		}
		all, err := Samples(exposed)
		if err != nil {
			return fmt.Errorf("%v: %w", target.Labels, err)
		}
		all = append(all, Sample{labels.FromStrings(labels.MetricName, "up"), up})
		for _, sample := range all {
			series := labels.NewBuilder(sample.Labels)
			for name, value := range target.Labels {
				series.Set(name, value)
			}
			p.storage.add(series.Labels(), p.now.UnixMilli(), sample.Value)
		}
	}
	return nil
}

// Sample is one line of an exposition.
type Sample struct {
	Labels labels.Labels
	Value  float64
}

// Samples reads an exposition as Prometheus does, which takes all of it or nothing.
func Samples(exposed []byte) ([]Sample, error) {
	var all []Sample
	for parser := textparse.NewPromParser(exposed, labels.NewSymbolTable(), false); ; {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if entry == textparse.EntrySeries {
			_, _, value := parser.Series()
			var series labels.Labels
			parser.Labels(&series)
			all = append(all, Sample{Labels: series, Value: value})
		}
	}
}

// Parse gives an expression.
func (p *Prometheus) Parse(expression string) (parser.Expr, error) {
	return p.parser.ParseExpr(expression)
}

// Count evaluates an expression and gives how many samples come that are numbers.
func (p *Prometheus) Count(expression string) (int, error) {
	query, err := p.engine.NewInstantQuery(context.Background(), p.storage.queryable(), nil, expression, p.now)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", expression, err)
	}
	defer query.Close()
	result := query.Exec(context.Background())
	if result.Err != nil {
		return 0, fmt.Errorf("%s: %w", expression, result.Err)
	}
	count := 0
	switch value := result.Value.(type) {
	case promql.Vector:
		for _, sample := range value {
			if !math.IsNaN(sample.F) {
				count++
			}
		}
	case promql.Scalar:
		if !math.IsNaN(value.V) {
			count++
		}
	default:
		return 0, fmt.Errorf("%s: gives a %s", expression, result.Value.Type())
	}
	return count, nil
}

// WithoutComparisons gives what an alert compares: of "a > 1 and b < c" that is a, b and c.
func WithoutComparisons(expression parser.Expr) []parser.Expr {
	switch e := expression.(type) {
	case *parser.NumberLiteral:
		return nil
	case *parser.ParenExpr:
		return WithoutComparisons(e.Expr)
	case *parser.BinaryExpr:
		joins := e.Op == parser.LAND || e.Op == parser.LOR
		if joins || e.Op.IsComparisonOperator() && !e.ReturnBool {
			return append(WithoutComparisons(e.LHS), WithoutComparisons(e.RHS)...)
		}
	}
	return []parser.Expr{expression}
}

// Selectors gives every set of series that an expression reads.
func Selectors(expression parser.Expr) []string {
	var found []string
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			found = append(found, selector.String())
		}
		return nil
	})
	return found
}
