package clients

import (
	"context"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// connectAs gives a client that logs in by itself, and again when its token is none any more.
func connectAs(t *testing.T, user, password string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   endpoints(),
		DialTimeout: 5 * time.Second,
		Username:    user,
		Password:    password,
		Logger:      zap.NewNop(),
	})
	check(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

// withAuth turns auth on until the test ends: "user" may read and write what begins with the prefix.
func withAuth(t *testing.T, ctx context.Context, client *clientv3.Client, prefix string) (root, user *clientv3.Client) {
	t.Helper()
	_, err := client.UserAdd(ctx, "root", "rootword")
	check(t, err)
	_, err = client.UserGrantRole(ctx, "root", "root")
	check(t, err)
	_, err = client.UserAdd(ctx, "user", "word")
	check(t, err)
	_, err = client.RoleAdd(ctx, "role")
	check(t, err)
	all := clientv3.PermissionType(clientv3.PermReadWrite)
	_, err = client.RoleGrantPermission(ctx, "role", prefix, clientv3.GetPrefixRangeEnd(prefix), all)
	check(t, err)
	_, err = client.UserGrantRole(ctx, "user", "role")
	check(t, err)
	_, err = client.AuthEnable(ctx)
	check(t, err)
	root = connectAs(t, "root", "rootword")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		_, err := root.AuthDisable(ctx)
		check(t, err)
		for _, name := range []string{"root", "user"} {
			_, err = client.UserDelete(ctx, name)
			check(t, err)
		}
		_, err = client.RoleDelete(ctx, "role")
		check(t, err)
	})
	return root, connectAs(t, "user", "word")
}

func TestAuthPermitsAndDenies(t *testing.T) {
	ctx, nobody, prefix := start(t)
	root, user := withAuth(t, ctx, nobody, prefix)

	put(t, ctx, user, prefix+"a", "1")
	_, err := user.Put(ctx, "elsewhere", "1")
	checkError(t, err, rpctypes.ErrPermissionDenied)
	_, err = nobody.Put(ctx, prefix+"a", "1")
	checkError(t, err, rpctypes.ErrUserEmpty)
	_, err = user.Get(ctx, "", clientv3.WithPrefix())
	checkError(t, err, rpctypes.ErrPermissionDenied)
	found, err := user.Get(ctx, prefix, clientv3.WithPrefix())
	check(t, err)
	equal(t, "keys", keys(prefix, found.Kvs), "a")
	_, err = user.Txn(ctx).Then(clientv3.OpPut(prefix+"b", "1"), clientv3.OpGet("elsewhere")).Commit()
	checkError(t, err, rpctypes.ErrPermissionDenied)
	_, err = user.Compact(ctx, found.Header.Revision)
	checkError(t, err, rpctypes.ErrPermissionDenied)
	_, err = user.AuthDisable(ctx)
	checkError(t, err, rpctypes.ErrPermissionDenied)

	denied := receiveAny(t, ctx, user.Watch(ctx, "elsewhere"))
	if !denied.Canceled {
		t.Fatalf("a watch without the right to it is %+v", denied)
	}
	watch := user.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(found.Header.Revision+1))
	put(t, ctx, root, prefix+"c", "1")
	equal(t, "event", render(prefix, receive(t, ctx, watch).Events[0]), "+c=1")
}

func TestAuthLogsInAgainByItself(t *testing.T) {
	ctx, nobody, prefix := start(t)
	root, user := withAuth(t, ctx, nobody, prefix)
	put(t, ctx, user, prefix+"a", "1")
	// The same password again ends the token, and the client gets another.
	_, err := root.UserChangePassword(ctx, "user", "word")
	check(t, err)
	put(t, ctx, user, prefix+"a", "2")
	_, err = root.UserChangePassword(ctx, "user", "another")
	check(t, err)
	_, err = user.Put(ctx, prefix+"a", "3")
	checkError(t, err, rpctypes.ErrAuthFailed)

	if _, err = clientv3.New(clientv3.Config{
		Endpoints:   endpoints(),
		DialTimeout: 5 * time.Second,
		Username:    "user",
		Password:    "word",
		Logger:      zap.NewNop(),
	}); err == nil {
		t.Fatal("an old password opens")
	}
}

func TestAuthTellsUsersAndRoles(t *testing.T) {
	ctx, nobody, prefix := start(t)
	root, user := withAuth(t, ctx, nobody, prefix)
	users, err := root.UserList(ctx)
	check(t, err)
	equal(t, "users", len(users.Users), 2)
	own, err := user.UserGet(ctx, "user")
	check(t, err)
	equal(t, "role", own.Roles[0], "role")
	_, err = user.UserGet(ctx, "root")
	checkError(t, err, rpctypes.ErrPermissionDenied)
	role, err := user.RoleGet(ctx, "role")
	check(t, err)
	equal(t, "range", string(role.Perm[0].Key), prefix)
	_, err = root.UserAdd(ctx, "user", "x")
	checkError(t, err, rpctypes.ErrUserAlreadyExist)
	_, err = root.UserDelete(ctx, "root")
	checkError(t, err, rpctypes.ErrInvalidAuthMgmt)
	status, err := root.AuthStatus(ctx)
	check(t, err)
	equal(t, "enabled", status.Enabled, true)

	lease, err := user.Grant(ctx, 60)
	check(t, err)
	put(t, ctx, user, prefix+"leased", "1", clientv3.WithLease(lease.ID))
	put(t, ctx, root, "foreign", "1", clientv3.WithLease(lease.ID))
	_, err = user.Revoke(ctx, lease.ID)
	checkError(t, err, rpctypes.ErrPermissionDenied)
	_, err = user.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	checkError(t, err, rpctypes.ErrPermissionDenied)
	_, err = root.Revoke(ctx, lease.ID)
	check(t, err)
}
