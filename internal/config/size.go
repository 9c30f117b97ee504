package config

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a number of bytes, written with a binary suffix: "4M" is 4 MiB.
type Size int64

var suffixes = []struct {
	name string
	n    Size
}{{"E", 1 << 60}, {"P", 1 << 50}, {"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}}

// ParseSize reads "4M", "4MiB", "512", "1.5G".
func ParseSize(s string) (Size, error) {
	t := strings.ToUpper(strings.TrimSpace(s))
	t = strings.TrimSuffix(strings.TrimSuffix(t, "B"), "I")
	unit := Size(1)
	for _, x := range suffixes {
		if strings.HasSuffix(t, x.name) {
			t, unit = strings.TrimSuffix(t, x.name), x.n
			break
		}
	}
	t = strings.TrimSpace(t)
	if n, err := strconv.ParseInt(t, 10, 64); err == nil && n >= 0 {
		if n > (1<<63-1)/int64(unit) {
			return 0, fmt.Errorf("size %q is too large", s)
		}
		return Size(n) * unit, nil
	}
	v, err := strconv.ParseFloat(t, 64)
	if err != nil || !(v >= 0) || v*float64(unit) > 1<<62 {
		return 0, fmt.Errorf("%q is not a size (for instance 512K, 4M, 1.5G)", s)
	}
	return Size(v * float64(unit)), nil
}

// String writes the size so that ParseSize reads back the same number.
func (z Size) String() string {
	for _, x := range suffixes {
		if z != 0 && z%x.n == 0 {
			return strconv.FormatInt(int64(z/x.n), 10) + x.name
		}
	}
	return strconv.FormatInt(int64(z), 10)
}

// Human writes the size for people, rounded.
func (z Size) Human() string {
	for _, x := range suffixes {
		if z >= x.n {
			return fmt.Sprintf("%.1f %siB", float64(z)/float64(x.n), x.name)
		}
	}
	return fmt.Sprintf("%d B", int64(z))
}

// MarshalText writes the size.
func (z Size) MarshalText() ([]byte, error) { return []byte(z.String()), nil }

// UnmarshalText reads the size.
func (z *Size) UnmarshalText(b []byte) (err error) {
	*z, err = ParseSize(string(b))
	return err
}

// Set makes a Size a command-line flag.
func (z *Size) Set(s string) (err error) {
	*z, err = ParseSize(s)
	return err
}

// Type names the flag's kind in help texts.
func (z *Size) Type() string { return "size" }
