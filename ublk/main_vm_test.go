//go:build vm

package ublk_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// These tests need root, Linux 6.12 or newer with ublk_drv, fio and mke2fs: the guest of cmd/ubvm.

func TestMain(m *testing.M) {
	if role := os.Getenv("UBLK_TEST_SERVER"); role != "" {
		serverMain(role)
		return
	}
	if out, err := exec.Command("modprobe", "ublk_drv").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "modprobe ublk_drv: %v: %s\n", err, out)
	}
	os.Exit(m.Run())
}

// kernelAtLeast reads the release of the running kernel.
func kernelAtLeast(t testing.TB, want string) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return compareRelease(t, unix.ByteSliceToString(u.Release[:]), want) >= 0
}

func compareRelease(t testing.TB, a, b string) int {
	t.Helper()
	parse := func(s string) (n [2]int) {
		f := strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
		for i := range n {
			v, err := strconv.Atoi(f[i])
			if err != nil {
				t.Fatalf("kernel release %q: %v", s, err)
			}
			n[i] = v
		}
		return n
	}
	x, y := parse(a), parse(b)
	return (x[0]-y[0])*1000 + x[1] - y[1]
}

// need skips a test on kernels older than the feature's release and fails it on newer ones without
// the feature.
func need(t testing.TB, want ublk.Features) {
	t.Helper()
	have, err := ublk.Probe()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range ublk.FeatureList() {
		if want&f.Bit == 0 || have.Has(f.Bit) {
			continue
		}
		if kernelAtLeast(t, f.NeedsLinux) {
			t.Fatalf("the kernel should have %s (since %s) but reports %v", f.Name, f.NeedsLinux,
				have)
		}
		t.Skipf("skipped: %s needs Linux ≥ %s", f.Name, f.NeedsLinux)
	}
}

func modeFeatures(m ublk.CopyMode) ublk.Features {
	switch m {
	case ublk.UserCopy:
		return ublk.FeatureUserCopy
	case ublk.AutoZeroCopy, ublk.RingCopy:
		return ublk.FeatureAutoBuffers
	}
	return 0
}

func timeout(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// serve makes and starts a device that ends with the test.
func serve(t testing.TB, o ublk.Options, factory func(int) (ublk.Handler, error)) *ublk.Device {
	t.Helper()
	if o.OnError == nil {
		o.OnError = func(err error) { t.Error(err) }
	}
	d, err := ublk.Create(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Delete(timeout(t, time.Minute)); err != nil {
			t.Error(err)
		}
		if _, err := ublk.Lookup(d.ID()); !errors.Is(err, ublk.ErrNotFound) {
			t.Errorf("device %d after Delete: %v", d.ID(), err)
		}
	})
	if err := d.Start(factory); err != nil {
		t.Fatal(err)
	}
	return d
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
