package ublk

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestValidate(t *testing.T) {
	good := Options{ID: -1, Params: Params{SizeBytes: 1 << 20}}
	if err := good.Validate(); err != nil {
		t.Errorf("default options: %v", err)
	}
	for name, c := range map[string]func(o *Options){
		"ID":                func(o *Options) { o.ID = -2 },
		"Queues":            func(o *Options) { o.Queues = 5000 },
		"Depth":             func(o *Options) { o.Depth = 4097 },
		"MaxIOBytes":        func(o *Options) { o.MaxIOBytes = 64 << 20 },
		"Mode":              func(o *Options) { o.Mode = 9 },
		"Extra":             func(o *Options) { o.Extra = FeatureBatchIO },
		"Recovery":          func(o *Options) { o.Recovery = 9 },
		"LogicalBlockBytes": func(o *Options) { o.Params.LogicalBlockBytes = 1000 },
		"block size":        func(o *Options) { o.Params.IOOptBytes = 1 << 30 },
		"PhysicalBlockBytes": func(o *Options) {
			o.Params.LogicalBlockBytes, o.Params.PhysicalBlockBytes = 4096, 512
		},
		"SizeBytes": func(o *Options) { o.Params.SizeBytes = 1000 },
		"FUA":       func(o *Options) { o.Params.FUA = true },
		"DMAAlign":  func(o *Options) { o.Params.DMAAlign = 12 },
		"Integrity": func(o *Options) { o.Params.Integrity = &IntegrityParams{} },
		"Segment":   func(o *Options) { o.Params.Segment = &SegmentParams{} },
	} {
		o := good
		c(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("bad %s: %v", name, err)
		}
	}
	bad := Options{ID: -5, Depth: 9999}
	if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), "ID") ||
		!strings.Contains(err.Error(), "Depth") || !strings.Contains(err.Error(), "SizeBytes") {
		t.Errorf("three faults: %v", err)
	}
}

func TestParamsRoundTrip(t *testing.T) {
	o := Options{ID: -1, Params: Params{
		SizeBytes: 1 << 40, LogicalBlockBytes: 4096, PhysicalBlockBytes: 8192, IOMinBytes: 8192,
		IOOptBytes: 1 << 20, ChunkBytes: 1 << 20, VirtBoundaryMask: 4095, ReadOnly: true,
		Rotational: true, VolatileCache: true, FUA: true, DMAAlign: 512,
		Discard:   &DiscardParams{MaxDiscardBytes: 1 << 50, MaxZeroesBytes: 1 << 20},
		Segment:   &SegmentParams{BoundaryMask: 4095, MaxBytes: 4096, MaxCount: 7},
		Integrity: &IntegrityParams{MetadataBytes: 32, PIOffset: 16, Checksum: 3, TagSize: 1},
	}}.withDefaults()
	k := kernelParams(&o.Params, 1<<20)
	got := fromKernelParams(&k)
	if *got.Discard != *o.Params.Discard || *got.Segment != *o.Params.Segment ||
		*got.Integrity != *o.Params.Integrity {
		t.Errorf("pointers: %+v", got)
	}
	if got.Discard.MaxDiscardBytes>>9 != MaxRangeSectors {
		t.Errorf("discard limit: %d", got.Discard.MaxDiscardBytes)
	}
	want := o.Params
	got.Discard, got.Segment, got.Integrity = want.Discard, want.Segment, want.Integrity
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestErrors(t *testing.T) {
	err := commandError("delete device", 3, unix.ENODEV)
	if !errors.Is(err, ErrNotFound) || !errors.Is(err, unix.ENODEV) {
		t.Errorf("%v is not ErrNotFound", err)
	}
	if got := err.Error(); got != "ublk3: delete device: no such device" {
		t.Errorf("message: %s", got)
	}
	err = controlOpenError(unix.ENOENT)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "modprobe ublk_drv") {
		t.Errorf("message: %v", err)
	}
	err = FeatureUserCopy.require(FeatureUserCopy | FeatureQuiesce)
	var u *UnsupportedError
	if !errors.As(err, &u) || u.NeedsLinux != "6.16" ||
		err.Error() != "ublk: QUIESCE is not supported by this kernel (needs Linux ≥ 6.16)" {
		t.Errorf("unsupported: %v", err)
	}
}

func TestFeatureNames(t *testing.T) {
	var all Features
	for i, f := range FeatureList() {
		if f.Bit != 1<<i {
			t.Errorf("%s: bit %#x, want %#x", f.Name, uint64(f.Bit), 1<<i)
		}
		all |= f.Bit
	}
	if s := (all | 1<<60).String(); !strings.HasPrefix(s, "SUPPORT_ZERO_COPY,") ||
		!strings.HasSuffix(s, "IO_DESC_SIZE,0x1000000000000000") {
		t.Errorf("names: %s", s)
	}
}
