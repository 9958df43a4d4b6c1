package kubernetes

import (
	"os"
	"strconv"
	"testing"
	"time"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s is %v, want %v", what, got, want)
	}
}

// eventually waits until the condition holds; it says by itself what is missing.
func eventually(t testing.TB, limit time.Duration, condition func() (string, bool)) {
	t.Helper()
	var missing string
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var holds bool
		if missing, holds = condition(); holds {
			return
		}
	}
	t.Fatalf("not within %v: %s", limit, missing)
}

// number is the value of an environment variable, or otherwise.
func number(name string, otherwise int) int {
	if value, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return value
	}
	return otherwise
}

// short says whether only what every commit is tested with is asked for.
func short() bool { return os.Getenv("SHORT") == "1" }
