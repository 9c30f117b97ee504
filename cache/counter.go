//go:build !race

package cache

import "sync/atomic"

// counter is written by one lane and read by anybody. An atomic addition, which locks the cache line,
// would be most of what statistics cost; with one writer an ordinary one is enough, as a word is read
// and written whole.
type counter struct{ n int64 }

// Add is for the lane whose counter it is.
func (c *counter) Add(n int64) { c.n += n }

// Load is for anybody.
func (c *counter) Load() int64 { return atomic.LoadInt64(&c.n) }
