// Package deploy keeps deploy/ from rotting: what is in it is rendered, read as Kubernetes, Prometheus and Grafana read it,
// and what it would start is started. TAILWATER_BIN is what is started.
package deploy

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// hostsVariable is set where this program runs in a network of its own; it names what stands in the place of /etc/hosts.
const hostsVariable = "DEPLOY_HOSTS"

// TestMain runs the tests in a network of their own, where pods have the ports and the names that manifests give them.
func TestMain(m *testing.M) {
	if os.Getenv(hostsVariable) != "" {
		if err := enterNetwork(); err != nil {
			fmt.Fprintln(os.Stderr, "this network can't be used:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	status, err := runInNetwork()
	if err == nil {
		os.Exit(status)
	}
	fmt.Printf("LEFT OUT: the processes of deploy/ (no network of their own here: %v)\n", err)
	os.Exit(m.Run())
}

// runInNetwork runs this program once more, in new namespaces.
func runInNetwork() (int, error) {
	hosts, err := os.CreateTemp("", "hosts")
	if err != nil {
		return 0, err
	}
	hosts.Close()
	defer os.Remove(hosts.Name())
	var all error
	for _, flags := range []uintptr{0, syscall.CLONE_NEWUSER} {
		if flags == 0 && os.Geteuid() != 0 {
			continue
		}
		again := exec.Command("/proc/self/exe", os.Args[1:]...)
		again.Env = append(os.Environ(), hostsVariable+"="+hosts.Name())
		again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
		again.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: flags | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
			Pdeathsig:  syscall.SIGKILL,
		}
		if flags != 0 {
			again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		err := again.Start()
		if err != nil {
			all = errors.Join(all, err)
			continue
		}
		var ended *exec.ExitError
		if err := again.Wait(); err != nil && !errors.As(err, &ended) {
			return 0, err
		}
		return again.ProcessState.ExitCode(), nil
	}
	return 0, all
}

// enterNetwork starts the loopback device, and puts the file of names in its place.
func enterNetwork() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount(os.Getenv(hostsVariable), "/etc/hosts", "", unix.MS_BIND, "")
}

// program gives what is to be started, or ends a test that has nothing to start or no place for it.
func program(t testing.TB) string {
	t.Helper()
	named := os.Getenv("TAILWATER_BIN")
	if named == "" {
		t.Skip("TAILWATER_BIN names no program to start")
	}
	found, err := exec.LookPath(named)
	check(t, err)
	found, err = filepath.Abs(found)
	check(t, err)
	return found
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	check(t, err)
	return string(text)
}

// glob gives files, and fails when there are none.
func glob(t testing.TB, patterns ...string) []string {
	t.Helper()
	var all []string
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		check(t, err)
		if len(found) == 0 {
			t.Fatalf("%s: there is no such file", pattern)
		}
		all = append(all, found...)
	}
	return all
}
