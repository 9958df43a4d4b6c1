package clients

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func TestStatusAndMembers(t *testing.T) {
	ctx, client, prefix := start(t)
	before, err := client.Status(ctx, client.Endpoints()[0])
	check(t, err)
	revision := put(t, ctx, client, prefix+"key", strings.Repeat("v", 1024))
	after, err := client.Status(ctx, client.Endpoints()[0])
	check(t, err)
	if !strings.HasPrefix(after.Version, "3.") {
		t.Fatalf("version is %q", after.Version)
	}
	equal(t, "no errors", len(after.Errors), 0)
	equal(t, "learner", after.IsLearner, false)
	equal(t, "revision", after.Header.Revision, revision)
	if after.RaftIndex <= before.RaftIndex || after.RaftAppliedIndex > after.RaftIndex || after.RaftTerm == 0 {
		t.Fatalf("raft index %d after %d, applied %d, term %d", after.RaftIndex, before.RaftIndex, after.RaftAppliedIndex, after.RaftTerm)
	}
	if after.DbSize <= 0 || after.DbSizeInUse <= 0 || after.DbSizeInUse > after.DbSize {
		t.Fatalf("database of %d bytes, %d in use", after.DbSize, after.DbSizeInUse)
	}

	members, err := client.MemberList(ctx)
	check(t, err)
	leader, self := false, false
	for _, member := range members.Members {
		leader = leader || member.ID == after.Leader
		self = self || member.ID == after.Header.MemberId
		if member.Name == "" || len(member.PeerURLs) == 0 || len(member.ClientURLs) == 0 {
			t.Fatalf("incomplete member %v", member)
		}
	}
	equal(t, "the leader is a member", leader, true)
	equal(t, "the server is a member", self, true)
	equal(t, "cluster id", members.Header.ClusterId, after.Header.ClusterId)

	alarms, err := client.AlarmList(ctx)
	check(t, err)
	equal(t, "alarms", len(alarms.Alarms), 0)
}

func TestHealthService(t *testing.T) {
	ctx, client, _ := start(t)
	health := healthpb.NewHealthClient(client.ActiveConnection())
	response, err := health.Check(ctx, &healthpb.HealthCheckRequest{})
	check(t, err)
	equal(t, "status", response.Status, healthpb.HealthCheckResponse_SERVING)
	_, err = health.Check(ctx, &healthpb.HealthCheckRequest{Service: "nobody"})
	equal(t, "code for an unknown service", status.Code(err), codes.NotFound)
}

func TestRefusedRequests(t *testing.T) {
	ctx, client, prefix := start(t)
	_, err := client.Put(ctx, "", "value")
	checkError(t, err, rpctypes.ErrEmptyKey)
	_, err = client.Delete(ctx, "")
	checkError(t, err, rpctypes.ErrEmptyKey)
	_, err = client.Get(ctx, prefix, clientv3.WithRev(1<<40))
	checkError(t, err, rpctypes.ErrFutureRev)
	_, err = client.Put(ctx, prefix+"key", strings.Repeat("v", 1600<<10))
	checkError(t, err, rpctypes.ErrRequestTooLarge)
	_, err = client.Get(ctx, prefix+"key")
	check(t, err)
}

// Clients that learn the members' addresses by Sync go on by these.
func TestSyncedEndpointsServe(t *testing.T) {
	ctx, client, prefix := start(t)
	check(t, client.Sync(ctx))
	if len(client.Endpoints()) == 0 {
		t.Fatal("the members advertise no address")
	}
	put(t, ctx, connectTo(t, client.Endpoints()...), prefix+"key", "")
}
