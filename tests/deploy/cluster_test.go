package deploy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	patience = time.Minute
	pause    = 50 * time.Millisecond
)

var web = &http.Client{Timeout: 10 * time.Second}

// cluster runs the containers of pods as processes of this machine, with their exact arguments but for what a container
// brings: an address of its own in the place of 0.0.0.0, and directories in the place of mounted volumes.
type cluster struct {
	t       *testing.T
	program string
	dir     string
	pods    []*pod
	// processes by the pod's name.
	processes map[string]*exec.Cmd
}

// begin makes what the pods need, and starts nothing.
func begin(t *testing.T, objects []runtime.Object) *cluster {
	t.Helper()
	if os.Getenv(hostsVariable) == "" {
		t.Skip("no network of its own")
	}
	c := &cluster{t: t, program: program(t), dir: t.TempDir(), pods: podsOf(objects), processes: map[string]*exec.Cmd{}}
	c.writeHosts(of[*core.Service](objects))
	writeCertificates(t, objects, filepath.Join(c.dir, "secrets"))
	// The name that it goes by in the image.
	check(t, os.Symlink(c.program, filepath.Join(c.dir, "etcd")))
	return c
}

// writeHosts has the names that cluster DNS would have.
func (c *cluster) writeHosts(services []*core.Service) {
	lines := []string{"127.0.0.1 localhost"}
	add := func(ip, name, service string) {
		for _, suffix := range []string{"", "." + namespace, "." + namespace + ".svc", "." + namespace + ".svc.cluster.local"} {
			lines = append(lines, ip+" "+name+service+suffix)
		}
	}
	for _, service := range services {
		for _, pod := range pick(c.pods, labels.SelectorFromSet(service.Spec.Selector)) {
			add(pod.ip, "", service.Name)
			if pod.subdomain == service.Name {
				add(pod.ip, pod.name+".", service.Name)
			}
		}
	}
	check(c.t, os.WriteFile(os.Getenv(hostsVariable), []byte(strings.Join(lines, "\n")+"\n"), 0o644))
}

// volume gives the directory that stands for a volume.
func (c *cluster) volume(pod *pod, name string) string {
	path := filepath.Join(c.dir, "pods", pod.name, name)
	for _, volume := range pod.spec.Volumes {
		if volume.Name != name {
			continue
		}
		switch {
		case volume.Secret != nil:
			return filepath.Join(c.dir, "secrets", volume.Secret.SecretName)
		case volume.PersistentVolumeClaim != nil:
			path = filepath.Join(c.dir, "claims", volume.PersistentVolumeClaim.ClaimName)
		case volume.HostPath != nil:
			path = filepath.Join(c.dir, "host", volume.HostPath.Path)
		}
	}
	check(c.t, os.MkdirAll(path, 0o755))
	return path
}

// process gives a container's command line as it is run here.
func (c *cluster) process(pod *pod, container core.Container) *exec.Cmd {
	line := pod.command(c.t, container)
	mounts := slices.Clone(container.VolumeMounts)
	// What lies below another is replaced first.
	slices.SortFunc(mounts, func(a, b core.VolumeMount) int { return len(b.MountPath) - len(a.MountPath) })
	for i := range line {
		line[i] = strings.ReplaceAll(line[i], "0.0.0.0", pod.ip)
		for _, mount := range mounts {
			if at := strings.Index(line[i], mount.MountPath); at == 0 || at > 0 && line[i][at-1] == '=' {
				line[i] = line[i][:at] + c.volume(pod, mount.Name) + line[i][at+len(mount.MountPath):]
				break
			}
		}
	}
	switch line[0] {
	case "tailwater":
		line[0] = c.program
	case "etcd":
		line[0] = filepath.Join(c.dir, "etcd")
	default:
		found, err := exec.LookPath(line[0])
		check(c.t, err)
		line[0] = found
	}
	command := exec.Command(line[0], line[1:]...)
	command.Dir = c.dir
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for name, value := range pod.variables(c.t, container) {
		command.Env = append(command.Env, name+"="+value)
	}
	return command
}

// nodes gives the pods that stay.
func (c *cluster) nodes() []*pod {
	var nodes []*pod
	for _, pod := range c.pods {
		if pod.workload != "" || pod.spec.HostNetwork {
			nodes = append(nodes, pod)
		}
	}
	return nodes
}

// start starts every node and waits until its probes say that it serves.
func (c *cluster) start() {
	c.t.Helper()
	for _, pod := range c.nodes() {
		c.startPod(pod)
	}
	for _, pod := range c.nodes() {
		c.awaitReady(pod)
	}
}

func (c *cluster) startPod(pod *pod) {
	c.t.Helper()
	path := filepath.Join(c.dir, pod.name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	check(c.t, err)
	command := c.process(pod, pod.spec.Containers[0])
	command.Stdout, command.Stderr = log, log
	check(c.t, command.Start())
	c.processes[pod.name] = command
	c.t.Cleanup(func() {
		if command.ProcessState == nil {
			_ = command.Process.Kill()
			_ = command.Wait()
		}
		log.Close()
		if c.t.Failed() {
			text, _ := os.ReadFile(path)
			c.t.Logf("%s\nthe end of the log of %s:\n%s", strings.Join(command.Args, " "), pod.name, text[max(0, len(text)-1500):])
		}
	})
}

// awaitReady asks the probes in the order in which the kubelet does.
func (c *cluster) awaitReady(pod *pod) {
	c.t.Helper()
	container := pod.spec.Containers[0]
	for _, probe := range []*core.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
		host := probe.HTTPGet.Host
		if host == "" {
			host = pod.ip
		}
		url := fmt.Sprintf("http://%s:%d%s", host, portOf(pod, probe.HTTPGet.Port), probe.HTTPGet.Path)
		var last error
		for end := time.Now().Add(patience); ; time.Sleep(pause) {
			if _, last = get(url); last == nil {
				break
			}
			if time.Now().After(end) {
				c.t.Fatalf("%s: %s: %v", pod.name, url, last)
			}
		}
	}
}

func get(url string) ([]byte, error) {
	response, err := web.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return body, err
}

// run runs the containers of a pod that ends, one after the other.
func (c *cluster) run(pod *pod) {
	c.t.Helper()
	for _, container := range slices.Concat(pod.spec.InitContainers, pod.spec.Containers) {
		command := c.process(pod, container)
		timer := time.AfterFunc(patience, func() { _ = command.Process.Kill() })
		output, err := command.CombinedOutput()
		timer.Stop()
		if err != nil {
			c.t.Errorf("%s: %s: %v\n%s", pod.name, container.Name, err, strings.Join(command.Args, " "))
		}
		c.t.Logf("%s: %s:\n%s", pod.name, container.Name, output)
	}
}

// client gives a client of these pods.
func (c *cluster) client(pods ...*pod) *clientv3.Client {
	c.t.Helper()
	config := clientv3.Config{DialTimeout: 5 * time.Second, Logger: zap.NewNop()}
	scheme := "http"
	if secrets, _ := filepath.Glob(filepath.Join(c.dir, "secrets", "*-client")); len(secrets) == 1 {
		scheme = "https"
		pair, err := tls.LoadX509KeyPair(filepath.Join(secrets[0], "tls.crt"), filepath.Join(secrets[0], "tls.key"))
		check(c.t, err)
		trusted := x509.NewCertPool()
		trusted.AppendCertsFromPEM([]byte(read(c.t, filepath.Join(secrets[0], "ca.crt"))))
		config.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: trusted}
	}
	// By the name that a Service gives it, which is in the certificate and not in the DNS of this program.
	addresses := map[string]string{}
	for _, pod := range pods {
		name := pod.name + "." + pod.subdomain + "." + namespace + ".svc.cluster.local:2379"
		switch {
		case pod.subdomain == "" && pod.workload != "" && scheme == "https":
			name = pod.workload + "." + namespace + ".svc:2379"
		case pod.subdomain == "":
			name = pod.ip + ":2379"
		}
		addresses[name] = pod.ip + ":2379"
		config.Endpoints = append(config.Endpoints, scheme+"://"+name)
	}
	config.DialOptions = []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, name string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addresses[name])
	})}
	client, err := clientv3.New(config)
	check(c.t, err)
	c.t.Cleanup(func() { client.Close() })
	return client
}

// serving gives the nodes that listen for clients.
func (c *cluster) serving() []*pod {
	var found []*pod
	for _, pod := range c.nodes() {
		if slices.ContainsFunc(pod.spec.Containers[0].Ports, func(port core.ContainerPort) bool { return port.Name == "client" }) {
			found = append(found, pod)
		}
	}
	return found
}

// exercise writes through every node, and reads and watches on every other.
func (c *cluster) exercise() {
	t := c.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pods := c.serving()
	var clients []*clientv3.Client
	var watches []clientv3.WatchChan
	for _, pod := range pods {
		client := c.client(pod)
		clients = append(clients, client)
		// Outside of what scoped fanouts hold, and in it.
		watches = append(watches, client.Watch(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithRev(1)))
	}
	count := 0
	for i, writer := range clients {
		for _, key := range []string{"/registry/pods/a", "/registry/nodes/a"} {
			value := fmt.Sprintf("from %d", i)
			_, err := writer.Put(ctx, key, value)
			check(t, err)
			count++
			for j, reader := range clients {
				found, err := reader.Get(ctx, key)
				if err != nil || len(found.Kvs) != 1 || string(found.Kvs[0].Value) != value {
					t.Errorf("put %s through %s and read through %s: %v, %v", key, pods[i].name, pods[j].name, found, err)
				}
			}
		}
	}
	for i, watch := range watches {
		seen := 0
		for seen < count {
			response, open := <-watch
			if !open || response.Err() != nil {
				t.Fatalf("the watch on %s ended after %d of %d events: %v", pods[i].name, seen, count, response.Err())
			}
			seen += len(response.Events)
		}
	}
}

// only gives the pods of a workload.
func (c *cluster) only(workload string) []*pod {
	var found []*pod
	for _, pod := range c.pods {
		if pod.workload == workload {
			found = append(found, pod)
		}
	}
	if len(found) == 0 {
		c.t.Fatalf("there are no pods of %s", workload)
	}
	return found
}
