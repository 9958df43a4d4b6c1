package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// instruction is a line of the Dockerfile, with those that continue it.
type instruction struct{ name, text string }

func dockerfile(t testing.TB) []instruction {
	t.Helper()
	text := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(read(t, root+"/deploy/Dockerfile"), "")
	text = strings.ReplaceAll(text, "\\\n", " ")
	var all []instruction
	for _, line := range strings.Split(text, "\n") {
		if name, rest, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			all = append(all, instruction{name, strings.TrimSpace(rest)})
		}
	}
	return all
}

func find(t testing.TB, pattern, text string) string {
	t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("there is no %s in\n%s", pattern, text)
	}
	return found[1]
}

// No engine is here to build the image, so what it relies on is looked at. What it holds is tried by deploy/rootfs.sh.
func TestTheDockerfileFitsTheRepository(t *testing.T) {
	var names []string
	joined := map[string]string{}
	for _, its := range dockerfile(t) {
		names = append(names, its.name)
		joined[its.name] += its.text + "\n"
	}
	toolchain := find(t, `channel = "([^"]+)"`, read(t, root+"/rust-toolchain.toml"))
	if !strings.Contains(joined["FROM"], "rust:"+toolchain+"-") || !strings.Contains(joined["ENV"], "RUSTUP_TOOLCHAIN="+toolchain+"\n") {
		t.Errorf("the toolchain is %s; the Dockerfile has %s and %s", toolchain, joined["FROM"], joined["ENV"])
	}
	// The packages that a build needs beside the compilers that every image of Rust has.
	prepared := read(t, root+"/scripts/prepare.sh")
	for _, name := range []string{"protobuf-compiler", "clang", "libclang-dev"} {
		if !strings.Contains(prepared, name) || !strings.Contains(joined["RUN"], " "+name) {
			t.Errorf("%s is not installed, or not needed", name)
		}
	}
	for _, user := range []string{joined["USER"], read(t, root+"/deploy/rootfs.sh"), read(t, chartPath+"/templates/_pods.tpl")} {
		if !strings.Contains(user, "65532") {
			t.Errorf("this has another user: %.200s", user)
		}
	}
	if joined["ENTRYPOINT"] != "[\"tailwater\"]\n" || joined["EXPOSE"] != "2379 2380 2381\n" {
		t.Errorf("it starts %s and has the ports %s", joined["ENTRYPOINT"], joined["EXPOSE"])
	}
	if !strings.Contains(strings.Join(names, " "), "ENTRYPOINT") || names[0] != "FROM" {
		t.Errorf("the instructions are %v", names)
	}
}

// What the build reads is sent to it.
func TestTheBuildIsSentWhatItNeeds(t *testing.T) {
	sent := map[string]bool{}
	for _, line := range strings.Split(read(t, root+"/.dockerignore"), "\n") {
		if path, ok := strings.CutPrefix(line, "!"); ok {
			sent[path] = true
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s is not there", path)
			}
		}
	}
	workspace := read(t, root+"/Cargo.toml")
	for _, member := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(find(t, `(?s)\nmembers = \[([^\]]+)\]`, workspace), -1) {
		top, _, _ := strings.Cut(member[1], "/")
		if !sent[top] {
			t.Errorf("the workspace's %s is not sent", member[1])
		}
	}
	for _, path := range []string{"Cargo.toml", "Cargo.lock", "proto", "deploy/rootfs.sh"} {
		if !sent[path] {
			t.Errorf("%s is not sent", path)
		}
	}
}

// One version everywhere.
func TestImagesAreOfThisVersion(t *testing.T) {
	version := find(t, `(?m)^version = "([^"]+)"`, read(t, root+"/Cargo.toml"))
	chart, err := loader.LoadDir(chartPath)
	check(t, err)
	if chart.Metadata.AppVersion != version {
		t.Errorf("the chart is of %s, this is %s", chart.Metadata.AppVersion, version)
	}
	for _, path := range glob(t, root+"/deploy/kustomize/*/kustomization.yaml", root+"/deploy/kustomize/overlays/*/kustomization.yaml") {
		if !strings.Contains(read(t, path), fmt.Sprintf("newTag: %s}", version)) {
			t.Errorf("%s has another version than %s", path, version)
		}
	}
	if !strings.Contains(read(t, root+"/deploy/kubeadm/stacked.yaml"), "imageTag: "+version+"\n") {
		t.Errorf("stacked.yaml has another version than %s", version)
	}
}
