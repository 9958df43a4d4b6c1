package kubernetes

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

const (
	namespace = "default"
	group     = "tests.tailwater.dev"
)

var (
	definitions = schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	events = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	leases = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
)

// define makes a custom resource, named by its plural, and waits until it is served.
func define(t testing.TB, s *apiServer, plural string) schema.GroupVersionResource {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	kind := strings.ToUpper(plural[:1]) + strings.TrimSuffix(plural[1:], "s")
	_, err := s.dynamic.Resource(definitions).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": plural + "." + group},
		"spec": map[string]any{
			"group": group, "scope": "Namespaced",
			"names": map[string]any{"plural": plural, "singular": strings.ToLower(kind), "kind": kind, "listKind": kind + "List"},
			"versions": []any{map[string]any{
				"name": "v1", "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": map[string]any{
					"type": "object",
					"properties": map[string]any{"spec": map[string]any{
						"type": "object",
						"properties": map[string]any{
							"count":   map[string]any{"type": "integer"},
							"payload": map[string]any{"type": "string"},
						},
					}},
				}},
			}},
		},
	}}, meta.CreateOptions{})
	check(t, err)
	resource := schema.GroupVersionResource{Group: group, Version: "v1", Resource: plural}
	awaitServed(t, s, resource)
	return resource
}

// awaitServed waits until a server knows the resource; those that did not define it learn of it by a watch.
func awaitServed(t testing.TB, s *apiServer, resource schema.GroupVersionResource) {
	t.Helper()
	eventually(t, time.Minute, func() (string, bool) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := s.dynamic.Resource(resource).Namespace(namespace).List(ctx, meta.ListOptions{Limit: 1})
		return fmt.Sprintf("%v is served by %s: %v", resource, s.name, err), err == nil
	})
}

// in gives the client of a resource in the namespace of all tests.
func (s *apiServer) in(resource schema.GroupVersionResource) dynamic.ResourceInterface {
	return s.dynamic.Resource(resource).Namespace(namespace)
}

// prefix is where the store keeps the objects of a resource.
func prefix(resource schema.GroupVersionResource) string {
	if resource == leases {
		return fmt.Sprintf("/registry/leases/%s/", namespace)
	}
	return fmt.Sprintf("/registry/%s/%s/%s/", resource.Group, resource.Resource, namespace)
}

// object is a custom object, or a lease, with a count and a payload of that many bytes.
func object(resource schema.GroupVersionResource, name string, count int64, bytes int) *unstructured.Unstructured {
	if resource == leases {
		o := lease(name)
		_ = unstructured.SetNestedField(o.Object, count, "spec", "leaseTransitions")
		return o
	}
	plural := resource.Resource
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": resource.GroupVersion().String(), "kind": strings.ToUpper(plural[:1]) + strings.TrimSuffix(plural[1:], "s"),
		"metadata": map[string]any{"name": name, "namespace": namespace},
		"spec":     map[string]any{"count": count, "payload": text(bytes)},
	}}
}

// text is random, so that nothing can compress it away.
func text(bytes int) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	var builder strings.Builder
	builder.Grow(bytes)
	for builder.Len() < bytes {
		for bits, i := rand.Uint64(), 0; i < 10 && builder.Len() < bytes; i++ {
			builder.WriteByte(letters[bits&63])
			bits >>= 6
		}
	}
	return builder.String()
}

// objectBytes is a size as objects of Kubernetes have it: mostly some KiB, up to 15.
func objectBytes() int {
	return 1<<10 + rand.IntN(1<<10)*rand.IntN(14)
}

func count(o *unstructured.Unstructured) int64 {
	field := "count"
	if o.GetKind() == "Lease" {
		field = "leaseTransitions"
	}
	n, _, _ := unstructured.NestedInt64(o.Object, "spec", field)
	return n
}

func setCount(t testing.TB, o *unstructured.Unstructured, n int64) {
	check(t, unstructured.SetNestedField(o.Object, n, "spec", "count"))
}

// pages lists everything in pages of one list and gives them; between is called after each page. Without it nothing changes
// meanwhile, so a list that a compaction passes may end as the API server offers it, at the newest revision.
func pages(ctx context.Context, client dynamic.ResourceInterface, options meta.ListOptions, between func(page int)) ([]*unstructured.UnstructuredList, error) {
	var all []*unstructured.UnstructuredList
	for {
		page, err := client.List(ctx, options)
		if rest := restOf(err); rest != "" && between == nil {
			options.Continue = rest
			continue
		}
		if err != nil {
			return all, err
		}
		all = append(all, page)
		options.Continue = page.GetContinue()
		if options.Continue == "" {
			return all, nil
		}
		options.ResourceVersion, options.ResourceVersionMatch = "", ""
		if between != nil {
			between(len(all))
		}
	}
}

// restOf gives where a list goes on whose revision was compacted, if it was.
func restOf(err error) string {
	if status, ok := err.(apierrors.APIStatus); ok && apierrors.IsResourceExpired(err) {
		return status.Status().Continue
	}
	return ""
}

func isGone(err error) bool { return apierrors.IsNotFound(err) }

func number64(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}
