//go:build race

package cache

import "sync/atomic"

// counter is atomic here, as the race detector wants it, and has a word for the detector to find a
// second writer by.
type counter struct {
	n      atomic.Int64
	writer int64
}

func (c *counter) Add(n int64) {
	c.writer++
	c.n.Add(n)
}

func (c *counter) Load() int64 { return c.n.Load() }
