// Package metrics looks at what members expose as Prometheus does: by promtool's checks, and by evaluating the alert
// rules of etcd's mixin on it. TAILWATER_BIN is what is started, or with REFERENCE=1 the etcd that ETCD names.
package metrics

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	patience = 30 * time.Second
	pause    = 50 * time.Millisecond
)

var web = &http.Client{Timeout: 5 * time.Second}

// member is one process of a cluster.
type member struct {
	url, peer string
	command   *exec.Cmd
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
}

// program gives what to start, and its first arguments.
func program(t testing.TB) []string {
	t.Helper()
	variable, arguments := "TAILWATER_BIN", []string{"serve"}
	if os.Getenv("REFERENCE") == "1" {
		variable, arguments = "ETCD", nil
	}
	if os.Getenv(variable) == "" {
		t.Skipf("%s names no server to start", variable)
	}
	found, err := exec.LookPath(os.Getenv(variable))
	check(t, err)
	return append([]string{found}, arguments...)
}

func freeURLs(t testing.TB, count int) []string {
	t.Helper()
	urls := make([]string, count)
	for i := range urls {
		// Held together, so that they differ.
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		defer listener.Close()
		urls[i] = "http://" + listener.Addr().String()
	}
	return urls
}

// startMembers starts a cluster and waits until all of it is healthy.
func startMembers(t testing.TB, count int) []*member {
	t.Helper()
	start := program(t)
	urls := freeURLs(t, 2*count)
	members := make([]*member, count)
	var all []string
	for i := range members {
		members[i] = &member{url: urls[2*i], peer: urls[2*i+1]}
		all = append(all, fmt.Sprintf("m%d=%s", i, members[i].peer))
	}
	for i, m := range members {
		dir := t.TempDir()
		log, err := os.Create(filepath.Join(dir, "log"))
		check(t, err)
		m.command = exec.Command(start[0], append(start[1:],
			"--name", fmt.Sprintf("m%d", i), "--data-dir", filepath.Join(dir, "data"),
			"--listen-client-urls", m.url, "--advertise-client-urls", m.url,
			"--listen-peer-urls", m.peer, "--initial-advertise-peer-urls", m.peer,
			"--initial-cluster", strings.Join(all, ","), "--metrics=extensive")...)
		m.command.Stdout, m.command.Stderr = log, log
		check(t, m.command.Start())
		t.Cleanup(func() {
			m.stop()
			if t.Failed() {
				text, _ := os.ReadFile(log.Name())
				t.Logf("the end of the log of %s:\n%s", m.url, text[max(0, len(text)-2000):])
			}
			log.Close()
		})
	}
	for _, m := range members {
		for end := time.Now().Add(patience); !m.isHealthy(); time.Sleep(pause) {
			if time.Now().After(end) {
				t.Fatalf("%s does not become healthy", m.url)
			}
		}
	}
	return members
}

func (m *member) stop() {
	if m.command.ProcessState == nil {
		_ = m.command.Process.Signal(syscall.SIGKILL)
		_ = m.command.Wait()
	}
}

func (m *member) isHealthy() bool {
	response, err := web.Get(m.url + "/health")
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// metrics gives the exposition, or an error as a scrape would have it.
func (m *member) metrics() ([]byte, error) {
	response, err := web.Get(m.url + "/metrics")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s", response.Status)
	}
	return io.ReadAll(response.Body)
}

// put writes a key through the member, which is asked in JSON.
func (m *member) put(key, value string) error {
	encode := base64.StdEncoding.EncodeToString
	body := fmt.Sprintf(`{"key":%q,"value":%q}`, encode([]byte(key)), encode([]byte(value)))
	response, err := web.Post(m.url+"/v3/kv/put", "application/json", bytes.NewBufferString(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", response.Status)
	}
	return nil
}
