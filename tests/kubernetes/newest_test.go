//go:build !older

package kubernetes

import (
	"context"
	"time"

	"k8s.io/apiserver/pkg/storage/cacher/consistency"
)

// checkPeriod is how often the watch cache is compared with the store: a constant of five minutes in production.
func checkPeriod() *time.Duration { return &consistency.CheckPeriod }

func (strategy) AllowUnconditionalUpdate(context.Context) bool { return false }
func (strategy) AllowCreateOnUpdate(context.Context) bool      { return false }
