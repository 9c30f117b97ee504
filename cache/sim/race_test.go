//go:build race

package sim

// fewer is by how much less is played by default: the race detector makes histories, which have one
// goroutine each, ten times slower, and finds nothing in them.
const fewer = 40
