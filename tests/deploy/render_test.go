package deploy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const (
	root      = "../.."
	chartPath = root + "/deploy/helm/tailwater"
	namespace = "etcd"
	release   = "tailwater"
)

// strict reads objects by their published types, and fails on a field that a type does not have.
var strict = func() runtime.Decoder {
	known := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, monitoring.AddToScheme, certmanager.AddToScheme} {
		if err := add(known); err != nil {
			panic(err)
		}
	}
	return serializer.NewCodecFactory(known, serializer.EnableStrict).UniversalDeserializer()
}()

// decode gives the objects of a stream of documents.
func decode(text string) ([]runtime.Object, error) {
	var objects []runtime.Object
	documents := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		var any map[string]any
		// Strictly as well, since a key that is there twice is a mistake.
		if err := yaml.UnmarshalStrict(document, &any); err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, document)
		}
		if len(any) == 0 {
			continue
		}
		object, _, err := strict.Decode(document, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, document)
		}
		objects = append(objects, object)
	}
}

// valueSets gives what the chart is rendered with, by name.
func valueSets(t testing.TB) map[string]map[string]any {
	t.Helper()
	sets := map[string]map[string]any{}
	for _, path := range glob(t, "values/*.yaml") {
		values, err := common.ReadValuesFile(path)
		check(t, err)
		sets[strings.TrimSuffix(filepath.Base(path), ".yaml")] = values
	}
	return sets
}

// valuesOf gives one set, changed by others.
func valuesOf(t testing.TB, name string, changes ...string) map[string]any {
	t.Helper()
	values := valueSets(t)[name]
	if values == nil {
		t.Fatalf("there is no values/%s.yaml", name)
	}
	for _, change := range changes {
		more, err := common.ReadValues([]byte(change))
		check(t, err)
		values = loader.MergeMaps(values, more)
	}
	return values
}

// render gives the manifests and the notes of a release.
func render(values map[string]any) (manifests, notes string, err error) {
	chart, err := loader.LoadDir(chartPath)
	if err != nil {
		return "", "", err
	}
	options := common.ReleaseOptions{Name: release, Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(chart, values, options, nil)
	if err != nil {
		return "", "", err
	}
	files, err := engine.Engine{Strict: true}.Render(chart, all)
	if err != nil {
		return "", "", err
	}
	var joined strings.Builder
	for _, path := range slices.Sorted(maps.Keys(files)) {
		switch {
		case strings.HasSuffix(path, "NOTES.txt"):
			notes = files[path]
		case strings.HasSuffix(path, ".yaml"):
			joined.WriteString("---\n" + files[path] + "\n")
		}
	}
	return joined.String(), notes, nil
}

// installed gives the objects of a release.
func installed(t testing.TB, values map[string]any) []runtime.Object {
	t.Helper()
	manifests, _, err := render(values)
	check(t, err)
	objects, err := decode(manifests)
	check(t, err)
	return objects
}

// kustomized gives the objects of a directory as kustomize builds it.
func kustomized(t testing.TB, path string) []runtime.Object {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), path)
	check(t, err)
	text, err := built.AsYaml()
	check(t, err)
	objects, err := decode(string(text))
	check(t, err)
	return objects
}

// every gives all sets of objects that deploy/ makes, by where they come from.
func every(t testing.TB) map[string][]runtime.Object {
	t.Helper()
	sets := map[string][]runtime.Object{}
	for name, values := range valueSets(t) {
		sets["chart with "+name] = installed(t, values)
	}
	for _, path := range glob(t, root+"/deploy/kustomize/base", root+"/deploy/kustomize/overlays/*") {
		sets["kustomize "+filepath.Base(path)] = kustomized(t, path)
	}
	pod, err := decode(read(t, root+"/deploy/kubeadm/static-pod.yaml"))
	check(t, err)
	sets["kubeadm's static pod"] = pod
	return sets
}

// of gives the objects of one type.
func of[T runtime.Object](objects []runtime.Object) []T {
	var found []T
	for _, object := range objects {
		if one, ok := object.(T); ok {
			found = append(found, one)
		}
	}
	return found
}
