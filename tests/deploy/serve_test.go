package deploy

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	core "k8s.io/api/core/v1"
)

// What the chart's containers are given starts, finds each other by name, serves, is backed up and passes its own test.
func TestPodsOfTheChartServe(t *testing.T) {
	for _, test := range []struct{ name, set, change string }{
		{"default", "default", "snapshot: {enabled: true}"},
		{"minimal", "minimal", ""},
		{"cert-manager", "cert-manager", ""},
		{"cert-manager with a Deployment", "cert-manager", "{fanout: {kind: Deployment}, scopedFanouts: []}"},
		// Without what is no program of ours, and three members suffice to show it.
		{"consensus", "five-members", "{members: {replicas: 3}, snapshot: {keepDays: 0, extraContainers: []}}"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := begin(t, installed(t, valuesOf(t, test.set, test.change)))
			c.start()
			c.exercise()
			ran := 0
			for _, pod := range c.pods {
				if pod.workload == "" {
					c.run(pod)
					ran++
				}
			}
			if ran == 0 {
				t.Error("the test of the chart did not run")
			}
		})
	}
}

func TestPodsOfKustomizeServe(t *testing.T) {
	c := begin(t, kustomized(t, root+"/deploy/kustomize/base"))
	c.start()
	c.exercise()
}

// A fanout that is told to stop ends in time, and its watch goes on at the next.
func TestAFanoutDrains(t *testing.T) {
	c := begin(t, installed(t, valuesOf(t, "default", "fanout: {replicas: 2}")))
	c.start()
	fanouts := c.only(release + "-fanout")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	watch := c.client(fanouts...).Watch(ctx, "a")
	writer := c.client(c.only(release)...)
	for i, pod := range fanouts {
		_, err := writer.Put(ctx, "a", pod.name)
		check(t, err)
		response := <-watch
		if response.Err() != nil || len(response.Events) != 1 || string(response.Events[0].Kv.Value) != pod.name {
			t.Fatalf("event %d is %v, %v", i, response.Events, response.Err())
		}
		if i == 1 {
			break
		}
		process := c.processes[pod.name]
		check(t, process.Process.Signal(syscall.SIGTERM))
		began := time.Now()
		_ = process.Wait()
		grace := time.Duration(*pod.spec.TerminationGracePeriodSeconds) * time.Second
		if took := time.Since(began); took > grace {
			t.Errorf("%s took %v to stop, longer than %v", pod.name, took, grace)
		}
	}
}

// As docs/OPERATIONS.md says it: a learner is added, one more pod starts with the arguments of the upgrade, it is promoted,
// and the others start again with them.
func TestAMemberIsAdded(t *testing.T) {
	const alone = "fanout: {enabled: false}"
	c := begin(t, installed(t, valuesOf(t, "default", alone)))
	c.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	api := c.client(c.serving()...)
	url := "http://tailwater-3.tailwater-peers.etcd.svc.cluster.local:2380"
	var added *clientv3.MemberAddResponse
	// Members that have only just met are not trusted with a change.
	check(t, insist(ctx, func() (err error) {
		added, err = api.MemberAddAsLearner(ctx, []string{url})
		return err
	}))
	objects := installed(t, valuesOf(t, "default", alone, "members: {replicas: 4, clusterState: existing}"))
	c.pods = podsOf(objects)
	c.writeHosts(of[*core.Service](objects))
	pods := c.nodes()
	c.startPod(pods[3])
	check(t, insist(ctx, func() error {
		_, err := api.MemberPromote(ctx, added.Member.ID)
		return err
	}))
	c.awaitReady(pods[3])
	for _, pod := range []*pod{pods[2], pods[1], pods[0]} {
		process := c.processes[pod.name]
		check(t, process.Process.Signal(syscall.SIGTERM))
		_ = process.Wait()
		c.startPod(pod)
		c.awaitReady(pod)
	}
	c.exercise()
	members, err := api.MemberList(ctx)
	check(t, err)
	if len(members.Members) != 4 || slices.ContainsFunc(members.Members, func(one *etcdserverpb.Member) bool { return one.IsLearner }) {
		t.Errorf("the members are %v", members.Members)
	}
}

// kubeadm's static pod, by the name etcd and with kubeadm's certificates.
func TestKubeadmsStaticPodServes(t *testing.T) {
	text := read(t, root+"/deploy/kubeadm/static-pod.yaml")
	text = strings.NewReplacer("10.0.0.1", "127.0.1.1", "NODE", "control-plane").Replace(text)
	objects, err := decode(text)
	check(t, err)
	c := begin(t, objects)
	pki := filepath.Join(c.dir, "host", "etc/kubernetes/pki/etcd")
	signer := authority(t, "etcd-ca")
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	node := x509.Certificate{
		Subject: pkix.Name{CommonName: "control-plane"}, DNSNames: []string{"control-plane", "localhost"}, ExtKeyUsage: both,
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP("127.0.1.1")},
	}
	for _, name := range []string{"server", "peer"} {
		sign(t, node, &signer).write(t, filepath.Join(pki, name+".crt"), filepath.Join(pki, name+".key"))
	}
	check(t, os.WriteFile(filepath.Join(pki, "ca.crt"), signer.pem(), 0o644))
	// Where the client of a cluster looks for its own.
	client := sign(t, x509.Certificate{
		Subject: pkix.Name{CommonName: "kube-apiserver-etcd-client", Organization: []string{"kubeadm:cluster-admins"}}, ExtKeyUsage: both[1:],
	}, &signer)
	secret := filepath.Join(c.dir, "secrets", "apiserver-client")
	client.write(t, filepath.Join(secret, "tls.crt"), filepath.Join(secret, "tls.key"))
	check(t, os.WriteFile(filepath.Join(secret, "ca.crt"), signer.pem(), 0o644))
	c.start()
	pod := c.nodes()[0]
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	api := c.client(pod)
	_, err = api.Put(ctx, "/registry/a", "b")
	check(t, err)
	members, err := api.MemberList(ctx)
	check(t, err)
	if len(members.Members) != 1 || !slices.Equal(members.Members[0].ClientURLs, []string{"https://127.0.1.1:2379"}) {
		t.Errorf("the members are %v", members.Members)
	}
}
