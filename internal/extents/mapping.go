package extents

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ubcache/attrs/rules"
)

// Device is a block device by its number.
type Device struct{ Major, Minor uint32 }

// DeviceOf splits a device number as stat(2) has it.
func DeviceOf(dev uint64) Device { return Device{unix.Major(dev), unix.Minor(dev)} }

func (d Device) number() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// String is the device's name below /dev, or its number if it has none.
func (d Device) String() string {
	dir, err := filepath.EvalSymlinks(sysBlock + d.number())
	if err != nil {
		return "device " + d.number()
	}
	if name := sysText(dir, "dm/name"); name != "" {
		return "/dev/mapper/" + name
	}
	return "/dev/" + strings.ReplaceAll(filepath.Base(dir), "!", "/")
}

const (
	sysBlock    = "/sys/dev/block/"
	sectorBytes = 512
	// stackMax is more devices on top of each other than anybody has.
	stackMax = 16
)

// segment is a run of bytes of a device, and where it begins on the device below.
type segment struct {
	rules.Range
	to int64
}

// mapping says where the bytes of a device lie on one below it, in order. What is missing lies
// elsewhere.
type mapping []segment

var identity = mapping{{Range: rules.Range{Off: 0, End: math.MaxInt64}}}

// translate appends where a range lies on the device below.
func (m mapping) translate(list []rules.Range, r rules.Range) []rules.Range {
	for _, s := range m {
		off, end := max(r.Off, s.Off), min(r.End, s.End)
		if off < end {
			list = append(list, rules.Range{Off: off - s.Off + s.to, End: end - s.Off + s.to})
		}
	}
	return list
}

// through continues a mapping by one of the device that it leads to.
func (m mapping) through(below mapping) mapping {
	var out mapping
	for _, s := range m {
		for _, b := range below {
			end := s.to + (s.End - s.Off)
			from, to := max(s.to, b.Off), min(end, b.End)
			if from < to {
				at := s.Off + from - s.to
				out = append(out, segment{
					Range: rules.Range{Off: at, End: at + to - from}, to: b.to + from - b.Off,
				})
			}
		}
	}
	return out
}

// layer is one step down: the part of a device that lies on another one.
type layer struct {
	part  segment
	below Device
}

// mapTo finds how the bytes of a device lie on target. It follows partitions, and device-mapper's
// linear and crypt targets, which change no places. The error says what is in between otherwise.
func mapTo(from, target Device) (mapping, error) {
	m, err := descend(from, target, 0, layersOf)
	if err == nil && len(m) == 0 {
		err = fmt.Errorf("its filesystem is on %v, not on %v", from, target)
	}
	return m, err
}

// descend is mapTo with the step down as an argument. Without an error it may return an empty mapping.
func descend(from, target Device, depth int, step func(Device) ([]layer, error)) (mapping, error) {
	if from == target {
		return identity, nil
	}
	if depth == stackMax {
		return nil, fmt.Errorf("more than %d devices on top of each other", stackMax)
	}
	layers, err := step(from)
	if err != nil {
		return nil, err
	}
	var m mapping
	for _, l := range layers {
		below, err := descend(l.below, target, depth+1, step)
		if err != nil {
			return nil, err
		}
		m = append(m, mapping{l.part}.through(below)...)
	}
	return m, nil
}

// layersOf looks into sysfs for what a device is made of. A device that is made of none has none.
func layersOf(d Device) ([]layer, error) {
	dir, err := filepath.EvalSymlinks(sysBlock + d.number())
	if err != nil {
		return nil, errors.New("its filesystem is not on a block device of its own")
	}
	switch {
	case sysText(dir, "partition") != "":
		below, err := parseDevice(sysText(filepath.Dir(dir), "dev"))
		start, err1 := strconv.ParseInt(sysText(dir, "start"), 10, 64)
		size, err2 := strconv.ParseInt(sysText(dir, "size"), 10, 64)
		if err != nil || err1 != nil || err2 != nil {
			return nil, fmt.Errorf("sysfs does not say where partition %v begins", d)
		}
		return []layer{{
			part: segment{
				Range: rules.Range{Off: 0, End: size * sectorBytes}, to: start * sectorBytes,
			},
			below: below,
		}}, nil
	case sysText(dir, "dm/name") != "":
		return dmLayers(d)
	}
	slaves, _ := filepath.Glob(dir + "/slaves/*")
	if len(slaves) > 0 {
		kind := sysText(dir, "md/level")
		if kind == "" {
			kind = "an unknown kind"
		}
		return nil, fmt.Errorf("its filesystem is on %v (%s); only partitions, linear and encrypted mappings can be "+
			"followed down", d, kind)
	}
	return nil, nil
}

func parseDevice(text string) (Device, error) {
	major, minor, _ := strings.Cut(text, ":")
	a, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return Device{}, fmt.Errorf("%q is no device number", text)
	}
	b, err := strconv.ParseUint(minor, 10, 32)
	if err != nil {
		return Device{}, fmt.Errorf("%q is no device number", text)
	}
	return Device{uint32(a), uint32(b)}, nil
}

func sysText(dir, name string) string {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(b))
}
