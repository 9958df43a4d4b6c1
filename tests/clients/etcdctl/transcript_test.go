// Package etcdctl replays transcripts of etcdctl sessions against a fresh server and compares every line of output.
//
// A transcript is a text file. A line "$ command" is run by sh with etcdctl on its path, its end "<<< text" gives
// standard input (\n is a line break); the lines up to the next command are what it must print, standard output
// first, then standard error without the client's own log lines, then "exit N" when it fails. "#" starts a comment.
//
// An empty line of output is written {empty}: blank lines of a transcript only set its steps apart.
//
// In an expected line {name} stands for something that changes from run to run: the first time it is seen its text
// is kept under that name, from then on it must be the same, and commands may use it as $name. {_} matches anything,
// {int} a whole number.
//
// TRANSCRIPT_RECORD=1 prints what each command gave, to write the expectations down from a real etcd.
package etcdctl

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// commandTimeout bounds one command, save the performance check, which takes a minute by itself.
const (
	commandTimeout = 20 * time.Second
	perfTimeout    = 3 * time.Minute
)

var patterns = map[string]string{
	"_":   `.*`,
	"int": `\d+`,
	// A whole line that is empty, for instance an empty value.
	"empty": ``,
}

// Names that are kept for the whole transcript, with what they may stand for.
const bound = `[^\s",]+`

type step struct {
	line    int
	command string
	stdin   string
	want    []string
}

func TestTranscripts(t *testing.T) {
	etcdctl, endpoints := os.Getenv("ETCDCTL"), os.Getenv("TAILWATER_ENDPOINTS")
	if etcdctl == "" || endpoints == "" {
		t.Fatal("set ETCDCTL to an etcdctl 3.6 and TAILWATER_ENDPOINTS to the address of a server with an empty store")
	}
	etcdctl, err := filepath.Abs(etcdctl)
	if err != nil {
		t.Fatal(err)
	}
	tools := t.TempDir()
	if err := os.Symlink(etcdctl, filepath.Join(tools, "etcdctl")); err != nil {
		t.Fatal(err)
	}
	environment := append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"), "ETCDCTL_ENDPOINTS="+endpoints)

	// In the order of their names: revisions go on from one file to the next.
	files, err := filepath.Glob("transcripts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		passed := t.Run(name, func(t *testing.T) {
			if strings.Contains(name, "perf") && os.Getenv("ACCEPTANCE") != "1" {
				t.Skip("takes a minute; set ACCEPTANCE=1")
			}
			replay(t, file, environment)
		})
		if !passed {
			t.Fatalf("%s failed; what follows it builds on its revisions", name)
		}
	}
}

func replay(t *testing.T, file string, environment []string) {
	known := map[string]string{}
	for _, step := range parse(t, file) {
		got := run(t, step, environment, known)
		if os.Getenv("TRANSCRIPT_RECORD") == "1" {
			// What is already written down still gives later commands their names.
			_ = compare(step.want, got, known)
			record(step, got)
			continue
		}
		if problem := compare(step.want, got, known); problem != "" {
			t.Fatalf("%s:%d: $ %s\n%s\n--- got\n%s\n--- want\n%s", file, step.line, step.command, problem,
				strings.Join(got, "\n"), strings.Join(step.want, "\n"))
		}
	}
}

// record prints a step as it would be written down.
func record(step step, got []string) {
	fmt.Printf("$ %s\n", step.command)
	for _, line := range got {
		if line == "" {
			line = "{empty}"
		}
		fmt.Println(line)
	}
}

func parse(t *testing.T, file string) []step {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var steps []step
	for number, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "$ "):
			command, stdin, _ := strings.Cut(line[2:], " <<< ")
			steps = append(steps, step{line: number + 1, command: command, stdin: strings.ReplaceAll(stdin, `\n`, "\n")})
		case len(steps) == 0:
			if line != "" {
				t.Fatalf("%s:%d: output before the first command", file, number+1)
			}
		default:
			if line = strings.TrimRight(line, " "); line != "" {
				last := &steps[len(steps)-1]
				last.want = append(last.want, line)
			}
		}
	}
	return steps
}

func run(t *testing.T, step step, environment []string, known map[string]string) []string {
	timeout := commandTimeout
	if strings.Contains(step.command, "check perf") {
		timeout = perfTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	command := exec.CommandContext(ctx, "sh", "-c", step.command)
	command.WaitDelay = time.Second
	command.Env = environment
	for name, value := range known {
		command.Env = append(command.Env, name+"="+value)
	}
	command.Stdin = strings.NewReader(step.stdin)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	if ctx.Err() != nil {
		t.Fatalf("$ %s: not done after %v; it printed\n%s%s", step.command, timeout, stdout.String(), stderr.String())
	}

	lines := splitLines(stdout.String())
	for _, line := range splitLines(stderr.String()) {
		if !strings.HasPrefix(line, `{"level":`) {
			lines = append(lines, line)
		}
	}
	if err != nil {
		lines = append(lines, fmt.Sprintf("exit %d", command.ProcessState.ExitCode()))
	}
	return lines
}

// splitLines cuts text into its lines without the blanks at their ends; a line break ends a line and begins none.
func splitLines(text string) []string {
	if text == "" {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " \r")
	}
	return lines
}

// compare matches line by line and keeps what new names stand for; it gives "" or what is wrong.
func compare(want, got []string, known map[string]string) string {
	for i, line := range want {
		if i >= len(got) {
			return "missing: " + line
		}
		expression, names := translate(line, known)
		match := expression.FindStringSubmatch(got[i])
		if match == nil {
			return fmt.Sprintf("line %d differs\n  got  %s\n  want %s", i+1, got[i], line)
		}
		for j, name := range names {
			known[name] = match[j+1]
		}
	}
	if len(got) > len(want) {
		return "unexpected: " + got[len(want)]
	}
	return ""
}

var placeholder = regexp.MustCompile(`\{([a-z_]+)\}`)

func translate(line string, known map[string]string) (*regexp.Regexp, []string) {
	var expression strings.Builder
	var names []string
	at := 0
	for _, place := range placeholder.FindAllStringSubmatchIndex(line, -1) {
		expression.WriteString(regexp.QuoteMeta(line[at:place[0]]))
		at = place[1]
		name := line[place[2]:place[3]]
		if pattern, fixed := patterns[name]; fixed {
			expression.WriteString(pattern)
		} else if value, seen := known[name]; seen {
			expression.WriteString(regexp.QuoteMeta(value))
		} else {
			expression.WriteString("(" + bound + ")")
			names = append(names, name)
		}
	}
	expression.WriteString(regexp.QuoteMeta(line[at:]))
	return regexp.MustCompile("^" + expression.String() + "$"), names
}
