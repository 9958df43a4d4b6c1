package main

import (
	"context"
	"fmt"
	"math/rand"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// perTxn keeps a transaction below etcd's limit of 128 operations.
const perTxn = 100

// filler writes with a fixed seed, so that a failure comes again.
type filler struct {
	client *clientv3.Client
	random *rand.Rand
	leases []clientv3.LeaseID
	keys   int
}

func fill(ctx context.Context, client *clientv3.Client, keys, leases int) error {
	f := &filler{client: client, random: rand.New(rand.NewSource(1)), keys: keys}
	if err := f.grant(ctx, leases); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		f.create, f.overwrite, f.remove, f.compact, f.overwrite, f.remove, f.large, f.auth,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (f *filler) key(i int) string {
	return fmt.Sprintf("/registry/kind-%02d/%06d", i%17, i)
}

// value is mostly of the size of a small object, now and then of several pages.
func (f *filler) value() string {
	length := f.random.Intn(400)
	switch f.random.Intn(40) {
	case 0:
		length = 1500 + f.random.Intn(3000)
	case 1:
		length = 4000 + f.random.Intn(9000)
	case 2:
		length = 0
	}
	return strings.Repeat(string(rune('a'+f.random.Intn(26))), length)
}

func (f *filler) put(i int) clientv3.Op {
	var options []clientv3.OpOption
	if len(f.leases) > 0 && f.random.Intn(10) == 0 {
		options = append(options, clientv3.WithLease(f.leases[f.random.Intn(len(f.leases))]))
	}
	return clientv3.OpPut(f.key(i), f.value(), options...)
}

func (f *filler) grant(ctx context.Context, leases int) error {
	for i := range leases {
		lease, err := f.client.Grant(ctx, int64(3600+i))
		if err != nil {
			return err
		}
		f.leases = append(f.leases, lease.ID)
	}
	return nil
}

// txn writes the keys that pick chooses, in transactions of one revision each.
func (f *filler) txn(ctx context.Context, pick func(i int) bool) error {
	var batch []clientv3.Op
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		_, err := f.client.Txn(ctx).Then(batch...).Commit()
		batch = batch[:0]
		return err
	}
	for i := range f.keys {
		if !pick(i) {
			continue
		}
		if batch = append(batch, f.put(i)); len(batch) == perTxn {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (f *filler) create(ctx context.Context) error {
	return f.txn(ctx, func(int) bool { return true })
}

func (f *filler) overwrite(ctx context.Context) error {
	if err := f.txn(ctx, func(int) bool { return f.random.Intn(3) == 0 }); err != nil {
		return err
	}
	// Some in revisions of their own.
	for range 50 {
		op := f.put(f.random.Intn(f.keys))
		if _, err := f.client.Do(ctx, op); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes single keys, one of them twice with a new life between, and a range.
func (f *filler) remove(ctx context.Context) error {
	for range f.keys/50 + 1 {
		if _, err := f.client.Delete(ctx, f.key(f.random.Intn(f.keys))); err != nil {
			return err
		}
	}
	for range 2 {
		if _, err := f.client.Put(ctx, f.key(7), "again"); err != nil {
			return err
		}
		if _, err := f.client.Delete(ctx, f.key(7)); err != nil {
			return err
		}
	}
	_, err := f.client.Delete(ctx, fmt.Sprintf("/registry/kind-%02d/0001", f.random.Intn(17)), clientv3.WithPrefix())
	return err
}

// compact ends the history at a revision that is a delete, the case in which etcd's versions differ.
func (f *filler) compact(ctx context.Context) error {
	if _, err := f.client.Put(ctx, f.key(11), "until the compaction"); err != nil {
		return err
	}
	deleted, err := f.client.Delete(ctx, f.key(11))
	if err != nil {
		return err
	}
	_, err = f.client.Compact(ctx, deleted.Header.Revision, clientv3.WithCompactPhysical())
	return err
}

func (f *filler) large(ctx context.Context) error {
	for i, length := range []int{100_000, 1_000_000, 4060, 4096, 8192} {
		if _, err := f.client.Put(ctx, fmt.Sprintf("/large/%d", i), strings.Repeat("L", length)); err != nil {
			return err
		}
	}
	_, err := f.client.Put(ctx, "/long/"+strings.Repeat("k", 5000), "a key of more than a page")
	return err
}

func (f *filler) auth(ctx context.Context) error {
	for i := range 40 {
		role := fmt.Sprintf("role-%02d", i)
		if _, err := f.client.RoleAdd(ctx, role); err != nil {
			return err
		}
		permission := clientv3.PermissionType(i % 3)
		if _, err := f.client.RoleGrantPermission(ctx, role, f.key(i), clientv3.GetPrefixRangeEnd(f.key(i)), permission); err != nil {
			return err
		}
	}
	for i := range 4 {
		user := fmt.Sprintf("user-%d", i)
		options := &clientv3.UserAddOptions{NoPassword: i == 3}
		if _, err := f.client.UserAddWithOptions(ctx, user, passwordOf(user, options), options); err != nil {
			return err
		}
		if _, err := f.client.UserGrantRole(ctx, user, fmt.Sprintf("role-%02d", i)); err != nil {
			return err
		}
	}
	if _, err := f.client.UserAdd(ctx, rootName, rootPassword); err != nil {
		return err
	}
	if _, err := f.client.UserGrantRole(ctx, rootName, rootName); err != nil {
		return err
	}
	_, err := f.client.AuthEnable(ctx)
	return err
}

func passwordOf(user string, options *clientv3.UserAddOptions) string {
	if options.NoPassword {
		return ""
	}
	return "of-" + user
}
