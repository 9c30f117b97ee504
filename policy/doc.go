// Package policy decides: what is admitted, what is evicted, when to write back. Its code does no
// I/O, reads no clock (time is an argument) and owns no state that may not be lost.
package policy
