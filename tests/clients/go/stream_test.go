package clients

import (
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const streamedKeys = 3000

// fill writes so much that a list comes in many messages; values are below the size.
func fill(t *testing.T, size int) (*clientv3.Client, string, int64) {
	ctx, client, prefix := start(t)
	var revision int64
	for first := 0; first < streamedKeys; first += 100 {
		var ops []clientv3.Op
		for i := first; i < first+100; i++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%s%05d", prefix, i), strings.Repeat("v", i%size)))
		}
		written, err := client.Txn(ctx).Then(ops...).Commit()
		check(t, err)
		revision = written.Header.Revision
	}
	return client, prefix, revision
}

func TestStreamedListIsTheUnaryList(t *testing.T) {
	client, prefix, revision := fill(t, 700)
	ctx := t.Context()
	options := map[string][]clientv3.OpOption{
		"all":            {},
		"serializable":   {clientv3.WithSerializable()},
		"keys only":      {clientv3.WithKeysOnly()},
		"count only":     {clientv3.WithCountOnly()},
		"limit":          {clientv3.WithLimit(1234)},
		"limit of all":   {clientv3.WithLimit(streamedKeys)},
		"by key":         {clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend)},
		"older revision": {clientv3.WithRev(revision - 5)},
		"older, limited": {clientv3.WithRev(revision - 5), clientv3.WithLimit(99)},
	}
	for name, options := range options {
		t.Run(name, func(t *testing.T) {
			options = append([]clientv3.OpOption{clientv3.WithPrefix()}, options...)
			expected, err := client.Get(ctx, prefix, options...)
			check(t, err)
			stream, err := client.GetStream(ctx, prefix, options...)
			check(t, err)
			merged, err := clientv3.GetStreamToGetResponse(stream)
			check(t, err)
			if !proto.Equal((*etcdserverpb.RangeResponse)(merged), (*etcdserverpb.RangeResponse)(expected)) {
				t.Fatalf("the messages merged are not the unary answer: %d of %d keys, count %d of %d, more %v",
					len(merged.Kvs), len(expected.Kvs), merged.Count, expected.Count, merged.More)
			}
		})
	}
}

// What Kubernetes relies on: one header, in the last message, and no message without keys before it.
func TestStreamedListEndsWithItsHeader(t *testing.T) {
	client, prefix, revision := fill(t, 700)
	ctx := t.Context()
	stream, err := client.GetStream(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	var messages []*etcdserverpb.RangeResponse
	for message := range stream {
		check(t, message.Err())
		if len(messages) == 0 {
			// Written after the list began: the list does not show it.
			put(t, ctx, client, prefix+"99999", "later")
		}
		messages = append(messages, message.RangeResponse)
	}
	if len(messages) < 3 {
		t.Fatalf("%d messages: the list came in one piece", len(messages))
	}
	keys := 0
	for i, message := range messages {
		keys += len(message.Kvs)
		isLast := i == len(messages)-1
		if (message.Header != nil) != isLast || (!isLast && (len(message.Kvs) == 0 || message.Count != 0)) {
			t.Fatalf("message %d of %d: header %v, %d keys, count %d",
				i, len(messages), message.Header, len(message.Kvs), message.Count)
		}
	}
	last := messages[len(messages)-1]
	equal(t, "keys", keys, streamedKeys)
	equal(t, "count", last.Count, streamedKeys)
	equal(t, "header revision", last.Header.Revision, revision)

	stream, err = client.GetStream(ctx, prefix+"nothing/", clientv3.WithPrefix())
	check(t, err)
	messages = nil
	for message := range stream {
		check(t, message.Err())
		messages = append(messages, message.RangeResponse)
	}
	equal(t, "messages of an empty list", len(messages), 1)
	equal(t, "header revision of an empty list", messages[0].Header.Revision, revision+1)
}

func TestStreamedListRefusals(t *testing.T) {
	ctx, client, prefix := start(t)
	revision := put(t, ctx, client, prefix+"a", "1")
	refused := func(key string, options ...clientv3.OpOption) error {
		stream, err := client.GetStream(ctx, key, options...)
		check(t, err)
		_, err = clientv3.GetStreamToGetResponse(stream)
		return err
	}
	for text, option := range map[string]clientv3.OpOption{
		"RangeStream does not support custom sort orders": clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend),
		"RangeStream does not support revision filters":   clientv3.WithMinModRev(3),
	} {
		err := refused(prefix, clientv3.WithPrefix(), option)
		equal(t, "code", status.Code(err), codes.Unimplemented)
		equal(t, "text", status.Convert(err).Message(), text)
	}
	checkError(t, refused(prefix, clientv3.WithRev(revision+1000)), rpctypes.ErrFutureRev)
	checkError(t, refused(""), rpctypes.ErrEmptyKey)
}

func TestStreamedListMeetsCompaction(t *testing.T) {
	// Far more than the buffers on the way hold, so that the list waits for its client.
	client, prefix, revision := fill(t, 10_000)
	ctx := t.Context()
	stream, err := client.GetStream(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	first := <-stream
	check(t, first.Err())
	next := put(t, ctx, client, prefix+"99999", "later")
	_, err = client.Compact(ctx, next)
	check(t, err)
	// What is in the buffers still comes.
	_, err = clientv3.GetStreamToGetResponse(stream)
	checkError(t, err, rpctypes.ErrCompacted)
	stream, err = client.GetStream(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	check(t, err)
	_, err = clientv3.GetStreamToGetResponse(stream)
	checkError(t, err, rpctypes.ErrCompacted)
}
