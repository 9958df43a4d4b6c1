package kubernetes

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// store is one group of members and the fanouts that follow it. On etcd it has no fanouts, and members stand for them.
type store struct {
	members []*node
	fronts  []*node // what API servers connect to
	client  *clientv3.Client
}

// startStore starts a group and waits until all of it serves.
func startStore(t testing.TB, members, fanouts int) *store {
	t.Helper()
	program, place := storeProgram(t), directory(t)
	s := &store{}
	var peers, initial []string
	for i := range members {
		peers = append(peers, fmt.Sprintf("http://127.0.0.1:%d", freePort(t)))
		initial = append(initial, fmt.Sprintf("m%d=%s", i, peers[i]))
	}
	add := func(name string, args ...string) *node {
		url := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
		args = append([]string{"--name=" + name, "--listen-client-urls=" + url, "--advertise-client-urls=" + url,
			// What kubeadm sets.
			"--watch-progress-notify-interval=5s"}, args...)
		if !onEtcd() {
			args = append([]string{"serve"}, args...)
		}
		n := &node{url: url, process: process{
			name: name, program: program, args: args, log: filepath.Join(place, name+".log")}}
		t.Cleanup(func() { n.end(t, syscall.SIGKILL) })
		n.start(t)
		return n
	}
	for i, peer := range peers {
		name := fmt.Sprintf("m%d", i)
		s.members = append(s.members, add(name, "--data-dir="+filepath.Join(place, name),
			"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
			"--initial-cluster="+strings.Join(initial, ","), "--quota-backend-bytes=8589934592"))
	}
	s.fronts = s.members
	if !onEtcd() && fanouts > 0 {
		s.fronts = nil
		for i := range fanouts {
			s.fronts = append(s.fronts, add(fmt.Sprintf("f%d", i), "--roles=fanout,gateway",
				"--upstream="+strings.Join(peers, ",")))
		}
	}
	for _, n := range s.nodes() {
		n.awaitReady(t)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: s.memberURLs(), DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
	})
	check(t, err)
	t.Cleanup(func() { client.Close() })
	s.client = client
	return s
}

func (s *store) nodes() []*node {
	if len(s.fronts) > 0 && s.fronts[0] != s.members[0] {
		return append(append([]*node{}, s.members...), s.fronts...)
	}
	return s.members
}

func (s *store) memberURLs() []string { return urls(s.members) }

// endpoints is what --etcd-servers says.
func (s *store) endpoints() []string { return urls(s.fronts) }

func urls(nodes []*node) []string {
	var list []string
	for _, n := range nodes {
		list = append(list, n.url)
	}
	return list
}

// leader gives the member that leads, and follower one that does not.
func (s *store) leader(t testing.TB) *node { return s.member(t, true) }

func (s *store) follower(t testing.TB) *node { return s.member(t, false) }

func (s *store) member(t testing.TB, leads bool) *node {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		for _, n := range s.members {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			status, err := s.client.Status(ctx, n.url)
			cancel()
			if err == nil && status.Leader != 0 && (status.Leader == status.Header.MemberId) == leads {
				return n
			}
		}
	}
	t.Fatal("no leader for 30 s")
	return nil
}

// versions reads what lies under a prefix from the store itself, as of one revision: key and revision of its last change.
func (s *store) versions(t testing.TB, prefix string) map[string]int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	response, err := s.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	check(t, err)
	found := map[string]int64{}
	for _, kv := range response.Kvs {
		found[strings.TrimPrefix(string(kv.Key), prefix)] = kv.ModRevision
	}
	return found
}
