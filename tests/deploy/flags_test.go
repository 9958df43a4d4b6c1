package deploy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

var flagLine = regexp.MustCompile(`(?m)^\s+(?:-\w, )?--([a-z][a-z0-9-]*)`)

// helped gives the flags that a program's help lists.
func helped(t testing.TB, program string, arguments ...string) map[string]bool {
	t.Helper()
	output, err := exec.Command(program, append(arguments, "--help")...).Output()
	check(t, err)
	flags := map[string]bool{}
	for _, found := range flagLine.FindAllStringSubmatch(string(output), -1) {
		flags[found[1]] = true
	}
	if len(flags) < 2 {
		t.Fatalf("the help of %v has only the flags %v", arguments, flags)
	}
	return flags
}

// known gives the flags of each command.
func known(t testing.TB) map[string]map[string]bool {
	t.Helper()
	ours := program(t)
	return map[string]map[string]bool{
		"serve": helped(t, ours, "serve"), "status": helped(t, ours, "status"), "snapshot save": helped(t, ours, "snapshot", "save"),
		"snapshot status": helped(t, ours, "snapshot", "status"),
	}
}

// asEtcd reads flags as the program does by etcd's name, and starts nothing.
func asEtcd(t testing.TB, flags ...string) error {
	t.Helper()
	link := filepath.Join(t.TempDir(), "etcd")
	check(t, os.Symlink(program(t), link))
	if output, err := exec.Command(link, append(flags, "--version")...).CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(string(output), "\n")
		return fmt.Errorf("%w: %s", err, first)
	}
	return nil
}

// checkLine looks at a command line, the program first.
func checkLine(t testing.TB, all map[string]map[string]bool, where string, line []string) {
	t.Helper()
	command := line[0]
	if command == "etcd" {
		if err := asEtcd(t, line[1:]...); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		return
	}
	if command == "tailwater" {
		words := line[1:]
		for i, word := range words {
			if strings.HasPrefix(word, "-") || strings.HasPrefix(word, "/") {
				words = words[:i]
				break
			}
		}
		command = strings.Join(words, " ")
	}
	if all[command] == nil {
		t.Errorf("%s: there is no command %q", where, command)
		return
	}
	for _, word := range line {
		if flag, ok := strings.CutPrefix(word, "--"); ok {
			name, _, _ := strings.Cut(flag, "=")
			if !all[command][name] {
				t.Errorf("%s: %s has no flag --%s", where, command, name)
			}
		}
	}
}

func checkVariable(t testing.TB, all map[string]map[string]bool, where, variable string) {
	t.Helper()
	if suffix, ok := strings.CutPrefix(variable, "TAILWATER_"); ok {
		if !all["serve"][strings.ReplaceAll(strings.ToLower(suffix), "_", "-")] {
			t.Errorf("%s: %s is no flag", where, variable)
		}
	}
}

func TestEveryFlagOfDeployExists(t *testing.T) {
	all := known(t)
	lines, variables := 0, 0
	for name, objects := range every(t) {
		for _, pod := range podsOf(objects) {
			for _, container := range slices.Concat(pod.spec.InitContainers, pod.spec.Containers) {
				if isOthers(container) {
					continue
				}
				lines++
				checkLine(t, all, name+", "+pod.name, pod.command(t, container))
				for variable := range pod.variables(t, container) {
					variables++
					checkVariable(t, all, name+", "+pod.name, variable)
				}
			}
		}
	}
	variable := regexp.MustCompile(`TAILWATER_[A-Z][A-Z_]+`)
	for _, path := range glob(t, root+"/deploy/systemd/*.service") {
		text := read(t, path)
		for _, found := range variable.FindAllString(text, -1) {
			variables++
			checkVariable(t, all, path, found)
		}
		start := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/(.+)$`).FindStringSubmatch(text)
		if start == nil {
			t.Fatalf("%s starts nothing", path)
		}
		lines++
		checkLine(t, all, path, strings.Fields(start[1]))
	}
	if lines < 30 || variables < 20 {
		t.Errorf("only %d lines and %d variables were looked at", lines, variables)
	}
}

// isOthers says whether a container runs another program than ours.
func isOthers(container core.Container) bool {
	return len(container.Command) > 0 && container.Command[0] != "etcd"
}

// What is not a flag is found.
func TestAFlagThatDoesNotExistIsFound(t *testing.T) {
	all := known(t)
	if all["serve"]["initial-clusters"] || !all["serve"]["initial-cluster"] {
		t.Error("the help is not understood")
	}
	if asEtcd(t, "--initial-clusters=a") == nil || asEtcd(t, "--feature-gates=InitialCorruptCheck=perhaps") == nil {
		t.Error("etcd takes any flag")
	}
}

// kubeadm's configuration, as far as it is about etcd, by the names of its version v1beta4.
type kubeadm struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Patches    *struct {
		Directory string `json:"directory"`
	} `json:"patches"`
	APIServer *struct {
		ExtraArgs []argument `json:"extraArgs"`
	} `json:"apiServer"`
	Etcd *struct {
		Local *struct {
			ImageRepository string     `json:"imageRepository"`
			ImageTag        string     `json:"imageTag"`
			DataDir         string     `json:"dataDir"`
			ExtraArgs       []argument `json:"extraArgs"`
		} `json:"local"`
		External *struct {
			Endpoints []string `json:"endpoints"`
			CAFile    string   `json:"caFile"`
			CertFile  string   `json:"certFile"`
			KeyFile   string   `json:"keyFile"`
		} `json:"external"`
	} `json:"etcd"`
}

type argument struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func TestKubeadmsConfigurationIsUnderstood(t *testing.T) {
	pod, err := decode(read(t, root+"/deploy/kubeadm/static-pod.yaml"))
	check(t, err)
	line := pod[0].(*core.Pod).Spec.Containers[0].Command
	clusters := 0
	for _, path := range glob(t, root+"/deploy/kubeadm/stacked.yaml", root+"/deploy/kubeadm/external.yaml") {
		for _, document := range strings.Split(read(t, path), "\n---\n") {
			var one kubeadm
			check(t, yaml.UnmarshalStrict([]byte(document), &one))
			if one.APIVersion != "kubeadm.k8s.io/v1beta4" {
				t.Errorf("%s is of %s", path, one.APIVersion)
			}
			if one.Kind != "ClusterConfiguration" {
				continue
			}
			clusters++
			if local := one.Etcd.Local; local != nil {
				for _, its := range local.ExtraArgs {
					if err := asEtcd(t, "--"+its.Name+"="+its.Value); err != nil || !slices.Contains(line, "--"+its.Name+"="+its.Value) {
						t.Errorf("--%s=%s is no flag, or not in the static pod: %v", its.Name, its.Value, err)
					}
				}
				image := pod[0].(*core.Pod).Spec.Containers[0].Image
				if image != local.ImageRepository+"/etcd:"+local.ImageTag || !slices.Contains(line, "--data-dir="+local.DataDir) {
					t.Errorf("the static pod runs %s with %v", image, line)
				}
			} else if len(one.Etcd.External.Endpoints) == 0 {
				t.Errorf("%s names no endpoints", path)
			}
		}
	}
	if clusters != 2 {
		t.Errorf("there are %d clusters", clusters)
	}
	patch, err := decode(read(t, root+"/deploy/kubeadm/patches/etcd+strategic.yaml"))
	check(t, err)
	if user := patch[0].(*core.Pod).Spec.SecurityContext.RunAsUser; user == nil || *user != 0 {
		t.Errorf("the patch makes it run as %v", user)
	}
}
