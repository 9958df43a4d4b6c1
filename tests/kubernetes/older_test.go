//go:build older

package kubernetes

import (
	"time"

	"k8s.io/apiserver/pkg/storage/cacher"
)

// checkPeriod is how often the watch cache is compared with the store: a constant of five minutes in production.
func checkPeriod() *time.Duration { return &cacher.ConsistencyCheckPeriod }

func (strategy) AllowUnconditionalUpdate() bool { return false }
func (strategy) AllowCreateOnUpdate() bool      { return false }
