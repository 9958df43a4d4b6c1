package clients

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/clientv3util"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func TestTxnBranches(t *testing.T) {
	ctx, client, prefix := start(t)
	key := prefix + "key"
	commit := func() *clientv3.TxnResponse {
		response, err := client.Txn(ctx).
			If(clientv3util.KeyMissing(key)).
			Then(clientv3.OpPut(key, "created")).
			Else(clientv3.OpGet(key), clientv3.OpDelete(key, clientv3.WithPrevKV())).
			Commit()
		check(t, err)
		return response
	}

	created := commit()
	equal(t, "created", created.Succeeded, true)
	equal(t, "revision inside", created.Responses[0].GetResponsePut().Header.Revision, created.Header.Revision)

	removed := commit()
	equal(t, "created again", removed.Succeeded, false)
	equal(t, "responses", len(removed.Responses), 2)
	equal(t, "value read", string(removed.Responses[0].GetResponseRange().Kvs[0].Value), "created")
	equal(t, "deleted", removed.Responses[1].GetResponseDeleteRange().Deleted, 1)
	equal(t, "value deleted", string(removed.Responses[1].GetResponseDeleteRange().PrevKvs[0].Value), "created")
	equal(t, "revision", removed.Header.Revision, created.Header.Revision+1)
}

func TestTxnCompares(t *testing.T) {
	ctx, client, prefix := start(t)
	lease, err := client.Grant(ctx, 60)
	check(t, err)
	put(t, ctx, client, prefix+"a", "5")
	revision := put(t, ctx, client, prefix+"a", "5", clientv3.WithLease(lease.ID))
	put(t, ctx, client, prefix+"b", "5")
	a, none := prefix+"a", prefix+"none"

	cases := []struct {
		name string
		cmp  clientv3.Cmp
		want bool
	}{
		{"value equal", clientv3.Compare(clientv3.Value(a), "=", "5"), true},
		{"value not equal", clientv3.Compare(clientv3.Value(a), "!=", "5"), false},
		{"value greater", clientv3.Compare(clientv3.Value(a), ">", "4"), true},
		{"value less", clientv3.Compare(clientv3.Value(a), "<", "5"), false},
		{"value of no key", clientv3.Compare(clientv3.Value(none), "!=", "5"), false},
		{"version", clientv3.Compare(clientv3.Version(a), "=", 2), true},
		{"version of no key", clientv3.Compare(clientv3.Version(none), "=", 0), true},
		{"create revision", clientv3.Compare(clientv3.CreateRevision(a), "=", revision-1), true},
		{"mod revision", clientv3.Compare(clientv3.ModRevision(a), ">", revision-1), true},
		{"lease", clientv3.Compare(clientv3.LeaseValue(a), "=", lease.ID), true},
		{"no lease", clientv3.Compare(clientv3.LeaseValue(prefix+"b"), "=", 0), true},
		{"every key of a range", clientv3.Compare(clientv3.Value(prefix), "=", "5").WithPrefix(), true},
		{"not every key of a range", clientv3.Compare(clientv3.Version(prefix), "=", 2).WithPrefix(), false},
		{"empty range by version", clientv3.Compare(clientv3.Version(none), "=", 0).WithPrefix(), true},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			response, err := client.Txn(ctx).If(test.cmp).Commit()
			check(t, err)
			equal(t, "succeeded", response.Succeeded, test.want)
			equal(t, "a txn that writes nothing takes no revision", response.Header.Revision, revision+1)
		})
	}
}

func TestNestedTxn(t *testing.T) {
	ctx, client, prefix := start(t)
	a, b, c := prefix+"a", prefix+"b", prefix+"c"
	response, err := client.Txn(ctx).Then(
		clientv3.OpPut(a, "1"),
		clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.Version(b), "=", 0)},
			[]clientv3.Op{
				clientv3.OpPut(b, "2"),
				clientv3.OpTxn(
					[]clientv3.Cmp{clientv3.Compare(clientv3.Version(c), ">", 0)},
					nil,
					[]clientv3.Op{clientv3.OpPut(c, "3"), clientv3.OpGet(prefix, clientv3.WithPrefix())},
				),
			},
			nil,
		),
	).Commit()
	check(t, err)
	outer := response.Responses[1].GetResponseTxn()
	equal(t, "outer branch", outer.Succeeded, true)
	inner := outer.Responses[1].GetResponseTxn()
	equal(t, "inner branch", inner.Succeeded, false)
	equal(t, "the txn reads its own writes", keys(prefix, inner.Responses[1].GetResponseRange().Kvs), "a b c")

	got, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	for _, kv := range got.Kvs {
		equal(t, "mod revision of "+string(kv.Key), kv.ModRevision, response.Header.Revision)
	}
}

func TestTxnIsRefusedAsAWhole(t *testing.T) {
	ctx, client, prefix := start(t)
	before := put(t, ctx, client, prefix+"before", "")
	_, err := client.Txn(ctx).Then(clientv3.OpPut(prefix+"a", "1"), clientv3.OpPut(prefix+"a", "2")).Commit()
	checkError(t, err, rpctypes.ErrDuplicateKey)
	_, err = client.Txn(ctx).Then(clientv3.OpPut(prefix+"a", "1"), clientv3.OpDelete(prefix, clientv3.WithPrefix())).Commit()
	checkError(t, err, rpctypes.ErrDuplicateKey)
	_, err = client.Txn(ctx).Then(clientv3.OpPut(prefix+"a", "1"), clientv3.OpGet(prefix+"a", clientv3.WithRev(before+1000))).Commit()
	checkError(t, err, rpctypes.ErrFutureRev)
	_, err = client.Txn(ctx).Then(clientv3.OpPut(prefix+"a", "1"), clientv3.OpPut(prefix+"b", "1", clientv3.WithLease(12345))).Commit()
	checkError(t, err, rpctypes.ErrLeaseNotFound)
	many := make([]clientv3.Op, 129)
	for i := range many {
		many[i] = clientv3.OpPut(fmt.Sprintf("%s%d", prefix, i), "")
	}
	_, err = client.Txn(ctx).Then(many...).Commit()
	checkError(t, err, rpctypes.ErrTooManyOps)

	got, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	equal(t, "keys", keys(prefix, got.Kvs), "before")
	equal(t, "revision", got.Header.Revision, before)
}

var isolations = []struct {
	name  string
	level concurrency.Isolation
}{
	{"SerializableSnapshot", concurrency.SerializableSnapshot},
	{"Serializable", concurrency.Serializable},
	{"RepeatableReads", concurrency.RepeatableReads},
	{"ReadCommitted", concurrency.ReadCommitted},
}

// With a read check a counter loses no increment however many clients count; ReadCommitted only has to commit.
func TestSTMUnderContention(t *testing.T) {
	const workers, rounds = 6, 15
	for _, isolation := range isolations {
		t.Run(isolation.name, func(t *testing.T) {
			ctx, client, prefix := start(t)
			key := prefix + "counter"
			var group sync.WaitGroup
			failures := make(chan error, workers)
			for range workers {
				group.Add(1)
				go func() {
					defer group.Done()
					for range rounds {
						if err := increment(ctx, client, key, isolation.level); err != nil {
							failures <- err
							return
						}
					}
				}()
			}
			group.Wait()
			close(failures)
			check(t, <-failures)

			got, err := client.Get(ctx, key)
			check(t, err)
			count, err := strconv.Atoi(string(got.Kvs[0].Value))
			check(t, err)
			if isolation.level == concurrency.ReadCommitted {
				if count < 1 || count > workers*rounds {
					t.Fatalf("counter is %d", count)
				}
				return
			}
			equal(t, "counter", count, workers*rounds)
			equal(t, "version", got.Kvs[0].Version, workers*rounds)
		})
	}
}

func increment(ctx context.Context, client *clientv3.Client, key string, level concurrency.Isolation) error {
	_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
		count, _ := strconv.Atoi(stm.Get(key))
		stm.Put(key, strconv.Itoa(count+1))
		return nil
	}, concurrency.WithIsolation(level), concurrency.WithAbortContext(ctx), concurrency.WithPrefetch(key))
	return err
}

// Money moves between accounts at random; whoever reads all accounts in one STM sees the same total.
func TestSTMKeepsTheTotal(t *testing.T) {
	const accounts, workers, rounds = 5, 4, 20
	ctx, client, prefix := start(t)
	account := func(i int) string { return fmt.Sprintf("%s%d", prefix, i%accounts) }
	for i := range accounts {
		put(t, ctx, client, account(i), "100")
	}
	var group sync.WaitGroup
	failures := make(chan error, workers*2)
	for worker := range workers {
		group.Add(1)
		go func() {
			defer group.Done()
			for round := range rounds {
				from, to := account(worker+round), account(worker+2*round+1)
				if _, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					if from == to {
						return nil
					}
					source, _ := strconv.Atoi(stm.Get(from))
					target, _ := strconv.Atoi(stm.Get(to))
					stm.Put(from, strconv.Itoa(source-round))
					stm.Put(to, strconv.Itoa(target+round))
					return nil
				}, concurrency.WithAbortContext(ctx)); err != nil {
					failures <- err
					return
				}
				total := 0
				if _, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					total = 0
					for i := range accounts {
						balance, _ := strconv.Atoi(stm.Get(account(i)))
						total += balance
					}
					return nil
				}, concurrency.WithAbortContext(ctx)); err != nil {
					failures <- err
					return
				}
				if total != accounts*100 {
					failures <- fmt.Errorf("the total is %d", total)
					return
				}
			}
		}()
	}
	group.Wait()
	close(failures)
	check(t, <-failures)
}
