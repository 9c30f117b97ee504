//go:build vm

package ublk_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

func TestFeaturesOfThisKernel(t *testing.T) {
	have, err := ublk.Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("features: %v", have)
	for _, f := range ublk.FeatureList() {
		// NEED_REG_BUF and zero copy had their bits before they worked.
		if kernelAtLeast(t, f.NeedsLinux) && !have.Has(f.Bit) {
			t.Errorf("%s should be there since Linux %s", f.Name, f.NeedsLinux)
		}
	}
}

func TestUnsupported(t *testing.T) {
	o := testOptions(ublk.Copy, testDiskSize)
	o.Extra = 1 << 50
	_, err := ublk.Create(o)
	var u *ublk.UnsupportedError
	if !errors.As(err, &u) {
		t.Fatalf("Create with an unknown feature: %v", err)
	}
	have, err := ublk.Probe()
	if err != nil {
		t.Fatal(err)
	}
	if have.Has(ublk.FeatureAutoBuffers) {
		return
	}
	o = testOptions(ublk.AutoZeroCopy, testDiskSize)
	if _, err := ublk.Create(o); !errors.As(err, &u) || u.NeedsLinux != "6.16" {
		t.Errorf("Create without AUTO_BUF_REG: %v", err)
	}
}

func TestInfoAndList(t *testing.T) {
	o := testOptions(ublk.Copy, testDiskSize)
	o.Tag = 0x7562_6361_6368_6521
	o.Params.Rotational = true
	o.Params.IOOptBytes = 64 << 10
	d := serve(t, o, newDisk(t, testDiskSize).factory)
	list, err := ublk.List()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(i *ublk.Info) bool { return i.ID == d.ID() })
	if i < 0 {
		t.Fatalf("device %d is not in the list", d.ID())
	}
	info := list[i]
	if info.State != ublk.StateLive || info.Tag != o.Tag || info.Queues != 2 || info.Depth != 64 ||
		info.Mode() != ublk.Copy || info.PID <= 0 || info.BlockDev == 0 || info.CharDev == 0 {
		t.Errorf("info: %+v", info)
	}
	want := d.Options().Params
	got := info.Params
	if *got.Discard != *want.Discard {
		t.Errorf("discard limits: %+v, want %+v", *got.Discard, *want.Discard)
	}
	got.Discard, want.Discard = nil, nil
	if got != want {
		t.Errorf("parameters: %+v, want %+v", got, want)
	}
	if _, err := ublk.Lookup(12345); !errors.Is(err, ublk.ErrNotFound) {
		t.Errorf("Lookup of no device: %v", err)
	}
}

// A limit of the driver's: an id that is taken, and an id of our choice.
func TestIDs(t *testing.T) {
	o := testOptions(ublk.Copy, testDiskSize)
	o.ID = 77
	d := serve(t, o, newDisk(t, testDiskSize).factory)
	if d.ID() != 77 || d.Path() != "/dev/ublkb77" {
		t.Errorf("id %d, path %s", d.ID(), d.Path())
	}
	start := time.Now()
	if _, err := ublk.Create(o); err == nil {
		t.Error("two devices with one id")
	} else if time.Since(start) > 5*time.Second {
		t.Errorf("it took %v to say: %v", time.Since(start), err)
	}
}

func TestDMAAndSegments(t *testing.T) {
	o := testOptions(ublk.Copy, testDiskSize)
	o.Params.DMAAlign = 512
	o.Params.Segment = &ublk.SegmentParams{BoundaryMask: 1<<16 - 1, MaxBytes: 8192, MaxCount: 16}
	d, err := ublk.Create(o)
	var u *ublk.UnsupportedError
	if errors.As(err, &u) && !kernelAtLeast(t, "6.15") {
		t.Skipf("skipped: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(newDisk(t, testDiskSize).factory); err != nil {
		t.Fatal(err)
	}
	verify(t, d.Path(), testDiskSize, 100)
	if err := d.Delete(timeout(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
}

func TestUpdateSize(t *testing.T) {
	need(t, ublk.FeatureUpdateSize)
	disk := newDisk(t, testDiskSize)
	d := serve(t, testOptions(ublk.Copy, testDiskSize/2), disk.factory)
	fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, size := range []uint64{testDiskSize, testDiskSize / 4} {
		if err := d.UpdateSize(size); err != nil {
			t.Fatal(err)
		}
		if got, err := deviceSize(fd); err != nil || got != size {
			t.Errorf("size after update: %d, %v, want %d", got, err, size)
		}
		info, err := d.Info()
		if err != nil || info.Params.SizeBytes != size {
			t.Errorf("info after update: %+v, %v", info, err)
		}
	}
}
