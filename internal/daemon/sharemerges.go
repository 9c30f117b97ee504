package daemon

import (
	"os"
	"path/filepath"
	"strings"
)

// forbidMerges keeps the block layer from making one request of several as long as memory is
// registered. The driver knows the memory of a request only if all of it lies in one region and in
// order, so merged ones could lose their attributes; and one part that fails fails them all, as the
// kernel knows only one result. s.mu is held.
func (s *sharing) forbidMerges() {
	if s.mu.merges != "" {
		return
	}
	file := filepath.Join(s.mu.queue, "nomerges")
	old, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(noMerges), 0)
	}
	if err != nil {
		s.log.Warn("merged requests may lose their attributes", "error", err)
		return
	}
	s.mu.merges = strings.TrimSpace(string(old))
}

// noMerges stands for no merges at all.
const noMerges = "2"

// lostMerges is what nomerges was where that is not on record: what the kernel begins with, if an earlier
// daemon has changed it.
func (s *sharing) lostMerges() string {
	text, err := os.ReadFile(filepath.Join(s.mu.queue, "nomerges"))
	if err != nil || strings.TrimSpace(string(text)) != noMerges {
		return ""
	}
	return "0"
}

// allowMerges undoes forbidMerges. s.mu is held.
func (s *sharing) allowMerges() {
	if s.mu.merges == "" {
		return
	}
	file := filepath.Join(s.mu.queue, "nomerges")
	if err := os.WriteFile(file, []byte(s.mu.merges), 0); err != nil {
		s.log.Warn("requests are not merged any more", "error", err)
	}
	s.mu.merges = ""
}
