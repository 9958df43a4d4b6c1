package kubernetes

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// apiServer is an API server in a process of its own.
type apiServer struct {
	process
	config  *rest.Config
	plain   *http.Client // for paths that are no objects, without retries
	dynamic dynamic.Interface
}

// connection is what the process tells about itself once it serves.
type connection struct {
	Host, ServerName, Token string
	CA                      []byte
}

// startAPIServer starts an API server on the store and waits until it serves.
func startAPIServer(t testing.TB, name string, endpoints []string, flags ...string) *apiServer {
	t.Helper()
	place := directory(t)
	program, err := os.Executable()
	check(t, err)
	s := &apiServer{process: process{
		name: name, program: program, log: filepath.Join(place, name+".log"),
		env: []string{apiServerVariable + "=1", "GOMAXPROCS=2"},
		args: append([]string{
			"--etcd-servers=" + strings.Join(endpoints, ","),
			// Where kube-apiserver keeps custom resources.
			"--etcd-prefix=/registry",
			"--watch-cache-sizes=events#0",
		}, flags...),
	}}
	s.start(t)
	t.Cleanup(func() { s.end(t, syscall.SIGKILL) })
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(s.stdout).ReadString('\n')
		line <- text
	}()
	var told connection
	select {
	case text := <-line:
		if err := json.Unmarshal([]byte(text), &told); err != nil {
			t.Fatalf("%s did not start (%v); the end of its log:\n%s", name, err, s.tail())
		}
	case <-time.After(time.Minute):
		t.Fatalf("%s did not start in a minute; the end of its log:\n%s", name, s.tail())
	}
	s.config = &rest.Config{
		Host: told.Host, BearerToken: told.Token, QPS: -1, Timeout: 0,
		TLSClientConfig: rest.TLSClientConfig{CAData: told.CA, ServerName: told.ServerName},
	}
	s.dynamic, err = dynamic.NewForConfig(s.config)
	check(t, err)
	s.plain, err = rest.HTTPClientFor(s.config)
	check(t, err)
	return s
}

// get asks for a path and says whether it was answered with 200 within the limit.
func (s *apiServer) get(path string, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.config.Host+path, nil)
	if err != nil {
		return "", err
	}
	response, err := s.plain.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, response.Status, body)
	}
	return string(body), err
}

// metric adds up the samples of a metric that have all of the labels, each written as name="value".
func (s *apiServer) metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	text, err := s.get("/metrics", 30*time.Second)
	check(t, err)
	return sample(text, name, labels...)
}

func sample(text, name string, labels ...string) float64 {
	sum := 0.0
lines:
	for line := range strings.Lines(text) {
		rest, found := strings.CutPrefix(strings.TrimSpace(line), name)
		if !found || rest == "" || (rest[0] != '{' && rest[0] != ' ') {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(rest, label) {
				continue lines
			}
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err == nil {
			sum += value
		}
	}
	return sum
}

// initializations counts how often the watch cache of a resource (of all, when it is empty) was filled from the store:
// once, and once more for each relist.
func (s *apiServer) initializations(t testing.TB, resource string) float64 {
	if resource == "" {
		return s.metric(t, "apiserver_watch_cache_initializations_total")
	}
	return s.metric(t, "apiserver_watch_cache_initializations_total", fmt.Sprintf("resource=%q", resource))
}

// gaps polls a health endpoint each 100 ms until stopped and gives the longest time without a good answer. A request
// that waits counts from the last good answer on.
func (s *apiServer) gaps(path string) (stop func() time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan time.Duration)
	go func() {
		last, longest := time.Now(), time.Duration(0)
		for ctx.Err() == nil {
			_, err := s.get(path, 10*time.Second)
			now := time.Now()
			longest = max(longest, now.Sub(last))
			if err == nil {
				last = now
			}
			time.Sleep(100 * time.Millisecond)
		}
		result <- longest
	}()
	return func() time.Duration {
		cancel()
		return <-result
	}
}
