package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"hash/crc32"
	"os"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// readPoints is the number of revisions at which all keys are listed, the oldest and the newest included.
const readPoints = 6

func dump(ctx context.Context, client *clientv3.Client, endpoint string) error {
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	defer out.Flush()
	now, err := client.Get(ctx, "/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	revision := now.Header.Revision
	compacted, err := compactedRevision(ctx, client)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "revision %d compacted %d\n", revision, compacted)
	hash, err := client.HashKV(ctx, endpoint, revision)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "hash %08x compacted %d\n", hash.Hash, hash.CompactRevision)
	oldest := max(compacted, 1)
	for i := range int64(readPoints) {
		if err := list(ctx, client, out, oldest+(revision-oldest)*i/(readPoints-1)); err != nil {
			return err
		}
	}
	// Nothing is left to watch where everything was compacted.
	if compacted < revision {
		if err := events(ctx, client, out, oldest, revision); err != nil {
			return err
		}
	}
	if err := leases(ctx, client, out); err != nil {
		return err
	}
	return users(ctx, client, out, endpoint)
}

// compactedRevision asks as a watcher does: one that starts too early is told where history begins.
func compactedRevision(ctx context.Context, client *clientv3.Client) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for answer := range client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(1)) {
		return answer.CompactRevision, nil
	}
	return 0, fmt.Errorf("no answer to a watch from revision 1")
}

func printKV(out *bufio.Writer, kv *mvccpb.KeyValue) {
	if kv == nil {
		fmt.Fprintf(out, " -")
		return
	}
	fmt.Fprintf(out, " %q %d %d %d %x %d:%08x", kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease,
		len(kv.Value), crc32.ChecksumIEEE(kv.Value))
}

func list(ctx context.Context, client *clientv3.Client, out *bufio.Writer, revision int64) error {
	const page = 5000
	for from := "\x00"; ; {
		answer, err := client.Get(ctx, from, clientv3.WithFromKey(), clientv3.WithRev(revision), clientv3.WithLimit(page))
		if err != nil {
			return err
		}
		for _, kv := range answer.Kvs {
			fmt.Fprintf(out, "at %d", revision)
			printKV(out, kv)
			fmt.Fprintln(out)
		}
		if !answer.More {
			fmt.Fprintf(out, "at %d: the rest of %d\n", revision, answer.Count)
			return nil
		}
		from = string(answer.Kvs[len(answer.Kvs)-1].Key) + "\x00"
	}
}

func events(ctx context.Context, client *clientv3.Client, out *bufio.Writer, from, to int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	options := []clientv3.OpOption{clientv3.WithFromKey(), clientv3.WithRev(from), clientv3.WithPrevKV()}
	for answer := range client.Watch(ctx, "\x00", options...) {
		if err := answer.Err(); err != nil {
			return err
		}
		for _, event := range answer.Events {
			fmt.Fprintf(out, "event %s", event.Type)
			printKV(out, event.Kv)
			printKV(out, event.PrevKv)
			fmt.Fprintln(out)
		}
		if last := len(answer.Events) - 1; last >= 0 && answer.Events[last].Kv.ModRevision >= to {
			return nil
		}
	}
	return fmt.Errorf("the watch ended early")
}

func leases(ctx context.Context, client *clientv3.Client, out *bufio.Writer) error {
	answer, err := client.Leases(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(answer.Leases, func(a, b clientv3.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
	for _, lease := range answer.Leases {
		state, err := client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
		if err != nil {
			return err
		}
		slices.SortFunc(state.Keys, func(a, b []byte) int { return slices.Compare(a, b) })
		fmt.Fprintf(out, "lease %x granted %d keys %q\n", state.ID, state.GrantedTTL, state.Keys)
	}
	return nil
}

func users(ctx context.Context, client *clientv3.Client, out *bufio.Writer, endpoint string) error {
	status, err := client.AuthStatus(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "auth %t revision %d\n", status.Enabled, status.AuthRevision)
	roles, err := client.RoleList(ctx)
	if err != nil {
		return err
	}
	for _, name := range roles.Roles {
		role, err := client.RoleGet(ctx, name)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "role %q", name)
		for _, permission := range role.Perm {
			fmt.Fprintf(out, " %s %q %q", permission.PermType, permission.Key, permission.RangeEnd)
		}
		fmt.Fprintln(out)
	}
	all, err := client.UserList(ctx)
	if err != nil {
		return err
	}
	for _, name := range all.Users {
		user, err := client.UserGet(ctx, name)
		if err != nil {
			return err
		}
		_, right := client.Authenticate(ctx, name, "of-"+name)
		_, wrong := client.Authenticate(ctx, name, "wrong")
		fmt.Fprintf(out, "user %q roles %q right password %t wrong %t\n", name, user.Roles, right == nil, wrong == nil)
	}
	return nil
}
