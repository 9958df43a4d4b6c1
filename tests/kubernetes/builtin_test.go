package kubernetes

import (
	"context"
	"fmt"
	"time"

	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/storage/names"
)

var (
	scheme = runtime.NewScheme()
	codecs = serializer.NewCodecFactory(scheme)
)

func init() {
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, coordination.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	// kube-apiserver has types of its own in memory; here these are the ones of the wire.
	internal := func(group string) schema.GroupVersion {
		return schema.GroupVersion{Group: group, Version: runtime.APIVersionInternal}
	}
	scheme.AddKnownTypes(internal(core.GroupName), &core.Event{}, &core.EventList{})
	scheme.AddKnownTypes(internal(coordination.GroupName), &coordination.Lease{}, &coordination.LeaseList{})
}

// installBuiltins adds events and leases. They are stored as kube-apiserver stores what is compiled into it: protobuf,
// through the storage factory that obeys --etcd-servers-overrides, events with a lease of the store and no watch cache.
func installBuiltins(server *genericapiserver.GenericAPIServer, etcd *genericoptions.EtcdOptions, eventTTL time.Duration) error {
	factory := serverstorage.NewDefaultStorageFactory(etcd.StorageConfig, etcd.DefaultStorageMediaType, codecs,
		serverstorage.NewDefaultResourceEncodingConfig(scheme), serverstorage.NewResourceConfig(), nil)
	overrides, err := genericoptions.ParseEtcdServersOverrides(etcd.EtcdServersOverrides)
	if err != nil {
		return err
	}
	for _, override := range overrides {
		factory.SetEtcdLocation(override.GroupResource, override.Servers)
	}
	getter := etcd.CreateRESTOptionsGetter(factory, nil)

	events, err := newStore(getter, schema.GroupResource{Resource: "events"}, "event",
		func() runtime.Object { return &core.Event{} }, func() runtime.Object { return &core.EventList{} })
	if err != nil {
		return err
	}
	events.TTLFunc = func(runtime.Object, uint64, bool) (uint64, error) { return uint64(eventTTL.Seconds()), nil }
	leases, err := newStore(getter, schema.GroupResource{Group: coordination.GroupName, Resource: "leases"}, "lease",
		func() runtime.Object { return &coordination.Lease{} }, func() runtime.Object { return &coordination.LeaseList{} })
	if err != nil {
		return err
	}

	legacy := genericapiserver.NewDefaultAPIGroupInfo(core.GroupName, scheme, runtime.NewParameterCodec(scheme), codecs)
	legacy.PrioritizedVersions = []schema.GroupVersion{core.SchemeGroupVersion}
	legacy.VersionedResourcesStorageMap["v1"] = map[string]rest.Storage{"events": events}
	if err := server.InstallLegacyAPIGroup(genericapiserver.DefaultLegacyAPIPrefix, &legacy); err != nil {
		return err
	}
	group := genericapiserver.NewDefaultAPIGroupInfo(coordination.GroupName, scheme, runtime.NewParameterCodec(scheme), codecs)
	group.PrioritizedVersions = []schema.GroupVersion{coordination.SchemeGroupVersion}
	group.VersionedResourcesStorageMap["v1"] = map[string]rest.Storage{"leases": leases}
	return server.InstallAPIGroup(&group)
}

func newStore(getter generic.RESTOptionsGetter, resource schema.GroupResource, singular string,
	object, list func() runtime.Object) (*registry.Store, error) {
	s := &registry.Store{
		NewFunc: object, NewListFunc: list,
		DefaultQualifiedResource:  resource,
		SingularQualifiedResource: schema.GroupResource{Group: resource.Group, Resource: singular},
		CreateStrategy:            strategy{scheme, names.SimpleNameGenerator},
		UpdateStrategy:            strategy{scheme, names.SimpleNameGenerator},
		DeleteStrategy:            strategy{scheme, names.SimpleNameGenerator},
		TableConvertor:            rest.NewDefaultTableConvertor(resource),
	}
	if err := s.CompleteWithOptions(&generic.StoreOptions{RESTOptions: getter}); err != nil {
		return nil, fmt.Errorf("%v: %w", resource, err)
	}
	return s, nil
}

// strategy takes every object of a namespace as it is; what kube-apiserver checks in them is not the store's matter.
type strategy struct {
	runtime.ObjectTyper
	names.NameGenerator
}

func (strategy) NamespaceScoped() bool                                            { return true }
func (strategy) PrepareForCreate(context.Context, runtime.Object)                 {}
func (strategy) PrepareForUpdate(context.Context, runtime.Object, runtime.Object) {}
func (strategy) Validate(context.Context, runtime.Object) field.ErrorList         { return nil }
func (strategy) ValidateUpdate(context.Context, runtime.Object, runtime.Object) field.ErrorList {
	return nil
}
func (strategy) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }
func (strategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
func (strategy) Canonicalize(runtime.Object) {}
