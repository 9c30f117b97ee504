package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ubcache/attrs"
	"ubcache/cache"
	"ubcache/internal/control"
)

// trace lists the newest requests that carried a trace id, in the order in which they were answered.
func (in *Instance) trace(_ context.Context, a control.TraceArgs, _ control.ProgressFunc) (
	any, error,
) {
	list := []control.Trace{}
	if !in.enter() {
		return list, nil
	}
	defer in.using.RUnlock()
	for _, t := range in.cache.Traces() {
		if a.ID == nil || *a.ID == t.ID {
			list = append(list, control.Trace{ID: fmt.Sprintf("%#x", t.ID), Trace: t})
		}
	}
	return list, nil
}

// tracedFailures writes requests that carried a trace id and failed to the log.
type tracedFailures struct {
	log *slog.Logger
	mu  struct {
		sync.Mutex
		since   time.Time // when the present second began
		written int       // in it
		left    int       // out of the log, since the last line
	}
}

// failuresPerSecond is how many lines a second the log gets at most.
const failuresPerSecond = 10

// failed writes a line if the request was traced. Any thread may call it, before the request's
// attributes are used again.
func (t *tracedFailures) failed(name string, r *cache.Request) {
	if r.Attrs == nil || !r.Attrs.Has(attrs.IDTrace) {
		return
	}
	now := time.Now()
	t.mu.Lock()
	if now.Sub(t.mu.since) >= time.Second {
		t.mu.since, t.mu.written = now, 0
	}
	write := t.mu.written < failuresPerSecond
	left := t.mu.left
	if write {
		t.mu.written++
		t.mu.left = 0
	} else {
		t.mu.left++
	}
	t.mu.Unlock()
	if !write {
		return
	}
	line := []any{
		"name", name, "trace", fmt.Sprintf("%#x", r.Attrs.Trace()), "op", r.Op.String(),
		"offset", r.Off, "length", r.Len, "error", r.Err,
	}
	if left > 0 {
		line = append(line, "not_logged_before", left)
	}
	t.log.Warn("traced request failed", line...)
}
