// Command watchers runs many watchers of etcd's official client on a tier of replicas, notes everything that they are
// sent while replicas come and go, and compares it with the log of a member.
//
// It prints "ready" when every watch is created, and then takes commands on its input, one a line:
//
//	drain MEMBER   from now on judge the watchers that MEMBER (its id) serves
//	settled        prints how late each of them got an event since "drain", as JSON
//	finish REVISION   waits for all watchers, compares, prints the verdict as JSON and ends
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

type settings struct {
	endpoints []string
	log       []string
	prefix    string
	groups    int
	watchers  int
	clients   int
	from      int64
	progress  time.Duration
	patience  time.Duration
}

func main() {
	var s settings
	endpoints := flag.String("endpoints", "", "URLs of the replicas, comma separated")
	log := flag.String("log", "", "URLs of members that have the log, comma separated")
	flag.StringVar(&s.prefix, "prefix", "/w/", "where all keys are; group 7 is under PREFIX007/")
	flag.IntVar(&s.groups, "groups", 10, "groups of keys; each watcher watches one")
	flag.IntVar(&s.watchers, "watchers", 50, "number of watchers")
	flag.IntVar(&s.clients, "clients", 10, "clients that they share, each with one connection per replica")
	flag.Int64Var(&s.from, "from", 1, "first revision that is watched")
	flag.DurationVar(&s.progress, "progress", 500*time.Millisecond, "how often each client asks for progress")
	flag.DurationVar(&s.patience, "patience", 60*time.Second, "how long watchers may take to the end of the log")
	flag.Parse()
	s.endpoints, s.log = strings.Split(*endpoints, ","), strings.Split(*log, ",")
	if err := run(s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(s settings) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	watchers, err := start(ctx, s)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		words := strings.Fields(commands.Text())
		switch {
		case len(words) == 2 && words[0] == "drain":
			var member uint64
			if _, err := fmt.Sscan(words[1], &member); err != nil {
				return err
			}
			for _, w := range watchers {
				w.judge(member, time.Now())
			}
		case len(words) == 1 && words[0] == "settled":
			if err := print(settled(watchers, time.Now())); err != nil {
				return err
			}
		case len(words) == 2 && words[0] == "finish":
			var revision int64
			if _, err := fmt.Sscan(words[1], &revision); err != nil {
				return err
			}
			verdict, err := finish(ctx, s, watchers, revision)
			if err != nil {
				return err
			}
			return print(verdict)
		default:
			return fmt.Errorf("unknown command %q", commands.Text())
		}
	}
	return commands.Err()
}

// start opens all watches and waits until they are created.
func start(ctx context.Context, s settings) ([]*watcher, error) {
	var watchers []*watcher
	var created sync.WaitGroup
	for i := range s.clients {
		client, err := connect(s.endpoints, i)
		if err != nil {
			return nil, err
		}
		// As Kubernetes opens its watches: they want to know when there is no leader.
		streamed := clientv3.WithRequireLeader(ctx)
		go func() {
			for range time.Tick(s.progress) {
				// An error means that the stream is being opened again; the next tick asks again.
				_ = client.RequestProgress(streamed)
			}
		}()
		for at := i; at < s.watchers; at += s.clients {
			w := &watcher{name: at, prefix: group(s.prefix, at%s.groups)}
			watchers = append(watchers, w)
			created.Add(1)
			watch := client.Watch(streamed, w.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(),
				clientv3.WithRev(s.from), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
			go w.follow(watch, created.Done)
		}
	}
	done := make(chan struct{})
	go func() { created.Wait(); close(done) }()
	select {
	case <-done:
		return watchers, nil
	case <-time.After(s.patience):
		return nil, fmt.Errorf("not all watches were created within %v", s.patience)
	}
}

func group(prefix string, index int) string { return fmt.Sprintf("%s%03d/", prefix, index) }

// connect makes a client with Kubernetes' keepalive settings. It begins with another replica than the client before.
func connect(endpoints []string, first int) (*clientv3.Client, error) {
	var rotated []string
	for i := range endpoints {
		rotated = append(rotated, endpoints[(first+i)%len(endpoints)])
	}
	retry := backoff.DefaultConfig
	retry.BaseDelay, retry.MaxDelay = 100*time.Millisecond, time.Second
	return clientv3.New(clientv3.Config{
		Endpoints:            rotated,
		DialKeepAliveTime:    30 * time.Second,
		DialKeepAliveTimeout: 10 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: time.Second}),
		},
	})
}

func print(value any) error { return json.NewEncoder(os.Stdout).Encode(value) }
