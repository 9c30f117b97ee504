package sim

import (
	"strings"
	"testing"
	"time"
)

// TestShrink: on an SSD whose flushes are lies a history fails, is shrunk to a small part of itself, and
// the command that is printed for it fails in the same way.
func TestShrink(t *testing.T) {
	if _, err := newHistory(1, "", "1500"); err == nil {
		t.Error("a step that there is not is accepted")
	}
	if _, err := newHistory(1, "Nothing=1", ""); err == nil {
		t.Error("a setting that there is not is accepted")
	}
	for seed := uint64(3); seed < 100; seed += 3 { // without other faults
		h, err := newHistory(seed, "LyingFlush=1", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.play(nil); err == nil {
			continue
		}
		small, err := h.shrink(10 * time.Second)
		if err == nil {
			t.Fatalf("seed %d fails no more when it is shrunk", seed)
		}
		if n := len(kept(small.keep)); n > h.cfg.Steps/5 {
			t.Errorf("%d steps of %d are left", n, h.cfg.Steps)
		}
		flags := map[string]string{}
		words := strings.Fields(small.command())
		for i, w := range words {
			if strings.HasPrefix(w, "-") && i+1 < len(words) {
				flags[w] = words[i+1]
			}
		}
		again, err2 := newHistory(seed, flags["-set"], flags["-keep"])
		if err2 != nil {
			t.Fatalf("%s: %v", small.command(), err2)
		}
		if _, err2 = again.play(nil); err2 == nil || err2.Error() != err.Error() {
			t.Errorf("%s: %v, was %v", small.command(), err2, err)
		}
		t.Logf("%s\n%v", small.command(), err)
		return
	}
	t.Error("no history noticed that flushes are lies")
}
