// Package tls starts servers of its own, since what it looks at are their certificates: TAILWATER_BIN under the name
// etcd, or with REFERENCE=1 the real one that ETCD names, for which the same must hold.
package tls

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
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
	pause    = 20 * time.Millisecond
)

// server is a running process; its data and its log are in dir.
type server struct {
	command *exec.Cmd
	log     string
	// "https://127.0.0.1:port"
	endpoint string
}

// binary gives what is started as etcd.
func binary(t testing.TB, dir string) string {
	t.Helper()
	if os.Getenv("REFERENCE") == "1" {
		found, err := exec.LookPath(os.Getenv("ETCD"))
		check(t, err)
		return found
	}
	given := os.Getenv("TAILWATER_BIN")
	if given == "" {
		t.Skip("TAILWATER_BIN names no server to start")
	}
	given, err := filepath.Abs(given)
	check(t, err)
	link := filepath.Join(dir, "etcd")
	if _, err := os.Lstat(link); err != nil {
		check(t, os.Symlink(given, link))
	}
	return link
}

func freePort(t testing.TB) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// start serves clients with own's certificate, and waits until it does.
func start(t testing.TB, dir string, own files, flags ...string) *server {
	t.Helper()
	endpoint := fmt.Sprintf("https://127.0.0.1:%d", freePort(t))
	peer := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	arguments := append([]string{
		"-name", "one", "--data-dir=" + filepath.Join(dir, "data"),
		"--listen-client-urls", endpoint, "--advertise-client-urls", endpoint,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "one=" + peer,
		"--cert-file", own.cert, "--key-file", own.key,
	}, flags...)
	started := &server{log: filepath.Join(dir, "log"), endpoint: endpoint}
	log, err := os.Create(started.log)
	check(t, err)
	started.command = exec.Command(binary(t, dir), arguments...)
	started.command.Stderr = log
	check(t, started.command.Start())
	t.Cleanup(func() {
		_ = started.command.Process.Signal(syscall.SIGTERM)
		_ = started.command.Wait()
		log.Close()
	})
	started.waitFor(t, "that it is ready", func(line map[string]any) bool {
		return strings.Contains(text(line, "msg"), "ready to serve client requests")
	})
	return started
}

func text(line map[string]any, field string) string {
	value, _ := line[field].(string)
	return value
}

// lines are those of the log that are JSON.
func (s *server) lines(t testing.TB) []map[string]any {
	t.Helper()
	file, err := os.Open(s.log)
	check(t, err)
	defer file.Close()
	var lines []map[string]any
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var line map[string]any
		if json.Unmarshal(scanner.Bytes(), &line) == nil {
			lines = append(lines, line)
		}
	}
	return lines
}

// waitFor gives the first line of the log that fits.
func (s *server) waitFor(t testing.TB, what string, fits func(map[string]any) bool) map[string]any {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(pause) {
		for _, line := range s.lines(t) {
			if fits(line) {
				return line
			}
		}
	}
	whole, _ := os.ReadFile(s.log)
	t.Fatalf("the log does not say %s:\n%s", what, whole)
	return nil
}

// waitForRejection gives the line about a client that was not let in for this reason.
func (s *server) waitForRejection(t testing.TB, reason string) map[string]any {
	t.Helper()
	return s.waitFor(t, reason, func(line map[string]any) bool {
		return text(line, "msg") == "rejected connection on client endpoint" && strings.HasPrefix(text(line, "error"), reason)
	})
}
