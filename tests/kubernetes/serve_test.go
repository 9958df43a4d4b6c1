package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

// apiServerVariable makes this binary an API server whose flags are the arguments.
const apiServerVariable = "KUBERNETES_TEST_API_SERVER"

// fakeKubeconfig names a main API server that the flags of an extension server ask for and nothing here needs.
const fakeKubeconfig = `{"apiVersion":"v1","kind":"Config","current-context":"none",
"clusters":[{"name":"none","cluster":{"server":"http://127.0.0.1:1"}}],
"contexts":[{"name":"none","context":{"cluster":"none","user":"none"}}],"users":[{"name":"none","user":{}}]}`

func TestMain(m *testing.M) {
	if os.Getenv(apiServerVariable) == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, os.Args[1:]); err != nil {
		klog.ErrorS(err, "the API server ended")
		os.Exit(1)
	}
}

// serve is what the main program of k8s.io/apiextensions-apiserver does, with events and leases added, and with a
// word to the test once it serves.
func serve(ctx context.Context, arguments []string) error {
	place, err := os.MkdirTemp("", "k8s-apiserver-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(place)
	kubeconfig := filepath.Join(place, "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(fakeKubeconfig), 0o600); err != nil {
		return err
	}

	o := options.NewCustomResourceDefinitionsServerOptions(os.Stdout, os.Stderr)
	flags := pflag.NewFlagSet("apiserver", pflag.ContinueOnError)
	o.AddFlags(flags)
	eventTTL := flags.Duration("event-ttl", time.Hour, "how long events are kept, as kube-apiserver's flag")
	flags.DurationVar(checkPeriod(), "consistency-check-period", *checkPeriod(), "how often the watch cache is compared with the store")
	err = flags.Parse(append([]string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig, "--authentication-skip-lookup",
		"--cert-dir=" + place, "--bind-address=127.0.0.1",
		// What needs the main API server; and no limits of its own in the way of the store's.
		"--enable-priority-and-fairness=false", "--max-requests-inflight=0", "--max-mutating-requests-inflight=0",
		"--disable-admission-plugins=NamespaceLifecycle,MutatingAdmissionWebhook,ValidatingAdmissionWebhook," +
			"ValidatingAdmissionPolicy,MutatingAdmissionPolicy",
		"--storage-media-type=application/vnd.kubernetes.protobuf",
	}, arguments...))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving := o.RecommendedOptions.SecureServing
	serving.Listener, serving.BindPort = listener, listener.Addr().(*net.TCPAddr).Port
	if err := o.ServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	if err := o.Complete(); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return err
	}
	server, err := build(o, *eventTTL)
	if err != nil {
		return err
	}
	if err := server.AddPostStartHook("tell-the-test", func(genericapiserver.PostStartHookContext) error {
		loopback := server.LoopbackClientConfig
		return json.NewEncoder(os.Stdout).Encode(connection{
			Host: loopback.Host, ServerName: loopback.ServerName, Token: loopback.BearerToken, CA: loopback.CAData,
		})
	}); err != nil {
		return err
	}
	return server.PrepareRun().RunWithContext(ctx)
}

func build(o *options.CustomResourceDefinitionsServerOptions, eventTTL time.Duration) (*genericapiserver.GenericAPIServer, error) {
	config, err := o.Config()
	if err != nil {
		return nil, err
	}
	// Their schemas are not in this library.
	openAPI := config.GenericConfig.OpenAPIV3Config
	openAPI.IgnorePrefixes = append(openAPI.IgnorePrefixes, "/api/v1", "/apis/coordination.k8s.io")
	config.GenericConfig.SkipOpenAPIInstallation = true
	// Readiness waits for informers of the main API server, which there is not; of this factory nobody asks for any.
	client, err := kubernetes.NewForConfig(config.GenericConfig.LoopbackClientConfig)
	if err != nil {
		return nil, err
	}
	config.GenericConfig.SharedInformerFactory = informers.NewSharedInformerFactory(client, 0)
	server, err := config.Complete().New(genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, err
	}
	if err := installBuiltins(server.GenericAPIServer, o.RecommendedOptions.Etcd, eventTTL); err != nil {
		return nil, fmt.Errorf("events and leases: %w", err)
	}
	return server.GenericAPIServer, nil
}
