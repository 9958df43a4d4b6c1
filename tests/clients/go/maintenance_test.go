package clients

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestDefragmentLeavesEverythingThere(t *testing.T) {
	ctx, client, prefix := start(t)
	putMany(t, ctx, client, prefix, "a", "b", "c")
	_, err := client.Delete(ctx, prefix+"b")
	check(t, err)
	_, err = client.Defragment(ctx, client.Endpoints()[0])
	check(t, err)
	got, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	equal(t, "keys", keys(prefix, got.Kvs), "a c")
	status, err := client.Status(ctx, client.Endpoints()[0])
	check(t, err)
	if status.DbSizeInUse > status.DbSize {
		t.Fatalf("of %d bytes %d are in use", status.DbSize, status.DbSizeInUse)
	}
}

func TestHashKVFollowsTheHistory(t *testing.T) {
	ctx, client, prefix := start(t)
	endpoint := client.Endpoints()[0]
	first := put(t, ctx, client, prefix+"key", "1")
	hash := func(revision int64) *clientv3.HashKVResponse {
		t.Helper()
		response, err := client.HashKV(ctx, endpoint, revision)
		check(t, err)
		return response
	}
	before := hash(0)
	equal(t, "revision", before.HashRevision, first)
	second := put(t, ctx, client, prefix+"key", "2")
	equal(t, "hash of the older revision", hash(first).Hash, before.Hash)
	if after := hash(second); after.Hash == before.Hash || after.Header.Revision != second {
		t.Fatalf("after a write the hash is %+v, and was %+v", after, before)
	}
	_, err := client.HashKV(ctx, endpoint, second+100)
	checkError(t, err, rpctypes.ErrFutureRev)
	_, err = client.Compact(ctx, second)
	check(t, err)
	_, err = client.HashKV(ctx, endpoint, first)
	checkError(t, err, rpctypes.ErrCompacted)
	equal(t, "compacted revision", hash(second).CompactRevision, second)
}

// readSnapshot checks the sum at the end and gives the file before it.
func readSnapshot(t *testing.T, from io.ReadCloser) []byte {
	t.Helper()
	defer from.Close()
	whole, err := io.ReadAll(from)
	check(t, err)
	if len(whole)%512 != sha256.Size {
		t.Fatalf("a snapshot of %d bytes has no sum at its end", len(whole))
	}
	file, sum := whole[:len(whole)-sha256.Size], whole[len(whole)-sha256.Size:]
	if got := sha256.Sum256(file); !bytes.Equal(got[:], sum) {
		t.Fatalf("the sum is %x, want %x", sum, got)
	}
	return file
}

func TestSnapshotsHaveWhatWasWritten(t *testing.T) {
	ctx, client, prefix := start(t)
	put(t, ctx, client, prefix+"key", "a value to be found")
	plain, err := client.Snapshot(ctx)
	check(t, err)
	versioned, err := client.SnapshotWithVersion(ctx)
	check(t, err)
	if !strings.HasPrefix(versioned.Version, "3.") {
		t.Fatalf("the version is %q", versioned.Version)
	}
	for _, file := range [][]byte{readSnapshot(t, plain), readSnapshot(t, versioned.Snapshot)} {
		if !bytes.Contains(file, []byte(prefix+"key")) || !bytes.Contains(file, []byte("a value to be found")) {
			t.Fatal("the key is not in the snapshot")
		}
	}
}

func TestMoveLeaderToNobody(t *testing.T) {
	ctx, client, _ := start(t)
	_, err := client.MoveLeader(ctx, 424242)
	checkError(t, err, rpctypes.ErrBadLeaderTransferee)
}

func TestDowngradeIsCheckedAnnouncedAndCalledOff(t *testing.T) {
	ctx, client, _ := start(t)
	status, err := client.Status(ctx, client.Endpoints()[0])
	check(t, err)
	var major, minor int
	_, err = fmt.Sscanf(status.StorageVersion, "%d.%d", &major, &minor)
	check(t, err)
	below := fmt.Sprintf("%d.%d.0", major, minor-1)
	_, err = client.Downgrade(ctx, clientv3.DowngradeValidate, below)
	check(t, err)
	_, err = client.Downgrade(ctx, clientv3.DowngradeValidate, fmt.Sprintf("%d.%d.0", major, minor-2))
	checkError(t, err, rpctypes.ErrInvalidDowngradeTargetVersion)
	_, err = client.Downgrade(ctx, clientv3.DowngradeEnable, below)
	check(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		_, err := client.Downgrade(ctx, clientv3.DowngradeCancel, "")
		check(t, err)
	})
	_, err = client.Downgrade(ctx, clientv3.DowngradeEnable, below)
	checkError(t, err, rpctypes.ErrDowngradeInProcess)
	status, err = client.Status(ctx, client.Endpoints()[0])
	check(t, err)
	equal(t, "announced", status.DowngradeInfo.GetEnabled(), true)
	equal(t, "target", status.DowngradeInfo.GetTargetVersion(), below)
}

func TestAlarmRefusesWritesUntilItIsDisarmed(t *testing.T) {
	ctx, client, prefix := start(t)
	put(t, ctx, client, prefix+"before", "")
	raised, err := pb.NewMaintenanceClient(client.ActiveConnection()).Alarm(ctx, &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, MemberID: 5, Alarm: pb.AlarmType_NOSPACE,
	})
	check(t, err)
	equal(t, "raised", len(raised.Alarms), 1)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		// All that there are.
		_, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		check(t, err)
	})
	_, err = client.Put(ctx, prefix+"beside", "")
	checkError(t, err, rpctypes.ErrNoSpace)
	_, err = client.Delete(ctx, prefix+"before")
	check(t, err)
	status, err := client.Status(ctx, client.Endpoints()[0])
	check(t, err)
	equal(t, "told by status", strings.Contains(strings.Join(status.Errors, " "), "alarm:NOSPACE"), true)
	disarmed, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: 5, Alarm: pb.AlarmType_NOSPACE})
	check(t, err)
	equal(t, "disarmed", disarmed.Alarms[0].MemberID, 5)
	put(t, ctx, client, prefix+"after", "")
	left, err := client.AlarmList(ctx)
	check(t, err)
	equal(t, "left", len(left.Alarms), 0)
}
