package vm

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"ubcache/cmd/ubvm/internal/frame"
)

// testRun is a run of which only the boots are missing.
func testRun(t *testing.T, maxBoots int) *run {
	t.Helper()
	r := &run{dir: t.TempDir(), config: &Config{
		Accel: TCG, MaxBoots: maxBoots, Timeout: time.Hour, Stderr: io.Discard,
		Disks: []Disk{{Name: "d", SizeBytes: 1 << 20, SectorBytes: 512}},
	}}
	if err := os.Mkdir(r.path("empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.blank(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSpoiltBoots: what the emulator spoils goes on, or begins anew, a few times and with all the time there
// is; a reset counts as a boot.
func TestSpoiltBoots(t *testing.T) {
	errOther := errors.New("other")
	goesOn, anew := &GuestError{spoilt: true}, &GuestError{spoilt: true, anew: true}
	for _, tt := range []struct {
		name  string
		ends  []error // of the boots; nil: a reset
		boots []int
		err   error // nil: done after all those
	}{
		{"resets", []error{nil, nil}, []int{1, 2, 3}, nil},
		{"goes on", []error{nil, goesOn, nil}, []int{1, 2, 2, 3}, nil},
		{"anew", []error{nil, nil, anew, nil}, []int{1, 2, 3, 1, 2}, nil},
		{"other", []error{nil, errOther}, []int{1, 2}, errOther},
		{"too often", []error{anew, goesOn, nil, anew, goesOn, anew}, []int{1, 1, 1, 2, 1, 1}, anew},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := testRun(t, 10)
			var boots []int
			var ends time.Time
			spoilt := false
			err := r.bootAll(t.Context(), func(ctx context.Context, boot int) (bool, error) {
				end, _ := ctx.Deadline()
				if later := end.After(ends); len(boots) > 0 && later != spoilt {
					t.Errorf("boot %d has time until %v after %v", len(boots), end, ends)
				}
				ends = end
				boots = append(boots, boot)
				if len(boots) > len(tt.ends) {
					return true, nil
				}
				err := tt.ends[len(boots)-1]
				spoilt = err != nil
				return false, err
			})
			if !slices.Equal(boots, tt.boots) || !errors.Is(err, tt.err) {
				t.Errorf("boots %v, %v; want %v, %v", boots, err, tt.boots, tt.err)
			}
		})
	}
}

// TestBeginAnew: nothing is left of what the job did.
func TestBeginAnew(t *testing.T) {
	r := testRun(t, 10)
	files := []string{r.disks[0].Path, r.path("out.img")}
	mark := []byte("of the first try")
	const at = 600 << 10
	n := 0
	err := r.bootAll(t.Context(), func(context.Context, int) (bool, error) {
		n++
		for _, name := range files {
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got := make([]byte, len(mark))
			if _, err := f.ReadAt(got, at); err != nil {
				t.Fatal(err)
			}
			if has := string(got) == string(mark); has != (n == 2) {
				t.Errorf("boot %d: %s has what the first wrote: %t", n, name, has)
			}
			if _, err := f.WriteAt(mark, at); n == 1 && err != nil {
				t.Fatal(err)
			}
		}
		if n == 2 {
			return false, &GuestError{spoilt: true, anew: true}
		}
		return n == 3, nil
	})
	if err != nil || n != 3 || len(r.disks) != 1 {
		t.Errorf("%d boots, %d disks, %v", n, len(r.disks), err)
	}
}

// TestBlame: when another boot is tried, and how.
func TestBlame(t *testing.T) {
	for _, tt := range []struct {
		name         string
		change       func(r *run)
		maxBoots     int
		what         string
		ready        bool
		spoilt, anew bool
	}{
		{"one boot", nil, 1, patchFault, true, true, false},
		{"counted", nil, 2, patchFault, true, true, true},
		{"counted, not ready", nil, 2, patchFault, false, true, false},
		{"another fault", nil, 2, "Oops: general protection fault", true, false, true},
		{"KVM", func(r *run) { r.config.Accel = KVM }, 2, patchFault, true, false, true},
		{"a step has ended", func(r *run) { r.status = []frame.Status{{}} }, 2, patchFault, true, false, true},
		{"a disk stays", func(r *run) { r.config.Disks[0].Path = "x" }, 2, patchFault, true, false, true},
		{"input", func(r *run) { r.config.Stdin = os.Stdin }, 2, patchFault, true, false, true},
	} {
		r := testRun(t, tt.maxBoots)
		if tt.change != nil {
			tt.change(r)
		}
		e := &GuestError{What: "kernel failed: " + tt.what}
		if r.blame(e, tt.ready); e.spoilt != tt.spoilt || e.anew != tt.anew {
			t.Errorf("%s: spoilt %t, anew %t", tt.name, e.spoilt, e.anew)
		}
	}
}
