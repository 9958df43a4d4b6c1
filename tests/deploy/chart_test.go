package deploy

import (
	"maps"
	"slices"
	"strings"
	"testing"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	network "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestChartIsLinted(t *testing.T) {
	for name, values := range valueSets(t) {
		for _, message := range lint.RunAll(chartPath, values, namespace).Messages {
			if message.Severity >= support.WarningSev {
				t.Errorf("with %s: %v", name, message)
			}
		}
	}
}

// Reading is strict: see decode.
func TestEverythingIsReadByItsTypes(t *testing.T) {
	sets := every(t)
	if len(sets) < 9 {
		t.Fatalf("there are only %d sets", len(sets))
	}
	for name, objects := range sets {
		seen := map[string]bool{}
		for _, object := range objects {
			kind := object.GetObjectKind().GroupVersionKind().Kind
			named := object.(meta.Object)
			if id := kind + " " + named.GetName(); seen[id] {
				t.Errorf("%s: there are two of %s", name, id)
			} else {
				seen[id] = true
			}
			// A Service's name is a DNS label; the others end up in names and labels of pods.
			if length := len(named.GetName()); length == 0 || length > 52 {
				t.Errorf("%s: the name %q of a %s has %d letters", name, named.GetName(), kind, length)
			}
		}
		t.Logf("%s: %d objects", name, len(objects))
	}
}

// What is not known fails, rather than being without effect.
func TestAFieldThatDoesNotExistIsFound(t *testing.T) {
	for _, text := range []string{
		"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {publishNotReadyAddress: true}}",
		"{apiVersion: monitoring.coreos.com/v1, kind: ServiceMonitor, metadata: {name: a}, spec: {endpoint: []}}",
		"{apiVersion: cert-manager.io/v1, kind: Certificate, metadata: {name: a}, spec: {dnsName: [b]}}",
		"{apiVersion: v1, kind: Service, kind: Service}",
	} {
		if _, err := decode(text); err == nil {
			t.Errorf("nobody minds %s", text)
		}
	}
}

func TestValuesThatCannotWorkAreRefused(t *testing.T) {
	for _, test := range []struct{ values, reason string }{
		{"{member: {replicas: 3}}", "member"},
		{"{members: {replicas: three}}", "replicas"},
		{"{members: {roles: consensus}, fanout: {enabled: false}}", "serves no clients"},
		{"{members: {persistence: {enabled: false}}}", "vote twice"},
		{"{members: {terminationGracePeriodSeconds: 12}}", "must be at least 13"},
		{"{fanout: {drainGraceSeconds: 60}}", "must be at least 68"},
		{"{tls: {enabled: true}}", "tls.secrets."},
		{"{tls: {enabled: true, certManager: {enabled: true}}, scopedFanouts: [{name: a, prefixes: [/a/]}]}", "StatefulSet"},
		{"{tls: {enabled: true, certManager: {enabled: true, issuerRef: {name: one}}}}", "may be a node"},
		{"{scopedFanouts: [{name: a}]}", "prefixes"},
		{"{cells: [{resources: [events], servers: [\"http://a:2379\"]}]}", "resources"},
	} {
		_, _, err := render(valuesOf(t, "default", test.values))
		if err == nil || !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%s: %v, and not about %q", test.values, err, test.reason)
		}
	}
}

func TestNotesNameWhatTheAPIServerIsGiven(t *testing.T) {
	_, notes, err := render(valuesOf(t, "relays-and-scopes"))
	check(t, err)
	for _, line := range []string{
		"--etcd-servers=http://tailwater-fanout.etcd.svc.cluster.local:2379",
		"--etcd-servers-overrides=/events#http://events-0.example.com:2379;http://events-1.example.com:2379,coordination.k8s.io/leases#http://leases.example.com:2379",
	} {
		if !strings.Contains(notes, "  "+line+"\n") {
			t.Errorf("the notes have no line %s:\n%s", line, notes)
		}
	}
	_, notes, err = render(valuesOf(t, "cert-manager"))
	check(t, err)
	if !strings.Contains(notes, "--etcd-cafile") || strings.Contains(notes, "overrides") || !strings.Contains(notes, "https://") {
		t.Errorf("these notes are not about TLS:\n%s", notes)
	}
}

// What a tier says itself wins over what fanouts say, also when it says no.
func TestScopedFanoutsAndRelaysHaveTheirOwnValues(t *testing.T) {
	values := valuesOf(t, "relays-and-scopes", "{fanout: {autoscaling: {enabled: true}, windowBytes: 1048576}}",
		"{scopedFanouts: [{name: a, prefixes: [/a/], autoscaling: {enabled: false}, windowBytes: 2097152}]}")
	objects := installed(t, values)
	var scaled []string
	for _, scaler := range of[*autoscaling.HorizontalPodAutoscaler](objects) {
		scaled = append(scaled, scaler.Name)
	}
	if !slices.Equal(scaled, []string{"tailwater-fanout"}) {
		t.Errorf("these scale: %v", scaled)
	}
	windows := map[string]string{}
	for _, deployment := range of[*apps.Deployment](objects) {
		windows[deployment.Name] = flagsOf(deployment.Spec.Template.Spec.Containers[0])["window-bytes"]
	}
	if !maps.Equal(windows, map[string]string{"tailwater-fanout": "1048576", "tailwater-fanout-a": "2097152"}) {
		t.Errorf("windows: %v", windows)
	}
}

// A chart that is packaged holds what the links of deploy/ lead to.
func TestFilesAreInTheChart(t *testing.T) {
	chart, err := loader.LoadDir(chartPath)
	check(t, err)
	var held []string
	for _, file := range chart.Files {
		held = append(held, string(file.Data))
	}
	for _, path := range glob(t, root+"/deploy/grafana/*.json", root+"/deploy/prometheus/tailwater.yaml") {
		if !slices.Contains(held, read(t, path)) {
			t.Errorf("the chart does not hold %s", path)
		}
	}
}

// What one object says of another is true: names, ports, labels.
func TestReferencesLeadSomewhere(t *testing.T) {
	for name, objects := range every(t) {
		t.Run(name, func(t *testing.T) {
			pods := podsOf(objects)
			if len(pods) == 0 {
				t.Fatal("there are no pods")
			}
			checkServices(t, objects, pods)
			checkVolumes(t, objects, pods)
			checkSelectors(t, objects, pods)
		})
	}
}

// pick gives the pods that a selector means.
func pick(pods []*pod, selector labels.Selector) []*pod {
	var found []*pod
	for _, pod := range pods {
		if selector.Matches(labels.Set(pod.labels)) {
			found = append(found, pod)
		}
	}
	return found
}

// portOf gives the number of a port of a pod.
func portOf(pod *pod, port intstr.IntOrString) int32 {
	for _, container := range pod.spec.Containers {
		for _, its := range container.Ports {
			if its.Name == port.StrVal || port.Type == intstr.Int && its.ContainerPort == port.IntVal {
				return its.ContainerPort
			}
		}
	}
	return 0
}

func checkServices(t *testing.T, objects []runtime.Object, pods []*pod) {
	names := map[string]bool{}
	for _, service := range of[*core.Service](objects) {
		names[service.Name] = true
		picked := pick(pods, labels.SelectorFromSet(service.Spec.Selector))
		if len(picked) == 0 {
			t.Errorf("the Service %s picks no pod", service.Name)
		}
		for _, pod := range picked {
			for _, port := range service.Spec.Ports {
				// Clients name the port of the pod where they name a pod, and the one of the Service else.
				if number := portOf(pod, port.TargetPort); number != port.Port {
					t.Errorf("the Service %s leads from %d to %d of %s", service.Name, port.Port, number, pod.name)
				}
			}
		}
	}
	for _, set := range of[*apps.StatefulSet](objects) {
		if !names[set.Spec.ServiceName] {
			t.Errorf("the StatefulSet %s is in no Service %s", set.Name, set.Spec.ServiceName)
		}
		if set.Spec.PodManagementPolicy != apps.ParallelPodManagement {
			t.Errorf("the pods of %s wait for each other", set.Name)
		}
	}
}

// Of one's own: what values name and the chart does not make.
var given = []string{"store-server-tls", "store-peer-tls", "store-client-tls", "backups"}

func checkVolumes(t *testing.T, objects []runtime.Object, pods []*pod) {
	has := map[string]bool{}
	for _, name := range given {
		has[name] = true
	}
	for _, certificate := range of[*certmanager.Certificate](objects) {
		has[certificate.Spec.SecretName] = true
	}
	for _, claim := range of[*core.PersistentVolumeClaim](objects) {
		has[claim.Name] = true
	}
	accounts := map[string]bool{"": true, "default": true}
	for _, account := range of[*core.ServiceAccount](objects) {
		accounts[account.Name] = true
	}
	configs := map[string]bool{}
	for _, config := range of[*core.ConfigMap](objects) {
		configs[config.Name] = true
	}
	for _, pod := range pods {
		if !accounts[pod.spec.ServiceAccountName] {
			t.Errorf("%s runs as %s, which is not there", pod.name, pod.spec.ServiceAccountName)
		}
		volumes := map[string]bool{}
		for _, claim := range pod.claims {
			volumes[claim] = true
		}
		for _, volume := range pod.spec.Volumes {
			volumes[volume.Name] = true
			if volume.Secret != nil && !has[volume.Secret.SecretName] {
				t.Errorf("%s wants the Secret %s", pod.name, volume.Secret.SecretName)
			}
			if claim := volume.PersistentVolumeClaim; claim != nil && !has[claim.ClaimName] {
				t.Errorf("%s wants the claim %s", pod.name, claim.ClaimName)
			}
		}
		mounted := map[string]bool{}
		for _, container := range slices.Concat(pod.spec.InitContainers, pod.spec.Containers) {
			for _, mount := range container.VolumeMounts {
				mounted[mount.Name] = true
				if !volumes[mount.Name] {
					t.Errorf("%s mounts %s, which it does not have", pod.name, mount.Name)
				}
			}
			for _, from := range container.EnvFrom {
				if from.ConfigMapRef == nil || !configs[from.ConfigMapRef.Name] {
					t.Errorf("%s takes variables from %v", pod.name, from)
				}
			}
		}
		for volume := range volumes {
			if !mounted[volume] {
				t.Errorf("nothing in %s mounts %s", pod.name, volume)
			}
		}
	}
}

func checkSelectors(t *testing.T, objects []runtime.Object, pods []*pod) {
	selects := func(kind, name string, selector *meta.LabelSelector) []*pod {
		picked, err := meta.LabelSelectorAsSelector(selector)
		check(t, err)
		found := pick(pods, picked)
		if len(found) == 0 {
			t.Errorf("the %s %s selects no pod", kind, name)
		}
		return found
	}
	workloads := map[string]bool{}
	for _, set := range of[*apps.StatefulSet](objects) {
		workloads["StatefulSet "+set.Name] = true
		for _, pod := range selects("StatefulSet", set.Name, set.Spec.Selector) {
			if pod.workload != set.Name {
				t.Errorf("the StatefulSet %s selects %s", set.Name, pod.name)
			}
		}
	}
	for _, deployment := range of[*apps.Deployment](objects) {
		workloads["Deployment "+deployment.Name] = true
		for _, pod := range selects("Deployment", deployment.Name, deployment.Spec.Selector) {
			if pod.workload != deployment.Name {
				t.Errorf("the Deployment %s selects %s", deployment.Name, pod.name)
			}
		}
	}
	for _, budget := range of[*policy.PodDisruptionBudget](objects) {
		one := map[string]bool{}
		for _, pod := range selects("PodDisruptionBudget", budget.Name, budget.Spec.Selector) {
			one[pod.workload] = true
		}
		if len(one) != 1 {
			t.Errorf("the budget %s is of %v", budget.Name, one)
		}
	}
	for _, scaler := range of[*autoscaling.HorizontalPodAutoscaler](objects) {
		target := scaler.Spec.ScaleTargetRef
		if !workloads[target.Kind+" "+target.Name] || len(scaler.Spec.Metrics) == 0 {
			t.Errorf("%s scales %v by %d metrics", scaler.Name, target, len(scaler.Spec.Metrics))
		}
	}
	for _, rule := range of[*network.NetworkPolicy](objects) {
		selects("NetworkPolicy", rule.Name, &rule.Spec.PodSelector)
		for _, ingress := range rule.Spec.Ingress {
			for _, port := range ingress.Ports {
				if !slices.ContainsFunc(pods, func(pod *pod) bool { return portOf(pod, *port.Port) != 0 }) {
					t.Errorf("the NetworkPolicy %s is about port %v", rule.Name, port.Port)
				}
			}
		}
	}
	if jobs := of[*batch.CronJob](objects); len(jobs) > 1 {
		t.Errorf("there are %d CronJobs", len(jobs))
	}
}

// Pods have what a careful cluster asks of them, and time to drain.
func TestPodsAreRestrictedAndDrain(t *testing.T) {
	for name, objects := range every(t) {
		for _, pod := range podsOf(objects) {
			user := pod.spec.SecurityContext
			isKubeadms := name == "kubeadm's static pod"
			if user == nil || user.SeccompProfile == nil || !isKubeadms && (user.RunAsNonRoot == nil || !*user.RunAsNonRoot) {
				t.Errorf("%s: %s: the user is %v", name, pod.name, user)
			}
			if !isKubeadms && (pod.spec.AutomountServiceAccountToken == nil || *pod.spec.AutomountServiceAccountToken) {
				t.Errorf("%s: %s has a token", name, pod.name)
			}
			for _, container := range slices.Concat(pod.spec.InitContainers, pod.spec.Containers) {
				if container.Name == "upload" {
					continue
				}
				rights := container.SecurityContext
				if rights == nil || !*rights.ReadOnlyRootFilesystem || *rights.AllowPrivilegeEscalation || len(rights.Capabilities.Drop) != 1 {
					t.Errorf("%s: %s: %s may %v", name, pod.name, container.Name, rights)
				}
			}
			if pod.workload == "" {
				continue
			}
			flags := flagsOf(pod.spec.Containers[0])
			sleep := int64(0)
			if hooks := pod.spec.Containers[0].Lifecycle; hooks != nil {
				sleep = hooks.PreStop.Sleep.Seconds
			}
			if grace := sleep + seconds(t, flags["drain-grace"]) + 5; *pod.spec.TerminationGracePeriodSeconds < grace {
				t.Errorf("%s: %s is killed after %d s, and needs %d", name, pod.name, *pod.spec.TerminationGracePeriodSeconds, grace)
			}
		}
	}
}
