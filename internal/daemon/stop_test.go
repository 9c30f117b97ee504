package daemon

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"ubcache/internal/missed"
)

// TestWaitUnused: who is named as a user may be gone before the next question; others do not go away by themselves.
func TestWaitUnused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		leaves int // the client is gone from that question on, 0: there is none
		mount  string
		want   string
	}{
		{"nobody", 0, "", ""},
		{"a mount", 0, "mounted", "mounted"},
		{"a client that leaves between the questions", 2, "", ""},
		{"a client that leaves between two others", 3, "", ""},
		{"a client that leaves later", 6, "", ""},
		{"a client that leaves before a mount is seen", 2, "mounted", "mounted"},
		{"both", 6, "mounted", "mounted"},
	} {
		asked := 0
		there := func() bool {
			asked++
			return asked < tt.leaves
		}
		got := waitUnused(func() string {
			if there() {
				return "client"
			}
			return tt.mount
		}, there)
		if got != tt.want {
			t.Errorf("%s: used by %q, want %q", tt.name, got, tt.want)
		}
	}
}

// onLog calls f when something is logged that has text in it.
type onLog struct {
	slog.Handler
	text string
	f    func()
}

func (h onLog) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.text) {
		h.f()
	}
	return h.Handler.Handle(ctx, r)
}

// TestStopFails: the SSD fails the last write of a stop. The daemon ends with the error as if it had been killed, and the next
// start recovers.
func TestStopFails(t *testing.T) {
	b := newOldBench(t, "")
	b.write(1)
	must(t, b.mu.served[1].dev.Close()) // so that takePrints tells, which is when the SSD goes away
	failed := false
	b.Instance.log = slog.New(onLog{slog.NewTextHandler(io.Discard, nil), "no fingerprint", func() {
		if !failed {
			failed = true
			must(t, b.Instance.ssd.Close())
		}
	}})
	err := b.Stop(context.Background(), true)
	if err == nil || !strings.Contains(err.Error(), "write superblock") || !strings.Contains(err.Error(), "the daemon has ended") ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("stop: %v", err)
	}
	select {
	case <-b.Done():
	default:
		t.Error("the daemon does not end")
	}
	must(t, b.Stop(context.Background(), true))
	if sb, err := missed.ReadSuper(b.stateDir, b.conf.UUID); err != nil || sb == nil || sb.Clean {
		t.Errorf("the copy of the superblock: %+v, %v", sb, err)
	}
	must(t, b.startNow(time.Second))
	b.want(1)
	if n := b.Status().Devices[0].DirtyBytes; n != 8192 {
		t.Errorf("%d bytes are dirty", n)
	}
	b.stop()
}
