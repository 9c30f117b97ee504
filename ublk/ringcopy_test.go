package ublk

import "golang.org/x/sys/unix"

// TruncateMemory changes the length of the file with a queue's memory in mode RingCopy. What lies
// beyond must not be touched.
func TruncateMemory(q *Queue, size int64) error { return unix.Ftruncate(q.memFile.FD(), size) }
