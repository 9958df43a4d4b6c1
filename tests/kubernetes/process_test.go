package kubernetes

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// process is a program that a test starts, kills and starts again with the same arguments.
type process struct {
	name    string
	program string
	args    []string
	env     []string
	log     string

	command *exec.Cmd
	stdout  io.ReadCloser
	exited  chan struct{}
}

// spawns runs on one thread that never ends: children ask the kernel to be killed when their parent dies, and for the
// kernel the parent is the thread that started them.
var spawns = make(chan func())

func init() {
	go func() {
		runtime.LockOSThread()
		for spawn := range spawns {
			spawn()
		}
	}()
}

// start runs the program; its stderr is appended to the log.
func (p *process) start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	check(t, err)
	defer log.Close()
	command := exec.Command(p.program, p.args...)
	command.Env = append(os.Environ(), p.env...)
	command.Stderr = log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.stdout, err = command.StdoutPipe()
	check(t, err)
	failed := make(chan error)
	spawns <- func() { failed <- command.Start() }
	check(t, <-failed)
	p.command, p.exited = command, make(chan struct{})
	go func(exited chan struct{}) {
		// How it ended stands in its log; who waits only wants to know that it has.
		_, _ = command.Process.Wait()
		close(exited)
	}(p.exited)
}

func (p *process) running() bool {
	if p.command == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// end sends the signal and waits until the process is gone.
func (p *process) end(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if !p.running() {
		return
	}
	_ = p.command.Process.Signal(signal)
	select {
	case <-p.exited:
	case <-time.After(60 * time.Second):
		_ = p.command.Process.Kill()
		t.Errorf("%s did not end within a minute of %v", p.name, signal)
	}
}

// tail gives the last lines of the log.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}

// directory gives a place for data and logs that goes with the test when it passes and stays when it fails.
func directory(t testing.TB) string {
	t.Helper()
	path, err := os.MkdirTemp("", "k8s-"+strings.ReplaceAll(t.Name(), "/", "-")+"-")
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs and data are left in %s", path)
			return
		}
		os.RemoveAll(path)
	})
	return path
}

// lastPort is below the range from which the kernel takes ports for connections, so that a port stays free for a
// server that is started again.
var lastPort atomic.Int32

func freePort(t testing.TB) int {
	t.Helper()
	for range 900 {
		port := 21000 + int(lastPort.Add(1)-1+int32(os.Getpid()))%1000
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			listener.Close()
			return port
		}
	}
	t.Fatal("no free port between 21000 and 21999")
	return 0
}

// node is a member or a fanout of a store.
type node struct {
	process
	url string // where clients reach it
}

func (n *node) ready() bool {
	client := http.Client{Timeout: 2 * time.Second}
	response, err := client.Get(n.url + "/readyz")
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func (n *node) awaitReady(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if n.ready() {
			return
		}
		if !n.running() {
			break
		}
	}
	t.Fatalf("%s does not serve; the end of its log:\n%s", n.name, n.tail())
}

// restart starts it again and waits until it serves.
func (n *node) restart(t testing.TB) {
	t.Helper()
	n.start(t)
	n.awaitReady(t)
}

func onEtcd() bool { return os.Getenv("STORE") == "etcd" }

// storeProgram gives the server to test, or skips the test when there is none.
func storeProgram(t testing.TB) string {
	t.Helper()
	variable := "TAILWATER_BIN"
	if onEtcd() {
		variable = "ETCD_BIN"
	}
	program := os.Getenv(variable)
	if program == "" {
		t.Fatalf("%s is not set: name the server to test", variable)
	}
	program, err := filepath.Abs(program)
	check(t, err)
	return program
}
