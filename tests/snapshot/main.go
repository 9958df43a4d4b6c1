// What the test of crates/snapshot needs of etcd's own libraries: a store with everything in it that a snapshot can
// hold, its content as text, and bbolt's judgement of a file.
//
//	snapshot fill ENDPOINT KEYS LEASES   writes KEYS keys with history, LEASES leases, users and roles, and enables auth
//	snapshot dump ENDPOINT               prints what the server holds, in a form that is equal for equal stores
//	snapshot check FILE                  bbolt's check with both kinds of freelist, and again after changing a copy
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	rootName     = "root"
	rootPassword = "of-the-root"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 4 && args[0] == "fill":
		keys, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		leases, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		client, err := connect(args[1], "")
		if err != nil {
			return err
		}
		defer client.Close()
		return fill(ctx, client, keys, leases)
	case len(args) == 2 && args[0] == "dump":
		client, err := connect(args[1], rootName)
		if err != nil {
			return err
		}
		defer client.Close()
		return dump(ctx, client, args[1])
	case len(args) == 2 && args[0] == "check":
		return check(args[1])
	default:
		return fmt.Errorf("usage: snapshot fill ENDPOINT KEYS LEASES | dump ENDPOINT | check FILE")
	}
}

func connect(endpoint, user string) (*clientv3.Client, error) {
	config := clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 20 * time.Second, Logger: zap.NewNop()}
	if user != "" {
		config.Username, config.Password = user, rootPassword
	}
	return clientv3.New(config)
}
