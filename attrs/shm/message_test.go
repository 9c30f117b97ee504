package shm

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
)

func FuzzMessage(f *testing.F) {
	var b [MessageBytes]byte
	m := Message{
		Kind: OpenDevice, Errno: unix.EACCES, Flags: FlagRing, Index: 1, Number: 2, Block: 512,
		Max: 1 << 20, Size: 1 << 40, Dev: 259 << 8, Text: "disk",
	}
	f.Add(b[:m.encode(b[:])])
	f.Fuzz(func(t *testing.T, in []byte) {
		var m, again Message
		if m.decode(in) != nil {
			return
		}
		var b [MessageBytes]byte
		if err := again.decode(b[:m.encode(b[:])]); len(in) <= MessageBytes && (err != nil || again != m) {
			t.Errorf("%+v becomes %+v, %v", m, again, err)
		}
	})
}

func TestMessage(t *testing.T) {
	var b [MessageBytes]byte
	m := Message{Kind: Hello, Text: "no", Errno: unix.EPERM}
	n := m.encode(b[:])
	var got Message
	if err := got.decode(b[:n]); err != nil || got != m {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := got.Err(); !errors.Is(err, unix.EPERM) || err.Error() != "no: operation not permitted" {
		t.Errorf("error %v", err)
	}
	for name, change := range map[string]func() int{
		"short":     func() int { return messageHeadBytes - 1 },
		"cut":       func() int { return n - 1 },
		"magic":     func() int { b[0]++; return n },
		"version":   func() int { b[4]++; return n },
		"reserved":  func() int { b[63] = 1; return n },
		"too long":  func() int { return n + 1 },
		"very long": func() int { return MessageBytes },
	} {
		m.encode(b[:])
		if err := got.decode(b[:change()]); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	want := []Capability{{attrs.IDHint, true}, {attrs.IDTrace, false}}
	got := ParseCapabilities(append(AppendCapabilities(nil, want), 1, 2))
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%v", got)
	}
}
