package deploy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// pod is one that Kubernetes would run.
type pod struct {
	// workload is the StatefulSet or Deployment that it belongs to; "" for others.
	workload string
	name     string
	ip       string
	labels   map[string]string
	spec     core.PodSpec
	// claims are the volumes that a StatefulSet makes for it.
	claims []string
	// environment that comes from ConfigMaps.
	environment map[string]string
	// subdomain is the headless Service that gives it a name.
	subdomain string
}

// podsOf gives the pods of all workloads, each with an address of its own.
func podsOf(objects []runtime.Object) []*pod {
	var pods []*pod
	add := func(one pod, template core.PodTemplateSpec) *pod {
		one.labels, one.spec = template.Labels, template.Spec
		one.ip = fmt.Sprintf("127.0.1.%d", len(pods)+1)
		one.environment = map[string]string{}
		for _, container := range template.Spec.Containers {
			for _, from := range container.EnvFrom {
				for _, config := range of[*core.ConfigMap](objects) {
					if from.ConfigMapRef != nil && from.ConfigMapRef.Name == config.Name {
						for name, value := range config.Data {
							one.environment[name] = value
						}
					}
				}
			}
		}
		pods = append(pods, &one)
		return &one
	}
	for _, set := range of[*apps.StatefulSet](objects) {
		for i := range *set.Spec.Replicas {
			one := pod{workload: set.Name, name: fmt.Sprintf("%s-%d", set.Name, i), subdomain: set.Spec.ServiceName}
			for _, claim := range set.Spec.VolumeClaimTemplates {
				one.claims = append(one.claims, claim.Name)
			}
			add(one, set.Spec.Template)
		}
	}
	for _, deployment := range of[*apps.Deployment](objects) {
		count := int32(1)
		if deployment.Spec.Replicas != nil {
			count = *deployment.Spec.Replicas
		}
		for i := range count {
			add(pod{workload: deployment.Name, name: fmt.Sprintf("%s-7c5ddbdf54-%05d", deployment.Name, i)}, deployment.Spec.Template)
		}
	}
	for _, job := range of[*batch.CronJob](objects) {
		template := job.Spec.JobTemplate.Spec.Template
		name := job.Name + "-29345678"
		one := add(pod{name: name + "-x2kqp"}, template)
		one.labels = map[string]string{"batch.kubernetes.io/job-name": name}
		for label, value := range template.Labels {
			one.labels[label] = value
		}
	}
	for _, alone := range of[*core.Pod](objects) {
		add(pod{name: alone.Name}, core.PodTemplateSpec{ObjectMeta: alone.ObjectMeta, Spec: alone.Spec})
	}
	return pods
}

var reference = regexp.MustCompile(`\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)`)

// expand puts variables in, as the kubelet does.
func expand(text string, variables map[string]string) string {
	return reference.ReplaceAllStringFunc(text, func(found string) string {
		if found == "$$" {
			return "$"
		}
		if value, ok := variables[found[2:len(found)-1]]; ok {
			return value
		}
		return found
	})
}

var labelPath = regexp.MustCompile(`^metadata\.labels\['(.+)'\]$`)

// variables gives a container's environment.
func (p *pod) variables(t testing.TB, container core.Container) map[string]string {
	t.Helper()
	all := map[string]string{}
	if len(container.EnvFrom) > 0 {
		for name, value := range p.environment {
			all[name] = value
		}
	}
	for _, variable := range container.Env {
		if variable.ValueFrom == nil {
			all[variable.Name] = expand(variable.Value, all)
			continue
		}
		switch path := variable.ValueFrom.FieldRef.FieldPath; path {
		case "metadata.name":
			all[variable.Name] = p.name
		case "metadata.namespace":
			all[variable.Name] = namespace
		case "status.podIP":
			all[variable.Name] = p.ip
		default:
			label := labelPath.FindStringSubmatch(path)
			if label == nil || p.labels[label[1]] == "" {
				t.Fatalf("%s: nobody knows %s", p.name, path)
			}
			all[variable.Name] = p.labels[label[1]]
		}
	}
	return all
}

// command gives a container's whole command line, with variables put in. Of the image it knows its entry point.
func (p *pod) command(t testing.TB, container core.Container) []string {
	t.Helper()
	line := container.Command
	if len(line) == 0 {
		line = []string{"tailwater"}
	}
	variables := p.variables(t, container)
	var expanded []string
	for _, argument := range slices.Concat(line, container.Args) {
		argument = expand(argument, variables)
		if strings.Contains(argument, "$(") {
			t.Errorf("%s: %s: a variable is missing in %s", p.name, container.Name, argument)
		}
		expanded = append(expanded, argument)
	}
	return expanded
}

// flagsOf gives the flags of a container, without their dashes; the variables that stand for flags are among them.
func flagsOf(container core.Container) map[string]string {
	flags := map[string]string{}
	for _, argument := range slices.Concat(container.Command, container.Args) {
		if flag, ok := strings.CutPrefix(argument, "--"); ok {
			name, value, _ := strings.Cut(flag, "=")
			flags[name] = value
		}
	}
	return flags
}

func seconds(t testing.TB, text string) int64 {
	t.Helper()
	if text == "" {
		// The default of --drain-grace.
		return 5
	}
	duration, err := time.ParseDuration(text)
	check(t, err)
	return int64(duration.Seconds())
}
